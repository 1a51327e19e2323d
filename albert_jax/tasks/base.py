# SPDX-License-Identifier: Apache-2.0
"""Define a fine-tuning task.

A task reads examples from files, makes features for the model, interprets the outputs, computes the
official metrics and writes the official files.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from albert_jax.config.heads import HeadKind
from albert_jax.config.manifests import TaskSettings
from albert_jax.data.bucketing import kept_of_pair
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks.values import quoted
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

TFDS = "tfds"  # in place of a folder: the data set is TFDS's


@dataclass(frozen=True)
class RawExample:
    """Hold one thing to answer.

    Attributes:
        id: its id in the official predictions file: GLUE's index, SQuAD's question id, RACE's
            "file-question".
        texts: one or two texts; of multiple choice the passage, the question and each option; of
            token classification the words.
        label: the label, of token classification one for each word; None if the file has none.
        place: where the example stands, for errors.
    """

    id: str
    texts: tuple[str, ...]
    label: str | float | tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False, repr=False)


Target = int | float | list[int] | list[float]
Targets = dict[str, Target]
"""What a head's loss reads of a row, by name."""


@dataclass(frozen=True)
class Features:
    """Hold one row of the model's input, without padding.

    `example` is the index of its example, which may have several rows. Of multiple choice,
    `input_ids` and `segment_ids` are lists of lists, one for each choice. `targets` is what the
    head's loss reads (`losses.TASK_LOSSES`), empty if the example has no label.
    """

    example: int
    input_ids: list[Any]
    segment_ids: list[Any]
    targets: Mapping[str, Target] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


