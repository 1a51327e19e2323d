# SPDX-License-Identifier: Apache-2.0
"""TensorFlow checkpoints as dicts of arrays and as parameters."""

from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.checkpoint.convert.tf_bundle import CheckpointReader
from albert_jax.checkpoint.convert.tf_names import tf_names
from albert_jax.config import AlbertConfig


def read_tensors(reader: CheckpointReader) -> dict[str, np.ndarray]:
    return {name: reader.read(name) for name in reader.names()}


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    return read_tensors(CheckpointReader.open(path))


def from_tf(variables: dict[str, Any], config: AlbertConfig) -> dict[str, Any]:
    """Nests {TF1 name: array} into our parameter tree; KeyError for a variable that is missing."""
    params: dict[str, Any] = {}
    for path, variable in tf_names(config).items():
        *modules, leaf = path.split("/")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = variables[variable]
    return params
