# SPDX-License-Identifier: Apache-2.0
"""Define what inference computes, as pure functions of parameters and ids.

`api` compiles them, `export` exports them. Shapes: B rows, S tokens, P masked positions, K pieces
for each of these, L blocks, N heads, H `hidden_size`. Float32 matmuls have full precision
everywhere; TPUs and some GPUs would use less by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config.model import AlbertConfig, ComputeConfig
from albert_jax.models.albert import AlbertForPretraining, PretrainingOutput
from albert_jax.models.layers import Part
from albert_jax.models.lowering import Lowering

Pool = Literal["cls", "mean"]


def network(
    config: AlbertConfig,
    compute: ComputeConfig,
    params: Mapping[str, Any],
    lowering: Lowering = Lowering(),
) -> AlbertForPretraining:
    """Return the network of `params`, which may lack the pooler or a head."""
    absent = frozenset({"pooler", "predictions", "seq_relationship"} - params.keys())
    return AlbertForPretraining(config, compute, lowering, absent=absent)


def lowering_here() -> Lowering:
    """Return what answers are lowered for in this process."""
    return Lowering(by_columns=jax.default_backend() == "cpu")


def placed(params: Mapping[str, Any], part: Part) -> Any:
    """Return the parameters on the device, as `part` multiplies by them."""
    params = narrowed(params, part.dtype)
    return jax.device_put(turned(params) if part.lowering.by_columns else params)


class Inputs(NamedTuple):
    """Hold rows of tokens, and the positions in each whose pieces are predicted."""

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
    """Return the model's output; the outputs of an absent pooler or head are None."""
    with jax.default_matmul_precision("highest"):
        output: Any = model.apply({"params": params}, *inputs, collect_layers=collect_layers)
        return output


def _with_intermediates(
    model: AlbertForPretraining, params: Mapping[str, Any], inputs: Inputs
) -> tuple[PretrainingOutput, Mapping[str, Any]]:
    """Return the model's output, and the encoder's intermediates by the modules that sow them."""
    with jax.default_matmul_precision("highest"):
        output, sown = model.apply({"params": params}, *inputs, mutable="intermediates")
    return output, sown["intermediates"]["encoder"]


def turned(params: Mapping[str, Any]) -> Any:
    """Return the parameters with the kernels of dense layers transposed.

    `Lowering.by_columns` needs them. A fine-tuned head stays as it is.
    """

    def turn(path: tuple[Any, ...], leaf: Any) -> Any:
        is_dense = path[-1].key == "kernel" and path[0].key != "head"
        return leaf.T if is_dense else leaf

    return jax.tree_util.tree_map_with_path(turn, params)


def narrowed(params: Mapping[str, Any], dtype: str) -> Any:
    """Return the parameters with the kernels and biases of dense layers in `dtype`.

    That is the type of their matmuls, so that a call need not convert them. A fine-tuned head stays
    as it is, and so do the word embeddings where they are looked up. If `dtype` differs from
    theirs, the masked-LM head gets its own copy to multiply by.
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
    """Return the `top_k` most probable pieces at each masked position, the best first.

    Probabilities f32[B, P, K] are taken among all rows of the embeddings, as in transformers; ids
    are i32[B, P, K]. With `targets_T`, only these pieces are answered. Only the first `pieces` rows
    have a piece; None, all have one.
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
    """Return float32 vectors of `layer` [B, S, H], zero at padding, and the pooler's output [B, H].

    Layer 0 is the input of the first block, layer n the output of block n. With `pool`, return None
    and the layer's vectors of [CLS], or their means over the tokens, [B, H].
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
    """Return the attention probabilities of every block, f32[L, B, N, S, S].

    Entry [l, b, n, i, j] is the weight of position j for position i.
    """
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
    """Return the probability that the two segments are in the right order, f32[B]."""
    output = forward(model, params, inputs)
    assert output.sentence_order_logits_BC is not None  # the caller has seen the head
    return jax.nn.softmax(output.sentence_order_logits_BC)[:, 0]
