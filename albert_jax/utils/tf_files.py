# SPDX-License-Identifier: Apache-2.0
"""Recognise the files of TensorFlow checkpoints by their names and ends, without TensorFlow."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

TABLE_END = bytes.fromhex("57fb808b247547db")  # of LevelDB's tables, as an index is one


def prefix_of(name: str) -> str:
    """Return a checkpoint's prefix, given it or the name of one of its files."""
    return re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", name)


def tf_indexes(folder: Path) -> list[Path]:
    """Return the indexes of a folder's TensorFlow checkpoints.

    Other programs have files of that name too. A checkpoint's has "ckpt" in its name, a file of its
    data or its graph beside it, or ends as such tables do.
    """
    found = sorted(path for path in folder.glob("*.index") if path.is_file())
    if not found:
        return []
    others = [path.name for path in folder.iterdir() if path.suffix != ".index"]
    known = {prefix for name in others if (prefix := prefix_of(name)) != name}
    return [
        index
        for index in found
        if "ckpt" in index.stem or index.stem in known or _ends_as_table(index)
    ]


def _ends_as_table(file: Path) -> bool:
    with contextlib.suppress(OSError), file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - len(TABLE_END)))
        return opened.read() == TABLE_END
    return False
