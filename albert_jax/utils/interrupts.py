# SPDX-License-Identifier: Apache-2.0
"""Handle signals that ask a process to end: finished work stays, and the process ends in time.

The signals are a scheduler's SIGTERM, Ctrl-C's SIGINT, and the SIGHUP of a terminal that closes.

Python runs a signal's handler when the main thread returns from the library that it is in. For a
compilation that may take a minute, and a spot machine is gone after 30 s. Therefore a second thread
receives the signal at once, and ends the process if that loses nothing.

No handler raises an exception: at a random place it would be lost in a library that imports or
calls back, or come out of it as another one.
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
    """Write a line to stderr from wherever a process ends, even if print's lock is held."""
    with contextlib.suppress(OSError):
        os.write(2, f"albert-jax: {line}\n".encode())


def _kill(number: int) -> None:
    os._exit(128 + number)


@contextlib.contextmanager
def handled(handler: Callable[[int], None], again: Callable[[int], None] = _kill) -> Iterator[None]:
    """Call `handler` with the number of the first of `SIGNALS` that comes while entered.

    Signals that this process was started to ignore are excluded, as nohup ignores SIGHUP. `again`
    gets later signals; unset, a second signal ends the process at once. Does nothing outside the
    main thread, where Python has no signals.
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
    """Call `undo` before a signal ends the process while entered, so that nothing is half-written.

    It may be called in another thread.
    """
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


class _Watch:
    """End the process on a signal, in one of two ways.

    The handler does it in the main thread. Otherwise a thread does, which learns of the signal from
    the pipe that C's handler writes to.
    """

    def __init__(self, status: Callable[[int], int]) -> None:
        self._status = status
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Not descriptors 0 to 2: in a process whose stdin is closed, the pipe would become its
        # input.
        self._read, self._write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in pipe)
        for end in pipe:
            os.close(end)
        os.set_blocking(self._read, True)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._leaving = threading.Lock()
        self.may_leave: Callable[[], bool] = lambda: True
        self.acting_since: float | None = None  # when the main thread began to end by itself
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
                f"stopped by {name}; what was finished is kept: run the same command again to "
                "continue"
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
            now, began = time.monotonic(), self.acting_since
            if began is not None:  # perhaps before this signal came
                must_leave = now - max(since, began) > UNWIND
            else:
                must_leave = now - since > GRACE and self.may_leave()
            if must_leave:
                self.leave(number)


_watch: _Watch | None = None


@contextlib.contextmanager
def watched(status: Callable[[int], int]) -> Iterator[None]:
    """End the process on the first of `SIGNALS` while entered, with its `status`.

    It ends wherever the main thread is, unless something is `holding` work that is not saved.
    """
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
    """Mark the process as holding work that is not saved, while entered.

    If `nothing_to_lose` returns True, a signal still ends it at once, even during a compilation. A
    second thread calls that function.
    """
    if _watch is None:
        yield
        return
    before, _watch.may_leave = _watch.may_leave, nothing_to_lose
    try:
        yield
    finally:
        _watch.may_leave = before


def acting() -> None:
    """Record that this process ends by itself on a signal.

    That may take `UNWIND` seconds from now on.
    """
    if _watch is not None and _watch.acting_since is None:
        _watch.acting_since = time.monotonic()
