# SPDX-License-Identifier: Apache-2.0
"""Examples drawn on the fly against create_pretraining_data.py: its golden run and its rules."""

import json
import pickle
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency

from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.examples import PretrainingSource, plan_shard
from albert_jax.data.loader import KEYS
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import UserError
from tests.helpers import original_examples as original
from tests.helpers.compressed import read_compressed
from tests.helpers.paths import VOCABULARY

V = 8000
RUNS = {
    run["tag"]: run
    for run in json.loads((original.FILES / "pretraining_data_stats.json").read_text())
}
P_VALUE = 1e-3  # about 60 such tests with fixed seeds; each mistake tried gives less than 1e-6


@cache
def corpus() -> original.MemoryStore:
    return original.MemoryStore(original.golden_documents())


def source_of(store, *, seed=1, shuffle=True, **options) -> PretrainingSource:
    return PretrainingSource(
        store,
        ExamplesConfig(**options),
        seed=seed,
        starts_word=original.golden_starts_word(),
        shuffle=shuffle,
    )


def numbered_store(lengths: list[list[int]], shards: int = 1) -> original.MemoryStore:
    """Documents of sentences of given lengths, all tokens different: 5, 6, 7, …"""
    token = iter(range(5, V))
    return original.MemoryStore(
        [[[next(token) for _ in range(n)] for n in document] for document in lengths], shards
    )


def unmasked(example) -> tuple[np.ndarray, np.ndarray]:
    """A and B of an example as they were before masking."""
    ids = example["input_ids"].copy()
    real = example["masked_lm_weights"] > 0
    ids[example["masked_lm_positions"][real]] = example["masked_lm_ids"][real]
    length = int(example["input_mask"].sum())
    b = int(example["segment_ids"].sum())
    return ids[1 : length - b - 1], ids[length - b : length - 1]


# ------------------------------------------------------------------------------- the golden run


def test_stored_corpus_is_what_our_tokenizer_makes_of_the_golden_text():
    tokenizer = Tokenizer.load(VOCABULARY)
    text = read_compressed(original.FILES / "corpus.txt")
    lines = [line for line in text.split("\n") if line.strip()]
    sentences = [s for document in original.golden_documents() for s in document]
    assert [list(ids) for ids in tokenizer.encode_ids(lines)] == sentences
    assert tokenizer.starts_word.tolist() == original.golden_starts_word().tolist()


def epoch_statistics(source, epoch: int) -> tuple[dict[str, np.ndarray], Counter, Counter]:
    """The histograms that the golden run recorded, of one epoch; n-grams; replacements."""
    first = sum(map(source.epoch_size, range(epoch)))
    rows, ngrams, inputs = [], Counter(), Counter()
    for index in range(first, first + source.epoch_size(epoch)):
        example = source.draw(index)
        masked = int(example["masked_lm_weights"].sum())
        total, b = int(example["input_mask"].sum()), int(example["segment_ids"].sum()) - 1
        label, words = int(example["sentence_order_labels"]), int(example["token_boundary"].sum())
        rows.append((total, total - b - 3, b, label, masked, words - 3))
        ngrams.update(example["ngram_words"].tolist())
        seen = example["input_ids"][example["masked_lm_positions"][:masked]]
        itself = seen == example["masked_lm_ids"][:masked]
        inputs.update(np.where(itself, "kept", np.where(seen == 4, "mask", "random")).tolist())
    total, a, b, label, masked, words = np.array(rows).T
    edges = np.linspace(0, source.config.max_seq_length, 17)
    found = {
        "total": np.histogram(total, edges)[0],
        "segment_a": np.histogram(a, edges)[0],
        "segment_b": np.histogram(b, edges)[0],
        "a_share": np.histogram(a / (a + b), np.linspace(0, 1, 11))[0],
        "label": np.bincount(label, minlength=2),
        "masked_share": np.array([masked.sum(), total.sum() - masked.sum()]),
        "predictions": np.bincount(masked, minlength=41),
        "words": np.array([words.sum(), total.sum() - 3 * len(total)]),
    }
    return found, ngrams, inputs


