# SPDX-License-Identifier: Apache-2.0
"""What inference takes out of the encoder against NumPy, and networks that lack a part."""

from functools import partial

import jax
import numpy as np
import pytest

from albert_jax.config.model import ComputeConfig
from albert_jax.inference import functions
from tests.helpers.models import noisy_params, random_batch, tiny_albert


def inputs_of(batch):
    return functions.Inputs(batch["input_ids"], batch["input_mask"], batch["segment_ids"])


def numpy_probs(x_BSH, mask_BS, weights, heads):
    """softmax(q k^T / sqrt(D) + padding) in float64, [B, N, S, S]."""
    query_BNSD, key_BNSD = (
        (x_BSH @ weights[name]["kernel"] + weights[name]["bias"])
        .reshape(*x_BSH.shape[:2], heads, -1)
        .swapaxes(1, 2)
        for name in ("query", "key")
    )
    logits = query_BNSD @ key_BNSD.swapaxes(-1, -2) / np.sqrt(query_BNSD.shape[-1])
    odds = np.exp(logits - 1e4 * (1 - mask_BS[:, None, None]))
    return odds / odds.sum(axis=-1, keepdims=True)


def test_attention_is_that_of_each_block_in_the_order_they_are_applied():
    config = tiny_albert(num_hidden_layers=5, num_hidden_groups=2, inner_group_num=2)
    params, batch = noisy_params(config), random_batch(config)
    model = functions.network(config, ComputeConfig(remat="full", scan_unroll=2), params)
    found = jax.jit(partial(functions.attention, model))(params, inputs_of(batch))
    whole = jax.jit(partial(functions.forward, model, collect_layers=True))
    layers_LBSH = whole(params, inputs_of(batch)).encoder.layers_LBSH
    first_BSH, _ = jax.jit(partial(functions.encode, model, layer=0))(params, inputs_of(batch))
    is_token_BS = batch["input_mask"].astype(bool)
    for block, into_BSH in enumerate([first_BSH, *layers_LBSH[:-1]]):
        layer, inner = divmod(block, 2)
        weights = params["encoder"][f"group_{layer * 2 // 5}"][f"inner_group_{inner}"]["attention"]
        x_BSH = np.asarray(into_BSH, np.float64)
        wanted = numpy_probs(x_BSH, batch["input_mask"], weights, config.num_attention_heads)
        for of_row, wanted_of_row, is_token_S in zip(
            found[block], wanted, is_token_BS, strict=True
        ):  # Of tokens alone: `encode` gives zeros at padding.
            np.testing.assert_allclose(
                of_row[:, is_token_S], wanted_of_row[:, is_token_S], atol=1e-5
            )


@pytest.mark.parametrize("absent", ["pooler", "predictions", "seq_relationship"])
def test_a_network_without_a_part_computes_all_that_does_not_need_it(absent):
    config = tiny_albert()
    params, batch = noisy_params(config), random_batch(config)
    inputs = inputs_of(batch)._replace(masked_lm_positions_BP=batch["masked_lm_positions"])
    lacking = {name: x for name, x in params.items() if name != absent}

    def outputs(params):
        model = functions.network(config, ComputeConfig(), params)
        output = jax.jit(partial(functions.forward, model))(params, inputs)
        return {
            "sequence": output.encoder.sequence_BSH,
            "pooler": output.encoder.pooled_BH,
            "predictions": output.masked_lm_logits_BPV,
            "seq_relationship": output.sentence_order_logits_BC,
        }

    gone = {absent, "seq_relationship"} if absent == "pooler" else {absent}
    whole, found = outputs(params), outputs(lacking)
    assert {name for name, x in found.items() if x is None} == gone
    for name in whole.keys() - gone:
        np.testing.assert_allclose(found[name], whole[name], atol=1e-6)


def test_narrowed_parameters_give_the_same_bits_as_those_that_each_call_converts():
    config = tiny_albert()
    params, batch = noisy_params(config), random_batch(config)
    model = functions.network(config, ComputeConfig(dtype="bfloat16"), params)
    call = jax.jit(partial(functions.forward, model))
    narrow = functions.narrowed(params | {"head": {"dense": {"kernel": np.ones(2)}}}, "bfloat16")
    inputs = inputs_of(batch)._replace(masked_lm_positions_BP=batch["masked_lm_positions"])
    same = jax.tree.map(np.array_equal, call(params, inputs), call(narrow, inputs))
    assert all(jax.tree.leaves(same))
    marked = narrow | {"predictions": jax.tree.map(np.zeros_like, narrow["predictions"])}
    assert not np.any(call(marked, inputs).masked_lm_logits_BPV)  # the copy is what is used
    assert "word_embeddings" not in functions.narrowed(params, "float32")["predictions"]
    leaves = jax.tree_util.tree_leaves_with_path(narrow)
    dtypes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): str(x.dtype) for path, x in leaves
    }
    block = "encoder/group_0/inner_group_0"
    assert dtypes[f"{block}/ffn/kernel"] == dtypes[f"{block}/ffn/bias"] == "bfloat16"
    assert dtypes[f"{block}/LayerNorm/bias"] == dtypes["embeddings/word_embeddings"] == "float32"
    assert dtypes["predictions/word_embeddings"] == "bfloat16"  # what the head multiplies by
    assert dtypes["head/dense/kernel"] == "float64"  # as it came
