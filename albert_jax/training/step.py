# SPDX-License-Identifier: Apache-2.0
"""Define training and evaluation steps as pure functions of (state, batch).

`placement.py` wraps them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from albert_jax.checkpoint.adapter import merged
from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.config.stages import Stages, rate_factors
from albert_jax.models.albert import AlbertForPretraining, init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.models.lowering import Lowering
from albert_jax.training.lora import with_adapter
from albert_jax.training.losses import Batch, Metrics, Objective, pretraining_objective
from albert_jax.training.optimizer import (
    average_weights,
    averaged_weights,
    global_norm,
    make_optimizer,
    trust_ratios,
)
from albert_jax.training.relative_rates import RelativeRates


@flax.struct.dataclass
class TrainState:
    """Hold all that training carries from step to step; arrays only."""

    step: Array  # i32[], updates made
    params: Any
    opt_state: Any
    key: Array  # typed PRNG key; each step's randomness is derived from it, never consumed


def init_state(params: Any, tx: optax.GradientTransformation, *, seed: int) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(seed))


def evaluated_weights(state: TrainState) -> Any:
    """Return the parameters to evaluate and export: the moving average, if there is one."""
    average = averaged_weights(state.opt_state)
    return state.params if average is None else average


def make_train_step(
    objective: Objective, tx: optax.GradientTransformation, *, accumulate: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return a function that makes one update on a batch.

    Its metrics are means over the global batch. The batch is divided into `accumulate`
    micro-batches, and their gradients are summed in float32. Sums are over the devices of the
    objective's axis, if it has one. A step whose loss or gradient is not finite leaves parameters
    and optimizer unchanged and returns `skipped` = 1.
    """
    axis_name = objective.axis_name

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        normalizers = objective.normalizers(batch)
        if axis_name:
            normalizers = jax.lax.psum(normalizers, axis_name)
        gradient = jax.value_and_grad(objective.loss, has_aux=True)

        def one(micro: Batch, key: Array) -> tuple[Any, Metrics]:
            (loss, metrics), grads = gradient(state.params, micro, normalizers, key)
            return grads, {"loss": loss, **metrics}

        summed = _accumulated(one, batch, key, accumulate)
        grads, metrics = jax.lax.psum(summed, axis_name) if axis_name else summed

        grad_norm = global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        good = jnp.isfinite(grad_norm) & jnp.isfinite(metrics["loss"])
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics |= {"grad_norm": grad_norm, "skipped": 1.0 - good.astype(jnp.float32)}
        ratios = trust_ratios(opt_state)
        if ratios:
            metrics["trust_ratio"] = jnp.stack(list(ratios.values()))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return train_step


def _accumulated(one: Callable[..., Any], batch: Batch, key: Array, accumulate: int) -> Any:
    """Return the sums of `one(micro_batch, key)` over the micro-batches.

    They run in a loop, so that only one micro-batch's activations are in memory at a time.
    """
    if accumulate == 1:
        return one(batch, key)

    def divide(x: Array) -> Array:
        # Micro-batch a takes rows a, a + A, …: then each device's own rows divide evenly and none
        # moves.
        return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    micros = jax.tree.map(divide, batch)
    keys = jax.random.split(key, accumulate)
    first = jax.tree.map(lambda x: x[0], micros)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first, keys[0]))

    def body(total: Any, micro_and_key: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*micro_and_key)), None

    return jax.lax.scan(body, zeros, (micros, keys))[0]


def make_eval_step(objective: Objective) -> Callable[[Any, Batch], dict[str, Metrics]]:
    """Return a function for sums without dropout.

    It returns {"sums": undivided metrics, "weights": their normalisers}.
    """
    axis_name = objective.axis_name

    def eval_step(params: Any, batch: Batch) -> dict[str, Metrics]:
        weights = objective.normalizers(batch)
        ones = {name: jnp.asarray(1.0 - objective.added.get(name, 0.0)) for name in weights}
        _, sums = objective.loss(params, batch, ones, None)
        result = {"sums": sums, "weights": weights}
        return jax.lax.psum(result, axis_name) if axis_name else result

    return eval_step


