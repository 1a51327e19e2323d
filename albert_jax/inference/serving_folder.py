# SPDX-License-Identifier: Apache-2.0
"""Write what all folders of programs for servers have in common."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from albert_jax import __version__
from albert_jax.checkpoint.model_dir import require_outside_models
from albert_jax.config.manifests import SERVING, HeadManifest, vocabulary_name
from albert_jax.inference.api import Albert
from albert_jax.utils.atomic import require_writable
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject


def require_new(dest: Path) -> None:
    """Raise UserError if `dest` exists, or cannot be made."""
    if dest.exists():
        raise UserError(f"{dest} exists; give a new path")
    require_outside_models(dest)
    require_writable(dest)


def description(
    albert: Albert, made_with: Mapping[str, Any], programs: Mapping[str, Any]
) -> JsonObject:
    """Return the contents of serving.json.

    It describes the model, the tools that made the programs, and each program by its name.
    """
    tokenizer, head = albert.vocabulary, albert.head
    return {
        "format_version": 1,
        "albert_jax": __version__,
        **made_with,
        "config": dataclasses.asdict(albert.config),
        "tokenizer": tokenizer and tokenizer.settings,
        "head": head and HeadManifest.from_json(head).to_json(),
        "programs": programs,
    }


def write_beside(folder: Path, albert: Albert, described: JsonObject) -> None:
    """Write serving.json, and the vocabulary if the model has one."""
    text = json.dumps(described, indent=1)
    (folder / SERVING).write_text(f"{text}\n", encoding="utf-8")
    if albert.vocabulary is not None:
        vocabulary = albert.vocabulary.path
        shutil.copyfile(vocabulary, folder / vocabulary_name(vocabulary))
