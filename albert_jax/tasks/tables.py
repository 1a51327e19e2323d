# SPDX-License-Identifier: Apache-2.0
"""Read rows of a data set's files, each with its place, or one error that names the place.

The readers take numbered lines, from a file or from a stream, and yield rows on demand. A row's
number is that of the line where it begins.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.data.hub import open_hub_split
from albert_jax.data.tfds import open_split
from albert_jax.tasks.values import Hint, json_shown, lacking, no_hint, quoted, require_keys
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.streams import say
from albert_jax.utils.text_files import Line, LineOrError, file_lines, kind_of
from albert_jax.utils.wording import setting

Row = tuple[str, Mapping[str, Any]]  # place, for errors; cells by column
# A row, or, if a reader keeps errors, the error of a row that cannot be read.
RowOrError = tuple[str, Mapping[str, Any] | UserError]

# The names of a split's files, for all tasks.
SPLITS = (
    "train",
    "dev",
    "test",
    "dev_matched",
    "dev_mismatched",
    "test_matched",
    "test_mismatched",
)

# The csv module ends a cell at 131,072 characters. A cell over this has a quote that never ends.
_MOST_CELL = 1 << 26


def find_file(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """Return the first of `names`, plain or with .gz, in the first folder that has any of them.

    The last of the folders may be such a file itself. Raises UserError if there is none.
    """
    if folders[-1].is_file():
        return _given_file(folders[-1], names)
    for folder in folders:
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
    raise UserError(
        f"no {' or '.join(names)}, plain or .gz, in {' or '.join(map(str, folders))}; "
        f"{setting('data')} is the data set's folder"
    )


def _given_file(path: Path, names: Sequence[str]) -> Path:
    kinds = list(dict.fromkeys(kind_of(name) for name in names))
    if kind_of(path) not in kinds:
        raise UserError(
            f"{path} is not {' or '.join(kinds)} by its name; give such a file, or the folder that "
            f"holds {names[0]}"
        )
    split, own = names[0].partition(".")[0], path.name.partition(".")[0]
    is_part = own == split.partition("_")[0]  # dev of dev_matched
    if own != split and not is_part and {own, split} <= set(SPLITS):
        raise UserError(
            f"{path} is not the {split} split by its name; give {setting('split', own)}, or the "
            f"folder that holds {names[0]}"
        )
    return path


def file_rows(
    path: Path, needed: Sequence[str], *, hint: Hint = no_hint, keep_errors: bool = False
) -> Iterator[Any]:
    """Yield the rows of a file that is CSV, TSV or else JSONL by its name.

    With `keep_errors`, a row that cannot be read is yielded as its error, and the next rows follow.
    An error that ends the file, such as a quote that is never closed, is still raised.
    """
    read = ROW_READERS.get(kind_of(path), json_rows)
    lines = file_lines(path, keep_errors=keep_errors and read is json_rows)
    return read(lines, str(path), needed, hint=hint, keep_errors=keep_errors)


def tsv_rows(
    lines: Iterable[Line],
    name: str,
    needed: Sequence[str] = (),
    *,
    others: Sequence[Sequence[str]] = (),
    hint: Hint = no_hint,
    keep_errors: bool = False,
) -> Iterator[Any]:
    """Yield the rows of a tab-separated file, whose quotes are plain text (csv.QUOTE_NONE).

    The first row names the columns, which must include `needed`, or else one of `others`.
    """
    wanted = Columns((needed, *others), hint)
    return _by_column(name, _tsv_cells(lines), wanted, keep_errors=keep_errors)


def irregular_tsv_rows(lines: Iterable[Line], name: str, wanted: Columns) -> Iterator[Any]:
    """Yield the rows of a tab-separated file that may lack a header, or a part of its rows."""
    return _by_column(name, _tsv_cells(lines), wanted, keep_errors=False)


def _tsv_cells(lines: Iterable[Line]) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in lines if line.strip(" "))


def csv_rows(
    lines: Iterable[Line],
    name: str,
    needed: Sequence[str] = (),
    *,
    others: Sequence[Sequence[str]] = (),
    hint: Hint = no_hint,
    keep_errors: bool = False,
) -> Iterator[Any]:
    """Yield the rows of a comma-separated file; columns are named as in `tsv_rows`.

    A cell with commas, quotes or new lines is in double quotes.
    """
    cells = _csv_cells(lines, name)
    return _by_column(name, cells, Columns((needed, *others), hint), keep_errors=keep_errors)


def _csv_cells(lines: Iterable[Line], name: str) -> Iterator[tuple[int, list[str]]]:
    # The module's own limit, of the whole process, can only be raised for all.
    csv.field_size_limit(max(csv.field_size_limit(), _MOST_CELL))
    line = ""

    def ended() -> Iterator[str]:
        nonlocal line
        for _, line in lines:
            yield f"{line}\n"

    reader = csv.reader(ended(), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{name} row {number} is not CSV: {_csv_fault(error)}") from None
        is_blank = reader.line_num == number and not line.strip(" ")
        if not is_blank:
            yield number, cells


def _csv_fault(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quote that opens in it is never closed; close it, or double a quote that is text"
    if "field larger" in str(error):
        return f"a cell has over {_MOST_CELL:,} characters; is a quote in it never closed?"
    if "new-line character" in str(error):
        return "a carriage return stands in a cell that is not quoted; quote the cell"
    return str(error)


@dataclass(frozen=True)
class Columns:
    """Set what a table's columns must be.

    Attributes:
        needed: sets of names, of which the table must have one.
        without_header: the columns of a table without a header. If the first row has none of these
            names, they are the columns, and it is a row like the others.
        leave_out_short: leave out rows of another width, and count them on stderr.
    """

    needed: Sequence[Sequence[str]]
    hint: Hint = no_hint
    without_header: tuple[str, ...] = ()
    leave_out_short: bool = False


def _by_column(
    name: str,
    rows: Iterator[tuple[int, list[str]]],
    wanted: Columns,
    *,
    keep_errors: bool,
) -> Iterator[RowOrError]:
    number, cells = next(rows, (1, []))
    if wanted.without_header and not set(cells) & set(wanted.without_header):
        columns, rows = wanted.without_header, itertools.chain([(number, cells)], rows)
    else:
        columns = tuple(cell.strip() for cell in cells)
        _require_columns(columns, f"{name} row {number}", wanted.needed, wanted.hint)
    left_out = []
    for number, cells in rows:
        if len(cells) == len(columns):
            yield f"{name} row {number}", dict(zip(columns, cells, strict=True))
        elif wanted.leave_out_short:
            left_out.append(number)
        else:
            error = UserError(
                f"{name} row {number} has {len(cells)} columns; expected {len(columns)} "
                f"({quoted(columns)}); found {quoted(cells)}"
            )
            if not keep_errors:
                raise error
            yield f"{name} row {number}", error
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        why = f"for want of {len(columns)} columns"
        say(f"{name}: left out {why}: row {left_out[0]}{more}")


def _require_columns(
    columns: Sequence[str], place: str, needed: Sequence[Sequence[str]], hint: Hint
) -> None:
    """Raise UserError for two columns of one name, and if no set of names is complete."""
    for column in columns:
        if column and columns.count(column) > 1:
            raise UserError(f"{place} names two columns {column!r}; rename one")
    missing = [[name for name in names if name not in columns] for names in needed]
    if not all(missing):
        return
    plural = "column" if len(missing[0]) == 1 else "columns"
    said = f"{place} lacks the {plural} {quoted(missing[0])}"
    raise lacking(said, needed[0], columns, hint)


def json_rows(
    lines: Iterable[LineOrError],
    name: str,
    needed: Sequence[str] = (),
    *,
    hint: Hint = no_hint,
    keep_errors: bool = False,
) -> Iterator[Any]:
    """Yield the objects of JSONL, one in each line."""
    for number, line in lines:
        if isinstance(line, str) and not line.strip():
            continue
        place = f"{name} row {number}"
        record: Mapping[str, Any] | UserError
        try:
            if isinstance(line, UserError):
                raise line
            record = _object(_row_value(line, place), place, needed)
            require_keys(record, place, needed, hint=hint)
            hint = no_hint  # to name other columns would be wrong for this row
        except UserError as error:
            if not keep_errors:
                raise
            record = error
        yield place, record


def _row_value(line: str, place: str) -> Any:
    try:
        return _loads(line, place)
    except json.JSONDecodeError as error:
        told = f"{error.msg} at its character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        told = _without_advice(error)
    raise UserError(f"{place} is not JSON: {told}; JSONL has one object a line")


def json_object(text: str, place: str, needed: Sequence[str] = ()) -> JsonObject:
    """Return the JSON object that a file holds, with the keys `needed`.

    Raises UserError for anything else.
    """
    found = _object(parse_json(text, place), place, needed)
    require_keys(found, place, needed)
    return found


def _object(value: Any, place: str, needed: Sequence[str]) -> JsonObject:
    if not isinstance(value, dict):
        keys = f" with {quoted(needed)}" if needed else ""
        raise UserError(f"{place} is not a JSON object{keys}: found {json_shown(value)}")
    return value


def parse_json(text: str, place: str) -> Any:
    """Return a JSON value; raises UserError for other text, and for an object with a key twice."""
    try:
        return _loads(text, place)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {_without_advice(error)}") from None


def _loads(text: str, place: str) -> Any:
    def distinct(pairs: list[tuple[str, Any]]) -> JsonObject:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{place} has the key {twice!r} twice; remove one")
        return found

    return json.loads(text, object_pairs_hook=distinct)


def _without_advice(error: Exception) -> str:
    """Return Python's message about bad JSON, without its advice for programmers."""
    return str(error).partition("; use sys.")[0]


