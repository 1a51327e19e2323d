# SPDX-License-Identifier: Apache-2.0
"""Not a test: how long a fresh process takes to its first answer, and a run to its first step.

python -m benchmarks.start_time --model base --store STORE [--trees . ../other]

Each command runs in a process of its own, with an empty cache of compiled programs and with a full
one. With several trees of the package they take turns in each round, so that a noisy machine is
noisy for all. Of the rounds the least wall time and the least processor time are printed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import tyro

TEXT = "Hello I'm a [MASK] model."
_ANSWER = "import sys, albert_jax; albert_jax.load(sys.argv[1]).fill_mask(sys.argv[2])"


@dataclasses.dataclass(frozen=True)
class Settings:
    model: Path
    """A model directory, of base size for the figures in docs/lab/cpu.md."""
    store: Path | None = None
    """A token store with which `configs/python_docs.py` pretrains; without it no run is started."""
    trees: tuple[Path, ...] = (Path(),)
    """Folders that hold the package albert_jax."""
    rounds: int = 5


def measure(settings: Settings) -> None:
    """Print a line for each command: seconds of each tree."""
    print(f"{'seconds, wall (of CPU)':30}" + "".join(f"{tree!s:>32}" for tree in settings.trees))
    with tempfile.TemporaryDirectory() as scratch:
        for name, command in _commands(settings, Path(scratch)):
            cold: dict[Path, list[tuple[float, float]]] = {tree: [] for tree in settings.trees}
            warm: dict[Path, list[tuple[float, float]]] = {tree: [] for tree in settings.trees}
            for _ in range(settings.rounds):
                for tree in settings.trees:
                    cache = Path(scratch) / "programs"
                    shutil.rmtree(cache, ignore_errors=True)
                    cold[tree].append(_seconds(command, tree, cache, Path(scratch)))
                    warm[tree].append(_seconds(command, tree, cache, Path(scratch)))
            for kind, seconds in (("cold", cold), ("warm", warm)):
                line = f"{name + ', ' + kind:30}"
                for tree in settings.trees:
                    wall, cpu = (min(each) for each in zip(*seconds[tree], strict=True))
                    line += f"{wall:>24.2f} ({cpu:.2f})"
                print(line, flush=True)


def _commands(settings: Settings, scratch: Path) -> Iterator[tuple[str, list[str]]]:
    model, program = str(settings.model.resolve()), [sys.executable, "-m", "albert_jax"]
    yield "fill-mask", [*program, "fill-mask", model, TEXT]
    yield "encode", [*program, "encode", model, TEXT, "--pool", "mean"]
    yield "load and fill_mask", [sys.executable, "-c", _ANSWER, model, TEXT]
    if settings.store is not None:
        recipe = [str(Path("configs/python_docs.py").resolve()), "--text", "--train.steps", "2"]
        where = ["--store", str(settings.store.resolve()), "--workdir", str(scratch / "run")]
        yield "pretrain to step 1", [*program, "pretrain", *recipe, *where]


def _seconds(command: list[str], tree: Path, cache: Path, scratch: Path) -> tuple[float, float]:
    """Return (wall, processor time) of a command; of pretraining up to its first finished step."""
    shutil.rmtree(scratch / "run", ignore_errors=True)
    env = {**os.environ, "PYTHONPATH": str(tree.resolve()), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    # As `set_compilation_cache` keeps them where no variable names the folder.
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    began, before = time.perf_counter(), os.times()
    with subprocess.Popen(
        command, cwd=scratch, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("step 1/"):
                wall, ticks = time.perf_counter() - began, _ticks(process.pid)
                process.kill()
                return wall, ticks / os.sysconf("SC_CLK_TCK")
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{''.join(lines[-20:])}")
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return time.perf_counter() - began, used


def _ticks(pid: int) -> int:
    """Return the clock ticks that a process has used until now, on Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    measure(tyro.cli(Settings))
