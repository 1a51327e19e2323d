# SPDX-License-Identifier: Apache-2.0
"""Name the code and the versions of the libraries that made a figure."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from albert_jax import __version__
from albert_jax.utils.wording import without_secrets


def commit() -> str | None:
    """Return the commit of the code if it is a checkout, with "+" if its modules differ."""
    here = Path(__file__).parents[1]  # the package

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return ran.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).relative_to(here)))
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of the libraries that determine a run's bits."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name.replace("-", "."): importlib.metadata.version(name) for name in names}
    return {**found, "albert_jax": __version__}


def without_credentials(value: Any) -> Any:
    """Return a JSON value whose addresses have no user, password or query, which may be a token."""
    if isinstance(value, Mapping):
        return {key: without_credentials(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_credentials(x) for x in value]
    return without_secrets(value) if isinstance(value, str) else value