def conll_rows(lines: Iterable[Line], name: str, text: str, label: str) -> Iterator[Row]:
    """Yield the sentences of a CoNLL file, {text: words, label: tags}.

    A line has a word and its columns, with tabs or spaces between them (other white space is part
    of a word). The tag is the last column. An empty line ends a sentence. A file with one column
    has no tags.
    """
    words: list[str] = []
    tags: list[str] = []
    start, width = 1, 0
    # An empty line after the last, so that the last sentence ends.
    for number, line in itertools.chain(lines, [(0, "")]):
        cells = [cell for cell in re.split("[ \t]", line) if cell]
        if cells and cells[0] == "-DOCSTART-":
            cells = []
        if cells:
            start = start if words else number
            width = width or len(cells)
            if len(cells) != width:
                raise UserError(
                    f"{name} row {number} has {len(cells)} columns; expected {width} as in the "
                    f"rows before; found {quoted(cells)}"
                )
            words.append(cells[0])
            tags.append(cells[-1])
        elif words:
            record = {text: words} | ({label: tags} if width > 1 else {})
            yield f"{name} row {start}", record
            words, tags = [], []


def text_rows(lines: Iterable[LineOrError], name: str, text: str) -> Iterator[RowOrError]:
    """Yield each line as a text, {text: line}; an empty line is an empty text."""
    for number, line in lines:
        yield f"{name} row {number}", line if isinstance(line, UserError) else {text: line}


