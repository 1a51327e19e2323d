# SPDX-License-Identifier: Apache-2.0
"""The original TF1 program's numbers for tiny models; tests/data holds enough for tests without
shared/."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from albert_jax.checkpoint.convert.tf_names import tf_names
from albert_jax.config.model import AlbertConfig
from albert_jax.data.loader import KEYS
from tests.helpers.paths import DATA
from tests.helpers.tf_checkpoints import from_tf

FOLDER = DATA / "golden"


def tiny() -> tuple[AlbertConfig, dict[str, Any], dict[str, np.ndarray]]:
    """The tiny model's configuration, our parameter tree of its variables, and what the original
    computed."""
    config = AlbertConfig.from_json(FOLDER / "tiny_albert_config.json")
    variables = dict(np.load(FOLDER / "tiny_variables.npz"))
    return config, from_tf(variables, config), dict(np.load(FOLDER / "tiny_expected.npz"))


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
