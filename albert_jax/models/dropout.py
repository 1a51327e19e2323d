# SPDX-License-Identifier: Apache-2.0
"""Apply dropout whose choices are a hash of the position and of a seed for each row of the batch.

Therefore a row loses the same values however many devices share the batch, and a kernel can
recompute its choices instead of keeping them. They cost a tenth of drawing random numbers. B is the
batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# As signed words: 2^32 over the golden ratio, which sets neighbours apart, and the two factors of
# C. Wellons's "lowbias32".
SPREAD, *_FACTORS = np.array([0x9E3779B1, 0x21F0AAAD, 0xD35A2D97], np.uint32).view(np.int32)


class Dropout(nn.Module):
    """Set a fraction of x, [B, ...], to zero and scale the rest up; called as `nn.Dropout` is.

    `axis_name` is the axis of devices that share the batch, None if this one has all of it.
    """

    rate: float
    axis_name: str | None = None
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: Array, deterministic: bool | None = None) -> Array:
        if nn.merge_param("deterministic", self.deterministic, deterministic) or not self.rate:
            return x
        seeds_B2 = row_seeds(self.make_rng("dropout"), x.shape[0], self.axis_name)
        return drop(x, seeds_B2, self.rate)


class RowDropout(NamedTuple):
    """Hold the fraction to set to zero, and the seeds of the rows (`row_seeds`) that choose it."""

    rate: float
    seeds_B2: Array


def drop(x: Array, seeds_B2: Array | None, rate: float) -> Array:
    """Return x [B, ...] with dropout by its rows' seeds; without seeds, x."""
    if seeds_B2 is None:
        return x
    place = jnp.arange(math.prod(x.shape[1:]), dtype=jnp.int32).reshape(1, *x.shape[1:])
    first, second = (seeds_B2[:, i].reshape(-1, *[1] * (x.ndim - 1)) for i in range(2))
    words = mixed(place * SPREAD + first, second)
    is_kept = shifted(words, 8) >= round(rate * (1 << 24))
    return jnp.where(is_kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def row_seeds(key: Array, rows: int, axis_name: str | None = None) -> Array:
    """Return two words for each of this device's rows, int32[rows, 2].

    Each row of the batch has its own words, also if the devices of `axis_name` share the batch.
    """
    everyones = rows * jax.lax.psum(1, axis_name) if axis_name else rows
    seeds = jax.lax.bitcast_convert_type(
        jax.random.bits(key, (everyones, 2), jnp.uint32), jnp.int32
    )
    if axis_name:
        seeds = jax.lax.dynamic_slice_in_dim(seeds, jax.lax.axis_index(axis_name) * rows, rows)
    return seeds


def mixed(x: Array, second: Array) -> Array:
    """Return words that look random, int32, from words that differ.

    The operations are on integers, and a Pallas kernel has them too.
    """
    x = (x ^ shifted(x, 16)) * _FACTORS[0] + second
    x = (x ^ shifted(x, 15)) * _FACTORS[1]
    return x ^ shifted(x, 16)


def shifted(x: Array, bits: int) -> Array:
    """Return words shifted to the right, filled with zeros."""
    return jax.lax.shift_right_logical(x, np.int32(bits))
