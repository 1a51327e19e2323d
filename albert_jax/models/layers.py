# SPDX-License-Identifier: Apache-2.0
"""Define the layers of the network: dense layers, LayerNorm, dropout, activations.

`ComputeConfig.fused` chooses between flax's layers and those of `fused.py`, whose gradients are
written by hand. Parameters have the same names, shapes and initial values in both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from albert_jax.config.model import AlbertConfig, ComputeConfig
from albert_jax.models import fused
from albert_jax.models.dropout import Dropout
from albert_jax.models.lowering import Lowering, matmul_dtype

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(nn.gelu, approximate=True),  # Google's "gelu", modeling.py:299-312
    "gelu_erf": partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


class Part(nn.Module):
    """Define a part of the network.

    `config` says what it computes, `compute` how, and `lowering` for which devices.
    """

    config: AlbertConfig
    compute: ComputeConfig = ComputeConfig()
    lowering: Lowering = Lowering()

    @property
    def dtype(self) -> str:
        """The type of matmuls and activations, "float32" or "bfloat16"."""
        return matmul_dtype(self.compute.dtype, self.lowering.platform)


def initializer(config: AlbertConfig) -> nn.initializers.Initializer:
    """Return the initializer of kernels and tables."""
    # Cut at two sigma and not rescaled, as tf.truncated_normal_initializer.
    return nn.initializers.truncated_normal(config.initializer_range)


def dense(
    part: Part, features: int, name: str | None = None, *, narrows: bool = False
) -> nn.Module:
    """Return a dense layer of `part`, x kernel + bias in the step's dtype, [..., D] -> [..., F].

    `narrows` says that x is an activation's output and wider than the result.
    """
    dtype, kernel_init = part.dtype, initializer(part.config)
    platform, by_columns = part.lowering.platform, part.lowering.by_columns
    if part.compute.fused or by_columns:
        writes = part.lowering.writes_activations and narrows
        return fused.Dense(features, dtype, kernel_init, platform, by_columns, writes, name=name)
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, name=name)


def layer_norm(part: Part, name: str | None = None, *, dtype: str | None = None) -> nn.Module:
    """Return LayerNorm as a layer of `part`.

    It computes in float32 and returns `dtype` (None: the step's).
    """
    epsilon, dtype = part.config.layer_norm_eps, dtype or part.dtype
    if part.compute.fused:
        return fused.LayerNorm(epsilon, dtype, part.lowering.platform, name=name)
    # Two passes, as in the original: E[x^2] - E[x]^2 cancels.
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)


def dropout(part: Part, rate: float | None = None) -> Dropout:
    """Return dropout as a layer of `part`, by default at the rate of hidden states."""
    rate = part.config.hidden_dropout_prob if rate is None else rate
    return Dropout(rate, part.lowering.axis_name)


def activation(part: Part) -> Callable[[Array], Array]:
    """Return the configured activation function."""
    name = part.config.hidden_act
    return fused.gelu if part.compute.fused and name == "gelu" else ACTIVATIONS[name]


def add_bias(part: Part, x: Array, bias_F: Array) -> Array:
    """Return x + bias, [..., F]."""
    return fused.add_bias(x, bias_F, part.lowering.platform) if part.compute.fused else x + bias_F
