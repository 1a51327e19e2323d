# SPDX-License-Identifier: Apache-2.0
"""Define a user's own task in which a text has any number of labels: none, one or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from albert_jax.config.heads import LABEL_SET, HeadKind
from albert_jax.config.manifests import TaskSettings
from albert_jax.tasks import metrics
from albert_jax.tasks.base import (
    Features,
    Outputs,
    Predictions,
    RawExample,
    Targets,
    gold_labels,
    label_index,
)
from albert_jax.tasks.custom import CustomTask, in_order, say_of_case
from albert_jax.tasks.labels import LabelReader
from albert_jax.tasks.values import wrong_value
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

BETWEEN_LABELS = ";"
BETWEEN_COLUMNS = ","
_FLAGS = {"0": False, "1": True, 0: False, 1: True}  # 0.0, 1.0, false and true are equal to these


@dataclass(frozen=True, kw_only=True)
class MultiLabelTask(CustomTask):
    """Give a text or a pair any number of labels; metrics are fractions.

    `label` names a column of labels with ; between them (in JSONL it may be a list); an empty cell
    is a text without labels. Or it names columns of 0 and 1, one for each label, with , between
    them. `thresholds` are the probabilities from which on a text has a label, in the order of
    `labels`; () is 0.5 for each.
    """

    head: HeadKind = "multi_label"
    thresholds: tuple[float, ...] = ()

    @property
    def metric(self) -> str:
        return "micro_f1"

    @property
    def label_columns(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.label.split(BETWEEN_COLUMNS))

    def head_settings(self) -> TaskSettings:
        return TaskSettings(
            texts=list(self.texts), label=self.label, thresholds=list(self.thresholds) or None
        )

    def with_settings(self, settings: TaskSettings | None) -> Self:
        found = settings.thresholds if settings else None
        return dataclasses.replace(self, thresholds=tuple(found or ()))

    def learn(self, train: Sequence[RawExample]) -> Self:
        """Return the task with its columns' labels, or with those of its training examples, sorted.

        Raises UserError if no example has a label.
        """
        golds: list[tuple[str, ...]] = gold_labels(self.name, train)
        found = {label for labels in golds for label in labels}
        if not found:
            raise UserError(
                f"no text in the training file of {self.name} has a label; give some texts "
                f"labels, or name the column that has them with {setting('label')}"
            )
        say_of_case(self.name, found)
        if len(self.label_columns) > 1:
            reader = LabelReader((), renamed=self.renamed)
            read = (reader.read(name, self.label, self.name) for name in self.label_columns)
            return self.with_labels(dict.fromkeys(filter(None, read)))
        return self.with_labels(in_order(found))

    def _label(
        self, record: Mapping[str, Any], texts: Sequence[str], place: str, labels: LabelReader
    ) -> tuple[str, ...] | None:
        del texts
        columns = self.label_columns
        values = [record.get(name) for name in columns]
        if all(value is None or (labels.is_test and value == "") for value in values):
            return None
        parts: Sequence[Any]
        if len(columns) > 1:
            flags = [_flag(value) for value in values]
            for name, value, flag in zip(columns, values, flags, strict=True):
                if flag is None and labels.is_needed:
                    raise wrong_value(place, name, value, "0 or 1")
            if None in flags:
                return None
            parts = [name for name, flag in zip(columns, flags, strict=True) if flag]
        elif isinstance(values[0], (list, tuple)):
            parts = values[0]
        elif isinstance(values[0], str):
            parts = [part for part in values[0].split(BETWEEN_LABELS) if part.strip()]
        else:
            parts = [values[0]]
        found = [labels.read(part, self.label, place) for part in parts]
        if any(label is None for label in found):
            if labels.is_needed:
                raise wrong_value(place, self.label, values[0], "labels, or none at all")
            return None
        return tuple(sorted({label for label in found if label is not None}))

    def _targets(self, label: Any, example: RawExample) -> Targets:
        for name in label:
            label_index(self.labels, name, example.place)  # else it would be no target at all
        return {LABEL_SET: [float(name in label) for name in self.labels]}

    def fitted(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Self:
        """Return the task with the thresholds of each label's best F1 on these examples."""
        golds_NC = self._flags([examples[row.example].label for row in features])
        shares_NC = metrics.sigmoid(np.stack([x["logits"] for x in outputs]))
        pairs = zip(golds_NC.T, shares_NC.T, strict=True)
        return dataclasses.replace(
            self, thresholds=tuple(metrics.best_threshold(*pair) for pair in pairs)
        )

    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Predictions:
        """Return the labels of each text, in the task's order, by id."""
        marks_C = np.asarray(self.thresholds or [0.5] * len(self.labels))
        found: Predictions = {}
        for row, output in zip(features, outputs, strict=True):
            has_C = metrics.sigmoid(output["logits"]) >= marks_C
            pairs = zip(self.labels, has_C, strict=True)
            found[examples[row.example].id] = tuple(label for label, has in pairs if has)
        return found

    def metrics(self, examples: Sequence[RawExample], predictions: Predictions) -> dict[str, float]:
        """Return F1 over all labels of all texts, the mean F1 of the labels, and accuracy.

        Accuracy is the fraction of texts whose labels are all right.
        """
        golds = gold_labels(self.name, examples)
        found = [predictions[example.id] for example in examples]
        return metrics.label_set_scores(self._flags(golds), self._flags(found))

    def _flags(self, sets: Sequence[Any]) -> np.ndarray:
        """Return bools [N, C], the labels of N texts."""
        rows = [[label in own for label in self.labels] for own in sets]
        return np.array(rows, bool).reshape(len(sets), len(self.labels))


def _flag(value: Any) -> bool | None:
    """Return what a cell of 0 or 1 says; None for any other."""
    key = value.strip() if isinstance(value, str) else value
    return _FLAGS.get(key) if isinstance(key, (str, int, float)) else None


MULTI_LABEL = MultiLabelTask(name="multi-label", texts=("text",), label="labels")