Outputs = Sequence[Mapping[str, np.ndarray]]  # of the head, one a feature, without padding
Predictions = dict[str, Any]  # example's id -> label, number, text, or one label a word


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Define a task of `tasks.TASKS`; its fields are its settings.

    A subclass defines how files are read, how the model's inputs are made, what its outputs mean,
    how they are scored and which official files are written. docs/how-to/extend.md describes how to
    add a task.

    Attributes:
        name: a key of `tasks.TASKS`, and a name of `config.TASK_NAMES`.
        head: a kind of `heads.HEADS`.
        labels: the labels in the order of the head's outputs; () for regression and spans.
    """

    # What an option of multiple choice fills in its question.
    gap: ClassVar[re.Pattern[str]] = re.compile("_")

    name: str
    head: HeadKind
    labels: tuple[str, ...] = ()

    @property
    @abstractmethod
    def metric(self) -> str:
        """The metric that chooses the best step; more is better."""

    # ------------------------------------------------------------------------ from files to inputs

    @abstractmethod
    def examples(
        self, split: str, data: str | Path, *, needs_labels: bool = True
    ) -> list[RawExample]:
        """Return a split's examples, from a folder or from "tfds".

        Splits are train, dev and test; of MNLI also dev_matched and others. If labels are not
        needed, as in `predict`, a label that cannot be read is None.
        """

    @abstractmethod
    def from_record(self, record: Mapping[str, Any], number: int, place: str) -> RawExample:
        """Return the example that a record holds, for `predict`; its label is not read.

        Args:
            record: the task's texts by name.
            number: the record's number, from 0.
            place: where the record stands, for errors.
        """

    @abstractmethod
    def features(
        self, example: RawExample, index: int, tokenizer: Tokenizer, max_seq_length: int
    ) -> list[Features]:
        """Return the model's inputs for the example with that `index` in the list of examples."""

    # ---------------------------------------------------------------------- from outputs to scores

    @abstractmethod
    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Predictions:
        """Return the meaning of the head's outputs, by example id.

        Outputs by name are `logits`: [labels]; regression [1] or a scalar; multiple choice
        [choices]; token classification [S, labels]. span_v1: `start_logits`, `end_logits` [S].
        span_v2: `start_log_probs`, `start_index` [5], `end_log_probs`, `end_index` [25],
        `cls_logits`.
        """

    @abstractmethod
    def metrics(self, examples: Sequence[RawExample], predictions: Predictions) -> dict[str, float]:
        """Return the official metrics, on the official scale."""

    @abstractmethod
    def write_predictions(
        self, path: str | Path, examples: Sequence[RawExample], predictions: Predictions
    ) -> list[Path]:
        """Write the official files into the folder `path`; return their paths."""

    # ------------------------------------------------------------- what most tasks need not change

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns' names of the texts, if they are a setting; () if the names are fixed."""
        return ()

    @property
    def record_names(self) -> tuple[str, ...]:
        """Return the names of a record's texts (`from_record`), in the order of a tuple of them."""
        return tuple(filter(None, self.text_columns))

    def data_folders(self, data: str | Path) -> tuple[Path, ...]:
        """Return the folders that may hold the task's files, the most specific first."""
        return (Path(data),)

    def head_settings(self) -> TaskSettings | None:
        """Return the settings that answers need too, for the manifest; None if there are none."""
        return None

    def with_labels(self, labels: Iterable[str]) -> Task:
        """Return the task with the labels of a model fine-tuned for it; fixed labels stay."""
        return self

    def learn(self, train: Sequence[RawExample]) -> Task:
        """Return the task with what its training examples determine, such as labels."""
        return self

    def fitted(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Task:
        """Return the task with what the outputs for labelled examples determine.

        These are settings such as thresholds.
        """
        return self

    def with_settings(self, settings: TaskSettings | None) -> Task:
        """Return the task with those settings of a model that `fitted` determines."""
        return self

    def for_answers(self) -> Task:
        """Return the task as `predict` uses it, which may differ from how answers are scored."""
        return self


def check_columns(
    task: str,
    texts: Sequence[str],
    labels: Sequence[str],
    counts: tuple[int, int | None],
    which: str,
    *,
    may_be_nameless: bool = False,
) -> None:
    """Raise UserError for columns that the settings cannot name.

    Args:
        task: the task's name.
        texts: the columns of the texts.
        labels: the columns of the label.
        counts: the least and the greatest number of texts; None has no limit.
        which: what these columns are, for the error.
        may_be_nameless: whether a text may have no column.
    """
    least, most = counts
    if not least <= len(texts) <= (most or len(texts)):
        raise UserError(
            f"{setting('texts')} names {len(texts)} columns for {task}, {quoted(texts)}; name "
            f"{which}"
        )
    if "" in labels or ("" in texts and not may_be_nameless):
        raise UserError(
            f"a column of {task} has no name; give one to {setting('texts')} and {setting('label')}"
        )
    columns = [name for name in (*texts, *labels) if name]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise UserError(
            f"{setting('texts')} and {setting('label')} name the column {quoted(twice)} twice; "
            "name each column once"
        )


def pair_features(
    tokenizer: Tokenizer, texts: Sequence[str], max_seq_length: int
) -> tuple[list[int], list[int]]:
    """Return ids and segments of [CLS] A [SEP], or [CLS] A [SEP] B [SEP].

    A text that is too long loses its end. Of a pair `kept_of_pair` says what each text keeps.
    classifier_utils.py:506-574.
    """
    first, *rest = tokenizer.encode_ids(texts, parse_special=None)
    second = rest[0] if rest else []
    room = max_seq_length - (3 if second else 2)
    kept, kept_second = kept_of_pair(len(first), len(second), room, tokenizer.mode)
    special = tokenizer.special
    ids = [special.cls, *first[:kept], special.sep]
    segments = [0] * len(ids)
    if second:
        ids += [*second[:kept_second], special.sep]
        segments += [1] * (kept_second + 1)
    return ids, segments


def unique_ids(examples: list[RawExample], place: str | Path) -> list[RawExample]:
    """Return the examples, those without an id numbered; raises UserError if two have the same id.

    The number is the row's, from 0, or one after the last row's if another example has it as an id.
    """
    taken = {example.id for example in examples}
    free = (str(i) for i in itertools.count(len(examples)) if str(i) not in taken)
    examples = [
        example
        if example.id
        else dataclasses.replace(example, id=str(i) if str(i) not in taken else next(free))
        for i, example in enumerate(examples)
    ]
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
    """Return the examples' labels; raises UserError if some have none, as in a test split."""
    golds = [example.label for example in examples]
    if missing := [example for example in examples if example.label is None]:
        first = f", {missing[0].place} for one" if missing[0].place else ""
        raise UserError(
            f"{len(missing)} of {len(golds)} examples of {task} have no label{first}, so that "
            "nothing can be scored; evaluate on a split that has labels (dev), or use predict"
        )
    return golds


def best_label(labels: Sequence[str], logits: np.ndarray) -> str:
    """Return the label with the highest logit."""
    return labels[int(np.argmax(logits))]


def label_index(labels: Sequence[str], label: Any, place: str) -> int:
    """Return a label's index in `labels`; raises UserError if it is not there."""
    if label not in labels:
        raise UserError(f"{place}: label {label!r} is unknown; expected {', '.join(labels)}")
    return labels.index(label)
