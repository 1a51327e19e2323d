# SPDX-License-Identifier: Apache-2.0
"""The layers that everything is made of, with their gradients written out.

JAX's own rules give a kernel's gradient transposed, which XLA's CPU compiler mends with copies of
the activations, a LayerNorm's in three times the passes it takes, and GELU's from a derivative that
the forward pass writes out; and a TPU adds up over rows faster in its matrix unit than in its
vector unit. N is the rows of all leading dimensions together, F the features.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.models import lowering

_SQRT_2_OVER_PI, _CUBIC = math.sqrt(2.0 / math.pi), 0.044715  # of GELU's tanh form


class Dense(nn.Module):
    """x kernel + bias in `dtype`, [..., D] -> [..., F]; parameters as `nn.Dense` names them."""

    features: int
    dtype: str
    kernel_init: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel_DF = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias_F = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel_DF, bias_F = (a.astype(self.dtype) for a in (x, kernel_DF, bias_F))
        return _affine(x, kernel_DF, bias_F)


@jax.custom_vjp
def _affine(x: Array, kernel_DF: Array, bias_F: Array) -> Array:
    return x @ kernel_DF + bias_F


def _affine_fwd(x: Array, kernel_DF: Array, bias_F: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel_DF + bias_F, (x, kernel_DF)


def _affine_bwd(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array, Array]:
    x, kernel_DF = saved
    rows_ND, grad_NF = (a.reshape(-1, a.shape[-1]) for a in (x, grad))
    grad_x = jnp.einsum("...F,DF->...D", grad, kernel_DF)
    grad_DF = jnp.einsum("ND,NF->DF", rows_ND, grad_NF)
    return grad_x, grad_DF, _sum_of_rows(grad_NF)


_affine.defvjp(_affine_fwd, _affine_bwd)


class LayerNorm(nn.Module):
    """LayerNorm in float32 whatever comes in, with the original's epsilon and two-pass variance;
    returns `dtype`. It keeps its input alone for the backward pass."""

    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale_F = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias_F = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return _layer_norm(x, scale_F, bias_F, self.epsilon, self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm(x: Array, scale_F: Array, bias_F: Array, epsilon: float, dtype: str) -> Array:
    normed, _ = _normed(x, epsilon)
    return (normed * scale_F + bias_F).astype(dtype)


def _layer_norm_fwd(
    x: Array, scale_F: Array, bias_F: Array, epsilon: float, dtype: str
) -> tuple[Array, tuple[Array, Array]]:
    return _layer_norm(x, scale_F, bias_F, epsilon, dtype), (x, scale_F)


def _layer_norm_bwd(
    epsilon: float, dtype: str, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array, Array]:
    x, scale_F = saved
    normed, rate = _normed(x, epsilon)
    grad = grad.astype(jnp.float32)
    scaled = grad * scale_F
    along = (scaled * normed).mean(axis=-1, keepdims=True)
    grad_x = rate * (scaled - scaled.mean(axis=-1, keepdims=True) - normed * along)
    return grad_x.astype(x.dtype), _sum_of_rows(grad * normed), _sum_of_rows(grad)


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def _normed(x: Array, epsilon: float) -> tuple[Array, Array]:
    """float32 rows of mean 0 and variance 1, and 1 / their deviations."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    # In float32 1e-12 is far below the variance's rounding: a constant row gives 0, not NaN.
    rate = jax.lax.rsqrt(variance + epsilon)
    return centred * rate, rate


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """x Phi(x) in the tanh form, `jax.nn.gelu`'s. It keeps x alone for the backward pass, which is
    what lets cuBLAS compute it in the matmul that x comes from."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_fwd(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_bwd(x: Array, grad: Array) -> tuple[Array]:
    dtype, x = x.dtype, x.astype(jnp.float32)
    tanh = jnp.tanh(_SQRT_2_OVER_PI * (x + _CUBIC * x**3))
    inner = _SQRT_2_OVER_PI * (1.0 + 3.0 * _CUBIC * x**2)  # the derivative of tanh's argument
    slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh**2) * inner
    return ((grad.astype(jnp.float32) * slope).astype(dtype),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)


@jax.custom_vjp
def add_bias(x: Array, bias_F: Array) -> Array:
    """x + bias, [..., F]."""
    return x + bias_F


def _add_bias_fwd(x: Array, bias_F: Array) -> tuple[Array, None]:
    return x + bias_F, None


def _add_bias_bwd(_: None, grad: Array) -> tuple[Array, Array]:
    return grad, _sum_of_rows(grad)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)


def _sum_of_rows(x: Array) -> Array:
    """The sum over all dimensions but the last, added up in float32: [..., F] -> [F]."""
    leading = tuple(range(x.ndim - 1))
    if lowering.platform() != "tpu":
        return x.sum(axis=leading)
    ones = jnp.ones((8, *x.shape[:-1]), x.dtype)  # 8: the rows of a tile
    contracted = tuple(1 + axis for axis in leading), leading
    sums_RF = jax.lax.dot_general(
        ones, x, (contracted, ((), ())), preferred_element_type=jnp.float32
    )
    return sums_RF[0].astype(x.dtype)
