# SPDX-License-Identifier: Apache-2.0
"""The losses' parts against optax's and NumPy's, for every device that they are traced for."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from albert_jax.models.lowering import Lowering
from albert_jax.training.losses import cross_entropy, is_best


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
