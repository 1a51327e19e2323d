# SPDX-License-Identifier: Apache-2.0
"""Many steps of a tiny run, with evaluations, checkpoints and logs: what it takes of memory, files,
threads and compilations must not grow with the steps.

`python -m tests.endurance.soak --tries 20000`
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.training import metrics
from albert_jax.training.pretrain import pretrain
from tests.endurance.campaign import Result, run_from_command_line
from tests.helpers.pretraining_runs import make_store, tiny_config

EVERY = 100  # steps between readings
WARM = 0.25  # of the readings, which the first steps' caches are filled in
MOST_BYTES_A_STEP = 1000
ENOUGH = 5000  # steps: of fewer the slope is what caches take that fill up once


def soak(folder: Path, tries: int, seed: int) -> Result:
    """Trains `tries` steps and reads the process's figures as it logs them."""
    result = Result("soak", tries)
    config = tiny_config(
        make_store(folder),
        folder / "run",
        steps=tries,
        seed=seed,
        log_every=EVERY,
        eval_every=5 * EVERY,
        save_every=5 * EVERY,
        data_threads=2,
        keep=3,
    )
    readings: list[tuple[int, int, int, int, int]] = []
    compiled = [0]
    jax.monitoring.register_event_duration_secs_listener(_counting(compiled))
    scalars = metrics.MetricsLog.scalars

    def reading(self: Any, kind: str, step: int, *rest: Any, **named: Any) -> None:
        scalars(self, kind, step, *rest, **named)
        if kind == "train":
            files = len(os.listdir("/proc/self/fd"))
            readings.append((step, _resident(), files, threading.active_count(), compiled[0]))

    metrics.MetricsLog.scalars = reading  # type: ignore[method-assign]
    try:
        pretrain(dataclasses.replace(config))
    finally:
        metrics.MetricsLog.scalars = scalars  # type: ignore[method-assign]
    warm = readings[int(WARM * len(readings)) :]
    steps, resident, files, threads, programs = (np.array(x) for x in zip(*warm, strict=True))
    slope = float(np.polyfit(steps, resident, 1)[0])
    result.figures = {
        "resident_bytes_a_step": round(slope, 1),
        "resident_mib": round(float(resident[-1]) / 2**20, 1),
        "files": [int(files.min()), int(files.max())],
        "threads": [int(threads.min()), int(threads.max())],
        "compilations": int(programs[-1] - programs[0]),
    }
    if slope > MOST_BYTES_A_STEP and tries >= ENOUGH:
        result.lost.append(f"resident memory grows by {slope:.0f} bytes a step")
    for name, values in (("files", files), ("threads", threads)):
        half = len(values) // 2
        if values[half:].min() > values[:half].min():  # a checkpoint being written has files open
            result.lost.append(f"open {name} grow: {values.tolist()}")
    if programs[-1] > programs[0] and tries >= ENOUGH:
        result.lost.append(f"{programs[-1] - programs[0]} programs were compiled on the way")
    return result


def _counting(compiled: list[int]) -> Callable[..., None]:
    def listen(event: str, *_: object, **__: object) -> None:
        compiled[0] += "backend_compile" in event

    return listen


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    run_from_command_line(soak, tries=1000)
