# SPDX-License-Identifier: Apache-2.0
"""Describe a model, a token store or a recipe: sizes, parameters, FLOPs and provenance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from albert_jax.checkpoint.model_paths import (
    hidden_name,
    not_for_an_adapter,
    require_model_directory,
    what_is,
)
from albert_jax.cli.descriptions import (
    ConfigurationDescription,
    Description,
    ModelDescription,
    ModelSizes,
    PretrainDescription,
    RecipeDescription,
    SplitDescription,
    StoreDescription,
)
from albert_jax.config.adapters import is_adapter
from albert_jax.config.history import HISTORY_KEY, Continuation, history_in, read_history
from albert_jax.config.manifests import (
    CONFIG,
    MANIFEST,
    TensorEntry,
    holds_transformers_weights,
    is_model_directory,
    read_model_manifest,
)
from albert_jax.config.model import AlbertConfig
from albert_jax.config.model_names import known_names, name_of
from albert_jax.config.recipes import load_recipe, to_dict
from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.data.store import TokenStore
from albert_jax.data.store_manifest import SPLITS, SplitRecord, StoreManifest
from albert_jax.data.store_remote import remote_manifest
from albert_jax.models import flops
from albert_jax.utils.arguments import path_of
from albert_jax.utils.columns import aligned
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.wording import did_you_mean

# The part that a parameter belongs to, by the beginning of its name; the first match counts. The
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


def describe_path(path: str | Path, *, base: str | Path | None = None) -> Description:
    """Describe a model, work directory, token store, configuration file or recipe.

    Every file of a store is verified, unless it was verified before and has not changed. A store
    may have a gs:// or another fsspec address; then only its manifest is read. A model's name is
    looked up in the cache and fetched if it is missing. An adapter is merged with its base, which
    is `base` if it is no longer where it was. A recipe is `file.py` or
    `file.py:key=value,…`. Of a model, the manifest and the configuration are verified and the
    parameters counted. FLOPs count a multiplication and an addition as two. Raises UserError for a
    damaged path and for any other kind of path.
    """
    is_recipe = str(path).partition(":")[0].endswith(".py")
    is_remote = is_address(str(path)) and not str(path).startswith("hf:")
    if base is not None and (is_recipe or is_remote):
        raise not_for_an_adapter(path, base)
    if is_recipe:
        return _recipe(str(path))
    place = path_of(path, "path")
    if is_remote:
        return _store(str(path), remote_manifest(str(path)))
    if base is not None or name_of(path) or holds_transformers_weights(place) or is_adapter(place):
        return _model_directory(require_model_directory(path, base=base))
    if place.suffix == ".json" and place.name != MANIFEST and place.is_file():
        return ConfigurationDescription(
            path=str(path), **vars(_sizes(AlbertConfig.from_json(place)))
        )
    if is_model_directory(place):
        return _model_directory(place)
    if is_model_directory(place / "model"):  # a work directory keeps its model there
        return _model_directory(place / "model", read_history(place))
    is_store = (place / MANIFEST).is_file() or (place / "progress").is_dir()
    if is_store and not (place / CONFIG).exists():
        stores = [TokenStore.open(place, split=split) for split in SPLITS]
        return _store(str(path), stores[0].record, verified=True)
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


def description_table(description: Description) -> str:
    """Return the description as aligned lines; whole numbers with thousands separators."""
    values = dict(description)
    if isinstance(description, ModelDescription) and description.history:
        changes = {f"step {c.step:,}, {c.date}": c.in_words() for c in description.history}
        values[HISTORY_KEY] = changes
    return aligned(list(_rows(values, "")))


def _rows(values: Mapping[str, Any], indent: str) -> Iterator[tuple[str, str]]:
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


def _sizes(config: AlbertConfig, counted: dict[str, int] | None = None) -> ModelSizes:
    """Return the sizes of a configuration.

    `counted` has the number of parameters by part, if it is not that of the pretraining model.
    """
    counts = flops.parameter_counts(config) if counted is None else counted
    length = config.max_position_embeddings
    return ModelSizes(
        parameters=sum(counts.values()),
        parameters_of=counts,
        bytes_float32=4 * sum(counts.values()),
        forward_flops=flops.forward_flops_per_sequence(config, length, 0),
        config=config,
    )


def _model_directory(path: Path, history: Sequence[Continuation] = ()) -> ModelDescription:
    """Return what a model directory is; `history` is its work directory's, if that is known."""
    manifest = read_model_manifest(path)
    config = AlbertConfig.from_json(path / CONFIG)
    provenance = dict(manifest.provenance)
    if isinstance(provenance.get("config"), dict):  # the run's settings; the model's stand above
        provenance["config"] = {k: v for k, v in provenance["config"].items() if k != "model"}
    kept = history_in(provenance, str(path / MANIFEST), hint="copy or convert it again")
    provenance.pop(HISTORY_KEY, None)
    return ModelDescription(
        path=str(path),
        verified=f"{MANIFEST} and {CONFIG}; not the weights, which albert-jax verify reads",
        head=manifest.head,
        **vars(_sizes(config, _parameters(manifest.tensors))),
        tokenizer=manifest.tokenizer,
        provenance=provenance,
        history=list(history) or kept or None,
    )


def _parameters(tensors: Mapping[str, TensorEntry]) -> dict[str, int]:
    """Return the number of parameters of each part that the model has."""
    counts = dict.fromkeys(_PARTS.values(), 0)
    for name, entry in tensors.items():
        part = next(part for start, part in _PARTS.items() if name.startswith(start))
        counts[part] += math.prod(entry["shape"])
    return {part: count for part, count in counts.items() if count}


def _store(path: str, manifest: StoreManifest, *, verified: bool | None = None) -> StoreDescription:
    return StoreDescription(
        path=path,
        verified=verified,
        splits={split: _split(manifest.split(split)) for split in SPLITS},
        format_version=manifest.format_version,
        vocabulary=manifest.vocabulary,
        reading=manifest.reading,
        holdout=manifest.holdout,
        made_with=manifest.made_with,
        counts=manifest.counts,
        format_revision=manifest.format_revision or None,  # as in the file: 0.1 wrote none
        checksum=manifest.checksum,
    )


def _split(record: SplitRecord) -> SplitDescription:
    totals = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return SplitDescription(**totals | {"shards": len(record.shards)})


def _recipe(spec: str) -> RecipeDescription | PretrainDescription:
    config = load_recipe(spec)
    if not isinstance(config, (PretrainConfig, FinetuneConfig)):
        raise UserError(
            f"recipe {spec} makes a {type(config).__name__}; its get_config must return a "
            "PretrainConfig or a FinetuneConfig, as those in configs/"
        )
    settings = to_dict(config)
    if not isinstance(config, PretrainConfig):
        return RecipeDescription(path=spec, type=type(config).__name__, settings=settings)
    del settings["model"]
    in_all = flops.run_flops(config)
    return PretrainDescription(
        path=spec,
        **vars(_sizes(config.model)),
        flops_per_sequence=flops.train_flops_per_sequence(
            config.model, config.examples.max_seq_length, config.examples.max_predictions_per_seq
        ),
        flops_per_step=in_all / config.train.steps,
        flops_in_all=in_all,
        settings=settings,
    )
