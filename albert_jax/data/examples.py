# SPDX-License-Identifier: Apache-2.0
"""Draw pretraining examples on the fly from a token store.

Example i is a pure function of (store, configuration, seed, i): nothing is written beforehand, and
a run resumes at any step. The rules are create_pretraining_data.py's: whole sentences are gathered
up to a target length, cut into A and B, perhaps swapped, and masked (masking.py).
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.loader import KEYS, Example
from albert_jax.data.masking import Masker
from albert_jax.data.special_pieces import ALBERT_IDS, SpecialIds
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import current_naming, name_as

# A row of the plan: sentences first..split are A and split..end are B, unless B comes from another
# document. Numbers are indices into the shard.
_ROW = np.dtype(
    [
        ("first", "u4"),
        ("split", "u4"),
        ("end", "u4"),
        ("document", "u4"),
        ("target", "u4"),
        ("random_b", "?"),
    ]
)

# Streams of random numbers: default_rng((seed, epoch, stream, …)).
_PLAN, _SHUFFLE, _EXAMPLE = range(3)


class ShardArrays(Protocol):
    """Define what a shard must have (store.Shard).

    These are tokens, and the starts of sentences and documents.
    """

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def sentence_starts(self) -> np.ndarray: ...
    @property
    def document_starts(self) -> np.ndarray: ...


class Store(Protocol):
    """Define what a store must have (store.TokenStore)."""

    @property
    def shards(self) -> Sequence[ShardArrays]: ...


# ----------------------------------------------------------------------------------------- the plan


def plan_shard(shard: ShardArrays, config: ExamplesConfig, rng: np.random.Generator) -> np.ndarray:
    """Return one epoch's rows of a shard in the order of its text.

    All documents advance together, so that Python's work grows with the rows of the longest
    document and not with the number of sentences. create_pretraining_data.py:276-341.
    """
    starts = shard.sentence_starts
    document = np.arange(len(shard.document_starts) - 1)
    position = shard.document_starts[:-1].astype(np.int64)
    stop = shard.document_starts[1:].astype(np.int64)
    target = _targets(len(document), config, rng)
    rounds = [np.empty(0, _ROW)]
    while len(document):
        if config.short_seq_per == "row":
            target = _targets(len(document), config, rng)
        # The first sentence end at or past the target. The keys have the dtype of `starts`, or
        # numpy would convert all of `starts` in every round.
        wanted = starts[position] + target.astype(starts.dtype)
        end = np.minimum(np.searchsorted(starts, wanted), stop)
        alone = end - position == 1
        split = position + rng.integers(1, np.maximum(end - position, 2))
        random_b = alone & (config.single_segment == "random_document")
        if config.objective == "nsp":
            random_b |= rng.random(len(document)) < 0.5
        rows = np.empty(len(document), _ROW)
        columns = (position, split, end, document, target, random_b)
        for name, column in zip(_ROW.names or (), columns, strict=True):
            rows[name] = column
        # One sentence of one token makes no A and B.
        rounds.append(rows[random_b | (starts[end] - starts[position] > 1)])
        position = np.where(random_b, split, end)  # B's own sentences are used later
        more = position < stop
        document, position, stop, target = (x[more] for x in (document, position, stop, target))
    rows = np.concatenate(rounds)
    return rows[np.argsort(rows["first"], kind="stable")]


def _targets(count: int, config: ExamplesConfig, rng: np.random.Generator) -> np.ndarray:
    longest = config.max_seq_length - 3
    short = rng.integers(2, longest, count, endpoint=True)
    return np.where(rng.random(count) < config.short_seq_prob, short, longest)


# --------------------------------------------------------------------------------------- the source


class PretrainingSource:
    """Draw the examples of a token store: `source[i]` for any i from 0 on."""

    def __init__(
        self,
        store: Store,
        config: ExamplesConfig,
        *,
        seed: int,
        starts_word: np.ndarray,
        special: SpecialIds = ALBERT_IDS,
        shuffle: bool = True,
    ):
        """Plan the first epoch; raises UserError for an empty store.

        `starts_word` bool[V] is `masking.word_starts`. With `shuffle=False`, the rows of an epoch
        come in the order of the text.
        """
        self.store, self.config, self.seed, self.shuffle = store, config, seed, shuffle
        self._masker = Masker(config, starts_word, special)
        counts = [len(shard.document_starts) - 1 for shard in store.shards]
        self._first_document = np.cumsum([0, *counts]).tolist()
        self._epoch_ends = [0]
        self._plans: dict[int, tuple[np.ndarray, list[int], np.ndarray | None]] = {}
        self._lock = threading.RLock()
        if not self.epoch_size(0):
            raise UserError(
                "the token store holds no pair of segments to train on; prepare more text"
            )

    def __getstate__(self) -> dict[str, object]:
        # A worker process makes the plan again: sending it would cost as much.
        return self.__dict__ | {"_plans": {}, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __len__(self) -> int:
        """Return the number of examples in epoch 0.

        Later epochs differ by their short rows (`epoch_size`).
        """
        return self.epoch_size(0)

    def epoch_size(self, epoch: int) -> int:
        """Return the number of examples in an epoch.

        Those before it are planned once on the way.
        """
        with self._lock:
            while len(self._epoch_ends) < epoch + 2:
                size = len(self._plan(len(self._epoch_ends) - 1)[0])
                self._epoch_ends.append(self._epoch_ends[-1] + size)
            return self._epoch_ends[epoch + 1] - self._epoch_ends[epoch]

    def epoch_of(self, index: int) -> tuple[int, int]:
        """Return an example's epoch, and its index in the epoch."""
        if index < 0:
            raise IndexError(index)
        with self._lock:
            while index >= self._epoch_ends[-1]:
                self.epoch_size(len(self._epoch_ends) - 1)
            epoch = bisect_right(self._epoch_ends, index) - 1
            return epoch, index - self._epoch_ends[epoch]

    def ended_epochs(self, index: int) -> list[int]:
        """Return the sizes of the epochs that ended before an example, from `index` alone."""
        with self._lock:
            while index > self._epoch_ends[-1]:
                self.epoch_size(len(self._epoch_ends) - 1)
            ends = self._epoch_ends[: bisect_right(self._epoch_ends, index)]
            return [end - start for start, end in itertools.pairwise(ends)]

    def remember_epochs(self, sizes: list[int]) -> None:
        """Accept the sizes of the first epochs; sizes that are not this source's are ignored."""
        with self._lock:
            ends = [0, *itertools.accumulate(sizes)]
            known = len(self._epoch_ends)
            if ends[:known] == self._epoch_ends:
                self._epoch_ends += ends[known:]

    def _plan(self, epoch: int) -> tuple[np.ndarray, list[int], np.ndarray | None]:
        """Return an epoch's rows, where each shard's rows begin, and their order.

        The last two are cached.
        """
        with self._lock:
            if epoch not in self._plans:
                while len(self._plans) > 1:
                    del self._plans[next(iter(self._plans))]
                parts = self._shard_plans(epoch)
                rows = np.concatenate([np.empty(0, _ROW), *parts])
                order = None
                if self.shuffle:
                    rng = np.random.default_rng((self.seed, epoch, _SHUFFLE))
                    order = rng.permutation(len(rows)).astype(np.uint32)
                self._plans[epoch] = rows, np.cumsum([0, *map(len, parts)]).tolist(), order
            return self._plans[epoch]

    def _shard_plans(self, epoch: int) -> list[np.ndarray]:
        def plan(number: int) -> np.ndarray:
            rng = np.random.default_rng((self.seed, epoch, _PLAN, number))
            return plan_shard(self.store.shards[number], self.config, rng)

        # NumPy's searches let other threads run meanwhile.
        with ThreadPoolExecutor(initializer=name_as, initargs=(current_naming(),)) as pool:
            return list(pool.map(plan, range(len(self.store.shards))))

    def __getitem__(self, index: int) -> Example:
        """Return the arrays of `KEYS` for one example: [S], [P] and a scalar label."""
        example = self.draw(index)
        return {key: example[key] for key in KEYS}

    def draw(self, index: int) -> Example:
        """Return `self[index]`, with token_boundary int32[S] and each n-gram's ngram_words."""
        epoch, position = self.epoch_of(index)
        rows, first_row, order = self._plan(epoch)
        number = position if order is None else int(order[position])
        shard_number = bisect_right(first_row, number) - 1
        rng = np.random.default_rng((self.seed, epoch, _EXAMPLE, number))
        a, b, label = self._segments(shard_number, rows[number], rng)
        a, b = _truncate(a, b, self.config, rng)
        return self._assemble(a, b, label, rng)

    def _segments(
        self, shard_number: int, row: np.void, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the ids of segments A and B before truncation, and the second label."""
        shard, objective = self.store.shards[shard_number], self.config.objective
        first, split, end, document, target, random_b = row.item()
        start, middle, stop = shard.sentence_starts[[first, split, end]].tolist()
        if random_b:
            a = shard.tokens[start:middle]
            own = self._first_document[shard_number] + document
            b = self._random_segment(own, target - len(a), rng)
            return a, b, int(objective != "none")
        if split == end:
            middle = start + int(rng.integers(1, stop - start))
        a, b = shard.tokens[start:middle], shard.tokens[middle:stop]
        if objective == "sop" and rng.random() < 0.5:
            return b, a, 1
        return a, b, 0

    def _random_segment(self, own: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
        """Return sentences of another document from a random one on, up to `wanted` tokens."""
        for _ in range(10):  # a store of one document has no other
            other = int(rng.integers(self._first_document[-1]))
            if other != own:
                break
        shard_number = bisect_right(self._first_document, other) - 1
        shard = self.store.shards[shard_number]
        document = other - self._first_document[shard_number]
        first, stop = shard.document_starts[document : document + 2].tolist()
        first = int(rng.integers(first, stop))
        start = int(shard.sentence_starts[first])
        ends = shard.sentence_starts[first + 1 : stop]
        end = first + 1 + int(np.searchsorted(ends, start + max(wanted, 1)))
        return shard.tokens[start : int(shard.sentence_starts[end])]

    def _assemble(
        self, a: np.ndarray, b: np.ndarray, label: int, rng: np.random.Generator
    ) -> Example:
        """Return [CLS] A [SEP] B [SEP], masked and padded."""
        config = self.config
        text = np.concatenate([a, b])
        masked = self._masker(text, len(a), rng)
        # Positions in the row: behind [CLS], and B's behind [SEP] too.
        row = np.arange(1, len(text) + 1)
        row[len(a) :] += 1
        length, separator, count = len(text) + 3, len(a) + 1, len(masked.positions)
        ids, mask, segments, boundary = np.zeros((4, config.max_seq_length), np.int32)
        ids[row] = text
        ids[row[masked.positions]] = masked.inputs
        _, _, cls, sep, _ = self._masker.special
        ids[[0, separator, length - 1]] = cls, sep, sep
        mask[:length] = 1
        segments[separator + 1 : length] = 1
        boundary[row] = self._masker.starts_word[text]
        boundary[[0, separator, length - 1]] = 1
        positions, labels = np.zeros((2, config.max_predictions_per_seq), np.int32)
        positions[:count] = row[masked.positions]
        labels[:count] = text[masked.positions]
        weights = np.zeros(config.max_predictions_per_seq, np.float32)
        weights[:count] = 1
        return {
            "input_ids": ids,
            "input_mask": mask,
            "segment_ids": segments,
            "token_boundary": boundary,
            "masked_lm_positions": positions,
            "masked_lm_ids": labels,
            "masked_lm_weights": weights,
            "sentence_order_labels": np.array(label, np.int32),
            "ngram_words": np.array(masked.ngram_words, np.int32),
        }


def _truncate(
    a: np.ndarray, b: np.ndarray, config: ExamplesConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the longer segment, then both alike, down to S - 3 tokens together.

    The original drops one token at a time from the longer segment (B if both are equal), from its
    front or its back with equal probability. Therefore the number that leaves the front has a
    binomial distribution.
    """
    longest = config.max_seq_length - 3
    if len(a) + len(b) <= longest:
        return a, b
    shorter = min(len(a), len(b))
    if 2 * shorter <= longest:
        keep_a = len(a) if len(a) == shorter else longest - shorter
    else:
        keep_a = (longest + 1) // 2
    segments = []
    for segment, keep in ((a, keep_a), (b, longest - keep_a)):
        cut = len(segment) - keep
        front = int(rng.binomial(cut, 0.5)) if config.truncate == "both_ends" else 0
        segments.append(segment[front : front + keep])
    return segments[0], segments[1]
