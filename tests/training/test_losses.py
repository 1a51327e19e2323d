# SPDX-License-Identifier: Apache-2.0
"""The losses' parts against optax's and NumPy's, for every device that they are traced for."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.models.lowering import Lowering
from albert_jax.training.losses import (
    ClassLoss,
    Distillation,
    cross_entropy,
    is_best,
    multi_label_losses,
    task_objective,
)
from albert_jax.training.step import init_state, make_train_step
from tests.helpers.models import random_batch, tiny_albert


def logits_and_labels():
    rng = np.random.default_rng(0)
    logits_BPV = rng.standard_normal((3, 5, 40)).astype(np.float32)
    labels_BP = rng.integers(0, 40, (3, 5)).astype(np.int32)
    labels_BP[:, :2] = logits_BPV.argmax(axis=-1)[:, :2]  # that some are the best
    return logits_BPV, labels_BP


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_cross_entropy_and_its_gradient_are_optaxs(platform):
    logits_BPV, labels_BP = logits_and_labels()
    weights_BP = np.linspace(-1, 2, labels_BP.size, dtype=np.float32).reshape(labels_BP.shape)
    ours = partial(cross_entropy, lowering=Lowering(platform))
    found, expected = (
        jax.value_and_grad(lambda logits, of=of: (weights_BP * of(logits, labels_BP)).sum())
        for of in (ours, optax.softmax_cross_entropy_with_integer_labels)
    )
    # Sums of 40 float32 exponentials in another order.
    for one, other in zip(found(logits_BPV), expected(logits_BPV), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_label_is_best_where_argmax_says_so(platform):
    logits_BPV, labels_BP = logits_and_labels()
    best_BP = is_best(logits_BPV, labels_BP, Lowering(platform))
    np.testing.assert_array_equal(best_BP, logits_BPV.argmax(axis=-1) == labels_BP)
    assert 0 < best_BP.sum() < labels_BP.size


@pytest.mark.parametrize(("platform", "scatters"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_the_logits_gradient_is_scattered_into_on_cpus_only(platform, scatters):
    losses = partial(cross_entropy, lowering=Lowering(platform))
    grads = jax.grad(lambda logits, labels: losses(logits, labels).sum())
    jaxpr = str(jax.make_jaxpr(grads)(*logits_and_labels()))
    assert ("scatter" in jaxpr) == scatters


def torchs_cross_entropy(logits, labels, weights, smoothing):
    """torch.nn.CrossEntropyLoss(weights, label_smoothing=smoothing), the mean, in float64."""
    logits = logits.astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    total = 0.0
    for row, label in zip(log_probs, labels, strict=True):
        total -= (1 - smoothing) * weights[label] * row[label]
        total -= smoothing / len(weights) * sum(w * x for w, x in zip(weights, row, strict=True))
    return total / sum(weights[label] for label in labels)


@pytest.mark.parametrize(
    ("kind", "smoothing"),
    [
        ("classification", 0.2),
        ("token_classification", 0.0),
        pytest.param("classification", 0.0, marks=pytest.mark.slow),
        pytest.param("token_classification", 0.2, marks=pytest.mark.slow),
    ],
)
def test_weighted_and_smoothed_losses_are_torchs_and_add_up_over_micro_batches(kind, smoothing):
    """Sums of a dozen float32 losses in another order: 1e-5."""
    config = tiny_albert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = AlbertForTask(config, kind=kind, labels=3, dropout=0.0)
    params, batch = init_params(model, jax.random.key(0)), random_batch(config)
    params["head"]["output_weights"] *= 50  # that labels have different losses
    batch = {name: batch[name] for name in ("input_ids", "input_mask", "segment_ids")}
    rng = np.random.default_rng(1)
    shape = (4, 12) if kind == "token_classification" else (4,)
    batch["labels"] = rng.integers(0, 3, shape).astype(np.int32)
    if kind == "token_classification":
        batch["labels"][:, ::3] = -100
    logits = jax.jit(model.apply)(
        {"params": params}, batch["input_ids"], batch["input_mask"], batch["segment_ids"]
    )
    weights, kept = (0.5, 1.0, 4.0), batch["labels"] >= 0
    wanted = torchs_cross_entropy(
        np.asarray(logits)[kept], batch["labels"][kept], weights, smoothing
    )
    objective = task_objective(model, ClassLoss(weights, smoothing))
    tx = optax.sgd(1.0)
    found = [
        jax.jit(make_train_step(objective, tx, accumulate=parts))(
            init_state(params, tx, seed=0), batch
        )
        for parts in (1, 2)
    ]
    for _, metrics in found:
        np.testing.assert_allclose(metrics["task_loss"], wanted, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)
    plain = task_objective(model)
    loss = jax.jit(plain.loss, static_argnums=3)
    _, metrics = loss(params, batch, plain.normalizers(batch), None)
    np.testing.assert_allclose(found[0][1]["accuracy"], metrics["accuracy"], rtol=1e-6)
    assert abs(metrics["task_loss"] - wanted) > 1e-3
    for one, other in zip(*(jax.tree.leaves(state.params) for state, _ in found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_smoothed_targets_are_optaxs():
    logits_BPV, labels_BP = logits_and_labels()
    targets = optax.smooth_labels(jax.nn.one_hot(labels_BP, 40), 0.1)
    wanted = optax.softmax_cross_entropy(logits_BPV, targets)
    found = ClassLoss(smoothing=0.1).losses(logits_BPV, labels_BP)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_losses_of_several_labels_are_optaxs():
    rng = np.random.default_rng(0)
    logits_BC = (5 * rng.standard_normal((7, 4))).astype(np.float32)
    labels_BC = rng.integers(0, 2, (7, 4)).astype(np.float32)
    found = multi_label_losses(logits_BC, {"label_set": labels_BC}, Lowering())
    wanted = optax.sigmoid_binary_cross_entropy(logits_BC, labels_BC).mean(axis=-1)
    np.testing.assert_allclose(found["task_loss"], wanted, rtol=1e-5, atol=1e-6)
    right = ((1 / (1 + np.exp(-logits_BC)) > 0.5) == labels_BC).mean(axis=-1)
    np.testing.assert_allclose(found["accuracy"], right, rtol=1e-6)


def test_the_distance_from_a_teacher_is_optaxs_divergence_and_mixes_with_the_labels_loss():
    config = tiny_albert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = AlbertForTask(config, labels=3, dropout=0.0)
    params, batch = init_params(model, jax.random.key(0)), random_batch(config)
    batch = {name: batch[name] for name in ("input_ids", "input_mask", "segment_ids")}
    rng = np.random.default_rng(2)
    batch["teacher_logits"] = (3 * rng.standard_normal((4, 3))).astype(np.float32)
    batch["labels"] = np.arange(4, dtype=np.int32) % 3
    logits = jax.jit(model.apply)({"params": params}, *(batch[n] for n in list(batch)[:3]))
    ours, theirs = (jax.nn.log_softmax(x / 2.5) for x in (logits, batch["teacher_logits"]))
    wanted = 2.5**2 * optax.losses.kl_divergence_with_log_targets(ours, theirs).mean()
    objective = task_objective(model, teacher=Distillation(0.3, 2.5))
    compiled = jax.jit(objective.loss, static_argnums=3)
    loss, metrics = compiled(params, batch, objective.normalizers(batch), None)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
    np.testing.assert_allclose(metrics["distill_loss"], wanted, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.7 * hard + 0.3 * wanted, rtol=1e-5)
    assert metrics.keys() == objective.normalizer_of.keys()
