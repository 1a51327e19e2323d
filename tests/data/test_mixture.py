# SPDX-License-Identifier: Apache-2.0
"""Several stores as one: shares as asked, the same examples whoever draws them, mistakes named."""

import dataclasses
import json
import pickle
from collections import Counter

import numpy as np
import pytest

from albert_jax.cli.recipe_plan import info
from albert_jax.data.loader import KEYS, Draw, batch_at, make_dataset
from albert_jax.data.mixture import BLOCK, Mixture, share_out, split_stores
from albert_jax.data.prepare.build import prepare
from albert_jax.data.pretraining import open_data, pretraining_identity
from albert_jax.data.store import TokenStore
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.data.vocabulary import train_tokenizer
from albert_jax.perf.dry_run import describe_plan
from albert_jax.training.pretrain import pretrain
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import json_sha256
from tests.helpers.pretraining_runs import TINY, VOCABULARY, make_store, tiny_config


def make_other(folder, vocab=VOCABULARY):
    """A store of words that make_store's has not."""
    lines = [f"Colourless green ideas number {n} sleep furiously at night." for n in range(300)]
    text = "\n".join(line + "\n" * (i % 6 == 5) for i, line in enumerate(lines))
    (folder / "other.txt").write_text(text)
    prepare(
        folder / "other.txt",
        vocab=vocab,
        output=folder / "other",
        holdout=0.2,
        sentences="lines",
        workers=1,
        progress=False,
    )
    return folder / "other"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return make_store(folder), make_other(folder)


