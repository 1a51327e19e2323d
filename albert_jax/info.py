# SPDX-License-Identifier: Apache-2.0
"""What a model, a token store or a recipe is: sizes, parameters, FLOPs and where it came from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from albert_jax import flops
from albert_jax.addresses import is_address
from albert_jax.config import AlbertConfig, PretrainConfig, load_recipe, to_dict
from albert_jax.data.manifest import SPLITS
from albert_jax.data.remote import remote_manifest
from albert_jax.data.store import TokenStore
from albert_jax.errors import UserError

CONFIG_FILE = "albert_config.json"


def describe(path: str | Path) -> dict[str, Any]:
    """Describes a model, work directory, token store, configuration file or recipe, as JSON values.

    Every file of a store is verified, unless that was done before and it has not changed. A store
    may lie at gs:// or another of fsspec's addresses; then only its manifest is read. A recipe is
    `file.py` or `file.py:key=value,…`. FLOPs count a multiplication and an addition as two. Raises
    UserError for anything else.
    """
    if str(path).partition(":")[0].endswith(".py"):
        return _recipe(str(path))
    if is_address(str(path)):
        return _store(str(path), remote_manifest(str(path)).to_json())
    path = Path(path)
    if path.suffix == ".json" and path.is_file():
        return {"kind": "configuration", "path": str(path)} | _model(AlbertConfig.from_json(path))
    for directory in (path, path / "model"):  # a work directory keeps its model there
        if (directory / CONFIG_FILE).is_file():
            return _model_directory(directory)
    if (path / "manifest.json").is_file() or (path / "progress").is_dir():
        stores = [TokenStore.open(path, split=split) for split in SPLITS]
        return _store(str(path), stores[0].manifest, verified=True)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a model directory, a token store or a recipe")
    raise UserError(
        f"{path} is no model directory ({CONFIG_FILE}), no token store (manifest.json) and no "
        "recipe (.py)"
    )


def as_table(description: dict[str, Any]) -> str:
    """The description as aligned lines; whole numbers with thousands separators."""
    rows = list(_rows(description, ""))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _rows(values: dict[str, Any], indent: str) -> Any:
    for name, value in values.items():
        label = indent + name.replace("_", " ")
        if isinstance(value, dict):
            yield label, ""
            yield from _rows(value, indent + "  ")
        elif "flops" in name:
            yield label, f"{value:.4g}"
        elif isinstance(value, float):
            yield label, f"{value:.6g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield label, f"{value:,}"
        else:
            yield label, "" if value is None else str(value)


def _model(config: AlbertConfig) -> dict[str, Any]:
    length = config.max_position_embeddings
    return {
        "parameters": flops.parameter_count(config),
        "parameters_of": flops.parameter_counts(config),
        "bytes_float32": 4 * flops.parameter_count(config),
        f"forward_flops_at_length_{length}": flops.forward_flops_per_sequence(config, length, 0),
        "config": dataclasses.asdict(config),
    }


def _model_directory(path: Path) -> dict[str, Any]:
    config = AlbertConfig.from_json(path / CONFIG_FILE)
    description = {"kind": "model", "path": str(path)} | _model(config)
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} has {CONFIG_FILE} but no manifest.json; give a model directory that pretrain "
            "or export wrote"
        ) from None
    except ValueError:
        raise UserError(f"{path / 'manifest.json'} is damaged; export the model again") from None
    provenance = dict(manifest.get("provenance", {}))
    if isinstance(provenance.get("config"), dict):  # the run's settings; the model's stand above
        provenance["config"] = {k: v for k, v in provenance["config"].items() if k != "model"}
    return description | {"tokenizer": manifest.get("tokenizer"), "provenance": provenance}


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
    settings = to_dict(config)
    del settings["model"]
    return (
        description
        | _model(config.model)
        | {
            "flops_per_sequence": each,
            "flops_per_step": each * config.train.batch_size,
            "flops_in_all": each * config.train.batch_size * config.train.steps,
            "settings": settings,
        }
    )
