# SPDX-License-Identifier: Apache-2.0
"""Mix several stores into one source of examples, each with its share.

The store of example i depends on the seed, the shares and i alone. Every block of 65,536 examples
has each store's share exactly, in its own random order. A store's examples come in that store's
order.
"""

from __future__ import annotations

import functools
import glob
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from albert_jax.data.loader import Example, ExampleSource
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.results import Result

BLOCK = 1 << 16  # shares are multiples of 1/65,536

# Streams of random numbers: default_rng((seed, block, stream)); pretraining.py has 0 to 2.
_ORDER, _SEED = 3, 4


@dataclass(frozen=True, kw_only=True, eq=False)
class StorePasses(Result):
    """Hold a store's share of a mixture, its examples in a pass, and a run's passes over it."""

    share: float
    sequences_a_pass: int
    passes: float


def split_stores(given: str) -> list[tuple[str, float | None]]:
    """Return the paths and weights in `A:0.7,B:0.3` or `A,B` (None: by size).

    A text that exists as a path is one path. Raises UserError for a weight that is not a positive
    number, for weights of some stores only, and for a store named twice.
    """
    if "," not in given or os.path.exists(given) or glob.glob(given):
        return [(given, None)]
    stores = [_with_weight(part.strip()) for part in given.split(",")]
    paths = [path for path, _ in stores]
    if not all(paths):
        raise UserError(f"a store of {given!r} has no name; give STORE,STORE or STORE:WEIGHT,…")
    places = [path.rstrip("/") if is_address(path) else os.path.realpath(path) for path in paths]
    if twice := [
        path for path, place in zip(paths, places, strict=True) if places.count(place) > 1
    ]:
        raise UserError(f"store {min(twice)} is named twice; give it one weight")
    without = [path for path, weight in stores if weight is None]
    if without and len(without) < len(stores):
        raise UserError(f"store {without[0]} has no weight and others have; give all or none")
    return stores


def _with_weight(part: str) -> tuple[str, float | None]:
    path, colon, text = part.rpartition(":")
    if not colon or "/" in text or os.path.exists(part):  # gs://bucket/store has a colon too
        return part, None
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"weight {text!r} of store {path} must be a number greater than 0")
    return path, weight


def share_out(weights: Sequence[float], names: Sequence[str]) -> tuple[int, ...]:
    """Return each store's number of examples in a block, by largest remainder.

    Raises UserError if a store has none.
    """
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    counts = [int(count) for count in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: BLOCK - sum(counts)]:
        counts[i] += 1
    if 0 in counts:
        i = counts.index(0)
        raise UserError(
            f"store {names[i]} has a share of {exact[i] / BLOCK:.2g} of the examples; the least is "
            f"1/{BLOCK}: give it a greater weight or leave it out"
        )
    return tuple(counts)


def seed_of(seed: int, number: int) -> int:
    """Return a seed for the examples of store `number`; no two stores draw the same masks."""
    return int(np.random.SeedSequence((seed, number, _SEED)).generate_state(1)[0])


@functools.lru_cache(maxsize=4)
def _block(seed: int, number: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the store of each example in a block, and its place among that store's examples."""
    order = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
    order = np.random.default_rng((seed, number, _ORDER)).permutation(order)
    places = np.empty(BLOCK, np.uint32)
    places[np.argsort(order, kind="stable")] = np.concatenate([np.arange(n) for n in counts])
    return order, places


class Mixture:
    """Give the examples of several sources by one index; a pass has as many as all of them."""

    def __init__(
        self,
        sources: Sequence[ExampleSource],
        counts: Sequence[int],
        *,
        names: Sequence[str],
        seed: int,
    ):
        """Mix sources.

        `counts` are the result of `share_out`, examples of each source in a block.
        """
        assert sum(counts) == BLOCK, "shares do not make up a block"
        self.sources, self.counts, self.names = list(sources), tuple(counts), list(names)
        self.seed = seed

    def locate(self, index: int) -> tuple[int, int]:
        """Return an example's source, and its index in the source."""
        if index < 0:
            raise IndexError(index)
        block, place = divmod(index, BLOCK)
        order, places = _block(self.seed, block, self.counts)
        number = int(order[place])
        return number, block * self.counts[number] + int(places[place])

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> Example:
        number, own = self.locate(index)
        return self.sources[number][own]

    def draw(self, index: int) -> Example:
        number, own = self.locate(index)
        return self.sources[number].draw(own)

    def epoch_size(self, epoch: int) -> int:
        return len(self)

    def epoch_of(self, index: int) -> tuple[int, int]:
        return divmod(index, len(self))

    def ended_epochs(self, index: int) -> list[list[Any]]:
        """Return, by store, the sizes of its epochs that ended before an example of the mixture."""
        block, place = divmod(index, BLOCK)
        order, _ = _block(self.seed, block, self.counts)
        drawn = np.bincount(order[:place], minlength=len(self.counts)).tolist()
        return [
            source.ended_epochs(block * count + own)
            for source, count, own in zip(self.sources, self.counts, drawn, strict=True)
        ]

    def remember_epochs(self, sizes: list[list[Any]]) -> None:
        """Accept the result of `ended_epochs`."""
        for source, own in zip(self.sources, sizes, strict=False):  # none of an older checkpoint
            source.remember_epochs(own)

    def passes(self, examples: int) -> dict[str, StorePasses]:
        """Return, by store, the number of passes in a run of that many examples."""
        return {
            name: StorePasses(
                share=count / BLOCK,
                sequences_a_pass=len(source),
                passes=examples * count / BLOCK / len(source),
            )
            for name, count, source in zip(self.names, self.counts, self.sources, strict=True)
        }