def golden_statistics(run) -> dict[str, np.ndarray]:
    n = run["n_instances"]
    lengths = {key: np.array(run["lengths"][key]["hist"]["counts"]) for key in run["lengths"]}
    swapped = round(run["sop"]["fraction_label_1"] * n)
    predictions = np.zeros(41, int)
    for count, examples in run["predictions_per_instance"]["hist"].items():
        predictions[int(count)] = examples
    masked, tokens = run["masked"]["total"], run["throughput"]["tokens"]
    return lengths | {
        "label": np.array([n - swapped, swapped]),
        "masked_share": np.array([masked, tokens - masked]),
        "predictions": predictions,
        "words": np.array([run["words"], tokens - 3 * n]),
    }


def epochs_p_value(epochs: np.ndarray, golden: np.ndarray, count: int) -> float:
    """How often `count` of our epochs lie as far from our mean as the golden run's `count` do.

    The distance is chi-square, the sum of squared deviations over their variances; variances and
    the distance's distribution are taken from our epochs (bootstrap), since the rows of a document
    share a target length and are not independent.
    """
    rare = count * epochs.mean(0) < 5
    if rare.any():
        epochs, golden = (
            np.append(x[..., ~rare], x[..., rare].sum(-1, keepdims=True), -1)
            for x in (epochs, golden)
        )
    rng = np.random.default_rng(0)
    sums = epochs[rng.integers(len(epochs), size=(4000, count))].sum(1)
    mean, variance = sums.mean(0), np.maximum(sums.var(0), 1)
    ours = ((sums - mean) ** 2 / variance).sum(-1)
    # The golden run is independent of our mean, which has an error of its own.
    theirs = ((golden - mean) ** 2 / variance).sum() / (1 + count / len(epochs))
    return (1 + (ours >= theirs).sum()) / (1 + len(ours))


def golden_config(run) -> dict:
    flags = run["flags"]
    names = ("max_seq_length", "max_predictions_per_seq", "short_seq_prob", "favor_shorter_ngram")
    return {name: flags[name] for name in names}


def check_against_golden(run, epochs: int, **options) -> dict[str, float]:
    """p-values of every statistic of a golden run."""
    source = source_of(corpus(), seed=7, **(golden_config(run) | options))
    per_epoch = defaultdict(list)
    ngrams, inputs = Counter(), Counter()
    for epoch in range(epochs):
        histograms, epoch_ngrams, epoch_inputs = epoch_statistics(source, epoch)
        ngrams += epoch_ngrams
        inputs += epoch_inputs
        for name, values in histograms.items():
            per_epoch[name].append(values)
    golden = golden_statistics(run)
    count = run["flags"]["dupe_factor"]
    found = {
        name: epochs_p_value(np.array(values), golden[name], count)
        for name, values in per_epoch.items()
    }
    n = run["ngram_accepted_count"]
    theirs = [run["ngram_words_accepted"][str(words)] * n for words in (1, 2, 3)]
    found["ngrams"] = chi2_contingency([[ngrams[n] for n in (1, 2, 3)], theirs]).pvalue
    masked = run["masked"]
    theirs = [masked[key] * masked["total"] for key in ("mask_token", "kept", "random")]
    ours = [inputs[key] for key in ("mask", "kept", "random")]
    found["replaced_by"] = chi2_contingency([ours, theirs]).pvalue
    return found


@pytest.mark.parametrize(
    ("tag", "epochs"), [("seq128", 20), ("seq512", 30), ("seq128_short50_longer_ngrams", 20)]
)
def test_statistics_are_those_of_the_golden_run(tag, epochs):
    found = check_against_golden(RUNS[tag], epochs)
    assert min(found.values()) > P_VALUE, found


@pytest.mark.slow
@pytest.mark.parametrize("tag", RUNS)
def test_statistics_over_many_epochs_are_those_of_the_golden_run(tag):
    found = check_against_golden(RUNS[tag], 300)
    assert min(found.values()) > P_VALUE, found


def test_the_golden_comparison_notices_other_settings():
    run = RUNS["seq128"]
    found = check_against_golden(
        run, 6, favor_shorter_ngram=False, short_seq_prob=0, objective="none"
    )
    assert found["ngrams"] < 1e-6
    assert found["total"] < P_VALUE
    assert found["label"] < P_VALUE
    found = check_against_golden(run, 6, short_seq_per="row", single_segment="split")
    assert found["segment_a"] < P_VALUE
    assert found["words"] < P_VALUE


# ------------------------------------------------------------------------------------- the plan


def plan_of(shard, seed=0, **options) -> np.ndarray:
    return plan_shard(shard, ExamplesConfig(**options), np.random.default_rng(seed))


