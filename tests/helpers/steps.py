# SPDX-License-Identifier: Apache-2.0
"""Steps of runs that are configured alike, made once, so that JAX traces and compiles them once:
that is most of what a run of a few steps takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import TrainConfig
from albert_jax.models.lowering import Lowering
from albert_jax.training.losses import Objective
from albert_jax.training.step import ConfiguredStep, make_eval_step, make_pretrain_step

_made = functools.cache(make_pretrain_step)
_to_evaluate: dict[int, tuple[Objective, Callable[..., Any]]] = {}


def _pretrain_step(
    config: PretrainConfig, lowering: Lowering, *, second_weight: float = 1.0
) -> ConfiguredStep:
    train, optimizer = config.train, config.optimizer
    any_steps = optimizer.schedule == "constant" and optimizer.warmup_steps is not None
    alike = dataclasses.replace(  # but for what no step depends on
        PretrainConfig(model=config.model, examples=config.examples),
        compute=config.compute,
        optimizer=config.optimizer,
        train=TrainConfig(
            steps=1 if any_steps else train.steps,
            batch_size=train.batch_size,
            accumulate=train.accumulate,
        ),
    )
    return _made(alike, lowering, second_weight=second_weight)


def _eval_step(objective: Objective) -> Callable[..., Any]:
    if id(objective) not in _to_evaluate:
        _to_evaluate[id(objective)] = objective, make_eval_step(objective)
    return _to_evaluate[id(objective)][1]


@contextmanager
def made_once() -> Iterator[None]:
    """Within it runs and benchmarks take the same step for the same settings."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("training.step", "training.pretrain", "perf.workload"):
            patch.setattr(f"albert_jax.{module}.make_pretrain_step", _pretrain_step)
        for module in ("training.heldout", "perf.workload"):
            patch.setattr(f"albert_jax.{module}.make_eval_step", _eval_step)
        yield
