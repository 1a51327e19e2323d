# SPDX-License-Identifier: Apache-2.0
"""Attention as a pure function; the kernel is chosen by name, or by device and shape.

Letters: B batch, F and T the positions attended from and to, N heads, D head size.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.models.attention_pallas import LONGEST_ROWS, PADDING_LOGIT, rows, splash
from albert_jax.models.dropout import drop, row_seeds
from albert_jax.models.lowering import platform
from albert_jax.utils.errors import UserError


def attend(
    query_BFND: Array,
    key_BTND: Array,
    value_BTND: Array,
    mask_BT: Array,
    *,
    pack_ids_BT: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """Returns softmax(q k^T / sqrt(D) + padding) v, [B, F, N, D] in the query's dtype.

    `mask_BT` is 1 for tokens and 0 for padding. `pack_ids_BT`, of rows that several examples share,
    numbers each token's example from 1 (padding: 0), and a token sees those of its own number only.
    Dropout falls on the probabilities where `dropout_key` is given. The kernels differ in the order
    of additions only: xla runs everywhere, cudnn on GPUs, rows and splash on TPUs; auto takes the
    device's best that can. Raises UserError for a named kernel that cannot do what is asked.
    modeling.py:780-850.
    """
    dropping = dropout_key is not None and dropout_rate > 0
    kernel, lacks = _chosen(implementation, query_BFND, dropping, pack_ids_BT is not None)
    if lacks:
        raise UserError(f"attention {kernel} {lacks}; use attention auto or xla")
    if kernel == "xla":
        return _xla(
            query_BFND, key_BTND, value_BTND, mask_BT, pack_ids_BT, dropout_rate, dropout_key
        )
    dropout = {"dropout_rate": dropout_rate, "dropout_key": dropout_key} if dropping else {}
    return _KERNELS[kernel](query_BFND, key_BTND, value_BTND, mask_BT, **dropout)


def _cudnn(query_BFND: Array, key_BTND: Array, value_BTND: Array, mask_BT: Array) -> Array:
    # Not key lengths, which are faster, but wrong for padding that is not at the end.
    rows, length = mask_BT.shape
    is_key_BxFT = jnp.broadcast_to(
        (mask_BT != 0)[:, None, None, :], (rows, 1, query_BFND.shape[1], length)
    )
    return jax.nn.dot_product_attention(
        query_BFND, key_BTND, value_BTND, mask=is_key_BxFT, implementation="cudnn"
    )


_KERNELS = {"cudnn": _cudnn, "rows": rows, "splash": splash}
_KERNELS_OF = {"gpu": ("cudnn",), "tpu": ("rows", "splash")}  # the better first


def _chosen(
    implementation: str, query_BFND: Array, dropping: bool, packed: bool
) -> tuple[str, str | None]:
    """The kernel, and what keeps it from attending so, in words, or None."""
    if implementation != "auto":
        return implementation, _lacks(implementation, query_BFND, dropping, packed)
    for kernel in _KERNELS_OF.get(platform(), ()):
        if _lacks(kernel, query_BFND, dropping, packed) is None:
            return kernel, None
    return "xla", None


def _lacks(kernel: str, query_BFND: Array, dropping: bool, packed: bool) -> str | None:
    _, length, heads, head_size = query_BFND.shape
    if kernel == "xla":
        return None
    needs = next(device for device, kernels in _KERNELS_OF.items() if kernel in kernels)
    if platform() != needs:
        return f"needs a {needs.upper()}, and this is a {platform().upper()}"
    if packed:
        return "does not keep the examples of a packed row apart"
    if dropping and kernel != "rows":
        return "has no dropout on probabilities (attention_probs_dropout_prob)"
    if query_BFND.dtype != jnp.bfloat16:
        return f"computes in bfloat16, not {query_BFND.dtype}"
    if kernel == "cudnn":
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


def attention_probs(
    query_BFND: Array, key_BTND: Array, mask_BT: Array, pack_ids_BT: Array | None = None
) -> Array:
    """Returns softmax(q k^T / sqrt(D) + padding), float32 [B, N, F, T], whose rows sum to 1."""
    return _probs(query_BFND, key_BTND, _padding(mask_BT, pack_ids_BT))


def _padding(mask_BT: Array, pack_ids_BT: Array | None) -> Array:
    """What is added to the logits, [B, 1, F or 1, T]."""
    seen_BFT = mask_BT[:, None]
    if pack_ids_BT is not None:
        seen_BFT = pack_ids_BT[:, :, None] == pack_ids_BT[:, None]
    return ((1.0 - seen_BFT.astype(jnp.float32)) * PADDING_LOGIT)[:, None]


def _probs(query_BFND: Array, key_BTND: Array, padding_BxFT: Array) -> Array:
    logits_BNFT = jnp.einsum(
        "BFND,BTND->BNFT", query_BFND, key_BTND, preferred_element_type=jnp.float32
    )  # softmax loses ~3 digits in bfloat16
    return jax.nn.softmax(logits_BNFT * _scale(query_BFND) + padding_BxFT, axis=-1)


def _scale(query_BFND: Array) -> float:
    return 1.0 / math.sqrt(query_BFND.shape[-1])


def _xla(
    query_BFND, key_BTND, value_BTND, mask_BT, pack_ids_BT, dropout_rate, dropout_key
) -> Array:
    seeds_B2 = None
    if dropout_key is not None and dropout_rate > 0:
        seeds_B2 = row_seeds(dropout_key, len(mask_BT))
    padding_BxFT = _padding(mask_BT, pack_ids_BT)
    return _weighed(query_BFND, key_BTND, value_BTND, padding_BxFT, seeds_B2, dropout_rate)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _weighed(query_BFND, key_BTND, value_BTND, padding_BxFT, seeds_B2, dropout_rate) -> Array:
    """Values weighed by probabilities, of which some are dropped where there are seeds.

    The backward pass is written out: it keeps the probabilities once, in the values' dtype, and the
    logits' gradient enters its matmuls in that dtype, where autodiff keeps and makes both in
    float32. Its sum over keys is taken from the output, as FlashAttention does.
    """
    return _weighed_fwd(query_BFND, key_BTND, value_BTND, padding_BxFT, seeds_B2, dropout_rate)[0]


def _weighed_fwd(query_BFND, key_BTND, value_BTND, padding_BxFT, seeds_B2, dropout_rate):
    probs_BNFT = _probs(query_BFND, key_BTND, padding_BxFT)
    # Behind a barrier, as XLA would keep what was rounded instead.
    probs_BNFT = jax.lax.optimization_barrier(probs_BNFT.astype(value_BTND.dtype))
    taken_BNFT = _dropped(probs_BNFT, seeds_B2, dropout_rate)
    out_BFND = jnp.einsum("BNFT,BTND->BFND", taken_BNFT, value_BTND)
    return out_BFND, (query_BFND, key_BTND, value_BTND, probs_BNFT, seeds_B2, out_BFND)


def _weighed_bwd(dropout_rate, saved, grad_BFND):
    query_BFND, key_BTND, value_BTND, probs_BNFT, seeds_B2, out_BFND = saved
    taken_BNFT = _dropped(probs_BNFT, seeds_B2, dropout_rate)
    grad_value_BTND = jnp.einsum("BNFT,BFND->BTND", taken_BNFT, grad_BFND)
    grad_taken_BNFT = jnp.einsum("BFND,BTND->BNFT", grad_BFND, value_BTND)
    grad_probs_BNFT = _dropped(grad_taken_BNFT, seeds_B2, dropout_rate).astype(jnp.float32)
    along_BNF1 = jnp.einsum(
        "BFND,BFND->BNF", out_BFND, grad_BFND, preferred_element_type=jnp.float32
    )[..., None]
    grad_logits_BNFT = probs_BNFT * (grad_probs_BNFT - along_BNF1) * _scale(query_BFND)
    grad_logits_BNFT = grad_logits_BNFT.astype(query_BFND.dtype)
    return (
        jnp.einsum("BNFT,BTND->BFND", grad_logits_BNFT, key_BTND),
        jnp.einsum("BNFT,BFND->BTND", grad_logits_BNFT, query_BFND),
        grad_value_BTND,
        None,
        None,
    )


_weighed.defvjp(_weighed_fwd, _weighed_bwd)


def _dropped(x_BNFT: Array, seeds_B2: Array | None, rate: float) -> Array:
    return x_BNFT if seeds_B2 is None else drop(x_BNFT, seeds_B2, rate)
