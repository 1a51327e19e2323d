# SPDX-License-Identifier: Apache-2.0
"""Identify a source of weights, and open it: tensors by name, and the files beside them.

A source is a TensorFlow 1 checkpoint (folder, prefix, one of its files, TF-Hub module) or a
transformers model (folder or file), on disk, in a tar archive, or at an address.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from albert_jax.checkpoint import hub
from albert_jax.checkpoint.convert.archives import (
    NotDownloaded,
    download,
    is_archive,
    released_archive,
    unpack,
)
from albert_jax.checkpoint.convert.flax_msgpack import read_flax
from albert_jax.checkpoint.convert.safetensors_file import read_safetensors
from albert_jax.checkpoint.convert.tensors import Tensor
from albert_jax.checkpoint.convert.tf_bundle import CheckpointReader
from albert_jax.checkpoint.convert.torch_zip import read_torch
from albert_jax.checkpoint.model_dir import file_sha256
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.adapters import is_adapter
from albert_jax.config.manifests import TRANSFORMERS_WEIGHTS, is_pretraining_run
from albert_jax.config.model_names import ModelName, name_of, repository_of, shown_endpoint
from albert_jax.config.packaged import packaged_path
from albert_jax.data.hf_tokenizer import Choice, HfTokenizer, choose_vocabulary
from albert_jax.utils.atomic import scratch_folder
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_foreign_json
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.streams import say
from albert_jax.utils.tf_files import prefix_of, tf_indexes
from albert_jax.utils.wording import first_ten, setting, without_secrets

MODEL_FILES = ("manifest.json", "albert_config.json", "params")

_BY_SUFFIX = {".safetensors": read_safetensors, ".bin": read_torch, ".pt": read_torch}
_BY_SUFFIX |= {".msgpack": read_flax}
_VOCABULARIES = ("30k-clean.model", "spiece.model")
_DIGITS = 16  # of an archive's SHA-256, in its key


@dataclass(frozen=True)
class WeightSource:
    """Hold an open source of weights.

    `kind` says which program's names the tensors have and whose terms the configuration uses.
    """

    kind: Literal["tf", "hf"]
    file: Path  # of the weights
    tensors: dict[str, Tensor]
    configs: tuple[Path, ...]  # if there are several, one must be chosen
    folders: tuple[Path, ...]  # where files that belong to the weights may be, the nearest first

    @property
    def description(self) -> str:
        """The kind of the source, in words."""
        names = {"tf": "TensorFlow checkpoint", "hf": "transformers weights"}
        return f"{names[self.kind]} {self.file.name}"


@dataclass(frozen=True)
class Fetched:
    """Hold a source on this disk; `origin` is its name, `key` distinguishes states of a name."""

    path: Path
    origin: str
    key: str | None = None


@contextlib.contextmanager
def fetched(source: str | Path) -> Iterator[Fetched]:
    """Yield a source on this disk.

    What was downloaded or unpacked for it is removed at the end, whatever ends it, except the cache
    of huggingface_hub. Raises UserError if there is nothing, or nothing that can be used.
    """
    if not str(source):
        raise UserError("the source has no name; give a tar.gz, a folder or a checkpoint's prefix")
    path = Path(source)
    with contextlib.ExitStack() as stack:
        if named := _name_of(source):
            found = _fetched_by_name(named, stack)
            path = found.path
        elif is_address(str(source)):
            path = download(str(source), stack.enter_context(_scratch()))
            found = Fetched(path, without_secrets(str(source)))  # a manifest keeps it
        elif is_adapter(path):
            path = require_model_directory(path)
            found = Fetched(path, str(source))
        else:
            found = Fetched(path, str(source))
            if not path.exists() and not _is_prefix(path):
                raise UserError(
                    f"{path} does not exist; give a tar.gz, a folder, a checkpoint's prefix or its "
                    ".index, a released model's name, or hub:OWNER/NAME"
                )
        if _is_archive(path):
            unpacked = _unpacked(path, stack.enter_context(_scratch()))
            found = Fetched(unpacked, found.origin, found.key)
        yield found


def _name_of(source: str | Path) -> ModelName | None:
    """Return the model that a source names.

    None for a path, a checkpoint's prefix and an address.
    """
    is_hub = str(source).startswith(("hub:", "hf:", "released:"))
    if not is_hub and (is_address(str(source)) or _is_prefix(Path(source))):
        return None
    return name_of(source)


def _fetched_by_name(named: ModelName, stack: contextlib.ExitStack) -> Fetched:
    """Return the source of a name: a released model's archive at Google, or else the hub's folder.

    Temporary files are removed with the stack.
    """
    if named.kind == "packaged":
        return Fetched(packaged_path(named.name), named.name)
    if named.kind == "hub":
        return _fetched_from_hub(named, "")
    try:
        archive, address = released_archive(named.name, stack.enter_context(_scratch()))
    except NotDownloaded as error:
        repository = repository_of(named.name)
        say(f"{error.brief}; trying {shown_endpoint()}/{repository}")
        try:
            return _fetched_from_hub(repository, "hub-")
        except UserError as second:
            raise UserError(f"{named} cannot be fetched: {error.brief}, and {second}") from None
    return Fetched(archive, without_secrets(address), file_sha256(archive)[:_DIGITS])


def _fetched_from_hub(named: ModelName, prefix: str) -> Fetched:
    found = hub.snapshot(named)
    return Fetched(found.folder, f"hub:{named.name}@{found.commit}", f"{prefix}{found.commit}")


def _is_archive(path: Path) -> bool:
    try:
        return path.is_file() and is_archive(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a folder for temporary files, which is removed at the end, also by a signal."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder())
        except OSError as error:
            raise UserError(
                f"no temporary folder can be made ({error.strerror or error}); set TMPDIR to a "
                "folder with room for the model"
            ) from None
        yield folder


def _unpacked(path: Path, scratch: Path) -> Path:
    """Return the folder of the one model in an archive."""
    inside = scratch / "unpacked"
    inside.mkdir()
    folders = _models_in(unpack(path, inside))
    if len(folders) != 1:
        names = first_ten([str(f.relative_to(inside)) for f in folders])
        raise UserError(
            f"{path} should hold one model, but holds {len(folders)}"
            f"{f' ({names})' if folders else ''}; unpack it and give the folder of one"
        )
    return folders[0]


def _models_in(folder: Path) -> list[Path]:
    """Return the folders below a folder that each have a model, in any format."""
    ours = {path.parent for path in folder.rglob("manifest.json")}
    found = {path for path in ours if has_model_files(path)}
    for path in folder.rglob("*"):
        if path.is_file() and (path.name in TRANSFORMERS_WEIGHTS or path.suffix == ".index"):
            found.add(path.parent.parent if path.parent.name == "variables" else path.parent)
    return sorted(found)


def _is_prefix(path: Path) -> bool:
    """Return whether a path is the prefix of a TensorFlow checkpoint, or one of its files."""
    name = prefix_of(path.name)
    return bool(name) and path.with_name(f"{name}.index").is_file()


def has_model_files(path: Path) -> bool:
    """Return whether a path is a model directory of this package."""
    return all((path / name).exists() for name in MODEL_FILES)


def open_weights(path: Path) -> WeightSource:
    """Open a result of `fetched`, unless it is a model directory; raises UserError."""
    if path.is_dir():
        return _open_folder(path)
    if path.suffix in _BY_SUFFIX:
        return _hf(path, _BY_SUFFIX[path.suffix](path))
    if path.name.endswith((".safetensors.index.json", ".bin.index.json")):
        return _hf(path, _read_parts(path, _BY_SUFFIX["." + path.name.split(".")[-3]]))
    if not _is_prefix(path):
        raise UserError(
            f"{path} is no checkpoint in a known format; give a tar.gz, a folder, a "
            "TensorFlow checkpoint's prefix or .index, or a file that ends in "
            f"{', '.join(_BY_SUFFIX)}"
        )
    return _tf(CheckpointReader.open(path))


def _open_folder(folder: Path) -> WeightSource:
    files = [folder / name for name in TRANSFORMERS_WEIGHTS if (folder / name).is_file()]
    indexes = [*tf_indexes(folder), *tf_indexes(folder / "variables")]
    if files and indexes:
        names = f"{files[0].name} and {indexes[0].relative_to(folder)}"
        raise UserError(f"{folder} holds two models, {names}; give one of these files")
    if files:
        return open_weights(files[0])
    if any(any(folder.glob(index)) for index in ("*.index", "variables/*.index")):
        return _tf(CheckpointReader.open(folder))
    raise UserError(_why_no_model(folder))


def _holds_model(folder: Path) -> bool:
    names = set(_names_in(folder))
    is_ours = names.issuperset(MODEL_FILES)
    return is_ours or not names.isdisjoint(TRANSFORMERS_WEIGHTS) or bool(tf_indexes(folder))


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder; none if it may not be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _why_no_model(folder: Path) -> str:
    """Return what a folder is, or has, instead of a readable model, and what to give."""
    there = [name for name in MODEL_FILES if (folder / name).exists()]
    if "albert_config.json" in there and len(there) > 1:
        lacking = ", ".join(name for name in MODEL_FILES if name not in there)
        return f"{folder} is a model directory that lacks {lacking}; copy it again"
    if has_model_files(folder / "model"):
        return f"{folder} is a work directory; give the model in it, {folder / 'model'}"
    if is_pretraining_run(folder):
        return (
            f"{folder} is a work directory of a run that has not ended; make a model directory of "
            f"its newest checkpoint with albert-jax export {folder} DEST, and give that"
        )
    inside = [folder / name for name in sorted(_names_in(folder))]
    if any({"state", "meta"}.issubset(_names_in(path)) for path in (folder, *inside)):
        return (
            f"{folder} holds checkpoints of a training run; make a model directory of the newest "
            "with albert-jax export WORKDIR DEST, and give that"
        )
    if "manifest.json" in there and "splits" in read_foreign_json(folder / "manifest.json"):
        return f"{folder} is a token store, which holds text and no model; give a model"
    for name in ("tf_model.h5", "model.onnx"):
        if (folder / name).is_file():
            return (
                f"{folder / name} is not read; save the model as model.safetensors in "
                "transformers with save_pretrained"
            )
    if models := [path.name for path in inside if _holds_model(path)]:
        return f"{folder} holds no model itself; give one of its folders: {first_ten(models)}"
    if others := [path.name for path in inside if path.suffix in _BY_SUFFIX]:
        return (
            f"{folder} has none of {', '.join(TRANSFORMERS_WEIGHTS)} and no *.index of a "
            "TensorFlow checkpoint; if one of its other files is the model, give it: "
            f"{first_ten(others)}"
        )
    return (
        f"{folder} holds no model that can be read: none of {', '.join(TRANSFORMERS_WEIGHTS)}, and "
        "no *.index of a TensorFlow checkpoint; give the folder, archive or checkpoint's prefix "
        "that does"
    )


def _hf(file: Path, tensors: dict[str, Tensor]) -> WeightSource:
    config = file.parent / "config.json"
    configs = (config,) if config.is_file() else ()
    return WeightSource("hf", file, tensors, configs, (file.parent,))


def _tf(reader: CheckpointReader) -> WeightSource:
    if any(name.endswith(".ATTRIBUTES/VARIABLE_VALUE") for name in reader.names()):
        raise UserError(
            f"{reader.path} is a TensorFlow 2 checkpoint of objects, which are not named as "
            "ALBERT's variables; give the original TensorFlow 1 checkpoint or TF-Hub module"
        )
    tensors = {}
    for name in reader.names():
        read = (lambda n: lambda: reader.read(n))(name)
        tensors[name] = Tensor(reader.shape(name), reader.dtype(name), read)
    folder = reader.path.parent
    folders: tuple[Path, ...] = (folder,)
    if folder.name == "variables":  # of a TF-Hub module
        folders += (folder.parent / "assets", folder.parent)
    configs = [f / name for f in folders for name in ("albert_config.json", "config.json")]
    configs = [file for file in configs if file.is_file()][:1]
    configs = configs or sorted(folder.glob("albert_config*.json"))
    return WeightSource("tf", reader.path, tensors, tuple(configs), folders)


def _read_parts(path: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all the files that an index lists, each from the file in the index."""
    places = read_foreign_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f"{path} has no weight_map of names and files; copy it again")
    outside = sorted({p for p in places.values() if Path(p).name != p or p in ("", "..")})
    if outside:
        raise UserError(f"{path} names files outside its folder, refused: {first_ten(outside)}")
    files = {name: read(path.with_name(name)) for name in sorted(set(places.values()))}
    said = set(places.items())
    there = {(name, file) for file, tensors in files.items() for name in tensors}
    wrong = [f"{name} in {file} (not there)" for name, file in sorted(said - there)]
    wrong += [f"{name} in {file} (not in the index)" for name, file in sorted(there - said)]
    if wrong:
        raise UserError(f"{path} and its files do not agree on {first_ten(wrong)}")
    return {name: files[file][name] for name, file in places.items()}


