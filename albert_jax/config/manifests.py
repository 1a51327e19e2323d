# SPDX-License-Identifier: Apache-2.0
"""What the JSON files beside a model or a vocabulary say, read and checked without JAX."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

import google_crc32c
import msgspec

from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.wording import shortened

MANIFEST: Final = "manifest.json"
CONFIG: Final = "albert_config.json"
VOCABULARY: Final = "spiece.model"
SERVING = "serving.json"
FORMAT_VERSION = 1
_AGAIN = "copy or convert it again"
_NAME = re.compile(r"\w+(/\w+)*", re.ASCII)
_AtLeast1 = Annotated[int, msgspec.Meta(ge=1)]

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
    """One array of a model directory, as it was written."""

    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    dtype: Literal["float32", "float64", "float16", "bfloat16"]
    crc32c: str


class TaskSettings(TypedDict, total=False):
    """What a task was fine-tuned with and must answer with; which of them depends on the task."""

    doc_stride: _AtLeast1 | None
    max_query_length: _AtLeast1 | None
    texts: list[str] | None
    label: str | None


class HeadManifest(TypedDict):
    """A fine-tuned head: its kind, its labels, and which task `albert-jax finetune` made it for."""

    kind: Literal[
        "classification",
        "regression",
        "multiple_choice",
        "token_classification",
        "span_v1",
        "span_v2",
    ]
    labels: list[str] | None
    task: NotRequired[str | None]
    settings: NotRequired[TaskSettings | None]
    max_seq_length: NotRequired[Annotated[int, msgspec.Meta(ge=8)] | None]


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """What `manifest.json` holds, without its own checksum.

    `tensors` and `optimizer` have the arrays' entries by name, `sha256` the digests of the files
    beside them by name, `provenance` any JSON that says where the weights come from, `inventory`
    the tensors of a converted source.
    """

    format_version: _AtLeast1
    albert_jax: str
    tokenizer: TextSettings
    provenance: dict[str, Any]
    head: HeadManifest | None = None
    inventory: list[dict[str, Any]] | None = None
    sha256: dict[Literal["albert_config.json", "spiece.model"], str]
    tensors: dict[str, TensorEntry]
    optimizer: dict[str, TensorEntry] | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelManifest:
        """Return the manifest in a JSON object; keys that are not known are passed over.

        Raises msgspec.ValidationError, which names the key, for values of other types and for names
        that no array can have.
        """
        try:
            manifest = msgspec.convert(document, cls)
        except (UnicodeError, RecursionError) as error:  # of a lone surrogate; of a deep list
            raise msgspec.ValidationError(str(error)) from None
        if CONFIG not in manifest.sha256:
            raise msgspec.ValidationError(f"no digest of {CONFIG}")
        for name in (*manifest.tensors, *(manifest.optimizer or ())):
            if not _NAME.fullmatch(name):
                raise msgspec.ValidationError(f"no array can be named {shortened(name)!r}")
        return manifest

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def is_model_directory(folder: Path) -> bool:
    """Whether a folder has a model directory's manifest and configuration."""
    return (folder / MANIFEST).is_file() and (folder / CONFIG).is_file()


def read_model_manifest(folder: Path) -> dict[str, Any]:
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
    try:
        manifest = ModelManifest.from_json(document)
    except msgspec.ValidationError as error:
        raise _damaged(folder, f"{MANIFEST}: {shortened(str(error))}") from None
    found = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    if found != (written := manifest.sha256[CONFIG]):
        raise _damaged(folder, f"{CONFIG}: SHA-256 {found} where {written} was written")
    return document


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"model directory {folder} is damaged or was edited ({what}); {_AGAIN}")


def _checksum(document: Mapping[str, Any]) -> str:
    """The CRC-32C of a document without its own, as `digests.seal` makes it."""
    values = {key: document[key] for key in document if key != "crc32c"}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return f"{google_crc32c.value(canonical):08x}"
