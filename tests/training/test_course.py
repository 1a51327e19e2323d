# SPDX-License-Identifier: Apache-2.0
"""A run that is continued with other settings: what may change, what is drawn, what is kept."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from albert_jax.checkpoint.manager import LOCK
from albert_jax.cli.info import describe_path, description_table
from albert_jax.cli.main import main
from albert_jax.config.history import (
    HISTORY,
    Continuation,
    read_history,
    stages_of_history,
    write_history,
)
from albert_jax.config.sections import ExamplesConfig, TrainConfig
from albert_jax.data.loader import ExampleSource
from albert_jax.data.pretraining import open_data, pretraining_identity
from albert_jax.models.lowering import Lowering
from albert_jax.training.course import Course
from albert_jax.training.metrics import read_metrics
from albert_jax.training.position import Position
from albert_jax.training.pretrain import export, pretrain
from albert_jax.utils.errors import UserError
from tests.helpers.pretraining_runs import last_checkpoint, make_store, tiny_config

pytestmark = pytest.mark.usefixtures("steps_made_once")


def a_run(store: Path, workdir: Path, *, rate: float = 0.01, **train: object):
    """A run whose learning rate does not depend on the number of steps."""
    config = tiny_config(store, workdir, **train)
    optimizer = dataclasses.replace(
        config.optimizer, schedule="constant", warmup_steps=2, learning_rate=rate
    )
    return dataclasses.replace(config, optimizer=optimizer)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def three_steps(store, tmp_path_factory) -> Path:
    """The work directory of a finished run of three steps."""
    workdir = tmp_path_factory.mktemp("runs") / "three"
    pretrain(a_run(store, workdir, steps=3))
    return workdir


@pytest.fixture
def work(three_steps, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(three_steps, tmp_path / "run", symlinks=True))


def test_more_steps_are_bit_for_bit_those_of_one_longer_run(store, work, tmp_path, capsys):
    pretrain(a_run(store, work, steps=6), continue_with=True)
    pretrain(a_run(store, tmp_path / "whole", steps=6))
    ours, theirs = (last_checkpoint(d) for d in (work, tmp_path / "whole"))
    assert ours["step"] == 6
    assert ours["leaves"] == theirs["leaves"]  # parameters, moments, step, key: by their digests
    assert ours["meta"]["position"]["batch"] == theirs["meta"]["position"]["batch"]
    told = capsys.readouterr().err
    assert "continued with train.steps 3 -> 6; the learning rate goes on at 0.01" in told
    [change] = read_history(work)
    assert (change.step, change.batch) == (3, 3)
    assert (change.before, change.after) == ({"train.steps": 3}, {"train.steps": 6})
    assert change.date[:2] == "20"
    # From now on the run is the longer one: no flag, no second entry.
    before = read_history(work)
    pretrain(a_run(store, work, steps=6))
    assert read_history(work) == before
    description = describe_path(work)
    assert description.history == before
    assert f"step 3, {change.date}  train.steps 3 -> 6" in description_table(description)
    assert describe_path(work / "model").history == before  # a model that was copied knows it too
    assert json.loads(json.dumps(describe_path(tmp_path / "whole"))).get("history") is None


def continued(config, data, *, batch: int, **meta: object) -> Course:
    """The course of a run that continues one of batches of eight, which stands at a batch."""
    earlier = dataclasses.replace(config, train=TrainConfig(steps=batch, batch_size=8))
    position = Position(step=batch, batch=batch).to_meta()
    course = Course(config, data, Lowering(), continue_with=True)
    course.recall({**pretraining_identity(earlier, data), "position": position, **meta})
    return course


def test_another_batch_size_draws_on_behind_the_rows_that_were_drawn(store, tmp_path):
    config = a_run(store, tmp_path, steps=9, batch_size=4)
    data = open_data(config, None)
    course = continued(config, data, batch=3)
    for number, first in ((3, 24), (5, 32)):
        [batch] = course.examples.batches(number, number + 1, threads=0)
        rows = [data.train[index]["input_ids"] for index in range(first, first + 4)]
        np.testing.assert_array_equal(batch["input_ids"], rows)
    # What comes of it is kept for the next start, which needs no flag.
    kept = course.kept(Position(step=5, batch=5))
    again = Course(config, data, Lowering())
    again.recall(
        course.continuations.identity | kept | {"position": Position(step=5, batch=5).to_meta()}
    )
    found = again.continuations
    assert (found.history, found.begun) == (course.continuations.history, None)
    assert [stage.first for stage in again.stages] == [0, 3]


def test_a_continued_run_trains_on_these_rows(store, work, monkeypatch):
    config = a_run(store, work, steps=6, batch_size=4)
    drawn = []

    def caught(run, *_):
        drawn.extend(run.batches(3, 4))
        raise KeyboardInterrupt

    monkeypatch.setattr("albert_jax.training.session.fit", caught)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, continue_with=True)
    train = open_data(config, None).train  # of which three batches of eight were drawn
    rows = [train[index]["input_ids"] for index in range(24, 28)]
    np.testing.assert_array_equal(drawn[0]["input_ids"], rows)


def test_sizes_of_epochs_are_kept_for_rows_of_the_same_length_alone(store, tmp_path):
    sources: dict[ExamplesConfig, ExampleSource] = {}
    for length, known in (("", True), ("16", False)):
        config = a_run(store, tmp_path, steps=9, batch_size=4, length=length)
        data = open_data(config, None)
        sources.clear()

        def train_as(examples, make=data.train_as):
            return sources.setdefault(examples, make(examples))

        data = dataclasses.replace(data, train_as=train_as)
        size = len(data.train_as(config.stages[0].examples))
        continued(config, data, batch=3, epochs=[size, 5])
        assert (sources[config.stages[0].examples].epoch_size(1) == 5) == known


@pytest.mark.slow
def test_batches_and_rate_may_change_in_a_whole_run(store, work):
    pretrain(a_run(store, work, rate=0.02, steps=6, batch_size=4), continue_with=True)
    assert last_checkpoint(work)["meta"]["position"]["batch"] == 6
    entries = [e for e in read_metrics(work / "metrics.jsonl") if e["kind"] == "train"]
    assert [e["step"] for e in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[-1]["learning_rate"] == pytest.approx(0.02)
    changed = {"train.batch_size", "train.steps", "optimizer.learning_rate"}
    assert set(read_history(work)[0].after) == changed


def test_a_run_that_was_killed_right_after_it_was_continued_goes_on_without_the_flag(
    store, work, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    config = a_run(store, work, steps=6)
    with monkeypatch.context() as patch:
        patch.setattr("albert_jax.training.session.fit", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, continue_with=True)
    document = last_checkpoint(work)
    assert (document["step"], document["meta"]["train"]["steps"]) == (3, 6)
    assert document["format_version"] == 2  # 0.1 would pass over the history
    export(work, work / "exported")  # config.json and the checkpoint are of one run
    pretrain(config)
    assert last_checkpoint(work)["step"] == 6
    assert len(read_history(work)) == 1


def times_of(folder: Path) -> dict[Path, int]:
    """When each file was written, but for the lock, which every run takes."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }


