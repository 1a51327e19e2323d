# SPDX-License-Identifier: Apache-2.0
"""Where what can be made or fetched again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """A folder of the user's cache: $XDG_CACHE_HOME/albert_jax/NAME, else below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "albert_jax" / name
