# SPDX-License-Identifier: Apache-2.0
"""Define what `albert-jax info` returns: a class for each kind of thing that a path may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from albert_jax.config.history import Continuation
from albert_jax.config.manifests import HeadManifest, TextSettings
from albert_jax.config.model import AlbertConfig
from albert_jax.data.mixture import StorePasses
from albert_jax.data.store_manifest import Split, StoreVocabulary
from albert_jax.perf.tpu.estimate_table import ChipHours
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.results import ABSENT_IF_NONE, Result
from albert_jax.utils.wording import shortened

Self = TypeVar("Self", bound="ModelSizes")


@dataclass(frozen=True, kw_only=True, eq=False)
class Description(Result):
    """Describe a path; a subclass for each kind of path has its own fields.

    Attributes:
        kind: model, configuration, token store or recipe.
        path: the path as it was given.
    """

    kind: str
    path: str

    @classmethod
    def from_json(cls: type[Any], document: Mapping[str, Any]) -> Any:
        """Return the description that a JSON object holds, of the subclass that its kind names."""
        if cls is Description:
            return _kind_of(document).from_json(document)
        return super().from_json(document)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSizes(Result):
    """Describe the size of a model.

    In JSON, the key of `forward_flops` has the length of the sequence:
    `forward_flops_at_length_512`.

    Attributes:
        parameters: the number of parameters.
        parameters_of: the number of parameters of each part.
        bytes_float32: the bytes of the parameters in float32.
        forward_flops: FLOPs of one sequence of the maximum length; a multiplication and an addition
            count as two.
        config: the architecture.
    """

    parameters: int
    parameters_of: dict[str, int]
    bytes_float32: int
    forward_flops: float
    config: AlbertConfig

    def to_json(self) -> JsonObject:
        name = _flops_key(self.config.max_position_embeddings)
        values = super().to_json()
        return {name if key == "forward_flops" else key: x for key, x in values.items()}

    @classmethod
    def from_json(cls: type[Self], document: Mapping[str, Any]) -> Self:
        config = document.get("config")
        length = config.get("max_position_embeddings") if isinstance(config, Mapping) else None
        found = {"forward_flops": document.get(_flops_key(length))}
        return super().from_json({**document, **found})


def _flops_key(length: object) -> str:
    return f"forward_flops_at_length_{length}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfigurationDescription(ModelSizes, Description):
    """Describe an `albert_config.json` by itself, with the sizes of its pretraining model."""

    kind: Literal["configuration"] = "configuration"


@dataclass(frozen=True, kw_only=True, eq=False)
class _VerifiedModel(Description):
    """Name the files of a model directory that were verified, and its fine-tuned head, if any."""

    kind: Literal["model"] = "model"
    verified: str
    head: HeadManifest | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelDescription(ModelSizes, _VerifiedModel):
    """Describe a model directory: the sizes of its parameters, and where they come from.

    `history` has the changes of settings in the course of its run; None if there were none.
    """

    tokenizer: TextSettings
    provenance: JsonObject
    history: list[Continuation] | None = field(default=None, metadata=ABSENT_IF_NONE)


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitDescription(Result):
    """Describe a split of a token store.

    The frequencies of tokens are None if the split is empty.

    Attributes:
        tokens: the number of tokens.
        sentences: the number of sentences.
        documents: the number of documents.
        bytes: the bytes of the files.
        unigram_entropy_nats: the entropy of the tokens' frequencies.
        most_frequent_token_id: the id of the most frequent token.
        most_frequent_token_rate: its fraction of the tokens.
        shards: the number of shards.
    """

    tokens: int
    sentences: int
    documents: int
    bytes: int
    unigram_entropy_nats: float | None
    most_frequent_token_id: int | None
    most_frequent_token_rate: float | None
    shards: int


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreDescription(Description):
    """Describe a token store by its manifest, without the lists of shards and inputs.

    `verified` is True if every file has its checksum. It is None for a store at an address, where
    only the manifest is read.
    """

    kind: Literal["token store"] = "token store"
    verified: bool | None = field(default=None, metadata=ABSENT_IF_NONE)
    splits: dict[Split, SplitDescription]
    format_version: int
    vocabulary: StoreVocabulary
    reading: JsonObject
    holdout: float
    made_with: dict[str, str]
    counts: dict[str, int]
    format_revision: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    checksum: str | None = field(default=None, metadata=ABSENT_IF_NONE)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecipeDescription(Description):
    """Describe a recipe for anything but pretraining: its configuration's class and fields."""

    kind: Literal["recipe"] = "recipe"
    type: str
    settings: JsonObject


@dataclass(frozen=True, kw_only=True, eq=False)
class PretrainPlan(Result):
    """Describe what a run of a recipe does: its updates, its passes over a store, its chip-hours.

    `store`, `sequences_a_pass` and `passes` are None if no store is known. `stores` is None unless
    the store is a mixture. `chip_hours_at_peak` is a lower bound, at the chip's peak rate.
    """

    steps: int
    sequences_a_step: int
    micro_batches: int
    sequences: int
    tokens_with_padding: int
    peak_learning_rate: float
    warmup_steps: int
    store: str | None = field(default=None, metadata=ABSENT_IF_NONE)
    sequences_a_pass: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    passes: float | None = field(default=None, metadata=ABSENT_IF_NONE)
    stores: dict[str, StorePasses] | None = field(default=None, metadata=ABSENT_IF_NONE)
    chip_hours_at_peak: dict[str, float]
    chip_hours_by_the_compilers_estimate: dict[str, ChipHours] | None = field(
        default=None, metadata=ABSENT_IF_NONE
    )
    to_compile_this_step: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PretrainDescription(ModelSizes, Description):
    """Describe a recipe for pretraining: sizes, FLOPs, the plan, and the settings.

    `plan` is None unless it was asked for. `settings` leaves out the model's. `flops_per_step` is
    the mean over the run.
    """

    kind: Literal["recipe"] = "recipe"
    flops_per_sequence: float
    flops_per_step: float
    flops_in_all: float
    plan: PretrainPlan | None = field(default=None, metadata=ABSENT_IF_NONE)
    settings: JsonObject


def _kind_of(document: Mapping[str, Any]) -> type[Description]:
    if document.get("kind") == "recipe" and "parameters" in document:
        return PretrainDescription
    kinds = (ModelDescription, ConfigurationDescription, StoreDescription, RecipeDescription)
    for each in kinds:
        if each.kind == document.get("kind"):
            return each
    raise msgspec.ValidationError(f"no kind {shortened(str(document.get('kind')))!r}")
