# SPDX-License-Identifier: Apache-2.0
"""Texts with several labels: how they are read, what is fitted, and a run from a CSV file to
answers and to transformers and back."""

import dataclasses
import json
import random

import numpy as np
import pytest

from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.inference.evaluate import evaluate
from albert_jax.inference.predict import predict
from albert_jax.tasks import Features, RawExample, find_task
from albert_jax.tasks.metrics import f1
from albert_jax.training import finetune
from albert_jax.utils.errors import UserError
from tests.helpers.toy_task import FILLERS, toy_config, toy_model

TASK = find_task("multi-label")
COLUMNS = dataclasses.replace(TASK, label="rude, threat,spam")


def read(task, folder, name, content, split="train", **options):
    (folder / name).write_text(content, encoding="utf-8")
    return task.examples(split, folder, **options)


def test_labels_are_read_from_a_column_with_semicolons_from_lists_and_from_flags(tmp_path):
    rows = 'text,labels\na,rude; spam\nb,\nc,"spam;rude;spam"\n'
    found = read(TASK, tmp_path, "train.csv", rows)
    assert [x.label for x in found] == [("rude", "spam"), (), ("rude", "spam")]
    assert TASK.learn(found).labels == ("rude", "spam")
    (tmp_path / "lists").mkdir()
    lines = [{"text": "a", "labels": [10, "9"]}, {"text": "b", "labels": []}]
    found = read(TASK, tmp_path / "lists", "train.jsonl", "\n".join(map(json.dumps, lines)))
    assert [x.label for x in found] == [("10", "9"), ()]
    assert TASK.learn(found).labels == ("9", "10")
    (tmp_path / "flags").mkdir()
    rows = "text,threat,rude,spam\na,0,1,1\nb,0,0,0\n"
    found = read(COLUMNS, tmp_path / "flags", "train.csv", rows)
    assert [x.label for x in found] == [("rude", "spam"), ()]
    # A label that no text has is an output all the same; the order is the setting's.
    assert COLUMNS.learn(found).labels == ("rude", "threat", "spam")


def test_flags_are_renamed_without_regard_to_case_and_no_label_is_dropped(tmp_path):
    task = dataclasses.replace(COLUMNS, label="Rude,Threat", renamed=(("rude", "bad"),))
    found = read(task, tmp_path, "train.csv", "text,Rude,Threat\na,1,0\nb,1,1\n")
    learnt = task.learn(found)
    assert learnt.labels == ("bad", "Threat")
    assert [learnt._targets(x.label, x)["label_set"] for x in found] == [[1.0, 0.0], [1.0, 1.0]]
    with pytest.raises(UserError, match="row 2: label 'bad' is unknown; expected rude"):
        task.with_labels(("rude",))._targets(found[0].label, found[0])


def test_a_test_split_may_lack_labels_and_another_may_not(tmp_path):
    assert [x.label for x in read(TASK, tmp_path, "test.csv", "text\na\n", "test")] == [None]
    assert [x.label for x in read(TASK, tmp_path, "test.csv", "text,labels\na,\n", "test")] == [
        None
    ]
    with pytest.raises(UserError, match="lacks the column 'labels'"):
        read(TASK, tmp_path, "train.csv", "text\na\n")


@pytest.mark.parametrize(
    ("task", "rows", "told"),
    [
        (COLUMNS, "text,rude,threat,spam\na,0,1,2\n", "row 2: 'spam' is \"2\"; expected 0 or 1"),
        (COLUMNS, "text,rude,threat\na,0,1\n", "lacks the column 'spam'"),
        (TASK.with_labels(("rude",)), "text,labels\na,rude;spam\n", "labels 'spam' is unknown"),
    ],
)
def test_what_is_no_label_is_one_error_with_its_row(tmp_path, task, rows, told):
    with pytest.raises(UserError, match=told):
        read(task, tmp_path, "train.csv", rows)


