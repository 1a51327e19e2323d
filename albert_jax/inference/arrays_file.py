# SPDX-License-Identifier: Apache-2.0
"""Write arrays to an .npz file that appears complete, for `albert-jax encode`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from albert_jax.utils.atomic import appearing_file, require_apart, writing
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import require_here
from albert_jax.utils.wording import setting

SUFFIX = ".npz"


def check_arrays_file(dest: str, sources: list[str]) -> None:
    """Raise UserError if arrays cannot be written to `dest`; call this before the work.

    `dest` may not have another ending, be an address, a folder or one of the sources.
    """
    if not dest.endswith(SUFFIX):
        raise UserError(f"{setting('output')} {dest} must end in {SUFFIX}")
    require_here(dest)
    require_apart(dest, sources)
    if Path(dest).is_dir():
        raise UserError(f"{dest} is a folder; name a file for {setting('output')}")


def write_arrays(dest: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an .npz file that appears complete; raises UserError if the disk refuses it.

    A link stays a link, and a pipe or device is written to directly.
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
