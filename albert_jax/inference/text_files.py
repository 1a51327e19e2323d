# SPDX-License-Identifier: Apache-2.0
"""What the commands on a model read and write: texts, one a line, and arrays in an .npz file."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from albert_jax.utils.atomic import appearing_file, require_apart, writing
from albert_jax.utils.errors import UserError

SUFFIX = ".npz"


def read_texts(file: str) -> list[str]:
    """Returns the texts in a UTF-8 file, one a line; - is standard input, and a file whose name
    ends in .gz is unpacked.

    An empty line is the empty text, so that line n of the file is text n. Line ends may be those of
    Unix, DOS or old Macs, and a byte order mark is passed over. Raises UserError for a file that
    cannot be read, is empty, is no UTF-8 or has NUL characters, as UTF-16 has.
    """
    name = "standard input" if file == "-" else file
    data = _read(file)
    if not data:
        raise UserError(f"{name} is empty; give a text a line")
    try:
        lines = list(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name} line {number} is not UTF-8 text ({error.reason}); convert the file to UTF-8"
        ) from None
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(
                f"{name} line {number} has a NUL character, as UTF-16 text and binary files have; "
                "give UTF-8 text"
            )
    return [line.removesuffix("\n") for line in lines]


def given_text(text: str) -> str:
    """Returns a text of the command line as the UTF-8 that it was typed in, whatever the locale;
    raises UserError for bytes that are none."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise UserError(f"{text!r} is not UTF-8 text ({error.reason}); give UTF-8") from None


def _read(file: str) -> bytes:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return gzip.decompress(data) if file.endswith(".gz") else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file} is a damaged gz file ({error}); make it again") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file} cannot be read ({reason})") from None


def check_arrays_file(dest: str, sources: list[str]) -> None:
    """Raises UserError where arrays cannot be written to `dest`: it has another ending, is a folder
    or is one of the sources. To be called before the work, not after."""
    if not dest.endswith(SUFFIX):
        raise UserError(f"output {dest} must end in {SUFFIX}")
    require_apart(dest, sources)
    if Path(dest).is_dir():
        raise UserError(f"{dest} is a folder; name a file for --output")


def write_arrays(dest: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an .npz file that appears whole; UserError where the disk does not take it.

    A link stays one, and a pipe or device is written to directly.
    """
    path = Path(dest)
    with writing(dest):
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            return
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
