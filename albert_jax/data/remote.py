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
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax.appearing import appearing_file
from albert_jax.data.forecast import existing_folder, show_bytes
from albert_jax.data.store import SPLITS, read_manifest, sha256_of, shard_sizes
from albert_jax.errors import UserError

WAIT_SECONDS = 60.0  # for a first answer, and beside SLOWEST for each file
SLOWEST = 100_000  # bytes a second


def is_address(store: str) -> bool:
    """Whether a store lies on a network: any scheme counts, so that its error can name it."""
    return "://" in store


def local_store(store: str) -> Path:
    """The folder of a store, which is fetched first where it is gs:// or another of fsspec's.

    Fetched stores lie in $ALBERT_JAX_STORES, else ~/.cache/albert_jax/stores. Raises UserError
    where the store cannot be reached in a minute, lacks a file, is damaged or does not fit.
    """
    if not is_address(store):
        return Path(store)
    address = store.rstrip("/")
    files, root = _file_system(address)
    manifest = _within(
        WAIT_SECONDS, f"{address}/manifest.json", lambda: files.cat_file(f"{root}/manifest.json")
    )
    places = Path(os.environ.get("ALBERT_JAX_STORES") or "~/.cache/albert_jax/stores").expanduser()
    folder = places / hashlib.sha256(manifest).hexdigest()[:16]  # another store, another folder
    if not (folder / "manifest.json").is_file():
        _fetch(files, address, root, folder, manifest)
    return folder


def _file_system(address: str) -> tuple[Any, str]:
    def connect() -> tuple[Any, str]:
        try:
            import fsspec

            return fsspec.core.url_to_fs(address)
        except ImportError:
            raise UserError(
                f"{address} needs gcsfs; pip install 'albert-jax[gcs]', or copy the store here "
                "first"
            ) from None
        except ValueError as error:
            raise UserError(
                f"{address} cannot be read ({error}); give a folder or gs://…"
            ) from None

    return _within(WAIT_SECONDS, address, connect)  # the client may look for credentials first


def _within(seconds: float, address: str, call: Callable[[], Any]) -> Any:
    """What `call` returns; UserError where it fails or takes longer, as without credentials."""
    outcome: list[Any] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # a client's own kinds, as google.auth's
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)  # one that hangs must not keep the process
    thread.start()
    thread.join(seconds)
    if outcome:
        return outcome[0]
    if failure and isinstance(failure[0], UserError):
        raise failure[0]
    if failure and isinstance(failure[0], FileNotFoundError):
        raise UserError(f"{address} is missing; is this a finished store, copied whole?")
    said = " ".join(str(failure[0]).split())[:200] if failure else f"no answer in {seconds:.0f} s"
    raise UserError(
        f"{address} cannot be read ({said}); check the address and the credentials "
        "(gcloud auth application-default login)"
    )


def _fetch(files: Any, address: str, root: str, folder: Path, manifest_bytes: bytes) -> None:
    with tempfile.TemporaryDirectory() as staging:
        (Path(staging) / "manifest.json").write_bytes(manifest_bytes)
        manifest = read_manifest(Path(staging))
    assert manifest is not None, "a manifest just written is gone"
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
    print(f"fetching {show_bytes(total)} of {address} to {folder}", file=sys.stderr, flush=True)
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
        seconds = WAIT_SECONDS + size / SLOWEST
        _within(seconds, address, lambda: files.get_file(path, str(temporary)) or True)
        if sha256_of(temporary) != sha256:
            raise UserError(f"{address} is damaged: its SHA-256 is not the manifest's")

    _put(target, get)


def _put(target: Path, write: Callable[[Path], Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with appearing_file(target) as temporary:
        write(temporary)
