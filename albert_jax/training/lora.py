# SPDX-License-Identifier: Apache-2.0
"""Train LoRA adapters (Hu et al. 2021): the product of two thin matrices, added to a kernel.

ALBERT's layers share their parameters, so one adapter serves all passes. It is trained together
with the pooler and the head; everything else keeps its values. `checkpoint.adapter` merges it and
writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.checkpoint.adapter import LORA, TARGETS
from albert_jax.checkpoint.integrity import ArrayTree, nest
from albert_jax.training.optimizer import path_name

_TARGET = re.compile(rf"encoder/group_\d+/inner_group_\d+/attention/({'|'.join(TARGETS)})/kernel")


def with_adapter(params: Mapping[str, Any], rank: int, key: Array) -> ArrayTree:
    """Return the parameters with an adapter of that rank, which changes nothing yet.

    Each of its kernels [inputs, outputs] gets `down` [inputs, rank], drawn with a variance of 1 /
    inputs, and `up` [rank, outputs], zeros.
    """
    adapter: dict[str, Array] = {}
    for path, kernel in jax.tree_util.tree_leaves_with_path(params):
        if _TARGET.fullmatch(name := path_name(path)):
            inputs, outputs = kernel.shape
            drawn = jax.random.normal(jax.random.fold_in(key, len(adapter)), (inputs, rank))
            place = name.removesuffix("/kernel")
            adapter[f"{place}/down"] = drawn / math.sqrt(inputs)
            adapter[f"{place}/up"] = jnp.zeros((rank, outputs))
    return {**params, LORA: nest(adapter)}
