# SPDX-License-Identifier: Apache-2.0
"""Verify that a store's files match its manifest, once for each state of a file.

A file is read whole: its SHA-256 is compared, and its ids and offsets are checked. The user's cache
remembers good files by size and times, so that the next start reads nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from albert_jax.data.store_manifest import DTYPES, StoreFile
from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.progress import ProgressMeter
from albert_jax.utils.user_cache import user_cache
from albert_jax.utils.wording import current_naming, name_as

BLOCK_BYTES = 1 << 22  # read at once, a multiple of every array's item
_SIGNALS_SEEN = 0.2  # seconds between two looks for one
MIN_REMEMBERED = 1 << 26  # bytes; fewer are read again in a tenth of a second
SETTLED_NANOSECONDS = 2_000_000_000  # a file that changed since could change again within one tick
SAID_AFTER_SECONDS = 1.5


@dataclass(frozen=True)
class _State:
    """Hold what shows whether a file has changed.

    `changed` is the system's, which no program can set.
    """

    size: int
    modified: int  # nanoseconds
    changed: int


@dataclass(frozen=True)
class _Good:
    """Record a file that was found good: its state at that time, and its SHA-256."""

    state: _State
    sha256: str


@dataclass(frozen=True)
class _Memory:
    """Hold what is remembered of a store, by the names of its files."""

    files: dict[str, _Good]


def verify_files(
    store: Path, files: Sequence[StoreFile], *, remedy: str, remembered: bool = True
) -> None:
    """Read those files of a store whole that have changed since they were last found good.

    With `remembered=False`, all are read. Raises UserError if a file is missing, of another size or
    damaged. The error names the first such file, the number of others, and the remedy.
    """
    sizes = [require_size(store / file.name, file.size, remedy) for file in files]
    is_large = sum(sizes) >= MIN_REMEMBERED
    states = _settled_states(store, files)
    good = _recall(store) if is_large and remembered else {}
    waiting = {
        file: size
        for file, size in zip(files, sizes, strict=True)
        if file.name not in states or good.get(file.name) != _Good(states[file.name], file.sha256)
    }
    if not waiting:
        return
    total = sum(waiting.values())
    with contextlib.closing(
        ProgressMeter(f"verify {store}", total, unit="B", delay=SAID_AFTER_SECONDS)
    ) as meter:
        problems = _check_all(store, list(waiting), meter.add)
    if problems:
        more = f" (and {len(problems) - 1} more of its files)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; {remedy}")
    if is_large:
        _remember(store, files, states)


def remember_files(store: Path, files: Sequence[StoreFile]) -> None:
    """Remember that these files of a store, if they are large, have just been found good."""
    if sum(file.size or 0 for file in files) >= MIN_REMEMBERED:
        _remember(store, files, _settled_states(store, files))


def require_size(path: Path, expected: int | None, remedy: str) -> int:
    """Return the bytes of a file; raises UserError if it is missing or of another size."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    if expected is not None and size != expected:
        raise UserError(f"{path} has {size:,} bytes where the manifest says {expected:,}; {remedy}")
    return size


# ----------------------------------------------------------------------------------------- reading


class _Stopped(Exception):
    """Report that another thread of the same verification has ended it."""


def _check_all(store: Path, files: Sequence[StoreFile], tick: Callable[[int], None]) -> list[str]:
    """Return what is wrong with each damaged file; hashing lets other threads run."""
    stop, ticking = threading.Event(), threading.Lock()

    def read(size: int) -> None:
        if stop.is_set():
            raise _Stopped
        with ticking:
            tick(size)

    threads = min(8, os.cpu_count() or 1, len(files))
    with ThreadPoolExecutor(threads, "verify", name_as, (current_naming(),)) as pool:
        try:
            found = [pool.submit(check_file, store / file.name, file, read) for file in files]
            # A signal that comes just before an endless wait is seen only at its end.
            while wait(found, timeout=_SIGNALS_SEEN).not_done:
                pass
            named = zip(files, found, strict=True)
            return [f"{store / f.name} {x.result()}" for f, x in named if x.result()]
        except BaseException:  # such as Ctrl-C: reading stops at once
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def check_file(path: Path, file: StoreFile, tick: Callable[[int], None] = lambda _: None) -> str:
    """Return what is wrong with a file of a store, as a phrase to follow its name, or "".

    `tick` is called with bytes read.
    """
    digest, numbers = hashlib.sha256(), _Numbers(file)
    try:
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                tick(len(block))
                digest.update(block)
                numbers.add(block)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest.hexdigest() != file.sha256:
        return "is damaged: its SHA-256 is not the manifest's"
    if problem := numbers.problem():
        return f"is damaged: {problem}"
    return ""


class _Numbers:
    """Check that ids are in the vocabulary, or that offsets rise from 0 to their end."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._last = -1  # the largest id, or the last offset
        self._rises = True

    def add(self, block: bytes) -> None:
        """Check the next block of the file."""
        if self._file.kind == "vocabulary":
            return
        dtype = DTYPES[self._file.kind]
        values = np.frombuffer(block, dtype, len(block) // dtype.itemsize)
        if not len(values):
            return
        if self._file.kind == "tokens":
            self._last = max(self._last, int(values.max()))
            return
        is_first = self._last < 0
        follows = values[0] == 0 if is_first else values[0] > self._last
        self._rises &= bool(follows) and bool(np.all(values[1:] > values[:-1]))
        self._last = int(values[-1])

    def problem(self) -> str:
        """Return what is wrong with the whole file, or ""."""
        kind, end = self._file.kind, self._file.end
        if kind == "tokens" and self._last >= end:
            return f"it has the id {self._last}, and the vocabulary {end} pieces"
        if kind in ("sentences", "documents") and not (self._rises and self._last == end):
            return f"its offsets do not rise from 0 to {end}"
        return ""


# ---------------------------------------------------------------------------------- remembering it


def _settled_states(store: Path, files: Iterable[StoreFile]) -> dict[str, _State]:
    """Return the states of the files by name, without those that have just changed.

    Such a file could change once more and show the same times.
    """
    latest = time.time_ns() - SETTLED_NANOSECONDS
    states = {}
    for file in files:
        status = (store / file.name).stat()
        if status.st_ctime_ns < latest:
            states[file.name] = _State(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return states


def _memory_file(store: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(store))).hexdigest()[:32]
    return user_cache("verified") / f"{name}.json"


def _recall(store: Path) -> dict[str, _Good]:
    """Return what is remembered of a store's files; nothing if that cannot be read."""
    try:
        memory = read_json(_memory_file(store), _Memory, hint="")
    except (UserError, OSError):
        return {}
    return memory.files


def _remember(store: Path, files: Iterable[StoreFile], states: Mapping[str, _State]) -> None:
    """Add good files to what is remembered; a cache that cannot be written costs only time."""
    good = {f.name: _Good(states[f.name], f.sha256) for f in files if f.name in states}
    if not good:
        return
    with contextlib.suppress(UserError, OSError):
        file = _memory_file(store)
        memory = _Memory({**_recall(store), **good})
        file.parent.mkdir(parents=True, exist_ok=True)
        with appearing_file(file) as temporary:
            temporary.write_bytes(msgspec.json.encode(memory))
