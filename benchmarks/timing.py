# SPDX-License-Identifier: Apache-2.0
"""Time several calls in turn, so that what else a machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

WALL, CPU = 0, 1


def seconds_in_turn(
    calls: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, np.ndarray]:
    """Return the seconds of each call in each round, [rounds, (wall, CPU)]."""
    seconds = {name: np.zeros((rounds, 2)) for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            start = _now()
            call()
            seconds[name][turn] = _now() - start
    return seconds


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])
