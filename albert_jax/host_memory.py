# SPDX-License-Identifier: Apache-2.0
"""Keeps freed memory in the process, for programs that run one step many times on the CPU."""

from __future__ import annotations

import ctypes

# malloc.h of glibc. Without these a training step's buffers go back to the kernel when it ends and
# come again as zeroed pages: 38,000 page faults a step of configs/enwiki_cpu.py, 280,000 a step of
# base's at 8 x 128 tokens, whose temporaries are one buffer of more than 1 GiB.
_SETTINGS = (
    (-4, 0),  # M_MMAP_MAX: no mapping of its own for any buffer, which would go when it is freed
    (-1, -1),  # M_TRIM_THRESHOLD: give nothing back
    (-2, 256 << 20),  # M_TOP_PAD: grow by 256 MiB, which cost nothing before they are touched
    (-8, 1),  # M_ARENA_MAX: threads' own arenas, of 64 MiB at most, would not keep them
)


def keep_freed_memory() -> bool:
    """Tells the C library to keep what is freed; False where it is not glibc.

    It holds for the whole process and for threads that begin after it: call it in a program that
    owns its process, before JAX starts its own.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 - musl has a mallopt that does nothing
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return all([mallopt(option, value) == 1 for option, value in _SETTINGS])
