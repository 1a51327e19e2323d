# SPDX-License-Identifier: Apache-2.0
"""Mask whole words and n-grams: choose the tokens to predict, and what replaces them.

The draws have the distribution of create_pretraining_data.py:421-598. The order of the random
numbers differs, because that program's n-grams come from a generator that it never seeds. Its
`do_permutation` is left out, because run_pretraining cannot read the files it writes.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, NamedTuple, Protocol

import numpy as np

from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.special_pieces import ALBERT_IDS, MARKER, MASK_ID, SpecialIds

NUM_SPECIAL = MASK_ID + 1


class PieceVocabulary(Protocol):
    """Define what masking needs of a tokenizer."""

    pieces: list[str]
    starts_word: np.ndarray


def word_starts(
    tokenizer: PieceVocabulary, rule: Literal["albert", "marker"] = "albert"
) -> np.ndarray:
    """Return which pieces begin a word, bool[V]: by the original's rule, or only those with ▁.

    WordPiece has one rule for both: all but ## pieces, so that each Chinese character is a word.
    """
    if rule == "albert" or any(piece.startswith("##") for piece in tokenizer.pieces):
        return tokenizer.starts_word
    return np.array([piece.startswith(MARKER) for piece in tokenizer.pieces])


class Masked(NamedTuple):
    """Hold the masked tokens of one row in ascending order of position, and their n-grams."""

    positions: np.ndarray  # int64[n], indices into the row's text: A and B without special tokens
    inputs: np.ndarray  # int64[n], what the model sees there
    ngram_words: list[int]  # words in each n-gram


class Masker:
    """Draw masks for rows of text, with one configuration and vocabulary."""

    def __init__(
        self,
        config: ExamplesConfig,
        starts_word: np.ndarray,
        special: SpecialIds = ALBERT_IDS,
    ):
        """Prepare to mask; `starts_word` bool[V] says which pieces begin a word (`word_starts`)."""
        self.config, self.vocab_size, self.special = config, len(starts_word), special
        # Pieces to draw from if special ones are excluded and are not the first five.
        self._ordinary = None
        if special != ALBERT_IDS:
            self._ordinary = np.delete(np.arange(len(starts_word)), special)
        self.starts_word = np.asarray(starts_word, bool)
        weights = 1.0 / np.arange(1, config.ngram + 1)
        if not config.favor_shorter_ngram:
            weights = weights[::-1]
        self._below = np.cumsum(weights / weights.sum())[:-1]

    def __call__(self, text: np.ndarray, length_a: int, rng: np.random.Generator) -> Masked:
        """Mask a row with the text ids[n], of which the first `length_a` are segment A."""
        config = self.config
        counted = len(text) + (3 if config.count_special_tokens else 0)
        budget = min(config.max_predictions_per_seq, max(1, round(counted * config.masked_lm_prob)))
        bounds, words_a = self._words(text, length_a)
        spans = self._spans(bounds, words_a, budget, rng)
        positions = np.array([i for start, stop, _ in spans for i in range(start, stop)], np.int64)
        if config.replace_per == "token":
            draw = rng.random(len(positions))
        else:
            draw = np.repeat(rng.random(len(spans)), [stop - start for start, stop, _ in spans])
        original = text[positions]
        inputs = np.where(draw < 0.9, original, self._random_pieces(original, rng))
        inputs[draw < 0.8] = self.special.mask
        return Masked(positions, inputs, [words for _, _, words in spans])

    def _words(self, text: np.ndarray, length_a: int) -> tuple[list[int], int]:
        """Return where each word of the text starts, then its end; and the number of words in A."""
        if self.config.do_whole_word_mask:
            starts = self.starts_word[text]
            starts[0] = True  # there is no word before it that it could continue
            if not self.config.ngram_across_segments:
                starts[length_a] = True
            bounds = np.flatnonzero(starts).tolist()
        else:
            bounds = list(range(len(text)))
        words_a = bisect_left(bounds, length_a)
        bounds.append(len(text))
        return bounds, words_a

    def _spans(
        self, bounds: list[int], words_a: int, budget: int, rng: np.random.Generator
    ) -> list[tuple[int, int, int]]:
        """Return disjoint n-grams of at most `budget` tokens: (start, stop, words).

        They are in ascending order.
        """
        num_words = len(bounds) - 1
        order = rng.permutation(num_words).tolist()
        sizes = (self._below.searchsorted(rng.random(num_words), side="right") + 1).tolist()
        across = self.config.ngram_across_segments
        covered = bytearray(bounds[-1])
        spans: list[tuple[int, int, int]] = []
        for first in order:
            start = bounds[first]
            if covered[start]:
                continue
            # At the end of the text an n-gram is the rest of it: the original never redraws n
            # there.
            last = min(first + sizes[first], num_words if across or first >= words_a else words_a)
            while bounds[last] - start > budget and last > first + 1:
                last -= 1
            stop = bounds[last]
            if stop - start > budget or covered.find(1, start, stop) >= 0:
                continue
            covered[start:stop] = b"\1" * (stop - start)
            spans.append((start, stop, last - first))
            budget -= stop - start
            if not budget:
                break
        return sorted(spans)

    def _random_pieces(self, original: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.config.random_token_excludes_special:
            return rng.integers(0, self.vocab_size, len(original))
        if self._ordinary is not None:
            places = np.searchsorted(self._ordinary, original)
            last = len(self._ordinary) - 1
            is_choice = self._ordinary[np.minimum(places, last)] == original
            drawn = rng.integers(0, len(self._ordinary) - is_choice)
            return self._ordinary[drawn + (is_choice & (drawn >= places))]
        # If the original is itself a choice, there is one piece fewer to choose from: skip over it.
        ordinary = original >= NUM_SPECIAL
        pieces = rng.integers(NUM_SPECIAL, self.vocab_size - ordinary)
        return pieces + (ordinary & (pieces >= original))
