# SPDX-License-Identifier: Apache-2.0
"""Map parameter paths to transformers' names.

PyTorch's linear layers keep [out, in], so that every path that ends in `kernel` is transposed
there. Flax's names differ in their last part only. Source: transformers' models/albert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from albert_jax.checkpoint.convert.parameters import MAPPING, leaves, modules
from albert_jax.config.model import AlbertConfig

_TOP = {
    "embeddings/word_embeddings": "albert.embeddings.word_embeddings.weight",
    "embeddings/token_type_embeddings": "albert.embeddings.token_type_embeddings.weight",
    "embeddings/position_embeddings": "albert.embeddings.position_embeddings.weight",
    "embeddings/LayerNorm": "albert.embeddings.LayerNorm",
    MAPPING: "albert.encoder.embedding_hidden_mapping_in",
    "pooler": "albert.pooler",
    "predictions/transform": "predictions.dense",
    "predictions/LayerNorm": "predictions.LayerNorm",
    "predictions/output_bias": "predictions.bias",
    "seq_relationship/output_weights": "sop_classifier.classifier.weight",
    "seq_relationship/output_bias": "sop_classifier.classifier.bias",
}
_BLOCK = {
    "attention/query": "attention.query",
    "attention/key": "attention.key",
    "attention/value": "attention.value",
    "attention/output": "attention.dense",
    "LayerNorm": "attention.LayerNorm",
    "ffn": "ffn",
    "ffn_output": "ffn_output",
    "LayerNorm_1": "full_layer_layer_norm",
}
_BLOCK_SCOPE = re.compile(r"encoder/group_(\d+)/inner_group_(\d+)/(.*)")

# Head kind -> architecture. span_v2 has none; its names are those of XLNet, which has this head.
ARCHITECTURES = {
    "classification": "AlbertForSequenceClassification",
    "multi_label": "AlbertForSequenceClassification",
    "regression": "AlbertForSequenceClassification",
    "multiple_choice": "AlbertForMultipleChoice",
    "token_classification": "AlbertForTokenClassification",
    "span_v1": "AlbertForQuestionAnswering",
}
# Architectures that make no pooler, and would call one left over.
WITHOUT_POOLER = ("AlbertForTokenClassification", "AlbertForQuestionAnswering")
DECODER = "predictions.decoder.weight"  # tied to the word embeddings

_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")
# The prefix of AlbertModel's names; a file of AlbertModel itself has none.
_OF_BASE = ("embeddings.", "encoder.", "pooler.")


def _name(module: str, head: str | None) -> str:
    if block := _BLOCK_SCOPE.fullmatch(module):
        layer = f"albert_layer_groups.{block[1]}.albert_layers.{block[2]}"
        return f"albert.encoder.{layer}.{_BLOCK[block[3]]}"
    if module in ("head/output_weights", "head/output_bias"):
        owner = "qa_outputs" if head == "span_v1" else "classifier"
        return f"{owner}.{'weight' if module.endswith('weights') else 'bias'}"
    if module.startswith("head/"):
        return re.sub("/kernel$", "/weight", module.removeprefix("head/")).replace("/", ".")
    return _TOP[module]


def hf_names(config: AlbertConfig, head: str | None = None) -> dict[str, str]:
    """Return the name of every parameter path in a transformers file."""
    names: dict[str, str] = {}
    for module in modules(config, head):
        theirs = {"kernel": "weight", "scale": "weight", "bias": "bias"}
        names |= {f"{module}/{n}": f"{_name(module, head)}.{theirs[n]}" for n in leaves(module)}
        if not leaves(module):
            names[module] = _name(module, head)
    return names


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Return transformers' own name for each tensor's name.

    `module.` is DataParallel's; `gamma` and `beta` are those of the first releases; a file of
    AlbertModel lacks `albert.`; `predictions.decoder.bias` is tied to `predictions.bias`, and a
    file may have either of two tied tensors.
    """
    plain = {name: name.removeprefix("module.") for name in names}
    is_base = not any(name.startswith("albert.") for name in plain.values())
    has_bias = "predictions.bias" in plain.values()
    canonical = {}
    for name, short in plain.items():
        if is_base and short.startswith(_OF_BASE):
            short = "albert." + short
        if short == "predictions.decoder.bias" and not has_bias:
            short = "predictions.bias"
        short = re.sub(r"\.gamma$", ".weight", short)
        canonical[name] = re.sub(r"\.beta$", ".bias", short)
    return canonical


def is_buffer(name: str) -> bool:
    """Return whether a name is that of a constant that some releases of transformers stored."""
    return bool(_BUFFERS.search(name))


def head_kind(names: Iterable[str]) -> str | None:
    """Return the head that names show: span_v1, span_v2, `classifier` or None.

    A `classifier` is one of four kinds.
    """
    owners = {name.partition(".")[0] for name in names}
    if owners & {"start_logits", "end_logits", "answer_class"}:
        return "span_v2"
    if "qa_outputs" in owners:
        return "span_v1"
    return "classifier" if "classifier" in owners else None
