# SPDX-License-Identifier: Apache-2.0
"""What inference computes, as pure functions of parameters and ids: `inference` compiles them,
`serving` exports them.

Letters as in `model`; K the pieces answered for a masked position. Float32 is multiplied in full
wherever it runs: TPUs and some GPUs would otherwise multiply it in less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.models.albert import AlbertForPretraining, PretrainingOutput, init_params
from albert_jax.models.attention import attention_probs

Pool = Literal["cls", "mean"]


def forward(
    model: AlbertForPretraining,
    params: Mapping[str, Any],
    input_ids_BS: Array,
    input_mask_BS: Array,
    segment_ids_BS: Array,
    masked_lm_positions_BP: Array | None = None,
    *,
    collect_layers: bool = False,
) -> PretrainingOutput:
    """The model's output; None for what hangs on a pooler or head that `params` lacks."""
    complete, lacking = _with_zeros(model, params)
    with jax.default_matmul_precision("highest"):
        output = model.apply(
            {"params": complete},
            input_ids_BS,
            input_mask_BS,
            segment_ids_BS,
            masked_lm_positions_BP,
            collect_layers=collect_layers,
        )
    if "pooler" in lacking:
        output = output.replace(encoder=output.encoder.replace(pooled_BH=None))
    if lacking & {"pooler", "seq_relationship"}:
        output = output.replace(sentence_order_logits_BC=None)
    if "predictions" in lacking:
        output = output.replace(masked_lm_logits_BPV=None)
    return output


def _with_zeros(
    model: AlbertForPretraining, params: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str]]:
    """The parameters with zeros for the parts that are not there, and these parts' names.

    The zeros compute only what `forward` drops, so the compiler drops them too.
    """
    lacking = {"pooler", "predictions", "seq_relationship"} - params.keys()
    if not lacking:
        return dict(params), lacking
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    zeros = {
        name: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[name])
        for name in lacking
    }
    return {**params, **zeros}, lacking


def turned(params: Mapping[str, Any]) -> Any:
    """The parameters with the kernels of `ffn`, [H, I], transposed; of these, the parameters.

    XLA's CPU backend multiplies few rows by a kernel that widens them up to twice as fast where
    it reads it by its columns. It takes no layout that says so, but a transposed array it does.
    """

    def turn(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.T if [key.key for key in path[-2:]] == ["ffn", "kernel"] else leaf

    return jax.tree_util.tree_map_with_path(turn, params)


def fill_mask(
    model: AlbertForPretraining,
    params: Mapping[str, Any],
    input_ids_BS: Array,
    input_mask_BS: Array,
    segment_ids_BS: Array,
    masked_lm_positions_BP: Array,
    targets_T: Array | None = None,
    *,
    top_k: int,
    pieces: int | None = None,
) -> tuple[Array, Array]:
    """The likeliest `top_k` pieces (of `targets_T`, where given) at each masked position, best
    first: probabilities f32[B, P, K] among all rows of the embeddings, as transformers has them,
    and ids i32[B, P, K].

    Only the first `pieces` rows have a piece and can be answered; None: all have one.
    """
    inputs = (input_ids_BS, input_mask_BS, segment_ids_BS, masked_lm_positions_BP)
    probs = jax.nn.softmax(forward(model, params, *inputs).masked_lm_logits_BPV)
    if targets_T is None:
        return jax.lax.top_k(probs[..., :pieces], top_k)
    scores_BPK, places_BPK = jax.lax.top_k(probs[..., targets_T], top_k)
    return scores_BPK, targets_T[places_BPK]


def encode(
    model: AlbertForPretraining,
    params: Mapping[str, Any],
    input_ids_BS: Array,
    input_mask_BS: Array,
    segment_ids_BS: Array,
    *,
    layer: int,
    pool: Pool | None = None,
) -> tuple[Array | None, Array | None]:
    """(float32 vectors of `layer` [B, S, H], zero at padding; the pooler's output [B, H]).

    Layer 0 is what the first block takes, layer n what block n gives. With `pool`: (None, that
    layer's [CLS] vector, or the mean over its tokens, [B, H]).
    """
    blocks = model.config.num_hidden_layers * model.config.inner_group_num
    inputs = (input_ids_BS, input_mask_BS, segment_ids_BS)
    last = layer == blocks
    encoder = forward(model, params, *inputs, collect_layers=not last).encoder
    if last:
        x_BSH = encoder.sequence_BSH
    elif layer == 0:
        x_BSH = _mapped(model, params, encoder.embeddings_BSE)
    else:
        x_BSH = encoder.layers_LBSH[layer - 1]
    x_BSH = x_BSH.astype(jnp.float32) * input_mask_BS[..., None]
    if pool == "cls":
        return None, x_BSH[:, 0]
    if pool == "mean":
        return None, x_BSH.sum(axis=1) / input_mask_BS.sum(axis=1, keepdims=True)
    pooled_BH = encoder.pooled_BH
    return x_BSH, None if pooled_BH is None else pooled_BH.astype(jnp.float32)


def _mapped(model: AlbertForPretraining, params: Mapping[str, Any], embeddings_BSE: Array) -> Array:
    """What the first block takes, [B, S, H]; the encoder does not give it out."""
    kernel_and_bias = params["encoder"].get("embedding_hidden_mapping_in")
    if kernel_and_bias is None:  # E == H has no mapping
        return embeddings_BSE
    dense = nn.Dense(model.config.hidden_size, dtype=model.compute.dtype)
    with jax.default_matmul_precision("highest"):
        return dense.apply({"params": kernel_and_bias}, embeddings_BSE)


def attention(
    model: AlbertForPretraining,
    params: Mapping[str, Any],
    input_ids_BS: Array,
    input_mask_BS: Array,
    segment_ids_BS: Array,
) -> Array:
    """Every block's attention probabilities, f32[L, B, N, S, S]: the share of each position (last
    axis) in what the position before it takes."""
    c = model.config
    inputs = (input_ids_BS, input_mask_BS, segment_ids_BS)
    encoder = forward(model, params, *inputs, collect_layers=True).encoder
    first_BSH = _mapped(model, params, encoder.embeddings_BSE)
    into_LBSH = jnp.concatenate([first_BSH[None], encoder.layers_LBSH[:-1]])
    names = [
        (f"group_{group}", f"inner_group_{inner}")
        for group, length in enumerate(c.group_lengths)
        for _ in range(length)
        for inner in range(c.inner_group_num)
    ]
    dense = nn.Dense(c.hidden_size, dtype=model.compute.dtype)
    found = []
    with jax.default_matmul_precision("highest"):
        for x_BSH, (group, inner) in zip(into_LBSH, names, strict=True):
            weights = params["encoder"][group][inner]["attention"]
            query_BSND, key_BSND = (
                dense.apply({"params": weights[name]}, x_BSH).reshape(
                    *x_BSH.shape[:2], c.num_attention_heads, c.head_size
                )
                for name in ("query", "key")
            )
            found.append(attention_probs(query_BSND, key_BSND, input_mask_BS))
    return jnp.stack(found)


def sentence_order(
    model: AlbertForPretraining,
    params: Mapping[str, Any],
    input_ids_BS: Array,
    input_mask_BS: Array,
    segment_ids_BS: Array,
) -> Array:
    """The probability that the two segments stand in the right order, f32[B]."""
    output = forward(model, params, input_ids_BS, input_mask_BS, segment_ids_BS)
    return jax.nn.softmax(output.sentence_order_logits_BC)[:, 0]
