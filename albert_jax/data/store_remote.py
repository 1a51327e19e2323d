# SPDX-License-Identifier: Apache-2.0
"""Fetch a token store from a bucket to a local folder, once, and verify it.

Examples are drawn from all over a store, so it is fetched whole. Files that are already on the disk
are kept, and the manifest is written last, as in `prepare`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax.data.prepare.storage import existing_folder
from albert_jax.data.store_manifest import StoreFile, StoreManifest, files_of, parse_manifest
from albert_jax.data.store_verify import check_file, remember_files
from albert_jax.utils.atomic import appearing_file, writing
from albert_jax.utils.errors import UserError
from albert_jax.utils.locks import waited_for
from albert_jax.utils.progress import show_bytes
from albert_jax.utils.remote_fs import connect, is_address, within
from albert_jax.utils.streams import say
from albert_jax.utils.user_cache import user_cache

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def local_store(store: str) -> Path:
    """Return the folder of a store, which is fetched first if it has gs:// or another address.

    Fetched stores lie in $ALBERT_JAX_STORES, or ~/.cache/albert_jax/stores. Raises UserError if the
    store cannot be reached in a minute, lacks a file, is damaged or does not fit on the disk.
    """
    if not is_address(store):
        return Path(store)
    address = store.rstrip("/")
    files, root = connect(address)
    manifest = _whole(f"{address}/manifest.json", lambda: files.cat_file(f"{root}/manifest.json"))
    places = os.environ.get("ALBERT_JAX_STORES")
    folder = Path(os.path.expanduser(places)) if places else user_cache("stores")
    folder /= hashlib.sha256(manifest).hexdigest()[:16]  # another store, another folder
    complete = folder / "manifest.json"
    if not complete.is_file():
        busy = f"{address} is being fetched by {{owner}}; waiting for it"
        with writing(folder), waited_for(folder.with_name(f".{folder.name}.lock"), busy):
            if not complete.is_file():  # one of a host's processes fetches it for all
                _fetch(files, address, root, folder, manifest)
    return folder


def remedy_for(store: str, folder: Path) -> str:
    """Return what to do about damage in `folder`, which is `local_store(store)`."""
    again = "and it is fetched again" if is_address(store) else "and prepare the text again"
    return f"delete {folder} {again}"


def remote_manifest(store: str) -> StoreManifest:
    """Return the manifest of a finished store at an address; raises UserError if there is none."""
    address = store.rstrip("/")
    files, root = connect(address)
    file = f"{address}/manifest.json"
    data = _whole(file, lambda: files.cat_file(f"{root}/manifest.json"))
    return parse_manifest(data, file, remedy=_COPY_AGAIN)


_COPY_AGAIN = "copy the store there again"


def _whole(address: str, call: Callable[[], Any], size: int = 0) -> Any:
    try:
        return within(address, call, size)
    except FileNotFoundError:
        raise UserError(f"{address} is missing; is this a finished store, copied whole?") from None


def _fetch(files: Any, address: str, root: str, folder: Path, manifest_bytes: bytes) -> None:
    manifest = parse_manifest(manifest_bytes, f"{address}/manifest.json", remedy=_COPY_AGAIN)
    wanted = [file for file in files_of(manifest) if not _is_there(folder / file.name, file.size)]
    total = sum(file.size or 0 for file in wanted)
    if total > (free := shutil.disk_usage(existing_folder(folder)).free):
        raise UserError(
            f"{address} is {show_bytes(total)} and the disk of {folder} has {show_bytes(free)} "
            "free; name another folder in ALBERT_JAX_STORES"
        )
    say(f"fetching {show_bytes(total)} of {address} to {folder}")
    for file in wanted:
        _fetch_file(files, f"{root}/{file.name}", f"{address}/{file.name}", folder, file)
    remember_files(folder, wanted)
    _put(folder / "manifest.json", lambda target: target.write_bytes(manifest_bytes))


def _is_there(path: Path, size: int | None) -> bool:
    return size is not None and path.is_file() and path.stat().st_size == size


def _fetch_file(files: Any, path: str, address: str, folder: Path, file: StoreFile) -> None:
    def get(temporary: Path) -> None:
        def fetch() -> None:
            try:
                files.get_file(path, str(temporary))
            except OSError as error:
                if error.errno not in _DISK_ERRORS:
                    raise
                said = f"{folder} NOT written: {error.strerror}; make room there"
                raise UserError(f"{said}; the next start continues") from None

        _whole(address, fetch, file.size or 0)
        if problem := check_file(temporary, file):
            raise UserError(f"{address} {problem}; {_COPY_AGAIN}")

    _put(folder / file.name, get)


def _put(target: Path, write: Callable[[Path], Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with appearing_file(target) as temporary:
        write(temporary)
