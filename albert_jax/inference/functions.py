# SPDX-License-Identifier: Apache-2.0
"""What inference computes, as pure functions of parameters and ids: `api` compiles them, `export`
exports them.

Letters as in `models.albert`; K the pieces answered for a masked position. Float32 is multiplied in
full wherever it runs: TPUs and some GPUs would otherwise multiply it in less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config.model import AlbertConfig, ComputeConfig
from albert_jax.models.albert import AlbertForPretraining, PretrainingOutput

Pool = Literal["cls", "mean"]


def network(
    config: AlbertConfig, compute: ComputeConfig, params: Mapping[str, Any]
) -> AlbertForPretraining:
    """Return the network of `params`, which may lack the pooler or a head."""
    absent = frozenset({"pooler", "predictions", "seq_relationship"} - params.keys())
    return AlbertForPretraining(config, compute, absent=absent)


class Inputs(NamedTuple):
    """Rows of tokens, and the places in each whose pieces are asked for."""

    input_ids_BS: Array
    input_mask_BS: Array
    segment_ids_BS: Array
    masked_lm_positions_BP: Array | None = None


def forward(
    model: AlbertForPretraining,
    params: Mapping[str, Any],
    inputs: Inputs,
    *,
    collect_layers: bool = False,
) -> PretrainingOutput:
    """Return the model's output; what hangs on an absent pooler or head is None."""
    with jax.default_matmul_precision("highest"):
        output: Any = model.apply({"params": params}, *inputs, collect_layers=collect_layers)
        return output


def _with_intermediates(
    model: AlbertForPretraining, params: Mapping[str, Any], inputs: Inputs
) -> tuple[PretrainingOutput, Mapping[str, Any]]:
    """Return the model's output and the encoder's intermediates, by the modules that sow them."""
    with jax.default_matmul_precision("highest"):
        output, sown = model.apply({"params": params}, *inputs, mutable="intermediates")
    return output, sown["intermediates"]["encoder"]


def turned(params: Mapping[str, Any]) -> Any:
    """The parameters with the kernels of `ffn`, [H, I], transposed; of these, the parameters.

    XLA's CPU backend multiplies few rows by a kernel that widens them up to twice as fast where
    it reads it by its columns. It takes no layout that says so, but a transposed array it does.
    """

    def turn(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.T if [key.key for key in path[-2:]] == ["ffn", "kernel"] else leaf

    return jax.tree_util.tree_map_with_path(turn, params)


def narrowed(params: Mapping[str, Any], dtype: str) -> Any:
    """The parameters with dense layers' kernels and biases in `dtype`, that of their matmuls, so
    that a call need not convert them; those of a fine-tuned model's head as they are.

    The word embeddings stay as they are where they are looked up. In another dtype than theirs the
    masked-LM head gets a copy of its own, which it multiplies by.
    """

    def narrow(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [key.key for key in path]
        is_dense = names[-1] in ("kernel", "bias") and not names[-2].startswith("LayerNorm")
        return leaf.astype(dtype, copy=False) if is_dense and names[0] != "head" else leaf

    narrow_params = jax.tree_util.tree_map_with_path(narrow, params)
    words_VE = params["embeddings"]["word_embeddings"]
    if "predictions" in params and words_VE.dtype != dtype:
        own = {"word_embeddings": words_VE.astype(dtype)}
        narrow_params["predictions"] = {**narrow_params["predictions"], **own}
    return narrow_params


def fill_mask(
    model: AlbertForPretraining,
    params: Mapping[str, Any],
    inputs: Inputs,
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
    logits_BPV = forward(model, params, inputs).masked_lm_logits_BPV
    assert logits_BPV is not None  # there are positions, and the caller has seen the head
    probs = jax.nn.softmax(logits_BPV)
    if targets_T is None:
        return jax.lax.top_k(probs[..., :pieces], top_k)
    scores_BPK, places_BPK = jax.lax.top_k(probs[..., targets_T], top_k)
    return scores_BPK, targets_T[places_BPK]


def encode(
    model: AlbertForPretraining,
    params: Mapping[str, Any],
    inputs: Inputs,
    *,
    layer: int,
    pool: Pool | None = None,
) -> tuple[Array | None, Array | None]:
    """(float32 vectors of `layer` [B, S, H], zero at padding; the pooler's output [B, H]).

    Layer 0 is what the first block takes, layer n what block n gives. With `pool`: (None, that
    layer's [CLS] vector, or the mean over its tokens, [B, H]).
    """
    blocks = model.config.num_hidden_layers * model.config.inner_group_num
    if layer == 0:
        output, intermediates = _with_intermediates(model, params, inputs)
        (x_BSH,) = intermediates["projected_BSH"]
    else:
        last = layer == blocks
        output = forward(model, params, inputs, collect_layers=not last)
        x_BSH = output.encoder.sequence_BSH
        if not last:
            assert output.encoder.layers_LBSH is not None  # collected
            x_BSH = output.encoder.layers_LBSH[layer - 1]
    x_BSH = x_BSH.astype(jnp.float32) * inputs.input_mask_BS[..., None]
    if pool == "cls":
        return None, x_BSH[:, 0]
    if pool == "mean":
        return None, x_BSH.sum(axis=1) / inputs.input_mask_BS.sum(axis=1, keepdims=True)
    pooled_BH = output.encoder.pooled_BH
    return x_BSH, None if pooled_BH is None else pooled_BH.astype(jnp.float32)


def attention(model: AlbertForPretraining, params: Mapping[str, Any], inputs: Inputs) -> Array:
    """Return every block's attention probabilities, f32[L, B, N, S, S]: the share of each position
    (last axis) in what the position of the axis before takes."""
    c = model.config
    _, intermediates = _with_intermediates(model, params, inputs)
    found = []
    for group, length in enumerate(c.group_lengths):
        if length:
            blocks = intermediates[f"group_{group}"]
            probs = [  # of each block of the group's layer, [its layers, B, N, S, S]
                blocks[f"inner_group_{inner}"]["attention"]["probs_BNFT"][0]
                for inner in range(c.inner_group_num)
            ]
            found.append(jax.lax.collapse(jnp.stack(probs, axis=1), 0, 2))
    return jnp.concatenate(found)


def sentence_order(model: AlbertForPretraining, params: Mapping[str, Any], inputs: Inputs) -> Array:
    """The probability that the two segments stand in the right order, f32[B]."""
    output = forward(model, params, inputs)
    assert output.sentence_order_logits_BC is not None  # the caller has seen the head
    return jax.nn.softmax(output.sentence_order_logits_BC)[:, 0]
