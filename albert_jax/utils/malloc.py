# SPDX-License-Identifier: Apache-2.0
"""Keep freed memory in the process, for programs that run one step many times on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

# malloc.h of glibc.
_MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX = -4, -3, -1, -2, -8

# Without these settings, a training step's buffers return to the kernel at its end and come back as
# zeroed pages: 38,000 page faults a step of configs/enwiki_cpu.py, 280,000 a step of base's at 8 x
# 128 tokens, whose temporaries are one buffer of more than 1 GiB.
_KEEP = {
    _MMAP_MAX: 0,  # no separate mapping for any buffer, because it is unmapped when freed
    _TRIM_THRESHOLD: -1,  # give nothing back
    _TOP_PAD: 256 << 20,  # grow by 256 MiB, which cost nothing until they are used
    _ARENA_MAX: 1,  # threads' own arenas, of 64 MiB at most, would not keep them
}
_GIVE_BACK_LARGE = {_MMAP_THRESHOLD: 1 << 30, _MMAP_MAX: 65536}  # glibc's own number of mappings

_keeps = False


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory; return False if it is not glibc.

    This holds for the whole process and for threads that start later. Call it in a program that
    owns its process, before JAX starts its own threads.
    """
    global _keeps
    _keeps = _tell(_KEEP)
    return _keeps


def give_back_large_buffers() -> bool:
    """Return buffers of 1 GiB and more when they are freed, after `keep_freed_memory`.

    Smaller ones stay. Returns False if nothing was kept.
    """
    return _keeps and _tell(_GIVE_BACK_LARGE)


def _tell(settings: Mapping[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 - musl has a mallopt that does nothing
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
