# SPDX-License-Identifier: Apache-2.0
"""Bring a source to this disk: download an address, unpack a tar archive, and trust neither."""

from __future__ import annotations

import errno
import gzip
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any

from albert_jax.utils.errors import UserError
from albert_jax.utils.progress import ProgressMeter
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.wording import shortened, without_secrets

# Google's; ALBERT_JAX_ARCHIVES names a mirror, a folder or an address.
_RELEASED = "https://storage.googleapis.com/albert_models"
_OVER_HTTP = ("https://", "http://127.0.0.1:", "http://localhost:")

# Weights hardly compress; the zeros of a new optimizer compress 1000 times.
_MOST_UNPACKED = 32  # bytes an archive may have for each of its own
_FREE = 1 << 26  # bytes that any archive may have
_MOST_HEADER = 1 << 16  # bytes of a long name or of extended attributes
_MOST_MEMBERS = 10_000  # files and folders; a model has some ten, or some hundred
_BESIDE = ("albert_config.json", "config.json", ".model")  # may be needed beside a checkpoint


class NotDownloaded(UserError):
    """Report an address that did not answer, or not with a file; `brief` says so without advice."""

    def __init__(self, brief: str, advice: str = "") -> None:
        super().__init__(f"{brief}{advice}")
        self.brief = brief


def released_archive(name: str, folder: Path) -> tuple[Path, str]:
    """Return the archive of a released model on this disk, and its address.

    It is downloaded into `folder`, unless a mirror is a folder. Raises NotDownloaded if it cannot
    be downloaded; HF_HUB_OFFLINE forbids Google's server too.
    """
    mirror = os.environ.get("ALBERT_JAX_ARCHIVES", "").rstrip("/")
    place = mirror or _RELEASED
    address = f"{place}/albert_{name.replace('-', '_')}.tar.gz"
    if not is_address(place):
        if not Path(address).is_file():
            raise NotDownloaded(f"{address} does not exist (ALBERT_JAX_ARCHIVES is {mirror})")
        return Path(address), address
    if not mirror and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise NotDownloaded(f"{address} is not downloaded, as HF_HUB_OFFLINE is set")
    return download(address, folder), address


