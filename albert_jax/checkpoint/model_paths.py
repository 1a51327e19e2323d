# SPDX-License-Identifier: Apache-2.0
"""Find the model directory of a path or a name; for others, say which command makes one.

Only the standard library and small files are used, so that a mistyped path is reported before JAX
is imported.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from albert_jax.checkpoint.named_models import (
    converted_folder,
    kept_folder,
    merged_adapter,
    named_model,
)
from albert_jax.config.adapters import base_digest, is_adapter, read_adapter_manifest
from albert_jax.config.manifests import (
    CONFIG,
    MANIFEST,
    SERVING,
    TRANSFORMERS_WEIGHTS,
    VOCABULARIES,
    holds_transformers_weights,
    is_model_directory,
    is_pretraining_run,
    read_model_manifest,
    vocabulary_in,
)
from albert_jax.config.model import MODELS
from albert_jax.config.model_names import (
    hidden_by,
    kept_model,
    known_names,
    name_of,
    named_by,
)
from albert_jax.data.text_settings import is_transformers_folder
from albert_jax.utils.arguments import path_of
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.streams import say
from albert_jax.utils.tf_files import tf_indexes
from albert_jax.utils.wording import did_you_mean, first_ten, is_in_python, setting

_WEIGHTS = (".safetensors", ".bin", ".pt", ".msgpack", ".index", ".data-00000-of-00001")


def require_model_directory(
    path: Any, name: str = "model", *, fetch: bool = True, base: str | Path | None = None
) -> Path:
    """Return the model directory at a path or of a name.

    For a transformers folder, an adapter, a released model and a hub repository it is made in the
    user's cache, if it is not there yet. With `fetch` False nothing is made, and such a source is
    refused. `base` is the model that an adapter was trained on, if it has moved. Raises UserError
    for anything else, which says what it is and what to run or give instead.
    """
    folder = path_of(path, name)
    if is_adapter(folder):
        return _adapters_model(folder, base, fetch)
    if base is not None:
        raise not_for_an_adapter(path, base)
    if named := name_of(path):
        if not fetch and not kept_model(named):
            raise _not_here(path)
        return named_model(named)
    if is_model_directory(folder):
        return folder
    hides = hidden_name(folder)
    if holds_transformers_weights(folder):
        if not fetch and not kept_folder(folder):
            raise _not_here(path)
        if hides:
            say(f"note: {folder} is the folder here{hides}")
        return converted_folder(folder)
    if told := what_is(path):
        raise UserError(f"{told}{hides}")
    if not folder.exists():
        nearest = did_you_mean(str(path), known_names())
        raise UserError(
            f"{path} does not exist{nearest}; give a model directory: WORKDIR/model of a finished "
            "run, or what albert-jax convert makes; or a name: a released model's "
            f"({', '.join(MODELS)}), mini, which comes with the package, or OWNER/NAME of the "
            f"Hugging Face hub{_repository_of(str(path))}"
        )
    raise UserError(
        f"{path} is no model directory (no {MANIFEST} or {CONFIG}); make one from "
        f"released weights with albert-jax convert, or take WORKDIR/model of a finished run{hides}"
    )


def not_for_an_adapter(path: str | Path, base: str | Path) -> UserError:
    """Return the error for a base beside anything but an adapter."""
    return UserError(
        f"{setting('base')} {base} is for an adapter, and {path} is none; leave it out"
    )


def _adapters_model(folder: Path, base: str | Path | None, fetch: bool) -> Path:
    if base is None and (kept := kept_folder(folder)):
        return kept
    if not fetch:
        raise _not_here(folder)
    manifest = read_adapter_manifest(folder)
    if manifest.base is None:  # whatever is given: the digest is of the model with the shape alone
        raise UserError(
            f"adapter {folder} was trained on random weights, which no model directory has; give "
            "the whole model that was written beside it"
        )
    given = base if base is not None else manifest.base
    try:
        found = require_model_directory(given, "base")
    except UserError as error:
        named = f"; name it with {setting('base', 'MODEL')} where it is elsewhere"
        hint = "" if base is not None else f"{named}, once, {_by(folder)}"
        raise UserError(f"the base of adapter {folder} cannot be used: {error}{hint}") from None
    digest = base_digest(read_model_manifest(found).tensors)
    if digest != manifest.base_sha256:
        raise UserError(
            f"{given} is not the base of adapter {folder}: its encoder has SHA-256 {digest[:12]}… "
            f"and the base's has {manifest.base_sha256[:12]}…; name the model that the adapter was "
            f"trained on with {setting('base', 'MODEL')}, once, {_by(folder)}"
        )
    return merged_adapter(folder, found)


def _by(folder: Path) -> str:
    """Return what takes the base, as not every command and call has a setting for it."""
    call = "albert_jax.load" if is_in_python() else f"albert-jax info {shlex.quote(str(folder))}"
    return f"by {call}, which keeps the whole model"


def hidden_name(folder: Path) -> str:
    """Return what an error adds if an existing path hides a known model, or ""."""
    known = hidden_by(folder) if folder.exists() else None
    return f"; the model of that name is {known}" if known else ""


def _repository_of(text: str) -> str:
    """Return what an error adds for a missing path that could name a repository, or ""."""
    named = named_by(text)
    return f"; {named.forced} is the repository of the hub" if named else ""


def _not_here(path: Any) -> UserError:
    return UserError(
        f"{path} has not been fetched or converted on this host, which processes that start "
        f"together do not do; run albert-jax info {shlex.quote(str(path))} on each host first"
    )


def what_is(path: Any) -> str | None:
    """Return a sentence on what is at a path, or has that name, and what to do with it.

    None for a model directory and for what is not recognised.
    """
    place = path_of(path, "path")
    if place.is_dir():
        return _folder(place)
    if place.exists():
        return _file(place)
    if is_address(str(path)):
        return f"{path} is an address; {_convert(str(path))}"
    if place.with_name(f"{place.name}.index").is_file():
        return f"{path} is a TensorFlow checkpoint; {_convert(str(path))}"
    if place.is_symlink():
        return (
            f"{path} is a link to {os.readlink(place)}, which is not there; copy what it leads to "
            "(cp -rL), not the link"
        )
    if place.name == "model" and place.parent.is_dir():
        return _folder(place.parent)  # an unfinished run's
    return None


def _convert(source: str, dest: str = "DEST") -> str:
    return f"run albert-jax convert {shlex.quote(source)} {dest}, and give {dest}"


def _folder(folder: Path) -> str | None:
    if is_model_directory(folder):
        return None
    if is_model_directory(folder / "model"):
        return f"{folder} is a work directory; give its model, {folder / 'model'}"
    if folder.name in ("params", "optimizer") and is_model_directory(parent := folder.parent):
        return f"{folder} is a part of the model directory {parent}; give that"
    if is_pretraining_run(folder):
        return (
            f"{folder} is the work directory of a pretraining run that has not finished; run "
            f"albert-jax export {shlex.quote(str(folder))} DEST, and give DEST"
        )
    if any(folder.glob("seed-*/")):
        return (
            f"{folder} is the work directory of a fine-tuning run that has not finished; run its "
            "command again, and give the model that it makes"
        )
    whole = {name: (folder / name).is_file() for name in (CONFIG, MANIFEST)}
    if (folder / "params").is_dir() and any(whole.values()):
        [lost] = [name for name, is_there in whole.items() if not is_there]
        return f"{folder} is a model directory without its {lost}; copy or convert it again"
    if (folder / SERVING).is_file():
        return (
            f"{folder} is a serving folder, whose programs run without albert_jax; give the model "
            "directory that it was exported from"
        )
    if (folder / "progress").is_dir() and not (folder / MANIFEST).exists():
        return (
            f"{folder} is a token store that albert-jax prepare has not finished; run its command "
            "again"
        )
    if _is_store(folder):
        return (
            f"{folder} is a token store, which holds text and no model; train one with "
            f"albert-jax pretrain --store {shlex.quote(str(folder))} --workdir WORKDIR"
        )
    if is_transformers_folder(folder):
        return (
            f"{folder} is a transformers folder without weights; give one with "
            f"{first_ten(TRANSFORMERS_WEIGHTS)}"
        )
    if tf_indexes(folder):
        return f"{folder} is a TensorFlow checkpoint; {_convert(str(folder))}"
    if (folder / "saved_model.pb").is_file():
        return f"{folder} is a TF-Hub module; {_convert(str(folder))}"
    if vocabulary_in(folder).is_file():
        return f"{folder} holds a vocabulary and no model; give a model directory"
    return None


def _is_store(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / "train").is_dir()


def _file(file: Path) -> str | None:
    if is_model_directory(file.parent):
        return f"{file} is a file of the model directory {file.parent}; give that"
    if file.name == MANIFEST and _is_store(file.parent):
        return f"{file} is a file of the token store {file.parent}, which holds text and no model"
    if file.suffix == ".py":
        return f"{file} is a recipe; train a model with it, or give a model directory"
    if file.name in VOCABULARIES or file.suffix == ".model":
        return f"{file} is a vocabulary; give a model directory"
    if file.suffix in _WEIGHTS or file.name.endswith(_WEIGHTS):
        return f"{file} is a file of weights; {_convert(str(file))}"
    if _is_archive(file):
        return f"{file} is an archive; {_convert(str(file))}"
    return None


def _is_archive(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError:
        return False
    return head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar"
