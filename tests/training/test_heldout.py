# SPDX-License-Identifier: Apache-2.0
"""A pretrained model on a store's held-out documents: the figures that its run ended with."""

import json

import pytest

from albert_jax.checkpoint.model_dir import load_model
from albert_jax.checkpoint.model_export import export_model
from albert_jax.cli.main import main
from albert_jax.training.heldout import evaluate_on_store
from albert_jax.training.pretrain import pretrain
from albert_jax.utils.errors import UserError
from tests.helpers.paths import VOCABULARY
from tests.helpers.pretraining_runs import make_store, tiny_config


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(store, tmp_path_factory):
    return pretrain(tiny_config(store, tmp_path_factory.mktemp("run"), steps=3))


def exported(model, folder, *, params=None, provenance=None, **tokenizer):
    """The model again, with other parameters, provenance or cleaning of text."""
    given = load_model(model)
    return export_model(
        folder,
        params=given.params if params is None else params,
        config=given.config,
        vocab=VOCABULARY,
        tokenizer={"mode": "google", "do_lower_case": True} | tokenizer,
        provenance=provenance or {},
    )


def test_the_figures_are_those_that_the_run_ended_with(model, store):
    run = json.loads((model / "manifest.json").read_text())["provenance"]["held_out"]
    # The run's rows have 4 predictions at most, those here 15 % of 32.
    found = evaluate_on_store(model, str(store), max_seq_length=32, examples=16)
    assert found.examples == 16
    assert found.masked_lm_loss == pytest.approx(run["masked_lm_loss"], abs=0.02)
    assert found.sentence_order_accuracy == pytest.approx(run["sentence_order_accuracy"])
    assert 0 < found.unigram_entropy_nats < found.masked_lm_loss
    other = evaluate_on_store(model, str(store), max_seq_length=32, examples=16, masking="piece")
    assert other.masked_lm_loss != found.masked_lm_loss


def test_a_model_without_a_second_objective_has_no_figures_of_it(model, store, tmp_path, capsys):
    given = load_model(model)
    params = {name: x for name, x in given.params.items() if name != "seq_relationship"}
    for folder, kept in (("mlm", params), ("none", {**params, "predictions": None})):
        params = {name: x for name, x in kept.items() if x is not None}
        exported(model, tmp_path / folder, params=params)
    found = evaluate_on_store(tmp_path / "mlm", str(store), max_seq_length=32, examples=8)
    assert "sentence_order_loss" not in found
    assert found.label_majority is None
    given = ["evaluate", "--model", str(tmp_path / "mlm"), "--store", str(store)]
    assert main([*given, "--examples", "8"]) == 0
    assert "sentence-order" not in capsys.readouterr().out
    with pytest.raises(UserError, match="examples 0 must be"):
        evaluate_on_store(tmp_path / "mlm", str(store), examples=0)
    with pytest.raises(UserError, match="none has no masked-LM head to be evaluated"):
        evaluate_on_store(tmp_path / "none", str(store))


@pytest.mark.parametrize(
    ("trained_on", "read"),
    [
        ({"examples": {"max_seq_length": 16}}, 16),
        ({"examples": {"max_seq_length": 512}}, 32),  # the model has 32 positions
        ({"examples": {"max_seq_length": "16"}}, 32),
        ({"examples": None}, 32),
        ("elsewhere", 32),
    ],
)
def test_rows_are_no_longer_than_those_the_model_was_trained_on(
    model, store, tmp_path, trained_on, read
):
    other = exported(model, tmp_path / "model", provenance={"config": trained_on})
    assert evaluate_on_store(other, str(store), examples=8).max_seq_length == read


@pytest.mark.parametrize("objective", ["none", "nsp"])
def test_a_head_that_learnt_no_sentence_order_has_no_figures_of_it(
    model, store, tmp_path, objective
):
    trained_on = {"examples": {"objective": objective}}
    other = exported(model, tmp_path / "model", provenance={"config": trained_on})
    found = evaluate_on_store(other, str(store), examples=8)
    assert found.sentence_order_accuracy is None
    assert found.label_majority is None


def test_a_model_of_text_that_was_cleaned_otherwise_is_refused(model, store, tmp_path):
    exported(model, tmp_path / "cased", mode="hf", do_lower_case=False)
    with pytest.raises(UserError, match=r"cased was trained on text .*do_lower_case False and not"):
        evaluate_on_store(tmp_path / "cased", str(store), examples=8)


def test_the_command_prints_the_figures_and_refuses_in_a_line(model, store, capsys):
    given = ["evaluate", "--model", str(model), "--store", str(store)]
    assert main([*given, "--examples", "8", "--masking", "word"]) == 0
    said = capsys.readouterr().out
    assert "8 rows of 32 tokens, single words masked" in said
    assert "unigram entropy of the same text" in said
    for more, told in (
        (["--data", "."], "give --data DIR for a task, or --store STORE"),
        (["--task", "sst2"], "--store takes one --model, --masking"),
        (
            ["--max-seq-length", "64"],
            "--max-seq-length 64 exceeds the model's max_position_embeddings 32",
        ),
    ):
        assert main([*given, *more]) == 2
        assert told in capsys.readouterr().err
    assert main(["evaluate", "--model", "mini", "--store", str(store)]) == 2
    assert "albert-jax: mini was trained with another vocabulary" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(model), "--store", "nowhere"]) == 2
    assert "store nowhere does not exist" in capsys.readouterr().err
