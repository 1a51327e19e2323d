# SPDX-License-Identifier: Apache-2.0
"""Lock files: one process at a time writes a destination or uses a work directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from albert_jax.utils.errors import UserError
from albert_jax.utils.interrupts import undone_on_exit
from albert_jax.utils.streams import say

_WAIT_SECONDS = 0.1  # between two attempts


class Busy(UserError):
    """Report that another process holds the lock."""


class Lock:
    """Hold a lock on `path` from the call until `release` or until the process ends.

    The file has a line that names its owner, and is removed on release. Missing folders above it
    are made; those that are still empty on release are removed. A file system without locks is
    reported and otherwise ignored. Raises Busy if another process holds it: `busy`, with the owner
    in place of {owner}. Raises OSError if the file cannot be written.
    """

    def __init__(self, path: Path, busy: str) -> None:
        self._path = path
        self._made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _locked(path, busy)

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._file is None:
            return
        self._path.unlink(missing_ok=True)  # before it is free: another would hold a lost file
        os.close(self._file)
        self._file = None
        for folder in self._made:
            with contextlib.suppress(OSError):  # there is something in it, or it is gone
                folder.rmdir()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


@contextlib.contextmanager
def waited_for(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock on `path` while entered, after waiting for it if necessary.

    If another process holds it, `busy` is printed once, with the owner in place of {owner}. Raises
    OSError if the file cannot be written.
    """
    is_said = False
    while True:
        try:
            lock = Lock(path, busy)
            break
        except Busy as error:
            if not is_said:
                say(str(error))
            is_said = True
            time.sleep(_WAIT_SECONDS)
    with lock, undone_on_exit(lock.release):
        yield


def _locked(path: Path, busy: str) -> int | None:
    """Return an open, locked file at `path`, as a descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise Busy(busy.format(owner=owner)) from None
        except OSError as error:
            say(f"{path.parent} cannot be locked ({error.strerror}); let nothing else write there")
        if _is_at(file, path):
            break
        os.close(file)  # its owner removed it between our two calls
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    except BaseException:  # a full disk; open, it would stay locked
        os.close(file)
        raise
    return file


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
