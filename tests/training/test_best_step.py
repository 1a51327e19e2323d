# SPDX-License-Identifier: Apache-2.0
"""The best step of a fine-tuning run: chosen by any metric or by the dev loss, and not waited for
without end."""

import csv
import dataclasses
import json
import random
import shutil

import jax
import numpy as np
import optax
import pytest

from albert_jax.checkpoint.model_dir import load_model
from albert_jax.cli import main as cli
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import OptimizerConfig, TrainConfig
from albert_jax.inference.finetuned import HeadOutputs, load_fine_tuned
from albert_jax.inference.predict import predict
from albert_jax.tasks import find_task
from albert_jax.tasks.scores import check_metric
from albert_jax.tasks.split_features import features_of
from albert_jax.training import finetune
from albert_jax.training.best_step import BestStep, Patience, mean_loss
from albert_jax.training.finetune_setup import set_up
from albert_jax.training.metrics import read_metrics
from albert_jax.utils.errors import UserError
from tests.helpers.toy_task import FILLERS, toy_config

pytestmark = pytest.mark.usefixtures("steps_made_once")


@pytest.fixture(scope="module")
def noisy(data, tmp_path_factory):
    """The same data with every fifth label of dev wrong, so that a sure model has a large loss."""
    folder = tmp_path_factory.mktemp("noisy")
    shutil.copytree(data, folder, dirs_exist_ok=True)
    rows = [json.loads(line) for line in (data / "dev.jsonl").read_text().splitlines()]
    for row in rows[::5]:
        row["label"] = {"no": "yes", "yes": "no"}[row["label"]]
    (folder / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def evaluations(workdir):
    entries = read_metrics(workdir / "seed-3" / "metrics.jsonl")
    return [entry for entry in entries if entry["kind"] == "eval"]


def keras_stops_at(values, limit):
    """Where Keras' EarlyStopping ends: a counter that each better value sets back to 0."""
    best, waited = -np.inf, 0
    for step, value in enumerate(values, 1):
        best, waited = (value, 0) if value > best else (best, waited + 1)
        if limit and waited >= limit:
            return step
    return None


def test_a_step_that_was_chosen_on_fewer_examples_does_not_stand(base, data, tmp_path):
    """A run that goes on with all of dev, where a few examples were all answered rightly."""
    config = toy_config(base, data, tmp_path, steps=4)
    train = dataclasses.replace(config.train, eval_every=2, eval_examples=1)
    finetune.finetune(dataclasses.replace(config, train=train))
    best = tmp_path / "seed-3" / "best"
    for examples, chosen_by in ((1, json.loads((best / "manifest.json").read_text())), (64, None)):
        of_run = dataclasses.replace(train, eval_examples=examples)
        run = dataclasses.replace(config, train=of_run)
        kept = BestStep(run, set_up(run), None, best, 3)
        wanted = -np.inf if chosen_by is None else chosen_by["provenance"]["chosen_by"]
        assert kept._value == wanted


def test_a_kept_step_is_judged_again_where_other_dev_examples_choose(base, data, tmp_path):
    config = toy_config(base, data, tmp_path, steps=60)
    train = dataclasses.replace(config.train, eval_every=30)
    finetune.finetune(dataclasses.replace(config, train=train))
    best = tmp_path / "seed-3" / "best"
    chosen = json.loads((best / "manifest.json").read_text())["provenance"]
    assert chosen["chosen_by"] > 0.9
    of_run = dataclasses.replace(train, eval_examples=6)
    run = dataclasses.replace(config, train=of_run)
    prepared = set_up(run)
    kept = BestStep(run, prepared, HeadOutputs(prepared.model), best, 3)
    blind = jax.tree.map(np.zeros_like, load_model(best, as_float32=True).params)
    kept.offer(blind, 90, lambda done, of: None)
    assert json.loads((best / "manifest.json").read_text())["provenance"] == chosen


def test_patience_recalls_what_can_be_compared_and_only_the_runs_own_step_stands(
    base, data, tmp_path
):
    config = toy_config(base, data, tmp_path, steps=4)
    train = dataclasses.replace(config.train, eval_every=2, eval_examples=1)
    finetune.finetune(dataclasses.replace(config, train=train))
    found = evaluations(tmp_path)
    for examples, since, steps in ((1, 0, {2, 4}), (1, 2, {4}), (64, 0, set())):
        run = dataclasses.replace(config, train=dataclasses.replace(train, eval_examples=examples))
        kept = BestStep(run, set_up(run), None, tmp_path / "seed-3" / "best", 3)
        kept.recall(found, since)
        assert set(kept.patience._values) == steps
        assert kept._nothing_kept is False
    kept.recall([], 0)  # as of a run that was begun anew, and has not been evaluated yet
    assert kept._nothing_kept is True


def test_a_run_that_ended_early_goes_on_when_it_is_continued(base, data, tmp_path):
    def config(steps):
        still = OptimizerConfig(name="adamw", learning_rate=0.0, warmup_steps=0)
        made = toy_config(base, data, tmp_path, steps=steps, early_stopping=1, optimizer=still)
        return dataclasses.replace(made, train=dataclasses.replace(made.train, eval_every=5))

    (ended,) = finetune.finetune(config(60)).runs
    assert (ended.last.step, ended.ended) == (10, "early_stopping")
    (again,) = finetune.finetune(config(80), continue_with=True).runs
    assert again.last.step == 20  # two more evaluations, as at the beginning
    assert finetune.finetune(config(80)).runs[0].last.step == 20


def test_a_metric_that_the_evaluated_examples_lack_is_refused_before_the_run(
    base, data, tmp_path, monkeypatch
):
    task = find_task("single")
    whole = len(task.learn(task.examples("train", data)).examples("dev", data))
    own = type(task).metrics

    def metrics_of(self, examples, predictions):
        found = own(self, examples, predictions)
        return found | {"rare": 1.0} if len(examples) == whole else found

    monkeypatch.setattr(type(task), "metrics", metrics_of)
    config = toy_config(base, data, tmp_path / "run", metric="rare")
    few = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_examples=3))
    with pytest.raises(UserError, match=r"metric rare has no value on the 3 dev examples of train"):
        set_up(few)
    assert set_up(config).metric == "rare"


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_patience_ends_where_a_counter_of_evaluations_without_a_better_one_does(limit):
    rng = random.Random(limit)
    for _ in range(50):
        values = [rng.randrange(6) / 5 for _ in range(rng.randint(1, 12))]
        patience = Patience(limit)
        ends = []
        for step, value in enumerate(values, 1):
            patience.note(step, value)
            if patience.is_over(step):
                ends.append(step)
        assert next(iter(ends), None) == keras_stops_at(values, limit)


