# SPDX-License-Identifier: Apache-2.0
"""Build ONNX graphs of the network and its heads, operation by operation, in float32.

`export_onnx` writes them for servers without JAX, `onnx_engine` runs them in this process. The
layers share their weights, so that a graph has them once. Inputs are i64[B, S] ids, mask and
segments; B and S are free.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax import __version__
from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.config.heads import SEVERAL_ROWS, HeadKind
from albert_jax.config.model import AlbertConfig
from albert_jax.inference.id_arrays import INPUTS, POSITIONS
from albert_jax.models.attention_plain import PADDING_LOGIT
from albert_jax.models.heads import HEADS
from albert_jax.utils.errors import UserError

OPSET = 20  # the first with Gelu
LIBRARIES = ("onnx", "onnxruntime")
TOP_K, TARGETS = "top_k", "targets"  # inputs of the fill-mask graph


def require_libraries(what: str) -> None:
    """Raise UserError if onnx or onnxruntime is not installed; `what` needs them."""
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UserError(f"{what} needs {' and '.join(missing)}; pip install 'albert-jax[onnx]'")


@dataclass(frozen=True)
class Weights:
    """Hold what a graph is made of.

    Attributes:
        config: the architecture.
        params: the parameters by part.
        pieces: the number of pieces in the vocabulary; the first rows of the word embeddings.
    """

    config: AlbertConfig
    params: Mapping[str, Any]
    pieces: int


class _Graph:
    """Collect nodes and weights of a graph; a value is known by its name."""

    def __init__(self, params: Mapping[str, np.ndarray]) -> None:
        self._params = params
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self._numbers = itertools.count()

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        from onnx import helper

        name = f"{operation}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name, **attributes))
        return name

    def weight(self, name: str, *, transposed: bool = False) -> str:
        """Return the name of a parameter of the model, which the graph stores once."""
        array = self._params[name]
        key = f"{name}/transposed" if transposed else name
        self.weights[key] = np.ascontiguousarray(array.T if transposed else array, np.float32)
        return key

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """Return a constant."""
        key = f"constant/{np.dtype(dtype)}/{value}"
        self.weights[key] = np.asarray(value, dtype)
        return key

    def likeliest(self, x: str, count: str) -> tuple[str, str]:
        """Return the largest values along the last axis, and their places, best first."""
        from onnx import helper

        names = [f"TopK_{next(self._numbers)}_{part}" for part in ("values", "places")]
        self.nodes.append(helper.make_node("TopK", [x, count], names, names[0], axis=-1))
        return names[0], names[1]

    def dense(self, x: str, name: str) -> str:
        """Return x kernel + bias."""
        product = self.add("MatMul", x, self.weight(f"{name}/kernel"))
        return self.add("Add", product, self.weight(f"{name}/bias"))

    def layer_norm(self, x: str, name: str, epsilon: float) -> str:
        """Return LayerNorm over the last axis."""
        weights = (self.weight(f"{name}/{part}") for part in ("scale", "bias"))
        return self.add("LayerNormalization", x, *weights, axis=-1, epsilon=epsilon)

    def activation(self, x: str, name: str) -> str:
        """Return the output of the configuration's activation of that name."""
        if name in ("gelu", "gelu_erf"):
            return self.add("Gelu", x, approximate="tanh" if name == "gelu" else "none")
        if name == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        return x if name == "linear" else self.add({"relu": "Relu", "tanh": "Tanh"}[name], x)


def _sequence(graph: _Graph, model: Weights, inputs: Sequence[str]) -> str:
    """Add the encoder on ids, mask and segments [B, S]; return its output [B, S, H]."""
    c, (ids, mask, segments) = model.config, inputs
    rows = graph.add(
        "Slice",
        graph.weight("embeddings/position_embeddings"),
        graph.constant([0]),
        graph.add("Shape", ids, start=1, end=2),
    )
    words = graph.add("Gather", graph.weight("embeddings/word_embeddings"), ids)
    types = graph.add("Gather", graph.weight("embeddings/token_type_embeddings"), segments)
    x = graph.add("Add", graph.add("Add", words, types), rows)
    x = graph.layer_norm(x, "embeddings/LayerNorm", c.layer_norm_eps)
    if "embedding_hidden_mapping_in" in model.params["encoder"]:
        x = graph.dense(x, "encoder/embedding_hidden_mapping_in")
    hidden = graph.add("Sub", graph.constant(1.0, np.float32), graph.add("Cast", mask, to=1))
    padding = graph.add("Mul", hidden, graph.constant(PADDING_LOGIT, np.float32))
    padding = graph.add("Unsqueeze", padding, graph.constant([1, 2]))
    for group, length in enumerate(c.group_lengths):
        for _ in range(length):
            for inner in range(c.inner_group_num):
                x = _block(graph, model, x, padding, f"encoder/group_{group}/inner_group_{inner}")
    return x


