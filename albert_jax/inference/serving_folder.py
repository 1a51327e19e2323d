# SPDX-License-Identifier: Apache-2.0
"""Write and check what all folders of programs for servers have in common."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax import __version__
from albert_jax.config.manifests import SERVING, HeadManifest, vocabulary_name
from albert_jax.config.model import AlbertConfig, Dtype
from albert_jax.inference.api import Albert
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject

# The tolerance between a program and `forward`, relative to the largest value; 8 bits hold 2^-8.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def require_new(dest: Path) -> None:
    """Raise UserError if `dest` exists."""
    if dest.exists():
        raise UserError(f"{dest} exists; give a new path")


def description(
    albert: Albert, made_with: Mapping[str, Any], programs: Mapping[str, Any]
) -> JsonObject:
    """Return the contents of serving.json.

    It describes the model, the tools that made the programs, and each program by its name.
    """
    tokenizer, head = albert.vocabulary, albert.head
    return {
        "format_version": 1,
        "albert_jax": __version__,
        **made_with,
        "config": dataclasses.asdict(albert.config),
        "tokenizer": tokenizer and tokenizer.settings,
        "head": head and HeadManifest.from_json(head).to_json(),
        "programs": programs,
    }


def write_beside(folder: Path, albert: Albert, described: JsonObject) -> None:
    """Write serving.json, and the vocabulary if the model has one."""
    text = json.dumps(described, indent=1)
    (folder / SERVING).write_text(f"{text}\n", encoding="utf-8")
    if albert.vocabulary is not None:
        vocabulary = albert.vocabulary.path
        shutil.copyfile(vocabulary, folder / vocabulary_name(vocabulary))


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
    if kind == "multiple_choice":
        return [np.stack([x, x[:, ::-1]], axis=1) for x in inputs]
    return [*inputs, (1 - inputs[1]).astype(np.float32)] if kind == "span_v2" else [*inputs]


def assert_close(found: Any, wanted: np.ndarray, dtype: Dtype, what: str) -> None:
    """Raise AssertionError, which is a bug, if a program's output is too far from the model's."""
    worst = np.abs(np.asarray(found) - wanted).max() / max(1.0, np.abs(wanted).max())
    assert worst <= TOLERANCE[dtype], f"the {what} is {worst:.1e} off"


def trial_positions(mask_BS: np.ndarray) -> np.ndarray:
    """Return masked positions i32[B, P] for `trial_inputs`."""
    return np.tile(np.array([[0, 1]], np.int32), (len(mask_BS), 1))


def assert_likeliest(
    found: Mapping[str, Any], logits_BPV: np.ndarray, pieces: int, dtype: Dtype, what: str
) -> None:
    """Raise AssertionError if the answers are not, nearly, the likeliest pieces by the logits.

    `found` has "scores" and "tokens" [B, P, K]; only the first `pieces` can be answered.
    """
    exps_BPV = np.exp(logits_BPV - logits_BPV.max(axis=-1, keepdims=True))
    probs_BPV = exps_BPV / exps_BPV.sum(axis=-1, keepdims=True)
    likeliest_BPK = -np.sort(-probs_BPV[..., :pieces])[..., : found["scores"].shape[-1]]
    assert_close(found["scores"], likeliest_BPK, dtype, what)
    # Not the ids themselves: two pieces may be equally likely.
    own_BPK = np.take_along_axis(probs_BPV, np.asarray(found["tokens"]), axis=-1)
    assert_close(own_BPK, likeliest_BPK, dtype, what)