def check_chunks(documents, rows) -> dict[int, int]:
    """Rows are the chunks that the original's loop makes; returns the documents' targets."""
    by_document = defaultdict(list)
    for row in rows:
        by_document[int(row["document"])].append(row)
    targets, first = {}, 0
    for number, document in enumerate(documents):
        rows = by_document[number]
        [targets[number]] = {int(row["target"]) for row in rows}
        expected = original.chunks(document, targets[number])
        assert [(row["first"] - first, row["end"] - first) for row in rows] == expected
        first += len(document)
    return targets


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("max_seq_length", [16, 128, 512])
def test_plan_is_the_originals_loop_at_every_target_length(max_seq_length, shards):
    store = original.MemoryStore(original.golden_documents(), shards)
    for documents, shard in zip(store.documents, store.shards, strict=True):
        rows = plan_of(shard, max_seq_length=max_seq_length, short_seq_prob=0.5)
        targets = check_chunks(documents, rows)
        assert max(targets.values()) == max_seq_length - 3
        assert min(targets.values()) < max_seq_length - 3
        single = rows["end"] - rows["first"] == 1
        assert (rows["random_b"] == single).all()
        assert (rows["split"] > rows["first"]).all()
        assert (rows["split"] < rows["end"])[~single].all()


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=6),
    st.integers(8, 40),
    st.integers(0, 99),
)
def test_plan_is_the_originals_loop_for_any_documents(lengths, max_seq_length, seed):
    store = numbered_store(lengths)
    rows = plan_of(store.shards[0], seed, max_seq_length=max_seq_length, short_seq_prob=0.3)
    check_chunks(store.documents[0], rows)


def test_short_targets_are_uniform_and_drawn_once_a_document():
    store = numbered_store([[4, 4, 4, 4]] * 400)
    options = {"max_seq_length": 23, "short_seq_prob": 0.8}
    drawn = Counter()
    for seed in range(20):
        rows = plan_of(store.shards[0], seed, **options)
        drawn.update(check_chunks(store.documents[0], rows).values())
    n = drawn.total()
    expected = np.array([0.8 / 19] * 18 + [0.2 + 0.8 / 19]) * n
    observed = np.array([drawn[target] for target in range(2, 21)])
    assert chi2.sf(((observed - expected) ** 2 / expected).sum(), 18) > P_VALUE
    # Per row instead: rows of one document differ.
    rows = plan_of(store.shards[0], short_seq_per="row", **options)
    targets = defaultdict(set)
    for row in rows:
        targets[int(row["document"])].add(int(row["target"]))
    assert max(map(len, targets.values())) > 1
    share = (rows["target"][np.unique(rows["document"], return_index=True)[1]] < 20).mean()
    assert abs(share - 0.8 * 18 / 19) < 0.08


def test_split_point_is_uniform_between_the_sentences():
    store = numbered_store([[3] * 5] * 500)
    splits = Counter()
    for seed in range(10):
        rows = plan_of(store.shards[0], seed, max_seq_length=64, short_seq_prob=0)
        splits.update((rows["split"] - rows["first"]).tolist())
    assert set(splits) == {1, 2, 3, 4}
    observed = np.array(list(splits.values()))
    assert chi2.sf(((observed - 1250) ** 2 / 1250).sum(), 3) > P_VALUE


def test_next_sentence_puts_back_what_b_would_have_been():
    rows = plan_of(corpus().shards[0], max_seq_length=128, objective="nsp")
    following = rows[1:]["document"] == rows[:-1]["document"]
    ends = np.where(rows["random_b"], rows["split"], rows["end"])
    assert (rows["first"][1:][following] == ends[:-1][following]).all()
    several = rows["end"] - rows["first"] > 1
    assert abs(rows["random_b"][several].mean() - 0.5) < 0.06
    assert rows["random_b"][~several].all()


