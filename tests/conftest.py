# SPDX-License-Identifier: Apache-2.0
"""What all tests share: JAX's environment (set before JAX is imported), data, the command line."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from albert_jax.utils.streams import without_orbax_stacks
from tests.helpers.paths import REPOSITORY

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the tests' time, and these make it a quarter. ALBERT_JAX_TEST_XLA_FLAGS=""
# tries XLA's full optimisation instead, as `.ci/run` does with the tests of numbers.
QUICK_TO_COMPILE = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # a flag that XLA lacks is fatal
    QUICK_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
# Four devices on two cores abort now and then ("Expected 4 threads to join the rendezvous") unless
# XLA's thread pool is sized by NPROC instead of by the cores there are.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        os.environ.get("ALBERT_JAX_TEST_XLA_FLAGS", " ".join(QUICK_TO_COMPILE)),
        "--xla_force_host_platform_device_count=4",
    ]
).strip()
os.environ["NPROC"] = "16"
# Subprocesses inherit the cache of compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# No test asks a real server for a model: those of names start one of their own.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["ALBERT_JAX_ARCHIVES"] = str(REPOSITORY / "no archives")

# Tracing makes so many objects that last that an eighth of the time is the collector's.
gc.set_threshold(200_000, 20, 50)

# `-n 2` runs the files of tests in two processes, but those that train over several devices, or in
# several processes, one after the other: two such programs at once starve each other's threads.
_SEVERAL_DEVICES = {
    "benchmark",
    "finetune",
    "loop",
    "mixture",
    "multihost_runs",
    "packing",
    "pretrain",
    "step",
    "teacher",
}

# A busy machine is slow, not wrong; CI tries the same examples each time.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")


def _scope(nodeid: str) -> str:
    name = Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
    return "several devices" if name in _SEVERAL_DEVICES else name


def pytest_collection_modifyitems(items):
    """What one process does alone begins first, and the other processes do the rest meanwhile."""
    items.sort(key=lambda item: _scope(item.nodeid) != "several devices")


def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, as its fixtures are costly."""

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    config.option.loadscopereorder = False  # which puts scopes of many tests first
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def own_signals() -> None:
    """What a test starts does not inherit what a shell ignores (SIGINT in the background, SIGHUP
    under nohup) or libtpu (SIGHUP, once it is loaded)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def as_the_command_line() -> Iterator[None]:
    """Of a save that failed orbax's threads complain whenever they are collected, in any test."""
    with without_orbax_stacks():
        yield


@pytest.fixture(scope="module")
def steps_made_once() -> Iterator[None]:
    """Runs of a module's tests that are configured alike compile their step once."""
    from tests.helpers.steps import made_once  # which imports JAX

    with made_once():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data too large for the repository; the test is skipped without it."""
    default = REPOSITORY.parent / "shared"
    path = Path(os.environ.get("ALBERT_JAX_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"shared/ is not here: {path} (ALBERT_JAX_SHARED names another place)")
    return path


@dataclass(frozen=True)
class Completed:
    """A command that ended: exit status (negative: the signal), stdout and stderr."""

    rc: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def run_warm() -> Callable[..., Completed]:
    """`run_warm("fill-mask", path, cwd=…)` is `run_cli` in a process that need not import JAX: for
    tests of what a command does, not of how it starts."""
    from tests.helpers.warm import WarmProcess, command_line

    def run(
        *arguments: str | Path,
        timeout: float = 120,
        cwd: Path = REPOSITORY,
        env: dict[str, str] | None = None,
    ) -> Completed:
        process = WarmProcess(command_line, *arguments, cwd=cwd, env=os.environ | (env or {}))
        try:
            stdout, stderr = process.communicate(timeout)
        finally:
            process.kill()
        return Completed(process.wait(), stdout, stderr)

    return run


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., Completed]:
    """`run_cli("info", path, timeout=60, cwd=…, env={…})` runs `albert-jax info PATH`.

    At the timeout the whole process group is killed, and the test fails with what was printed so
    far.
    """

    def run(
        *arguments: str | Path,
        timeout: float = 120,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        stdin: str = "",
    ) -> Completed:
        process = subprocess.Popen(
            [sys.executable, "-m", "albert_jax", *map(str, arguments)],
            cwd=cwd or REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            pytest.fail(f"killed after {timeout} s: {arguments}\n{stdout}\n{stderr}")
        return Completed(process.returncode, stdout, stderr)

    return run
