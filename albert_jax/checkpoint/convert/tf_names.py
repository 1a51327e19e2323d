# SPDX-License-Identifier: Apache-2.0
"""Map parameter paths to the variable names of the original's TF1 checkpoints.

Kernels are [in, out] in both, so nothing is transposed. Source: google-research/albert modeling.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from albert_jax.checkpoint.convert.parameters import MAPPING, leaves, modules
from albert_jax.config.model import AlbertConfig
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import first_ten

# Our path -> TF1 variable, outside the shared layers.
_TOP = {
    "embeddings/word_embeddings": "bert/embeddings/word_embeddings",
    "embeddings/token_type_embeddings": "bert/embeddings/token_type_embeddings",
    "embeddings/position_embeddings": "bert/embeddings/position_embeddings",
    "embeddings/LayerNorm": "bert/embeddings/LayerNorm",
    MAPPING: "bert/encoder/embedding_hidden_mapping_in",
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

SLOTS = ("adam_m", "adam_v")  # both optimizers': lamb_optimizer.py:78-89
GLOBAL_STEP = "global_step"
# Other contents of a training checkpoint: slots and counters of TensorFlow's own optimizers.
_TRAINING = re.compile(
    r"/(Adam|Adam_1|Momentum|LAMB\w*|ExponentialMovingAverage)$|^beta[12]_power$"
)
_BLOCK_SCOPE = re.compile(r"encoder/(group_\d+/inner_group_\d+)/(.*)")
_KERAS_NORM = re.compile(r"(.*)/layer_normalization(?:_(\d{1,9}))?/(\w+)$")


def _variable(module: str, head: str | None) -> str:
    if block := _BLOCK_SCOPE.fullmatch(module):
        return f"bert/encoder/transformer/{block[1]}/{_BLOCK[block[2]]}"
    if module.startswith("head/"):
        return ("cls/squad/" if head == "span_v1" else "") + module.removeprefix("head/")
    return _TOP[module]


def tf_names(config: AlbertConfig, head: str | None = None) -> dict[str, str]:
    """Return the TF1 variable name of every parameter path (`encoder/group_0/…/kernel`).

    The paths are those of the pretraining model, and of the fine-tuned head if there is one.
    """
    names: dict[str, str] = {}
    for module in modules(config, head):
        if module == MAPPING and config.embedding_size == config.hidden_size:
            continue  # modeling.py:1083
        variable = _variable(module, head)
        theirs = {"scale": "gamma", "bias": "beta"} if "LayerNorm" in module else {}
        names |= {f"{module}/{n}": f"{variable}/{theirs.get(n, n)}" for n in leaves(module)}
        if not leaves(module):
            names[module] = variable
    return names


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Return the original's name for each variable's name.

    Only names that differ in more than a prefix need a rule. `module/` is TF-Hub's,
    `layer_normalization` is Keras's name of LayerNorm. Keras counts through the whole graph, so the
    order within a scope decides. Raises UserError for LayerNorms that the layers do not share.
    """
    plain = {name: name.removeprefix("module/").removesuffix(":0") for name in names}
    scopes: dict[str, set[int]] = defaultdict(set)
    for name in plain.values():
        if norm := _KERAS_NORM.fullmatch(_without_slot(name)):
            scopes[norm[1]].add(int(norm[2] or 0))
    unshared = sorted(scope for scope in scopes if re.search(r"/layer_\d+/", scope))
    if unshared:
        raise UserError(
            f"the checkpoint has LayerNorms of their own for {len(unshared)} layers "
            f"({first_ten(unshared)}), where ALBERT shares one; such a model is not supported"
        )
    orders = {
        scope: {number: order for order, number in enumerate(sorted(numbers))}
        for scope, numbers in scopes.items()
    }
    canonical = {}
    for name, short in plain.items():
        bare = _without_slot(short)
        if norm := _KERAS_NORM.fullmatch(bare):
            order = orders[norm[1]][int(norm[2] or 0)]
            number = f"_{order}" if order else ""
            short = f"{norm[1]}/LayerNorm{number}/{norm[3]}" + short.removeprefix(bare)
        canonical[name] = short
    return canonical


def _without_slot(name: str) -> str:
    return re.sub(rf"/({'|'.join(SLOTS)})$", "", name)


def slot_of(name: str) -> tuple[str, str] | None:
    """Return the variable and the slot of a slot's name."""
    bare = _without_slot(name)
    return (bare, name[len(bare) + 1 :]) if bare != name else None


def is_training_state(name: str) -> bool:
    """Return whether a name belongs to something that training needs and a model does not."""
    return name == GLOBAL_STEP or slot_of(name) is not None or bool(_TRAINING.search(name))


def head_kind(names: Iterable[str]) -> str | None:
    """Return the head that names show: span_v1, span_v2, `output_weights` or None.

    `output_weights` is one of the kinds that have only these.
    """
    names = set(names)
    if any(name.startswith(("start_logits/", "end_logits/", "answer_class/")) for name in names):
        return "span_v2"
    if names & {"cls/squad/output_weights", "cls/squad/output_bias"}:
        return "span_v1"
    return "output_weights" if names & {"output_weights", "output_bias"} else None
