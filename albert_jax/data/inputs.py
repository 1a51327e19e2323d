# SPDX-License-Identifier: Apache-2.0
"""Files that `prepare` reads, here or at gs:// and fsspec's other addresses: found and opened."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from albert_jax.addresses import connect, is_address, refusal, within
from albert_jax.errors import UserError

READ_AHEAD = 1 << 22  # bytes that are asked of an address at once
# What clients tell of a file that changes with its content.
_CHANGES = ("etag", "ETag", "generation", "updated", "LastModified", "mtime", "created")


class Stream(Protocol):
    """What is used of an open file."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class FileState:
    """What tells whether a file has changed."""

    size: int  # bytes
    stamp: int  # its time in nanoseconds, or a digest of what an address tells of it


def find_files(given: str) -> list[str]:
    """The files of a folder, a pattern or a path, sorted; those at an address as addresses.

    Hidden ones of a folder are left out. Raises UserError where there is none.
    """
    found = _find_remote(given) if is_address(given) else _find_here(given)
    if not found:
        is_folder = not is_address(given) and os.path.isdir(given)
        kind = "no file in the folder" if is_folder else "no such file:"
        kind = "no file matches" if glob.has_magic(given) and not is_folder else kind
        raise UserError(f"{kind} {given}; name text files, folders or patterns")
    return sorted(found)


def _find_here(given: str) -> list[str]:
    if os.path.isdir(given):
        walked = ((folder, name) for folder, _, names in os.walk(given) for name in names)
        paths = [os.path.join(folder, name) for folder, name in walked]
        above = given.rstrip("/")
        return [path for path in paths if "/." not in path.removeprefix(above)]
    if os.path.exists(given):
        return [given]
    return [path for path in glob.glob(given, recursive=True) if os.path.isfile(path)]


def _find_remote(given: str) -> list[str]:
    files, root = connect(given)

    def listed() -> list[str]:
        if glob.has_magic(root):
            matching = files.glob(root, detail=True).items()
            found = [path for path, info in matching if info["type"] == "file"]
            found = [path for path in found if "/." in root or "/." not in path]  # as Python's
        else:
            found = [path for path in files.find(root) if "/." not in path.removeprefix(root)]
        return [path for path in found if not path.endswith("/")]  # which a console made: a folder

    with contextlib.suppress(FileNotFoundError):
        return [files.unstrip_protocol(path) for path in within(given, listed)]
    return []


def file_state(path: str) -> FileState:
    """Raises UserError for a file that cannot be read."""
    if not is_address(path):
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        return FileState(status.st_size, status.st_mtime_ns)
    files, root = connect(path)
    info = within(path, lambda: files.info(root))
    told = str([info.get(name) for name in _CHANGES])
    return FileState(info["size"], int(hashlib.sha256(told.encode()).hexdigest()[:15], 16))


@contextlib.contextmanager
def open_file(path: str) -> Iterator[Stream]:
    """Its bytes; UserError where it cannot be opened, or at an address be read."""
    if not is_address(path):
        try:
            stream = open(path, "rb")  # noqa: SIM115 - closed below; what fails there is not ours
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        with stream:
            yield stream
        return
    files, root = connect(path)
    try:
        remote = within(path, lambda: files.open(root, "rb", block_size=READ_AHEAD))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the same command again") from None
    with contextlib.closing(remote):
        yield _RemoteStream(path, remote)


class _RemoteStream:
    """A file at an address, whose client's errors are told as the user's."""

    def __init__(self, address: str, stream: Any):
        self._address, self._stream = address, stream

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except Exception as error:  # a client's own kinds
            raise refusal(self._address, error) from None

    def seek(self, offset: int) -> int:
        return self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()
