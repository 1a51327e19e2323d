# SPDX-License-Identifier: Apache-2.0
"""Define what the weights mean, and how a machine computes them.

A checkpoint stores only the former, so that any machine may load it in any way.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from albert_jax.config.packaged import PACKAGED, packaged_path
from albert_jax.config.validation import check_least, check_most, check_types
from albert_jax.utils.arguments import shown
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.wording import did_you_mean, python_names, setting, shortened

Dtype = Literal["float32", "bfloat16", "auto"]
Engine = Literal["jax", "onnx"]  # what computes answers

LARGEST = (1 << 31) - 1  # of a size: indices are int32
MOST_GROUPS = 1000  # each is a part of the program of its own

HIDDEN_ACTS = ("gelu", "gelu_erf", "relu", "silu", "tanh", "linear")
# The activations that transformers calls by another name, in words.
_FORMS = {
    "gelu": "the tanh form of GELU",
    "gelu_erf": "the erf form of GELU",
    "silu": "x sigmoid(x)",
}

# The name of each activation in transformers' config.json -> the name here. Its "gelu" is the erf
# form, Google's the tanh form. transformers' activations.py, ACT2FN.
TRANSFORMERS_ACTS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_accurate": "gelu",
    "gelu_fast": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "linear",
}

_MOST_BYTES = 1 << 22  # of a configuration file


def act_for_transformers(hidden_act: str) -> str:
    """Return the name of an activation in transformers' config.json."""
    return {"gelu": "gelu_new", "gelu_erf": "gelu"}.get(hidden_act, hidden_act)


