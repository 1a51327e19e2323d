# SPDX-License-Identifier: Apache-2.0
"""Locate the user's cache, for what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

from albert_jax.utils.errors import UserError


def user_cache(name: str) -> Path:
    """Return a folder of the user's cache.

    It is $ALBERT_JAX_CACHE/NAME, else $XDG_CACHE_HOME/albert_jax/NAME, else
    ~/.cache/albert_jax/NAME. Raises UserError if the user has no home.
    """
    if own := os.environ.get("ALBERT_JAX_CACHE"):
        return Path(own).absolute() / name
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(home) if home else Path("~/.cache").expanduser()
    except RuntimeError:
        raise UserError(
            "this user has no home folder to keep a cache in; set XDG_CACHE_HOME to a folder"
        ) from None
    return folder / "albert_jax" / name
