# SPDX-License-Identifier: Apache-2.0
"""Make batches of a task's rows, with little padding.

A training batch is a pure function of (seed, step). Evaluation goes from one length to another.
Rows are sorted by length or packed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from albert_jax.data.bucketing import plan_batches
from albert_jax.tasks.collate import Arrays, FeatureRow, collate, pack, share_rows, stacked

SHORTEST = 8  # tokens


def bucket(length: int, longest: int) -> int:
    """Return the smallest length of 8, 16, 24, 32, 48, 64, 96, … and `longest` for `length` tokens.

    The steps between powers of two save a tenth of the padding, for a few more programs to compile.
    """
    size = SHORTEST
    while size < length:
        if size < 32:
            size += SHORTEST
        else:
            size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return min(size, longest)


@dataclass(frozen=True)
class Pack:
    """Set rows of that many tokens (more if an example is longer), in multiples of `unit` rows."""

    tokens: int
    unit: int = 1


class TrainingBatches:
    """Draw the batches of an endless stream that has every row once a pass.

    Each pass is shuffled anew. `window` consecutive batches (at most a pass) are sorted by length
    together and then put in random order, so that a batch is padded to its own longest row only.
    Differs from the original, which pads every row to max_seq_length and shuffles within 100 rows
    of the file.

    With `pack` the batch's examples share rows, so that mixed lengths cost nothing and a window of
    1 does.
    """

    def __init__(
        self,
        rows: Sequence[FeatureRow],
        *,
        batch_size: int,
        seed: int,
        window: int,
        longest: int,
        pack: Pack | None = None,
    ) -> None:
        self.rows, self.size, self._seed, self._longest = rows, batch_size, seed, longest
        self._pack = pack
        self._window = max(1, min(window, len(rows) // batch_size))
        self._lengths = np.array([row.length for row in rows])
        self._epoch = lru_cache(maxsize=4)(self._shuffled)
        self._plan = lru_cache(maxsize=2)(self._windowed)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, 0, epoch)).permutation(len(self.rows))

    def _windowed(self, number: int) -> np.ndarray:
        """Return the indices of rows in window `number`, i64[window, batch]."""
        size = self._window * self.size
        at = np.arange(number * size, (number + 1) * size)
        epochs, places = np.divmod(at, len(self.rows))
        indices = np.concatenate(
            [self._epoch(int(e))[places[epochs == e]] for e in np.unique(epochs)]
        )
        order = np.argsort(self._lengths[indices], kind="stable")
        batches = indices[order].reshape(self._window, self.size)
        return np.random.default_rng((self._seed, 1, number)).permutation(batches)

    def indices(self, step: int) -> np.ndarray:
        """Return the indices of the rows in batch `step`."""
        return self._plan(step // self._window)[step % self._window]

    def at(self, step: int) -> Arrays:
        """Batch `step`."""
        rows = [self.rows[i] for i in self.indices(step)]
        shared, count, length = self._layout(step)
        return pack(rows, shared, count, length) if shared else collate(rows, length)

    def _layout(self, step: int) -> tuple[list[list[int]], int, int]:
        """Return which of the batch's examples share a row (empty: none do), and its shape."""
        lengths = self._lengths[self.indices(step)].tolist()
        length = bucket(max(lengths), self._longest)
        if self._pack is None:
            return [], self.size, length
        most = max(length, self._pack.tokens)
        shared = share_rows(lengths, most)
        filled = max(sum(lengths[i] for i in row) for row in shared)
        return shared, _few_counts(len(shared), self._pack.unit), bucket(filled, most)

    def batches(self, start: int, stop: int | None) -> Iterator[Arrays]:
        """Yield batches `start` to `stop`, or without end."""
        step = start
        while stop is None or step < stop:
            yield self.at(step)
            step += 1

    def shapes(self, steps: int = 200) -> list[tuple[int, int]]:
        """Return the shapes (rows, tokens in a row) of the first batches."""
        return [self._layout(step)[1:] for step in range(max(1, steps))]

    def fill(self, steps: int = 200) -> tuple[float, float]:
        """Return how full the first batches are.

        The figures are the mean tokens of an example with its padding, and the fraction of them
        that is text.
        """
        padded = sum(count * length for count, length in self.shapes(steps))
        tokens = sum(int(self._lengths[self.indices(step)].sum()) for step in range(max(1, steps)))
        return padded / (max(1, steps) * self.size), tokens / padded


def _few_counts(count: int, unit: int) -> int:
    """Return `count` rounded up to one of a few numbers of rows, because each is a program.

    Below 16, these are all numbers; below 32, every second; below 64, every fourth, times `unit`.
    """
    units = -(-count // unit)
    step = 1 << max(units.bit_length() - 4, 0)
    return -(-units // step) * step * unit


def evaluation_batches(
    rows: Sequence[FeatureRow],
    *,
    longest: int,
    tokens: int,
    pack: int = 0,
    padding: float = math.inf,
) -> Iterator[tuple[list[int], Arrays]]:
    """Yield every row once, in batches of about `tokens` tokens.

    Each batch is (the indices of its rows, arrays without targets but with p_mask). `padding` is as
    in `plan_batches`. With `pack`, examples share rows of that many tokens, and the indices are
    those of the slots, row by row, -1 for an empty one.
    """
    if pack:
        yield from _packed_batches(rows, longest=longest, tokens=tokens, length=pack)
        return
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(len(row.ids), []).append(index)
    for choices, indices in groups.items():
        lengths = [rows[i].length for i in indices]
        batches = plan_batches(
            lengths, longest=longest, tokens=max(tokens // choices, 1), padding=padding
        )
        for batch in batches:
            chosen = [indices[i] for i in batch.rows]
            arrays = collate([rows[i] for i in chosen], batch.length, targets=False)
            masks: list[Mapping[str, np.ndarray]] = [rows[i].targets for i in chosen]
            if all("p_mask" in targets for targets in masks):
                arrays["p_mask"] = stacked([t["p_mask"] for t in masks], batch.length, 1)
            yield chosen, arrays


def _packed_batches(
    rows: Sequence[FeatureRow], *, longest: int, tokens: int, length: int
) -> Iterator[tuple[list[int], Arrays]]:
    lengths = [row.length for row in rows]
    length = max(length, bucket(max(lengths, default=0), longest))
    shared = share_rows(lengths, length)
    filled = [sum(lengths[i] for i in row) for row in shared]
    for batch in plan_batches(filled, longest=length, tokens=tokens):
        chosen = [shared[b] for b in batch.rows]
        arrays = pack(rows, chosen, len(chosen), batch.length, targets=False)
        slots = np.full(arrays["starts"].shape, -1)
        for b, indices in enumerate(chosen):
            slots[b, : len(indices)] = indices
        yield slots.ravel().tolist(), arrays
