# SPDX-License-Identifier: Apache-2.0
"""Define a user's own task of similarity: a score of two texts that are read independently."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from albert_jax.config.heads import HeadKind
from albert_jax.config.manifests import TaskSettings
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks.base import (
    Features,
    Outputs,
    Predictions,
    RawExample,
    pair_features,
)
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

    def _input(
        self, tokenizer: Tokenizer, texts: Sequence[str], max_seq_length: int
    ) -> tuple[list[Any], list[Any]]:
        """Return ids and segments of each text, as choices have rows of their own."""
        rows = [pair_features(tokenizer, [text], max_seq_length) for text in texts]
        return [ids for ids, _ in rows], [segments for _, segments in rows]

    def _target(self, label: Any, example: RawExample) -> float:
        low, high = self.scale
        return (label - low) / (high - low)

    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Predictions:
        """Return a score by id, on the scale of the training file."""
        low, high = self.scale
        cosines = super().predictions(examples, features, outputs)
        return {name: low + cosine * (high - low) for name, cosine in cosines.items()}


SIMILARITY = SimilarityTask(name="similarity", texts=("text_a", "text_b"), label="score")