class Numbers:
    """A source whose examples are (its name, their index)."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.name, index


def mixture(weights, seed=0, size=1000):
    names = [f"s{i}" for i in range(len(weights))]
    counts = share_out(weights, names)
    return Mixture([Numbers(n, size) for n in names], counts, names=names, seed=seed)


# ---------------------------------------------------------------------------------- the share drawn


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 1, 1), (5, 1e-3), (2.0, 7, 1, 90)])
def test_every_block_has_each_stores_share_to_one_example(weights):
    source = mixture(weights)
    for block in (0, 3):
        found = Counter(source[i][0] for i in range(block * BLOCK, (block + 1) * BLOCK))
        for number, weight in enumerate(weights):
            assert abs(found[f"s{number}"] - weight / sum(weights) * BLOCK) < 1


def test_the_first_thousand_are_shared_as_chance_would():
    found = Counter(mixture((0.7, 0.3))[i][0] for i in range(1000))
    assert abs(found["s0"] - 700) < 5 * np.sqrt(1000 * 0.7 * 0.3)


def test_a_stores_examples_come_each_once_and_in_its_own_order():
    source = mixture((3, 2, 1))
    drawn = {f"s{i}": [] for i in range(3)}
    for index in range(2 * BLOCK + 1000):
        name, own = source[index]
        drawn[name].append(own)
    for own in drawn.values():
        assert own == list(range(len(own)))


def test_an_example_is_a_function_of_seed_and_index():
    one, again, other = mixture((1, 2)), mixture((1, 2)), mixture((1, 2), seed=1)
    backwards = [one[i] for i in reversed(range(0, 3 * BLOCK, 997))][::-1]
    assert backwards == [again[i] for i in range(0, 3 * BLOCK, 997)]
    assert backwards != [other[i] for i in range(0, 3 * BLOCK, 997)]
    first, second = ([one[b * BLOCK + i][0] for i in range(1000)] for b in (0, 1))
    assert first != second
    with pytest.raises(IndexError):
        one[-1]


# ------------------------------------------------------------------------------- stores and the run


def test_measured_shares_of_two_stores_are_those_asked_for(stores, tmp_path):
    a, b = stores
    source = open_data(tiny_config(f"{a}:0.7,{b}:0.3", tmp_path), None).train
    own = [
        np.unique(np.concatenate([s.tokens for s in TokenStore.open(store).shards]))
        for store in stores
    ]
    # A row without masks is told by pieces that the other store has not.
    only = [np.setdiff1d(own[0], own[1]), np.setdiff1d(own[1], own[0])]
    counts = np.zeros(2, int)
    for index in range(2000):
        example = source.draw(index)
        ids = example["input_ids"].copy()
        ids[example["masked_lm_positions"]] = 0
        hits = [int(np.isin(ids, which).sum()) for which in only]
        counts[int(np.argmax(hits))] += 1
    assert abs(counts[0] - 1400) < 5 * np.sqrt(2000 * 0.7 * 0.3)


def test_by_size_a_pass_is_a_pass_over_each(stores, tmp_path):
    a, b = stores
    source = open_data(tiny_config(f"{a},{b}", tmp_path), None).train
    parts = source.passes(len(source))
    assert list(parts) == [str(a), str(b)]
    assert sum(part["sequences_a_pass"] for part in parts.values()) == len(source)
    for part in parts.values():
        assert part["passes"] == pytest.approx(1, abs=1e-3)
    assert source.epoch_of(len(source) + 5) == (1, 5)


def test_a_mixture_remembers_the_epochs_of_each_store(stores, tmp_path):
    a, b = stores
    source, fresh = (
        open_data(tiny_config(f"{a}:0.7,{b}:0.3", tmp_path), None).train for _ in range(2)
    )
    index = BLOCK + 1000
    own = [source.locate(i)[0] for i in range(index)].count(0)
    sizes = source.ended_epochs(index)
    assert sizes[0] == source.sources[0].ended_epochs(own)
    assert all(sizes)
    fresh.remember_epochs(sizes)
    assert fresh.ended_epochs(index) == sizes
    fresh.remember_epochs([])  # of a checkpoint that has none


def test_threads_processes_and_hosts_draw_the_same_batches(stores, tmp_path):
    a, b = stores
    source = open_data(tiny_config(f"{a}:1,{b}:2", tmp_path), None).train
    expected = [batch_at(source, number, 8) for number in range(5)]
    for ahead in ({"threads": 2}, {"workers": 1}):
        batches = make_dataset(Draw(source, 8), start=2, stop=5, **ahead)
        for batch, wanted in zip(batches, expected[2:], strict=True):
            for key in KEYS:
                np.testing.assert_array_equal(batch[key], wanted[key])
        batches.close()
    halves = [batch_at(source, 3, 8, process_index=i, process_count=2) for i in range(2)]
    for key in KEYS:
        np.testing.assert_array_equal(
            np.concatenate([half[key] for half in halves]), expected[3][key]
        )
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[70_001]["input_ids"], source[70_001]["input_ids"])


def test_one_store_is_what_it_was_and_a_mixture_is_another_run(stores, tmp_path):
    a, b = stores

    def identity(spec, **train):
        config = tiny_config(spec, tmp_path, **train)
        return pretraining_identity(config, open_data(config, None))

    alone = identity(a)
    shards = TokenStore.open(a).manifest["splits"]["train"]["shards"]
    assert alone["data"] == json_sha256(shards)  # as checkpoints of before have it
    mixed = identity(f"{a}:0.7,{b}:0.3")
    assert mixed == identity(f"{a}:7,{b}:3")
    others = [alone, identity(f"{a}:0.6,{b}:0.4"), identity(f"{b}:0.7,{a}:0.3")]
    assert all(mixed["data"] != other["data"] for other in others)


def test_held_out_figures_are_of_the_mixture(stores, tmp_path):
    a, b = stores
    data = open_data(tiny_config(f"{a}:0.7,{b}:0.3", tmp_path), None)
    rates = np.zeros(8000)
    for store, share in ((a, 0.7), (b, 0.3)):
        tokens = np.concatenate([s.tokens for s in TokenStore.open(store, split="heldout").shards])
        for token in tokens.tolist():
            rates[token] += share / len(tokens)
    entropy = -sum(rate * np.log(rate) for rate in rates if rate)
    assert data.baselines["unigram_entropy_nats"] == pytest.approx(entropy, rel=1e-4)
    assert data.baselines["most_frequent_token_rate"] == pytest.approx(max(rates), rel=1e-4)
    assert data.heldout.passes(1)[str(b)]["share"] == pytest.approx(0.3, abs=1e-4)


@pytest.mark.slow
def test_a_run_on_a_mixture_is_told_resumes_and_refuses_other_shares(stores, tmp_path):
    a, b = stores
    spec = f"{a}:0.7,{b}:0.3"
    told = describe_plan(tiny_config(spec, tmp_path / "run"))
    assert f"{a}: 70.00% of the examples" in told
    assert f"{b}: 30.00% of the examples" in told
    pretrain(tiny_config(spec, tmp_path / "run", steps=4))
    assert (tmp_path / "run" / "model" / "spiece.model").read_bytes() == VOCABULARY.read_bytes()
    with pytest.raises(UserError, match="data"):
        pretrain(tiny_config(f"{a}:0.6,{b}:0.4", tmp_path / "run", steps=4))
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from tests.helpers.pretraining_runs import *\n"
        f"def get_config(): return tiny_config({spec!r}, 'unused')\n"
    )
    plan = info(recipe).to_json()["plan"]
    assert plan["stores"][str(a)]["share"] == pytest.approx(0.7, abs=1e-4)
    json.dumps(plan)


# ---------------------------------------------------------------------------------------- mistakes


def test_names_and_weights_are_read(tmp_path):
    assert split_stores("a") == [("a", None)]
    assert split_stores("a:0.7, b:3e-1") == [("a", 0.7), ("b", 0.3)]
    assert split_stores("gs://x/a,gs://x/b") == [("gs://x/a", None), ("gs://x/b", None)]
    assert split_stores("gs://x/a:2,b:1") == [("gs://x/a", 2.0), ("b", 1.0)]
    (tmp_path / "a,b:1").mkdir()
    assert split_stores(f"{tmp_path}/a,b:1") == [(f"{tmp_path}/a,b:1", None)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a:0,b:1", "weight '0' of store a must be a number greater than 0"),
        ("a:1,b:-2", "weight '-2' of store b"),
        ("a:x,b:1", "weight 'x' of store a"),
        ("a:nan,b:1", "weight 'nan' of store a"),
        ("a:inf,b:1", "weight 'inf' of store a"),
        ("a:,b:1", "weight '' of store a"),
        ("a:1,b", "store b has no weight and others have"),
        ("a:1,,b:1", "has no name"),
        ("a:1,a:2", "store a is named twice"),
        ("a,./a/", r"store (a|\./a/) is named twice"),
    ],
)
def test_a_bad_mixture_is_one_sentence(given, said):
    with pytest.raises(UserError, match=said):
        split_stores(given)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(UserError, match="store b has a share of 1e-07"):
        share_out((1, 1e-7), ("a", "b"))


def test_stores_of_two_vocabularies_are_refused_by_name(stores, tmp_path):
    a, _ = stores
    text = tmp_path / "text"
    text.write_text("".join(f"some words {n} to learn pieces of {n * n}\n" for n in range(500)))
    vocab = train_tokenizer([text], output=tmp_path / "vocab", vocab_size=100)
    other = make_other(tmp_path, vocab)
    with pytest.raises(UserError, match=f"{a} and {other} were made with two vocabularies.*sha256"):
        open_data(tiny_config(f"{a},{other}", tmp_path), None)
    assert Tokenizer.load(vocab).vocab_size == 100


def test_a_mistake_in_a_mixture_is_one_line_and_status_2(run_cli, stores, tmp_path):
    a, b = stores
    done = run_cli("pretrain", "--store", f"{a}:0.5,{b}:0", "--workdir", tmp_path / "w")
    assert (done.rc, done.stderr.count("\n")) == (2, 1)
    assert "weight '0' of store" in done.stderr
    with pytest.raises(UserError, match="absent does not exist"):
        open_data(tiny_config(f"{a},{tmp_path}/absent", tmp_path), None)
    model = dataclasses.replace(TINY, vocab_size=120)
    config = dataclasses.replace(tiny_config(f"{a},{b}", tmp_path), model=model)
    with pytest.raises(UserError, match=r"model\.vocab_size=8000"):
        open_data(config, None)
