# SPDX-License-Identifier: Apache-2.0
"""Masks against the original's loop, over short texts whose every outcome is seen often."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import chi2, chi2_contingency

from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.masking import Masker, word_starts
from tests.helpers import original_examples as original

V = 40
# Pieces 10 and up start a word but for these.
STARTS = np.array([piece not in (21, 22, 23, 31) for piece in range(V)])
DRAWS = 3000


def masker(**options) -> Masker:
    return Masker(ExamplesConfig(max_seq_length=64, **options), STARTS)


def draws(text: list[int], length_a: int, count: int = DRAWS, seed: int = 0, **options):
    mask, rng = masker(**options), np.random.default_rng(seed)
    return [mask(np.array(text, np.uint16), length_a, rng) for _ in range(count)]


def p_value(ours: Counter, theirs: Counter) -> float:
    """Chi-square test that two samples have one distribution; rare outcomes are put together."""
    common = [key for key in ours | theirs if ours[key] + theirs[key] >= 10]
    table = np.array([[side[key] for key in common] for side in (ours, theirs)])
    rest = np.array([[side.total()] for side in (ours, theirs)]) - table.sum(1, keepdims=True)
    table = np.hstack([table, rest]) if rest.sum() >= 10 else table
    return chi2_contingency(table).pvalue if table.shape[1] > 1 else 1.0


# Words of one and several pieces, segments that start with a continuation, texts shorter than an
# n-gram, budgets that a word or an n-gram exceeds.
TEXTS = {
    "plain": ([10, 11, 12, 13, 14, 15], 3, 0.4),
    "long words": ([10, 21, 22, 11, 12, 21, 13, 23], 4, 0.4),
    "continuation first": ([21, 22, 10, 11, 12], 2, 0.4),
    "word over the separator": ([10, 11, 21, 22, 12, 13], 2, 0.4),
    "two tokens": ([10, 11], 1, 0.4),
    "one word": ([10, 21, 22, 23], 2, 0.8),
    "word beyond the budget": ([10, 21, 22, 23, 31, 11, 12], 5, 0.25),
}


@pytest.mark.parametrize("options", [{}, {"favor_shorter_ngram": False}, {"ngram": 1}])
@pytest.mark.parametrize("name", TEXTS)
def test_masked_positions_are_distributed_as_the_originals(name, options):
    text, length_a, prob = TEXTS[name]
    ours = Counter(
        (tuple(masked.positions.tolist()), tuple(sorted(masked.ngram_words)))
        for masked in draws(text, length_a, masked_lm_prob=prob, **options)
    )
    rng = original.seeded(1)
    theirs = Counter()
    for _ in range(DRAWS):
        _, labels, ngrams = original.mask(
            text[:length_a],
            text[length_a:],
            rng,
            STARTS,
            V,
            most=20,
            prob=prob,
            ngram=options.get("ngram", 3),
            favor_shorter=options.get("favor_shorter_ngram", True),
        )
        positions = sorted(i - 1 - (i > length_a) for i in labels)
        theirs[tuple(positions), tuple(sorted(ngrams))] += 1
    assert p_value(ours, theirs) > 1e-4  # 21 such tests, seeds fixed


def test_number_of_predictions_rounds_half_to_even_and_counts_special_tokens():
    text = list(range(10, 20)) * 6
    # 27 + 3 tokens: 4.5 -> 4; 47 + 3: 7.5 -> 8; of the text alone 27: 4.05 and 47: 7.05.
    for length, counted, text_only in ((27, 4, 4), (47, 8, 7), (3, 1, 1)):
        for special, expected in ((True, counted), (False, text_only)):
            [masked] = draws(text[:length], 2, count=1, count_special_tokens=special)
            assert len(masked.positions) == expected
    [masked] = draws(text, 2, count=1, max_predictions_per_seq=5)
    assert len(masked.positions) == 5


def test_eighty_ten_ten_is_drawn_for_each_token_and_any_piece_may_replace_it():
    text = list(range(10, 40))
    seen = draws(text, 15, masked_lm_prob=0.9, max_predictions_per_seq=27)
    positions = np.concatenate([masked.positions for masked in seen])
    inputs = np.concatenate([masked.inputs for masked in seen])
    by_id = np.bincount(inputs, minlength=V)
    kept = (inputs == np.array(text)[positions]).sum()
    n = len(inputs)
    # A random piece is [MASK] or the token itself once in V.
    expected = np.array([0.8 + 0.1 / V, 0.1 + 0.1 / V, 0.1 - 0.2 / V]) * n
    observed = np.array([by_id[4], kept, n - by_id[4] - kept])
    assert chi2.sf(((observed - expected) ** 2 / expected).sum(), 2) > 1e-3
    specials = by_id[[0, 1, 2, 3, 5, 6, 7, 8, 9]]  # never in the text: random replacements only
    expected = 0.1 / V * n
    assert chi2.sf(((specials - expected) ** 2 / expected).sum(), 9) > 1e-3
    # Neighbours are masked independently: 64 % of pairs are both [MASK].
    both, pairs = agreement(seen)
    assert abs(both / pairs - 0.64) < 0.01


def agreement(seen) -> tuple[int, int]:
    """Of two masked tokens side by side: how often both are [MASK], and how many such pairs."""
    both = pairs = 0
    for masked in seen:
        beside = np.diff(masked.positions) == 1
        is_mask = masked.inputs == original.MASK
        both += int((is_mask[:-1] & is_mask[1:] & beside).sum())
        pairs += int(beside.sum())
    return both, pairs


def test_replace_per_ngram_treats_the_tokens_of_an_ngram_alike():
    text = list(range(10, 40))
    for masked in draws(text, 15, count=500, replace_per="ngram", max_predictions_per_seq=3):
        if masked.ngram_words == [3]:
            assert len(set(masked.inputs == original.MASK)) == 1
    seen = draws(text, 15, replace_per="ngram", masked_lm_prob=0.3)
    inputs = np.concatenate([masked.inputs for masked in seen])
    assert abs((inputs == original.MASK).mean() - 0.8) < 0.01
    both, pairs = agreement(seen)
    assert both / pairs > 0.7


def test_random_token_excludes_special_draws_from_all_other_ordinary_pieces():
    for piece, choices in ((20, [*range(5, 20), *range(21, V)]), (1, list(range(5, V)))):
        seen = draws([piece] * 20, 10, masked_lm_prob=0.9, random_token_excludes_special=True)
        inputs = np.concatenate([masked.inputs for masked in seen])
        changed = Counter(inputs[(inputs != original.MASK) & (inputs != piece)].tolist())
        assert changed.keys() == set(choices)
        expected = 0.1 * len(inputs) / len(choices)
        distance = sum((changed[choice] - expected) ** 2 / expected for choice in choices)
        assert chi2.sf(distance, len(choices)) > 1e-3


def test_whole_words_are_masked_together_unless_switched_off():
    text = [10, 21, 11, 22, 12, 23, 13, 21]
    for masked in draws(text, 4, count=300, masked_lm_prob=0.5):
        starts = set((masked.positions[masked.positions % 2 == 0]).tolist())
        assert {i + 1 for i in starts} == set(masked.positions[masked.positions % 2 == 1].tolist())
    single = draws(text, 4, count=300, masked_lm_prob=0.5, do_whole_word_mask=False)
    assert any(len(masked.positions) % 2 for masked in single)


def test_an_ngram_crosses_the_separator_only_where_it_may():
    text, length_a = [10, 11, 12, 21, 13, 14], 3  # B starts with a continuation piece

    across = draws(text, length_a, 1000, masked_lm_prob=0.3)
    apart = draws(text, length_a, 1000, masked_lm_prob=0.3, ngram_across_segments=False)
    # Piece 21 belongs to the word that 12 begins, or is a word of its own.
    assert all(2 in masked.positions for masked in across if 3 in masked.positions)
    assert any(2 not in masked.positions for masked in apart if 3 in masked.positions)
    # One n-gram of two words or more lies on both sides, or never does.
    whole = [masked.positions.tolist() for masked in across if len(masked.ngram_words) == 1]
    assert any(min(positions) < 2 and max(positions) > 2 for positions in whole)
    whole = [masked.positions.tolist() for masked in apart if masked.ngram_words == [3]]
    assert whole
    assert all(positions in ([0, 1, 2], [3, 4, 5]) for positions in whole)


def test_word_start_marker_joins_what_the_originals_rule_parts():
    tokenizer = SimpleNamespace(
        pieces=["<pad>", "▁the", "re", "'", "s", "é"],
        starts_word=np.array([True, True, False, True, False, True]),
    )
    assert word_starts(tokenizer) is tokenizer.starts_word
    marker = word_starts(tokenizer, "marker")
    assert marker.tolist() == [False, True, False, False, False, False]


def test_ngram_of_five_reaches_five_words():
    seen = draws(list(range(10, 40)), 15, count=300, ngram=5, masked_lm_prob=0.5)
    assert {n for masked in seen for n in masked.ngram_words} == {1, 2, 3, 4, 5}
