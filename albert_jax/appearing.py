# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all: written beside their place and renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from albert_jax.errors import UserError


@contextlib.contextmanager
def appearing_file(dest: Path) -> Iterator[Path]:
    """A path to write a file to, which becomes `dest` at the end, or nothing where an error is
    raised; other processes may be writing it too."""
    temporary = dest.with_name(f"{dest.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, dest)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing_whole(dest: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `dest` at the end, or nothing where an error is raised.

    A folder that is at `dest` is replaced. Raises UserError for a disk that does not take it.
    """
    dest = dest.resolve()
    new, old = (dest.with_name(f".{dest.name}.{kind}") for kind in ("new", "old"))
    try:
        if old.exists() and not dest.exists():  # one was killed between its renames
            old.rename(dest)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if dest.exists():
            dest.rename(old)
        new.rename(dest)
    except OSError as error:
        if old.exists() and not dest.exists():
            old.rename(dest)
        raise UserError(f"{dest} NOT written: {error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if dest.exists():
            shutil.rmtree(old, ignore_errors=True)