@pytest.mark.parametrize("next_sentence", [False, True])
def test_pairs_are_distributed_as_the_originals_loop_makes_them(next_sentence):
    documents, rng = original.golden_documents(), original.seeded(3)
    epochs, theirs = 6, []
    for _ in range(epochs):
        for number in range(len(documents)):
            theirs += original.pairs(
                documents,
                number,
                rng,
                max_seq_length=128,
                short_seq_prob=0,  # so that rows are nearly independent
                next_sentence=next_sentence,
            )
    source = source_of(
        corpus(),
        objective="nsp" if next_sentence else "sop",
        max_seq_length=128,
        short_seq_prob=0,
    )

    ours = []
    for index in range(sum(map(source.epoch_size, range(epochs)))):
        example = source.draw(index)
        ours.append((*unmasked(example), int(example["sentence_order_labels"])))

    def cells(pairs) -> Counter:
        return Counter((label, len(a) // 16, (len(a) + len(b)) // 64) for a, b, label in pairs)

    mine, reference = cells(ours), cells(theirs)
    common = [cell for cell in mine | reference if mine[cell] + reference[cell] >= 20]
    table = [[side[cell] for cell in common] for side in (mine, reference)]
    assert len(common) > 8
    assert chi2_contingency(table).pvalue > P_VALUE
    assert abs(len(ours) / len(theirs) - 1) < 0.02


# ----------------------------------------------------------------------------------- the example


@pytest.mark.parametrize("objective", ["sop", "nsp", "none"])
def test_example_is_cls_a_sep_b_sep_with_its_masks_on_text_only(objective):
    source = source_of(corpus(), objective=objective, max_seq_length=64)
    text = corpus().shards[0].tokens.tobytes()
    labels = Counter()
    for index in range(300):
        example = source[index]
        assert tuple(example) == KEYS
        weights = example["masked_lm_weights"]
        positions = example["masked_lm_positions"]
        count, length = int(weights.sum()), int(example["input_mask"].sum())
        a, b = unmasked(example)
        labels[int(example["sentence_order_labels"])] += 1
        assert min(len(a), len(b)) >= 1
        assert len(a) + len(b) + 3 == length <= 64
        ids = example["input_ids"]
        assert ids[[0, len(a) + 1, length - 1]].tolist() == [2, 3, 3]
        for segment in (a, b):
            assert segment.astype("<u2").tobytes() in text
        segments = [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (64 - length)
        assert example["segment_ids"].tolist() == segments
        assert example["input_mask"].tolist() == [1] * length + [0] * (64 - length)
        assert not ids[length:].any()
        assert weights.tolist() == [1.0] * count + [0.0] * (20 - count)
        assert count == min(20, max(1, round(length * 0.15)))
        assert (np.diff(positions[:count]) > 0).all()
        assert not set(positions[:count].tolist()) & {0, len(a) + 1, length - 1}
        assert positions[:count].max() < length
        assert not positions[count:].any()
        assert not example["masked_lm_ids"][count:].any()
    assert (set(labels) == {0}) if objective == "none" else (min(labels[0], labels[1]) > 60)


def test_token_boundary_follows_the_originals_word_start_rule():
    starts = original.golden_starts_word()
    source = source_of(corpus(), max_seq_length=64)
    example = source.draw(0)
    a, b = unmasked(example)
    expected = [1, *starts[a], 1, *starts[b], 1]
    expected += [0] * (64 - len(expected))
    assert example["token_boundary"].tolist() == expected


def test_sentence_order_label_says_that_b_comes_first_in_the_text():
    # Numbered tokens, and documents of four sentences in one row: order can be read off.
    store = numbered_store([[3, 4, 5, 6]] * 50)
    source = source_of(store, max_seq_length=64, short_seq_prob=0)
    labels = []
    for index in range(3000):
        example = source[index]
        a, b = unmasked(example)
        label = int(example["sentence_order_labels"])
        first, second = (b, a) if label else (a, b)
        assert first[-1] + 1 == second[0]
        labels.append(label)
    assert abs(np.mean(labels) - 0.5) < 0.03


def test_lone_sentence_takes_b_from_any_other_document_from_a_random_sentence():
    # A is the 9 tokens 5..13; B is 8 tokens at least, so each start in the others can be read off.
    store = numbered_store([[9], [4, 4, 4], [5], [8, 8], [2] * 8], shards=2)
    source = source_of(store, max_seq_length=20, short_seq_prob=0, truncate="end")
    starts = Counter()
    for index in range(len(source) * 700):
        example = source[index]
        a, b = unmasked(example)
        if a[0] == 5:
            assert example["sentence_order_labels"] == 1
            starts[int(b[0])] += 1
    others = [[14, 18, 22], [26], [31, 39], list(range(47, 63, 2))]
    expected = {token: 700 / 4 / len(document) for document in others for token in document}
    assert starts.keys() == expected.keys()
    distance = sum((starts[token] - n) ** 2 / n for token, n in expected.items())
    assert chi2.sf(distance, len(expected) - 1) > P_VALUE


def test_b_of_another_document_is_whole_sentences_up_to_the_target():
    store = numbered_store([[9], [2] * 8, [5]])
    source = source_of(store, max_seq_length=20, short_seq_prob=0)
    lengths = Counter()
    for index in range(300):
        a, b = unmasked(source[index])
        if a[0] == 5 and b[0] < 30:
            lengths[len(b), int(b[0])] += 1
    # 17 - 9 = 8 tokens are wanted: four sentences, or what the document has left.
    assert set(lengths) == {(min(8, 30 - first), first) for first in range(14, 30, 2)}


def test_single_segment_split_cuts_the_sentence_itself():
    store = numbered_store([[9], [1], [30], [2]])
    source = source_of(store, max_seq_length=20, single_segment="split", short_seq_prob=0)
    assert len(source) == 3  # one token has no two parts
    cuts = Counter()
    for index in range(900):
        example = source[index]
        a, b = unmasked(example)
        first, second = (b, a) if example["sentence_order_labels"] else (a, b)
        if len(a) + len(b) == 9:
            assert first[-1] + 1 == second[0]
            cuts[len(first)] += 1
        assert len(a) + len(b) <= 17
    assert set(cuts) == set(range(1, 9))
    by_default = source_of(store, max_seq_length=20, short_seq_prob=0)
    assert len(by_default) == 4
    assert {int(by_default[i]["sentence_order_labels"]) for i in range(40)} == {1}


@pytest.mark.parametrize(
    ("length_a", "length_b"), [(9, 2), (2, 9), (7, 7), (8, 7), (5, 6), (6, 4), (3, 40)]
)
def test_truncation_leaves_the_tokens_that_the_originals_does(length_a, length_b):
    store = numbered_store([[length_a, length_b]])
    options = {"objective": "none", "short_seq_prob": 0, "ngram": 1, "max_seq_length": 13}
    source = source_of(store, **options)
    [document] = store.documents[0]
    rng = original.seeded(5)
    ours, theirs = Counter(), Counter()
    for index in range(1000):
        a, b = unmasked(source[index])
        ours[int(a[0]), len(a), int(b[0]), len(b)] += 1
        a, b = original.truncate(*document, 10, rng)
        theirs[a[0], len(a), b[0], len(b)] += 1
    common = [cell for cell in ours | theirs if ours[cell] + theirs[cell] >= 10]
    table = [[side[cell] for cell in common] for side in (ours, theirs)]
    assert sum(ours[cell] for cell in common) > 930
    assert len(common) == 1 or chi2_contingency(table).pvalue > P_VALUE
    by_end = source_of(store, truncate="end", **options)
    starts = {tuple(int(segment[0]) for segment in unmasked(by_end[i])) for i in range(20)}
    assert starts == {(document[0][0], document[1][0])}


def test_max_predictions_bounds_the_masked_share():
    shares = {}
    for most in (20, 77):
        source = source_of(
            corpus(), max_seq_length=512, max_predictions_per_seq=most, short_seq_prob=0
        )
        counts = [
            (example["masked_lm_weights"].sum(), example["input_mask"].sum())
            for example in map(source.__getitem__, range(len(source)))
            if example["input_mask"].sum() == 512
        ]
        shares[most] = np.sum(counts, 0)[0] / np.sum(counts, 0)[1]
    assert shares == pytest.approx({20: 20 / 512, 77: 77 / 512}, rel=1e-6)


# ------------------------------------------------------------------------------------ the source


def same(left, right) -> bool:
    return all(np.array_equal(left[key], right[key]) for key in KEYS)


def test_example_depends_on_its_index_and_the_seed_alone():
    options = {"max_seq_length": 64}
    source = source_of(corpus(), **options)
    indices = [3, 5000, 0, 1300, 4, 5000]
    expected = [source[index] for index in indices]
    again = source_of(corpus(), **options)
    backwards = [again[index] for index in reversed(indices)][::-1]
    assert all(map(same, expected, backwards))
    sent = pickle.loads(pickle.dumps(source))
    assert all(map(same, expected, map(sent.__getitem__, indices)))
    other = source_of(corpus(), seed=2, **options)
    assert not any(map(same, expected, map(other.__getitem__, indices)))


def test_threads_draw_the_same_examples():
    source = source_of(corpus(), max_seq_length=32)
    expected = [source[index] for index in range(0, 12000, 97)]
    shared_by_threads = source_of(corpus(), max_seq_length=32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(shared_by_threads.__getitem__, range(0, 12000, 97)))
    assert all(map(same, expected, found))


@pytest.mark.parametrize("shards", [1, 3])
def test_each_epoch_has_every_row_once_in_an_order_of_its_own(shards):
    store = numbered_store([[7] * 10] * 100, shards)  # two rows a document
    options = {"max_seq_length": 32, "short_seq_prob": 0, "truncate": "end", "objective": "none"}
    source = source_of(store, **options)
    in_order = source_of(store, shuffle=False, **options)
    assert len(source) == source.epoch_size(1) == 200
    first, second = (
        [int(unmasked(source[index])[0][0]) for index in range(start, start + 200)]
        for start in (0, 200)
    )
    text_order = [int(unmasked(in_order[index])[0][0]) for index in range(200)]
    starts = [shard.tokens[shard.sentence_starts[:-1:5]] for shard in store.shards]
    assert text_order == np.concatenate(starts).tolist()
    assert sorted(first) == sorted(second) == sorted(text_order)
    assert len({tuple(first), tuple(second), tuple(text_order)}) == 3


def test_epoch_of_follows_the_sizes_of_the_epochs():
    source = source_of(corpus(), max_seq_length=64)
    far = source_of(corpus(), max_seq_length=64)
    assert far.epoch_of(10_000) == source.epoch_of(10_000)
    sizes = [source.epoch_size(epoch) for epoch in range(6)]
    assert len(set(sizes)) > 1  # short rows are drawn anew
    assert len(source) == sizes[0]
    ends = np.cumsum(sizes)
    for epoch in range(5):
        assert source.epoch_of(ends[epoch] - 1) == (epoch, sizes[epoch] - 1)
        assert source.epoch_of(ends[epoch]) == (epoch + 1, 0)
    with pytest.raises(IndexError):
        source.epoch_of(-1)


def plans_of(monkeypatch):
    """The epochs that are planned from now on, one entry for each time."""
    planned, plan = [], PretrainingSource._shard_plans

    def noted(self, epoch):
        planned.append(epoch)
        return plan(self, epoch)

    monkeypatch.setattr(PretrainingSource, "_shard_plans", noted)
    return planned


def test_a_source_that_remembers_the_sizes_of_epochs_plans_only_those_it_draws(monkeypatch):
    source = source_of(corpus(), max_seq_length=64)
    index = sum(map(source.epoch_size, range(5))) + 7
    sizes, example = source.ended_epochs(index), source[index]
    assert len(sizes) == 5
    # They depend on the example alone, not on what was drawn before or ahead.
    source.epoch_size(9)
    assert source.ended_epochs(index) == source_of(corpus(), max_seq_length=64).ended_epochs(index)
    planned = plans_of(monkeypatch)
    fresh = source_of(corpus(), max_seq_length=64)
    fresh.remember_epochs(json.loads(json.dumps(sizes)))
    assert same(fresh[index], example)
    assert planned == [0, 5]
    planned.clear()
    of_before = source_of(corpus(), max_seq_length=64)  # resumed from a checkpoint without sizes
    of_before.remember_epochs([])
    assert same(of_before[index], example)
    assert planned == [0, 1, 2, 3, 4, 5]


def test_sizes_that_are_another_sources_are_not_believed():
    source = source_of(corpus(), max_seq_length=64)
    source.remember_epochs([len(source) + 1, 5])
    assert source.epoch_of(len(source)) == (1, 0)


@pytest.mark.parametrize("index", [0, 1])
def test_the_epochs_that_ended_before_an_example_are_whole(index):
    source = source_of(corpus(), max_seq_length=64)
    ends = np.cumsum([source.epoch_size(0), source.epoch_size(1)])
    at = int(ends[index])
    assert len(source.ended_epochs(at - 1)) == index
    assert len(source.ended_epochs(at)) == index + 1


def test_store_without_a_row_is_the_users_mistake():
    with pytest.raises(UserError, match="no pair of segments"):
        source_of(original.MemoryStore([]))
    with pytest.raises(UserError, match="no pair of segments"):
        source_of(numbered_store([[1]]), single_segment="split")
    with pytest.raises(UserError, match="'mlm' must be one of sop, nsp, none"):
        ExamplesConfig(objective="mlm")


def test_one_document_of_one_token_still_makes_an_example():
    example = source_of(numbered_store([[1]]), max_seq_length=16)[0]
    a, b = unmasked(example)
    assert len(a) == len(b) == 1
