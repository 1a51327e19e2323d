# SPDX-License-Identifier: Apache-2.0
"""The step that a pretraining run's configuration means: what `pretrain` runs is what `benchmark`
measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from albert_jax.config.run import PretrainConfig
from albert_jax.models.albert import AlbertForPretraining, init_params
from albert_jax.models.lowering import Lowering
from albert_jax.training.losses import Objective, pretraining_objective
from albert_jax.training.optimizer import make_optimizer
from albert_jax.training.step import TrainState, init_state, make_train_step


@dataclass(frozen=True)
class PretrainStep:
    """A step, still to be compiled by a placement, and what it is made of."""

    model: AlbertForPretraining
    objective: Objective
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    step: Callable[..., Any]

    def random_state(self, seed: int) -> TrainState:
        """The state before the first step; traceable."""
        return init_state(init_params(self.model, jax.random.key(seed)), self.tx, seed=seed)


def make_pretrain_step(config: PretrainConfig, lowering: Lowering) -> PretrainStep:
    """Return the configured step; `lowering` is its placement's."""
    model = AlbertForPretraining(config.model, config.compute, lowering)
    objective = pretraining_objective(model, second=config.examples.objective != "none")
    train = config.train
    tx, schedule = make_optimizer(config.optimizer, steps=train.steps, batch_size=train.batch_size)
    step = make_train_step(objective, tx, accumulate=train.accumulate)
    return PretrainStep(model, objective, tx, schedule, step)
