# SPDX-License-Identifier: Apache-2.0
"""Convert a named model into a model directory of the user's cache.

This is a separate module, because it imports orbax and JAX, which only the first use of a name
needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from albert_jax.checkpoint.convert.convert import convert_as_it_is
from albert_jax.checkpoint.convert.sources import fetched
from albert_jax.config.manifests import is_model_directory
from albert_jax.config.model import MODELS, AlbertConfig, unlike_sizes
from albert_jax.config.model_names import ModelName
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.wording import settings_are_of


def keep_named(named: ModelName, folder: Path) -> str:
    """Fetch a model and convert it into a folder; return the name of its model directory there.

    Raises UserError if it cannot be fetched or converted, and if another model has a released
    model's name.
    """
    check = functools.partial(_require_released, named.name) if named.kind == "released" else None
    with fetched(named.forced) as found:
        assert found.key is not None, "it has a name"
        if not is_model_directory(folder / found.key):  # which another revision may be too
            _keep(found.path, folder / found.key, found.origin, check)
        return found.key


def keep_folder(folder: Path, dest: Path) -> None:
    """Convert a transformers folder into the model directory `dest`; raises UserError."""
    _keep(folder, dest, str(folder), None)


def _keep(
    path: Path, dest: Path, origin: str, check: Callable[[AlbertConfig], None] | None
) -> None:
    try:
        parameters = convert_as_it_is(path, dest, origin, check=check)
    except UserError as error:
        whose = settings_are_of("convert", origin, "DEST")
        raise UserError(f"{origin} cannot be used as it is: {error} ({whose})") from None
    say(f"{origin}: {parameters:,} parameters, converted once and kept in {dest}")


def _require_released(name: str, config: AlbertConfig) -> None:
    """Raise UserError unless a configuration has the sizes of the released model of that name."""
    if differing := unlike_sizes(config, MODELS[name]):
        raise UserError(f"it is not {name}: {'; '.join(differing)}")
