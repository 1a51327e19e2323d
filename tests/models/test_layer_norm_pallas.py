# SPDX-License-Identifier: Apache-2.0
"""LayerNorm's kernels equal XLA's LayerNorm, forward and backward, and take what they can."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.models import layer_norm_pallas
from albert_jax.models.fused import LayerNorm

EPSILON = 1e-12


def arrays(*shape, mean=2.0, deviation=3.0):
    rng = np.random.default_rng(0)
    x, grad = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(2))
    scale_F, bias_F = (jnp.asarray(rng.standard_normal(shape[-1:]), jnp.float32) for _ in range(2))
    return deviation * x + mean, grad, scale_F, bias_F


def by_xla(x, grad, scale_F, bias_F):
    """Return the output and the gradients of input, scale and bias."""

    def layer(x, scale_F, bias_F):
        params = {"scale": scale_F, "bias": bias_F}
        return LayerNorm(EPSILON, "bfloat16", "cpu").apply({"params": params}, x)

    y, backward = jax.vjp(layer, x, scale_F, bias_F)
    return y, *backward(grad)


def by_kernels(x, grad, scale_F, bias_F):
    y = layer_norm_pallas.forward(x, scale_F, bias_F, EPSILON, interpret=True)
    return y, *layer_norm_pallas.backward(x, grad, scale_F, EPSILON, interpret=True)


@pytest.mark.parametrize(
    "shape",
    [(128, 256), (2, 128, 384), (3, 512, 768), (1, 640, 1024), (2, 128, 4096)],
    ids=str,  # one step of the grid, several, and steps of fewer rows than fit
)
def test_kernels_equal_xla(shape):
    found, wanted = by_kernels(*arrays(*shape)), by_xla(*arrays(*shape))
    for ours, theirs in zip(found[:2], wanted[:2], strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, jnp.bfloat16)
        # Additions in another order may round to the next bfloat16, one part in 128.
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=2**-7, atol=1e-3)
        assert (ours == theirs).mean() > 0.99
    for ours, theirs in zip(found[2:], wanted[2:], strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_rows_far_from_zero_keep_their_variance():
    """E[x^2] - E[x]^2 would cancel."""
    given = arrays(128, 256, mean=1000.0, deviation=1.0)  # most are 1000, some 996 or 1004
    found, wanted = by_kernels(*given), by_xla(*given)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=2**-7, atol=0.02)


def test_equal_features_give_the_bias():
    x, grad, scale_F, bias_F = arrays(128, 256)
    y, grad_x, *_ = by_kernels(jnp.full_like(x, 3), grad, scale_F, bias_F)
    assert (y == bias_F.astype(jnp.bfloat16)).all()
    assert np.isfinite(np.float32(grad_x)).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "wanted", "fits"),
    [
        ((2, 512, 768), "bfloat16", "bfloat16", True),
        ((1, 128, 256), "bfloat16", "bfloat16", True),
        ((1, 128, 4096), "bfloat16", "bfloat16", True),
        ((1, 128, 8192), "bfloat16", "bfloat16", False),  # not tried
        ((2, 512, 768), "float32", "float32", False),
        ((2, 512, 768), "float32", "bfloat16", False),
        ((2, 512, 768), "bfloat16", "float32", False),
        ((2, 77, 768), "bfloat16", "bfloat16", False),  # rows are no multiple of 128
        ((2, 512, 128), "bfloat16", "bfloat16", False),  # embeddings' features
        ((2, 512, 312), "bfloat16", "bfloat16", False),  # no multiple of 128
        ((0, 512, 768), "bfloat16", "bfloat16", False),
        (("batch", 128, 256), "bfloat16", "bfloat16", False),  # exported for any number of rows
    ],
)
def test_a_tpu_gets_the_kernels_where_they_fit(shape, dtype, wanted, fits):
    def with_gradient(params, x):
        layer = LayerNorm(EPSILON, wanted, "tpu")
        y, backward = jax.vjp(lambda x: layer.apply({"params": params}, x), x)
        return y, backward(y)

    params = dict.fromkeys(("scale", "bias"), jax.ShapeDtypeStruct(shape[-1:], jnp.float32))
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(", ".join(map(str, shape))), dtype)
    exported = jax.export.export(jax.jit(with_gradient), platforms=("tpu",))(params, x)
    for name in ("layer_norm_forward", "layer_norm_backward"):
        assert (name in exported.mlir_module()) == fits
