# SPDX-License-Identifier: Apache-2.0
"""Finds out what a source of weights is, and opens it: tensors by name, and the files beside them.

A source is a TensorFlow 1 checkpoint (folder, prefix, one of its files, TF-Hub module) or a
transformers model (folder or file), on disk, in a tar archive, or at an address.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from albert_jax.addresses import is_address
from albert_jax.errors import UserError
from albert_jax.formats.archives import download, is_archive, unpack
from albert_jax.formats.flax_msgpack import read_flax
from albert_jax.formats.safetensors_file import read_safetensors
from albert_jax.formats.tensors import Tensor
from albert_jax.formats.tf_bundle import CheckpointReader
from albert_jax.formats.torch_zip import read_torch

MODEL_FILES = ("manifest.json", "albert_config.json", "params")

# Files of a transformers folder, the first that is there counts, and their readers.
_HF_FILES: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "model.safetensors": read_safetensors,
    "model.safetensors.index.json": lambda path: _read_parts(path, read_safetensors),
    "pytorch_model.bin": read_torch,
    "pytorch_model.bin.index.json": lambda path: _read_parts(path, read_torch),
    "flax_model.msgpack": read_flax,
}
_BY_SUFFIX = {".safetensors": read_safetensors, ".bin": read_torch, ".pt": read_torch}
_BY_SUFFIX |= {".msgpack": read_flax}
_VOCABULARIES = ("30k-clean.model", "spiece.model")
_MOST_JSON = 1 << 26


@dataclass(frozen=True)
class Source:
    """`kind` says whose names the tensors have and whose words the configuration has."""

    kind: Literal["tf", "hf"]
    file: Path  # of the weights
    tensors: dict[str, Tensor]
    config: Path | None
    folders: tuple[Path, ...]  # where files that belong to the weights may be, nearest first

    @property
    def description(self) -> str:
        """What it is, in words."""
        names = {"tf": "TensorFlow checkpoint", "hf": "transformers weights"}
        return f"{names[self.kind]} {self.file.name}"


def fetch(source: str | Path, scratch: Path) -> Path:
    """The path of a source on this disk: downloaded and unpacked into `scratch` where need be.

    Raises UserError where there is nothing, or nothing that can be used.
    """
    path = download(str(source), scratch) if is_address(str(source)) else Path(source)
    if path.is_file() and is_archive(path):
        inside = scratch / "unpacked"
        inside.mkdir()
        folders = {p.parent for p in unpack(path, inside).rglob("*") if _is_weights(p)}
        folders = {f.parent if f.name == "variables" else f for f in folders}
        if len(folders) != 1:
            raise UserError(
                f"{path} should hold one model, but holds {len(folders)}; "
                "unpack it and give the folder of one"
            )
        return folders.pop()
    if not path.exists() and not path.with_name(path.name + ".index").is_file():
        raise UserError(
            f"{path} does not exist; give a tar.gz, a folder, a checkpoint's prefix or its .index"
        )
    return path


def _is_weights(path: Path) -> bool:
    return path.is_file() and (path.name in _HF_FILES or path.suffix == ".index")


def is_model_directory(path: Path) -> bool:
    """Whether a path is one of our own model directories."""
    return all((path / name).exists() for name in MODEL_FILES)


def open_source(path: Path) -> Source:
    """Opens what `fetch` returned, unless it is a model directory of ours; raises UserError."""
    if path.is_dir():
        for name, read in _HF_FILES.items():
            if (path / name).is_file():
                return _hf(path / name, read(path / name))
        for name in ("tf_model.h5", "model.onnx"):
            if (path / name).is_file() and not list(path.glob("*.index")):
                raise UserError(
                    f"{path / name} is not read; save the model as model.safetensors in "
                    "transformers with save_pretrained"
                )
    elif path.suffix in _BY_SUFFIX:
        return _hf(path, _BY_SUFFIX[path.suffix](path))
    elif path.name.endswith((".safetensors.index.json", ".bin.index.json")):
        return _hf(path, _read_parts(path, _BY_SUFFIX["." + path.name.split(".")[-3]]))
    return _tf(CheckpointReader.open(path))


def _hf(file: Path, tensors: dict[str, Tensor]) -> Source:
    config = file.parent / "config.json"
    return Source("hf", file, tensors, config if config.is_file() else None, (file.parent,))


def _tf(reader: CheckpointReader) -> Source:
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
    configs += sorted(folder.glob("albert_config*.json"))
    config = next((file for file in configs if file.is_file()), None)
    return Source("tf", reader.path, tensors, config, folders)


def _read_parts(path: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all the files that an index lists, each from the file it is said to be in."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f"{path} has no weight_map of names and files; copy it again")
    outside = sorted({p for p in places.values() if Path(p).name != p})
    if outside:
        raise UserError(f"{path} names files outside its folder, refused: {', '.join(outside)}")
    files = {name: read(path.with_name(name)) for name in sorted(set(places.values()))}
    said = set(places.items())
    there = {(name, file) for file, tensors in files.items() for name in tensors}
    wrong = [f"{name} in {file} (not there)" for name, file in sorted(said - there)]
    wrong += [f"{name} in {file} (not in the index)" for name, file in sorted(there - said)]
    if wrong:
        raise UserError(f"{path} and its files do not agree on {', '.join(wrong)}")
    return {name: files[file][name] for name, file in places.items()}


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file, or UserError."""
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; copy it again")
    return values


def find_vocabulary(source: Source) -> Path | None:
    """The SentencePiece model beside the weights, or None if no tokenizer is there.

    Raises UserError where there is one of another kind only.
    """
    for folder in source.folders:
        found = [folder / n for n in _VOCABULARIES if (folder / n).is_file()]
        found = found or sorted(folder.glob("*.model"))
        if len(found) > 1 and found[0].name not in _VOCABULARIES:
            names = ", ".join(p.name for p in found)
            raise UserError(f"{folder} has several vocabularies ({names}); say which with --vocab")
        if found:
            return found[0]
    for folder in source.folders:
        for name in ("tokenizer.json", "vocab.txt"):
            if (folder / name).is_file():
                raise UserError(
                    f"{folder} has {name} but no spiece.model, the SentencePiece vocabulary that "
                    "albert_jax reads; give that file with --vocab FILE, or go without text by "
                    "--no-vocab"
                )
    return None
