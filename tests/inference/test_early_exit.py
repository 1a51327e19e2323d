# SPDX-License-Identifier: Apache-2.0
"""Answers after fewer passes: the logits of each pass, when to answer, and a run that trains for
it."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

import albert_jax
from albert_jax.cli import main as cli
from albert_jax.config.heads import TEACHER_LOGITS
from albert_jax.inference.api import load
from albert_jax.inference.early_exit import ExitOutputs, ExitRule
from albert_jax.inference.predict import predict
from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.tasks import Features
from albert_jax.tasks.collate import as_rows
from albert_jax.tasks.long_texts import pooled
from albert_jax.training import finetune
from albert_jax.training.losses import Distillation, task_objective
from albert_jax.utils.errors import UserError
from tests.helpers.models import random_batch, tiny_albert
from tests.helpers.pretraining_runs import random_model
from tests.helpers.task_models import task_model
from tests.helpers.toy_task import TINY, toy_config, toy_data

PASSES = 5
CONFIG = tiny_albert(
    num_hidden_layers=PASSES,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.8,
)


@pytest.fixture(scope="module")
def setting():
    model = AlbertForTask(CONFIG, labels=3, dropout=0.0)
    params = init_params(model, jax.random.key(0))
    params["head"]["output_weights"] *= 50  # that passes differ in their answers
    batch = random_batch(CONFIG, rows=8)
    return model, params, [batch[name] for name in ("input_ids", "input_mask", "segment_ids")]


@pytest.fixture(scope="module")
def each_pass(setting):
    """Logits [L, B, C] of models of 1 to L layers, which have the same parameters."""
    model, params, texts = setting
    configs = [
        dataclasses.replace(CONFIG, num_hidden_layers=passes) for passes in range(1, PASSES + 1)
    ]
    applied = [jax.jit(model.clone(config=config).apply) for config in configs]
    return np.stack([apply({"params": params}, *texts) for apply in applied])


def test_each_pass_has_the_logits_of_a_shallower_model(setting, each_pass):
    model, params, texts = setting
    found = jax.jit(model.clone(exits=True).apply)({"params": params}, *texts)
    np.testing.assert_allclose(found.transpose(1, 0, 2), each_pass, atol=1e-5)


def test_the_loss_weighs_a_pass_by_its_number(setting, each_pass):
    """Of labels and of a teacher; float32 sums of 30 losses: 1e-5."""
    model, params, texts = setting
    batch = dict(zip(("input_ids", "input_mask", "segment_ids"), texts, strict=True))
    batch["labels"] = np.arange(8, dtype=np.int32) % 3
    batch[TEACHER_LOGITS] = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    logits = each_pass
    hard = [
        optax.softmax_cross_entropy_with_integer_labels(x, batch["labels"]).mean() for x in logits
    ]
    theirs = jax.nn.log_softmax(batch[TEACHER_LOGITS])
    soft = [
        optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(x), theirs).mean()
        for x in logits
    ]
    weights = np.arange(1, PASSES + 1) / np.arange(1, PASSES + 1).sum()
    objective = task_objective(model.clone(exits=True), teacher=Distillation(0.25))
    weighed = objective.normalizers(batch)
    loss, metrics = jax.jit(lambda p: objective.loss(p, batch, weighed, None))(params)
    np.testing.assert_allclose(metrics["task_loss"], weights @ np.array(hard), rtol=1e-5)
    np.testing.assert_allclose(metrics["distill_loss"], weights @ np.array(soft), rtol=1e-5)
    np.testing.assert_allclose(
        loss, weights @ (0.75 * np.array(hard) + 0.25 * np.array(soft)), rtol=1e-5
    )
    last = (logits[-1].argmax(axis=-1) == batch["labels"]).mean()
    np.testing.assert_allclose(metrics["accuracy"], last, rtol=1e-6)


def leaves_at(logits_LC, patience=0, confidence=0.0):
    """By a loop: how many passes a text takes."""
    agreed = 0
    for n, logits in enumerate(logits_LC, 1):
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        if n > 1:
            agreed = agreed + 1 if logits.argmax() == logits_LC[n - 2].argmax() else 0
        if (patience and agreed >= patience) or (confidence and shares.max() >= confidence):
            return n
    return len(logits_LC)


@pytest.mark.parametrize(
    "rule", ["patience=1", "patience=2", "patience=9", "confidence=0.7", "confidence=1.0"]
)
def test_a_text_is_answered_after_the_pass_at_which_a_loop_stops(setting, each_pass, rule):
    model, params, texts = setting
    ids_BS, mask_BS, segments_BS = texts
    lengths = mask_BS.sum(axis=1)
    rows = as_rows(
        Features(i, ids_BS[i, :n].tolist(), segments_BS[i, :n].tolist())
        for i, n in enumerate(lengths)
    )
    found = ExitOutputs(model, ExitRule.of(rule))(params, rows)
    logits = each_pass.transpose(1, 0, 2)
    name, value = rule.split("=")
    wanted = [leaves_at(x, **{name: float(value)}) for x in logits]
    assert [int(x["passes"]) for x in found] == wanted
    if rule in ("patience=1", "patience=2", "confidence=0.7"):
        assert len(set(wanted)) > 1
    for output, n, each in zip(found, wanted, logits, strict=True):
        np.testing.assert_allclose(output["logits"], each[n - 1], atol=1e-5)


def test_a_run_trains_for_it_and_predict_says_how_many_passes_were_made(tmp_path, capsys):
    data = toy_data(tmp_path / "data")
    base = random_model(tmp_path / "base", dataclasses.replace(TINY, num_hidden_layers=3))
    config = toy_config(base, data, tmp_path / "run", steps=80, exits=True, pack=32)
    (run,) = finetune.finetune(config).runs
    model = tmp_path / "run" / "model"
    assert run.best.metrics["accuracy"] > 0.9
    inputs = [json.loads(line) for line in (data / "dev.jsonl").read_text().splitlines()]
    few, all_ = (list(predict(model, inputs, exit=exit)) for exit in ("patience=1", None))
    assert {x.passes for x in few} <= {2, 3}
    assert load(model).predict(inputs, exit="patience=1") == few
    assert all_[0].passes is None
    same = sum(x.prediction == y.prediction for x, y in zip(few, all_, strict=True))
    assert same > 55
    capsys.readouterr()
    line = ["predict", "--model", str(model), "--input", str(data / "dev.jsonl"), "--exit"]
    assert cli.main([*line, "confidence=1", "--output", str(tmp_path / "out.jsonl")]) == 0
    assert "3.00 passes of 3 in the mean" in capsys.readouterr().err
    line = ["evaluate", "--model", str(model), "--data", str(data), "--exit", "patience=1"]
    assert cli.main([*line, "--output", str(tmp_path / "predictions"), "--json"]) == 0
    told = capsys.readouterr()
    mean = np.mean([x.passes for x in few])
    assert f"{mean:.2f} passes of 3 in the mean" in told.err
    assert "was trained with --exits" not in told.err
    golds = [x["label"] for x in inputs]
    right = sum(x.prediction == gold for x, gold in zip(few, golds, strict=True))
    assert json.loads(told.out)["metrics"]["accuracy"] == right / 64
    with pytest.raises(UserError, match="leave out pack"):
        next(predict(model, inputs, exit="patience=1", pack=32))


def test_a_model_that_was_not_trained_for_it_is_said_once(tmp_path, capsys):
    model = task_model(tmp_path / "model", "single")
    (tmp_path / "texts.txt").write_text("the list is open\n" * 3)
    line = ["predict", "--model", str(model), "--input", str(tmp_path / "texts.txt")]
    line += ["--output", str(tmp_path / "answers.jsonl")]
    assert cli.main([*line, "--exit", "patience=1"]) == 0
    told = capsys.readouterr().err
    assert told.count("model does not say that it was trained with --exits") == 1
    assert cli.main(line) == 0
    assert "--exits" not in capsys.readouterr().err
    albert = albert_jax.load(model)
    for _ in range(2):
        albert.predict(["the list is open"], exit="patience=1")
    told = capsys.readouterr().err
    assert told.count("model does not say that it was trained with exits") == 1


@pytest.mark.parametrize("text", ["patience", "patience=0", "confidence=1.5", "3", "patience=x"])
def test_a_rule_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="must be patience=N, a number of passes, or confidence=P"):
        ExitRule.of(text)


def test_a_text_in_windows_has_the_passes_of_the_window_that_took_most():
    row = Features(0, [2], [0])
    read = [dataclasses.replace(row, extra={"window_tokens": n}) for n in (6, 2)]
    outputs = [
        {"logits": np.float32([1, 0]), "passes": np.int32(2)},
        {"logits": np.float32([0, 1]), "passes": np.int32(3)},
    ]
    _, (found,) = pooled(read, outputs)
    assert found["passes"] == 3
    np.testing.assert_allclose(found["logits"], [0.75, 0.25])


def test_only_classes_of_one_shared_layer_have_exits(tmp_path):
    data = toy_data(tmp_path / "data")
    grouped = dataclasses.replace(TINY, num_hidden_layers=2, num_hidden_groups=2)
    base = random_model(tmp_path / "base", grouped)
    with pytest.raises(UserError, match=r"exits is for .* one shared layer, and .* has 2"):
        finetune.finetune(toy_config(base, data, tmp_path / "run", exits=True))
