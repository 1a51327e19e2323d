# SPDX-License-Identifier: Apache-2.0
"""File systems of a few kB or MB, that fill up, and saves that find one full."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest


@contextlib.contextmanager
def mounted_disk(path: Path, size: str, *, lazily: bool = False) -> Iterator[Path]:
    """Makes a folder that is a file system of that size, as 64k, while entered; the test is skipped
    where none can be mounted. Unless it is left `lazily`, no file in it may still be open then."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", *(["-l"] if lazily else []), str(path)], check=True)


FULL = ValueError("RESOURCE_EXHAUSTED: No space left on device")  # as orbax has it


@contextlib.contextmanager
def writes_fail(error: Exception) -> Iterator[None]:
    """Makes the writes of saves that begin meanwhile fail, in the thread where orbax writes."""

    async def fail(*_: object, **__: object) -> None:
        raise error

    handler = "orbax.checkpoint._src.serialization.type_handlers.NumpyHandler"
    with mock.patch(f"{handler}._background_serialize", fail):
        yield
