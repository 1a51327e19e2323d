# SPDX-License-Identifier: Apache-2.0
"""Made-up models in every format, for the tests of conversion and of model directories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.checkpoint.convert.parameters import MAPPING, parameter_shapes, part_of
from albert_jax.checkpoint.convert.readers import Weights
from albert_jax.checkpoint.convert.tf_bundle import write_checkpoint
from albert_jax.checkpoint.convert.tf_names import tf_names
from albert_jax.checkpoint.convert.writers import write_hf
from albert_jax.checkpoint.integrity import seal
from albert_jax.config.manifests import HeadManifest
from albert_jax.config.model import AlbertConfig

SMALL = AlbertConfig(
    vocab_size=50,
    embedding_size=4,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
)
PRETRAINING = ("pooler", "predictions", "seq_relationship")
# Where each head lies in TF1: the original's graph has the pooler always, the other heads never.
OUTPUTS = {
    "multi_label": 3,
    "classification": 3,
    "regression": 1,
    "multiple_choice": 1,
    "similarity": 0,
    "token_classification": 5,
    "span_v1": 2,
    "span_v2": 0,
}


def made_up(
    config: AlbertConfig = SMALL, parts: tuple[str, ...] = PRETRAINING, head: str | None = None
) -> dict[str, np.ndarray]:
    """Random parameters by path: embeddings, encoder, `parts`, and a head if asked for."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config, head, OUTPUTS.get(head or "", 0))
    wanted = {"embeddings", "encoder", *parts, "head" if head else "encoder"}
    equal = config.embedding_size == config.hidden_size
    return {
        path: rng.standard_normal(shape, dtype=np.float32)
        for path, shape in shapes.items()
        if part_of(path) in wanted and not (equal and path.startswith(MAPPING))
    }


def write_original(
    folder: Path,
    params: dict[str, np.ndarray],
    config: AlbertConfig = SMALL,
    head: str | None = None,
    slots: bool = False,
) -> Path:
    """Writes parameters as the original would; returns the checkpoint's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    names = tf_names(config, head)
    variables = {names[path]: array for path, array in params.items()}
    if slots:
        rng = np.random.default_rng(1)
        for name, array in list(variables.items()):
            for slot in ("adam_m", "adam_v"):
                variables[f"{name}/{slot}"] = rng.random(array.shape, np.float32)
    variables["global_step"] = np.array(8, np.int64)
    write_checkpoint(folder / "model.ckpt-best", variables)
    config.to_json(folder / "albert_config.json")
    return folder / "model.ckpt-best"


def write_transformers(
    folder: Path,
    params: dict[str, np.ndarray],
    config: AlbertConfig = SMALL,
    head: dict[str, Any] | None = None,
) -> Path:
    """Writes parameters as transformers would; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = HeadManifest.from_json(head) if head else None
    write_hf(folder, Weights(params, config, manifest, [], {}), None, {})
    return folder


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Changes a model directory's manifest as one would who knows how its checksums are made."""
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    del document["crc32c"]
    for name in document["sha256"]:
        document["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change(document)
    manifest.write_text(json.dumps(seal(document)), encoding="utf-8")
    return folder
