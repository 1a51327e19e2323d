# SPDX-License-Identifier: Apache-2.0
"""Group rows of tokens into batches of few shapes, so that few programs are compiled.

A batch is 16, 32, 64, … tokens long. It has one row, eight rows, or the number of rows that fills a
batch. No row is padding: rows that do not fill a batch go in eights, then one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from albert_jax.config.manifests import SLOW_MODES, Mode
from albert_jax.data.special_pieces import PAD_ID, SpecialIds

SHORTEST = 16  # tokens
FEW = 8  # rows


class Row(NamedTuple):
    """Hold a text or a pair, [CLS] and [SEP] included; its `first` tokens are of segment 0."""

    ids: list[int]
    first: int
    masked: Sequence[int] = ()  # positions to fill in


def make_row(
    ids: list[int],
    second: list[int] | None = None,
    *,
    longest: int,
    special: SpecialIds,
    mode: Mode = "google",
) -> Row:
    """Return [CLS] ids [SEP], or [CLS] ids [SEP] second [SEP], cut to `longest` tokens.

    A pair loses tokens from its end as `kept_of_pair` sets for the tokenizer's mode.
    """
    _, _, cls, sep, _ = special
    if second is None:
        ids = ids[: longest - 2]
        return Row([cls, *ids, sep], len(ids) + 2)
    kept, kept_second = kept_of_pair(len(ids), len(second), longest - 3, mode)
    return Row([cls, *ids[:kept], sep, *second[:kept_second], sep], kept + 2)


def kept_of_pair(first: int, second: int, room: int, mode: Mode) -> tuple[int, int]:
    """Return how many tokens two texts of those lengths keep in `room` tokens.

    The longer text loses its end, until both are as long. If `room` is odd then, the first text has
    a token more, as in the original's _truncate_seq_pair. In the modes of the `tokenizers` library
    the text that was longer has it, and the second of two that were as long, as in its
    longest_first.
    """
    keep = min(room, first + second)
    has_more = mode in SLOW_MODES or first > second
    kept = max(min(first, (keep + has_more) // 2), keep - second)
    return kept, keep - kept


class Batch(NamedTuple):
    """Name the rows of a batch, and how they are padded."""

    rows: list[int]
    length: int


def padded_length(length: int, longest: int) -> int:
    """Return the least of 16, 24, 32, 48, 64, 96, 128, 256, … and `longest` for `length` tokens.

    Up to 128 there are steps between the powers of two, because padding is all that a single
    sentence loses. Longer texts are fewer, and each step is another program.
    """
    power = max(SHORTEST, 1 << (length - 1).bit_length())
    between = power * 3 // 4
    if SHORTEST < between <= 96 and length <= between:
        power = between
    return min(power, longest)


def plan_batches(
    lengths: Sequence[int], *, longest: int, tokens: int, padding: float = math.inf
) -> list[Batch]:
    """Return batches that have every row once, the longest first.

    In this order, too little memory shows at the start.
    Rows share a batch only if it has at most 1 + `padding` times the tokens of its rows one by one.
    """

    def is_full_enough(count: int) -> bool:
        rows = order[done : done + count]
        alone = sum(padded_length(lengths[row], longest) for row in rows)
        return count * length <= (1 + padding) * alone

    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches = []
    done = 0
    while left := len(order) - done:
        length = padded_length(lengths[order[done]], longest)
        full = max(tokens // length, 1)
        counts = (n for n in (full, min(full, FEW), 1) if n <= left)
        count = next(n for n in counts if is_full_enough(n))
        batches.append(Batch(order[done : done + count], length))
        done += count
    return batches


def arrays(rows: Sequence[Row], length: int) -> tuple[np.ndarray, ...]:
    """Return ids, mask and segments i32[B, S]; if any row has them, masked positions i32[B, P].

    P is 1, 8, 64, …; a row with fewer has position 0 in the rest.
    """
    ids_BS = _padded([row.ids for row in rows], length, PAD_ID)
    counts_B = np.array([[len(row.ids)] for row in rows])
    firsts_B = np.array([[row.first] for row in rows])
    mask_BS = np.arange(length) < counts_B
    segments_BS = mask_BS & (np.arange(length) >= firsts_B)
    inputs = (ids_BS, mask_BS.astype(np.int32), segments_BS.astype(np.int32))
    slots = max(len(row.masked) for row in rows)
    if not slots:
        return inputs
    width = 1
    while width < slots:
        width *= 8
    return (*inputs, _padded([row.masked for row in rows], width, 0))


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> np.ndarray:
    array = np.full((len(rows), width), fill, np.int32)
    for at, row in enumerate(rows):
        array[at, : len(row)] = row
    return array