def test_a_rollback_takes_back_what_later_evaluations_found():
    patience = Patience(2)
    for step, value in ((10, 0.9), (20, 0.5), (30, 0.4)):
        patience.note(step, value)
    assert patience.is_over(30)
    assert not patience.is_over(20)  # where a rollback leads back to
    patience.note(20, 1.0)
    patience.note(30, 0.4)
    assert not patience.is_over(30)


@pytest.mark.parametrize("metric", ["loss", pytest.param("macro_f1", marks=pytest.mark.slow)])
def test_a_run_ends_early_with_the_step_that_it_keeps(base, noisy, tmp_path, metric):
    """The step kept and the end are those that the log's own figures say, and a run that is killed
    on its way ends with the same."""
    config = toy_config(base, noisy, tmp_path / "run", steps=400, metric=metric, early_stopping=2)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, eval_every=10, save_every=25, keep=20)
    )
    results = finetune.finetune(config)
    (run,) = results.runs
    found = evaluations(tmp_path / "run")
    steps = [entry["step"] for entry in found]
    sign = -1 if metric == "loss" else 1
    values = [sign * entry[metric] for entry in found]
    assert run.ended == "early_stopping"
    assert keras_stops_at(values, 2) == len(values)
    assert run.last.step == steps[-1] < 400
    assert run.best.step == steps[int(np.argmax(values))] == steps[-3]
    assert run.best.metrics[metric] == found[-3][metric]
    assert (results.metric, results["runs"][0]["ended"]) == (metric, "early_stopping")
    assert finetune.finetune(config)["runs"] == results["runs"]  # run again: it stays ended
    # Killed after the evaluation before the last.
    checkpoints = tmp_path / "run/seed-3/checkpoints"
    for path in checkpoints.glob("[0-9]*"):
        if int(path.name) > steps[-2]:
            shutil.rmtree(path)
    assert finetune.finetune(config)["runs"] == results["runs"]
    assert evaluations(tmp_path / "run") == found


def test_what_dev_said_of_a_step_in_the_loop_is_not_asked_anew_at_the_end(
    base, data, tmp_path, monkeypatch
):
    asked, call = [], HeadOutputs.__call__
    monkeypatch.setattr(
        HeadOutputs, "__call__", lambda *args: (asked.append(len(args[2])), call(*args))[1]
    )
    config = toy_config(base, data, tmp_path / "run", steps=20)
    (run,) = finetune.finetune(config).runs
    assert run.best.step == run.last.step == 20
    assert len(asked) == 1
    # Run again it has only the weights, and both directories have the same.
    assert finetune.finetune(config).runs[0] == run
    assert len(asked) == 2