@pytest.mark.parametrize("row", ["a,0,,1", "a,0,-1,1"])
def test_a_flag_that_cannot_be_read_is_no_label_where_none_is_needed(tmp_path, row):
    """-1 is in the test labels of Kaggle's toxic comments."""
    path = tmp_path / "test.csv"
    path.write_text(f"text,rude,threat,spam\n{row}\nb,1,0,0\n")
    found = COLUMNS.examples("test", tmp_path, needs_labels=False)
    assert [example.label for example in found] == [None, ("rude",)]
    with pytest.raises(UserError, match=r"row 2: 'threat' is .*; expected 0 or 1"):
        COLUMNS.examples("test", tmp_path)


def test_thresholds_have_the_best_f1_of_each_label():
    task = TASK.with_labels(("a", "b"))
    rng = np.random.default_rng(3)
    golds = [tuple(x for x in "ab" if rng.random() < 0.3) for _ in range(40)]
    examples = [RawExample(str(i), ("x",), gold) for i, gold in enumerate(golds)]
    features = [Features(i, [2, 3], [0, 0]) for i in range(40)]
    logits = rng.normal(-2, 1, (40, 2))
    logits[[i for i, gold in enumerate(golds) if "a" in gold], 0] += 1
    outputs = [{"logits": row} for row in logits.astype(np.float32)]
    fitted = task.fitted(examples, features, outputs)
    answers = fitted.predictions(examples, features, outputs)
    shares = 1 / (1 + np.exp(-logits))
    for at, label in enumerate("ab"):
        has = [label in gold for gold in golds]
        found = f1(has, [label in answers[str(i)] for i in range(40)], True)
        assert found == max(
            f1(has, (shares[:, at] >= t).tolist(), True) for t in np.linspace(0, 1, 2000)
        )
    halves = task.predictions(examples, features, outputs)
    assert (
        task.metrics(examples, halves)["macro_f1"] < fitted.metrics(examples, answers)["macro_f1"]
    )


def labelled(count, seed):
    """Yield (text, labels): open means A, list means B, a text has both, one or none."""
    rng = random.Random(seed)
    for _ in range(count):
        labels = [label for label in "AB" if rng.random() < 0.4]
        words = rng.choices(FILLERS, k=rng.randint(2, 6))
        for label in labels:
            words.insert(rng.randrange(len(words)), {"A": "open", "B": "list"}[label])
        yield " ".join(words), labels


def test_a_run_learns_several_labels_and_its_model_answers_with_them(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 256), ("dev", 64)):
        rows = [f"{text},{';'.join(labels)}" for text, labels in labelled(count, split)]
        (data / f"{split}.csv").write_text("\n".join(["words,tags", *rows]) + "\n")
    config = toy_config(
        toy_model(tmp_path / "base"),
        data,
        tmp_path / "run",
        task="multi-label",
        texts=("words",),
        label="tags",
        thresholds="fit",
        pack=32,
    )
    (run,) = finetune.finetune(config).runs
    assert run.best.metrics["micro_f1"] > 0.9
    model = tmp_path / "run" / "model"
    settings = load_model(model).head.settings
    assert len(settings.thresholds) == 2
    assert evaluate(None, model, data, output=tmp_path / "out")["metrics"] == run.best.metrics
    answers = list(predict(model, [{"words": "the open list"}, {"words": "the value"}]))
    assert [answer.prediction for answer in answers] == [["A", "B"], []]
    for answer in answers:
        shares = zip("AB", settings.thresholds, strict=True)
        assert answer.prediction == [x for x, t in shares if answer.probabilities[x] >= t]
    # transformers has no place for thresholds, texts and the task's name; a key of ours keeps them.
    convert(model, tmp_path / "hf", to="hf")
    stored = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert stored["problem_type"] == "multi_label_classification"
    assert stored["architectures"] == ["AlbertForSequenceClassification"]
    convert(tmp_path / "hf", tmp_path / "back")
    head = load_model(tmp_path / "back").head
    assert (head.kind, head.labels) == ("multi_label", ["A", "B"])
    assert head.settings == settings
    back = list(predict(tmp_path / "back", [{"words": "the open list"}]))
    assert back[0].probabilities == pytest.approx(answers[0].probabilities, abs=1e-5)
