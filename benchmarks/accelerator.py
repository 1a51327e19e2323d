# SPDX-License-Identifier: Apache-2.0
"""Not a test: what to measure when a GPU is at hand for a quarter of an hour, in parts of minutes.

python -m benchmarks.accelerator --part 1 --out gpu      # then 2 to 6; in any order, and again
python -m benchmarks.accelerator --part 6 --out gpu --data learning.tar.gz    # learns for 5 minutes
python -m benchmarks.accelerator --part 1 --out try --tiny    # the same commands, on a CPU

Each measurement is a command of its own with a time limit. What it answers is written to
OUT/accelerator.jsonl at once, so that a machine that is taken away loses one measurement; of
several of one name the last counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro

from benchmarks.answers import answer_of

BENCHMARK = (sys.executable, "-m", "albert_jax", "benchmark", "--json", "--seconds", "15")
PEERS = (sys.executable, "-m", "benchmarks.compare_gpu")
PRETRAIN = (sys.executable, "-m", "albert_jax", "pretrain", "configs/python_docs.py")
LEARNING = (sys.executable, "-m", "benchmarks.learning", "minutes")
DATA = Path("learning.tar.gz")
TESTS = (sys.executable, "-m", "pytest", "-q", "tests/models/test_attention.py")
# In the command's environment, unless it is set already. "": the device, where tests would
# otherwise choose the CPU. "highest": the tests' limits are those of float32, not of TF32.
ENVIRONMENT = {"JAX_PLATFORMS": ""}
OF_TESTS = ENVIRONMENT | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}


@dataclass(frozen=True)
class Measurement:
    """A command whose last line of stdout is its answer, as JSON where it is."""

    part: int
    name: str
    command: tuple[str, ...]
    seconds: int  # at most


def measurements(out: Path, *, data: Path = DATA, tiny: bool = False) -> list[Measurement]:
    """Return all that is to be measured; `data` is what `learning pack` wrote; `tiny`: by the same
    commands at sizes for a CPU."""
    base, large, first = "base-v2", "large-v2", "base-v1"
    size = ("--sequence", "512", "--predictions", "77", "--dtype", "bfloat16")
    rows, few, many = "batch_size=32,64,128", "32", "64"
    peers = ("--batch-sizes", "32", "64", "128")
    if tiny:
        base = large = first = str(out / "tiny.json")
        size = ("--sequence", "16", "--predictions", "2", "--dtype", "bfloat16", "--steps", "3")
        rows, few, many = "batch_size=2,4", "2", "4"
        peers = ("--batch-sizes", "2", "--sequence", "16", "--predictions", "2")

    def step(model: str, *flags: str) -> tuple[str, ...]:
        return (*BENCHMARK, "--model", model, *size, *flags)

    # Of each attempt its own: a finished run would answer for the next.
    attempt = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")

    def beside(model: str) -> tuple[str, ...]:
        kept = str(out / f"peers-{model}-{attempt}.json")  # written after each figure
        return (*PEERS, "--model", model, *peers, "--out", kept)

    learn = ("--data", str(data), "--out", str(out / "learning"))
    learn += ("--tiny", "--minutes", "0.2") if tiny else ()
    run = ("--workdir", str(out / f"run-{attempt}"), *(("--train.steps", "2") if tiny else ()))
    return [
        Measurement(1, "attention kernels against XLA's", TESTS, 150),
        Measurement(1, "base, update", step(base, "--sweep", rows), 150),
        Measurement(1, "base, forward", step(base, "--phase", "forward", "--batch-size", many), 60),
        Measurement(1, "large, update", step(large, "--batch-size", few), 90),
        Measurement(2, "base, beside PyTorch", beside("base-v2"), 470),
        Measurement(3, "large, beside PyTorch", beside("large-v2"), 470),
        Measurement(4, "base, pmap", step(base, "--mode", "pmap", "--batch-size", many), 60),
        Measurement(4, "base, jit", step(base, "--mode", "jit", "--batch-size", many), 60),
        Measurement(4, "base-v1, with dropout", step(first, "--batch-size", many), 60),
        Measurement(
            4,
            "base, XLA's attention",
            step(base, "--attention", "xla", "--batch-size", many),
            60,
        ),
        Measurement(4, "base, remat full", step(base, "--remat", "full", "--batch-size", many), 60),
        Measurement(4, "drawing batches", step(base, "--phase", "input", "--batch-size", many), 60),
        Measurement(4, "fine-tuning", step(base, "--phase", "finetune", "--batch-size", few), 60),
        Measurement(5, "the embedded recipe", (*PRETRAIN, *run), 300),
        Measurement(6, "what base learns in five minutes", (*LEARNING, *learn), 480),
    ]


def measured(each: Measurement, seconds: float) -> dict[str, Any]:
    """Run a measurement for at most `seconds` and return what came of it."""
    row: dict[str, Any] = {
        "part": each.part,
        "name": each.name,
        "command": " ".join(each.command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    since = time.monotonic()
    environment = OF_TESTS if each.command == TESTS else ENVIRONMENT
    found = answer_of(each.command, seconds, {**environment, **os.environ})
    return row | {"seconds": round(time.monotonic() - since, 1)} | found


def main(part: int, out: Path, minutes: float = 8.0, data: Path = DATA, tiny: bool = False) -> None:
    """Measures one part.

    Args:
        part: 1 kernels, base and large; 2 base beside PyTorch; 3 large beside it; 4 modes, dropout,
            memory and input; 5 a run; 6 what base learns in five minutes.
        out: folder for accelerator.jsonl.
        minutes: what the part may take; what does not fit is left out and said.
        data: file that `python -m benchmarks.learning pack` wrote, for part 6.
        tiny: try the commands at sizes for a CPU.
    """
    out.mkdir(parents=True, exist_ok=True)
    if tiny:
        from tests.helpers.models import tiny_albert

        tiny_albert().to_json(out / "tiny.json")
    chosen = [each for each in measurements(out, data=data, tiny=tiny) if each.part == part]
    if not chosen:
        raise SystemExit(f"there is no part {part}; parts are 1 to 6")
    end = time.monotonic() + minutes * 60
    for each in chosen:
        left = end - time.monotonic()
        if left < 10:
            row = {"part": part, "name": each.name, "error": "no time left"}
        else:
            row = measured(each, min(left, each.seconds))
        with (out / "accelerator.jsonl").open("a", encoding="utf-8") as file:
            print(json.dumps(row), file=file, flush=True)
        print(f"{each.name}: {row.get('error', 'measured')}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
