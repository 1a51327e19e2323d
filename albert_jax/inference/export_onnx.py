# SPDX-License-Identifier: Apache-2.0
"""Export a model as ONNX graphs, for servers without JAX.

DEST/encode.onnx     ids, mask, segments i64[B, S] -> sequence f32[B, S, H], pooled f32[B, H]
DEST/fill_mask.onnx  the same and masked positions i64[B, P] -> scores f32[B, P, K],
                     tokens i64[B, P, K], of a model that has that head
DEST/predict.onnx    ids, mask, segments -> the outputs of a fine-tuned head
DEST/serving.json    inputs and outputs, configuration, how text is cleaned, the head, versions
DEST/spiece.model    the vocabulary, where the model has one; or tokenizer.json or vocab.txt

A graph is the network, operation by operation. The layers share their weights, so that a file has
them once.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax import __version__
from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.inference.api import Albert, load
from albert_jax.inference.finetuned import for_task, head_network, head_outputs
from albert_jax.inference.serving_folder import (
    INPUTS,
    POSITIONS,
    as_head_inputs,
    assert_close,
    assert_likeliest,
    description,
    require_new,
    trial_inputs,
    trial_positions,
    write_beside,
)
from albert_jax.models.attention_plain import PADDING_LOGIT
from albert_jax.models.heads import HEADS
from albert_jax.utils.arguments import checked, path_of, whole_number
from albert_jax.utils.atomic import appearing_whole
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject

OPSET = 20  # the first with Gelu
_GRAPH = "ONNX graph"
_LIBRARIES = ("onnx", "onnxruntime")


@checked
def export_onnx(
    model: str | Path, dest: str | Path, *, top_k: int = 5, depth: int | None = None
) -> Path:
    """Write a model directory as ONNX graphs to a new folder, compared with the model itself.

    Args:
        model: a model directory, or mini.
        dest: the folder to write.
        top_k: the pieces that the fill-mask graph answers at each masked position.
        depth: how often the shared layer runs; None, as the configuration says.

    Returns:
        The folder.

    Raises:
        UserError: if `dest` exists, a library is not installed, the head is span_v2, whose beam has
            no graph, or the model's outputs are not finite.
    """
    source = require_model_directory(model)
    if missing := [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"exporting to ONNX needs {' and '.join(missing)}; pip install 'albert-jax[onnx]'"
        )
    dest = path_of(dest, "dest")
    require_new(dest)
    albert = load(source, depth=depth)
    if albert.head is not None and albert.head["kind"] == "span_v2":
        raise UserError(
            f"the head of {model} is span_v2, which has no ONNX graph; export its StableHLO "
            "programs instead: leave out --to onnx"
        )
    top_k = whole_number(top_k, "top_k", 1, albert.pieces)
    graphs = {"encode": _encode_graph(albert)}
    if "predictions" in albert.params:
        graphs["fill_mask"] = _fill_mask_graph(albert, top_k)
    if albert.head is not None:
        graphs["predict"] = _head_graph(albert)
    import onnx

    with appearing_whole(dest) as folder:
        require_new(dest)  # since the check above
        for name, graph in graphs.items():
            onnx.save(graph, str(folder / f"{name}.onnx"))
            onnx.checker.check_model(str(folder / f"{name}.onnx"), full_check=True)
        write_beside(folder, albert, _description(albert, graphs))
        _check(albert, folder, list(graphs))
    return dest


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

    def likeliest(self, x: str, count: int) -> tuple[str, str]:
        """Return the largest values along the last axis, and their places, best first."""
        from onnx import helper

        names = [f"TopK_{next(self._numbers)}_{part}" for part in ("values", "places")]
        inputs = [x, self.constant([count])]
        self.nodes.append(helper.make_node("TopK", inputs, names, names[0], axis=-1))
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


def _sequence(graph: _Graph, albert: Albert, inputs: Sequence[str]) -> str:
    """Add the encoder on ids, mask and segments [B, S]; return its output [B, S, H]."""
    c, (ids, mask, segments) = albert.config, inputs
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
    if "embedding_hidden_mapping_in" in albert.params["encoder"]:
        x = graph.dense(x, "encoder/embedding_hidden_mapping_in")
    hidden = graph.add("Sub", graph.constant(1.0, np.float32), graph.add("Cast", mask, to=1))
    padding = graph.add("Mul", hidden, graph.constant(PADDING_LOGIT, np.float32))
    padding = graph.add("Unsqueeze", padding, graph.constant([1, 2]))
    for group, length in enumerate(c.group_lengths):
        for _ in range(length):
            for inner in range(c.inner_group_num):
                x = _block(graph, albert, x, padding, f"encoder/group_{group}/inner_group_{inner}")
    return x


def _block(graph: _Graph, albert: Albert, x: str, padding: str, name: str) -> str:
    c = albert.config
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


def _encode_graph(albert: Albert) -> Any:
    graph = _Graph(named_leaves(albert.params))
    sequence = _sequence(graph, albert, INPUTS)
    seen = graph.add("Unsqueeze", graph.add("Cast", INPUTS[1], to=1), graph.constant([2]))
    outputs = {
        "sequence": (graph.add("Mul", sequence, seen), ["B", "S", albert.config.hidden_size])
    }
    if "pooler" in albert.params:
        outputs["pooled"] = (_pooled(graph, sequence), ["B", albert.config.hidden_size])
    return _model(graph, ["B", "S"], outputs)


def _fill_mask_graph(albert: Albert, top_k: int) -> Any:
    graph, c = _Graph(named_leaves(albert.params)), albert.config
    sequence = _sequence(graph, albert, INPUTS)
    places = graph.add("Unsqueeze", POSITIONS, graph.constant([2]))
    hidden = graph.add("GatherND", sequence, places, batch_dims=1)  # [B, P, H]
    x = graph.activation(graph.dense(hidden, "predictions/transform"), c.hidden_act)
    x = graph.layer_norm(x, "predictions/LayerNorm", c.layer_norm_eps)
    # Turned in the graph, so that the file has the table once; a runtime does it when it loads.
    table = graph.add("Transpose", graph.weight("embeddings/word_embeddings"), perm=[1, 0])
    logits = graph.add("MatMul", x, table)
    logits = graph.add("Add", logits, graph.weight("predictions/output_bias"))
    probs = graph.add("Softmax", logits, axis=-1)
    ends = (graph.constant([n]) for n in (0, albert.pieces, 2))  # of rows that have a piece
    scores, tokens = graph.likeliest(graph.add("Slice", probs, *ends), top_k)
    outputs = {"scores": (scores, ["B", "P", top_k]), "tokens": (tokens, ["B", "P", top_k])}
    return _model(graph, ["B", "S"], outputs, {POSITIONS: ["B", "P"]})


def _head_graph(albert: Albert) -> Any:
    assert albert.head is not None
    graph, kind = _Graph(named_leaves(albert.params)), albert.head["kind"]
    inputs, shape = INPUTS, ["B", "S"]
    if kind == "multiple_choice":
        shape = ["B", "C", "S"]
        length = graph.add("Shape", INPUTS[0], start=2, end=3)
        flat = graph.add("Concat", graph.constant([-1]), length, axis=0)
        inputs = tuple(graph.add("Reshape", name, flat) for name in INPUTS)  # type: ignore[assignment]
    hidden = _sequence(graph, albert, inputs)
    if HEADS[kind].pooled:
        hidden = _pooled(graph, hidden)
    product = graph.add("MatMul", hidden, graph.weight("head/output_weights", transposed=True))
    logits = graph.add("Add", product, graph.weight("head/output_bias"))
    outputs: int = albert.params["head"]["output_bias"].shape[0]
    if kind == "span_v1":
        ends = (graph.constant(n) for n in (0, 1))
        start, end = (graph.add("Gather", logits, at, axis=2) for at in ends)
        return _model(graph, shape, {"start_logits": (start, shape), "end_logits": (end, shape)})
    if kind == "multiple_choice":
        logits = graph.add("Reshape", logits, graph.add("Shape", INPUTS[0], start=0, end=2))
        return _model(graph, shape, {"logits": (logits, ["B", "C"])})
    per_token = kind == "token_classification"
    return _model(graph, shape, {"logits": (logits, [*shape[: 1 + per_token], outputs])})


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


def _check(albert: Albert, folder: Path, names: Sequence[str]) -> None:
    """Compare the graphs with the model, at two shapes; an AssertionError is a bug."""
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(
            str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        for name in names
    }
    for arrays in trial_inputs(albert.config):
        positions_BP = trial_positions(arrays[1])
        wanted = albert.forward(*arrays, positions_BP)
        found = _run(sessions["encode"], arrays)
        _assert_close(found["sequence"], wanted.sequence * arrays[1][..., None])
        if wanted.pooled is not None and "pooled" in found:
            _assert_close(found["pooled"], wanted.pooled)
        if "fill_mask" in sessions:
            assert wanted.masked_lm_logits is not None
            _require_finite(wanted.masked_lm_logits)
            found = _run(sessions["fill_mask"], [*arrays, positions_BP])
            logits_BPV = wanted.masked_lm_logits
            assert_likeliest(found, logits_BPV, albert.pieces, "float32", _GRAPH)
        if "predict" in sessions:
            _check_head(albert, sessions["predict"], arrays)


def _check_head(albert: Albert, session: Any, arrays: Sequence[np.ndarray]) -> None:
    assert albert.head is not None
    kind = albert.head["kind"]
    model = head_network(albert.config, albert.compute, kind, albert.params)
    arrays = as_head_inputs(kind, arrays)
    batch = dict(zip(INPUTS, arrays, strict=True))
    outputs = head_outputs(model, for_task(albert.params), batch)  # type: ignore[arg-type]
    for name, found in _run(session, arrays).items():
        _assert_close(found, np.asarray(outputs[name]))


def _run(session: Any, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    inputs = [value.name for value in session.get_inputs()]
    given = {name: x.astype(np.int64) for name, x in zip(inputs, arrays, strict=True)}
    return dict(zip(names, session.run(names, given), strict=True))


def _assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    _require_finite(wanted)
    assert_close(found, wanted, "float32", _GRAPH)


def _require_finite(wanted: np.ndarray) -> None:
    if not np.isfinite(wanted).all():
        raise UserError("the model's output is not finite; prove its weights: albert-jax verify")


def _description(albert: Albert, graphs: Mapping[str, Any]) -> JsonObject:
    def shapes(values: Any) -> dict[str, str]:
        return {
            value.name: ",".join(
                d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim
            )
            for value in values
        }

    described = {
        name: {"inputs": shapes(made.graph.input), "outputs": shapes(made.graph.output)}
        for name, made in graphs.items()
    }
    return description(albert, {"onnx_opset": OPSET}, described)
