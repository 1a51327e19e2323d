# SPDX-License-Identifier: Apache-2.0
"""Export a model as programs for a server that has JAX and none of this package.

DEST/encode.jax_export     jax.export's serialized StableHLO of `functions.encode`
DEST/fill_mask.jax_export  the same of `functions.fill_mask`, of a model that has that head
DEST/predict.jax_export    the same of `finetuned.head_outputs`, of a fine-tuned model
DEST/params.npz            the programs' first argument, one array for each name
DEST/serving.json          inputs and outputs, configuration, how text is cleaned, the head's task
                           and labels, versions
DEST/spiece.model          the vocabulary, where the model has one; or tokenizer.json or vocab.txt

Batch, length and number of masked positions are symbols in the programs, and the weights are
arguments. Therefore one small file serves every shape on every platform.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax import export as jax_export

from albert_jax.checkpoint.integrity import named_leaves, nest
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.heads import BEAM, SEVERAL_ROWS
from albert_jax.config.model import ComputeConfig
from albert_jax.inference import functions
from albert_jax.inference.api import Albert, load
from albert_jax.inference.export_onnx import export_onnx
from albert_jax.inference.finetuned import for_task, head_network, head_outputs
from albert_jax.inference.id_arrays import INPUTS, POSITIONS
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

PLATFORMS = ("cpu", "cuda", "tpu")
_PROGRAM = "exported program's output"


@checked
def export_serving(
    model: str | Path,
    dest: str | Path,
    *,
    to: Literal["stablehlo", "onnx"] = "stablehlo",
    top_k: int = 5,
    depth: int | None = None,
    compute: ComputeConfig | None = None,
) -> Path:
    """Write a model's programs to a new folder, checked against `Albert.forward`.

    Each program takes the arrays of params.npz as a dict, then i32[B, S] arrays (multiple choice:
    i32[B, C, S], similarity: i32[B, 2, S]). `fill_mask` also takes masked positions i32[B, P], and
    `predict` of the span_v2 head takes p_mask f32[B, S]. Each returns a dict. `encode`: "sequence"
    f32[B, S, H], zeros at padding, and "pooled" f32[B, H]. `fill_mask`: "scores" f32[B, P, top_k]
    and "tokens" i32[B, P, top_k]. `predict`: the head's outputs, which
    `tasks.base.Task.predictions` takes.

    Args:
        model: a model directory.
        dest: the folder to write, which must not exist.
        to: "stablehlo" for JAX, or "onnx" for ONNX graphs of the same inputs and outputs, which
            hold the weights and take i64 (docs/serving.md).
        top_k: pieces that `fill_mask` returns for each masked position.
        depth: how often the shared layer runs; unset, as often as the configuration says.
        compute: how the programs compute; unset, in float32. ONNX graphs compute in float32.

    Returns:
        The path of the folder.

    Raises:
        UserError: if `dest` exists, a library is not installed, the model's outputs are not finite,
            or ONNX has no graph for the head, which is span_v2.
    """
    if to == "onnx":
        if compute not in (None, ComputeConfig()):
            raise UserError(
                f"{setting('to', 'onnx')} exports only float32; leave out "
                f"{setting('compute', flag='dtype')}"
            )
        return export_onnx(model, dest, top_k=top_k, depth=depth)
    source = require_model_directory(model)
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "exporting needs flatbuffers, which is not installed; "
            "pip install flatbuffers, or albert-jax[serving]"
        )
    require_here(dest)
    dest = path_of(dest, "dest")
    require_new(dest)
    # A kernel of one platform would not be a program for all of them; rolled layers are smaller.
    compute = compute or ComputeConfig()
    compute = dataclasses.replace(compute, attention="xla", scan_unroll=compute.scan_unroll or 1)
    albert = load(source, compute=compute, depth=depth)
    top_k = whole_number(top_k, "top_k", 1, albert.pieces)
    params = named_leaves(albert.params)
    programs = {
        name: _export(call, params, inputs, constraints)
        for name, (call, inputs, constraints) in _functions(albert, top_k).items()
    }
    with appearing_whole(dest) as folder:
        require_new(dest)  # since the check above
        for name, program in programs.items():
            (folder / f"{name}.jax_export").write_bytes(program.serialize())
        np.savez(folder / "params.npz", **params)
        write_beside(folder, albert, _description(albert, programs))
        _check(albert, folder)
    return dest


# A program's function of flat parameters and arrays, the arrays' shapes by name, and constraints on
# these shapes.
Program = tuple[Callable[..., Any], dict[str, str], list[str]]


def _functions(albert: Albert, top_k: int) -> dict[str, Program]:
    """Return the programs by name."""
    model = functions.network(albert.config, albert.compute, albert.params)
    blocks = albert.config.num_hidden_layers * albert.config.inner_group_num
    ids = dict.fromkeys(INPUTS, "B, S")
    constraints = [f"S <= {albert.config.max_position_embeddings}"]

    def encode(params: Mapping[str, Any], *inputs: Any) -> dict[str, jax.Array]:
        sequence_BSH, pooled_BH = functions.encode(
            model, nest(params), functions.Inputs(*inputs), layer=blocks
        )
        output = {"sequence": sequence_BSH, "pooled": pooled_BH}
        return {name: x for name, x in output.items() if x is not None}

    def fill_mask(params: Mapping[str, Any], *inputs: Any) -> dict[str, jax.Array]:
        scores, tokens = functions.fill_mask(
            model, nest(params), functions.Inputs(*inputs), top_k=top_k, pieces=albert.pieces
        )
        return {"scores": scores, "tokens": tokens}

    programs: dict[str, Program] = {"encode": (encode, ids, constraints)}
    if "predictions" in albert.params:
        programs["fill_mask"] = (fill_mask, ids | {POSITIONS: "B, P"}, constraints)
    if albert.head is not None:
        programs["predict"] = _head_program(albert, ids, constraints)
    return programs


def _head_program(albert: Albert, ids: Mapping[str, str], constraints: list[str]) -> Program:
    """Return the program of a fine-tuned head."""
    assert albert.head is not None
    kind = albert.head["kind"]
    model = head_network(albert.config, albert.compute, kind, albert.params)
    shapes = dict(ids)
    if kind in SEVERAL_ROWS:
        shapes = dict.fromkeys(ids, "B, C, S" if kind == "multiple_choice" else "B, 2, S")
    if kind == "span_v2":
        shapes["p_mask"] = "B, S"
        constraints = [*constraints, f"S >= {BEAM}"]

    def predict(params: Mapping[str, Any], *inputs: Any) -> dict[str, Array]:
        batch = dict(zip(shapes, inputs, strict=True))
        return head_outputs(model, for_task(nest(params)), batch)

    return predict, shapes, constraints


def _export(
    call: Callable[..., Any],
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    constraints: list[str],
) -> jax_export.Exported:
    scope = jax_export.SymbolicScope(constraints)
    arrays = [
        jax.ShapeDtypeStruct(
            jax_export.symbolic_shape(shape, scope=scope),
            jnp.float32 if name == "p_mask" else jnp.int32,
        )
        for name, shape in inputs.items()
    ]
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    return jax_export.export(jax.jit(call), platforms=PLATFORMS)(shapes, *arrays)


def _check(albert: Albert, folder: Path) -> None:
    """Compare the written programs with `forward`, at two shapes."""
    with np.load(folder / "params.npz") as file:
        params = dict(file)
    programs = {
        file.stem: jax_export.deserialize(bytearray(file.read_bytes()))
        for file in folder.glob("*.jax_export")
    }
    for inputs in trial_inputs(albert.config):
        mask_BS = inputs[1]
        positions_BP = trial_positions(mask_BS)
        if "predict" in programs:
            _check_head(albert, programs["predict"], params, inputs)
        wanted = albert.forward(*inputs, positions_BP)
        allowed = encoder_tolerances(albert, *inputs, positions_BP)
        found = jax.jit(programs["encode"].call)(params, *inputs)
        sequence_BSH = wanted.sequence * mask_BS[..., None]
        require_close(found["sequence"], sequence_BSH, allowed["sequence"], _PROGRAM)
        if "pooled" in found:
            assert wanted.pooled is not None
            require_close(found["pooled"], wanted.pooled, allowed["pooled"], _PROGRAM)
        if "fill_mask" in programs:
            found = jax.jit(programs["fill_mask"].call)(params, *inputs, positions_BP)
            assert wanted.masked_lm_logits is not None
            logits_BPV = wanted.masked_lm_logits
            require_likeliest(found, logits_BPV, albert.pieces, allowed["scores"], _PROGRAM)


def _check_head(
    albert: Albert,
    program: jax_export.Exported,
    params: Mapping[str, np.ndarray],
    inputs: Sequence[np.ndarray],
) -> None:
    """Compare the program of the head with the head itself."""
    assert albert.head is not None
    call, _, _ = _head_program(albert, dict.fromkeys(INPUTS, "B, S"), [])
    arrays = as_head_inputs(albert.head["kind"], inputs)
    found = jax.jit(program.call)(params, *arrays)
    head = jax.jit(call)
    wanted = head(params, *arrays)
    allowed = tolerances(lambda x: head(x, *arrays), params, albert.compute.dtype)
    for name, array in wanted.items():
        # Of a beam not the places themselves: two may be equally likely.
        if not name.endswith("_index"):
            if not np.isfinite(np.asarray(array)).all():
                raise UserError(f"the outputs of the head are not finite ({name})")
            require_close(found[name], array, allowed[name], _PROGRAM)


def _description(albert: Albert, programs: Mapping[str, jax_export.Exported]) -> JsonObject:
    described = {}
    for name, program in programs.items():
        (_, *inputs), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
        described[name] = {
            "inputs": {key: str(x) for key, x in zip(_names(name), inputs, strict=False)},
            "outputs": {key: str(x) for key, x in outputs.items()},
        }
    made_with = {
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "compute": dataclasses.asdict(albert.compute),
    }
    return description(albert, made_with, described)


def _names(program: str) -> tuple[str, ...]:
    """Return the names of a program's arrays."""
    return (*INPUTS, "p_mask" if program == "predict" else POSITIONS)
