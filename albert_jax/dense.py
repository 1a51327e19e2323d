# SPDX-License-Identifier: Apache-2.0
"""The dense layer: what `nn.Dense` computes, with its gradients written out.

JAX's own rule gives a kernel's gradient transposed, which XLA's CPU compiler mends with copies of
the activations; and a TPU adds a bias's gradient up faster in its matrix unit than in its vector
unit. N is the rows of all leading dimensions together, F the features.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax import target


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
    return grad_x, grad_DF, _column_sums(grad_NF)


_affine.defvjp(_affine_fwd, _affine_bwd)


def _column_sums(x_NF: Array) -> Array:
    if target.platform() != "tpu":
        return x_NF.sum(axis=0)
    ones_RN = jnp.ones((8, x_NF.shape[0]), x_NF.dtype)  # 8: the rows of a tile
    sums_RF = jnp.einsum("RN,NF->RF", ones_RN, x_NF, preferred_element_type=jnp.float32)
    return sums_RF[0].astype(x_NF.dtype)