def _block(graph: _Graph, model: Weights, x: str, padding: str, name: str) -> str:
    c = model.config
    shape = graph.constant([0, 0, c.num_attention_heads, c.head_size])

    def heads(part: str, order: list[int]) -> str:
        projected = graph.dense(x, f"{name}/attention/{part}")
        return graph.add("Transpose", graph.add("Reshape", projected, shape), perm=order)

    query, value = heads("query", [0, 2, 1, 3]), heads("value", [0, 2, 1, 3])
    scores = graph.add("MatMul", query, heads("key", [0, 2, 3, 1]))
    scores = graph.add("Mul", scores, graph.constant(1 / np.sqrt(c.head_size), np.float32))
    probs = graph.add("Softmax", graph.add("Add", scores, padding), axis=-1)
    context = graph.add("Transpose", graph.add("MatMul", probs, value), perm=[0, 2, 1, 3])
    context = graph.add("Reshape", context, graph.constant([0, 0, c.hidden_size]))
    attended = graph.add("Add", graph.dense(context, f"{name}/attention/output"), x)
    x = graph.layer_norm(attended, f"{name}/LayerNorm", c.layer_norm_eps)
    wide = graph.activation(graph.dense(x, f"{name}/ffn"), c.hidden_act)
    out = graph.add("Add", graph.dense(wide, f"{name}/ffn_output"), x)
    return graph.layer_norm(out, f"{name}/LayerNorm_1", c.layer_norm_eps)


def _pooled(graph: _Graph, sequence: str) -> str:
    first = graph.add("Gather", sequence, graph.constant(0), axis=1)
    return graph.add("Tanh", graph.dense(first, "pooler"))


def encode_graph(model: Weights) -> Any:
    """Return the graph of `sequence` [B, S, H], zero at padding, and of `pooled` [B, H]."""
    graph = _Graph(named_leaves(dict(model.params)))
    sequence = _sequence(graph, model, INPUTS)
    seen = graph.add("Unsqueeze", graph.add("Cast", INPUTS[1], to=1), graph.constant([2]))
    outputs = {"sequence": (graph.add("Mul", sequence, seen), ["B", "S", model.config.hidden_size])}
    if "pooler" in model.params:
        outputs["pooled"] = (_pooled(graph, sequence), ["B", model.config.hidden_size])
    return _model(graph, ["B", "S"], outputs)


def fill_mask_graph(model: Weights, top_k: int | None = None, *, has_targets: bool = False) -> Any:
    """Return the graph of `scores` and `tokens` [B, P, K] at masked positions i64[B, P].

    Without `top_k` it is one more input, `top_k` i64[1]. With `has_targets` the pieces that may be
    answered are another, `targets` i64[T].
    """
    graph, c = _Graph(named_leaves(dict(model.params))), model.config
    sequence = _sequence(graph, model, INPUTS)
    places = graph.add("Unsqueeze", POSITIONS, graph.constant([2]))
    hidden = graph.add("GatherND", sequence, places, batch_dims=1)  # [B, P, H]
    x = graph.activation(graph.dense(hidden, "predictions/transform"), c.hidden_act)
    x = graph.layer_norm(x, "predictions/LayerNorm", c.layer_norm_eps)
    # Turned in the graph, so that the file has the table once; a runtime does it when it loads.
    table = graph.add("Transpose", graph.weight("embeddings/word_embeddings"), perm=[1, 0])
    logits = graph.add("MatMul", x, table)
    logits = graph.add("Add", logits, graph.weight("predictions/output_bias"))
    probs = graph.add("Softmax", logits, axis=-1)
    more: dict[str, list[Any]] = {POSITIONS: ["B", "P"]}
    if top_k is None:
        count, more[TOP_K] = TOP_K, [1]
    else:
        count = graph.constant([top_k])
    if has_targets:
        more[TARGETS] = ["T"]
        found, places = graph.likeliest(graph.add("Gather", probs, TARGETS, axis=2), count)
        tokens = graph.add("Gather", TARGETS, places)
    else:
        ends = (graph.constant([n]) for n in (0, model.pieces, 2))  # of rows that have a piece
        found, tokens = graph.likeliest(graph.add("Slice", probs, *ends), count)
    answers = top_k or "K"
    outputs = {"scores": (found, ["B", "P", answers]), "tokens": (tokens, ["B", "P", answers])}
    return _model(graph, ["B", "S"], outputs, more)


