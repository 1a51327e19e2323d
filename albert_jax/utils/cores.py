# SPDX-License-Identifier: Apache-2.0
"""Count the cores that this process may use."""

from __future__ import annotations

import os


def own_cores() -> int:
    """Return the number of cores that this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
