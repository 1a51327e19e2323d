# SPDX-License-Identifier: Apache-2.0
"""Read the JSON file beside an adapter, which names its base model and its head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from albert_jax.config.manifests import (
    HeadManifest,
    holds_transformers_weights,
    is_model_directory,
)
from albert_jax.config.sections import Positions
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.json_values import (
    JsonObject,
    json_crc32c,
    json_sha256,
    refuse_newer_format,
)
from albert_jax.utils.results import Result

PEFT_CONFIG: Final = "adapter_config.json"  # PEFT's, which every adapter has
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_MANIFEST: Final = "adapter_manifest.json"
ADAPTER_FORMAT: Final = 1
_AGAIN = "copy it again"


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterManifest(Result):
    """Hold the contents of `adapter_manifest.json`, without its own checksum.

    Attributes:
        base: the path or the name of the model that the adapter was trained on; None for random
            weights.
        base_sha256: the `base_digest` of that model.
        positions: how its position embeddings became `max_position_embeddings`, if it has fewer.
        sha256: the SHA-256 of the weights' file.
    """

    format_version: int
    albert_jax: str
    base: str | None
    base_sha256: str
    positions: Positions
    max_position_embeddings: int
    head: HeadManifest
    provenance: JsonObject
    sha256: str = ""


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter in PEFT's format, and no whole model."""
    is_whole = holds_transformers_weights(folder) or is_model_directory(folder)
    return (folder / PEFT_CONFIG).is_file() and not is_whole


def base_digest(tensors: Mapping[str, Any]) -> str:
    """Return the digest of what an adapter needs of its base: the embeddings and the encoder.

    `tensors` is the base's table of arrays. Pooler and head are the adapter's own.
    """
    parts = ("embeddings/", "encoder/")
    return json_sha256({name: x for name, x in tensors.items() if name.startswith(parts)})


def read_adapter_manifest(folder: Path) -> AdapterManifest:
    """Read an adapter's manifest and verify its checksum.

    Raises UserError if it is damaged, newer or not of an adapter of `albert-jax finetune`.
    """
    file = folder / ADAPTER_MANIFEST
    try:
        document = read_json(file, JsonObject, hint=_AGAIN)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is an adapter without {ADAPTER_MANIFEST}, which names its base and its "
            "labels; run albert-jax finetune again, or merge it with PEFT and convert the whole "
            "model"
        ) from None
    if document.get("crc32c") != json_crc32c(document):
        raise UserError(f"{file} is damaged or was edited (another checksum); {_AGAIN}")
    refuse_newer_format(document, ADAPTER_FORMAT, str(file))
    return AdapterManifest.from_file(document, str(file), hint=_AGAIN)
