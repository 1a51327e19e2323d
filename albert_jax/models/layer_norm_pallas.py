# SPDX-License-Identifier: Apache-2.0
"""Compute LayerNorm with Pallas kernels on TPU.

XLA computes LayerNorm anew in each matmul that reads it, and its gradient in several passes. These
kernels read and write each array once. They compute in float32 what `fused.LayerNorm` computes
without them. Products and sums are in another order, and the scale's and bias's gradients are
summed in float32, where `sum_of_rows` on a TPU may round what it adds to bfloat16. N is the number
of rows, F the features, R the rows of a tile.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

LANES = 128
_TILE = 16  # rows of a tile of bfloat16, which are normalised at a time
_UNROLLED = 8  # tiles in a turn of the loop: the sums of one overlap with the products of another
_SUBLANES = 8  # rows of a tile of float32
_BLOCK_BYTES = 2**20  # of one array in a step of the grid


def fits(x: Array) -> bool:
    """Return whether the kernels take an array [..., F].

    It has to be bfloat16, with 128, 256, … rows and 256, 384, …, 4096 features.
    """
    features = x.shape[-1]
    is_wide = features % LANES == 0 and features > LANES
    return x.dtype == jnp.bfloat16 and is_wide and _block_rows(x) > 0


def forward(
    x: Array, scale_F: Array, bias_F: Array, epsilon: float, *, interpret: bool = False
) -> Array:
    """Return the normalised rows times the scale, plus the bias, [..., F] -> [..., F]."""
    (y_NF,) = _call(_forward, epsilon, interpret, (x,), (scale_F, bias_F))
    return y_NF.reshape(x.shape)


def backward(
    x: Array, grad: Array, scale_F: Array, epsilon: float, *, interpret: bool = False
) -> tuple[Array, Array, Array]:
    """Return the gradients of x [..., F], scale [F] and bias [F], given that of the output."""
    grad_NF, *sums = _call(_backward, epsilon, interpret, (x, grad), (scale_F,))
    grad_scale_F, grad_bias_F = (each.sum(axis=(0, 1)) for each in sums)
    return grad_NF.reshape(x.shape), grad_scale_F, grad_bias_F


def normed(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Return float32 rows with mean 0 and variance 1, and 1 / their standard deviations."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    # In float32 1e-12 is far below the variance's rounding: a constant row gives 0, not NaN.
    rate = jax.lax.rsqrt(variance + epsilon)
    return centred * rate, rate


def _block_rows(x: Array) -> int:
    """Return how many rows one step of the grid takes; 0 if the rows cannot be divided so."""
    features = x.shape[-1]
    rows, unit = x.size // features, _TILE * _UNROLLED
    if not isinstance(rows, int):  # exported for any batch
        return 0
    most = _BLOCK_BYTES // (x.dtype.itemsize * features) // unit * unit
    return next((n for n in range(most, 0, -unit) if rows % n == 0), 0) if rows else 0


def _call(kernel, epsilon, interpret, arrays, parameters):
    """Run `kernel` on blocks of rows.

    `arrays` are [..., F], and `parameters` [F]. The kernel returns an array [N, F]; the backward
    pass also sums over the rows of each block, two times f32[blocks, 8, F], whose eight rows are
    still to be added.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    x, features, block_rows = arrays[0], arrays[0].shape[-1], _block_rows(arrays[0])
    rows = x.size // features
    blocks = rows // block_rows
    by_rows = pl.BlockSpec((block_rows, features), lambda block: (block, 0))
    whole = pl.BlockSpec((1, features), lambda block: (0, 0))
    by_block = pl.BlockSpec((None, _SUBLANES, features), lambda block: (block, 0, 0))
    sums_shape = jax.ShapeDtypeStruct((blocks, _SUBLANES, features), jnp.float32)
    sums = 2 if kernel is _backward else 0
    return pl.pallas_call(
        partial(kernel, epsilon=epsilon),
        grid=(blocks,),
        in_specs=[*[by_rows] * len(arrays), *[whole] * len(parameters)],
        out_specs=[by_rows, *[by_block] * sums],
        out_shape=[jax.ShapeDtypeStruct((rows, features), x.dtype), *[sums_shape] * sums],
        # FLOPs are of matmuls, of which there are none. The sums, a few percent, are left out.
        cost_estimate=pl.CostEstimate(
            flops=0, transcendentals=0, bytes_accessed=(len(arrays) + 1) * x.nbytes
        ),
        interpret=interpret,
        # Of a chip with two cores, as v4 and v5p, each then takes half of the grid.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        name=f"layer_norm_{kernel.__name__.strip('_')}",
    )(
        *[array.reshape(rows, features) for array in arrays],
        *[parameter_F[None].astype(jnp.float32) for parameter_F in parameters],
    )


def _forward(x_ref, scale_ref, bias_ref, y_ref, *, epsilon):
    scale_1F, bias_1F = scale_ref[...], bias_ref[...]

    def normalise(rows, _):
        normed_RF, _ = normed(x_ref[rows], epsilon)
        y_ref[rows] = (normed_RF * scale_1F + bias_1F).astype(y_ref.dtype)

    _for_tiles(x_ref.shape[0], normalise, None)


def _backward(x_ref, grad_ref, scale_ref, grad_x_ref, scale_sums_ref, bias_sums_ref, *, epsilon):
    scale_1F = scale_ref[...]

    def add(sums_8F, x_RF):
        for first in range(0, _TILE, _SUBLANES):
            sums_8F += x_RF[first : first + _SUBLANES]
        return sums_8F

    def differentiate(rows, sums):
        normed_RF, rate_R1 = normed(x_ref[rows], epsilon)
        grad_RF = grad_ref[rows].astype(jnp.float32)
        of_scale_RF, scaled_RF = grad_RF * normed_RF, grad_RF * scale_1F
        along_R1 = (of_scale_RF * scale_1F).mean(axis=-1, keepdims=True)
        mean_R1 = scaled_RF.mean(axis=-1, keepdims=True)
        grad_x_RF = rate_R1 * (scaled_RF - mean_R1 - normed_RF * along_R1)
        grad_x_ref[rows] = grad_x_RF.astype(grad_x_ref.dtype)
        return add(sums[0], of_scale_RF), add(sums[1], grad_RF)

    zeros_8F = jnp.zeros(bias_sums_ref.shape, jnp.float32)
    sums = _for_tiles(x_ref.shape[0], differentiate, (zeros_8F, zeros_8F))
    scale_sums_ref[...], bias_sums_ref[...] = sums


def _for_tiles(num_rows, of_tile, start):
    """Call `of_tile` for each tile, with its slice of rows and the previous call's result."""
    from jax.experimental import pallas as pl

    def turn(number, last):
        return of_tile(pl.ds(number * _TILE, _TILE), last)

    return jax.lax.fori_loop(0, num_rows // _TILE, turn, start, unroll=_UNROLLED)
