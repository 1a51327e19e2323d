# SPDX-License-Identifier: Apache-2.0
"""Turn the bytes of an input into clean lines of text, in blocks, whatever the bytes are."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from albert_jax.data.text.files import open_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

MAX_LINE_BYTES = 1 << 20  # a longer line is cut at white space
BLOCK_BYTES = 1 << 18

Kind = Literal["text", "gzip", "tfds", "docs", "hub", "parquet", "jsonl", "jsonl.gz"]


@dataclass(frozen=True)
class Reading:
    """Set how inputs are read; every field changes the documents."""

    # text (wiki where it begins with <doc …>, Parquet, JSONL by name) | wiki | tfds:NAME | hf:NAME
    format: str = "text"
    sentences: Literal["auto", "lines", "split", "wrapped"] = "auto"
    strict: bool = False  # refuse invalid UTF-8 instead of replacing it
    language: str = "en"  # of the sentence splitter
    data_dir: str | None = None  # of TFDS
    field: str | None = None  # that holds the text, of data sets, Parquet and JSONL

    def __post_init__(self) -> None:
        if self.format not in ("text", "wiki") and not re.fullmatch(r"(tfds|hf):.+", self.format):
            raise UserError(
                f"{setting('format')} {self.format!r} is unknown; use text, wiki, tfds:NAME or "
                "hf:NAME"
            )
        if self.sentences not in ("auto", "lines", "split", "wrapped"):
            raise UserError(
                f"{setting('sentences')} {self.sentences!r} is unknown; use auto, lines, split or "
                "wrapped"
            )

        if not re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", self.language):
            raise UserError(
                f"{setting('language')} {self.language!r} is no code of a language; give one in "
                "lower case, such as en, de or pt-br"
            )

    @property
    def names_data_set(self) -> bool:
        """Whether `format` names a data set, so that inputs are its splits instead of files."""
        return self.format not in ("text", "wiki")


@dataclass(frozen=True)
class Piece:
    """Describe a part of one input that begins and ends between documents."""

    kind: Kind
    path: str  # the given path, or a split of a data set
    start: int  # bytes; examples of a TFDS data set, the hub's parts, a Parquet file's row groups
    end: int
    bytes: int  # of the input, that this piece stands for
    is_wiki: bool = False
    size: int = 0  # of the whole file
    stamp: int = 0  # another one where the file has changed


def read_lines(
    piece: Piece, reading: Reading, counts: Counter[str], tick: Callable[[int], None]
) -> Iterator[str]:
    """Yield lines of one file's piece, cleaned; `tick` is called with bytes read from disk.

    `counts` counts repairs: invalid_utf8_bytes, nul_characters, byte_order_marks, line_separators,
    lines_cut. Raises UserError for a damaged gz file and, with `strict`, for invalid UTF-8.
    """
    offset = 0 if piece.kind == "gzip" else piece.start
    blocks = _file_blocks(piece, counts, tick)
    return _decoded(blocks, piece.path, offset, reading.strict, counts)


def text_lines(data: bytes, place: str, strict: bool, counts: Counter[str]) -> Iterator[str]:
    """Yield the lines of a text in memory, cleaned as in `read_lines`; `place` names it."""
    return _decoded(_blocks(io.BytesIO(data).read, counts), place, 0, strict, counts)


def _decoded(
    blocks: Iterable[bytes], place: str, offset: int, strict: bool, counts: Counter[str]
) -> Iterator[str]:
    for block in blocks:
        yield from _decode(block, place, offset, strict, counts)
        offset += len(block)


def _file_blocks(
    piece: Piece, counts: Counter[str], tick: Callable[[int], None]
) -> Iterator[bytes]:
    """Yield the `_blocks` of a file's piece; `tick` is called with bytes read from disk."""
    with piece_reader(piece, tick) as read:
        yield from _blocks(read, counts)


@contextlib.contextmanager
def piece_reader(piece: Piece, tick: Callable[[int], None]) -> Iterator[Callable[[int], bytes]]:
    """Yield a function that reads up to a number of bytes of a file's piece, unpacked.

    It returns no bytes at the end, and raises UserError for a damaged gz file. `tick` is called
    with bytes read from disk.
    """
    ticked, remaining = piece.start, piece.end - piece.start
    is_packed = piece.kind in ("gzip", "jsonl.gz")
    with open_file(piece.path) as raw:
        raw.seek(piece.start)
        stream = gzip.GzipFile(fileobj=raw) if is_packed else raw

        def read(size: int) -> bytes:
            nonlocal ticked, remaining
            try:
                data = stream.read(size if is_packed else min(size, remaining))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(
                    f"{piece.path} is a damaged gz file ({error}); fetch or make it again"
                ) from None
            remaining -= len(data)
            if data:
                tick(raw.tell() - ticked)
                ticked = raw.tell()
            return data

        yield read


def _blocks(read: Callable[[int], bytes], counts: Counter[str]) -> Iterator[bytes]:
    """Yield blocks that end at the end of a line, or in an overlong line at white space."""
    tail = b""
    while data := read(BLOCK_BYTES):
        block, tail = _whole_lines(tail + data, counts)
        if block:
            yield block
    while tail:
        block, tail = _whole_lines(tail, counts) if len(tail) > MAX_LINE_BYTES else (tail, b"")
        yield block


def _whole_lines(data: bytes, counts: Counter[str]) -> tuple[bytes, bytes]:
    # A carriage return at the very end may be half of a CRLF: it waits for the next block.
    end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
    if len(data) > MAX_LINE_BYTES:  # then the first line is long: a block is shorter than that
        line = len(re.split(rb"[\r\n]", data, maxsplit=1)[0])
        if line > MAX_LINE_BYTES:
            counts["lines_cut"] += 1
            head = data[:MAX_LINE_BYTES]
            end = max(head.rfind(b" "), head.rfind(b"\t")) + 1 or MAX_LINE_BYTES
            if end == MAX_LINE_BYTES:  # no white space: not within a character of several bytes
                while end > MAX_LINE_BYTES - 3 and data[end] & 0xC0 == 0x80:
                    end -= 1
    return data[:end], data[end:]


def decoded_line(
    data: bytes, place: str, strict: bool, counts: Counter[str], offset: int = 0
) -> str:
    """Return bytes, which lie `offset` bytes into `place`, as text.

    Invalid UTF-8 is replaced and counted; with `strict` it raises UserError.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if strict:
            raise UserError(
                f"{place}: invalid UTF-8 at byte {offset + error.start} "
                f"(0x{data[error.start]:02x}); convert it to UTF-8, or leave out "
                f"{setting('strict')} to have such bytes replaced and counted"
            ) from None
        escaped = data.decode("utf-8", errors="surrogateescape")
        counts["invalid_utf8_bytes"] += re.subn("[\udc80-\udcff]", "", escaped)[1]
        return data.decode("utf-8", errors="replace")


def _decode(block: bytes, place: str, offset: int, strict: bool, counts: Counter[str]) -> list[str]:
    """Return clean lines of whole lines of bytes, which lie `offset` bytes into `place`."""
    text = decoded_line(block, place, strict, counts, offset)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    for character, replacement, name in (
        ("\0", "", "nul_characters"),
        ("\ufeff", "", "byte_order_marks"),
        ("\u2028", " ", "line_separators"),
        ("\u2029", " ", "line_separators"),
    ):
        if character in text:
            counts[name] += text.count(character)
            text = text.replace(character, replacement)
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # the block ended with its last line's end; this is not an empty line
    return lines
