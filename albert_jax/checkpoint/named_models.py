# SPDX-License-Identifier: Apache-2.0
"""Fetch and convert a named model once, into the user's cache, as a model directory.

MODELS/released/NAME/KEY       a model directory; KEY is of its archive's SHA-256, or hub-COMMIT
MODELS/hub/OWNER--NAME/COMMIT  a model directory, of a repository of the hub
MODELS/…/refs/REVISION         the KEY or COMMIT that the name meant when it was fetched
MODELS/local/NAME-PATH/STATE   a model directory, of a transformers folder or adapter on this disk

Only the standard library and small files are used; JAX is imported when something must be
converted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from albert_jax.config.manifests import is_model_directory
from albert_jax.config.model_names import ModelName, cache_folder, kept_model, ref_file
from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.locks import waited_for
from albert_jax.utils.user_cache import user_cache

_DIGITS = 16  # of a digest, in a folder's name


def named_model(named: ModelName) -> Path:
    """Return the model directory of a name, fetched and converted if the cache has none.

    Several processes may call it at once: one fetches, the others wait for it. Raises UserError if
    the model cannot be fetched, is not what the name says, or cannot be kept.
    """
    if kept := kept_model(named):
        return kept
    with _making(cache_folder(named), str(named)):
        if kept := kept_model(named):  # another process has made it meanwhile
            return kept
        from albert_jax.checkpoint.convert.keep import keep_named

        key = keep_named(named, cache_folder(named))
        _note(named, key)
    return cache_folder(named) / key


def _note(named: ModelName, key: str) -> None:
    """Record which model directory belongs to a revision; raises UserError if that fails."""
    note = ref_file(named)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with appearing_file(note) as temporary:
            temporary.write_text(f"{key}\n", encoding="ascii")
    except OSError as error:
        raise _not_kept(str(named), note, error) from None


def converted_folder(folder: Path) -> Path:
    """Return the model directory of a transformers folder on this disk.

    It is converted if the cache does not have its present state. Raises UserError if it cannot be
    converted or kept.
    """
    if kept := kept_folder(folder):
        return kept
    dest = _place_of(folder)
    with _making(dest.parent, str(folder)):
        if not is_model_directory(dest):
            from albert_jax.checkpoint.convert.keep import keep_folder

            keep_folder(folder, dest)
    return dest


def merged_adapter(folder: Path, base: Path) -> Path:
    """Return the model directory of an adapter and its base, a model directory.

    They are merged if the cache does not have the adapter's present state. Raises UserError if they
    cannot be merged or kept.
    """
    dest = _place_of(folder)
    with _making(dest.parent, str(folder)):
        if not is_model_directory(dest):
            from albert_jax.checkpoint.adapter import keep_adapter

            keep_adapter(folder, dest, base)
    return dest


def kept_folder(folder: Path) -> Path | None:
    """Return the cache's model directory for the present state of a folder, or None.

    The folder is a transformers folder or an adapter.
    """
    dest = _place_of(folder)
    return dest if is_model_directory(dest) else None


def _place_of(folder: Path) -> Path:
    resolved = folder.resolve()
    place = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:_DIGITS]
    name = f"{resolved.name[:60]}-{place}"
    return user_cache("models") / "local" / name / _state_of(resolved)


def _state_of(folder: Path) -> str:
    """Return a digest that changes whenever a file of a folder does."""
    files = [
        (path.name, status.st_size, status.st_mtime_ns, status.st_ino)
        for path in sorted(folder.iterdir())
        if path.is_file()
        for status in (path.stat(),)
    ]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:_DIGITS]


@contextlib.contextmanager
def _making(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder of the cache; raises UserError if the cache cannot be written."""
    busy = f"{what} is being fetched or converted by {{owner}}; waiting for it"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(waited_for(folder.with_name(f".{folder.name}.lock"), busy))
        except OSError as error:
            raise _not_kept(what, folder, error) from None
        yield


def _not_kept(what: str, place: Path, error: OSError) -> UserError:
    return UserError(
        f"{what} cannot be kept in {place} ({error.strerror or error}); set ALBERT_JAX_CACHE to a "
        "folder that can be written"
    )
