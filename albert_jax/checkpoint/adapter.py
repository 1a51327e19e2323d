# SPDX-License-Identifier: Apache-2.0
"""Write adapters (LoRA) by themselves, as PEFT reads them, and merge them with their model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.checkpoint.convert.hf_names import hf_names
from albert_jax.checkpoint.convert.safetensors_file import read_safetensors, write_safetensors
from albert_jax.checkpoint.integrity import ArrayTree, named_leaves, nest, seal
from albert_jax.checkpoint.model_dir import file_sha256, load_model
from albert_jax.checkpoint.model_export import export_model
from albert_jax.checkpoint.positions import with_positions
from albert_jax.config.adapters import (
    ADAPTER_MANIFEST,
    ADAPTER_WEIGHTS,
    PEFT_CONFIG,
    AdapterManifest,
    read_adapter_manifest,
)
from albert_jax.config.manifests import settings_in
from albert_jax.config.model import AlbertConfig
from albert_jax.utils.atomic import appearing_whole
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import finite
from albert_jax.utils.streams import say
from albert_jax.utils.wording import first_ten

LORA = "lora"  # the part of the parameters that is an adapter
# The matrices of a layer that have one: the paper's choice, section 4.2; PEFT's names are the same.
TARGETS = ("query", "value")
_FILES = {ADAPTER_MANIFEST, ADAPTER_WEIGHTS, PEFT_CONFIG}
_PREFIX = "base_model.model."
_PARTS = {"down": "lora_A", "up": "lora_B"}
_PEFT_TASKS = {
    "classification": "SEQ_CLS",
    "multi_label": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "similarity": "FEATURE_EXTRACTION",
    "token_classification": "TOKEN_CLS",
    "span_v1": "QUESTION_ANS",
}


def merged(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of the plain model: each kernel plus its adapter's product.

    Parameters without an adapter are returned as they are.
    """
    if LORA not in params:
        return params
    adapter = named_leaves(params[LORA])
    plain = named_leaves({name: x for name, x in params.items() if name != LORA})
    for name, leaf in plain.items():
        place = name.removesuffix("/kernel")
        if f"{place}/down" in adapter:
            thin = (adapter[f"{place}/down"], adapter[f"{place}/up"])
            # TPUs and GPUs would multiply in fewer bits, and the model differ from base and
            # adapter.
            plain[name] = leaf + jnp.matmul(*thin, precision="highest")
    return nest(plain)


def check_adapter_destination(folder: Path, *, other: str = "a new path") -> None:
    """Raise UserError if an adapter written there would replace anything but an adapter.

    `other` says what to give instead.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := sorted(names - _FILES):
        raise UserError(
            f"{folder} has files that no adapter has ({first_ten(others)}), which would be lost; "
            f"move them, or give {other}"
        )


def write_adapter(
    folder: Path, params: Mapping[str, Any], config: AlbertConfig, manifest: AdapterManifest
) -> None:
    """Write what was trained: the adapter, the pooler and the head.

    Args:
        folder: gets adapter_model.safetensors, adapter_config.json and adapter_manifest.json; it is
            replaced.
        params: the parameters with the adapter.
        config: the model's architecture.
        manifest: what is known about the adapter, without the digest of the weights.

    Raises:
        UserError: if the folder has other files, which would be lost.
    """
    names = _names(config, params, manifest.head.kind)
    leaves = {path: np.asarray(leaf) for path, leaf in named_leaves(params).items()}
    rank = next(x.shape[1] for n, x in leaves.items() if n.endswith("/down"))
    settings = {
        "peft_type": "LORA",
        "task_type": _PEFT_TASKS.get(manifest.head.kind),
        "base_model_name_or_path": manifest.base,
        "r": rank,
        "lora_alpha": rank,  # a scale of 1
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
        "modules_to_save": sorted(
            {name.split(".")[-2] for path, name in names.items() if path.startswith("head/")}
        )
        + ["pooler"] * ("pooler" in params),
        "inference_mode": True,
    }
    tensors = {
        f"{_PREFIX}{name}": np.ascontiguousarray(leaves[path].T if _turned(path) else leaves[path])
        for path, name in names.items()
    }
    check_adapter_destination(folder)
    with appearing_whole(folder) as new:
        write_safetensors(new / ADAPTER_WEIGHTS, tensors)
        text = json.dumps(settings, indent=2) + "\n"
        (new / PEFT_CONFIG).write_text(text, encoding="utf-8")
        manifest = dataclasses.replace(manifest, sha256=file_sha256(new / ADAPTER_WEIGHTS))
        text = json.dumps(seal(finite(manifest.to_json())), indent=1) + "\n"
        (new / ADAPTER_MANIFEST).write_text(text, encoding="utf-8")


def _names(config: AlbertConfig, params: Mapping[str, Any], head: str) -> dict[str, str]:
    """Return PEFT's names of what is trained, by the path among the parameters."""
    names, found = _peft_names(config, head), {}
    for path in named_leaves(params):
        if path.startswith(f"{LORA}/"):
            module, _, which = path.removeprefix(f"{LORA}/").rpartition("/")
            owner = names[f"{module}/kernel"].removesuffix(".weight")
            found[path] = f"{owner}.{_PARTS[which]}.weight"
        elif path.startswith(("pooler/", "head/")):
            found[path] = names[path]
    return found


