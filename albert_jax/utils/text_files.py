# SPDX-License-Identifier: Apache-2.0
"""Read a file, plain or gz, or standard input as numbered lines of text, on demand."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from albert_jax.utils.errors import UserError

Line = tuple[int, str]  # its number in the file, from 1; its text without what ends it
LineOrError = tuple[int, str | UserError]  # the same where errors are kept

_BLOCK_BYTES = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TABLE = "save its table as CSV or JSONL in UTF-8"
# Beginnings of files that are no text. A longer beginning stands before its own prefix.
_NOT_TEXT = {
    b"\xff\xfe\x00\x00": ("UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    b"\x00\x00\xfe\xff": ("UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", _TABLE),
    b"PAR1\x15": ("a Parquet file", _TABLE),
    b"\x1f\x8b": ("gz-compressed", "decompress it with zcat"),
    b"\xfd7zXZ": ("xz-compressed", "decompress it with xzcat"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "decompress it with zstdcat"),
}
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")


class Stream(Protocol):
    """Define what is used of an open file."""

    def read1(self, size: int = -1, /) -> bytes: ...


class FileTexts(list[str]):
    """Hold the texts of a file, and its name for errors; text n is row n + 1."""

    def __init__(self, name: str, texts: Iterable[str]):
        super().__init__(texts)
        self.name = name


_TABLES = frozenset({"csv", "tsv", "json", "jsonl", "parquet", "arrow"})


def unpacked_name(path: str | Path) -> str:
    """Return a file's name without .gz, in whatever case: `train.CSV` of `a/train.CSV.GZ`."""
    return re.sub(r"\.gz$", "", Path(path).name, flags=re.IGNORECASE)


def kind_of(path: str | Path) -> str:
    """Return a file's kind by its name: "csv" for `a/train.CSV.gz`, "" for a name without a dot."""
    return Path(unpacked_name(path)).suffix[1:].lower()


def file_lines(path: str | Path, *, keep_errors: bool = False) -> Iterator[Any]:
    """Yield a file's lines on demand; a gz file is recognised by its content.

    Lines end in LF or CRLF; if CR alone ends the first, it ends all. A byte order mark is left out.
    With `keep_errors`, a line that is no UTF-8 is yielded as its error. Raises UserError, with the
    row, for a file that cannot be read, is empty, is damaged or is no UTF-8 text.
    """
    has_text = False
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; what fails there is not the file's
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        together = lines_together(_unpacked(file), str(path), keep_errors=keep_errors)
        for number, line in itertools.chain.from_iterable(together):
            has_text = has_text or isinstance(line, UserError) or bool(line.strip())
            yield number, line
    if not has_text:
        raise UserError(f"{path} is empty; fetch or write it again")


def read_text(path: Path) -> str:
    """Return the text of `file_lines`, with lines ended by LF."""
    return "\n".join(text for _, text in file_lines(path))


def read_texts(file: str) -> FileTexts:
    """Return the texts of a file, one a line, plain or gz; - is standard input.

    An empty line is the empty text, so that line n of the file is text n. Lines end as in
    `file_lines`, which also lists the UserErrors. By its name, a file may not be a table, whose
    lines are more than texts.
    """
    name = "standard input" if file == "-" else file
    if (kind := kind_of(name)) in _TABLES:
        raise UserError(
            f"{name} is a {kind} file by its name, whose lines are no texts; give a file with a "
            "text in each line, or the lines as they are on standard input, by -"
        )
    try:
        stream: Any = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name} cannot be read: {reason}") from None
    with contextlib.nullcontext() if file == "-" else stream:
        together = lines_together(_unpacked(stream), name)
        texts: list[Any] = [text for _, text in itertools.chain.from_iterable(together)]
    if not texts:
        raise UserError(f"{name} is empty; give a text a line")
    return FileTexts(name, texts)


