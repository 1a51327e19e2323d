# SPDX-License-Identifier: Apache-2.0
"""Forecast the cost of `prepare` before it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from albert_jax.data.prepare.units import BATCH_CHARS, Unit, tokenize
from albert_jax.data.text.documents import find_layout, read_piece
from albert_jax.data.text.lines import Piece, Reading
from albert_jax.data.text.sentences import LAYOUTS
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import UserError
from albert_jax.utils.progress import show_bytes
from albert_jax.utils.wording import setting

# A sample has up to 3 inputs and 1 Mi characters of each.
SAMPLE_PIECES, SAMPLE_CHARS = 3, 1 << 20
SAMPLE_EVERY = 1 << 24  # bytes of input for each input of the sample, at least
SENTENCE_CHARS = 32  # what a sentence costs beside its characters
WORKER_START_SECONDS = 1.0


@dataclass(frozen=True)
class Forecast:
    """Hold the expected cost of the units that are not finished."""

    input_bytes: int
    tokens: float
    bytes: float  # on disk
    seconds: float
    workers: int
    example: str  # how one file lays out its sentences, or ""

    def describe(self, free: int | None) -> str:
        """Return the forecast as a sentence.

        `free` are the free bytes at the store's place, if known.
        """
        room = "" if free is None else f" ({show_bytes(free)} free)"
        return (
            f"{show_bytes(self.input_bytes)} of input; expected: "
            f"{tqdm.format_sizeof(self.tokens)} tokens, {show_bytes(self.bytes)} on disk"
            f"{room}, {tqdm.format_interval(self.seconds)} with {self.workers} "
            f"process{'es' if self.workers > 1 else ''}"
        )

    def check_disk(self, store: str, free: int | None) -> None:
        """Raise UserError if the disk is clearly too small."""
        if free is not None and free < 0.9 * self.bytes:
            raise UserError(
                f"{store} needs about {show_bytes(self.bytes)} and its disk has "
                f"{show_bytes(free)} free; free some space or choose another {setting('output')}"
            )


def make_forecast(
    units: Sequence[Unit], reading: Reading, tokenizer: Tokenizer, workers: int
) -> Forecast:
    """Estimate from the beginnings of a few inputs of each kind; takes about half a second."""
    pieces = [piece for unit in units for piece in unit.pieces]
    workers = max(1, min(workers, len(units)))
    tokens = size = seconds = 0.0
    for kind in sorted({piece.kind for piece in pieces}):  # a gz byte is worth three others
        alike = [piece for piece in pieces if piece.kind == kind]
        alike_bytes = sum(piece.bytes for piece in alike)
        count = min(SAMPLE_PIECES, len(alike), 1 + alike_bytes // SAMPLE_EVERY)
        read: list[int] = []
        sample = [0, 0]
        started = time.perf_counter()
        for piece in (alike[len(alike) * i // count] for i in range(count)):
            for documents in _beginning(piece, reading, read):
                ids, sentence_lengths, document_lengths = tokenize(documents, tokenizer)
                sample[0] += len(ids)
                sample[1] += 4 * (len(sentence_lengths) + len(document_lengths))
        share = alike_bytes / max(sum(read), 1)
        tokens += sample[0] * share
        size += (2 * sample[0] + sample[1]) * share
        seconds += (time.perf_counter() - started) * share / workers
    if workers > 1:
        seconds += WORKER_START_SECONDS
    example = ""
    if pieces and pieces[0].kind in ("text", "gzip"):
        first = pieces[0]
        layout = (
            "a wiki extract"
            if first.is_wiki
            else LAYOUTS[find_layout(first.path, reading, first.stamp)]
        )
        example = f"{first.path}: {layout}"
    input_bytes = sum(unit.bytes for unit in units)
    return Forecast(input_bytes, tokens, size, seconds, workers, example)


def _beginning(piece: Piece, reading: Reading, read: list[int]) -> Iterator[list[list[str]]]:
    """Yield documents from the front of a piece, in batches; `read` is called with input bytes."""
    batch: list[list[str]] = []
    size = before = 0
    for document in read_piece(piece, reading, tick=read.append):
        batch.append(document)
        size += sum(SENTENCE_CHARS + len(sentence) for sentence in document)
        if size - before >= BATCH_CHARS:
            yield batch
            batch, before = [], size
        if size >= SAMPLE_CHARS:
            break
    yield batch
