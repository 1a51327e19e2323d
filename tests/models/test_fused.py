# SPDX-License-Identifier: Apache-2.0
"""The layers with gradients written by hand against flax's, which leave them to JAX."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.models.fused import Dense, LayerNorm, add_bias, gelu


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
    ours = Dense(7, dtype=dtype, kernel_init=init, platform=platform)
    theirs = nn.Dense(7, dtype=dtype, kernel_init=init)
    params = ours.init(jax.random.key(0), x)["params"]
    shapes = jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x)["params"])
    assert jax.tree.map(jnp.shape, params) == shapes
    params["bias"] += 0.5
    assert_the_same(ours, theirs, params, x, weights, error=error)


def assert_the_same(ours, theirs, params, x, weights, *, error):
    """Outputs and gradients, each relative to its largest value."""
    found = out_and_grads(ours, params, x, weights)
    expected = out_and_grads(theirs, params, x, weights)
    assert jax.tree.map(lambda a: a.dtype, found) == jax.tree.map(lambda a: a.dtype, expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one / scale, other / scale, atol=error)


def test_an_input_that_is_written_out_changes_nothing_and_its_gradient_is_not_held_up():
    x, init = jnp.ones((6, 5), jnp.bfloat16), nn.initializers.normal(1.0)
    layers = [Dense(3, "bfloat16", init, "tpu", writes_input=each) for each in (False, True)]
    params = layers[0].init(jax.random.key(0), x)["params"]
    found = [out_and_grads(layer, params, x, jnp.ones((6, 3))) for layer in layers]
    jax.tree.map(np.testing.assert_array_equal, *found)
    programs = [
        str(jax.make_jaxpr(partial(out_and_grads, layer))(params, x, jnp.ones((6, 3))))
        for layer in layers
    ]
    assert [program.count("optimization_barrier") for program in programs] == [0, 1]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 2e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4, 48)], ids=len)
def test_layer_norm_and_its_gradients_are_flaxs(shape, dtype, error, platform):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    ours = LayerNorm(1e-12, dtype, platform)
    theirs = nn.LayerNorm(1e-12, dtype=dtype, use_fast_variance=False)
    features = shape[-1:]
    params = {"scale": rng.standard_normal(features), "bias": rng.standard_normal(features)}
    params = jax.tree.map(lambda a: a.astype("float32"), params)
    x = 3 * x + 2  # neither centred nor of variance 1
    assert_the_same(ours, theirs, params, x, weights, error=error)


def test_layer_norm_keeps_its_input_alone():
    layer, x = LayerNorm(1e-12, "bfloat16", "cpu"), jnp.ones((4, 16), jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)["params"]
    _, backward = jax.vjp(lambda params, x: layer.apply({"params": params}, x), params, x)
    kept = sorted((a.shape, str(a.dtype)) for a in jax.tree.leaves(backward))
    assert kept == [((4, 16), "bfloat16"), ((16,), "float32")]


def out_and_slope(function, x):
    out, backward = jax.vjp(function, x)
    return out, backward(jnp.ones_like(x))[0]


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("bfloat16", 8e-3)])
def test_gelu_and_its_gradient_are_jaxs(dtype, error):
    x = jnp.asarray(np.linspace(-12, 12, 2401), dtype)
    # As users' programs are compiled: XLA's tanh is ten times as far off without optimisation.
    compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    slopes = {}
    for name, function in {"ours": gelu, "jax's": jax.nn.gelu}.items():
        out, slopes[name] = compiled(partial(out_and_slope, function))(x)
        np.testing.assert_array_equal(out, compiled(jax.nn.gelu)(x))
    assert slopes["ours"].dtype == x.dtype
    # JAX's own, rounded at each operation in bfloat16, is further off than ours: held to float32's.
    exact = compiled(jax.vmap(jax.grad(jax.nn.gelu)))(x.astype("float32"))
    np.testing.assert_allclose(slopes["ours"].astype("float32"), exact, atol=error)
    ours, theirs = (jnp.abs(a.astype("float32") - exact).max() for a in slopes.values())
    assert ours <= theirs + 1e-6


def test_gelu_keeps_its_input_alone():
    _, backward = jax.vjp(gelu, jnp.ones((4, 16), jnp.bfloat16))
    assert [(a.shape, str(a.dtype)) for a in jax.tree.leaves(backward)] == [((4, 16), "bfloat16")]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_an_added_bias_has_the_sum_of_all_rows_as_gradient(platform):
    rng = np.random.default_rng(0)
    x, weights = (rng.standard_normal((2, 3, 5)).astype("float32") for _ in range(2))
    grads = jax.grad(lambda x, bias: (weights * add_bias(x, bias, platform)).sum(), (0, 1))
    grad_x, grad_bias = grads(x, jnp.ones(5))
    np.testing.assert_array_equal(grad_x, weights)
    np.testing.assert_allclose(grad_bias, weights.sum(axis=(0, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("platform", "sums_by_matmul"), [("cpu", 0), ("tpu", 1)])
def test_a_bias_gradient_is_a_matmul_on_tpus_only(platform, sums_by_matmul):
    layer = Dense(7, "float32", nn.initializers.normal(1.0), platform)
    x = jnp.ones((6, 5))
    params = layer.init(jax.random.key(0), x)["params"]
    grads = partial(out_and_grads, layer)
    jaxpr = str(jax.make_jaxpr(grads)(params, x, jnp.ones((6, 7))))
    assert jaxpr.count("dot_general") == 3 + sums_by_matmul