def test_a_continued_run_falls_back_to_before_its_continuations(store, work, tmp_path):
    pretrain(a_run(store, work, steps=4), continue_with=True)
    pretrain(a_run(store, work, steps=6), continue_with=True)
    whole, history = last_checkpoint(work), read_history(work)
    for step in (3, 4):  # those that were saved again
        [file] = (work / "checkpoints" / str(step)).rglob("meta/metadata")
        file.write_bytes(b"damaged")
    shutil.rmtree(work / "checkpoints" / "6")
    export(work, tmp_path / "model")
    assert describe_path(tmp_path / "model").history == history
    pretrain(a_run(store, work, steps=6))
    assert last_checkpoint(work)["leaves"] == whole["leaves"]
    assert last_checkpoint(work)["meta"]["history"] == whole["meta"]["history"]
    assert read_history(work) == history


def test_steps_before_another_rate_are_not_made_again_at_it_unasked(store, work, tmp_path):
    pretrain(a_run(store, work, steps=5, rate=0.02), continue_with=True)
    for step in (3, 4, 5):
        [file] = (work / "checkpoints" / str(step)).rglob("meta/metadata")
        file.write_bytes(b"damaged")
    export(work, tmp_path / "model")  # which makes no step
    with pytest.raises(
        UserError, match=r"learning_rate is 0\.01 there and 0\.02 here; .*continue_"
    ):
        pretrain(a_run(store, work, steps=5, rate=0.02))
    pretrain(a_run(store, work, steps=5, rate=0.02), continue_with=True)
    [change] = read_history(work)
    assert change.step < 3  # where the rate really changed


