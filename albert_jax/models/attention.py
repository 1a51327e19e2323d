# SPDX-License-Identifier: Apache-2.0
"""Compute attention as a pure function; the kernel is chosen by name, or by device and shape.

Letters: B batch, F and T the positions attended from and to, N heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config.model import ComputeConfig
from albert_jax.models import attention_plain, fused
from albert_jax.models.attention_pallas import LONGEST_ROWS, rows, splash
from albert_jax.models.attention_plain import Heads
from albert_jax.models.dropout import RowDropout
from albert_jax.models.lowering import Lowering, gpus_have_attention
from albert_jax.utils.errors import UserError


def attend(
    heads: Heads,
    mask_BT: Array,
    *,
    pack_ids_BT: Array | None = None,
    dropout: RowDropout | None = None,
    compute: ComputeConfig = ComputeConfig(),
    lowering: Lowering = Lowering(),
) -> Array:
    """Return softmax(q k^T / sqrt(D) + padding) v, [B, F, N, D] in the query's dtype.

    `mask_BT` is 1 for tokens and 0 for padding. `pack_ids_BT`, for rows that several examples
    share, numbers each token's example from 1 (padding: 0); a token sees only those of its own
    number. Dropout applies to the probabilities. The kernels of `compute.attention` differ in the
    order of additions only: xla runs everywhere, cudnn on GPUs, rows and splash on TPUs; auto takes
    the platform's best kernel that can do what is asked. Raises UserError if a named kernel cannot.
    modeling.py:780-850.
    """
    asked = _Asked(
        heads.query_BFND.shape,
        heads.query_BFND.dtype,
        lowering.platform,
        dropping=dropout is not None,
        packed=pack_ids_BT is not None,
        fused=compute.fused,
    )
    kernel = _chosen(compute.attention, asked)
    if kernel == "xla":
        padding_BxFT = attention_plain.padding(mask_BT, pack_ids_BT)
        rate, seeds_B2 = dropout or (0.0, None)
        if compute.fused:
            return fused.attend(heads, padding_BxFT, seeds_B2, rate, lowering.platform)
        return attention_plain.attend(heads, padding_BxFT, seeds_B2, rate)
    return _KERNELS[kernel](heads, mask_BT, **({} if dropout is None else {"dropout": dropout}))


def _cudnn(heads: Heads, mask_BT: Array) -> Array:
    # Not key lengths, which are faster, but wrong if padding is not at the end.
    rows, length = mask_BT.shape
    is_key_BxFT = jnp.broadcast_to(
        (mask_BT != 0)[:, None, None, :], (rows, 1, heads.query_BFND.shape[1], length)
    )
    return jax.nn.dot_product_attention(*heads, mask=is_key_BxFT, implementation="cudnn")


_KERNELS = {"cudnn": _cudnn, "rows": rows, "splash": splash}
_KERNELS_OF = {"gpu": ("cudnn",), "tpu": ("rows", "splash")}  # the better first


@dataclass(frozen=True)
class _Asked:
    """Describe what a kernel is to compute."""

    shape: tuple[int, ...]  # of the queries, [B, F, N, D]
    dtype: Any
    platform: str
    dropping: bool
    packed: bool
    fused: bool


def _chosen(name: str, asked: _Asked) -> str:
    """Return the kernel of that name, or for "auto" the best that can do what is asked."""
    if name != "auto":
        if lacks := _lacks(name, asked):
            raise UserError(f"attention {name} {lacks}; use attention auto or xla")
        return name
    able = (k for k in _KERNELS_OF.get(asked.platform, ()) if _lacks(k, asked) is None)
    return next(able, "xla")


def _lacks(kernel: str, asked: _Asked) -> str | None:
    """Return why the kernel cannot do what is asked, in words, or None."""
    _, length, heads, head_size = asked.shape
    if kernel == "xla":
        return None
    needs = next(device for device, kernels in _KERNELS_OF.items() if kernel in kernels)
    if asked.platform != needs:
        return f"needs a {needs.upper()}, and this is a {asked.platform.upper()}"
    if not asked.fused:
        return "has no derivatives of JAX's own (fused False)"
    if asked.packed:
        return "does not keep the examples of a packed row apart"
    if asked.dropping and kernel != "rows":
        return "has no dropout on probabilities (attention_probs_dropout_prob)"
    if asked.dtype != jnp.bfloat16:
        return f"computes in bfloat16, not {asked.dtype}"
    if kernel == "cudnn":
        if not gpus_have_attention():
            return "needs a GPU of NVIDIA's, Ampere or later"
        fits = length % 2 == 0 and head_size % 8 == 0 and head_size <= 128
        takes = "an even number of tokens and heads of 8, 16, …, 128"
    elif kernel == "rows":
        blocks = (heads * head_size) % 128 == 0 and 128 % head_size == 0
        fits = length % 128 == 0 and length <= LONGEST_ROWS and blocks
        takes = f"128, 256, …, {LONGEST_ROWS} tokens and heads that make up 128, 256, … together"
    else:
        fits, takes = length % 128 == 0, "a multiple of 128 tokens"
    given = f"{length} tokens and {heads} heads of {head_size}"
    return None if fits else f"takes {takes}, not {given}"
