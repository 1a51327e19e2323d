# SPDX-License-Identifier: Apache-2.0
"""What the original TF1 program computed with tiny models (tests/data/README.md)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from albert_jax.checkpoint.convert.tf_names import tf_names
from albert_jax.config.model import AlbertConfig
from albert_jax.data.loader import KEYS
from tests.helpers.paths import DATA
from tests.helpers.tf_checkpoints import from_tf, read_checkpoint

FOLDER = DATA / "golden"
TRANSFORMERS = FOLDER / "transformers"
# A checkpoint of each model's variables: tiny's is as the original wrote it, with LAMB's slots; the
# other's has none, for size.
CHECKPOINTS = {"tiny": FOLDER / "tiny" / "tf_ckpt", "tiny_inner2": FOLDER / "tiny_inner2/variables"}


def original_model(name: str = "tiny") -> tuple[AlbertConfig, dict[str, Any]]:
    """A model's configuration and our parameter tree of its variables."""
    config = AlbertConfig.from_json(CHECKPOINTS[name] / "albert_config.json")
    return config, from_tf(read_checkpoint(CHECKPOINTS[name]), config)


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file below FOLDER, as `tiny/forward`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def batch_of(
    arrays: dict[str, np.ndarray], prefix: str = "", step: int | None = None
) -> dict[str, Any]:
    """One of the original's batches under our names and shapes."""
    batch = {name: arrays[prefix + name] for name in KEYS}
    if step is not None:
        batch = {name: value[step] for name, value in batch.items()}
    batch["sentence_order_labels"] = batch["sentence_order_labels"][:, 0]
    return {n: x.astype(np.int32) if x.dtype.kind == "i" else x for n, x in batch.items()}


def as_tf(params: Any, config: AlbertConfig) -> dict[str, np.ndarray]:
    """Our parameter tree under TF1 names."""
    result = {}
    for path, variable in tf_names(config).items():
        node = params
        for key in path.split("/"):
            node = node[key]
        result[variable] = np.asarray(node)
    return result


def hparams(arrays: dict[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
    return json.loads(str(arrays[prefix + "hparams_json"]))
