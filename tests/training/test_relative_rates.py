# SPDX-License-Identifier: Apache-2.0
"""Rates of a model's parts against optax's own groups of parameters, and what is frozen."""

import jax
import numpy as np
import optax
import pytest

from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import OptimizerConfig
from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.training.losses import task_objective
from albert_jax.training.optimizer import path_name
from albert_jax.training.relative_rates import RelativeRates
from albert_jax.training.step import configured_step, init_state, make_train_step
from albert_jax.utils.errors import UserError
from tests.helpers.models import random_batch, tiny_albert


@pytest.fixture(scope="module")
def setting():
    config = tiny_albert(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_hidden_groups=2
    )
    model = AlbertForTask(config, labels=3, dropout=0.0)
    batch = random_batch(config)
    batch = {name: batch[name] for name in ("input_ids", "input_mask", "segment_ids")}
    return model, init_params(model, jax.random.key(0)), batch | {"labels": np.arange(4) % 3}


def after(made, params, batch, steps=3):
    step, state = jax.jit(made.step), init_state(params, made.tx, seed=0)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return named_leaves(state.params), metrics


def made_by(model, **settings):
    optimizer = OptimizerConfig(name="optax_adamw", learning_rate=0.01, clip_norm=0.5)
    config = FinetuneConfig(optimizer=optimizer, **settings)
    return configured_step(model, task_objective(model), config)


def test_rates_by_depth_are_those_of_an_optimizer_for_each_group(setting):
    """optax.multi_transform with one AdamW a group; float32 rounds the products otherwise: 1e-6."""
    model, params, batch = setting
    made = made_by(model, layer_decay=0.5)
    found, _ = after(made, params, batch)
    factors = {"head": 1, "pooler": 1, "encoder/group_1": 0.5, "encoder/group_0": 0.25}
    factors |= {"encoder/embedding_hidden_mapping_in": 0.125, "embeddings": 0.125}
    of = lambda path, _: next(n for n in factors if path_name(path).startswith(n))  # noqa: E731
    labels = jax.tree_util.tree_map_with_path(of, params)
    rate = lambda factor: lambda count: factor * made.schedule(count)  # noqa: E731
    kernels = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, _: not any(x in path_name(path) for x in ("LayerNorm", "bias")), tree
    )
    each = {
        name: optax.adamw(rate(factor), eps=1e-6, weight_decay=0.01, mask=kernels)
        for name, factor in factors.items()
    }
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.multi_transform(each, labels))
    state = init_state(params, tx, seed=0)
    step = jax.jit(make_train_step(task_objective(model), tx))
    for _ in range(3):
        state, _ = step(state, batch)
    for name, leaf in named_leaves(state.params).items():
        np.testing.assert_allclose(found[name], leaf, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("freeze", "held"),
    [
        ("embeddings", ("embeddings/", "encoder/embedding_hidden_mapping_in/")),
        ("encoder", ("embeddings/", "encoder/")),
    ],
)
def test_what_is_frozen_keeps_its_bits_and_costs_no_backward_pass(setting, freeze, held):
    model, params, batch = setting
    made, whole = made_by(model, freeze=freeze), made_by(model)
    found, metrics = after(made, params, batch)
    for name, leaf in named_leaves(params).items():
        # A key's bias has no gradient.
        is_held = name.startswith(held)
        if "key/bias" not in name:
            assert np.array_equal(found[name], leaf) == is_held, name
    objective = task_objective(model)
    loss = lambda p: objective.loss(p, batch, objective.normalizers(batch), None)[0]  # noqa: E731
    grads = named_leaves(jax.jit(jax.grad(loss))(params))
    norm = np.sqrt(sum(float((g**2).sum()) for n, g in grads.items() if not n.startswith(held)))
    _, metrics = after(made, params, batch, steps=1)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    flops = [
        jax.jit(each.step)
        .lower(init_state(params, each.tx, seed=0), batch)
        .cost_analysis()["flops"]
        for each in (made, whole)
    ]
    assert flops[0] < flops[1] * (0.6 if freeze == "encoder" else 0.99)


def test_without_these_settings_the_optimizer_is_the_very_same(setting):
    model, *_ = setting
    objective, tx = task_objective(model), optax.sgd(1.0)
    assert RelativeRates(2).applied(objective, tx) == (objective, tx)


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(UserError, match=r"layer_decay .* must lie in \(0, 1\]"):
        FinetuneConfig(layer_decay=decay)
