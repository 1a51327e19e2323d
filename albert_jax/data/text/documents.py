# SPDX-License-Identifier: Apache-2.0
"""Read documents from files, from data sets of TFDS and the hub, and from Python's documentation.

Files are plain text, wiki extracts, JSONL (each also gz) and Parquet. Everything streams: at most a
block of 256 KiB, a line of 1 MiB and a document of 4 Mi characters or 128 Ki sentences are held at
once.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import gzip
import html
import itertools
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from albert_jax.data.hub import HUB, open_hub_text
from albert_jax.data.text import python_docs, tables_text, tfds_text
from albert_jax.data.text.files import Stream, file_state, find_files, open_file
from albert_jax.data.text.lines import (
    BLOCK_BYTES,
    MAX_LINE_BYTES,
    Kind,
    Piece,
    Reading,
    read_lines,
    text_lines,
)
from albert_jax.data.text.sentences import LAYOUTS, Layout, detect_layout, split_sentences
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.text_files import foreign_kind, kind_of
from albert_jax.utils.wording import setting

# A longer document is cut between sentences. Their number counts too: the shortest take a hundred
# times their characters in memory.
MAX_DOCUMENT_CHARS, MAX_DOCUMENT_SENTENCES = 1 << 22, 1 << 17
MAX_PARAGRAPH_LINES = 1 << 14  # wrapped lines that are joined to be split, beside MAX_LINE_BYTES
LONG_LINE_CHARS = 1 << 14  # a line longer than any sentence is split like prose in every layout
MIN_PARAGRAPH_WORDS, MIN_PARAGRAPH_BYTES = 8, 64  # below both, a wiki line is a heading or leftover

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
# Kinds of files, by their names, that hold more than texts.
_NO_TEXT = {
    "csv": "a csv file by its name, whose header and other columns",
    "tsv": "a tsv file by its name, whose header and other columns",
    "json": "a json file by its name, whose keys and other values",
    "arrow": "an arrow file by its name, whose other columns",
}
_JSON_KEY = re.compile(rb'\s*[\[{\s]*"(?:[^"\\\n]|\\.){0,200}"\s*:')
_HEAD_BYTES = 1 << 12
_FOREIGN = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\udc80-\udcff]")  # no text has many of them
_LEAST_BYTES, _MOST_FOREIGN = 64, 0.25  # Latin-1 in French or German has 5 %


# What was repaired, left out or cut in a corpus, and how its files lay out sentences.
COUNTS = (
    "invalid_utf8_bytes",
    "nul_characters",
    "byte_order_marks",
    "line_separators",
    "lines_cut",
    "documents_cut",
    "short_lines_dropped",
    "lines_outside_documents",
    *(f"files_{layout}" for layout in (*LAYOUTS, "wiki")),
)


def summarize_counts(counts: Mapping[str, int]) -> list[str]:
    """Return a line on the kinds of files, and one on what was repaired, if there was any."""
    mended = {name: counts.get(name, 0) for name in COUNTS if not name.startswith("files_")}
    kinds = LAYOUTS | {"wiki": "wiki extracts"}
    files = {name: counts.get(f"files_{kind}", 0) for kind, name in kinds.items()}
    lines = []
    for title, found in (("files", files), ("mended or left out", mended)):
        if any(found.values()):
            listed = (f"{name.replace('_', ' ')} {n:,}" for name, n in found.items() if n)
            lines.append(f"{title}: {', '.join(listed)}")
    return lines


# ------------------------------------------------------------------------------------- the inputs


def find_pieces(inputs: Sequence[str | Path], reading: Reading) -> list[Piece]:
    """Return every input as one piece, in the given order and sorted within a folder or pattern.

    Raises UserError for an input that does not exist or is not text.
    """
    if reading.format.startswith("tfds:"):
        return _tfds_pieces(inputs, reading)
    if reading.format.startswith(HUB):
        return _hub_pieces(inputs, reading)
    pieces: dict[str, Piece] = {}
    for given in map(str, inputs):
        if python_docs.is_docs(given):
            size = python_docs.PROSE_BYTES[given]
            pieces[given] = Piece("docs", given, 0, size, size, size=size)
            continue
        for path in find_files(given):
            real = path if is_address(path) else os.path.realpath(path)
            pieces.setdefault(real, _file_piece(path, reading))
    if not pieces:
        raise UserError("no input was given; name text files, folders or patterns")
    return list(pieces.values())


def _file_piece(path: str, reading: Reading) -> Piece:
    if (table := kind_of(path)) in _NO_TEXT:
        raise UserError(
            f"{path} is {_NO_TEXT[table]} are no text; save its texts as plain text or as JSONL, "
            "or leave it out"
        )
    with open_file(path) as stream:
        head = stream.read(_HEAD_BYTES)
        if (other := foreign_kind(head)) and not head.startswith((_GZIP, _PARQUET)):
            raise UserError(f"{path} is {other[0]}; make it UTF-8 text, plain or gz")
        kind: Kind = "gzip" if head.startswith(_GZIP) else "text"
        if kind == "gzip":
            stream.seek(0)
            head = b""
            with contextlib.suppress(OSError, EOFError, zlib.error):
                # A damaged file is named when it is read whole.
                head = gzip.GzipFile(fileobj=stream).read(_HEAD_BYTES)
            if (other := foreign_kind(head)) and not head.startswith(_PARQUET):
                raise UserError(f"{path} packs {other[0]}; make it UTF-8 text, plain or gz")
    state = file_state(path)
    if head.startswith(_PARQUET):
        groups = tables_text.parquet_bytes(path, reading.field)
        return Piece("parquet", path, 0, len(groups), sum(groups), False, state.size, state.stamp)
    _require_mostly_text(head, path)
    if tables_text.is_jsonl(path) and reading.format == "text":
        kind = "jsonl.gz" if kind == "gzip" else "jsonl"
        return Piece(kind, path, 0, state.size, state.size, False, state.size, state.stamp)
    begins = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if _is_json(begins):
        raise UserError(
            f"{path} holds JSON, whose keys and other values are no text; name a file with an "
            f"object a line .jsonl, and its text with {setting('field')}, in "
            f"{setting('format', 'text')}"
        )
    is_wiki = reading.format == "wiki" or begins.startswith(b"<doc ")
    return Piece(kind, path, 0, state.size, state.size, is_wiki, state.size, state.stamp)


def _is_json(head: bytes) -> bool:
    """Return whether a file that begins so is JSON and not prose that begins with some."""
    first, _, rest = head.partition(b"\n")
    first = first.strip()
    if first in (b"[", b"{", b"[{"):
        return _JSON_KEY.match(rest) is not None
    if not first.startswith((b"{", b"[{")):
        return False
    if not rest and len(head) > _HEAD_BYTES // 2:  # a line that goes on beyond what was read
        return _JSON_KEY.match(first) is not None
    try:
        return isinstance(json.loads(first.removeprefix(b"[").rstrip(b",]")), dict)
    except (ValueError, RecursionError):
        return False


def _require_mostly_text(head: bytes, path: str) -> None:
    """Raise UserError for a file that mostly is binary or of another encoding, by its beginning.

    A few damaged bytes are mended and counted instead, as in any large corpus.
    """
    text = head.decode("utf-8", errors="surrogateescape")
    foreign = len(_FOREIGN.findall(text))
    if len(head) >= _LEAST_BYTES and foreign > _MOST_FOREIGN * len(head):
        raise UserError(
            f"{path} is not UTF-8 text ({foreign:,} of its first {len(head):,} bytes); give text, "
            "plain or gz, or convert it: iconv -f ENCODING -t UTF-8"
        )


def _tfds_pieces(inputs: Sequence[str | Path], reading: Reading) -> list[Piece]:
    """Return the splits of a TFDS data set that the inputs name; without inputs, `train`."""
    name = reading.format.removeprefix("tfds:")
    pieces = []
    for split in dict.fromkeys(map(str, inputs or ["train"])):
        source = tfds_text.open_source(name, split, reading.data_dir, reading.field)
        size = source.num_bytes
        pieces.append(Piece("tfds", split, 0, len(source.examples), size, size=size))
    return pieces


def _hub_pieces(inputs: Sequence[str | Path], reading: Reading) -> list[Piece]:
    """Return the splits of a data set of the hub that the inputs name; without inputs, `train`."""
    pieces = []
    for split in dict.fromkeys(map(str, inputs or ["train"])):
        text = open_hub_text(reading.format, split, reading.field)
        size = text.num_bytes
        pieces.append(Piece("hub", split, 0, text.parts, size, size=size, stamp=text.stamp))
    return pieces


def cut_piece(piece: Piece, target: int, reading: Reading) -> list[Piece]:
    """Cut a piece of far more than `target` bytes into several, between documents.

    A gz file stays whole. Plain text without any blank line for `target` bytes is cut at a line.
    """
    if piece.bytes <= 1.5 * target or piece.kind in ("gzip", "jsonl.gz", "docs"):
        return [piece]
    parts = round(piece.bytes / target)
    length = piece.end - piece.start
    cuts = [piece.start + length * i // parts for i in range(parts + 1)]
    if piece.kind == "jsonl":
        cuts = [tables_text.line_start(piece.path, cut, piece.end) for cut in cuts]
    if piece.kind == "text":
        with open_file(piece.path) as stream:
            cuts[1:-1] = [_boundary(stream, cut, target, piece, reading) for cut in cuts[1:-1]]
    return [
        replace(piece, start=start, end=end, bytes=piece.bytes * (end - start) // length)
        for start, end in itertools.pairwise(cuts)
        if end > start
    ]


def _boundary(stream: Stream, start: int, target: int, piece: Piece, reading: Reading) -> int:
    """Return the first start of a document at or after byte `start`.

    If that is far off, return the first start of a line.
    """
    if piece.is_wiki:
        pattern = rb"[\r\n](?=<doc )"
    elif find_layout(piece.path, reading, piece.stamp) == "wrapped":
        pattern = rb"\n[ \t\r]*\n[ \t\r]*\n|\r[ \t]*\r[ \t]*\r(?!\n)"
    else:
        pattern = rb"\n[ \t\r]*\n|\r[ \t]*\r(?!\n)"
    line_start, tail, position = None, b"", start
    while position < piece.end:
        stream.seek(position)
        block = tail + stream.read(min(BLOCK_BYTES, piece.end - position))
        base = position - len(tail)
        if match := re.search(pattern, block):
            return base + match.end()
        if line_start is None and (ends := re.search(rb"\r?\n|\r(?=[^\n])", block)):
            line_start = base + ends.end()
        if line_start is not None and base - start > target and not piece.is_wiki:
            return line_start
        position, tail = base + len(block), block[-64:]
    return piece.end


# -------------------------------------------------------------------------- lines to documents


def read_documents(
    inputs: Sequence[str | Path] | str | Path,
    reading: Reading | None = None,
    *,
    counts: Counter[str] | None = None,
) -> Iterator[list[str]]:
    """Yield documents of the inputs as lists of sentences.

    `python-docs` and `package-docs` name text that is on every machine (`python_docs`).
    """
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    reading = reading or Reading()
    for piece in find_pieces(inputs, reading):
        yield from read_piece(piece, reading, counts=counts)


def read_piece(
    piece: Piece,
    reading: Reading,
    *,
    counts: Counter[str] | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Iterator[list[str]]:
    """Yield documents of one piece; no document and no sentence is empty.

    `tick` is called with bytes read.
    """
    counts = Counter() if counts is None else counts
    if piece.kind == "docs":
        for document in python_docs.read_docs(piece.path, reading.language):
            tick(sum(map(len, document)))
            yield document
        return
    if piece.kind == "tfds":
        events = _tfds_events(piece, reading, counts, tick)
    elif piece.kind in ("hub", "parquet"):
        events = _text_events_of(_table_texts(piece, reading, tick), reading, counts)
    elif piece.kind in ("jsonl", "jsonl.gz"):
        texts = tables_text.jsonl_texts(piece, reading, counts, tick)
        events = _text_events_of(texts, reading, counts)
    elif piece.is_wiki:
        counts["files_wiki"] += piece.start == 0
        events = _wiki_events(read_lines(piece, reading, counts, tick), reading, counts)
    else:
        layout = find_layout(piece.path, reading, piece.stamp)
        counts[f"files_{layout}"] += piece.start == 0
        lines = read_lines(piece, reading, counts, tick)
        events = _text_events(lines, layout, reading.language)
    yield from _group(events, counts)


@functools.lru_cache(maxsize=1024)
def find_layout(path: str, reading: Reading, stamp: int = 0) -> Layout:
    """Return how a text file lays out its sentences.

    It is the layout in `reading`, or else found from the first 64 KiB. `stamp` is another one where
    the file has changed.
    """
    if reading.sentences != "auto":
        return reading.sentences
    lines: list[str] = []
    size = 0
    lenient = replace(reading, strict=False)
    for line in read_lines(_file_piece(path, reading), lenient, Counter(), lambda _: None):
        lines.append(line)
        size += len(line) + 1  # an empty line has its end
        if size > 1 << 16:
            break
    return detect_layout(lines, reading.language)


# What a reader of lines yields: sentences of the current document, or None at its end.
Events = Iterator[list[str] | None]


def _group(events: Events, counts: Counter[str]) -> Iterator[list[str]]:
    document: list[str] = []
    size = 0
    for sentences in events:
        if sentences is not None:
            document += sentences
            size += sum(map(len, sentences))
            if size <= MAX_DOCUMENT_CHARS and len(document) <= MAX_DOCUMENT_SENTENCES:
                continue
            counts["documents_cut"] += 1
        if document:
            yield document
        document, size = [], 0
    if document:
        yield document


def _text_events(lines: Iterable[str], layout: Layout, language: str) -> Events:
    """Yield sentences of text, in which a blank line ends a document.

    In wrapped text, one blank line ends a paragraph and two end a document.
    """
    paragraph: list[str] = []
    size = 0
    for line in map(str.strip, lines):
        if layout == "wrapped":
            if line:
                paragraph.append(line)
                size += len(line)
            is_long = size > MAX_LINE_BYTES or len(paragraph) >= MAX_PARAGRAPH_LINES
            if paragraph and (not line or is_long):
                yield split_sentences(" ".join(paragraph), language)
                paragraph, size = [], 0
            elif not line:
                yield None
        elif not line:
            yield None
        elif layout == "lines" and len(line) <= LONG_LINE_CHARS:
            yield [line]
        else:
            yield split_sentences(line, language)
    if paragraph:
        yield split_sentences(" ".join(paragraph), language)


def _wiki_events(lines: Iterable[str], reading: Reading, counts: Counter[str]) -> Events:
    """Yield paragraphs of WikiExtractor's output, without titles, headings and fragments."""
    title: str | None = None  # until the line that repeats it has passed
    inside = False
    for line in map(str.strip, lines):
        if line.startswith("<doc "):
            match = re.search(r'title="(.*?)">', line)
            title = html.unescape(match[1]) if match else None
            inside = True
            yield None
        elif line.startswith("</doc>"):
            inside = False
            yield None
        elif line and not inside:
            counts["lines_outside_documents"] += 1
        elif line:
            is_title, title = html.unescape(line) == title, None
            line = clean_wiki(line)
            few = len(line.split(maxsplit=MIN_PARAGRAPH_WORDS)) < MIN_PARAGRAPH_WORDS
            if is_title or (few and len(line.encode()) < MIN_PARAGRAPH_BYTES):
                counts["short_lines_dropped"] += 1
            elif reading.sentences == "lines" and len(line) <= LONG_LINE_CHARS:
                yield [line]
            else:
                yield split_sentences(line, reading.language)


