# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a process to end: a scheduler's SIGTERM, Ctrl-C's SIGINT, and the SIGHUP of a
terminal that closes. What is finished stays finished, and the process goes in time.

Python runs a signal's handler when the main thread comes back from the library that it is in. For a
compilation that may be a minute, and a spot machine is gone after 30 s. So a second thread hears of
the signal at once, and ends the process where that loses nothing.

No handler raises: an exception at a random place is lost in a library that imports or calls back,
or comes out of it as another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from albert_jax.utils.errors import TryAgain

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE = 1.0  # seconds for the main thread to act on a signal itself
UNWIND = 20.0  # and to end, once it has begun to; a spot machine gives 30


def last_words(line: str) -> None:
    """Write a line to stderr from wherever a process ends: print's lock may be held just then."""
    with contextlib.suppress(OSError):
        os.write(2, f"albert-jax: {line}\n".encode())


def _kill(number: int) -> None:
    os._exit(128 + number)


@contextlib.contextmanager
def handled(handler: Callable[[int], None], again: Callable[[int], None] = _kill) -> Iterator[None]:
    """While entered, `handler` gets the number of the first of `SIGNALS` that comes, but for those
    that this process was started to ignore, as nohup has SIGHUP ignored.

    `again` gets those after it; unless given, a second signal ends the process at once. Does
    nothing outside the main thread, where Python has no signals.
    """
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            again(number)
            return
        came = True
        handler(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in map(int, SIGNALS):
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


# ---------------------------------------------------------------------------------- a whole command

_undo: list[Callable[[], object]] = []


@contextlib.contextmanager
def undone_on_exit(undo: Callable[[], object]) -> Iterator[None]:
    """While entered, a signal that ends the process has `undo` called first, to leave nothing
    half-written. It may be called in another thread."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


class _Watch:
    """What ends the process on a signal: the handler, in the main thread; or else the thread that
    hears of it by the pipe that C's handler writes to."""

    def __init__(self, status: Callable[[int], int]) -> None:
        self._status = status
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Not at 0 to 2: of a process whose stdin is closed it would be the input.
        self._read, self._write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in pipe)
        for end in pipe:
            os.close(end)
        os.set_blocking(self._read, True)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._leaving = threading.Lock()
        self.may_leave: Callable[[], bool] = lambda: True
        self.acting = False  # the main thread is ending by itself
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._write)  # the thread reads end-of-file, and closes its own end

    def leave(self, number: int) -> None:
        self._leaving.acquire()  # for good: one of the two threads leaves
        for undo in reversed(_undo):
            with contextlib.suppress(Exception):
                undo()
        status = self._status(number)
        if status == TryAgain.exit_status:
            name = signal.Signals(number).name
            last_words(
                f"stopped by {name}; what was finished is kept: run the same command again to go on"
            )
        os._exit(status)

    def _wait(self) -> None:
        while data := os.read(self._read, 1):
            if data[0] in SIGNALS:
                self._end(data[0])
        os.close(self._read)

    def _end(self, number: int) -> None:
        since = time.monotonic()
        while True:
            time.sleep(0.05)
            passed = time.monotonic() - since
            if passed > UNWIND if self.acting else passed > GRACE and self.may_leave():
                self.leave(number)


_watch: _Watch | None = None


@contextlib.contextmanager
def watched(status: Callable[[int], int]) -> Iterator[None]:
    """While entered, the first of `SIGNALS` ends the process with `status` of it, wherever the main
    thread is, unless something is `holding` work that is not saved."""
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _watch = _watch, _Watch(status)
    try:
        with handled(_watch.leave):
            yield
    finally:
        _watch.close()
        _watch = outer


@contextlib.contextmanager
def holding(nothing_to_lose: Callable[[], bool]) -> Iterator[None]:
    """While entered, the process holds work that is not saved, unless `nothing_to_lose` says so:
    then a signal ends it at once, in the midst of a compilation too. A second thread calls it."""
    if _watch is None:
        yield
        return
    before, _watch.may_leave = _watch.may_leave, nothing_to_lose
    try:
        yield
    finally:
        _watch.may_leave = before


def acting() -> None:
    """Say that this process is ending by itself on a signal, which may take `UNWIND` seconds."""
    if _watch is not None:
        _watch.acting = True
