# SPDX-License-Identifier: Apache-2.0
"""Read and check the JSON files beside a model or a vocabulary, without JAX."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict, cast

import msgspec

from albert_jax.config.heads import HeadKind, Long
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.json_values import JsonObject, json_crc32c, refuse_newer_format
from albert_jax.utils.results import ABSENT_IF_NONE, Result
from albert_jax.utils.wording import shortened

MANIFEST: Final = "manifest.json"
CONFIG: Final = "albert_config.json"
VOCABULARY: Final = "spiece.model"
# The name of the vocabulary in a model directory, a token store and a serving folder, by its kind.
VOCABULARIES: Final = (VOCABULARY, "tokenizer.json", "vocab.txt")
SERVING = "serving.json"
FORMAT_VERSION = 2
_FIRST_FORMAT = 1  # SentencePiece alone, which drops accents
_AGAIN = "copy or convert it again"
_NAME = re.compile(r"\w+(/\w+)*", re.ASCII)
_AtLeast1 = Annotated[int, msgspec.Meta(ge=1)]
_RowLength = Annotated[int, msgspec.Meta(ge=8)]

# How text is divided into pieces, docs/reference/tokenizers.md.
Mode = Literal["google", "hf", "hf-fast", "wordpiece"]
SLOW_MODES: Final = ("google", "hf")
"""Those whose text SentencePiece divides; that of the others the library `tokenizers` does."""
SPIECE_MODES: Final = (*SLOW_MODES, "hf-fast")
"""Those that a SentencePiece model may have."""

# Files of weights that a transformers folder may have; the first that is there counts.
TRANSFORMERS_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
)


class TextSettings(TypedDict):
    """Set how text is cleaned before a vocabulary divides it, as in `Tokenizer.load`."""

    mode: Mode
    do_lower_case: bool
    keep_accents: NotRequired[bool]  # where it is not the mode's default


def settings_in(values: Mapping[str, Any]) -> TextSettings:
    """Return the `TextSettings` among other values."""
    found = {key: values[key] for key in TextSettings.__annotations__ if key in values}
    return cast("TextSettings", found)


def vocabulary_name(path: Path) -> str:
    """Return the name that a vocabulary's file has in a folder of this package."""
    return next((name for name in VOCABULARIES if path.suffix == Path(name).suffix), VOCABULARY)


def vocabulary_in(folder: Path) -> Path:
    """Return the vocabulary's path in a folder of this package; spiece.model if there is none."""
    return next((folder / n for n in VOCABULARIES if (folder / n).is_file()), folder / VOCABULARY)


def format_version(settings: Mapping[str, Any], vocabulary: str) -> int:
    """Return the lowest format version that has these settings, for older readers."""
    known = settings["mode"] in SLOW_MODES and "keep_accents" not in settings
    return _FIRST_FORMAT if known and vocabulary == VOCABULARY else FORMAT_VERSION


