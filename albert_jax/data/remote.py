# SPDX-License-Identifier: Apache-2.0
"""A token store in a bucket: fetched once to a local folder, verified, and mapped from there.

Examples are drawn from all over a store, so it is fetched whole; what is on the disk already is
kept, and the manifest is written last, as by prepare.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax.addresses import connect, is_address, within
from albert_jax.appearing import appearing_file
from albert_jax.caches import user_cache
from albert_jax.data.place import existing_folder
from albert_jax.data.store import SPLITS, parse_manifest, sha256_of, shard_sizes
from albert_jax.errors import UserError
from albert_jax.progress import show_bytes
from albert_jax.streams import say


def local_store(store: str) -> Path:
    """The folder of a store, which is fetched first where it is gs:// or another of fsspec's.

    Fetched stores lie in $ALBERT_JAX_STORES, else ~/.cache/albert_jax/stores. Raises UserError
    where the store cannot be reached in a minute, lacks a file, is damaged or does not fit.
    """
    if not is_address(store):
        return Path(store)
    address = store.rstrip("/")
    files, root = connect(address)
    manifest = _whole(f"{address}/manifest.json", lambda: files.cat_file(f"{root}/manifest.json"))
    places = os.environ.get("ALBERT_JAX_STORES")
    folder = Path(places).expanduser() if places else user_cache("stores")
    folder /= hashlib.sha256(manifest).hexdigest()[:16]  # another store, another folder
    if not (folder / "manifest.json").is_file():
        _fetch(files, address, root, folder, manifest)
    return folder


def remote_manifest(store: str) -> dict[str, Any]:
    """The manifest of a finished store at an address; UserError where there is none."""
    address = store.rstrip("/")
    files, root = connect(address)
    file = f"{address}/manifest.json"
    return parse_manifest(_whole(file, lambda: files.cat_file(f"{root}/manifest.json")), file)


def _whole(address: str, call: Callable[[], Any], size: int = 0) -> Any:
    try:
        return within(address, call, size)
    except FileNotFoundError:
        raise UserError(f"{address} is missing; is this a finished store, copied whole?") from None


def _fetch(files: Any, address: str, root: str, folder: Path, manifest_bytes: bytes) -> None:
    manifest = parse_manifest(manifest_bytes, f"{address}/manifest.json")
    wanted = {
        name: expected
        for name, expected in _wanted(manifest, address).items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != expected[0]
    }
    total = sum(size for size, _ in wanted.values())
    if total > (free := shutil.disk_usage(existing_folder(folder)).free):
        raise UserError(
            f"{address} is {show_bytes(total)} and the disk of {folder} has {show_bytes(free)} "
            "free; name another folder in ALBERT_JAX_STORES"
        )
    say(f"fetching {show_bytes(total)} of {address} to {folder}")
    for name, (size, sha256) in wanted.items():
        _fetch_file(files, f"{root}/{name}", f"{address}/{name}", folder / name, size, sha256)
    _put(folder / "manifest.json", lambda file: file.write_bytes(manifest_bytes))


def _wanted(manifest: dict[str, Any], address: str) -> dict[str, tuple[int, str]]:
    """Every file but the manifest, with its bytes (0: not known) and SHA-256."""
    wanted = {"spiece.model": (0, manifest["vocabulary"]["sha256"])}
    for split in SPLITS:
        for record in manifest["splits"][split]["shards"]:
            if not re.fullmatch(r"[0-9]+(-[0-9]+)?", record["name"]):  # it becomes a path here
                raise UserError(f"{address} has a shard named {record['name'][:50]!r}; refused")
            for kind, size in shard_sizes(record).items():
                wanted[f"{split}/{record['name']}.{kind}"] = size, record["sha256"][kind]
    return wanted


def _fetch_file(files: Any, path: str, address: str, target: Path, size: int, sha256: str) -> None:
    def get(temporary: Path) -> None:
        _whole(address, lambda: files.get_file(path, str(temporary)), size)
        if sha256_of(temporary) != sha256:
            raise UserError(f"{address} is damaged: its SHA-256 is not the manifest's")

    _put(target, get)


def _put(target: Path, write: Callable[[Path], Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with appearing_file(target) as temporary:
        write(temporary)
