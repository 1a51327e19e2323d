# SPDX-License-Identifier: Apache-2.0
"""Files of tests/data that lie there compressed, with .xz behind their names."""

import lzma
import shutil
from pathlib import Path


def read_compressed(path: Path) -> str:
    """The text of a file by its name without .xz."""
    return lzma.decompress(path.with_name(f"{path.name}.xz").read_bytes()).decode()


def unpack(folder: Path, to: Path) -> Path:
    """Copies a folder's files to `to`, decompressed; returns it."""
    for file in folder.iterdir():
        if file.suffix == ".xz":
            (to / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, to / file.name)
    return to
