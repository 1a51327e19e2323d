# SPDX-License-Identifier: Apache-2.0
"""What the JSON files beside a model or a vocabulary say, read and checked without JAX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import google_crc32c

from albert_jax.errors import UserError
from albert_jax.json_files import read_json
from albert_jax.streams import say

MANIFEST, CONFIG, VOCABULARY = "manifest.json", "albert_config.json", "spiece.model"
SERVING = "serving.json"
FORMAT_VERSION = 1
_AGAIN = "copy or convert it again"

# Files of weights that a transformers folder may have.
TRANSFORMERS_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
)


class TextSettings(TypedDict):
    """How text is cleaned before a vocabulary divides it; `Tokenizer.load` says what they mean."""

    mode: str
    do_lower_case: bool


class TensorEntry(TypedDict):
    """One array of a model directory."""

    shape: list[int]
    dtype: str


class ModelManifest(TypedDict):
    """A model directory's manifest.json."""

    format_version: int
    tokenizer: TextSettings
    provenance: dict[str, Any]
    head: NotRequired[dict[str, Any] | None]
    sha256: dict[str, str]
    tensors: dict[str, TensorEntry]


class _Vocabulary(TypedDict):
    vocabulary: NotRequired[TextSettings]


class _Tokenizer(TypedDict):
    tokenizer: NotRequired[TextSettings | None]


def is_model_directory(folder: Path) -> bool:
    """Whether a folder has a model directory's manifest and configuration."""
    return (folder / MANIFEST).is_file() and (folder / CONFIG).is_file()


def read_model_manifest(folder: Path) -> ModelManifest:
    """Reads a model directory's manifest and verifies its checksum and its configuration's.

    Raises UserError for what is damaged, was edited or has a newer format.
    """
    file = folder / MANIFEST
    document = read_json(file, dict[str, Any], hint=_AGAIN)
    if document.get("crc32c") != _checksum(document):
        raise _damaged(folder, f"{MANIFEST} has another checksum than it says")
    version = document.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{folder} has format {version}, newer than {FORMAT_VERSION}; update albert_jax"
        )
    manifest = read_json(file, ModelManifest, hint=_AGAIN)
    found = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    if found != (written := manifest["sha256"].get(CONFIG)):
        raise _damaged(folder, f"{CONFIG}: SHA-256 {found} where {written} was written")
    return manifest


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"model directory {folder} is damaged or was edited ({what}); {_AGAIN}")


def _checksum(document: Mapping[str, Any]) -> str:
    """The CRC-32C of a document without its own, as `digests.seal` makes it."""
    values = {key: document[key] for key in document if key != "crc32c"}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return f"{google_crc32c.value(canonical):08x}"


def is_transformers_folder(folder: Path) -> bool:
    """Whether conversion would take a folder for a transformers model, or for its tokenizer."""
    if any((folder / name).is_file() for name in TRANSFORMERS_WEIGHTS):
        return True
    return (folder / "tokenizer_config.json").is_file() and not any(folder.glob("*.index"))


def text_settings(folder: Path) -> TextSettings:
    """Returns how text is cleaned for the vocabulary in a folder.

    A model directory, a token store and a serving folder say it themselves; a transformers folder
    has the mode hf and the case of its tokenizer_config.json, as conversion reads it; any other
    folder the original's defaults. Raises UserError for a file that is damaged.
    """
    found = None
    if is_model_directory(folder):
        found = read_model_manifest(folder)["tokenizer"]
    elif (folder / MANIFEST).is_file():
        hint = "prepare the text again"
        found = read_json(folder / MANIFEST, _Vocabulary, hint=hint).get("vocabulary")
    elif (folder / SERVING).is_file():
        hint = "export the model again"
        found = read_json(folder / SERVING, _Tokenizer, hint=hint).get("tokenizer")
    elif is_transformers_folder(folder):
        found = _of_transformers(folder / "tokenizer_config.json")
    return found or {"mode": "google", "do_lower_case": True}


def _of_transformers(file: Path) -> TextSettings:
    values = read_json(file, dict[str, Any], hint="copy it again") if file.is_file() else {}
    if values.get("keep_accents"):
        say(f"note: {file.name} keeps accents, which albert_jax's tokenizer drops")
    return {"mode": "hf", "do_lower_case": bool(values.get("do_lower_case", True))}
