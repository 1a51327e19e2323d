# SPDX-License-Identifier: Apache-2.0
"""Define Dense, LayerNorm, GELU and attention with gradients written by hand.

They compute the same as `nn.Dense`, `nn.LayerNorm`, `jax.nn.gelu` and `attention_plain.attend`,
with the same parameters. Except for LayerNorm on TPUs, only the backward pass differs from JAX's:

- dense: JAX's rule gives the kernel's gradient transposed, and XLA's CPU compiler then copies the
  activations.
- LayerNorm keeps its input alone. JAX's rule takes three times the passes over the activations. On
  TPUs the kernels of `layer_norm_pallas` compute both passes of the arrays that fit them.
- GELU keeps its input alone. JAX's rule has the forward pass write out the derivative.
- attention keeps the probabilities once, in the step's dtype. JAX's rule keeps them in float32.

A function with a custom gradient has no forward-mode derivative. `ComputeConfig(fused=False)` uses
JAX's rules instead, for jvp and Hessians. `platform` is `Lowering.platform`; it decides how sums
over rows are computed. N is the product of all leading dimensions, F the features.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.models import layer_norm_pallas
from albert_jax.models.attention_plain import Heads, probs, scale
from albert_jax.models.dropout import drop
from albert_jax.models.lowering import (
    matmul,
    product_by_columns,
    product_over_rows,
    sum_of_rows,
)
from albert_jax.models.parameter import parameter

_SQRT_2_OVER_PI, _CUBIC = math.sqrt(2.0 / math.pi), 0.044715  # of GELU's tanh form


# ------------------------------------------------------------------------------------------- dense


class Dense(nn.Module):
    """Compute x kernel + bias in `dtype`, [..., D] -> [..., F].

    Parameters are named as in `nn.Dense`. The kernel is [D, F]; with `by_columns` it is [F, D], and
    there is no gradient by hand. With `writes_input` x is written out before it is read.
    """

    features: int
    dtype: str
    kernel_init: Any
    platform: str
    by_columns: bool = False
    writes_input: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = x.shape[-1], self.features
        shape = shape[::-1] if self.by_columns else shape
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        bias_F = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias_F = (a.astype(self.dtype) for a in (x, kernel, bias_F))
        if self.by_columns:
            return product_by_columns(x, kernel) + bias_F
        return _affine(x, kernel, bias_F, self.platform, self.writes_input)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _affine(x: Array, kernel_DF: Array, bias_F: Array, platform: str, writes_input: bool) -> Array:
    return _affine_fwd(x, kernel_DF, bias_F, platform, writes_input)[0]


def _affine_fwd(
    x: Array, kernel_DF: Array, bias_F: Array, platform: str, writes_input: bool
) -> tuple[Array, tuple[Array, Array]]:
    if writes_input:
        # In here, as the barrier's own derivative is a barrier for the gradient of x.
        x = jax.lax.optimization_barrier(x)
    return matmul("...D,DF->...F", x, kernel_DF, platform) + bias_F, (x, kernel_DF)


def _affine_bwd(
    platform: str, writes_input: bool, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array, Array]:
    x, kernel_DF = saved
    rows_ND, grad_NF = (a.reshape(-1, a.shape[-1]) for a in (x, grad))
    grad_x = matmul("...F,DF->...D", grad, kernel_DF, platform)
    grad_DF = product_over_rows(rows_ND, grad_NF, platform)
    return grad_x, grad_DF, sum_of_rows(grad_NF, platform)


_affine.defvjp(_affine_fwd, _affine_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_bias(x: Array, bias_F: Array, platform: str) -> Array:
    """Return x + bias, [..., F]."""
    return x + bias_F


def _add_bias_fwd(x: Array, bias_F: Array, platform: str) -> tuple[Array, None]:
    return x + bias_F, None


def _add_bias_bwd(platform: str, _: None, grad: Array) -> tuple[Array, Array]:
    return grad, sum_of_rows(grad, platform)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)


# --------------------------------------------------------------------------------------- LayerNorm


class LayerNorm(nn.Module):
    """Normalise in float32, with the original's epsilon and two-pass variance; returns `dtype`.

    Parameters are named as in `nn.LayerNorm`.
    """

    epsilon: float
    dtype: str
    platform: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale_F = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias_F = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        return _layer_norm(x, scale_F, bias_F, self.epsilon, self.dtype, self.platform)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _layer_norm(
    x: Array, scale_F: Array, bias_F: Array, epsilon: float, dtype: str, platform: str
) -> Array:
    if _has_kernel(x, dtype, platform):
        return layer_norm_pallas.forward(x, scale_F, bias_F, epsilon)
    normed, _ = layer_norm_pallas.normed(x, epsilon)
    return (normed * scale_F + bias_F).astype(dtype)


def _layer_norm_fwd(
    x: Array, scale_F: Array, bias_F: Array, epsilon: float, dtype: str, platform: str
) -> tuple[Array, tuple[Array, Array]]:
    return _layer_norm(x, scale_F, bias_F, epsilon, dtype, platform), (x, scale_F)


def _layer_norm_bwd(
    epsilon: float, dtype: str, platform: str, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array, Array]:
    x, scale_F = saved
    if _has_kernel(x, dtype, platform):
        return layer_norm_pallas.backward(x, grad, scale_F, epsilon)
    normed, rate = layer_norm_pallas.normed(x, epsilon)
    grad = grad.astype(jnp.float32)
    scaled = grad * scale_F
    along = (scaled * normed).mean(axis=-1, keepdims=True)
    grad_x = rate * (scaled - scaled.mean(axis=-1, keepdims=True) - normed * along)
    return (
        grad_x.astype(x.dtype),
        sum_of_rows(grad * normed, platform),
        sum_of_rows(grad, platform),
    )


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def _has_kernel(x: Array, dtype: str, platform: str) -> bool:
    return platform == "tpu" and dtype == "bfloat16" and layer_norm_pallas.fits(x)


# -------------------------------------------------------------------------------------------- GELU


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Return x Phi(x) in the tanh form of `jax.nn.gelu`.

    It keeps x alone for the backward pass, so that cuBLAS can compute GELU in the matmul before it.
    """
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


