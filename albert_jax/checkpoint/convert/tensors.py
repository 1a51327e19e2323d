# SPDX-License-Identifier: Apache-2.0
"""Describe a tensor in a file of any format; its values are read on demand."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """Describe a tensor; `read` returns the values, as a view of the mapped file if possible."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        """Return a tensor that is in memory, or mapped, already."""
        return cls(array.shape, array.dtype, lambda: array)


def map_file(path: Path) -> np.ndarray:
    """Return a file's bytes, memory-mapped, read-only, uint8[size]."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return np.frombuffer(b"", np.uint8)  # mmap refuses empty files
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def forget(array: np.ndarray) -> None:
    """Free the memory of a part of a mapped file, which is read again on demand."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # of the pages that are the array's alone
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)
