# SPDX-License-Identifier: Apache-2.0
"""Export a model as ONNX graphs, for servers without JAX.

DEST/encode.onnx     ids, mask, segments i64[B, S] -> sequence f32[B, S, H], pooled f32[B, H]
DEST/fill_mask.onnx  the same and masked positions i64[B, P] -> scores f32[B, P, K],
                     tokens i64[B, P, K], of a model that has that head
DEST/predict.onnx    ids, mask, segments -> the outputs of a fine-tuned head
DEST/serving.json    inputs and outputs, configuration, how text is cleaned, the head, versions
DEST/spiece.model    the vocabulary, where the model has one; or tokenizer.json or vocab.txt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.inference.api import Albert, load
from albert_jax.inference.finetuned import for_task, head_network, head_outputs, is_finite
from albert_jax.inference.id_arrays import INPUTS, POSITIONS
from albert_jax.inference.onnx_engine import run
from albert_jax.inference.onnx_graphs import (
    OPSET,
    Weights,
    encode_graph,
    fill_mask_graph,
    head_graph,
    require_head_graph,
    require_libraries,
)
from albert_jax.inference.serving_check import (
    as_head_inputs,
    encoder_tolerances,
    require_close,
    require_likeliest,
    tolerances,
    trial_inputs,
    trial_positions,
)
from albert_jax.inference.serving_folder import description, require_new, write_beside
from albert_jax.utils.arguments import checked, path_of, whole_number
from albert_jax.utils.atomic import appearing_whole
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.remote_fs import require_here
from albert_jax.utils.wording import setting

_GRAPH = "ONNX graph's output"


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
    require_libraries("exporting to ONNX")
    require_here(dest)
    dest = path_of(dest, "dest")
    require_new(dest)
    albert = load(source, depth=depth)
    if albert.head is not None:
        advice = f"export its StableHLO programs instead: leave out {setting('to', 'onnx')}"
        require_head_graph(albert.head["kind"], model, advice)
    top_k = whole_number(top_k, "top_k", 1, albert.pieces)
    weights = Weights(albert.config, albert.params, albert.pieces)
    graphs = {"encode": encode_graph(weights)}
    if "predictions" in albert.params:
        graphs["fill_mask"] = fill_mask_graph(weights, top_k)
    if albert.head is not None:
        graphs["predict"] = head_graph(weights, albert.head["kind"])
    import onnx

    with appearing_whole(dest) as folder:
        require_new(dest)  # since the check above
        for name, graph in graphs.items():
            onnx.save(graph, str(folder / f"{name}.onnx"))
            onnx.checker.check_model(str(folder / f"{name}.onnx"), full_check=True)
        write_beside(folder, albert, _description(albert, graphs))
        _check(albert, folder, list(graphs))
    return dest


def _check(albert: Albert, folder: Path, names: Sequence[str]) -> None:
    """Compare the graphs with the model, at two shapes."""
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
        allowed = encoder_tolerances(albert, *arrays, positions_BP)
        given = dict(zip(INPUTS, arrays, strict=True))
        found = run(sessions["encode"], given)
        sequence_BSH = wanted.sequence * arrays[1][..., None]
        require_close(found["sequence"], sequence_BSH, allowed["sequence"], _GRAPH)
        if wanted.pooled is not None and "pooled" in found:
            require_close(found["pooled"], wanted.pooled, allowed["pooled"], _GRAPH)
        if "fill_mask" in sessions:
            assert wanted.masked_lm_logits is not None
            found = run(sessions["fill_mask"], {**given, POSITIONS: positions_BP})
            logits_BPV = wanted.masked_lm_logits
            require_likeliest(found, logits_BPV, albert.pieces, allowed["scores"], _GRAPH)
        if "predict" in sessions:
            _check_head(albert, sessions["predict"], arrays)


def _check_head(albert: Albert, session: Any, arrays: Sequence[np.ndarray]) -> None:
    assert albert.head is not None
    kind = albert.head["kind"]
    model = head_network(albert.config, albert.compute, kind, albert.params)
    arrays = as_head_inputs(kind, arrays)
    batch = dict(zip(INPUTS, arrays, strict=True))
    head = jax.jit(lambda params: head_outputs(model, params, batch))  # type: ignore[arg-type]
    params = for_task(albert.params)
    wanted = {name: np.asarray(output) for name, output in head(params).items()}
    if not is_finite(wanted):
        raise UserError(
            f"the outputs of {albert.source or 'the model'} are not finite; prove its weights "
            "with albert-jax verify"
        )
    allowed = tolerances(head, params, "float32")
    for name, found in run(session, batch).items():
        require_close(found, wanted[name], allowed[name], _GRAPH)


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