# --------------------------------------------------------------------------- as a run configures it


@dataclass(frozen=True)
class ConfiguredStep:
    """Hold a training step that a placement has yet to compile, and its parts."""

    model: AlbertForPretraining | AlbertForTask
    objective: Objective
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    step: Callable[..., Any]
    lora: int = 0
    """Rank of the adapter among the parameters; 0: there is none."""

    def state_of(self, params: Any, seed: int) -> TrainState:
        """Return the state before the first step, with these parameters."""
        if self.lora:
            params = with_adapter(params, self.lora, jax.random.key(seed))
        return init_state(params, self.tx, seed=seed)

    def random_state(self, seed: int) -> TrainState:
        """Return the state before the first step, with random parameters; traceable."""
        return self.state_of(init_params(self.model, jax.random.key(seed)), seed)


def configured_step(
    model: AlbertForPretraining | AlbertForTask,
    objective: Objective,
    config: PretrainConfig | FinetuneConfig,
) -> ConfiguredStep:
    """Return the step for a run's optimizer and batches."""
    train = config.train
    tx, schedule = make_optimizer(
        config.optimizer,
        steps=train.steps,
        batch_size=(
            config.stages.most_rows if isinstance(config, PretrainConfig) else train.batch_size
        ),
        factors=rate_factors(train),
    )
    lora = 0
    if isinstance(config, FinetuneConfig):
        lora, freeze = config.lora, config.freeze
        if lora:
            objective, freeze = objective.of_changed(merged), "encoder"
        rates = RelativeRates(
            model.config.num_hidden_groups, decay=config.layer_decay, freeze=freeze
        )
        objective, tx = rates.applied(objective, tx)
        if config.ema:
            tx = average_weights(tx, config.ema)
    step = make_train_step(objective, tx, accumulate=train.accumulate)
    return ConfiguredStep(model, objective, tx, schedule, step, lora)


def make_pretrain_step(
    config: PretrainConfig, lowering: Lowering, *, second_weight: float = 1.0
) -> ConfiguredStep:
    """Return the step of a pretraining run; `lowering` is its placement's.

    `benchmark` measures this same step.
    """
    model = AlbertForPretraining(config.model, config.compute, lowering)
    objective = pretraining_objective(
        model, second=config.examples.objective != "none", second_weight=second_weight
    )
    return configured_step(model, objective, config)


class StagedSteps:
    """Hold the steps of a run's stages, one for each depth and weight of the second objective.

    All take the same state, because the shared layer's parameters serve any depth.
    """

    def __init__(self, config: PretrainConfig, stages: Stages, lowering: Lowering) -> None:
        self.stages = stages
        """May be replaced by others: what was made for those serves these too."""
        self._config, self._lowering = config, lowering
        self._made: dict[tuple[int, float], ConfiguredStep] = {}

    def at(self, batch: int) -> ConfiguredStep:
        """Return the step for a batch.

        Batches that are computed in the same way get the same object.
        """
        stage = self.stages.at(batch)
        return self._of(stage.depth(batch), stage.sentence_order_weight)

    def to_evaluate(self, batches: int) -> ConfiguredStep:
        """Return the step whose model is evaluated after a number of batches.

        It has the largest depth of the steps at that time; before the first batch, the depth of the
        final model. Batches that a rollback left out count, because stages go by the batch.
        """
        depth = self._config.model.num_hidden_layers
        return self._of(self.stages.at(batches - 1).depths[1] if batches else depth, 1.0)

    def _of(self, depth: int, weight: float) -> ConfiguredStep:
        if (depth, weight) not in self._made:
            model = replace(self._config.model, num_hidden_layers=depth)
            config = replace(self._config, model=model, train=replace(self._config.train, depth=""))
            made = make_pretrain_step(config, self._lowering, second_weight=weight)
            self._made[depth, weight] = made
        return self._made[depth, weight]
