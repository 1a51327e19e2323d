# SPDX-License-Identifier: Apache-2.0
"""Define a user's own task of similarity: a score of two texts that are read independently."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from albert_jax.config.heads import HeadKind
from albert_jax.config.manifests import TaskSettings
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks.base import Features, Outputs, Predictions, RawExample, Targets
from albert_jax.tasks.custom import CustomTask


@dataclass(frozen=True, kw_only=True)
class SimilarityTask(CustomTask):
    """Score how similar two texts are, by the cosine of their mean vectors; metrics are fractions.

    Each text is read alone, so that its vector can be computed once and compared with many others:
    `Albert.encode(…, pool="mean")` returns it. A cosine of 0 means the lowest score of the training
    file and a cosine of 1 the highest; `scale` holds these two scores.
    """

    head: HeadKind = "similarity"
    scale: tuple[float, float] = (0.0, 1.0)

    def head_settings(self) -> TaskSettings:
        return TaskSettings(texts=list(self.texts), label=self.label, scale=self.scale)

    def learn(self, train: Sequence[RawExample]) -> Self:
        """Return the task with the lowest and the highest score of its training examples.

        Raises UserError if there is no score, or only one.
        """
        super().learn(train)
        scores = [float(x.label) for x in train if isinstance(x.label, (int, float))]
        return dataclasses.replace(self, scale=(min(scores), max(scores)))

    def features(
        self, example: RawExample, index: int, tokenizer: Tokenizer, max_seq_length: int
    ) -> list[Features]:
        """Return [CLS] text [SEP] for each of the two texts, as choices have rows of their own."""
        ids = [
            [tokenizer.special.cls, *text[: max_seq_length - 2], tokenizer.special.sep]
            for text in tokenizer.encode_ids(example.texts, parse_special=None)
        ]
        targets = {} if example.label is None else self._targets(example.label, example)
        return [Features(index, ids, [[0] * len(row) for row in ids], targets)]

    def _targets(self, label: Any, example: RawExample) -> Targets:
        del example
        low, high = self.scale
        return {"labels": (label - low) / (high - low)}

    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Predictions:
        """Return a score by id, on the scale of the training file."""
        low, high = self.scale
        cosines = [float(np.ravel(output["logits"])[0]) for output in outputs]
        pairs = zip(features, cosines, strict=True)
        return {examples[row.example].id: low + cosine * (high - low) for row, cosine in pairs}


SIMILARITY = SimilarityTask(name="similarity", texts=("text_a", "text_b"), label="score")