class TensorEntry(TypedDict):
    """Describe one array of a model directory, as it was written."""

    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    dtype: Literal["float32", "float64", "float16", "bfloat16"]
    crc32c: str


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskSettings(Result):
    """Hold the settings of fine-tuning that answers need too; they depend on the task."""

    doc_stride: _AtLeast1 | None = field(default=None, metadata=ABSENT_IF_NONE)
    max_query_length: _AtLeast1 | None = field(default=None, metadata=ABSENT_IF_NONE)
    texts: list[str] | None = field(default=None, metadata=ABSENT_IF_NONE)
    label: str | None = field(default=None, metadata=ABSENT_IF_NONE)
    thresholds: list[float] | None = field(default=None, metadata=ABSENT_IF_NONE)
    scale: tuple[float, float] | None = field(default=None, metadata=ABSENT_IF_NONE)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadManifest(Result):
    """Describe a fine-tuned head: its kind, its labels, and its task.

    `labels` is None if the model's source does not name them. A converted head has no task,
    settings or length. `long` is how `albert-jax finetune` handled long texts, if it did not cut
    them, and `stride` that of the windows.
    """

    kind: HeadKind
    labels: list[str] | None
    task: str | None = field(default=None, metadata=ABSENT_IF_NONE)
    settings: TaskSettings | None = field(default=None, metadata=ABSENT_IF_NONE)
    max_seq_length: _RowLength | None = field(default=None, metadata=ABSENT_IF_NONE)
    long: Long | None = field(default=None, metadata=ABSENT_IF_NONE)
    stride: _AtLeast1 | None = field(default=None, metadata=ABSENT_IF_NONE)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvertedTensor(Result):
    """Describe a tensor of a converted source: its name there, its path here, its type."""

    source: str
    path: str
    shape: list[int]
    dtype: str
    crc32c: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelManifest(Result):
    """Hold the contents of `manifest.json`, without its own checksum.

    `tensors` and `optimizer` have the entries of the arrays by name, `sha256` the digests of the
    other files by name, `provenance` any JSON about where the weights come from, `inventory` the
    tensors of a converted source.
    """

    format_version: _AtLeast1
    albert_jax: str
    tokenizer: TextSettings
    provenance: JsonObject
    head: HeadManifest | None = None
    inventory: list[ConvertedTensor] | None = None
    sha256: dict[Literal["albert_config.json", "spiece.model", "tokenizer.json", "vocab.txt"], str]
    tensors: dict[str, TensorEntry]
    optimizer: dict[str, TensorEntry] | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelManifest:
        """Return the manifest in a JSON object; unknown keys are ignored.

        Raises msgspec.ValidationError, which names the key, for values of other types and for names
        that no array can have.
        """
        manifest = super().from_json(document)
        if CONFIG not in manifest.sha256:
            raise msgspec.ValidationError(f"no digest of {CONFIG}")
        for name in (*manifest.tensors, *(manifest.optimizer or ())):
            if not _NAME.fullmatch(name):
                raise msgspec.ValidationError(f"no array can be named {shortened(name)!r}")
        return manifest

    @property
    def vocabulary(self) -> str | None:
        """The name of the vocabulary's file, or None for a model without one."""
        return next((name for name in VOCABULARIES if name in self.sha256), None)


def is_model_directory(folder: Path) -> bool:
    """Return whether a folder has a model directory's manifest and configuration."""
    return (folder / MANIFEST).is_file() and (folder / CONFIG).is_file()


def is_pretraining_run(folder: Path) -> bool:
    """Return whether a folder is a pretraining run's work directory, or that of one seed's run.

    A project may have a folder `checkpoints` of its own. A run's has folders that are named by
    their steps; before its first checkpoint, it has a configuration and a log beside it.
    """
    checkpoints = folder / "checkpoints"
    has_begun = all((folder / name).is_file() for name in ("config.json", "metrics.jsonl"))
    has_steps = any(path.parent.name.isdecimal() for path in checkpoints.glob("*/meta"))
    return has_steps or (has_begun and checkpoints.is_dir())


def holds_transformers_weights(folder: Path) -> bool:
    """Return whether a folder has weights in transformers' format."""
    return any((folder / name).is_file() for name in TRANSFORMERS_WEIGHTS)


def read_model_manifest(folder: Path) -> ModelManifest:
    """Read a model directory's manifest, and verify its checksum and its configuration's.

    Raises UserError if one of them is damaged, was edited or has a newer format.
    """
    file = folder / MANIFEST
    document = read_json(file, JsonObject, hint=_AGAIN)
    if document.get("crc32c") != json_crc32c(document):
        raise _damaged(folder, f"{MANIFEST} has a checksum that does not match its content")
    refuse_newer_format(document, FORMAT_VERSION, str(folder))
    try:
        manifest = ModelManifest.from_json(document)
    except msgspec.ValidationError as error:
        raise _damaged(folder, f"{MANIFEST}: {shortened(str(error))}") from None
    found = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    if found != (written := manifest.sha256[CONFIG]):
        raise _damaged(folder, f"{CONFIG}: SHA-256 {found} where {written} was written")
    return manifest


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"model directory {folder} is damaged or was edited ({what}); {_AGAIN}")
