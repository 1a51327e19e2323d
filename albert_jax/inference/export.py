# SPDX-License-Identifier: Apache-2.0
"""A model as programs for a server that has JAX and none of this package.

DEST/encode.jax_export     jax.export's serialized StableHLO of `functions.encode`
DEST/fill_mask.jax_export  the same of `functions.fill_mask`, of a model that has that head
DEST/params.npz            the programs' first argument, one array for each name
DEST/serving.json          inputs and outputs, configuration, how text is cleaned, versions
DEST/spiece.model          the vocabulary, where the model has one

Batch, length and number of masked positions are symbols in the programs, and the weights are
arguments of them, so one small file serves every shape on every platform.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from albert_jax import __version__
from albert_jax.checkpoint.integrity import named_leaves, nest
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.manifests import SERVING, VOCABULARY
from albert_jax.config.model import ComputeConfig
from albert_jax.inference import functions
from albert_jax.inference.api import Albert, load
from albert_jax.utils.arguments import checked, path_of, whole_number
from albert_jax.utils.atomic import appearing_whole
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
# What a program may differ by from `forward`, relative to the largest value; 8 bits hold 2^-8.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


@checked
def export_serving(
    model: str | Path,
    dest: str | Path,
    *,
    top_k: int = 5,
    depth: int | None = None,
    compute: ComputeConfig | None = None,
) -> Path:
    """Writes the programs of a model directory to a new folder, checked against `forward`.

    Programs take params.npz as a dict and i32[B, S] arrays, fill_mask also masked positions
    i32[B, P]; they return a dict: encode "sequence" f32[B, S, H] (zeros at padding) and "pooled"
    f32[B, H], fill_mask "scores" f32[B, P, top_k] and "tokens" i32[B, P, top_k]. Raises UserError
    where something is at `dest` already and for a model whose outputs are not finite.
    """
    source = require_model_directory(model)
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "exporting needs flatbuffers, which is not installed; "
            "pip install flatbuffers, or albert-jax[serving]"
        )
    dest = path_of(dest, "dest")
    if dest.exists():
        raise UserError(f"{dest} exists; give a new path")
    # A kernel of one platform would not be a program for all of them; rolled layers are smaller.
    compute = compute or ComputeConfig()
    compute = dataclasses.replace(compute, attention="xla", scan_unroll=compute.scan_unroll or 1)
    albert = load(source, compute=compute, depth=depth)
    top_k = whole_number(top_k, "top_k", 1, albert.pieces)
    params = named_leaves({name: x for name, x in albert.params.items() if name != "head"})
    programs = {
        name: _export(call, params, albert.config.max_position_embeddings, positions=positions)
        for name, (call, positions) in _functions(albert, top_k).items()
    }
    with appearing_whole(dest) as folder:
        if dest.exists():  # since the check above
            raise UserError(f"{dest} exists; give a new path")
        for name, program in programs.items():
            (folder / f"{name}.jax_export").write_bytes(program.serialize())
        np.savez(folder / "params.npz", **params)
        description = json.dumps(_description(albert, programs), indent=1)
        (folder / SERVING).write_text(f"{description}\n", encoding="utf-8")
        if albert.vocabulary is not None:
            shutil.copyfile(albert.vocabulary.path, folder / VOCABULARY)
        _check(albert, folder)
    return dest


def _functions(albert: Albert, top_k: int) -> dict[str, tuple[Callable[..., Any], bool]]:
    """Name -> (function of flat parameters and ids, whether it takes masked positions)."""
    model = functions.network(albert.config, albert.compute, albert.params)
    blocks = albert.config.num_hidden_layers * albert.config.inner_group_num

    def encode(params: Mapping[str, Any], *inputs: Any) -> dict[str, jax.Array]:
        sequence_BSH, pooled_BH = functions.encode(model, nest(params), *inputs, layer=blocks)
        output = {"sequence": sequence_BSH, "pooled": pooled_BH}
        return {name: x for name, x in output.items() if x is not None}

    def fill_mask(params: Mapping[str, Any], *inputs: Any) -> dict[str, jax.Array]:
        scores, tokens = functions.fill_mask(
            model, nest(params), *inputs, top_k=top_k, pieces=albert.pieces
        )
        return {"scores": scores, "tokens": tokens}

    named = {"encode": (encode, False), "fill_mask": (fill_mask, True)}
    return named if "predictions" in albert.params else {"encode": named["encode"]}


def _export(
    call: Callable[..., Any], params: Mapping[str, Any], longest: int, *, positions: bool
) -> jax_export.Exported:
    batch, length, masked = jax_export.symbolic_shape("B, S, P", constraints=[f"S <= {longest}"])
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    inputs = [ids, ids, ids]
    if positions:
        inputs.append(jax.ShapeDtypeStruct((batch, masked), jnp.int32))
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    return jax_export.export(jax.jit(call), platforms=PLATFORMS)(shapes, *inputs)


def _check(albert: Albert, folder: Path) -> None:
    """Runs what was written beside `forward`, at two shapes; an AssertionError is a bug of ours."""
    with np.load(folder / "params.npz") as file:
        params = dict(file)
    programs = {
        file.stem: jax_export.deserialize(bytearray(file.read_bytes()))
        for file in folder.glob("*.jax_export")
    }
    rng = np.random.default_rng(0)
    longest = albert.config.max_position_embeddings
    for rows, length in ((1, min(16, longest)), (3, min(24, longest))):
        ids_BS = rng.integers(albert.config.vocab_size, size=(rows, length), dtype=np.int32)
        mask_BS = np.ones_like(ids_BS)
        mask_BS[-1, length // 2 :] = 0
        inputs = (ids_BS, mask_BS, 1 - mask_BS)
        positions_BP = np.tile(np.array([[0, 1]], np.int32), (rows, 1))
        wanted = albert.forward(*inputs, positions_BP)
        found = jax.jit(programs["encode"].call)(params, *inputs)
        _assert_close(found["sequence"], wanted.sequence * mask_BS[..., None], albert.compute)
        if "pooled" in found:
            assert wanted.pooled is not None
            _assert_close(found["pooled"], wanted.pooled, albert.compute)
        if "fill_mask" in programs:
            found = jax.jit(programs["fill_mask"].call)(params, *inputs, positions_BP)
            assert wanted.masked_lm_logits is not None
            probs_BPV = np.asarray(jax.nn.softmax(wanted.masked_lm_logits))
            likeliest_BPK = -np.sort(-probs_BPV[..., : albert.pieces])
            likeliest_BPK = likeliest_BPK[..., : found["scores"].shape[-1]]
            _assert_close(found["scores"], likeliest_BPK, albert.compute)
            # Not the ids themselves: two pieces may be equally likely.
            own_BPK = np.take_along_axis(probs_BPV, np.asarray(found["tokens"]), axis=-1)
            _assert_close(own_BPK, likeliest_BPK, albert.compute)


def _assert_close(found: Any, wanted: np.ndarray, compute: ComputeConfig) -> None:
    scale = max(1.0, np.abs(wanted).max())
    worst = np.abs(np.asarray(found) - wanted).max() / scale
    assert worst <= TOLERANCE[compute.dtype], f"the exported program is {worst:.1e} off"


def _description(albert: Albert, programs: Mapping[str, jax_export.Exported]) -> JsonObject:
    described, tokenizer = {}, albert.vocabulary
    for name, program in programs.items():
        (_, *inputs), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
        described[name] = {
            "inputs": {key: str(x) for key, x in zip(INPUTS, inputs, strict=False)},
            "outputs": {key: str(x) for key, x in outputs.items()},
        }
    return {
        "format_version": 1,
        "albert_jax": __version__,
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "compute": dataclasses.asdict(albert.compute),
        "config": dataclasses.asdict(albert.config),
        "tokenizer": tokenizer
        and {"mode": tokenizer.mode, "do_lower_case": tokenizer.do_lower_case},
        "programs": described,
    }
