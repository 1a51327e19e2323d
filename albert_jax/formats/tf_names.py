# SPDX-License-Identifier: Apache-2.0
"""The original TF1 checkpoints' variable names beside our parameter paths, as a table.

Kernels are [in, out] in both, so nothing is transposed. albert-exactness: google-research/albert
modeling.py.
"""

from __future__ import annotations

from typing import Any

from albert_jax.config import AlbertConfig

# Our path -> TF1 variable, outside the shared layers.
_TOP = {
    "embeddings/word_embeddings": "bert/embeddings/word_embeddings",
    "embeddings/token_type_embeddings": "bert/embeddings/token_type_embeddings",
    "embeddings/position_embeddings": "bert/embeddings/position_embeddings",
    "embeddings/LayerNorm": "bert/embeddings/LayerNorm",
    "encoder/embedding_hidden_mapping_in": "bert/encoder/embedding_hidden_mapping_in",
    "pooler": "bert/pooler/dense",
    "predictions/transform": "cls/predictions/transform/dense",
    "predictions/LayerNorm": "cls/predictions/transform/LayerNorm",
    "predictions/output_bias": "cls/predictions/output_bias",
    "seq_relationship/output_weights": "cls/seq_relationship/output_weights",
    "seq_relationship/output_bias": "cls/seq_relationship/output_bias",
}

# Within one block.
_BLOCK = {
    "attention/query": "attention_1/self/query",
    "attention/key": "attention_1/self/key",
    "attention/value": "attention_1/self/value",
    "attention/output": "attention_1/output/dense",
    "LayerNorm": "LayerNorm",
    "ffn": "ffn_1/intermediate/dense",
    "ffn_output": "ffn_1/intermediate/output/dense",
    "LayerNorm_1": "LayerNorm_1",
}


def tf_names(config: AlbertConfig) -> dict[str, str]:
    """Every parameter path of the pretraining model (`encoder/group_0/…/kernel`) -> its TF1
    variable name."""
    modules = dict(_TOP)
    if config.embedding_size == config.hidden_size:
        del modules["encoder/embedding_hidden_mapping_in"]
    for group, length in enumerate(config.group_lengths):
        for inner in range(config.inner_group_num if length else 0):
            ours = f"encoder/group_{group}/inner_group_{inner}"
            theirs = f"bert/encoder/transformer/group_{group}/inner_group_{inner}"
            modules |= {f"{ours}/{a}": f"{theirs}/{b}" for a, b in _BLOCK.items()}
    names: dict[str, str] = {}
    for path, variable in modules.items():
        if "LayerNorm" in path.rsplit("/", 1)[-1]:
            names |= {f"{path}/scale": f"{variable}/gamma", f"{path}/bias": f"{variable}/beta"}
        elif path.rsplit("/", 1)[-1].endswith(("embeddings", "output_weights", "output_bias")):
            names[path] = variable
        else:
            names |= {f"{path}/{leaf}": f"{variable}/{leaf}" for leaf in ("kernel", "bias")}
    return names


def from_tf(variables: dict[str, Any], config: AlbertConfig) -> dict[str, Any]:
    """Nests {TF1 name: array} into our parameter tree; KeyError for a variable that is missing."""
    params: dict[str, Any] = {}
    for path, variable in tf_names(config).items():
        *modules, leaf = path.split("/")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = variables[variable]
    return params
