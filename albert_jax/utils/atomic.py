# SPDX-License-Identifier: Apache-2.0
"""Write files and folders that are complete or absent: beside their place, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import io
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from albert_jax.utils.errors import UserError
from albert_jax.utils.interrupts import undone_on_exit
from albert_jax.utils.locks import Lock
from albert_jax.utils.wording import setting

# Two processes, and two calls in one process, never write to one temporary file.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.(?P<kind>tmp|new|old)")


@contextlib.contextmanager
def appearing_file(dest: Path) -> Iterator[Path]:
    """Yield a path to write a file to, which becomes `dest` at the end.

    If an error is raised, `dest` does not change. Other processes may write it at the same time;
    the last one stays.
    """
    dest = dest.resolve()  # a link stays one
    temporary = beside(dest, "tmp")

    def remove() -> None:
        temporary.unlink(missing_ok=True)

    with undone_on_exit(remove):
        try:
            yield temporary
            os.replace(temporary, dest)
        finally:
            remove()


@contextlib.contextmanager
def appearing_whole(dest: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `dest` at the end.

    If an error is raised, `dest` does not change. A folder at `dest` is replaced; on Linux's own
    file systems a reader finds either the old or the new one at every moment. Raises UserError if
    another process is writing it, or the disk refuses it.
    """
    dest = dest.resolve()
    busy = f"{dest} is being written by {{owner}}; wait for it, or name another place"
    try:
        with (
            Lock(dest.with_name(f".{dest.name}.lock"), busy) as lock,
            undone_on_exit(lock.release),
            undone_on_exit(lambda: _tidy(dest)),
        ):
            _tidy(dest)
            new, old = beside(dest, "new"), beside(dest, "old")
            try:
                new.mkdir()
                yield new
                if not (dest.exists() and _exchange(new, dest)):
                    if dest.exists():
                        dest.rename(old)
                    new.rename(dest)
            finally:
                _tidy(dest)
    except OSError as error:
        # Without the name of the file, which is the lock's or another temporary one.
        raise UserError(f"{dest} NOT written: {error.strerror or error}") from None


def require_writable(dest: str | Path) -> None:
    """Raise UserError if no folder can appear at `dest`, as far as that can be seen.

    Call it before the work.
    """
    whole = Path(dest).resolve()
    nearest = next((path for path in whole.parents if path.exists()), whole)  # / has no parents
    if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest} cannot be written to; name another place than {dest}")


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty temporary folder, which is removed at the end, also by a signal."""
    folder = Path(tempfile.mkdtemp(prefix="albert-jax-"))

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with undone_on_exit(remove):
        try:
            yield folder
        finally:
            remove()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, so that no moment is without either.

    Returns False, with nothing done, if the system or the file system cannot do it (macOS, NFS,
    FUSE).
    """
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's <fcntl.h> and <stdio.h>
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return renameat2(here, bytes(one), here, bytes(other), exchange) == 0


def _tidy(dest: Path) -> None:
    """Undo what a killed process left of `appearing_whole`; only the lock's owner may call it."""
    for path, found in _leftovers(dest.parent, dest.name):
        if found["kind"] == "old" and not dest.exists():  # killed, or failed, between its renames
            path.rename(dest)
    remove_leftovers(dest.parent, dest.name)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of `name`, or of everything, in a folder.

    Call it only if no other process writes there.
    """
    for path, found in _leftovers(folder, name):
        if found["kind"] == "old" and not (folder / found["name"]).exists():
            continue  # all that is left of it; the next writer of that name restores it
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _leftovers(folder: Path, name: str | None) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield what is temporary of `name`, or of everything, with the parts of its own name."""
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and name in (None, found["name"]):
            yield path, found


def beside(dest: Path, kind: str) -> Path:
    """Return a unique name beside `dest` for a temporary file (tmp) or folder (new, old)."""
    return dest.with_name(f".{dest.name}.{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def require_apart(dest: str | Path, sources: Iterable[str | Path], where: str = "") -> None:
    """Raise UserError if writing `dest` would destroy one of the sources.

    `dest` may be the source, under this or another name, or a folder that holds it. `where` names
    its setting in the error; by default that is `output`.
    """
    dest, where = Path(dest), where or setting("output")
    for source in map(Path, sources):
        if not dest.exists() or not source.exists():
            continue
        if dest.samefile(source):
            raise UserError(f"{dest} is the input itself; name another place for {where}")
        if dest.is_dir() and any(dest.samefile(parent) for parent in source.resolve().parents):
            raise UserError(f"{dest} holds the input {source}; name another place for {where}")


@contextlib.contextmanager
def _opened(path: Path, *, packed: bool) -> Iterator[TextIO]:
    if not packed:
        with path.open("w", encoding="utf-8") as stream:
            yield stream
        return
    # Without a name and a time, so that the same lines give the same bytes.
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed_file,
        io.TextIOWrapper(packed_file, encoding="utf-8") as lines,
    ):
        yield lines


@contextlib.contextmanager
def result_lines(dest: str) -> Iterator[TextIO]:
    """Yield a stream for lines of results: standard output for -, else a file.

    The file appears complete at the end. If an error ends it, what was written so far stays in
    DEST.partial, which the error names, and DEST does not change. A name that ends in .gz is that
    of a compressed file. A pipe or a device is written to directly.
    """
    path = Path(dest)
    if dest == "-":
        yield sys.stdout
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file for {setting('dest', flag='output')}")
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as device:
            yield device
        return
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with appearing_file(path) as temporary:

        def keep() -> bool:
            there = temporary.exists() and temporary.stat().st_size > 0
            if there:
                os.replace(temporary, partial)
            return there

        with undone_on_exit(keep):
            try:
                with _opened(temporary, packed=path.suffix.lower() == ".gz") as stream:
                    yield stream
            except BaseException as error:
                if not keep():
                    raise
                kept = f"what came before is in {partial}"
                if isinstance(error, UserError):
                    raise UserError(f"{error}; {kept}") from None
                is_pipe = isinstance(error, BrokenPipeError)
                if isinstance(error, OSError) and error.filename is None and not is_pipe:
                    why = error.strerror or error  # a full disk
                    raise UserError(f"{dest} NOT written: {why}; {kept}") from None
                raise
    partial.unlink(missing_ok=True)  # an earlier attempt's


@contextlib.contextmanager
def writing(dest: str | Path) -> Iterator[None]:
    """Turn refusals of the file system, such as a full disk, into UserError that names `dest`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"{dest} NOT written: {error.strerror or error}") from None
