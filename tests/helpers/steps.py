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

from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.config.sections import TrainConfig
from albert_jax.inference import functions
from albert_jax.inference.api import Albert
from albert_jax.inference.finetuned import HeadOutputs
from albert_jax.inference.onnx_engine import OnnxHead
from albert_jax.models.heads import AlbertForTask
from albert_jax.models.lowering import Lowering
from albert_jax.training.losses import Objective, task_objective
from albert_jax.training.step import (
    ConfiguredStep,
    configured_step,
    make_eval_step,
    make_pretrain_step,
)

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
            batch_size=config.stages.most_rows,
            accumulate=train.accumulate,
        ),
    )
    return _made(alike, lowering, second_weight=second_weight)


def _eval_step(objective: Objective) -> Callable[..., Any]:
    if id(objective) not in _to_evaluate:
        _to_evaluate[id(objective)] = objective, make_eval_step(objective)
    return _to_evaluate[id(objective)][1]


_objectives: dict[str, Objective] = {}
_tuning: dict[tuple[str, int], ConfiguredStep] = {}
_applied: dict[str, Callable[..., Any]] = {}


def _task_objective(model: AlbertForTask, *changes: object) -> Objective:
    name = repr((model, *changes))  # a module has no hash
    if name not in _objectives:
        _objectives[name] = task_objective(model, *changes)
    return _objectives[name]


def _finetuning_step(
    model: AlbertForTask, objective: Objective, config: FinetuneConfig
) -> ConfiguredStep:
    train = config.train
    alike = FinetuneConfig(
        optimizer=config.optimizer,
        lora=config.lora,
        freeze=config.freeze,
        layer_decay=config.layer_decay,
        ema=config.ema,
        train=TrainConfig(
            steps=train.steps, batch_size=train.batch_size, accumulate=train.accumulate
        ),
    )
    name = repr((model, alike)), id(objective)
    if name not in _tuning:
        _tuning[name] = configured_step(model, objective, alike)
    return _tuning[name]


class _HeadOutputs(HeadOutputs):
    """Outputs whose programs are those of any other of the same model."""

    def __init__(
        self, model: AlbertForTask, *, pack: int = 0, onnx: OnnxHead | None = None
    ) -> None:
        super().__init__(model, pack=pack, onnx=onnx)
        if onnx is None:
            self._apply = _applied.setdefault(repr(model), self._apply)


_jitted: dict[tuple[object, ...], Callable[..., Any]] = {}
_jit = Albert._jit


def _jit_once(
    albert: Albert, function: Callable[..., Any], *static: str, **settings: object
) -> Callable[..., Any]:
    network = functions.network(albert.config, albert.compute, albert.params)
    name = repr((network, static, settings)), function
    if name not in _jitted:
        _jitted[name] = _jit(albert, function, *static, **settings)
    return _jitted[name]


@contextmanager
def made_once() -> Iterator[None]:
    """Within it runs and benchmarks take the same step for the same settings, and models of the
    same architecture answer by the same programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Albert, "_jit", _jit_once)
        patch.setattr("albert_jax.training.finetune.task_objective", _task_objective)
        patch.setattr("albert_jax.training.finetune.configured_step", _finetuning_step)
        for module in ("training.finetune", "inference.finetuned"):
            patch.setattr(f"albert_jax.{module}.HeadOutputs", _HeadOutputs)
        for module in ("training.step", "training.pretrain", "perf.workload"):
            patch.setattr(f"albert_jax.{module}.make_pretrain_step", _pretrain_step)
        for module in ("training.heldout", "perf.workload"):
            patch.setattr(f"albert_jax.{module}.make_eval_step", _eval_step)
        yield
