# SPDX-License-Identifier: Apache-2.0
"""Arrays in an .npz file that appears whole, as `albert-jax encode` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from albert_jax.utils.atomic import appearing_file, require_apart, writing
from albert_jax.utils.errors import UserError

SUFFIX = ".npz"


def check_arrays_file(dest: str, sources: list[str]) -> None:
    """Raises UserError where arrays cannot be written to `dest`: it has another ending, is a folder
    or is one of the sources. To be called before the work, not after."""
    if not dest.endswith(SUFFIX):
        raise UserError(f"output {dest} must end in {SUFFIX}")
    require_apart(dest, sources)
    if Path(dest).is_dir():
        raise UserError(f"{dest} is a folder; name a file for --output")


def write_arrays(dest: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an .npz file that appears whole; UserError where the disk does not take it.

    A link stays one, and a pipe or device is written to directly.
    """
    path = Path(dest)
    with writing(dest):
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            return
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
