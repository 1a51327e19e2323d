# SPDX-License-Identifier: Apache-2.0
"""Write a store to a folder of this machine, or to gs:// or another of fsspec's addresses.

Files are named relative to the store, as `train/00000.tokens`. A file is complete or absent.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypedDict

from albert_jax.data.store import sync_folder
from albert_jax.data.store_manifest import SPLITS, StoreFile
from albert_jax.data.store_verify import verify_files
from albert_jax.utils.atomic import appearing_file, scratch_folder
from albert_jax.utils.errors import UserError
from albert_jax.utils.locks import Lock
from albert_jax.utils.remote_fs import connect, is_address, refusal, within


class Place(Protocol):
    """Define a store that is being written.

    Methods raise OSError if a disk fails, and UserError if an address does.
    """

    name: str
    disk: Path  # of this machine, that a unit's files are written to

    def free(self) -> int | None:
        """Return the free bytes at the place; None if unknown."""

    def entries(self, folder: str = "") -> dict[str, int]:
        """Return the names in a folder of the store, with the bytes of files."""

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of those files that exist."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file durably."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, if they exist."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder of the store with its files, if it exists."""

    def workspace(self) -> AbstractContextManager[Path]:
        """Return a folder of this machine for new files, which `keep` moves into the store."""

    def keep(self, workspace: Path, names: Iterable[str]) -> None:
        """Move finished files of a workspace into the store."""

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """Return a file of the store as a file of this machine."""

    def verify(self, files: Sequence[StoreFile], remedy: str) -> None:
        """Raise UserError if a file is missing, of another size or, in a folder, damaged."""

    def writing(self) -> AbstractContextManager[None]:
        """Hold the store while it is written; remove temporary files at the end."""


def open_place(store: str) -> Place:
    """Return the place at a path or an address; raises UserError for one that cannot be reached."""
    return Bucket(store) if is_address(store) else Folder(Path(store))


def existing_folder(path: Path) -> Path:
    """Return the path or the nearest folder above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.is_dir())


class Folder:
    """Write a store to a folder of a file system; one `prepare` at a time may use it."""

    def __init__(self, path: Path):
        self.name, self.disk, self._path = str(path), path, path

    def free(self) -> int | None:
        return shutil.disk_usage(existing_folder(self._path)).free

    def entries(self, folder: str = "") -> dict[str, int]:
        try:
            with os.scandir(self._path / folder) as found:
                return {
                    entry.name: entry.stat().st_size if entry.is_file() else 0 for entry in found
                }
        except FileNotFoundError:
            return {}
        except NotADirectoryError:
            raise UserError(f"{self.name} is a file; name a folder for the store") from None

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            file = self._path / name
            try:
                found[name] = file.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"{file} cannot be read ({error.strerror})") from None
        return found

    def write(self, name: str, data: bytes) -> None:
        file = self._path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with appearing_file(file) as temporary, open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(file.parent)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self._path / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        shutil.rmtree(self._path / folder, ignore_errors=True)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        yield self._path

    def keep(self, workspace: Path, names: Iterable[str]) -> None:
        """Do nothing, because the files are there already."""

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        yield self._path / name

    def verify(self, files: Sequence[StoreFile], remedy: str) -> None:
        verify_files(self._path, files, remedy=remedy)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        busy = f"another prepare is writing {self.name} ({{owner}}); wait for it to end"
        with Lock(self._path / "progress" / "lock", busy):
            try:
                yield
            finally:
                for temporary in self._path.glob("**/*.tmp"):
                    temporary.unlink(missing_ok=True)


def _parts(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the names in hundreds, because each hundred may take a minute."""
    left = iter(names)
    while some := list(itertools.islice(left, 100)):
        yield some


class _Entry(TypedDict):
    """Hold what fsspec reports on a file or a folder."""

    name: str
    type: str
    size: int | None


class Bucket:
    """Write a store to an address, which has no lock: see `prepare` for two at once."""

    def __init__(self, address: str):
        self.name, self.disk = address.rstrip("/"), Path(tempfile.gettempdir())
        self._files, self._root = connect(address)

    def _reach(self, call: Callable[[], Any], size: int = 0) -> Any:
        try:
            return within(self.name, call, size)
        except FileNotFoundError as error:  # the bucket itself is not there
            raise refusal(self.name, f"not found: {error}") from None

    def free(self) -> int | None:
        return None

    def entries(self, folder: str = "") -> dict[str, int]:
        path = f"{self._root}/{folder}".rstrip("/")

        def listed() -> list[_Entry]:
            self._files.invalidate_cache()  # another machine may have written since
            return self._files.ls(path, detail=True)

        try:
            found = within(self.name, listed)
        except FileNotFoundError:
            return {}
        if any(entry["name"] == path and entry["type"] == "file" for entry in found):
            raise UserError(f"{self.name} is a file; name a folder for the store")
        sizes = {entry["name"].rstrip("/"): entry["size"] or 0 for entry in found}
        sizes.pop(path, None)  # the folder itself, as a web console makes one
        return {name.rpartition("/")[2]: size for name, size in sizes.items()}

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        there = {}
        for some in _parts(names):
            paths = {f"{self._root}/{name}": name for name in some}
            cat = functools.partial(self._files.cat, list(paths), on_error="return")
            for path, found in self._reach(cat).items():
                if isinstance(found, bytes):
                    there[paths[path]] = found
                elif not isinstance(found, FileNotFoundError):
                    raise refusal(self.name, found)
        return there

    def write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        self._reach(lambda: self._files.pipe_file(path, data), len(data))

    def remove(self, names: Iterable[str]) -> None:
        for some in _parts(names):
            paths = [f"{self._root}/{name}" for name in some]
            with contextlib.suppress(FileNotFoundError):
                within(self.name, functools.partial(self._files.rm, paths))

    def remove_folder(self, folder: str) -> None:
        self.remove(f"{folder}/{name}" for name in self.entries(folder))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        with scratch_folder() as folder:
            yield folder

    def keep(self, workspace: Path, names: Iterable[str]) -> None:
        for name in names:
            file, path = workspace / name, f"{self._root}/{name}"
            put = functools.partial(self._files.put_file, str(file), path)
            self._reach(put, file.stat().st_size)

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        with self.workspace() as folder:
            found = self.read([name])
            if name not in found:
                raise UserError(f"{self.name}/{name} is missing; run the same command again")
            (folder / name).write_bytes(found[name])
            yield folder / name

    def verify(self, files: Sequence[StoreFile], remedy: str) -> None:
        # Their bytes are verified when they are fetched.
        sizes = {
            f"{folder}/{name}".lstrip("/"): size
            for folder in ("", *SPLITS)
            for name, size in self.entries(folder).items()
        }
        for file in files:
            found = sizes.get(file.name)
            if found is None:
                raise UserError(f"{self.name}/{file.name} is missing; {remedy}")
            if file.size not in (None, found):
                raise UserError(
                    f"{self.name}/{file.name} has {found:,} bytes where the manifest says "
                    f"{file.size:,}; {remedy}"
                )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        yield