def test_the_dev_loss_is_optaxs_cross_entropy(base, data, tmp_path):
    config = toy_config(base, data, tmp_path / "run", steps=20, metric="loss")  # as above
    (run,) = finetune.finetune(config).runs
    tuned = load_fine_tuned(tmp_path / "run" / "last")
    dev = features_of(tuned.task, tuned.task.examples("dev", data), tuned.tokenizer, 16)
    logits = np.stack([x["logits"] for x in tuned(dev.rows)])
    labels = np.array([row.targets["labels"] for row in dev.rows])
    wanted = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    assert run.last.metrics["loss"] == pytest.approx(float(wanted), abs=1e-6)


def test_the_loss_of_words_leaves_out_those_without_a_label_and_of_scores_is_squared():
    rng = np.random.default_rng(0)
    row = lambda labels: type("Row", (), {"targets": {"labels": np.array(labels)}})  # noqa: E731
    outputs = [{"logits": rng.normal(size=(4, 3))}, {"logits": rng.normal(size=(2, 3))}]
    rows = [row([-100, 2, 0, -100]), row([-100, 1])]
    logits = np.stack([outputs[0]["logits"][1], outputs[0]["logits"][2], outputs[1]["logits"][1]])
    wanted = optax.losses.softmax_cross_entropy_with_integer_labels(logits, np.array([2, 0, 1]))
    found = mean_loss("token_classification", rows, outputs)
    assert found == pytest.approx(float(wanted.mean()), abs=1e-6)
    scores = [{"logits": np.array([2.0])}, {"logits": np.array([0.5])}]
    assert mean_loss("regression", [row(1.0), row(2.0)], scores) == (1 + 1.5**2) / 2


def moderated(count, seed):
    """Yield rows of three unequal labels. Of the texts with "string" four in ten are "off topic",
    so that a model which weighs all errors alike does well to pass over that label."""
    rng = random.Random(seed)
    for number in range(count):
        label = rng.choices(("good", "bad", "off topic"), (70, 20, 10))[0]
        word = {"good": "open", "bad": "file", "off topic": "string"}[label]
        if label == "good" and rng.random() < 0.2:
            word = "string"
        words = rng.choices(FILLERS, k=rng.randint(2, 6))
        words.insert(rng.randrange(len(words)), word)
        yield number, " ".join(words), label


@pytest.mark.slow
def test_class_weights_find_a_rare_label_in_a_file_of_odd_columns(base, tmp_path):
    """Its macro F1 beside that of the run without weights, and by hand from the answers."""
    for split, count in (("train", 600), ("dev", 300)):
        with open(tmp_path / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["Row no.", "What did you think?", "Verdict (moderator)"])
            writer.writerows(moderated(count, split))
    found = {}
    for name, weights in (("plain", ()), ("weighted", ("balanced",))):
        config = toy_config(
            base,
            tmp_path,
            tmp_path / name,
            steps=120,
            texts=("What did you think?",),
            label="Verdict (moderator)",
            class_weights=weights,
            metric="macro_f1",
            early_stopping=4,
            optimizer=OptimizerConfig(name="adamw", learning_rate=0.002, warmup_steps=5),
        )
        (run,) = finetune.finetune(config).runs
        found[name] = run.best.metrics["macro_f1"]
    assert found["weighted"] > found["plain"] + 0.1
    inputs = [{"What did you think?": text} for _, text, _ in moderated(300, "dev")]
    answers = [x.prediction for x in predict(tmp_path / "weighted" / "model", inputs)]
    golds = [label for *_, label in moderated(300, "dev")]
    scores = []
    for label in ("good", "bad", "off topic"):
        right = sum(a == g == label for a, g in zip(answers, golds, strict=True))
        scores.append(2 * right / (answers.count(label) + golds.count(label)))
    assert found["weighted"] == pytest.approx(sum(scores) / 3)


def test_a_metric_that_constant_answers_lack_may_choose_the_step_too():
    """As SQuAD 2.0's scores at the best threshold do in the original."""
    constant = {"exact": 50.0, "f1": 50.0, "total": 2}
    check_metric(find_task("squad2"), "best_f1", constant)
    for metric in ("best_f1_thresh", "total", "loss"):
        with pytest.raises(UserError, match="give exact, f1, best_exact, best_f1"):
            check_metric(find_task("squad2"), metric, constant)
    with pytest.raises(UserError, match="give exact_match"):
        check_metric(find_task("squad1"), "best_f1", {"exact_match": 50.0})


def test_less_of_a_loss_and_more_of_anything_else_is_better(base, data, tmp_path):
    with pytest.raises(UserError, match="'f1' is none of single's; give accuracy, macro_f1, loss"):
        finetune.finetune(toy_config(base, data, tmp_path / "run", metric="f1"))
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(UserError, match="eval_every 0 makes none before the end"):
        FinetuneConfig(early_stopping=2, train=TrainConfig(eval_every=0))
    line = ["finetune", "--task", "single", "--early-stopping", "-1", "--model", str(base)]
    assert cli.main([*line, "--data", str(data), "--workdir", str(tmp_path / "run")]) == 2