def clean_wiki(line: str) -> str:
    """Return a paragraph without WikiExtractor's leftovers: tags, [[ ]], entities, ( )."""
    if "&" in line:
        line = html.unescape(line)
    if "<" in line:
        line = re.sub(r"</?[a-zA-Z][^<>]{0,200}>", " ", line)
    if "[[" in line:
        line = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", line)
        line = line.replace("[[", "").replace("]]", "")
    if "(" in line:
        line = re.sub(r" ?\([\s,;:]*\)", "", line)
    return line.strip()


def _tfds_events(
    piece: Piece, reading: Reading, counts: Counter[str], tick: Callable[[int], None]
) -> Events:
    """Yield sentences of a TFDS data set; each example is a document, even with blank lines."""
    name = reading.format.removeprefix("tfds:")
    source = tfds_text.open_source(name, piece.path, reading.data_dir, reading.field)
    share = piece.bytes / max(piece.end - piece.start, 1)

    def texts() -> Iterator[tuple[str, bytes]]:
        for index in range(piece.start, piece.end):
            yield f"{reading.format}, split {piece.path}, example {index}", source.text(index)
            tick(round(share * (index + 1 - piece.start)) - round(share * (index - piece.start)))

    yield from _text_events_of(texts(), reading, counts)


def _text_events_of(
    texts: Iterable[tuple[str, bytes]], reading: Reading, counts: Counter[str]
) -> Events:
    """Yield sentences of texts with places; each text is a document, even with blank lines."""
    layout: Layout = "split" if reading.sentences == "auto" else reading.sentences
    for place, text in texts:
        lines = text_lines(text, place, reading.strict, counts)
        for sentences in _text_events(lines, layout, reading.language):
            if sentences is not None:
                yield sentences
        yield None


def _table_texts(
    piece: Piece, reading: Reading, tick: Callable[[int], None]
) -> Iterator[tuple[str, bytes]]:
    """Yield texts of a Parquet file's row groups or of a hub's parts.

    `tick` is called with their bytes.
    """
    if piece.kind == "parquet":
        texts = tables_text.parquet_texts(piece, reading.field)
    else:
        texts = _hub_texts(piece, reading)
    for place, text in texts:
        yield place, text
        tick(len(text))


def _hub_texts(piece: Piece, reading: Reading) -> Iterator[tuple[str, bytes]]:
    source = open_hub_text(reading.format, piece.path, reading.field)
    for part in range(piece.start, piece.end):
        for index, text in enumerate(source.texts(part)):
            yield f"{source.place}, part {part}, row {index}", text
