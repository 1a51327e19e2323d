# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, SIGINT and SIGHUP at random moments of `albert-jax pretrain`, from the start of the
process to its end: it says 75 or is done, in time, and what comes of it is as if left alone.

`python -m tests.endurance.signals --tries 200`
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.utils.interrupts import SIGNALS
from tests.endurance.campaign import Result, run_from_command_line, say
from tests.endurance.kills import checkpoint_of, log_of
from tests.helpers.paths import REPOSITORY
from tests.helpers.pretraining_runs import TINY, make_store

STEPS = 300


def signals(folder: Path, tries: int, seed: int) -> Result:
    """Sends each try's process one signal; those that say 75 go on in the next try."""
    result, rng = Result("signals", tries), random.Random(seed)
    store, at = make_store(folder), folder / "run"
    for workdir in (folder / "warm", folder / "alone"):  # the first fills the cache
        began = time.monotonic()
        assert start(store, workdir).wait() == 0, (folder / "log").read_text()[-3000:]
        lasts = time.monotonic() - began
    expected = outcome(folder / "alone")
    took: list[float] = []
    for number in range(tries):
        process = start(store, at)
        time.sleep(rng.uniform(0, 1.1 * lasts))
        name = rng.choice(SIGNALS)
        since = time.monotonic()
        process.send_signal(name)
        status = process.wait(timeout=300)
        took.append(time.monotonic() - since)
        result.count(f"status_{status}")
        said = (folder / "log").read_text()
        if status not in (0, 75) or "Traceback" in said:
            result.lost.append(f"try {number}: {name.name} ended with {status}: {said[-300:]}")
        if status == 0:
            _compare(at, expected, result)
        if number % 20 == 19:
            say(f"{number + 1} signals")
    assert start(store, at).wait() == 0, (folder / "log").read_text()[-3000:]
    _compare(at, expected, result)
    p50, p99 = np.percentile(took, [50, 99])
    result.figures |= {"exit_seconds_p50": round(p50, 2), "exit_seconds_p99": round(p99, 2)}
    result.figures["exit_seconds_most"] = round(max(took), 2)
    return result


def start(store: Path, workdir: Path) -> subprocess.Popen[bytes]:
    """The command line of a tiny run, as a user starts it, with its log beside `workdir`."""
    settings = {
        "store": store,
        "workdir": workdir,
        "examples.max-seq-length": 32,
        "examples.max-predictions-per-seq": 4,
        "train.batch-size": 8,
        "train.log-every": 1,
        "train.eval-every": 50,
        "train.eval-examples": 64,
        "train.save-every": 40,
        "train.steps": STEPS,
        "train.devices": 1,
        "train.compilation-cache": workdir.parent / "xla",
    }
    settings |= {f"model.{k.replace('_', '-')}": v for k, v in dataclasses.asdict(TINY).items()}
    recipe = REPOSITORY / "configs" / "python_docs.py"
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "albert_jax", "pretrain", recipe),
            *(f"--{name}={value}" for name, value in settings.items()),
        ],
        stderr=(workdir.parent / "log").open("wb"),
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def outcome(workdir: Path) -> dict[str, Any]:
    return {"checkpoint": checkpoint_of(workdir), "log": log_of(workdir)}


def _compare(workdir: Path, expected: dict[str, Any], result: Result) -> None:
    result.count("finished")
    if outcome(workdir) != expected:
        result.lost.append("a finished run is not as one left alone")
    shutil.rmtree(workdir)


if __name__ == "__main__":
    run_from_command_line(signals, tries=20)
