# SPDX-License-Identifier: Apache-2.0
"""Compare programs for servers with the model that they were made from.

A program is another lowering of the same network. It rounds elsewhere, and a network with large
weights amplifies that from layer to layer. Therefore the tolerance depends on the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from albert_jax.config.heads import SEVERAL_ROWS
from albert_jax.config.model import AlbertConfig, Dtype
from albert_jax.inference import functions
from albert_jax.inference.api import Albert
from albert_jax.utils.errors import UserError

# The least tolerance, relative to the largest value; bfloat16's 8 bits hold 2^-8.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
# Half the distance between two neighbouring numbers, relative to the number.
_HALF_STEP = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
# How much further a right program may be off than an output moves by `_shaken` parameters. In
# float32 the sums of thousands of products are rounded as well; for bfloat16 they are in float32.
_MULTIPLE = {"float32": 16, "bfloat16": 2}


def trial_inputs(config: AlbertConfig) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield random ids, mask and segments, i32[B, S], of two shapes.

    The last row is half padding.
    """
    rng = np.random.default_rng(0)
    longest = config.max_position_embeddings
    for rows, length in ((1, min(16, longest)), (3, min(24, longest))):
        ids_BS = rng.integers(config.vocab_size, size=(rows, length), dtype=np.int32)
        mask_BS = np.ones_like(ids_BS)
        mask_BS[-1, length // 2 :] = 0
        segments_BS = np.minimum(1 - mask_BS, config.type_vocab_size - 1)
        yield ids_BS, mask_BS, segments_BS


def as_head_inputs(kind: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return ids, mask and segments in the shapes that a head of that kind takes.

    They are [B, C, S] for choices; span_v2 has a p_mask in addition.
    """
    if kind in SEVERAL_ROWS:
        return [np.stack([x, x[:, ::-1]], axis=1) for x in inputs]
    return [*inputs, (1 - inputs[1]).astype(np.float32)] if kind == "span_v2" else [*inputs]


def trial_positions(mask_BS: np.ndarray) -> np.ndarray:
    """Return masked positions i32[B, P] for `trial_inputs`."""
    return np.tile(np.array([[0, 1]], np.int32), (len(mask_BS), 1))


def tolerances(
    call: Callable[[Any], Mapping[str, Array]], params: Any, dtype: Dtype
) -> dict[str, float]:
    """Return how far a program may be off each output of `call`, relative to its largest value.

    That is a multiple of how far the output moves when each parameter moves by a rounding.
    """
    outputs, moved = call(params), call(_shaken(params, dtype))
    return {
        name: max(TOLERANCE[dtype], _MULTIPLE[dtype] * distance(moved[name], output))
        for name, output in outputs.items()
    }


def encoder_tolerances(albert: Albert, *arrays: Any) -> dict[str, float]:
    """Return the `tolerances` of `sequence`, `pooled` and `scores` for trial inputs."""
    # Rolled layers compile sooner.
    compute = dataclasses.replace(albert.compute, scan_unroll=1)
    model = functions.network(albert.config, compute, albert.params)

    def call(params: Any) -> dict[str, Array]:
        output = functions.forward(model, params, functions.Inputs(*arrays))
        found = {
            "sequence": output.encoder.sequence_BSH * arrays[1][..., None],
            "pooled": output.encoder.pooled_BH,
            "scores": output.masked_lm_logits_BPV,
        }
        if found["scores"] is not None:
            found["scores"] = jax.nn.softmax(found["scores"])
        return {name: x for name, x in found.items() if x is not None}

    return tolerances(jax.jit(call), albert.params, albert.compute.dtype)


def _shaken(params: Any, dtype: Dtype) -> Any:
    """Return the parameters, each moved at random by up to half a rounding step of `dtype`."""
    rng = np.random.default_rng(0)
    most = _HALF_STEP[dtype]
    return jax.tree.map(
        lambda x: (x * (1 + rng.uniform(-most, most, x.shape))).astype(np.float32), params
    )


def distance(found: Any, wanted: Any) -> float:
    """Return the largest difference, relative to the largest wanted value or to 1."""
    found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


def require_close(found: Any, wanted: Any, tolerance: float, what: str) -> None:
    """Raise UserError if a program's output is too far from the model's."""
    worst = distance(found, wanted)
    if not worst <= tolerance:  # NaN is too far
        raise UserError(
            f"the {what} is {worst:.1e} off the model's, and rounding explains {tolerance:.1e}, "
            "so nothing was written; report it with the model's configuration"
        )


def require_likeliest(
    found: Mapping[str, Any], logits_BPV: np.ndarray, pieces: int, tolerance: float, what: str
) -> None:
    """Raise UserError if the answers are not, nearly, the likeliest pieces by the logits.

    `found` has "scores" and "tokens" [B, P, K]; only the first `pieces` can be answered.
    """
    exps_BPV = np.exp(logits_BPV - logits_BPV.max(axis=-1, keepdims=True))
    probs_BPV = exps_BPV / exps_BPV.sum(axis=-1, keepdims=True)
    likeliest_BPK = -np.sort(-probs_BPV[..., :pieces])[..., : found["scores"].shape[-1]]
    require_close(found["scores"], likeliest_BPK, tolerance, what)
    # Not the ids themselves: two pieces may be equally likely.
    own_BPK = np.take_along_axis(probs_BPV, np.asarray(found["tokens"]), axis=-1)
    require_close(own_BPK, likeliest_BPK, tolerance, what)
