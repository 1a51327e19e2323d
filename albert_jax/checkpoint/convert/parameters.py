# SPDX-License-Identifier: Apache-2.0
"""List every parameter that a model can have, by its path, with its shape.

A conversion checks a source against this list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from albert_jax.config.model import AlbertConfig
from albert_jax.utils.errors import UserError

MAPPING = "encoder/embedding_hidden_mapping_in"

# Module or parameter -> the dimensions of its kernel, the last of which is that of the bias.
# Letters as in albert.py; T segments, S positions, D twice H, n labels.
_TOP = {
    "embeddings/word_embeddings": "VE",
    "embeddings/token_type_embeddings": "TE",
    "embeddings/position_embeddings": "SE",
    "embeddings/LayerNorm": "E",
    MAPPING: "EH",
    "pooler": "HH",
    "predictions/transform": "HE",
    "predictions/LayerNorm": "E",
    "predictions/output_bias": "V",
    "seq_relationship/output_weights": "2H",
    "seq_relationship/output_bias": "2",
}
_BLOCK = {
    "attention/query": "HH",
    "attention/key": "HH",
    "attention/value": "HH",
    "attention/output": "HH",
    "LayerNorm": "H",
    "ffn": "HI",
    "ffn_output": "IH",
    "LayerNorm_1": "H",
}
_ONE_LAYER = {"head/output_weights": "nH", "head/output_bias": "n"}
HEAD_SHAPES: dict[str, dict[str, str]] = {
    "classification": _ONE_LAYER,
    "multi_label": _ONE_LAYER,
    "regression": _ONE_LAYER,
    "similarity": {},  # the cosine of two vectors
    "multiple_choice": _ONE_LAYER,
    "token_classification": _ONE_LAYER,
    "span_v1": _ONE_LAYER,
    "span_v2": {
        "head/start_logits/dense": "H1",
        "head/end_logits/dense_0": "DH",
        "head/end_logits/LayerNorm": "H",
        "head/end_logits/dense_1": "H1",
        "head/answer_class/dense_0": "DH",
        "head/answer_class/dense_1/kernel": "H1",  # without a bias: squad_utils.py:1553
    },
}
# Rows of output_weights, for kinds that have a fixed number.
LABELS = {"regression": 1, "multiple_choice": 1, "span_v1": 2}
NAMED_LABELS = (
    "classification",
    "multi_label",
    "token_classification",
)  # kinds with a label for each row

# Far above every ALBERT. A configuration may come from anyone, and a false one must be refused
# before it costs memory or time.
_MOST: dict[str, float] = {
    "vocab_size": 1 << 24,
    "embedding_size": 1 << 16,
    "hidden_size": 1 << 16,
    "num_hidden_layers": 1000,
    "intermediate_size": 1 << 20,
    "inner_group_num": 100,
    "max_position_embeddings": 1 << 20,
    "type_vocab_size": 1 << 16,
    "initializer_range": 1000,
    "layer_norm_eps": 1,
}
_MOST_BLOCKS = 1000  # sets of parameters: num_hidden_groups x inner_group_num


def check_sizes(config: AlbertConfig, where: object) -> None:
    """Raise UserError, which begins with `where`, for sizes far above every ALBERT's."""
    for name, most in _MOST.items():
        if getattr(config, name) > most:
            raise UserError(f"{where}: {name} {getattr(config, name)} must be at most {most:,}")
    groups, inner = config.num_hidden_groups, config.inner_group_num
    if groups * inner > _MOST_BLOCKS:
        raise UserError(
            f"{where}: num_hidden_groups {groups} x inner_group_num {inner} are {groups * inner:,} "
            f"sets of parameters; at most {_MOST_BLOCKS:,} are supported"
        )


def modules(config: AlbertConfig, head: str | None = None) -> dict[str, str]:
    """Return the letters of the dimensions of every module, or of a parameter that is in none.

    The embedding mapping is included also if E equals H: transformers always has one, the original
    then has none.
    """
    found = dict(_TOP)
    for group, length in enumerate(config.group_lengths):
        for inner in range(config.inner_group_num if length else 0):
            block = f"encoder/group_{group}/inner_group_{inner}"
            found |= {f"{block}/{name}": dims for name, dims in _BLOCK.items()}
    return found | HEAD_SHAPES.get(head or "", {})


def leaves(module: str) -> tuple[str, ...]:
    """Return the names of a module's parameters; none if it is a parameter itself."""
    last = module.rsplit("/", 1)[-1]
    if "LayerNorm" in last:
        return ("scale", "bias")
    if last == "kernel" or last.endswith(("embeddings", "output_weights", "output_bias")):
        return ()
    return ("kernel", "bias")


def parameter_shapes(
    config: AlbertConfig, head: str | None = None, labels: int = 0
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by path, the heads' parameters included."""
    c = config
    sizes = {
        "V": c.vocab_size,
        "E": c.embedding_size,
        "H": c.hidden_size,
        "I": c.intermediate_size,
        "T": c.type_vocab_size,
        "S": c.max_position_embeddings,
        "D": 2 * c.hidden_size,
        "n": labels,
        "1": 1,
        "2": 2,
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for module, letters in modules(config, head).items():
        shape = tuple(sizes[letter] for letter in letters)
        names = leaves(module)
        shapes |= {f"{module}/{leaf}": shape if leaf == "kernel" else shape[-1:] for leaf in names}
        if not names:
            shapes[module] = shape
    return shapes


def part_of(path: str) -> str:
    """Return the part of the tree that has a path: `embeddings`, `encoder`, `pooler`, …."""
    return path.partition("/")[0]


def misfits(
    shapes: Mapping[str, tuple[int, ...]],
    config: AlbertConfig,
    head: str | None,
    labels: Sequence[str] | None = None,
    needed: Collection[str] = ("embeddings", "encoder"),
) -> list[str]:
    """Return a phrase for every parameter that does not fit `config` and the head's kind.

    A parameter may be missing, unused or of another shape; the number of `labels` may differ from
    that of the head's outputs. A part that is not in `needed` may be missing as a whole.
    """
    outputs = LABELS.get(head or "", (*shapes.get("head/output_bias", ()), 0)[0])
    expected = parameter_shapes(config, head, outputs)
    if config.embedding_size == config.hidden_size and f"{MAPPING}/kernel" not in shapes:
        expected = {n: s for n, s in expected.items() if not n.startswith(MAPPING)}
    parts = {*needed, *map(part_of, shapes)} | ({"head"} if head else set())
    expected = {name: shape for name, shape in expected.items() if part_of(name) in parts}
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - shapes.keys())]
    wrong += [f"{name} is unused" for name in sorted(shapes.keys() - expected.keys())]
    wrong += [
        f"{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    if labels and head in NAMED_LABELS and len(labels) != outputs:
        wrong.append(f"{len(labels)} labels for a head of {outputs} outputs")
    return wrong
