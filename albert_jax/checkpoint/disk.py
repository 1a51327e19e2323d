# SPDX-License-Identifier: Apache-2.0
"""Check whether a disk has room for a file, and explain why something was not written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

# What orbax raises for a full or failing disk. Any other error is a bug and keeps its traceback.
WRITE_ERRORS = (OSError, ValueError, RuntimeError)


def require_space(directory: Path, size: int) -> None:
    """Raise OSError if `size` bytes do not fit on the disk, before a part of them is written."""
    if size > shutil.disk_usage(directory).free:
        raise OSError(errno.ENOSPC, "disk full")


def cause_of(error: Exception, directory: Path, size: int) -> str:
    """Return why `size` bytes were not written, briefly.

    Orbax has several errors for a full disk.
    """
    number = error.errno if isinstance(error, OSError) else None
    text = str(error).partition("\n")[0][:300]
    if number in (errno.ENOSPC, errno.EDQUOT) or "RESOURCE_EXHAUSTED" in text:
        free = shutil.disk_usage(directory).free
        return f"disk full, {free:,} B free at {directory} for {size:,} B"
    return f"{type(error).__name__}: {text or 'no message'}"
