# SPDX-License-Identifier: Apache-2.0
"""The dense layer against flax's, which leaves the gradients to JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.dense import Dense
from albert_jax.target import Target, traced_for


def out_and_grads(layer, params, x, weights):
    def loss(params, x):
        out = layer.apply({"params": params}, x)
        return (out.astype(jnp.float32) * weights).sum(), out

    (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return out, grads


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 3, 4, 5)], ids=len)
def test_dense_and_its_gradients_are_flaxs(shape, dtype, error, platform):
    rng = np.random.default_rng(0)
    init = nn.initializers.normal(1.0)
    x, weights = (rng.standard_normal(s).astype("float32") for s in (shape, (*shape[:-1], 7)))
    ours = Dense(7, dtype=dtype, kernel_init=init)
    theirs = nn.Dense(7, dtype=dtype, kernel_init=init)
    params = ours.init(jax.random.key(0), x)["params"]
    shapes = jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x)["params"])
    assert jax.tree.map(jnp.shape, params) == shapes
    params["bias"] += 0.5
    found = traced_for(Target(platform), out_and_grads)(ours, params, x, weights)
    expected = out_and_grads(theirs, params, x, weights)
    assert jax.tree.map(lambda a: a.dtype, found) == jax.tree.map(lambda a: a.dtype, expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one / scale, other / scale, atol=error)


@pytest.mark.parametrize(("platform", "sums_by_matmul"), [("cpu", 0), ("tpu", 1)])
def test_a_bias_gradient_is_a_matmul_on_tpus_only(platform, sums_by_matmul):
    layer = Dense(7, dtype="float32", kernel_init=nn.initializers.normal(1.0))
    x = jnp.ones((6, 5))
    params = layer.init(jax.random.key(0), x)["params"]
    grads = traced_for(Target(platform), lambda *a: out_and_grads(layer, *a)[1])
    jaxpr = str(jax.make_jaxpr(grads)(params, x, jnp.ones((6, 7))))
    assert jaxpr.count("dot_general") == 3 + sums_by_matmul
