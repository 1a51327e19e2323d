# SPDX-License-Identifier: Apache-2.0
"""What a fine-tuning task is: examples read from files, features for the model, predictions back,
the official metrics and the official files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config.heads import HeadKind
from albert_jax.config.manifests import TaskSettings
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import UserError

TFDS = "tfds"  # in place of a folder: the data set is TFDS's


@dataclass(frozen=True)
class RawExample:
    """One thing to answer.

    `id` is what the official predictions file calls it: GLUE's index, SQuAD's question id, RACE's
    "file-question". `texts` are one or two; for multiple choice passage, question and each option;
    for token classification the words. `label` is the task's, one a word for token classification,
    None where the file has none. `place` is where the example stands, for errors.
    """

    id: str
    texts: tuple[str, ...]
    label: str | float | tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class Features:
    """One row of the model's input, without padding.

    `example` is the index of its example, which may have several rows. For multiple choice
    `input_ids` and `segment_ids` are lists of lists, one a choice. `targets` is what the head's
    loss reads (`losses.TASK_LOSSES`), empty where the example has no label.
    """

    example: int
    input_ids: list[Any]
    segment_ids: list[Any]
    targets: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


Outputs = Sequence[Mapping[str, np.ndarray]]  # of the head, one a feature, without padding
Predictions = dict[str, Any]  # example's id -> label, number, text, or one label a word


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task of `tasks.TASKS`: a frozen dataclass whose fields are its settings.

    A subclass says how files are read, how the model's inputs are made, what its outputs mean, how
    they are scored and which official files are written. docs/how-to/extend.md tells how to add one.

    Fields:
        name: key of `tasks.TASKS`, and a name of `config.TASK_NAMES`.
        head: kind of `heads.HEADS`.
        labels: in the order of the head's outputs; () for regression and spans.
    """

    name: str
    head: HeadKind
    labels: tuple[str, ...] = ()

    @property
    @abstractmethod
    def metric(self) -> str:
        """The one of `metrics` that chooses the best step; more is better."""

    # ------------------------------------------------------------------------ from files to inputs

    @abstractmethod
    def examples(
        self, split: str, data: str | Path, *, needs_labels: bool = True
    ) -> list[RawExample]:
        """Return a split's examples (train, dev, test; MNLI: dev_matched, …) in a folder, or of
        "tfds".

        Where labels are not needed, as for `predict`, one that cannot be read is None.
        """

    @abstractmethod
    def from_record(self, record: Mapping[str, Any], number: int, place: str) -> RawExample:
        """Return the example that a record holds, for `predict`; its label is not read.

        Args:
            record: the task's texts by their names.
            number: counts records from 0.
            place: where the record stands, for errors.
        """

    @abstractmethod
    def features(
        self, example: RawExample, index: int, tokenizer: Tokenizer, max_seq_length: int
    ) -> list[Features]:
        """Return the model's inputs for an example, whose place in the list of examples is
        `index`."""

    # ---------------------------------------------------------------------- from outputs to scores

    @abstractmethod
    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Predictions:
        """Return what the head's outputs mean, by example id.

        Outputs by name: `logits` [labels], regression [1] or scalar, multiple choice [choices],
        token classification [S, labels]; span_v1 `start_logits`, `end_logits` [S]; span_v2
        `start_log_probs`, `start_index` [5], `end_log_probs`, `end_index` [25], `cls_logits`.
        """

    @abstractmethod
    def metrics(self, examples: Sequence[RawExample], predictions: Predictions) -> dict[str, float]:
        """Return the official metrics, in the official scale."""

    @abstractmethod
    def write_predictions(
        self, path: str | Path, examples: Sequence[RawExample], predictions: Predictions
    ) -> list[Path]:
        """Write the official file or files into the folder `path`; return their names."""

    # ------------------------------------------------------------- what most tasks need not change

    @property
    def text_columns(self) -> tuple[str, ...]:
        """What files call the texts, where that is a setting; () where the names are fixed."""
        return ()

    @property
    def record_names(self) -> tuple[str, ...]:
        """Return the names of a record's texts (`from_record`), in the order of a tuple of them."""
        return tuple(filter(None, self.text_columns))

    def data_folders(self, data: str | Path) -> tuple[Path, ...]:
        """Return the folders that may hold the task's files, the most specific first."""
        return (Path(data),)

    def head_settings(self) -> TaskSettings | None:
        """Return what a fine-tuned model must answer with, and its manifest keep; None: nothing."""
        return None

    def with_labels(self, labels: Iterable[str]) -> Task:
        """Return the task with the labels of a model fine-tuned for it; fixed labels stay."""
        return self

    def learn(self, train: Sequence[RawExample]) -> Task:
        """Return the task with what its training examples decide, such as labels."""
        return self

    def fitted(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Task:
        """Return the task with what the outputs for labelled examples decide, such as
        thresholds."""
        return self

    def with_settings(self, settings: TaskSettings | None) -> Task:
        """Return the task with those of a model's settings that `fitted` decides."""
        return self

    def for_answers(self) -> Task:
        """Return the task as `predict` uses it, where that differs from how answers are scored."""
        return self


def pair_features(
    tokenizer: Tokenizer, texts: Sequence[str], max_seq_length: int
) -> tuple[list[int], list[int]]:
    """Ids and segments of [CLS] A [SEP], or [CLS] A [SEP] B [SEP]. classifier_utils.py:506-574.

    What is too long loses the end: a pair its longer text's, the second's where they are as long.
    """
    first, *rest = tokenizer.encode_ids(texts)
    second = rest[0] if rest else []
    room = max_seq_length - (3 if second else 2)
    over = len(first) + len(second) - room
    while over > 0:  # as popping one token at a time
        longer = first if len(first) > len(second) else second
        longer.pop()
        over -= 1
    special = tokenizer.special
    ids = [special.cls, *first, special.sep]
    segments = [0] * len(ids)
    if second:
        ids += [*second, special.sep]
        segments += [1] * (len(second) + 1)
    return ids, segments


def unique_ids(examples: list[RawExample], place: str | Path) -> list[RawExample]:
    """The examples, if no two have one id, which would be one prediction; else UserError."""
    seen: dict[str, str] = {}
    for example in examples:
        if example.id in seen:
            places = " and ".join(filter(None, (seen[example.id], example.place)))
            raise UserError(
                f"{place} has two examples with the id {example.id}{places and f': {places}'}; "
                "give each its own"
            )
        seen[example.id] = example.place
    if not examples:
        raise UserError(f"{place} holds no examples; fetch or write it again")
    return examples


def gold_labels(task: str, examples: Sequence[RawExample]) -> list[Any]:
    """The examples' labels; UserError where some have none, as in a test split."""
    golds = [example.label for example in examples]
    if missing := [example for example in examples if example.label is None]:
        first = f", {missing[0].place} for one" if missing[0].place else ""
        raise UserError(
            f"{len(missing)} of {len(golds)} examples of {task} have no label{first}, so that "
            "nothing can be scored; evaluate on a split that has labels (dev), or use predict"
        )
    return golds


def best_label(labels: Sequence[str], logits: np.ndarray) -> str:
    """The label of the highest logit."""
    return labels[int(np.argmax(logits))]


def label_index(labels: Sequence[str], label: Any, place: str) -> int:
    """A label's place among `labels`; UserError for one that is not there."""
    if label not in labels:
        raise UserError(f"{place}: label {label!r} is unknown; expected {', '.join(labels)}")
    return labels.index(label)
