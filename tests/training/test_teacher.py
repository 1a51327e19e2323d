# SPDX-License-Identifier: Apache-2.0
"""Runs that learn from a larger model, and runs whose weights are averaged."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.checkpoint.model_export import export_model
from albert_jax.config.manifests import settings_in
from albert_jax.config.run import FinetuneConfig
from albert_jax.inference.predict import predict
from albert_jax.training import finetune
from albert_jax.training.finetune_setup import set_up
from albert_jax.training.optimizer import averaged_weights
from albert_jax.utils.errors import UserError
from tests.helpers.toy_task import toy_config

pytestmark = pytest.mark.usefixtures("steps_made_once")


@pytest.fixture(scope="module")
def teacher(finished):
    return finished[0] / "model"


@pytest.fixture(scope="module")
def mislabelled(data, tmp_path_factory):
    """The same data with the training labels swapped: what is learnt right is the teacher's."""
    folder = tmp_path_factory.mktemp("mislabelled")
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    rows = [row | {"label": {"no": "yes", "yes": "no"}[row["label"]]} for row in rows]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "dev.jsonl").write_text((data / "dev.jsonl").read_text())
    return folder


def test_the_teachers_logits_are_those_it_answers_with(teacher, base, data, tmp_path):
    config = toy_config(base, data, tmp_path / "run", teacher=str(teacher))
    rows = set_up(config).train.rows[:20]
    logits = np.stack([row.targets["teacher_logits"] for row in rows]).astype(np.float64)
    lines = (data / "train.jsonl").read_text().splitlines()[:20]
    answers = predict(teacher, [{"text": json.loads(line)["text"]} for line in lines])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for share, answer in zip(shares, answers, strict=True):
        assert dict(zip(("no", "yes"), share, strict=True)) == pytest.approx(
            answer.probabilities, abs=3e-6
        )


def test_a_run_learns_what_its_teacher_knows_in_place_of_the_labels(
    teacher, base, mislabelled, tmp_path
):
    config = toy_config(
        base, mislabelled, tmp_path / "run", teacher=str(teacher), distill_weight=1.0, pack=32
    )
    (run,) = finetune.finetune(config).runs
    assert run.last.metrics["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": "regression", "label": "score"}, "regression has no classes or choices"),
        ({"labels": ("yes=oui",)}, "has the labels 'no', 'yes', and the training file 'no', 'oui'"),
    ],
)
def test_a_teacher_of_something_else_is_refused(teacher, base, data, tmp_path, changes, told):
    scored = tmp_path / "scored"
    scored.mkdir()
    for split in ("train", "dev"):
        rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
        rows = [json.dumps(row | {"score": len(row["text"])}) for row in rows]
        (scored / f"{split}.jsonl").write_text("\n".join(rows))
    config = toy_config(base, scored, tmp_path / "run", teacher=str(teacher))
    with pytest.raises(UserError, match=told):
        finetune.finetune(dataclasses.replace(config, **changes))


@pytest.mark.slow
def test_a_run_exports_and_judges_the_average_of_its_weights(base, data, tmp_path, monkeypatch):
    states, finish = [], finetune._finish
    monkeypatch.setattr(
        finetune, "_finish", lambda best, state: (states.append(state), finish(best, state))[1]
    )
    config = toy_config(base, data, tmp_path / "run", steps=4, ema=0.999)
    (run,) = finetune.finetune(config).runs
    exported = load_model(tmp_path / "run" / "last")
    assert run.last.metrics == exported.manifest["provenance"]["dev"]
    average = named_leaves(averaged_weights(states[0].opt_state))
    for name, leaf in named_leaves(exported.params).items():
        np.testing.assert_array_equal(leaf, average[name], err_msg=name)
    kernel = "head/output_weights"
    assert np.abs(average[kernel] - named_leaves(states[0].params)[kernel]).max() > 1e-3


def test_a_teachers_labels_may_stand_in_another_order(teacher, base, data, tmp_path):
    """As in a model converted from elsewhere: its logits are put in the order of the task's."""
    model = load_model(teacher)
    turned = {name: np.asarray(x)[::-1] for name, x in model.params["head"].items()}
    export_model(
        tmp_path / "turned",
        params={**model.params, "head": turned},
        config=model.config,
        vocab=model.tokenizer["path"],
        tokenizer=settings_in(model.tokenizer),
        head=dataclasses.replace(model.head, labels=["yes", "no"]),
        provenance={},
    )
    found = [
        set_up(toy_config(base, data, tmp_path / "run", teacher=str(path))).train.rows[:9]
        for path in (teacher, tmp_path / "turned")
    ]
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one.targets["teacher_logits"], two.targets["teacher_logits"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ema": 1.0}, r"ema 1.0 must lie in \[0, 1\)"),
        ({"distill_weight": 1.5}, r"distill_weight 1.5 must lie in \[0, 1\]"),
        ({"temperature": 0.0, "teacher": "x"}, "temperature 0.0 must be more than 0"),
    ],
)
def test_shares_that_are_none_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        FinetuneConfig(**settings)


@pytest.mark.slow
def test_all_settings_together_resume_to_the_same_bits_and_agree_over_devices(
    teacher, base, data, tmp_path
):
    """Under pmap over two devices float32 adds up in another order: 1e-5 after six updates."""

    def last_of(workdir, **train):
        config = toy_config(
            base,
            data,
            workdir,
            teacher=str(teacher),
            class_weights=("yes=3",),
            label_smoothing=0.1,
            lora=2,
            ema=0.5,
            dropout=0.0,
            classifier_dropout=0.0,
        )
        config = dataclasses.replace(
            config,
            train=dataclasses.replace(config.train, steps=6, eval_every=3, save_every=3, **train),
        )
        finetune.finetune(config)
        return config, named_leaves(load_model(workdir / "last").params)

    config, one = last_of(tmp_path / "one")
    _, two = last_of(tmp_path / "two", devices=2, mode="pmap")
    shutil.rmtree(tmp_path / "one/seed-3/checkpoints/6")
    finetune.finetune(config)
    again = named_leaves(load_model(tmp_path / "one" / "last").params)
    for name, leaf in one.items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)
        np.testing.assert_allclose(two[name], leaf, atol=1e-5, err_msg=name)


def test_it_is_said_if_the_teacher_does_not_see_whole_texts(teacher, base, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev"):
        rows = [{"text": "the list is open " * 20, "label": x} for x in ("no", "yes")]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    set_up(toy_config(base, data, tmp_path / "run", teacher=str(teacher)))
    told = "2 of 2 training examples were cut to 16 tokens for the teacher"
    assert told in capsys.readouterr().err