def download(address: str, folder: Path) -> Path:
    """Copy the file of an https:// or gs:// address into `folder` and return its path.

    Progress over https is shown. Raises UserError for another scheme, and if a library is missing;
    NotDownloaded if a server does not answer, or not with a file.
    """
    if address.startswith(_OVER_HTTP):
        target = folder / (PurePosixPath(address.partition("?")[0]).name or "download")
        try:
            with (
                urllib.request.urlopen(address, timeout=60) as response,  # noqa: S310
                target.open("wb") as file,
            ):
                size = _length_of(response)
                _require_room(address, folder, size)
                _copy(response, file, size)
        except (http.client.HTTPException, OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise _no_room(address, folder) from None
            raise NotDownloaded(
                without_secrets(f"{address} cannot be downloaded ({error})"),
                "; is there a network here? Otherwise download it elsewhere and give the file",
            ) from None
        return target
    if not address.startswith("gs://"):
        raise UserError(f"{address} is no path and neither gs:// nor https://; give one of these")
    files = _bucket(address)
    try:
        return _copy_from_bucket(files, address.removeprefix("gs://").rstrip("/"), folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(address, folder) from None
        raise UserError(f"{address} cannot be downloaded ({error}); check the address") from None


def _copy(response: Any, file: IO[bytes], size: int) -> None:
    """Copy a response's bytes; raises OSError if there are fewer than announced."""
    done = 0
    with ProgressMeter("download", size or None, unit="B") as meter:
        while content := response.read(1 << 20):
            done += file.write(content)
            meter.add(len(content))
    if done < size:
        raise OSError(f"{done:,} of {size:,} bytes arrived")


def _length_of(response: Any) -> int:
    """Return the number of bytes that are announced; 0 if there is none or it is no number."""
    said = getattr(response, "headers", {}).get("Content-Length") or "0"
    return int(said) if said.isdecimal() and len(said) < 19 else 0


def _require_room(source: str, folder: Path, size: int) -> None:
    if size > shutil.disk_usage(folder).free:
        raise _no_room(source, folder, size)


def _bucket(address: str) -> Any:
    try:
        import gcsfs
    except ImportError:
        raise UserError(
            f"{address} needs gcsfs; pip install 'albert-jax[gcs]', or copy the files here first"
        ) from None
    return gcsfs.GCSFileSystem()


def _copy_from_bucket(files: Any, name: str, folder: Path) -> Path:
    """Copy a file, a folder with its subfolders, or a checkpoint's files and those it needs."""
    if files.isdir(name):
        found, root = files.find(name), name
    elif files.isfile(name) and not name.endswith(".index"):
        found, root = [name], name.rpartition("/")[0]
    else:
        root, prefix = name.rpartition("/")[0], name.removesuffix(".index")
        beside = files.find(root, maxdepth=1)
        found = [f for f in beside if f.startswith(prefix + ".") or f.endswith(_BESIDE)]
        if not any(file == f"{prefix}.index" for file in found):
            raise UserError(f"gs://{name} is neither a file, a folder nor a checkpoint's prefix")
    _require_room(f"gs://{name}", folder, sum(files.size(file) or 0 for file in found))
    for file in found:
        inside = PurePosixPath(file).relative_to(root)
        if ".." in inside.parts:
            raise UserError(
                f"gs://{name} has the object {shortened(str(inside))}, a path that leads outside; "
                "refused, as no model needs it"
            )
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(file, str(target))
    return folder / PurePosixPath(name).relative_to(root)


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar archive, gzipped or not."""
    with path.open("rb") as file:
        head = file.read(512)
    return head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar"


class _Member(tarfile.TarInfo):
    """Read a member of an archive, without trusting its header with memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        try:
            member = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None  # tarfile takes it for the archive's end
        is_file = member.isreg() or member.isdir() or member.issym() or member.islnk()
        if not is_file and not member.isdev() and member.size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


# The errors of tarfile and gzip for damaged files; OverflowError is for a length of 2**63 and more.
_UNSOUND = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError)


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a tar archive's files into `folder` and return the folder.

    Raises UserError if the archive is damaged, unpacks to far more than its size, or has members
    that reach outside it: links, devices, absolute paths, paths with `..`.
    """
    folder.mkdir(exist_ok=True)
    free = shutil.disk_usage(folder).free
    with path.open("rb") as file:
        mode = "r:gz" if file.read(2) == b"\x1f\x8b" else "r:"
    try:
        with tarfile.open(path, mode, tarinfo=_Member) as archive:  # type: ignore[call-overload]
            total = _unpack_members(archive, path, folder, free)
    except _UNSOUND as error:
        told = shortened(str(error))
        raise UserError(f"{path} is no sound tar archive ({told}); download it again") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(path, folder) from None
        raise UserError(f"{path} cannot be unpacked: {error}") from None
    if total > free:
        raise _no_room(path, folder, total)
    return folder


def _unpack_members(archive: tarfile.TarFile, path: Path, folder: Path, free: int) -> int:
    """Write the members while they fit into `free` bytes; returns the bytes of all."""
    limit = _MOST_UNPACKED * path.stat().st_size + _FREE
    total = 0
    for count, member in enumerate(archive):
        name = PurePosixPath(member.name)
        if refused := _what_is_wrong(member, name):
            raise UserError(
                f"{path} has the member {shortened(member.name)}, {refused}; refused, as no "
                "archive of weights needs it"
            )
        total += member.size
        if total > limit or count >= _MOST_MEMBERS:
            raise UserError(
                f"{path} ({path.stat().st_size} bytes) unpacks to more than {limit} bytes or "
                f"{_MOST_MEMBERS} files; refused: unpack it yourself if you trust it, and give the "
                "folder"
            )
        if member.isfile() and total <= free:
            _write(archive.extractfile(member), folder / name)
    _read_on(archive.fileobj, limit)
    return total


def _no_room(source: Path | str, folder: Path, needed: int | None = None) -> UserError:
    """Return the error for a source that needs more of the temporary folder than is free."""
    free = shutil.disk_usage(folder).free
    return UserError(
        f"{source} {f'needs {needed:,} bytes' if needed else 'does not fit'} in the temporary "
        f"folder {tempfile.gettempdir()}, which has {free:,} free; set TMPDIR to a folder with "
        "more room, or bring the model here yourself and give its folder"
    )


def _read_on(file: Any, limit: int) -> None:
    """Read to the end, where gzip's checksum is."""
    total = 0
    while content := file.read(1 << 20):
        total += len(content)
        if total > limit:
            raise tarfile.ReadError(f"more than {limit} bytes after its last member")


def _what_is_wrong(member: tarfile.TarInfo, name: PurePosixPath) -> str:
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
        return "a path that leads outside"
    if member.issym() or member.islnk():
        return f"a link to {shortened(member.linkname)}"
    if member.issparse() or not (member.isfile() or member.isdir()):
        return "neither a plain file nor a folder"
    return ""


def _write(source: IO[bytes] | None, target: Path) -> None:
    assert source is not None, "it is a file"
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as file:  # x: a second member of the name would replace it
        shutil.copyfileobj(source, file, 1 << 20)
