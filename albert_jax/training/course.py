# SPDX-License-Identifier: Apache-2.0
"""Follow a pretraining run through its stages, with their examples and steps.

A run that was continued with other settings has the stages of both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.history import (
    CONTINUABLE,
    Continuation,
    settings_before,
    stages_of_history,
)
from albert_jax.config.manifests import read_model_manifest
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.pretraining import PretrainingData, pretraining_identity
from albert_jax.data.staged import StagedExamples
from albert_jax.models.lowering import Lowering
from albert_jax.training.continuations import Continuations
from albert_jax.training.position import Position
from albert_jax.training.step import StagedSteps
from albert_jax.utils.json_values import JsonObject, json_sha256


class Course:
    """Hold a run's stages, examples and steps, which follow from its settings and its history."""

    def __init__(
        self,
        config: PretrainConfig,
        data: PretrainingData,
        lowering: Lowering,
        *,
        continue_with: bool = False,
    ) -> None:
        """Prepare the stages.

        `continue_with` allows a checkpoint with other settings in `CONTINUABLE`.
        """
        self.config, self.data = config, data
        self._source_of = functools.cache(data.train_as)
        self.continuations = Continuations(
            {**pretraining_identity(config, data), "init_from": _began_from(config)},
            CONTINUABLE,
            steps=config.train.steps,
            continue_with=continue_with,
        )
        self.steps = StagedSteps(config, config.stages, lowering)
        self._follow([])

    def _follow(self, history: Sequence[Continuation]) -> None:
        self._followed = list(history)
        self.stages = stages_of_history(self.config, history)
        self.steps.stages = self.stages
        self.examples = StagedExamples(self.stages, self._source_of)

    def recall(self, meta: Mapping[str, Any]) -> None:
        """Accept what a checkpoint kept; this run's settings hold from there on."""
        self.continuations.recall(meta)
        if self.continuations.history != self._followed:
            self._follow(self.continuations.history)
        batch = meta["position"]["batch"]
        if self._examples_before(batch) == self.stages.at(batch).examples:
            # 0.1.0 wrote no epochs.
            self.examples.remember_epochs(batch, meta.get("epochs", []))

    def _examples_before(self, batch: int) -> ExamplesConfig:
        """Return how the checkpoint's run would have drawn its next batch."""
        if self.continuations.begun is None:
            return self.stages.at(batch).examples
        earlier = settings_before(self.config, self.continuations.begun)
        return stages_of_history(earlier, self._followed[:-1]).at(batch).examples

    def kept(self, position: Position) -> JsonObject:
        """Return what a checkpoint at a position keeps."""
        return {
            "tokenizer": self.data.tokenizer,
            "epochs": self.examples.ended_epochs(position.batch),
            **self.continuations.kept(),
        }


def _began_from(config: PretrainConfig) -> JsonObject:
    """Return the name and a digest of the weights to start from, of which one has to be the same.

    The model may have been moved, or trained further.
    """
    if config.init_from is None:
        return {"name": None, "weights": None}
    tensors = read_model_manifest(require_model_directory(config.init_from)).tensors
    return {"name": config.init_from, "weights": json_sha256(tensors)}