def _peft_names(config: AlbertConfig, head: str) -> dict[str, str]:
    """Return transformers' names, in the class that the head's model has there, by path."""
    names = hf_names(config, head)
    if head != "similarity":
        return names
    return {path: name.removeprefix("albert.") for path, name in names.items()}  # AlbertModel


def _turned(path: str) -> bool:
    """Return whether PyTorch keeps a matrix transposed, [out, in]."""
    return path.endswith(("/kernel", *(f"/{part}" for part in _PARTS)))


def keep_adapter(folder: Path, dest: Path, base: Path) -> None:
    """Merge an adapter with its base, a model directory, into the model directory `dest`.

    Raises UserError if the adapter is damaged or does not fit.
    """
    manifest = read_adapter_manifest(folder)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file() or file_sha256(file) != manifest.sha256:
        raise UserError(f"{file} is damaged or missing (another SHA-256); copy it again")
    source = load_model(base, as_float32=True)
    longest = manifest.max_position_embeddings
    source = with_positions(source, str(base), longest, manifest.positions)
    params = _with_adapter(source.params, file, source.config, manifest.head.kind)
    export_model(
        dest,
        params=jax.device_get(merged(params)),
        config=source.config,
        vocab=source.tokenizer["path"],
        tokenizer=settings_in(source.tokenizer),
        head=manifest.head,
        provenance={**manifest.provenance, "adapter": str(folder), "base": str(base)},
    )
    count = sum(x.size for x in named_leaves(params).values())
    say(f"{folder}: merged with {base} once, {count:,} parameters, and kept in {dest}")


def _with_adapter(
    base: Mapping[str, Any], file: Path, config: AlbertConfig, head: str
) -> ArrayTree:
    """Return the parameters of the base's embeddings and encoder, and those in the file."""
    tensors = {n.removeprefix(_PREFIX): x for n, x in read_safetensors(file).items()}
    theirs = {name: path for path, name in _peft_names(config, head).items()}
    found: dict[str, np.ndarray] = {}
    unknown = []
    for name, tensor in tensors.items():
        owner, _, part = name.removesuffix(".weight").rpartition(".")
        which = next((ours for ours, their in _PARTS.items() if their == part), None)
        path = theirs.get(f"{owner}.weight" if which else name)
        if path is None:
            unknown.append(name)
            continue
        if which:
            path = f"{LORA}/{path.removesuffix('kernel')}{which}"
        array = tensor.read()
        found[path] = array.T if _turned(path) else array
    if unknown:
        raise UserError(f"{file} has tensors that no adapter has: {first_ten(unknown)}")
    return {name: base[name] for name in ("embeddings", "encoder")} | nest(found)