@pytest.mark.parametrize(
    ("flag", "change", "says"),
    [
        (
            False,
            {"train": {"steps": 9}},
            "directory, or continue_with=True to continue it with these",
        ),
        (False, {"train": {"seed": 1}}, "give that run's settings or another work directory$"),
        (True, {"train": {"seed": 1}}, r"train.seed is 12345 in .* and 1 here; give that run's"),
        (True, {"model": {"hidden_act": "relu"}}, "model.hidden_act is 'gelu' in"),
        (True, {"optimizer": {"weight_decay": 0.1}}, "but optimizer.weight_decay is 0.01"),
        (
            True,
            {"train": {"seed": 1, "steps": 9}, "examples": {"ngram": 1}},
            r"but examples.ngram is 3 in .* and 1 here \(also train.seed\)",
        ),
        (False, {"kernel_init": "fan_in"}, "run: kernel_init is 'fixed' there and 'fan_in' here"),
        (True, {"init_from": "mini"}, "but init_from.name is None in .* and 'mini' here"),
        (True, {"train": {"steps": 2}}, "has made 3 steps, as many as train.steps=2 or more"),
        (True, {"optimizer": {"learning_rate": 1.0}}, "as many as train.steps=3 or more; raise"),
    ],
)
def test_what_may_not_change_is_refused_by_name_and_nothing_is_written(
    store, three_steps, flag, change, says
):
    config = a_run(store, three_steps, steps=3)
    config = dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **of) if isinstance(of, dict) else of
            for name, of in change.items()
        },
    )
    before = times_of(three_steps)
    with pytest.raises(UserError, match=says):
        pretrain(config, continue_with=flag)
    assert times_of(three_steps) == before


def test_a_directory_without_a_run_is_refused_before_anything_is_made(store, tmp_path, capsys):
    with pytest.raises(UserError, match="has no checkpoint to continue from; leave out continue"):
        pretrain(a_run(store, tmp_path / "new"), continue_with=True)
    assert not (tmp_path / "new").exists()
    given = ["--store", str(store), "--dry-run", "--continue-with"]
    assert main(["pretrain", *given]) == 2
    assert "leave out --continue-with" in capsys.readouterr().err


def a_change(batch: int, before: dict, after: dict) -> Continuation:
    return Continuation(step=batch, batch=batch, date="2026-11-29", before=before, after=after)


def test_stages_are_those_of_the_settings_that_held(store, tmp_path):
    config = tiny_config(store, tmp_path, steps=20, batch_size=16)
    history = [
        a_change(6, {"train.batch_ramp": "4:0.5,8:0.5", "train.steps": 8}, {"train.steps": 12}),
        a_change(10, {"train.batch_size": 8, "train.steps": 12}, {"train.steps": 20}),
    ]
    stages = stages_of_history(config, history)
    assert [(s.first, s.batch_size) for s in stages] == [(0, 4), (4, 8), (10, 16)]
    assert stages.sequences(20) == 4 * 4 + 6 * 8 + 10 * 16
    assert [s.first for s in stages_of_history(config, [])] == [0]
    # Of a change of the steps alone the stage goes on, with the step that is compiled.
    assert len(stages_of_history(config, [a_change(10, {"train.steps": 10}, {})])) == 1


def test_a_damaged_history_is_one_sentence(tmp_path):
    assert read_history(tmp_path) == []
    write_history(tmp_path, [a_change(1, {"train.steps": 1}, {"train.steps": 2})])
    assert read_history(tmp_path)[0].in_words() == "train.steps 1 -> 2"
    for text, says in (
        ("", "is damaged"),
        ('{"format_version": 1, "history": [{"step": 1}]}', "is damaged"),
        (
            '{"format_version": 1, "history": [{"step": 1, "batch": 1, "date": "", '
            '"before": {"train.steps": 1}, "after": {}}]}',
            r"is damaged \(the change after step 1 has other settings before than after\)",
        ),
        ('{"format_version": 9, "history": []}', "format 9, newer than 1; update albert_jax"),
    ):
        (tmp_path / HISTORY).write_text(text)
        with pytest.raises(UserError, match=says):
            read_history(tmp_path)
    write_history(tmp_path, [])
    assert not (tmp_path / HISTORY).exists()