# --------------------------------------------------------------------------------------- attention


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend(
    heads: Heads, padding_BxFT: Array, seeds_B2: Array | None, dropout_rate: float, platform: str
) -> Array:
    """Return values weighted by attention's probabilities, [B, F, N, D].

    The arguments are those of `attention_plain.attend`. In the backward pass, matmuls take the
    logits' gradient in the values' dtype. The sum over keys in it is computed from the output, as
    in FlashAttention.
    """
    return _attend_fwd(heads, padding_BxFT, seeds_B2, dropout_rate, platform)[0]


def _attend_fwd(heads, padding_BxFT, seeds_B2, dropout_rate, platform):
    query_BFND, key_BTND, value_BTND = heads
    probs_BNFT = probs(query_BFND, key_BTND, padding_BxFT)
    # Behind a barrier; otherwise XLA would keep the unrounded values.
    probs_BNFT = jax.lax.optimization_barrier(probs_BNFT.astype(value_BTND.dtype))
    taken_BNFT = drop(probs_BNFT, seeds_B2, dropout_rate)
    out_BFND = matmul("BNFT,BTND->BFND", taken_BNFT, value_BTND, platform)
    return out_BFND, (heads, probs_BNFT, seeds_B2, out_BFND)


def _attend_bwd(dropout_rate, platform, saved, grad_BFND):
    (query_BFND, key_BTND, value_BTND), probs_BNFT, seeds_B2, out_BFND = saved
    taken_BNFT = drop(probs_BNFT, seeds_B2, dropout_rate)
    grad_value_BTND = matmul("BNFT,BFND->BTND", taken_BNFT, grad_BFND, platform)
    grad_taken_BNFT = matmul("BFND,BTND->BNFT", grad_BFND, value_BTND, platform)
    grad_probs_BNFT = drop(grad_taken_BNFT, seeds_B2, dropout_rate).astype(jnp.float32)
    along_BNF1 = jnp.einsum(
        "BFND,BFND->BNF", out_BFND, grad_BFND, preferred_element_type=jnp.float32
    )[..., None]
    grad_logits_BNFT = probs_BNFT * (grad_probs_BNFT - along_BNF1) * scale(query_BFND)
    grad_logits_BNFT = grad_logits_BNFT.astype(query_BFND.dtype)
    grad_heads = Heads(
        matmul("BNFT,BTND->BFND", grad_logits_BNFT, key_BTND, platform),
        matmul("BNFT,BFND->BTND", grad_logits_BNFT, query_BFND, platform),
        grad_value_BTND,
    )
    return grad_heads, None, None


attend.defvjp(_attend_fwd, _attend_bwd)
