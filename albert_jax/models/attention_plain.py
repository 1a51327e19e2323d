# SPDX-License-Identifier: Apache-2.0
"""Compute attention as the paper writes it, for XLA to compile and JAX to differentiate.

Letters: B batch, F and T the positions attended from and to, N heads, D head size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.models.dropout import drop

# Added to the logits of padded keys; the original's constant (modeling.py:828). transformers uses
# the type's minimum, which differs only for rows whose keys are all padding.
PADDING_LOGIT = -10000.0


class Heads(NamedTuple):
    """Hold queries, keys and values, divided into heads."""

    query_BFND: Array
    key_BTND: Array
    value_BTND: Array


def attend(heads: Heads, padding_BxFT: Array, seeds_B2: Array | None, dropout_rate: float) -> Array:
    """Return softmax(q k^T / sqrt(D) + padding) v, [B, F, N, D] in the values' dtype.

    If there are seeds, dropout applies to the probabilities, by each row's seeds.
    """
    query_BFND, key_BTND, value_BTND = heads
    probs_BNFT = probs(query_BFND, key_BTND, padding_BxFT).astype(value_BTND.dtype)
    probs_BNFT = drop(probs_BNFT, seeds_B2, dropout_rate)
    return jnp.einsum("BNFT,BTND->BFND", probs_BNFT, value_BTND)


def probs(query_BFND: Array, key_BTND: Array, padding_BxFT: Array) -> Array:
    """Return softmax(q k^T / sqrt(D) + padding), float32 [B, N, F, T], whose rows sum to 1."""
    logits_BNFT = jnp.einsum(
        "BFND,BTND->BNFT", query_BFND, key_BTND, preferred_element_type=jnp.float32
    )  # softmax loses ~3 digits in bfloat16
    return jax.nn.softmax(logits_BNFT * scale(query_BFND) + padding_BxFT, axis=-1)


def scale(query_BFND: Array) -> float:
    """Return 1 / sqrt(D)."""
    return 1.0 / math.sqrt(query_BFND.shape[-1])


def padding(mask_BT: Array, pack_ids_BT: Array | None = None) -> Array:
    """Return what is added to the logits, [B, 1, F or 1, T]: 0 for a token that is seen.

    `mask_BT` is 1 for tokens. `pack_ids_BT` numbers the example of each token; a token sees only
    those of its own example.
    """
    seen_BFT = mask_BT[:, None]
    if pack_ids_BT is not None:
        seen_BFT = pack_ids_BT[:, :, None] == pack_ids_BT[:, None]
    return ((1.0 - seen_BFT.astype(jnp.float32)) * PADDING_LOGIT)[:, None]