def sentence_order_graph(model: Weights) -> Any:
    """Return the graph of `probability` [B] that two segments are in the right order."""
    graph = _Graph(named_leaves(dict(model.params)))
    pooled, name = _pooled(graph, _sequence(graph, model, INPUTS)), "seq_relationship"
    weights = graph.weight(f"{name}/output_weights", transposed=True)
    logits = graph.add("MatMul", pooled, weights)
    logits = graph.add("Add", logits, graph.weight(f"{name}/output_bias"))
    probs = graph.add("Softmax", logits, axis=-1)
    right = graph.add("Gather", probs, graph.constant(0), axis=1)
    return _model(graph, ["B", "S"], {"probability": (right, ["B"])})


def require_head_graph(kind: HeadKind, model: str | Path, advice: str) -> None:
    """Raise UserError, with the advice, if a head of that kind has no graph: span_v2's beam."""
    if kind == "span_v2":
        raise UserError(f"{model} has a span_v2 head, which has no ONNX graph; {advice}")


def head_graph(model: Weights, kind: HeadKind) -> Any:
    """Return the graph of the outputs of a fine-tuned head, as `Task.predictions` lists them.

    `require_head_graph` says which kinds have none.
    """
    graph = _Graph(named_leaves(dict(model.params)))
    inputs, shape = INPUTS, list[Any](("B", "S"))
    if kind in SEVERAL_ROWS:
        shape = ["B", "C" if kind == "multiple_choice" else 2, "S"]
        length = graph.add("Shape", INPUTS[0], start=2, end=3)
        flat = graph.add("Concat", graph.constant([-1]), length, axis=0)
        inputs = tuple(graph.add("Reshape", name, flat) for name in INPUTS)  # type: ignore[assignment]
    hidden = _sequence(graph, model, inputs)
    if kind == "similarity":
        return _model(graph, shape, {"logits": (_cosine(graph, hidden, inputs[1]), ["B", 1])})
    if HEADS[kind].pooled:
        hidden = _pooled(graph, hidden)
    product = graph.add("MatMul", hidden, graph.weight("head/output_weights", transposed=True))
    logits = graph.add("Add", product, graph.weight("head/output_bias"))
    outputs: int = model.params["head"]["output_bias"].shape[0]
    if kind == "span_v1":
        ends = (graph.constant(n) for n in (0, 1))
        start, end = (graph.add("Gather", logits, at, axis=2) for at in ends)
        return _model(graph, shape, {"start_logits": (start, shape), "end_logits": (end, shape)})
    if kind == "multiple_choice":
        logits = graph.add("Reshape", logits, graph.add("Shape", INPUTS[0], start=0, end=2))
        return _model(graph, shape, {"logits": (logits, ["B", "C"])})
    per_token = kind == "token_classification"
    return _model(graph, shape, {"logits": (logits, [*shape[: 1 + per_token], outputs])})


def _cosine(graph: _Graph, sequence: str, mask: str) -> str:
    """Return the cosine [B, 1] of the mean vectors of each two rows, as `heads.Similarity`."""
    from onnx import TensorProto

    weights = graph.add("Cast", mask, to=TensorProto.FLOAT)
    weights = graph.add("Unsqueeze", weights, graph.constant([1]))
    sums = graph.add("Squeeze", graph.add("MatMul", weights, sequence), graph.constant([1]))
    length = graph.add("ReduceL2", sums, graph.constant([1]), keepdims=1)
    length = graph.add("Max", length, graph.constant(1e-6, np.float32))
    units = graph.add("Div", sums, length)
    hidden = graph.add("Shape", units, start=1, end=2)
    each = graph.add("Concat", graph.constant([-1, 2]), hidden, axis=0)
    units = graph.add("Reshape", units, each)
    first, second = (graph.add("Gather", units, graph.constant(n), axis=1) for n in (0, 1))
    product = graph.add("Mul", first, second)
    return graph.add("ReduceSum", product, graph.constant([1]), keepdims=1)


def _model(
    graph: _Graph,
    shape: list[Any],
    outputs: Mapping[str, tuple[str, list[Any]]],
    more: Mapping[str, list[Any]] | None = None,
) -> Any:
    """Return the model with inputs of that shape, and outputs by name with their shapes.

    `more` has the shapes of inputs beside ids, mask and segments.
    """
    from onnx import TensorProto, helper, numpy_helper

    shapes = dict.fromkeys(INPUTS, shape) | dict(more or {})
    for name, (value, _) in outputs.items():
        graph.nodes.append(helper.make_node("Identity", [value], [name], name))
    made = helper.make_graph(
        graph.nodes,
        "albert",
        [helper.make_tensor_value_info(n, TensorProto.INT64, own) for n, own in shapes.items()],
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name == "tokens" else TensorProto.FLOAT, own
            )
            for name, (_, own) in outputs.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in graph.weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        made, opset_imports=opsets, ir_version=9, producer_name=f"albert_jax {__version__}"
    )
