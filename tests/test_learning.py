# SPDX-License-Identifier: Apache-2.0
"""The bench for learning: budgets are kept, and a run, its picture and its overlap come out."""

import json
from dataclasses import replace

import numpy as np
import pytest

from albert_jax.data.prepare.build import prepare
from benchmarks import learning
from tests.helpers.models import tiny_albert
from tests.helpers.paths import VOCABULARY
from tests.helpers.pretraining_runs import make_store, random_model, write_corpus

TINY = tiny_albert(vocab_size=8000, max_position_embeddings=128)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(learning.SIZES, "small", TINY)


@pytest.mark.parametrize("recipe", learning.RECIPES)
def test_a_recipe_spends_its_budget_and_no_more(recipe, tiny):
    for changes in ({}, {"train.depth": "1:0.5,2:0.5", "train.length": "64:0.7,128:0.3"}):
        config = learning.configured(recipe, "small", 1e11, changes, 1)
        steps = config.train.steps
        spent, next_one = (learning.flops_until(config, n) for n in (steps, steps + 1))
        assert 0.9e11 < spent <= 1e11 < next_one


def test_muon_pays_for_its_own_matmuls():
    config = learning.configured("found", "mini", 1e13, {}, 1)
    other = replace(config, optimizer=replace(config.optimizer, name="optax_adamw"))
    own = learning.flops_until(config, 10) - learning.flops_until(other, 10)
    assert own == pytest.approx(10 * learning.optimizer_flops(config))
    # One kernel alone, by hand: 5 steps of X X^T, its square, and a product with X.
    h, i = 384, 1536
    assert learning.optimizer_flops(config) > 2 * 5 * (2 * h * h * i + 2 * h**3 + 2 * h * h * i)


def test_the_paper_s_rate_is_scaled_by_the_square_root_of_the_batch():
    config = learning.configured("paper", "mini", 1e13, {}, 1)
    assert config.optimizer.learning_rate == pytest.approx(0.00176 * (32 / 4096) ** 0.5)


@pytest.mark.slow
def test_a_run_leaves_a_line_and_the_picture_shows_it(tiny, tmp_path, capsys):
    store = str(make_store(tmp_path))
    learning.run("found", store, store, 2e10, tmp_path / "out", name="first")
    (row,) = map(json.loads, (tmp_path / "out" / "learning.jsonl").read_text().splitlines())
    assert row["name"] == "first"
    assert row["flops"] <= 2e10
    assert row["curve"][-1][:2] == [row["flops"], row["steps"]]
    assert row["final"]["masked_lm_loss"] == row["curve"][-1][2] > 0
    assert row["judged"]["ngram"]["masked_lm_loss"] > 0
    learning.budgets(tmp_path / "out", size="small")
    assert "| found | 2.0e+10 |" in capsys.readouterr().out
    learning.plot(tmp_path / "out")
    assert (tmp_path / "out" / "learning.png").stat().st_size > 10_000


def test_the_tasks_leave_a_line_for_the_model_and_one_for_random_weights(tmp_path):
    model = random_model(tmp_path / "model", TINY)
    table = [[f"word {n}", f"word {n * n}", f"{n % 5}.5"] for n in range(12)]
    (tmp_path / "STS-B").mkdir()
    for split in ("train", "dev"):
        lines = ["\t".join(row) for row in [["sentence1", "sentence2", "score"], *table]]
        (tmp_path / "STS-B" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    learning.tasks(
        model, out, glue=tmp_path, squad=tmp_path, task=("stsb",), seeds=2, steps=3, weights="both"
    )
    ours, control = map(json.loads, (out / "learning.jsonl").read_text().splitlines())
    assert (ours["random_weights"], control["random_weights"]) == (False, True)
    for row in (ours, control):
        assert (row["task"], row["metric"], row["steps"]) == ("stsb", "pearson", 3)
        assert row["mean"] == pytest.approx(np.mean(row["seeds"]))
        assert row["stdev"] == pytest.approx(np.std(row["seeds"], ddof=1))
    assert ours["seeds"] != control["seeds"]


def test_the_overlap_of_a_text_with_itself_is_whole_and_with_another_none(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus.txt")
    for name, holdout in (("a", 0.5), ("b", 0.5)):
        prepare([str(corpus)], vocab=VOCABULARY, output=tmp_path / name, holdout=holdout)
    learning.overlap(str(tmp_path / "a"), str(tmp_path / "b"))
    apart = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert apart["share"] < 0.01  # the same split of the same text: no document is in both
    assert apart["heldout"] > 100
    held = learning._grams(learning.TokenStore.open(tmp_path / "a", split="heldout"), 13)
    again = learning._grams(learning.TokenStore.open(tmp_path / "b", split="heldout"), 13)
    np.testing.assert_array_equal(held, again)
    assert len(np.unique(held)) > 0.99 * len(held)  # hashes of other n-grams differ
