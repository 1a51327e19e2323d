# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set's files, each with the place where it stands, or one error that names it."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from albert_jax.data.tfds_sets import open_split
from albert_jax.errors import UserError
from albert_jax.streams import say

Row = tuple[str, Mapping[str, Any]]  # place, for errors; cells by column


def read_text(path: Path) -> str:
    """A file's text without its byte order mark; lines end in \\n.

    Raises UserError for a file that cannot be read, is empty or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} row {row}: invalid UTF-8 at byte {error.start} (0x{data[error.start]:02x}); "
            "convert the file to UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty; fetch or write it again")
    return text.replace("\r\n", "\n")


def find_file(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The first of `names` in the first of `folders` that has any; UserError where none has."""
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise UserError(
        f"no {' or '.join(names)} in {' or '.join(map(str, folders))}; --data is the data set's "
        "folder"
    )


def tsv_rows(
    path: Path,
    needed: Sequence[str],
    *,
    without_header: Sequence[str] = (),
    leave_out_short: bool = False,
) -> Iterator[Row]:
    """Rows of a tab-separated file, whose quotes are plain text (csv.QUOTE_NONE).

    Row 1 names the columns; where it has none of `without_header`, those are the names and it is a
    row like the others. `leave_out_short`: rows of another width are counted on stderr.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    rows = ((number, line.split("\t")) for number, line in lines if line.strip())
    return _named(path, rows, needed, tuple(without_header), leave_out_short)


def csv_rows(path: Path, needed: Sequence[str]) -> Iterator[Row]:
    """Rows of a comma-separated file, a cell with commas, quotes or new lines in double quotes."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        number = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{path} row {number} is not CSV: {error}") from None
            if cells:
                yield number, cells
            number = reader.line_num + 1

    return _named(path, rows(), needed, (), False)


def _named(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    needed: Sequence[str],
    without_header: tuple[str, ...],
    leave_out_short: bool,
) -> Iterator[Row]:
    number, cells = next(rows)
    if without_header and not set(cells) & set(without_header):
        columns, rows = without_header, _chain((number, cells), rows)
    else:
        columns = tuple(cell.strip() for cell in cells)
    if missing := [name for name in needed if name not in columns]:
        raise UserError(
            f"{path} row {number} lacks the column {', '.join(missing)}: expected "
            f"{', '.join(needed)}; found {_shown(columns)}"
        )
    left_out = []
    for number, cells in rows:
        if len(cells) == len(columns):
            yield f"{path} row {number}", dict(zip(columns, cells, strict=True))
        elif leave_out_short:
            left_out.append(number)
        else:
            raise UserError(
                f"{path} row {number} has {len(cells)} columns; expected {len(columns)} "
                f"({_shown(columns)}); found {_shown(cells)}"
            )
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        wanted = f"for want of {len(columns)} columns"
        say(f"{path}: left out {wanted}: row {left_out[0]}{more}")


def _shown(cells: Iterable[str]) -> str:
    """Cells for an error, which is one line whatever they hold."""
    short = (cell[:30] for cell in cells)
    return ", ".join(cell if cell.isprintable() else repr(cell) for cell in short)[:300]


def _chain(first: Any, rest: Iterator) -> Iterator:
    yield first
    yield from rest


def json_rows(path: Path, needed: Sequence[str] = ()) -> Iterator[Row]:
    """The objects of a JSONL file, one a line."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path} row {number}"
            yield place, json_object(line, place, needed)


def json_object(text: str, place: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with the keys `needed`; UserError for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{place} is not a JSON object; expected the keys {', '.join(needed)}")
    require_keys(found, place, needed)
    return found


def require_keys(record: Mapping[str, Any], place: str, needed: Sequence[str]) -> None:
    """Raises UserError where a record lacks one of the keys."""
    if missing := [name for name in needed if name not in record]:
        raise UserError(
            f"{place} lacks {', '.join(missing)}: expected {', '.join(needed)}; found "
            f"{_shown(record) or 'nothing'}"
        )


def tfds_rows(name: str, split: str) -> Iterator[Row]:
    """Examples of a TFDS data set, text as str, lists as lists; prepared where need be.

    Raises UserError for a data set that is unknown or cannot be read without TensorFlow.
    """
    for index, example in enumerate(_tfds_source(name, split)):
        yield f"TFDS {name} {split}[{index}]", {k: _plain(v) for k, v in example.items()}


@functools.lru_cache(maxsize=4)
def _tfds_source(name: str, split: str) -> Sequence[Mapping[str, Any]]:
    _, source = open_split(name, split)
    return source


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(part) for part in value] if isinstance(value, list) else value


def write_text(folder: str | Path, name: str, text: str) -> Path:
    """Writes `folder`/`name`, UTF-8 with \\n, and returns it; UserError where it cannot."""
    path = Path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path
