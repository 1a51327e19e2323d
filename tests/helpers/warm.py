# SPDX-License-Identifier: Apache-2.0
"""Processes that start as forks of one which has imported the package and JAX, but used nothing of
JAX: importing takes 3 CPU seconds, and a test of several processes pays them for each.

A test of what happens while Python starts and imports needs a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers.paths import REPOSITORY

_IMPORTED = ["albert_jax.training.pretrain", "albert_jax.cli.commands", "tests.helpers.warm"]
_forks = multiprocessing.get_context("forkserver")


def command_line(*arguments: str) -> int:
    """Do what `python -m albert_jax ARGUMENTS` does, in this process."""
    from albert_jax import __main__  # which is to be started with its own arguments

    sys.argv = ["albert_jax", *arguments]
    return __main__.main()


def script(code: str, *arguments: str) -> None:
    """Do what `python -c CODE ARGUMENTS` does, in this process."""
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})


class WarmProcess:
    """A process that runs `call(*arguments)` of this module and ends with the status that it
    returns; the methods are those of `subprocess.Popen`. stderr and stdout are files."""

    def __init__(
        self,
        call: Callable[..., Any],
        *arguments: object,
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
        stderr: Path | None = None,
    ) -> None:
        _forks.set_forkserver_preload(_IMPORTED)
        folder = Path(tempfile.mkdtemp(prefix="warm-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.out, self.err = folder / "stdout", stderr or folder / "stderr"
        self._read = 0
        place = _Place(dict(env or os.environ), str(cwd), str(self.out), str(self.err))
        words = [str(argument) for argument in arguments]
        with _without_main():
            self._process = _forks.Process(target=_run, args=(call, words, place))
            self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid or 0, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return (stdout, stderr)."""
        self.wait(timeout)
        return _text(self.out), _text(self.err)

    def said(self, start: str) -> bool:
        """Return whether a line of stderr starts so by now."""
        return any(line.startswith(start) for line in _text(self.err).splitlines())

    def line(self, file: Path, timeout: float = 120) -> str:
        """Return the next whole line of a file of the process, "" where it ends without one."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            ended = self.poll() is not None
            line, newline, _ = _text(file)[self._read :].partition("\n")
            if newline:
                self._read += len(line) + 1
                return f"{line}\n"
            if ended:
                return ""
            time.sleep(0.005)
        raise AssertionError(f"no line within {timeout} s: {_text(self.err)}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def _without_main() -> Any:
    """The fork must not import this process's main module, which is pytest."""
    main = vars(sys.modules["__main__"])
    kept = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)


class _Place(NamedTuple):
    """Where a process runs."""

    environment: Mapping[str, str]
    folder: str
    stdout: str
    stderr: str


def _run(call: Callable[..., Any], arguments: Sequence[str], place: _Place) -> None:
    """Be the process: with its own files, environment and session, and an end as Python's own."""
    os.setsid()
    os.chdir(place.folder)
    os.environ.clear()
    os.environ.update(place.environment)
    for number, path in ((1, place.stdout), (2, place.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, encoding="utf-8", buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status: object = 1
    try:
        status = call(*arguments)
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    with contextlib.suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)