ROW_READERS: dict[str, Callable[..., Iterator[Any]]] = {
    "csv": csv_rows,
    "tsv": tsv_rows,
    "jsonl": json_rows,
}


def tfds_rows(name: str, split: str) -> Iterator[Row]:
    """Yield the examples of a TFDS data set, text as str, lists as lists; prepare it if necessary.

    Raises UserError if the data set is unknown or cannot be read without TensorFlow, or text is not
    UTF-8.
    """
    for index, example in enumerate(_tfds_source(name, split)):
        place = f"TFDS {name} {split}[{index}]"
        yield place, {key: _plain(value, key, place) for key, value in example.items()}


@functools.lru_cache(maxsize=4)
def _tfds_source(name: str, split: str) -> Sequence[Mapping[str, Any]]:
    _, source = open_split(name, split)
    return source


def hub_rows(
    data: str | Path,
    split: str,
    needed: Sequence[str] = (),
    *,
    others: Sequence[Sequence[str]] = (),
    hint: Hint = no_hint,
) -> Iterator[Row]:
    """Yield the rows of a data set of the hub, classes by their names and -1 as None.

    Raises UserError if the data set cannot be fetched, or lacks the columns `needed` and each of
    `others`.
    """
    found = open_hub_split(data, split)
    _require_columns(found.columns, found.place, (needed, *others), hint)
    return found.rows()


def _plain(value: Any, name: str, place: str) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: {name!r} is invalid UTF-8 at byte {error.start}") from None
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), name, place)
    return [_plain(part, name, place) for part in value] if isinstance(value, list) else value


def write_text(folder: str | Path, name: str, text: str) -> Path:
    """Write `folder`/`name` as UTF-8 with Unix line ends, and return its path.

    Raises UserError if it cannot be written.
    """
    path = Path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path
