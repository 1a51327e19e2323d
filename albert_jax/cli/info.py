# SPDX-License-Identifier: Apache-2.0
"""What a model, a token store or a recipe is: sizes, parameters, FLOPs and where it came from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from albert_jax.checkpoint.model_paths import (
    hidden_name,
    holds_transformers_weights,
    require_model_directory,
    what_is,
)
from albert_jax.config.manifests import (
    CONFIG,
    MANIFEST,
    TensorEntry,
    is_model_directory,
    read_model_manifest,
)
from albert_jax.config.model import AlbertConfig
from albert_jax.config.model_names import known_names, name_of
from albert_jax.config.recipes import load_recipe, to_dict
from albert_jax.config.run import PretrainConfig
from albert_jax.data.store import TokenStore
from albert_jax.data.store_manifest import SPLITS
from albert_jax.data.store_remote import remote_manifest
from albert_jax.models import flops
from albert_jax.utils.arguments import path_of
from albert_jax.utils.columns import aligned
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.wording import did_you_mean

# The part that a parameter belongs to, by how its name begins; the first that fits counts. The
# names are those of `flops.parameter_counts`.
_PARTS = {
    "embeddings/": "embeddings",
    "encoder/embedding_hidden_mapping_in/": "embedding projection",
    "encoder/": "shared layers",
    "pooler/": "pooler",
    "predictions/": "masked-LM head",
    "seq_relationship/": "sentence-order head",
    "head/": "fine-tuned head",
    "": "other",
}


def describe_path(path: str | Path) -> dict[str, Any]:
    """Describes a model, work directory, token store, configuration file or recipe, as JSON values.

    Every file of a store is verified, unless that was done before and it has not changed. A store
    may lie at gs:// or another of fsspec's addresses; then only its manifest is read. A model that
    is given by its name is fetched where it is not here yet. A recipe is
    `file.py` or `file.py:key=value,…`. Of a model the manifest and the configuration are verified,
    and the parameters counted that it has. FLOPs count a multiplication and an addition as two.
    Raises UserError for what is damaged, and for anything else, with what it is and what to do.
    """
    if str(path).partition(":")[0].endswith(".py"):
        return _recipe(str(path))
    place = path_of(path, "path")
    if is_address(str(path)) and not str(path).startswith("hf:"):
        return _store(str(path), remote_manifest(str(path)).to_json())
    if name_of(path) or holds_transformers_weights(place):
        return _model_directory(require_model_directory(path))
    if place.suffix == ".json" and place.name != MANIFEST and place.is_file():
        return {"kind": "configuration", "path": str(path)} | _model(AlbertConfig.from_json(place))
    for directory in (place, place / "model"):  # a work directory keeps its model there
        if is_model_directory(directory):
            return _model_directory(directory)
    is_store = (place / MANIFEST).is_file() or (place / "progress").is_dir()
    if is_store and not (place / CONFIG).exists():
        manifests = [TokenStore.open(place, split=split).manifest for split in SPLITS]
        return _store(str(path), manifests[0], verified=True)
    if told := what_is(path):
        raise UserError(f"{told}{hidden_name(place)}")
    if not place.exists():
        nearest = did_you_mean(str(path), known_names())
        raise UserError(
            f"{path} does not exist{nearest}; give a model directory, a model's name, a token "
            "store or a recipe"
        )
    raise UserError(
        f"{path} is no model directory ({CONFIG} and {MANIFEST}), no token store ({MANIFEST}) and "
        f"no recipe (.py){hidden_name(place)}"
    )


def description_table(description: dict[str, Any]) -> str:
    """The description as aligned lines; whole numbers with thousands separators."""
    rows = list(_rows(description, ""))
    return aligned(rows)


def _rows(values: dict[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        label = indent + name.replace("_", " ")
        if isinstance(value, dict):
            yield label, ""
            yield from _rows(value, indent + "  ")
        elif isinstance(value, list):
            yield label, ", ".join(map(str, value))
        elif "flops" in name:
            yield label, f"{value:.4g}"
        elif isinstance(value, float):
            yield label, f"{value:.6g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield label, f"{value:,}"
        else:
            yield label, "" if value is None else str(value)


def _model(config: AlbertConfig, counted: dict[str, int] | None = None) -> dict[str, Any]:
    """Sizes by a configuration; `counted` are the parameters that there are, by part, in place of
    those of the pretraining model."""
    length = config.max_position_embeddings
    counts = flops.parameter_counts(config) if counted is None else counted
    return {
        "parameters": sum(counts.values()),
        "parameters_of": counts,
        "bytes_float32": 4 * sum(counts.values()),
        f"forward_flops_at_length_{length}": flops.forward_flops_per_sequence(config, length, 0),
        "config": dataclasses.asdict(config),
    }


def _model_directory(path: Path) -> dict[str, Any]:
    manifest = read_model_manifest(path)
    config = AlbertConfig.from_json(path / CONFIG)
    verified = f"{MANIFEST} and {CONFIG}; not the weights, which albert-jax verify reads"
    description = {"kind": "model", "path": str(path), "verified": verified}
    provenance = dict(manifest["provenance"])
    if isinstance(provenance.get("config"), dict):  # the run's settings; the model's stand above
        provenance["config"] = {k: v for k, v in provenance["config"].items() if k != "model"}
    return (
        description
        | {"head": manifest.get("head")}
        | _model(config, _parameters(manifest["tensors"]))
        | {"tokenizer": manifest["tokenizer"], "provenance": provenance}
    )


def _parameters(tensors: dict[str, TensorEntry]) -> dict[str, int]:
    """Number of parameters by part, of the parts that are there."""
    counts = dict.fromkeys(_PARTS.values(), 0)
    for name, entry in tensors.items():
        part = next(part for start, part in _PARTS.items() if name.startswith(start))
        counts[part] += math.prod(entry["shape"])
    return {part: count for part, count in counts.items() if count}


def _store(path: str, manifest: dict[str, Any], **found: Any) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        totals = manifest["splits"][split]
        splits[split] = {k: v for k, v in totals.items() if not isinstance(v, (list, dict))}
        splits[split]["shards"] = len(totals["shards"])
    rest = {k: v for k, v in manifest.items() if k not in ("splits", "inputs")}
    return {"kind": "token store", "path": path, **found, "splits": splits} | rest


def _recipe(spec: str) -> dict[str, Any]:
    config = load_recipe(spec)
    description: dict[str, Any] = {"kind": "recipe", "path": spec}
    if not isinstance(config, PretrainConfig):
        return description | {"type": type(config).__name__, "settings": to_dict(config)}
    each = flops.train_flops_per_sequence(
        config.model, config.examples.max_seq_length, config.examples.max_predictions_per_seq
    )
    in_all = flops.run_flops(config)
    settings = to_dict(config)
    del settings["model"]
    return (
        description
        | _model(config.model)
        | {
            "flops_per_sequence": each,
            # Of a run in stages the mean.
            "flops_per_step": in_all / config.train.steps,
            "flops_in_all": in_all,
            "settings": settings,
        }
    )
