# SPDX-License-Identifier: Apache-2.0
"""Several processes that make one run, on this machine over loopback, with fake devices each."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax

from albert_jax.config.run import PretrainConfig
from albert_jax.data import loader
from tests.helpers.network_hosts import Hosts
from tests.helpers.paths import REPOSITORY
from tests.helpers.pretraining_runs import tiny_config
from tests.helpers.warm import WarmProcess, command_line

PATIENCE = 600  # seconds until a test gives up: a busy machine is slow, not wrong

RECIPE = """
from pathlib import Path
from tests.helpers.multihost_runs import config_of, slow_while

def get_config():
    slow_while(Path({slow!r}))
    return config_of(Path({store!r}), Path({workdir!r}), **{train!r})
"""


def config_of(store: Path, workdir: Path, dropout: bool = True, **train: object) -> PretrainConfig:
    """The tiny run on all local devices."""
    config = tiny_config(store, workdir, **({"devices": None} | train))
    if dropout:
        return config
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **none))


def write_recipe(path: Path, store: Path, workdir: Path, **train: object) -> Path:
    """A recipe of `config_of`'s run, which is slow while there is a file `slow` beside it."""
    slow = path.with_name("slow")
    values = {"store": str(store), "workdir": str(workdir), "train": train, "slow": str(slow)}
    path.write_text(RECIPE.format(**values), encoding="utf-8")
    return path


def slow_while(there: Path) -> None:
    """While the file is there, a batch from the number on that it has takes so many seconds: a run
    to be stopped midway must not have ended by then, though it be short."""
    draw = loader.Draw.__call__

    def slowly(self: object, number: int) -> object:
        if there.exists():
            first, seconds = map(float, there.read_text().split())
            time.sleep(seconds * (number >= first))
        return draw(self, number)

    loader.Draw.__call__ = slowly


def compile_late(seconds: float) -> None:
    """From now on this process takes so much longer to compile a step."""
    compile = jax.stages.Lowered.compile

    def lately(self: jax.stages.Lowered, *args: object, **kwargs: object) -> object:
        time.sleep(seconds)
        return compile(self, *args, **kwargs)

    jax.stages.Lowered.compile = lately


def free_port() -> int:
    """A port nobody listens on, below those the kernel hands out, so that none is taken meanwhile
    but by another test's draw."""
    for _ in range(100):
        port = random.SystemRandom().randint(12000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port among a hundred")


@dataclass
class Fleet:
    """The processes of a run; leaving kills, with their children, those that still live."""

    folder: Path  # of their stderr
    count: int = 2
    devices: int = 2
    port: int = field(default_factory=free_port)
    hosts: Hosts | None = None  # one for each process; None: all are on this one, over loopback
    processes: list[subprocess.Popen | WarmProcess] = field(default_factory=list)

    def start(self, *arguments: object, only: int | None = None) -> Fleet:
        """Starts `albert-jax pretrain ARGUMENTS` in all (or one); `{rank}` in an argument becomes
        the number of the process."""
        for rank in range(self.count) if only is None else [only]:
            first = self.hosts.address(0) if self.hosts else "127.0.0.1"
            launch = ["--multihost", "--coordinator", f"{first}:{self.port}"]
            launch += ["--num-processes", self.count, "--process-id", rank]
            words = [str(a).replace("{rank}", str(rank)) for a in [*arguments, *launch]]
            self.processes.append(self._process(rank, ["pretrain", *words]))
        return self

    def _process(self, rank: int, words: list[str]) -> subprocess.Popen | WarmProcess:
        env = environment(self.devices)
        if self.hosts is None:
            return WarmProcess(command_line, *words, env=env, stderr=self.path(rank))
        with self.path(rank).open("w") as stderr:
            return subprocess.Popen(
                [*self.hosts.entering(rank), sys.executable, "-m", "albert_jax", *words],
                cwd=REPOSITORY,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    def path(self, rank: int) -> Path:
        return self.folder / f"stderr.{rank}"

    def said(self, rank: int) -> str:
        return self.path(rank).read_text(encoding="utf-8", errors="replace")

    def wait(self) -> list[int]:
        """The exit statuses."""
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            try:
                process.wait(max(1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"still running: {self.all_said()}") from None
        return [process.returncode for process in self.processes]

    def all_said(self) -> str:
        return "\n".join(f"--- {rank}\n{self.said(rank)}" for rank in range(len(self.processes)))

    def wait_for(self, path: Path, lines: int) -> None:
        """Until a file of the run has so many lines, or a process has ended."""
        deadline = time.monotonic() + PATIENCE
        while count_lines(path) < lines:
            assert time.monotonic() < deadline, self.all_said()
            assert all(p.poll() is None for p in self.processes), self.all_said()
            time.sleep(0.005)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(devices: int) -> dict[str, str]:
    """With this process's XLA flags but so many fake devices, which are steady with NPROC only; see
    conftest."""
    count = f"--xla_force_host_platform_device_count={devices}"
    flags = os.environ["XLA_FLAGS"] + " " + count  # the last one counts
    return os.environ | {"XLA_FLAGS": flags, "NPROC": "16", "PYTHONPATH": str(REPOSITORY)}


def count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