def find_vocabulary(
    source: WeightSource, hf: HfTokenizer | None, mode: str | None
) -> Choice | None:
    """Return the vocabulary beside the weights, or None if there is no tokenizer.

    In a transformers folder, `choose_vocabulary` decides from its files `hf`. Raises UserError if
    there are several, or only one of another kind.
    """
    try:
        choice = None if hf is None else choose_vocabulary(hf, mode)
    except UserError as error:
        raise UserError(
            f"{error}; or give one with {setting('vocab', 'FILE')}, or go without text by "
            f"{setting('no_vocab', True)}"
        ) from None
    if choice is not None:
        return choice
    for folder in source.folders:
        found = [folder / n for n in _VOCABULARIES if (folder / n).is_file()]
        found = found or sorted(folder.glob("*.model")) or sorted(folder.glob("vocab*.txt"))
        if len(found) > 1 and found[0].name not in _VOCABULARIES:
            names = first_ten([p.name for p in found])
            raise UserError(
                f"{folder} has several vocabularies ({names}); say which with {setting('vocab')}"
            )
        if found and found[0].suffix == ".txt":
            return Choice(found[0], "wordpiece", f"it has {found[0].name}")
        if found:
            return Choice(found[0], mode or ("google" if hf is None else "hf"), "")
    return None