@dataclass(frozen=True)
class AlbertConfig:
    """Describe an ALBERT architecture by the field names of the released `albert_config.json`.

    The defaults are xxlarge's, as in the original (modeling.py:42-57). `hidden_act` has Google's
    meaning: "gelu" is the tanh approximation, "gelu_erf" the exact form that transformers calls
    "gelu".
    """

    vocab_size: int = 30000  # rows of the word embeddings: the vocabulary's pieces, or more
    embedding_size: int = 128  # E, the factorised embedding's width
    hidden_size: int = 4096  # H
    num_hidden_layers: int = 12  # how often the shared layer is applied
    num_hidden_groups: int = 1  # parameter sets that the layers are divided over
    num_attention_heads: int = 64  # N
    intermediate_size: int = 16384  # I, the feed-forward width
    inner_group_num: int = 1  # attention + feed-forward blocks in one layer
    hidden_act: str = "gelu"  # gelu (tanh form) | gelu_erf | relu | silu | tanh | linear
    hidden_dropout_prob: float = 0.0  # after embeddings, attention and feed-forward outputs
    attention_probs_dropout_prob: float = 0.0  # on the attention probabilities
    max_position_embeddings: int = 512  # the longest sequence
    type_vocab_size: int = 2  # segments
    initializer_range: float = 0.02  # stddev of the truncated normal
    layer_norm_eps: float = 1e-12  # tf.contrib.layers.layer_norm in float32

    def __post_init__(self) -> None:
        check_types(self, "", flags="model")
        sizes = [f.name for f in dataclasses.fields(self) if type(f.default) is int]
        check_least(self, "", 1, *sizes, flags="model")
        check_most(self, "", LARGEST, *sizes, flags="model")
        check_most(self, "", MOST_GROUPS, "num_hidden_groups", flags="model")
        check_least(self, "", 0, "initializer_range", "layer_norm_eps", flags="model")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{_named('hidden_size')} {self.hidden_size} is not a multiple of "
                f"{_named('num_attention_heads')} {self.num_attention_heads}; choose a number of "
                "heads that divides it"
            )
        if self.num_hidden_groups > self.num_hidden_layers:
            raise UserError(
                f"{_named('num_hidden_groups')} {self.num_hidden_groups} exceeds "
                f"{_named('num_hidden_layers')} {self.num_hidden_layers}; every group needs a layer"
            )
        if self.hidden_act not in HIDDEN_ACTS:
            raise UserError(
                f"{_named('hidden_act')} {shown(self.hidden_act)} is unknown; "
                f"use one of {', '.join(HIDDEN_ACTS)}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_named(name)} {shown(getattr(self, name))} must lie in [0, 1)")

    @property
    def head_size(self) -> int:
        """D, the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def group_lengths(self) -> tuple[int, ...]:
        """The number of layers that each group serves, in order.

        Layer i uses group int(i / L * G), as in the original.
        """
        layers, groups = self.num_hidden_layers, self.num_hidden_groups

        # In floating point, as modeling.py:1091: i * G // L differs at L=G=22 (layer 15) and L=G=23
        # (layer 13).
        def group_of(layer: int) -> int:
            return int(layer / layers * groups)

        # A group's layers follow each other, so each is found without a walk through all of them.
        ends = [bisect.bisect_right(range(layers), g, key=group_of) for g in range(groups)]
        return tuple(end - start for start, end in itertools.pairwise([0, *ends]))

    @classmethod
    def from_json(cls, path: str | Path) -> AlbertConfig:
        """Read an `albert_config.json` or transformers' `config.json`.

        Both have a `hidden_act` "gelu": in the former it is the tanh approximation, in the latter
        the exact form. The keys `model_type`, `architectures` and `transformers_version` mark
        transformers' file. If it calls the activation by another name, a line on stderr says so.

        Args:
            path: the file.

        Returns:
            The configuration.

        Raises:
            UserError: if the file is missing, is not JSON or describes another model.
        """
        path = Path(path)
        try:
            if (size := path.stat().st_size) > _MOST_BYTES:
                raise ValueError(f"{size:,} bytes, over {_MOST_BYTES:,}")
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path} does not exist; give an albert_config.json or a transformers config.json"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is not readable JSON ({error}); give an albert_config.json"
            ) from None
        if not isinstance(values, dict):
            raise UserError(
                f"{path} holds a {type(values).__name__}, "
                "not a JSON object; give an albert_config.json"
            )
        config, _ = cls.from_dict(values, path)
        named = values.get("hidden_act", config.hidden_act)
        if named != config.hidden_act:
            say(
                f"{path.name}: transformers' hidden_act {shown(named)} is "
                f"{_FORMS[config.hidden_act]}, here {config.hidden_act!r}"
            )
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: Path) -> tuple[AlbertConfig, str]:
        """Return the configuration that a file's values describe, and the kind of the file.

        Args:
            values: the file's JSON object.
            path: the file, for error messages.

        Returns:
            The configuration, and "Google albert_config.json" or "transformers config.json".

        Raises:
            UserError: if the values describe another model.
        """
        is_transformers = (
            "model_type" in values or "architectures" in values or "transformers_version" in values
        )
        if values.get("model_type", "albert") != "albert":
            other = shortened(str(values["model_type"]))
            raise UserError(f"{path} describes a {other} model, not ALBERT")
        names = {f.name for f in dataclasses.fields(cls)}
        chosen = {name: value for name, value in values.items() if name in names}
        if "vocab_size" not in chosen:
            raise UserError(f"{path} has no vocab_size, so it is no ALBERT configuration")
        for name, value in chosen.items():
            is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
            if is_whole and type(getattr(cls, name)) is int:
                chosen[name] = int(value)  # JavaScript's JSON writers know no whole numbers
        kind = "Google albert_config.json"
        if is_transformers:
            kind = "transformers config.json"
            act = chosen.get("hidden_act", "gelu_new")
            if act not in list(TRANSFORMERS_ACTS):  # it may be unhashable
                known = ", ".join(TRANSFORMERS_ACTS)
                raise UserError(f"{path}: hidden_act {shown(act)} is unknown; known: {known}")
            chosen["hidden_act"] = TRANSFORMERS_ACTS[act]
        try:
            with python_names():  # the file's keys have these names too
                return cls(**chosen), kind
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def to_json(self, path: str | Path) -> None:
        """Write an `albert_config.json`, with Google's field names and meanings.

        Args:
            path: the file to write.
        """
        Path(path).write_text(
            json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8"
        )


def _named(field: str) -> str:
    """Return a field of `AlbertConfig` as the reader writes it."""
    return setting(field, flag=f"model.{field}")


# The endings of the fields that set the size of a model.
_SIZES = ("_size", "_layers", "_groups", "_heads", "_num", "_embeddings")


def unlike_sizes(found: AlbertConfig, wanted: AlbertConfig) -> list[str]:
    """Return a phrase for each size in which two models differ.

    A phrase is such as `hidden_size is 384, not 768`. For all released models, transformers' files
    have the same sizes as the original's.
    """
    values, others = dataclasses.asdict(found), dataclasses.asdict(wanted)
    return [
        f"{name} is {value}, not {others[name]}"
        for name, value in values.items()
        if name.endswith(_SIZES) and value != others[name]
    ]


def _released(hidden: int, layers: int, heads: int, dropout: float) -> AlbertConfig:
    return AlbertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


# The eight released models: hidden size, layers, heads (xlarge's heads are 128 wide), dropout. v2
# dropped dropout; v1 xxlarge never had it. google-research/albert README and the albert_config.json
# files.
MODELS: dict[str, AlbertConfig] = {
    "base-v1": _released(768, 12, 12, 0.1),
    "large-v1": _released(1024, 24, 16, 0.1),
    "xlarge-v1": _released(2048, 24, 16, 0.1),
    "xxlarge-v1": _released(4096, 12, 64, 0.0),
    "base-v2": _released(768, 12, 12, 0.0),
    "large-v2": _released(1024, 24, 16, 0.0),
    "xlarge-v2": _released(2048, 24, 16, 0.0),
    "xxlarge-v2": _released(4096, 12, 64, 0.0),
}


def model_config(name: str) -> AlbertConfig:
    """Return the released or packaged model of that name.

    Raises UserError for an unknown name; the error names the nearest one.
    """
    if name in PACKAGED:
        return AlbertConfig(**json.loads((packaged_path(name) / "albert_config.json").read_bytes()))
    if name not in MODELS:
        known = (*MODELS, *PACKAGED)
        raise UserError(
            f"model {name!r} is unknown{did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    return MODELS[name]


@dataclass(frozen=True)
class ComputeConfig:
    """Set how this machine computes the model; it is never stored with the weights."""

    dtype: Dtype = "float32"
    """Type of matmuls and activations; parameters, softmax, LayerNorm and losses are always
    float32. auto: bfloat16 if the device has instructions for it, else float32."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing (none); all but matmul outputs (dots); each whole
    layer (full)."""
    scan_unroll: int = 0
    """Layers unrolled in each turn of the scan. 0: in training and evaluation all (with remat on a
    CPU one, because its compiler saves no memory in unrolled layers); in a model that answers up to
    24 on a CPU, elsewhere one; in exported programs one."""
    attention: Literal["auto", "xla", "cudnn", "rows", "splash"] = "auto"
    """Attention kernel; auto: cudnn on GPU, rows or splash on TPU if they can do what is asked,
    else xla."""
    fused: bool = True
    """Use gradients written by hand, which take less time and memory. False: JAX's own, which also
    have forward-mode derivatives (jvp, Hessians)."""

    def __post_init__(self) -> None:
        check_types(self, "compute")
        check_least(self, "compute", 0, "scan_unroll")
