# SPDX-License-Identifier: Apache-2.0
"""Find and open the files that `prepare` reads, here or at gs:// and fsspec's other addresses."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

from albert_jax.config.manifests import CONFIG, MANIFEST, VOCABULARIES
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import connect, is_address, refusal, within
from albert_jax.utils.wording import setting

READ_AHEAD = 1 << 22  # bytes that are asked of an address at once
_OWN = frozenset({MANIFEST, CONFIG, *VOCABULARIES})  # files of a token store or a model
# Values from clients that change with the content of a file.
_CHANGES = ("etag", "ETag", "generation", "updated", "LastModified", "mtime", "created")


class Stream(Protocol):
    """Define what is used of an open file."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class FileState:
    """Hold what shows whether a file has changed."""

    size: int  # bytes
    stamp: int  # its time in nanoseconds, or a digest of an address's metadata


def find_files(given: str) -> list[str]:
    """Return the files of a folder, a pattern or a path, sorted; those at an address as addresses.

    Hidden files of a folder are left out. Raises UserError if there is none.
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
        paths = []
        for folder, folders, names in os.walk(given, onerror=_refuse_folder):
            if is_store_or_model(names):
                if folder == given:
                    raise _no_corpus(given)
                folders.clear()  # among the texts it is none of them
                continue
            folders[:] = [each for each in folders if not each.startswith(".")]
            paths += [os.path.join(folder, name) for name in names]
            inner = (os.path.join(folder, each) for each in folders)
            if linked := next(filter(os.path.islink, inner), None):
                raise UserError(
                    f"{linked} is a link to a folder, which is not followed; give the folder that "
                    "it leads to beside the other, or remove the link"
                )
        above = given.rstrip("/")
        return [path for path in paths if "/." not in path.removeprefix(above)]
    if os.path.exists(given):
        return [given]
    found = [path for path in glob.glob(given, recursive=True) if os.path.isfile(path)]
    return _outside_stores(found, _fixed_part(given), lambda folder: os.listdir(folder or "."))


def is_store_or_model(names: Iterable[str]) -> bool:
    """Return whether a folder with files of these names is a token store or a model."""
    own = _OWN.intersection(names)
    return MANIFEST in own and len(own) > 1  # a corpus may have a manifest of its own


def _no_corpus(folder: str) -> UserError:
    return UserError(f"{folder} is a token store or a model, not text; name text files")


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror})") from None


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

    try:
        found = within(given, listed)
    except FileNotFoundError:
        return []
    if not glob.has_magic(root) and is_store_or_model(x.removeprefix(f"{root}/") for x in found):
        raise _no_corpus(given)
    if glob.has_magic(root):

        def names_in(folder: str) -> list[str]:
            there = within(given, lambda: files.ls(folder, detail=False))
            return [os.path.basename(str(path).rstrip("/")) for path in there]

        found = _outside_stores(found, _fixed_part(root), names_in)
    else:
        names: dict[str, list[str]] = {}
        for path in found:
            names.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
        found = _outside_stores(found, root, lambda folder: names.get(folder, []))
    return [files.unstrip_protocol(path) for path in found]


def _fixed_part(pattern: str) -> str:
    """Return the folder of a pattern in which it begins to search."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern


def _outside_stores(
    paths: list[str], root: str, names_in: Callable[[str], Iterable[str]]
) -> list[str]:
    """Return the files that lie in no token store and no model below `root`.

    `names_in` returns the names in a folder.
    """

    @functools.cache
    def is_inside(folder: str) -> bool:
        if len(folder) <= len(root):
            return False
        return is_store_or_model(names_in(folder)) or is_inside(os.path.dirname(folder))

    return [path for path in paths if not is_inside(os.path.dirname(path))]


def require_output_apart(
    output: str | Path,
    given: Iterable[str | Path],
    files: Iterable[str] = (),
    *,
    where: str = "",
) -> None:
    """Raise UserError if the next call would read what this one writes, or if they overlap.

    `output` may not be or lie in a folder that is given, or hold a file that is read. `given` are
    files, folders and patterns as in `find_files`, and `files` are what they name. `where` names
    the output's setting, by default `output`.
    """
    place, where = _absolute(output), where or setting("output")
    for folder in filter(None, map(_whole_folder, map(str, given))):
        inner = PurePath(place).parts[len(PurePath(_absolute(folder)).parts) :]
        is_hidden = any(part.startswith(".") for part in inner)
        if _lies_in(place, _absolute(folder)) and not is_hidden:
            raise UserError(
                f"{output} lies in the input {folder}, of which it would become a part; name "
                f"another place for {where}"
            )
    for file in files:
        if _absolute(file) == place:
            raise UserError(f"{output} is the input itself; name another place for {where}")
        if _lies_in(_absolute(file), place):
            raise UserError(f"{output} holds the input {file}; name another place for {where}")


def _whole_folder(given: str) -> str | None:
    """Return the folder whose files are all given, by its name or as `folder/**`, or None."""
    if glob.has_magic(given):
        prefix, stars, rest = given.partition("**")
        return (prefix or ".") if stars and not rest.strip("/*") else None
    return given if is_address(given) or os.path.isdir(given) else None


def _absolute(path: str | Path) -> str:
    return str(path).rstrip("/") if is_address(str(path)) else os.path.realpath(path)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def file_state(path: str) -> FileState:
    """Return a file's state; raises UserError if it cannot be read."""
    if not is_address(path):
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        return FileState(status.st_size, status.st_mtime_ns)
    files, root = connect(path)
    info = within(path, lambda: files.info(root))
    if info["size"] is None:
        raise UserError(f"the server of {path} does not tell its size; download it first")
    told = str([info.get(name) for name in _CHANGES])
    return FileState(info["size"], int(hashlib.sha256(told.encode()).hexdigest()[:15], 16))


def _require_regular(path: str) -> None:
    """Raise UserError for a pipe or a device, which cannot be read twice or in parts."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is no regular file; write its text to one first")


@contextlib.contextmanager
def open_file(path: str) -> Iterator[Stream]:
    """Open a file; raises UserError if it cannot be opened or, at an address, read."""
    if not is_address(path):
        _require_regular(path)
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
    """Read a file at an address, and turn the client's errors into UserError."""

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
