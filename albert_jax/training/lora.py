# SPDX-License-Identifier: Apache-2.0
"""Train LoRA adapters (Hu et al. 2021): the product of two thin matrices, added to a kernel.

ALBERT's layers share their parameters, so one adapter serves all passes. It is trained together
with the pooler and the head; everything else keeps its values. In the exported model the adapter is
merged into the kernels. The adapter is also written by itself, in the format of PEFT, which works
with transformers.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.checkpoint.convert.hf_names import hf_names
from albert_jax.checkpoint.convert.safetensors_file import write_safetensors
from albert_jax.checkpoint.integrity import ArrayTree, named_leaves, nest
from albert_jax.config.model import AlbertConfig
from albert_jax.training.optimizer import path_name

LORA = "lora"
# The paper's choice, section 4.2; its names in PEFT are the same.
TARGETS = ("query", "value")
_TARGET = re.compile(rf"encoder/group_\d+/inner_group_\d+/attention/({'|'.join(TARGETS)})/kernel")
_PEFT_TASKS = {
    "classification": "SEQ_CLS",
    "multi_label": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "span_v1": "QUESTION_ANS",
}


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


def merged(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of the plain model: each kernel plus its adapter's product.

    Parameters without an adapter are returned as they are.
    """
    if LORA not in params:
        return params
    adapter = named_leaves(params[LORA])

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        place = path_name(path).removesuffix("/kernel")
        if f"{place}/down" not in adapter:
            return leaf
        # TPUs and GPUs would multiply in fewer bits, and the model differ from base and adapter.
        product = jnp.matmul(adapter[f"{place}/down"], adapter[f"{place}/up"], precision="highest")
        return leaf + product

    plain = {name: x for name, x in params.items() if name != LORA}
    return jax.tree_util.tree_map_with_path(one, plain)


def write_adapter(folder: Path, params: Mapping[str, Any], config: AlbertConfig, head: str) -> None:
    """Write what was trained (adapter, pooler and head) as PEFT reads it.

    Args:
        folder: gets adapter_model.safetensors and adapter_config.json; it is replaced.
        params: the parameters with the adapter.
        config: the model's architecture.
        head: the head's kind.
    """
    names = hf_names(config, head)
    tensors: dict[str, np.ndarray] = {}
    for place, leaf in named_leaves(params[LORA]).items():
        module, _, which = place.rpartition("/")
        owner = names[f"{module}/kernel"].removesuffix(".weight")
        part = {"down": "lora_A", "up": "lora_B"}[which]
        tensors[f"{owner}.{part}.weight"] = np.asarray(leaf).T
    saved = [name for name in ("pooler", "head") if name in params]
    for path, leaf in named_leaves({name: params[name] for name in saved}).items():
        array = np.asarray(leaf)
        tensors[names[path]] = array.T if path.endswith("/kernel") else array
    rank = next(x.shape[1] for n, x in named_leaves(params[LORA]).items() if n.endswith("down"))
    settings = {
        "peft_type": "LORA",
        "task_type": _PEFT_TASKS.get(head),
        "r": rank,
        "lora_alpha": rank,  # a scale of 1
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
        "modules_to_save": sorted({names[p].split(".")[-2] for p in names if p.startswith("head/")})
        + ["pooler"] * ("pooler" in params),
        "inference_mode": True,
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    renamed = {f"base_model.model.{name}": np.ascontiguousarray(x) for name, x in tensors.items()}
    write_safetensors(folder / "adapter_model.safetensors", renamed)
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
