# SPDX-License-Identifier: Apache-2.0
"""Compute attention with Pallas kernels on TPU.

`rows` attends to all of a row at once, for rows that are short enough; JAX's splash attention is
for longer ones. `rows` reads queries, keys and values as the projections write them, [B, S, N * D],
and writes [B, S, N * D]: no transpose, and no head padded to 128 lanes in memory. The backward pass
recomputes the probabilities from the logarithms of the softmax's sums, one number for each query,
as FlashAttention does (arXiv:2205.14135). Dropout's choices are recomputed too, from a hash of the
position and the row's seed, which does not depend on how many devices share the rows. Letters as in
`attention`; L is the number of lanes of a block, which hold L / D heads.

One step of a kernel's grid takes a block of several rows. In the program, its heads are one stage
behind another. Therefore the compiler can run one head's matmuls on the matrix unit while the
vector unit computes another head's softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.models.attention_plain import PADDING_LOGIT, Heads
from albert_jax.models.dropout import SPREAD, RowDropout, mixed

LANES = 128
LOG2_E = math.log2(math.e)
LONGEST_ROWS = 512  # a head's float32 probabilities and their gradients, in the chip's own memory
_TOKENS = 1024  # of the rows in one step of the grid, which itself costs some 500 cycles
_STAGES = 3  # of a head: matmuls into its probabilities, those, matmuls out of them
_BY_HEAD = np.int32(0x21F0AAAD)  # odd; sets the heads of a row apart


def rows(
    heads: Heads, mask_BT: Array, *, dropout: RowDropout | None = None, interpret: bool = False
) -> Array:
    """Return attention with all of a row's keys at once, forward and backward in one kernel each.

    Rows have a multiple of 128 tokens, up to `LONGEST_ROWS`; heads must fill 128 lanes, in pairs
    for example. Dropout applies to the probabilities.
    """
    shape = heads.query_BFND.shape
    given = [x.reshape(*shape[:2], -1) for x in heads]
    given.append(mask_BT.astype(jnp.float32))
    if dropout is not None:
        given.append(dropout.seeds_B2)
    out_BFH = _rows(shape[-1], dropout.rate if dropout else 0.0, interpret, *given)
    return out_BFH.reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rows(head_size, dropout_rate, interpret, *inputs):
    return _rows_fwd(head_size, dropout_rate, interpret, *inputs)[0]


def _rows_fwd(head_size, dropout_rate, interpret, *inputs):
    out_BFH, sums = _call(_forward, head_size, dropout_rate, interpret, inputs)
    return out_BFH, (inputs, out_BFH, sums)


def _rows_bwd(head_size, dropout_rate, interpret, kept, cotangent_BFH):
    inputs, *outs = kept
    grads = _call(_backward, head_size, dropout_rate, interpret, inputs, cotangent_BFH, *outs)
    return (*grads, *[None] * (len(inputs) - len(grads)))


_rows.defvjp(_rows_fwd, _rows_bwd)


def _call(kernel, head_size, dropout_rate, interpret, inputs, *of_backward):
    """Run `kernel` on a few rows at a time and each block of heads.

    `inputs` are q, k, v [B, S, N * D], the mask [B, S] and, for dropout, the rows' seeds [B, 2].
    The forward pass returns the output and the logarithms of the softmax's sums [B, N * D / L, L /
    D, S]. The backward pass takes these and the output's cotangent, and returns the gradients of q,
    k and v.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    query_BFH, key_BTH, value_BTH, mask_BT, *seeds_B2 = inputs
    rows, length, hidden = query_BFH.shape
    lanes = max(LANES, head_size) if hidden % LANES == 0 else hidden
    blocks, heads = hidden // lanes, lanes // head_size
    step = next(n for n in range(_TOKENS // length, 0, -1) if rows % n == 0)
    by_head = pl.BlockSpec((step, length, lanes), lambda row, block: (row, 0, block))
    by_query = pl.BlockSpec((step, None, heads, length), lambda row, block: (row, block, 0, 0))
    # Keys run down, queries across: sums over keys are then cheap, and so is this column.
    padding_BT1 = ((1.0 - mask_BT) * (PADDING_LOGIT * LOG2_E))[:, :, None]
    like_query = jax.ShapeDtypeStruct(query_BFH.shape, query_BFH.dtype)
    sums = jax.ShapeDtypeStruct((rows, blocks, heads, length), jnp.float32)
    matmuls = 5 if of_backward else 2
    return pl.pallas_call(
        partial(kernel, head_size=head_size, dropout_rate=dropout_rate),
        grid=(rows // step, blocks),
        in_specs=[
            *[pl.BlockSpec(memory_space=pltpu.SMEM)] * len(seeds_B2),
            by_head,
            by_head,
            by_head,
            pl.BlockSpec((step, length, 1), lambda row, block: (row, 0, 0)),
            *([by_head, by_head, by_query] if of_backward else []),
        ],
        out_specs=[by_head] * 3 if of_backward else [by_head, by_query],
        out_shape=[like_query] * 3 if of_backward else [like_query, sums],
        cost_estimate=pl.CostEstimate(
            flops=2 * matmuls * rows * length * length * hidden,
            transcendentals=rows * length * length * hidden // head_size,
            bytes_accessed=(8 if of_backward else 4) * query_BFH.nbytes,
        ),
        interpret=interpret,
        # Of a chip with two cores, as v4 and v5p, each then takes half of the grid.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        name=f"attention_rows_{kernel.__name__.strip('_')}",
    )(
        *[seeds.reshape(-1) for seeds in seeds_B2],
        query_BFH,
        key_BTH,
        value_BTH,
        padding_BT1,
        *of_backward,
    )


def _forward(*refs, head_size, dropout_rate):
    *seeds_ref, query_ref, key_ref, value_ref, padding_ref, out_ref, sums_ref = refs
    heads = _heads(query_ref.shape[-1], head_size)

    def attended(row, value_LT, outs, number):
        head = heads[number]
        logits_TF = _logits(query_ref[row], key_ref[row], padding_ref[row], head)
        yield
        largest_1F = logits_TF.max(axis=0, keepdims=True)
        exps_TF = jnp.exp2(logits_TF - largest_1F)
        sum_1F = exps_TF.sum(axis=0, keepdims=True)
        drop = _dropout(seeds_ref, row, query_ref.shape, head, dropout_rate)
        kept_TF = drop(exps_TF).astype(value_LT.dtype)
        yield
        head_DF = _dot(value_LT[head], kept_TF, (1, 0))
        outs.append(head_DF * (1.0 / ((1.0 - dropout_rate) * sum_1F)))
        sums_ref[row, number : number + 1] = largest_1F + jnp.log2(sum_1F)
        if len(outs) == len(heads):
            out_ref[row] = jnp.concatenate(outs).T.astype(out_ref.dtype)

    rows = [(row, value_ref[row].T, []) for row in range(len(query_ref))]
    _staggered([attended(*row, number) for row in rows for number in range(len(heads))])


def _backward(*refs, head_size, dropout_rate):
    *seeds_ref, query_ref, key_ref, value_ref, padding_ref = refs[:-6]
    cotangent_ref, out_ref, sums_ref, *grad_refs = refs[-6:]
    heads, dtype = _heads(query_ref.shape[-1], head_size), query_ref.dtype
    # The remaining probabilities are scaled up for those dropped, by one multiplication at the end.
    rescale = 1.0 / (1.0 - dropout_rate)
    scale = rescale / math.sqrt(head_size)

    def transposed(row):
        cotangent_LF = cotangent_ref[row].T
        # Summed over a head's lanes: the mean over the keys of the probabilities' gradient.
        weighed_LF = cotangent_LF.astype(jnp.float32) * out_ref[row].T.astype(jnp.float32)
        return query_ref[row].T, key_ref[row].T, cotangent_LF, weighed_LF

    def differentiated(row, of_row, grads, number):
        head, (query_LF, key_LT, cotangent_LF, weighed_LF) = heads[number], of_row
        logits_TF = _logits(query_ref[row], key_ref[row], padding_ref[row], head)
        of_kept_TF = _dot(value_ref[row], _only(head, cotangent_ref[row]), (1, 1))
        yield
        probs_TF = jnp.exp2(logits_TF - sums_ref[row, number : number + 1])
        drop = _dropout(seeds_ref, row, query_ref.shape, head, dropout_rate)
        kept_TF = drop(probs_TF).astype(dtype)
        mean_1F = weighed_LF[head].sum(axis=0, keepdims=True) / rescale
        of_logits_TF = (probs_TF * (drop(of_kept_TF) - mean_1F)).astype(dtype)
        yield
        of_value_DT = _dot(cotangent_LF[head], kept_TF, (1, 1)) * rescale
        of_key_DT = _dot(query_LF[head], of_logits_TF, (1, 1)) * scale
        of_query_DF = _dot(key_LT[head], of_logits_TF, (1, 0)) * scale
        grads.append((of_query_DF, of_key_DT, of_value_DT))
        if len(grads) == len(heads):
            for ref, grad_DS in zip(grad_refs, zip(*grads, strict=True), strict=True):
                ref[row] = jnp.concatenate(grad_DS).T.astype(dtype)

    rows = [(row, transposed(row), []) for row in range(len(query_ref))]
    _staggered([differentiated(*row, number) for row in rows for number in range(len(heads))])


def _staggered(heads: Sequence[Iterator[None]]) -> None:
    """Run each head's stages, each one stage behind the head before it."""
    for turn in range(len(heads) + _STAGES - 1):
        for head in reversed(heads[max(0, turn - _STAGES + 1) : turn + 1]):
            next(head, None)


def _dropout(seeds_ref, row, shape, lanes, rate):
    """Set what dropout removes from a head's [T, F] to zero; without seeds, nothing.

    `row` and `lanes` are the head's in this block of that shape, [rows, S, L].
    """
    if not seeds_ref:
        return lambda x_TF: x_TF
    from jax.experimental import pallas as pl

    head_size = lanes.stop - lanes.start
    heads, number = shape[-1] // head_size, lanes.start // head_size
    row, head = pl.program_id(0) * shape[0] + row, pl.program_id(1) * heads + number
    first, second = (seeds_ref[0][2 * row + i] for i in range(2))
    return lambda x_TF: jnp.where(is_kept(first, second, head, x_TF.shape, rate), x_TF, 0.0)


def is_kept(first, second, head, shape, rate):
    """Return which probabilities of a head dropout keeps, bool[T, F], from a row's two seeds.

    The seeds are int32. It is the same hash as for all dropout, with 16 bits for each position: the
    second half of the keys has the words' upper bits. They are compared as signed words, at once
    and without a mask.
    """
    half, queries = shape[0] // 2, shape[1]
    key_T1 = jax.lax.broadcasted_iota(jnp.int32, (half, 1), 0) * queries
    query_1F = jax.lax.broadcasted_iota(jnp.int32, (1, queries), 1)
    place_TF = (key_T1 * SPREAD + (first + head * _BY_HEAD)) + query_1F * SPREAD
    words_TF = mixed(place_TF, second)
    least = np.int32((round(rate * 0x10000) - 0x8000) << 16)
    return jnp.concatenate([words_TF << 16, words_TF]) >= least


def _heads(lanes, head_size):
    """Return the lanes of each head of a block."""
    return [slice(start, start + head_size) for start in range(0, lanes, head_size)]


def _only(head, x_SL):
    """Return `x` with zeros in the other heads' lanes.

    A matmul over a few lanes costs the same as one over all 128, and needs them shifted in
    addition. Of a transpose, the head's rows are kept.
    """
    lane_1L = jax.lax.broadcasted_iota(jnp.int32, (1, x_SL.shape[1]), 1)
    return jnp.where((lane_1L >= head.start) & (lane_1L < head.stop), x_SL, jnp.zeros_like(x_SL))


def _logits(query_FL, key_TL, padding_T1, head):
    """Return the logits of a head to the base 2, f32[T, F]; their softmax uses `exp2`.

    The queries are scaled, not the logits. If a block has lanes of other heads, the matmul adds the
    padding: in one of these lanes, keys hold the padding and queries 1.
    """
    lanes, head_size = query_FL.shape[1], head.stop - head.start
    scaled_FL = query_FL.astype(jnp.float32) * (LOG2_E / math.sqrt(head_size))
    if lanes == head_size:
        return _dot(key_TL, scaled_FL.astype(key_TL.dtype), (1, 1)) + padding_T1
    # Chosen in float32: libtpu's profile aborts on choices between columns in bfloat16.
    is_spare_1L = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1) == head.stop % lanes
    ones_FL = jnp.where(is_spare_1L, 1.0, _only(head, scaled_FL))
    padded_TL = jnp.where(is_spare_1L, padding_T1, key_TL.astype(jnp.float32))
    return _dot(padded_TL.astype(key_TL.dtype), ones_FL.astype(key_TL.dtype), (1, 1))


def _dot(a, b, axes):
    """Return sums over an axis of each array, in float32."""
    contracted = ((axes[0],), (axes[1],))
    return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


# ------------------------------------------------------------------------------------------ splash


def splash(heads: Heads, mask_BT: Array, *, interpret: bool = False) -> Array:
    """Return JAX's splash attention; S is a multiple of 128. `interpret` runs it on any device."""
    query_BFND, key_BTND, value_BTND = heads
    scale = 1.0 / math.sqrt(query_BFND.shape[-1])
    # In float32, as 1/sqrt(128) is not a bfloat16.
    scaled_BFND = (query_BFND.astype(jnp.float32) * scale).astype(query_BFND.dtype)
    return _splash(scaled_BFND, key_BTND, value_BTND, mask_BT, interpret)


def _splash(
    query_BFND: Array, key_BTND: Array, value_BTND: Array, mask_BT: Array, interpret: bool
) -> Array:
    # Imported here, because no other device needs Pallas, and importing it takes a second.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    _, length, heads, _ = query_BFND.shape
    block = next(size for size in (512, 384, 256, 128) if length % size == 0)
    made = kernel.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((length, length))] * heads),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        block_sizes=kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            use_fused_bwd_kernel=True,
        ),
    )

    def row(query_FND: Array, key_TND: Array, value_TND: Array, mask_T: Array) -> Array:
        # All attend, padding too, and to tokens alone, as with the other kernels.
        segments = kernel.SegmentIds(jnp.ones_like(mask_T), (mask_T != 0).astype(mask_T.dtype))
        by_head = (x.swapaxes(0, 1) for x in (query_FND, key_TND, value_TND))
        return made(*by_head, segment_ids=segments).swapaxes(0, 1)

    return jax.vmap(row)(query_BFND, key_BTND, value_BTND, mask_BT)
