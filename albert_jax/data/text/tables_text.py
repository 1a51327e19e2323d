# SPDX-License-Identifier: Apache-2.0
"""Read the text of Parquet and JSONL files: a document for each value of a column or key."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from albert_jax.data.text.files import open_file
from albert_jax.data.text.lines import BLOCK_BYTES, Piece, Reading, decoded_line, piece_reader
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.text_files import kind_of
from albert_jax.utils.wording import first_ten, setting, shortened

_BATCH_ROWS = 1024
_TEXTS = ("string", "large_string", "string_view")  # Arrow's types
_MOST_LINE = 1 << 26  # bytes


def open_parquet(path: str, field: str | None) -> tuple[Any, str]:
    """Return a Parquet file, and the name of its text column.

    Raises UserError if pyarrow is not installed, or the file is damaged, at an address or without
    such a column.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{path} is a Parquet file, which is read by pyarrow, and that is not installed; pip "
            "install pyarrow, or 'albert-jax[hf-data]'"
        )
    if is_address(path):
        raise UserError(f"{path} is a Parquet file at an address; copy it to a disk first")
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:  # Arrow's own are of these kinds
        raise UserError(f"{path} is a damaged Parquet file ({_line(error)})") from None
    schema = file.schema_arrow
    texts = [column.name for column in schema if _is_text(column.type)]
    columns = [f"{column.name} of {column.type}" for column in schema]
    return file, text_column(path, texts, columns, field)


def _is_text(kind: Any) -> bool:
    """Return whether a column of Arrow's has texts, possibly in a dictionary."""
    import pyarrow.types as types

    return str(kind.value_type if types.is_dictionary(kind) else kind) in _TEXTS


def text_column(place: str, texts: Sequence[str], columns: Sequence[str], field: str | None) -> str:
    """Return the text column: `field`, else `text`, else the only one of text.

    Args:
        place: what is read, for errors.
        texts: the columns of text.
        columns: all columns, for errors.
        field: the requested column, or None.

    Raises:
        UserError: if there is none.
    """
    single = texts[0] if len(texts) == 1 else None
    chosen = field or ("text" if "text" in texts else single)
    if chosen in texts:
        return str(chosen)
    lacks = f"column of text {field!r}" if field else "column `text`, nor a single one of text"
    has = f"of text: {first_ten(texts)}" if texts else first_ten(columns)
    raise UserError(f"{place} has no {lacks} (it has {has}); name one with {setting('field')}")


def parquet_bytes(path: str, field: str | None) -> list[int]:
    """Return the uncompressed bytes of text in each row group of a Parquet file."""
    file, column = open_parquet(path, field)
    # Each leaf of a nested column counts as a column here.
    leaves = range(file.metadata.num_columns)
    index = next(i for i in leaves if file.schema.column(i).path == column)
    groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
    return [int(group.column(index).total_uncompressed_size) for group in groups]


def parquet_texts(piece: Piece, field: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield the texts of a piece's row groups with their places."""
    path = piece.path
    file, column = open_parquet(path, field)
    for group in range(piece.start, piece.end):
        row = 0
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column]):
                for text in batch.column(0).to_pylist():
                    place = f"{path} row group {group} row {row}"
                    yield place, (text or "").encode("utf-8", errors="replace")
                    row += 1
        except (OSError, ValueError) as error:  # Arrow's own are of these kinds
            raise UserError(f"{path} is a damaged Parquet file ({_line(error)})") from None


def _line(error: Exception) -> str:
    return shortened(" ".join(str(error).split()))


def jsonl_texts(
    piece: Piece, reading: Reading, counts: Counter[str], tick: Callable[[int], None]
) -> Iterator[tuple[str, bytes]]:
    """Yield the texts of a JSONL file's piece with their places; `tick` is called with bytes read.

    Invalid UTF-8 is replaced and counted as in other text. Raises UserError, with the row, for a
    line that is no object with such a text and, with `reading.strict`, for invalid UTF-8.
    """
    since = f" after byte {piece.start:,}" if piece.start else ""
    for number, line in enumerate(_raw_lines(piece, tick), start=1):
        if line.strip():
            place = f"{piece.path} row {number}{since}"
            text = decoded_line(line, place, reading.strict, counts).removeprefix("\ufeff")
            yield place, _text_of(text, reading.field or "text", place)


def _raw_lines(piece: Piece, tick: Callable[[int], None]) -> Iterator[bytes]:
    held = b""
    with piece_reader(piece, tick) as read:
        while data := read(BLOCK_BYTES):
            *lines, held = (held + data).split(b"\n") if b"\n" in data else [held + data]
            yield from lines
            if len(held) > _MOST_LINE:
                raise UserError(
                    f"{piece.path} has a line of over {_MOST_LINE:,} bytes; divide its text"
                )
        if held:
            yield held


def _text_of(line: str, field: str, place: str) -> bytes:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        told = f"{place} is not JSON: {_line(error)}"
        raise UserError(f"{told}; JSONL has one object a line") from None
    text = record.get(field, 0) if isinstance(record, dict) else 0
    if text is None:  # as in a Parquet file, a row without a document
        return b""
    if not isinstance(text, str):
        has = first_ten(record) if isinstance(record, dict) else "no object"
        raise UserError(
            f"{place} has no text {field!r} (it has {has}); name another key with "
            f"{setting('field')}"
        )
    return text.encode("utf-8", errors="replace")


def is_jsonl(path: str) -> bool:
    """Return whether a file is JSONL by its name, plain or gz."""
    return kind_of(path) in ("jsonl", "ndjson")


def line_start(path: str, at: int, end: int) -> int:
    """Return the first byte at or after `at` at which a line of the file begins."""
    if at == 0:
        return 0
    with open_file(path) as stream:
        position = at - 1
        while position < end:
            stream.seek(position)
            block = stream.read(1 << 16)
            if not block:
                break
            if (found := block.find(b"\n")) >= 0:
                return position + found + 1
            position += len(block)
    return end
