# SPDX-License-Identifier: Apache-2.0
"""`manifest.json` of a model directory as types: its keys are the fields, as they are on disk."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from albert_jax.digests import Damaged
from albert_jax.wording import shortened

CONFIG, VOCABULARY = "albert_config.json", "spiece.model"  # the files that have a digest
_NAME = re.compile(r"\w+(/\w+)*", re.ASCII)
_AtLeast1 = Annotated[int, msgspec.Meta(ge=1)]


class TensorEntry(TypedDict):
    """An array as it was written."""

    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    dtype: Literal["float32", "float64", "float16", "bfloat16"]
    crc32c: str


class TokenizerSettings(TypedDict):
    """How text is cleaned."""

    mode: Literal["google", "hf"]
    do_lower_case: bool


class TaskSettings(TypedDict, total=False):
    """What a task was fine-tuned with and must answer with; which of them depends on the task."""

    doc_stride: _AtLeast1 | None
    max_query_length: _AtLeast1 | None
    texts: list[str] | None
    label: str | None


class Head(TypedDict):
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
class Manifest:
    """What `manifest.json` holds, without its own checksum.

    `tensors` and `optimizer` have the arrays' entries by name, `sha256` the digests of the files
    beside them by name, `provenance` any JSON that says where the weights come from, `inventory`
    the tensors of a converted source.
    """

    format_version: _AtLeast1
    albert_jax: str
    tokenizer: TokenizerSettings
    provenance: dict[str, Any]
    head: Head | None = None
    inventory: list[dict[str, Any]] | None = None
    sha256: dict[Literal["albert_config.json", "spiece.model"], str]
    tensors: dict[str, TensorEntry]
    optimizer: dict[str, TensorEntry] | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Manifest:
        """Return the manifest in a JSON object; keys that are not known are passed over.

        Raises Damaged, which names the key, for values of other types and for names that no array
        can have.
        """
        try:
            manifest = msgspec.convert(document, cls)
        except (msgspec.ValidationError, UnicodeError, RecursionError) as error:
            raise Damaged(f"manifest.json: {shortened(str(error))}") from None
        if CONFIG not in manifest.sha256:
            raise Damaged(f"manifest.json: no digest of {CONFIG}")
        for name in (*manifest.tensors, *(manifest.optimizer or ())):
            if not _NAME.fullmatch(name):
                raise Damaged(f"manifest.json: no array can be named {shortened(name)!r}")
        return manifest

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