def given_text(text: str) -> str:
    """Return a text of the command line as the UTF-8 that it was typed in, whatever the locale.

    Raises UserError for bytes that are no UTF-8.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise UserError(f"{text!r} is not UTF-8 text ({error.reason}); give UTF-8") from None


def lines_together(
    stream: Stream, name: str, *, keep_errors: bool = False
) -> Iterator[Iterator[LineOrError]]:
    """Yield the lines of a stream in groups that arrived together.

    They are decoded one by one, so that those before a damaged one come before its UserError; with
    `keep_errors`, the error is yielded instead.
    """
    lines = _Lines()
    for data in _blocks(stream, name):
        yield _lines_of(lines.feed(data), name, keep_errors=keep_errors)
    yield _lines_of(lines.rest(), name, keep_errors=keep_errors)


def _unpacked(file: io.BufferedReader) -> Stream:
    """Return the stream, or what it unpacks to if it begins like a gz file."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file


def _blocks(stream: Stream, name: str) -> Iterator[bytes]:
    while True:
        try:
            data = stream.read1(_BLOCK_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{name} is a damaged gz file ({error}); fetch or make it again"
            ) from None
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror}") from None
        if not data:
            return
        yield data


class _RawLine(NamedTuple):
    number: int
    offset: int  # bytes before it
    data: bytes


class _Lines:
    """Cut blocks of bytes into lines, and hold the line that has no end yet."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._ends: re.Pattern[bytes] | None = None
        self._number, self._offset = 0, 0

    def feed(self, data: bytes) -> list[_RawLine]:
        """Return the lines that end in the bytes so far."""
        self._held += data
        # Only the new bytes are searched, so that a line of many blocks is not searched repeatedly.
        return self._cut(is_last=False) if re.search(rb"[\r\n]", data) else []

    def rest(self) -> list[_RawLine]:
        """Return the last lines; the very last may lack its end."""
        return self._cut(is_last=True)

    def _cut(self, *, is_last: bool) -> list[_RawLine]:
        held, start, lines = bytes(self._held), 0, []
        if self._ends is None:
            self._ends = _line_ends(held, is_last=is_last)
        for end in self._ends.finditer(held) if self._ends else ():
            if end[0] == b"\r" and end.end() == len(held) and not is_last:
                break  # it may be half of a \r\n
            lines.append(self._line(held[start : end.start()], start))
            start = end.end()
        if is_last and start < len(held):
            lines.append(self._line(held[start:], start))
            start = len(held)
        del self._held[:start]
        self._offset += start
        return lines

    def _line(self, data: bytes, start: int) -> _RawLine:
        self._number += 1
        return _RawLine(self._number, self._offset + start, data)


def _line_ends(held: bytes, *, is_last: bool) -> re.Pattern[bytes] | None:
    """Return what ends the lines of a file with this beginning, None if it is not yet known."""
    first = re.search(rb"[\r\n]", held)
    if first is None or (first[0] == b"\r" and first.end() == len(held) and not is_last):
        return None
    is_lone = first[0] == b"\r" and held[first.end() : first.end() + 1] != b"\n"
    return re.compile(rb"\r\n|\r|\n" if is_lone else rb"\r?\n")


def _lines_of(lines: Iterable[_RawLine], name: str, *, keep_errors: bool) -> Iterator[LineOrError]:
    for line in lines:
        if line.number == 1:
            _require_text(line.data, name)
        try:
            yield line.number, _decoded(line, name)
        except UserError as error:
            if not keep_errors:
                raise
            yield line.number, error


def _decoded(line: _RawLine, name: str) -> str:
    number, offset, data = line
    try:
        text = data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        # The codec counts from behind the mark that it takes for none.
        mark = 3 if number == 1 and data.startswith(_BYTE_ORDER_MARK) else 0
        at = error.start + mark
        raise UserError(
            f"{name} row {number}: invalid UTF-8 at byte {offset + at} (0x{data[at]:02x}); "
            "convert the file to UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{name} row {number} has a NUL byte at byte {offset + data.index(0)}; remove it, "
            "or convert the file to UTF-8 if it is UTF-16"
        )
    return text


def foreign_kind(start: bytes) -> tuple[str, str] | None:
    """Return what a file is that begins like this, and the remedy; None for what may be text."""
    if _BZIP2.match(start):
        return "bzip2-compressed", "decompress it with bzcat"
    if start[257:262] == b"ustar":
        return "a tar archive", "extract its files with tar -xf"
    return next((told for magic, told in _NOT_TEXT.items() if start.startswith(magic)), None)


def _require_text(start: bytes, name: str) -> None:
    if found := foreign_kind(start):
        raise UserError(f"{name} is {found[0]}, not UTF-8 text; {found[1]}")
