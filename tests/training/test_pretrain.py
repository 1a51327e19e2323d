# SPDX-License-Identifier: Apache-2.0
"""Pretraining whole: from a store to a model directory, killed, resumed, spread, and misused."""

import contextlib
import dataclasses
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.checkpoint.integrity import seal
from albert_jax.checkpoint.manager import Checkpointer
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.checkpoint.model_export import export_model
from albert_jax.cli.main import main
from albert_jax.config.recipes import load_recipe
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import TrainConfig
from albert_jax.data.examples import PretrainingSource
from albert_jax.data.loader import batch_at
from albert_jax.data.pretraining import LABELS_SEEN, open_data
from albert_jax.data.tfrecord import read_examples, write_records
from albert_jax.distributed import multihost
from albert_jax.distributed.placement import local_devices, make_placement
from albert_jax.models.lowering import Lowering
from albert_jax.perf.dry_run import describe_plan
from albert_jax.training.continuations import run_record
from albert_jax.training.course import Course
from albert_jax.training.metrics import entries_of, read_metrics
from albert_jax.training.pretrain import _require_own_model, export, pretrain
from albert_jax.training.step import make_pretrain_step
from albert_jax.utils.errors import UserError
from tests.helpers.disks import FULL, writes_fail
from tests.helpers.paths import DATA, REPOSITORY
from tests.helpers.pretraining_runs import (
    TINY,
    VOCABULARY,
    last_checkpoint,
    make_store,
    random_model,
    run_with_kills,
    tiny_config,
    write_corpus,
)
from tests.helpers.warm import WarmProcess, command_line

pytestmark = pytest.mark.usefixtures("steps_made_once")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """The work directory of a finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    pretrain(tiny_config(store, workdir))
    return workdir


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """The work directory of a run of one step, at learning rate 0, that was started in another
    directory and whose store is gone."""
    folder = tmp_path_factory.mktemp("one")
    store = make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pretrain(tiny_config(Path("store"), Path("run"), steps=1))
    shutil.rmtree(store)
    return folder / "run"


def leaves(workdir: Path) -> dict:
    return last_checkpoint(workdir)["leaves"]


# -------------------------------------------------------------------------------------------- whole


def test_a_run_leaves_a_model_that_fills_in_a_mask(finished, capfd):
    albert = albert_jax.load(finished / "model")
    answers = albert.fill_mask("the [MASK] of a string.", top_k=3)
    assert [set(a) for a in answers] == [{"score", "token", "token_str", "sequence"}] * 3
    assert answers[0]["score"] >= answers[1]["score"] >= answers[2]["score"] > 0
    assert answers[0]["sequence"].startswith("the ")
    assert albert.config == TINY
    for name in ("loss.png", "config.json", "metrics.jsonl", "tensorboard"):
        assert (finished / name).exists()
    manifest = json.loads((finished / "model" / "manifest.json").read_text())
    assert manifest["provenance"]["step"] == 6
    assert manifest["provenance"]["held_out"]["masked_lm_loss"] > 0


def test_the_log_has_what_a_person_asks_of_a_run(finished):
    entries = list(read_metrics(finished / "metrics.jsonl"))
    train = [e for e in entries if e["kind"] == "train"][-1]
    wanted = {"grad_norm", "learning_rate", "sequences_per_second", "tokens_per_second", "passes"}
    wanted |= {f"trust_ratio_{which}" for which in ("min", "median", "max")}
    wanted |= {
        f"{of}_{what}" for of in ("masked_lm", "sentence_order") for what in ("loss", "accuracy")
    }
    assert wanted <= set(train)
    assert [e["step"] for e in entries if e["kind"] == "eval"] == [6]
    # The step's own rate: 0 at the first, a hundredth of the peak at none.
    rates = [e["learning_rate"] for e in entries if e["kind"] == "train"]
    np.testing.assert_allclose(rates[-1], 0.01 * (1 - 5 / 6), rtol=1e-5)


def test_export_writes_the_model_that_the_run_ended_with(finished, tmp_path):
    export(finished, tmp_path / "model")
    ours, theirs = (albert_jax.load(d).params for d in (tmp_path / "model", finished / "model"))
    np.testing.assert_array_equal(ours["pooler"]["kernel"], theirs["pooler"]["kernel"])


def test_an_export_replaces_an_older_one_of_its_run_and_no_other_model(
    finished, store, tmp_path, monkeypatch
):
    """Not that of another run, though it differs in the learning rate or the folder alone."""
    dest, copy = tmp_path / "dest", tmp_path / "copy"
    for _ in range(2):  # from the checkpoint, and from the model of the run's end
        export(finished, dest)
        export(finished, finished / "model")
    other = tiny_config(store, tmp_path / "other", steps=1)
    optimizer = dataclasses.replace(other.optimizer, learning_rate=0.5)
    pretrain(dataclasses.replace(other, optimizer=optimizer))
    before = (dest / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=rf"dest is a model that .*pretrain made in {finished}, wh"):
        export(tmp_path / "other", dest)
    assert (dest / "manifest.json").read_bytes() == before
    albert_jax.convert(dest, copy)
    with pytest.raises(UserError, match=r"copy is a model that albert-jax convert made of .*dest,"):
        export(finished, copy)
    for write in (export, albert_jax.convert):
        with pytest.raises(UserError, match=r"other/model is where the run .* writes its model"):
            write(finished if write is export else dest, tmp_path / "other" / "model")
    shutil.rmtree(finished / "model")  # as of a run that has not ended
    with pytest.raises(UserError, match=r"model is where the run .* writes its model"):
        export(tmp_path / "other", finished / "model")
    export(finished, finished / "model")


def test_an_export_knows_its_run_by_another_name_of_the_work_directory_and_of_its_first_weights(
    finished, store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first = shutil.copytree(finished / "model", tmp_path / "first")
    config = tiny_config(store, Path("run"), steps=2)
    pretrain(dataclasses.replace(config, init_from=str(first)))
    export("run", "dest")
    train = dataclasses.replace(config.train, steps=3)
    moved = str(shutil.move(first, tmp_path / "moved"))
    again = dataclasses.replace(config, train=train, init_from=moved, workdir=f"{tmp_path}/run/")
    pretrain(again, continue_with=True)
    export("run", "dest")
    shutil.rmtree("run/checkpoints")
    other = pretrain(tiny_config(store, tmp_path / "other", steps=1)).model
    with pytest.raises(UserError, match=r"model is a model that .* made in .*run/, which would"):
        pretrain(dataclasses.replace(again, init_from=other))
    pretrain(dataclasses.replace(config, init_from=moved))


def test_a_model_beside_a_folder_of_checkpoints_is_no_runs(finished, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    albert_jax.convert(finished / "model", tmp_path / "model")


def test_a_run_that_begins_does_not_replace_the_model_that_another_left(finished, store, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished / "model", workdir / "model")
    told = (
        rf"model is a model that .* made in {finished}, which would be lost; give another workdir"
    )
    with pytest.raises(UserError, match=told):
        pretrain(tiny_config(store, workdir, steps=1))
    assert {path.name for path in workdir.iterdir()} <= {"model", "run.lock"}


def test_a_run_is_the_same_however_its_recipe_writes_a_number(store, tmp_path):
    records = []
    for clip in (1, 1.0, 2.0):
        config = tiny_config(store, tmp_path)
        config = dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, clip_norm=clip)
        )
        course = Course(config, open_data(config, None), Lowering())
        records.append(run_record(course.continuations.identity))
    assert records[0] == records[1] != records[2]


def test_only_process_0_looks_at_the_model_that_is_there(finished, store, tmp_path, monkeypatch):
    """Another host may have its own name for the work directory."""
    workdir = tmp_path / "run"
    shutil.copytree(finished / "model", workdir / "model")
    config = tiny_config(store, workdir)
    course = Course(config, open_data(config, workdir), Lowering())
    run = run_record(course.continuations.identity)
    for known in (None, run):
        with pytest.raises(UserError, match="which would be lost"):
            _require_own_model(config, workdir, known)
    monkeypatch.setattr(multihost, "is_primary", lambda: False)
    for known in (None, run):
        _require_own_model(config, workdir, known)


def test_a_model_in_the_way_is_refused_before_the_data_are_opened(
    finished, store, tmp_path, monkeypatch
):
    text = tmp_path / "text.txt"
    text.write_text("A sentence.\nAnother one.\n\n" * 100)
    own = tmp_path / "own"
    shutil.copytree(finished / "model", tmp_path / "run" / "model")
    pretrain(tiny_config(store, own, steps=1))
    shutil.rmtree(own / "checkpoints")
    pretrain(tiny_config(store, own, steps=2))  # its own, though the checkpoints are gone
    shutil.rmtree(own / "checkpoints")

    def opened(*_):
        raise AssertionError("the data were opened")

    monkeypatch.setattr("albert_jax.training.pretrain.open_data", opened)
    with pytest.raises(UserError, match="which would be lost"):
        pretrain(tiny_config(store, tmp_path / "run"))
    of_text = dataclasses.replace(tiny_config(store, tmp_path / "run"), store=None)
    with pytest.raises(UserError, match="which would be lost"):
        pretrain(dataclasses.replace(of_text, text=(str(text),)))
    with pytest.raises(UserError, match="which would be lost"):
        pretrain(tiny_config(store, own, seed=5))


def test_an_export_is_refused_before_a_checkpoint_is_read(finished, store, tmp_path, monkeypatch):
    dest = tmp_path / "dest"
    other = pretrain(tiny_config(store, tmp_path / "other", steps=1)).model
    shutil.copytree(other, dest)
    monkeypatch.setattr(Checkpointer, "restore", None)
    with pytest.raises(UserError, match=r"dest is a model that .* which would be lost"):
        export(finished, dest)


def test_an_export_in_bfloat16_takes_half_the_room_and_reads_as_float32(finished, tmp_path):
    assert main(["export", str(finished), str(tmp_path / "m"), "--dtype", "bfloat16"]) == 0
    tensors = json.loads((tmp_path / "m" / "manifest.json").read_text())["tensors"]
    assert {entry["dtype"] for entry in tensors.values()} == {"bfloat16"}
    narrow, whole = (albert_jax.load(d).params for d in (tmp_path / "m", finished / "model"))
    kernel = narrow["pooler"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, whole["pooler"]["kernel"], rtol=2**-8)
    assert (kernel != whole["pooler"]["kernel"]).any()


def test_export_needs_neither_the_store_nor_the_place_it_was_started_from(
    one_step, tmp_path, monkeypatch
):
    monkeypatch.chdir("/")
    model = albert_jax.load(export(one_step, tmp_path / "model"))
    assert model.fill_mask("the [MASK] of a string.")
    assert model.tokenizer.sha256 == albert_jax.Tokenizer.load(VOCABULARY).sha256
    run = tmp_path / "run"
    shutil.copytree(one_step, run)
    kept = run / "spiece.model"
    data = bytearray(kept.read_bytes())
    data[data.index(b"\xe2\x96\x81the") + 4] = ord("T")  # a piece: the file can still be read
    kept.write_bytes(data)
    with pytest.raises(UserError, match=r"spiece.model is damaged: its SHA-256"):
        export(run, tmp_path / "again")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "config.json is damaged"),
        ('{"train": {"steps": "x"}}', r"Expected `int`, got `str` - at `\$.train.steps`"),
        ('{"train": {"steps": 0}}', "train.steps 0 must be at least 1"),
        ("[]", "Expected `object`, got `array`"),
    ],
)
def test_a_damaged_config_is_one_sentence_and_the_run_itself_writes_it_anew(
    finished, store, tmp_path, text, told
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "config.json").write_text(text)
    with pytest.raises(UserError, match=told):
        export(workdir, tmp_path / "model")
    pretrain(tiny_config(store, workdir))
    export(workdir, tmp_path / "model")


def test_export_says_what_it_was_given_in_place_of_a_work_directory(finished, tmp_path):
    for given, told in (
        (tmp_path / "nowhere", "nowhere does not exist; give a work directory of albert-jax pre"),
        (finished / "model", "is a model directory already"),
        (tmp_path, "is no work directory of albert-jax pretrain"),
    ):
        with pytest.raises(UserError, match=told):
            export(given, tmp_path / "dest")


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        pretrain(tiny_config(tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_running_a_finished_run_again_changes_nothing(finished, store):
    before = leaves(finished)
    pretrain(tiny_config(store, finished))
    assert leaves(finished) == before


def test_a_run_keeps_one_state_on_the_device(store, tmp_path):
    """The word embeddings and their two moments, and not also those that it began with."""

    def tables(*_):
        gc.collect()
        shape = (TINY.vocab_size, TINY.embedding_size)
        return sum(x.shape == shape for x in jax.live_arrays())

    before, seen = tables(), []
    pretrain(tiny_config(store, tmp_path), on_step=lambda *_: seen.append(tables() - before))
    assert seen[-1] == 3


def test_text_alone_is_enough(tmp_path):
    corpus = tmp_path / "t.txt"
    words = [f"word{i} stands here and number {i * 7} follows it slowly." for i in range(400)]
    corpus.write_text("\n".join(w + ("\n" if i % 9 == 8 else "") for i, w in enumerate(words)))
    config = tiny_config(Path("unused"), tmp_path / "run", steps=2)
    model = dataclasses.replace(TINY, vocab_size=120)
    pretrain(dataclasses.replace(config, store=None, text=(str(corpus),), model=model))
    assert (tmp_path / "run" / "model" / "spiece.model").exists()


def test_tfrecord_shards_train_too(tmp_path):
    records = DATA / "pretraining" / "first50.tfrecord"
    config = tiny_config(records, tmp_path, steps=2)
    model = dataclasses.replace(TINY, max_position_embeddings=128)
    config = dataclasses.replace(
        config,
        model=model,
        examples=dataclasses.replace(
            config.examples, max_seq_length=128, max_predictions_per_seq=20
        ),
        vocab=str(VOCABULARY),
        heldout=str(records),
    )
    pretrain(config)
    assert [e["step"] for e in read_metrics(tmp_path / "metrics.jsonl") if e["kind"] == "eval"] == [
        2
    ]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    for wrong in ("gs://bucket/shards", str(tmp_path / "store")):
        with pytest.raises(
            UserError, match="is no TFRecord file; a run on TFRecord shards is eval"
        ):
            pretrain(dataclasses.replace(config, heldout=wrong, workdir=str(tmp_path / "other")))
    with pytest.raises(UserError, match="carry no vocabulary"):
        pretrain(dataclasses.replace(config, vocab=None, workdir=str(tmp_path / "other")))
    # The records make the run, wherever their file lies.
    moved = tmp_path / "moved.tfrecord"
    shutil.copyfile(records, moved)
    train = dataclasses.replace(config.train, steps=3)
    pretrain(dataclasses.replace(config, store=str(moved), train=train), continue_with=True)
    write_records(moved, reversed(list(read_examples(records))))
    with pytest.raises(UserError, match="another run: records is"):
        pretrain(dataclasses.replace(config, store=str(moved), train=train))


@pytest.mark.parametrize("objective", ["nsp", "none"])
def test_the_second_objective_can_be_another_or_none(store, tmp_path, objective):
    config = tiny_config(store, tmp_path, steps=2)
    pretrain(
        dataclasses.replace(
            config, examples=dataclasses.replace(config.examples, objective=objective)
        )
    )
    entry = next(iter(read_metrics(tmp_path)))  # the work directory's
    assert ("sentence_order_loss" in entry) == (objective == "nsp")


RECIPES = {path.stem: path for path in sorted((REPOSITORY / "configs").glob("*.py"))}


def tiny_recipe(recipe, store, workdir):
    """A recipe's settings with a tiny model; the test is skipped if it is not of pretraining."""
    config = load_recipe(str(recipe))
    if not isinstance(config, PretrainConfig):
        pytest.skip("not a recipe for pretraining")
    tiny = tiny_config(store, workdir, steps=1)
    kept = ("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_act")
    small = {n: value for n, value in dataclasses.asdict(TINY).items() if n not in kept}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **small),
        compute=dataclasses.replace(config.compute, scan_unroll=1),
        examples=dataclasses.replace(config.examples, max_seq_length=32, max_predictions_per_seq=4),
        train=dataclasses.replace(tiny.train, accumulate=min(2, config.train.accumulate)),
        store=str(store),
        text=(),
        init_from=None,
        workdir=str(workdir),
    )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_recipe_makes_a_step_at_a_tiny_size(recipe, store, tmp_path):
    config = tiny_recipe(recipe, store, tmp_path)
    made = make_pretrain_step(config, make_placement("jit", local_devices(1)).lowering)
    batch = batch_at(open_data(config, None).train, 0, config.train.batch_size)
    state = jax.eval_shape(partial(made.random_state, 0))
    after, metrics = jax.eval_shape(made.step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_recipe_trains_at_a_tiny_size(recipe, store, tmp_path):
    assert Path(pretrain(tiny_recipe(recipe, store, tmp_path))).is_dir()


def test_the_plan_says_what_would_be_done_and_trains_nothing(store, tmp_path):
    config = tiny_config(store, tmp_path / "never")
    plan = describe_plan(config)
    assert "parameters" in plan
    assert "examples a pass" in plan
    assert "% [MASK]" in plan
    assert "memory     " in plan
    assert " at least: " in plan
    assert "float32 make here now" in plan
    assert not (tmp_path / "never").exists()


def test_the_plans_memory_is_that_of_the_largest_stage(store, tmp_path):
    def memory(**train):
        plan = describe_plan(tiny_config(store, tmp_path / "never", **train))
        (line,) = [x for x in plan.splitlines() if x.startswith("memory")]
        return line

    assert memory(batch_ramp="8:0.5,512:0.5") == memory(batch_size=512) != memory(batch_size=8)


# ------------------------------------------------------------------------------------- interrupted


SIXTY = pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(4500)])


@pytest.mark.parametrize(
    "kills", [pytest.param(3, marks=[pytest.mark.slow, pytest.mark.timeout(900)]), SIXTY]
)
def test_a_run_killed_anywhere_ends_with_the_bits_of_one_left_alone(store, tmp_path, kills):
    # Dropout is on and each update is made of two micro-batches. "Anywhere" includes start-up,
    # the middle of a step and the middle of a save, as every second step saves.
    steps = 9 * kills // 2
    struck = run_with_kills(store, tmp_path, kills=kills, steps=steps, timeout=4200)
    assert struck >= 3 * kills // 4  # the others came after its end
    alone, killed = (last_checkpoint(tmp_path / name) for name in ("alone", "killed"))
    assert killed["step"] == steps
    assert killed["leaves"] == alone["leaves"]  # parameters, moments, step, key: by their digests
    assert killed["meta"]["position"] == alone["meta"]["position"]
    # What would be drawn next does not depend on what was drawn before.
    config, at = tiny_config(store, tmp_path / "killed"), killed["meta"]["position"]["batch"]
    whole, resumed = (open_data(config, tmp_path).train for _ in range(2))
    drawn = [batch_at(whole, number, 8) for number in range(at + 3)]
    for number in range(at, at + 3):
        batch = batch_at(resumed, number, 8)
        assert all((drawn[number][name] == batch[name]).all() for name in batch)


def command(store, workdir):
    """The words after `albert-jax` for a run of 100 tiny steps."""
    settings = {
        "store": store,
        "workdir": workdir,
        "examples.max-seq-length": 32,
        "examples.max-predictions-per-seq": 4,
        "train.batch-size": 8,
        "train.log-every": 1,
        "train.eval-every": 0,
        "train.save-every": 1000,
        "train.steps": 100,
        "train.devices": 1,
    }
    settings |= {
        f"model.{name.replace('_', '-')}": value for name, value in dataclasses.asdict(TINY).items()
    }
    recipe = str(REPOSITORY / "configs/python_docs.py")
    return ["pretrain", recipe, *(f"--{name}={value}" for name, value in settings.items())]


def start(store, workdir):
    """Such a run in a process of its own, from before Python's start on."""
    return subprocess.Popen(
        [sys.executable, "-m", "albert_jax", *command(store, workdir)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def start_warm(store, workdir):
    """The same from where Python has imported all."""
    return WarmProcess(command_line, *command(store, workdir))


def finish(process):
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    return stderr


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory):
    """The work directory of such a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    assert main(command(store, workdir)) == 0
    return workdir


@pytest.mark.parametrize(
    "name",
    ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))],
)
def test_a_signal_saves_exits_75_and_the_same_command_goes_on_to_the_same_bits(
    store, alone, tmp_path, name
):
    workdir = tmp_path / "run"
    process = start_warm(store, workdir)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(entries_of(workdir / "metrics.jsonl")) > 20:
            break
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert f"stopped by {name} after step" in stderr.splitlines()[-1]
    step = last_checkpoint(workdir)["step"]
    assert 20 < step < 100
    assert f"resumed at step {step}, next batch {step}" in finish(start_warm(store, workdir))
    assert leaves(workdir) == leaves(alone)


@pytest.mark.slow
def test_a_signal_while_a_run_starts_exits_75_too(store, alone, tmp_path):
    # While Python starts and imports, opens the data, restores, compiles: within two seconds.
    for pause in (0.3, 1.0, 2.0, 3.0, 4.0, 6.0):
        process = start(store, tmp_path / "run")
        time.sleep(pause)
        if process.poll() is not None:  # it was faster than this
            process.communicate()
            break
        since = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
        if process.returncode == 0:  # or just as fast
            break
        assert process.returncode == 75, (pause, stderr)
        assert "stopped by SIGTERM" in stderr.splitlines()[-1]
        assert "Traceback" not in stderr
        assert time.monotonic() - since < 15
    finish(start(store, tmp_path / "run"))
    assert leaves(tmp_path / "run") == leaves(alone)


def without_dropout(store, workdir, **settings):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tiny_config(store, workdir, **settings)
    return dataclasses.replace(config, model=dataclasses.replace(TINY, **none))


def _stop_at_once(signals):
    signals.requested = "SIGTERM"
    return signals


@pytest.fixture(scope="module")
def of_four_devices(store, tmp_path_factory):
    """The work directories of a run on four devices that stopped after the first of six steps, as
    by a signal, and of one that nothing stopped."""
    folder = tmp_path_factory.mktemp("four")
    stopped, whole = folder / "stopped", folder / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("albert_jax.training.guards.StopSignals.__enter__", _stop_at_once)
        with pytest.raises(albert_jax.TryAgain):
            pretrain(without_dropout(store, stopped, devices=4))
    assert last_checkpoint(stopped)["step"] == 1
    pretrain(without_dropout(store, whole, devices=4))
    return stopped, whole


@pytest.mark.parametrize(
    ("devices", "mode"),
    [
        (1, "jit"),
        (2, "pmap"),
        pytest.param(2, "jit", marks=pytest.mark.slow),
        pytest.param(1, "pmap", marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_on_another_number_of_devices(
    store, of_four_devices, tmp_path, mode, devices
):
    stopped, whole = of_four_devices
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    pretrain(without_dropout(store, workdir, devices=devices, mode=mode))
    ours, theirs = (albert_jax.load(d / "model").params for d in (workdir, whole))
    # Sums in another order, magnified by six LAMB steps.
    for name in ("pooler", "predictions"):
        for leaf in ours[name]:
            if not isinstance(ours[name][leaf], dict):
                np.testing.assert_allclose(
                    ours[name][leaf], theirs[name][leaf], rtol=1e-4, atol=1e-6
                )


def many_epochs(store, workdir):
    return tiny_config(store, workdir, steps=12, batch_size=32, save_every=10)


@pytest.fixture(scope="module")
def of_many_epochs(tmp_path_factory):
    """A store of four documents, and the work directory of a run of many passes over it."""
    folder = tmp_path_factory.mktemp("epochs")
    store = make_store(folder, documents=4)
    pretrain(many_epochs(store, folder / "run"))
    return store, folder / "run"


@pytest.mark.parametrize("known", [True, False], ids=["sizes kept", "as 0.1.0 wrote"])
def test_a_run_that_resumes_plans_only_the_epochs_that_it_draws(
    of_many_epochs, tmp_path, monkeypatch, known
):
    store, ended_run = of_many_epochs
    whole = leaves(ended_run)
    shutil.copytree(ended_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    config = many_epochs(store, tmp_path / "run")
    if not known:
        (file,) = (tmp_path / "run" / "checkpoints" / "10").rglob("meta/metadata")
        document = json.loads(file.read_bytes())
        del document["crc32c"], document["meta"]["epochs"]
        file.write_text(json.dumps(seal(document)))
    sizes = last_checkpoint(tmp_path / "run")["meta"].get("epochs", [])
    planned, plan = set(), PretrainingSource._shard_plans

    def noted(source, epoch):
        planned.add(epoch)
        return plan(source, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainingSource, "_shard_plans", noted)
        pretrain(config)
    assert leaves(tmp_path / "run") == whole
    source = open_data(config, None).train
    seen, _ = source.epoch_of(LABELS_SEEN)  # what the announcement draws
    ended, _ = source.epoch_of(10 * 32)
    between = set(range(seen + 1, ended))
    assert between
    assert len(sizes) == (ended if known else 0)
    assert ended in planned
    assert planned & between == (set() if known else between)


def test_a_damaged_checkpoint_is_passed_over_aloud_and_the_bits_come_out_the_same(
    finished, store, tmp_path, capfd
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    newest = max(
        (p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()),
        key=lambda p: int(p.name),
    )
    largest = max(
        (p for p in newest.rglob("*") if p.is_file() and "meta" not in p.parts),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    capfd.readouterr()
    pretrain(tiny_config(store, workdir))
    stderr = capfd.readouterr().err
    assert f"checkpoint {newest.name} is damaged" in stderr
    assert "falling back to" in stderr
    assert leaves(workdir) == leaves(finished)


# ---------------------------------------------------------------------------------------- init_from


def test_another_depth_starts_from_the_same_shared_layer(finished, store, tmp_path, capfd):
    config = tiny_config(store, tmp_path, steps=1)
    deeper = dataclasses.replace(TINY, num_hidden_layers=3)
    config = dataclasses.replace(config, model=deeper, init_from=str(finished / "model"))
    pretrain(config)
    # Step 0 has learning rate 0, so after one step the parameters are those started from.
    ours, theirs = (albert_jax.load(d / "model") for d in (tmp_path, finished))
    np.testing.assert_array_equal(
        ours.params["pooler"]["kernel"], theirs.params["pooler"]["kernel"]
    )
    assert ours.config.num_hidden_layers == 3
    assert "the weights started from, held out" in capfd.readouterr().err
    # The model may be moved, but not be another one.
    moved = tmp_path / "moved"
    shutil.copytree(finished / "model", moved)
    pretrain(dataclasses.replace(config, init_from=str(moved)))
    other = pretrain(tiny_config(store, tmp_path / "other", steps=1)).model
    with pytest.raises(UserError, match=r"run: init_from.name is .* there and .*init_from.weights"):
        pretrain(dataclasses.replace(config, init_from=other))


def test_settings_of_random_weights_are_said_to_have_no_effect(finished, store, tmp_path):
    config = dataclasses.replace(tiny_config(store, tmp_path), kernel_init="fan_in")
    told = "kernel_init 'fan_in' has no effect beside init_from, whose weights are not random"
    assert told not in describe_plan(config)
    assert told in describe_plan(dataclasses.replace(config, init_from=str(finished / "model")))


def test_text_is_cut_by_the_vocabulary_of_the_model_started_from(finished, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("A sentence of words.\nAnother of them.\n\n" * 60)
    config = tiny_config(tmp_path / "unused", tmp_path / "run", steps=1)
    config = dataclasses.replace(
        config, store=None, text=(str(text),), init_from=str(finished / "model")
    )
    pretrain(config)
    ours, theirs = (albert_jax.load(d / "model") for d in (tmp_path / "run", finished))
    assert ours.tokenizer.sha256 == theirs.tokenizer.sha256
    assert not (tmp_path / "run" / "vocabulary").exists()


def test_a_part_that_the_model_lacks_is_new(finished, store, tmp_path, capfd):
    bare = load_model(finished / "model")
    params = {k: v for k, v in bare.params.items() if k not in ("pooler", "seq_relationship")}
    export_model(
        tmp_path / "bare",
        params=params,
        config=bare.config,
        provenance={},
        vocab=finished / "model" / "spiece.model",
        tokenizer=bare.manifest["tokenizer"],
    )
    config = tiny_config(store, tmp_path / "run", steps=1)
    pretrain(dataclasses.replace(config, model=bare.config, init_from=str(tmp_path / "bare")))
    assert "bare; new pooler, seq_relationship" in capfd.readouterr().err
    ours = load_model(tmp_path / "run" / "model").params
    np.testing.assert_array_equal(
        ours["predictions"]["transform"]["kernel"], params["predictions"]["transform"]["kernel"]
    )
    assert ours["pooler"]["kernel"].std() > 0


def test_weights_that_do_not_fit_are_refused_by_what_differs(finished, store, tmp_path):
    config = tiny_config(store, tmp_path)
    wider = dataclasses.replace(TINY, intermediate_size=64)
    with pytest.raises(UserError, match="intermediate_size is 32 there and 64 here"):
        pretrain(dataclasses.replace(config, model=wider, init_from=str(finished / "model")))


# ------------------------------------------------------------------------------------------ misuse


def test_mistakes_are_one_line_and_status_2(capfd, store, finished, tmp_path):
    def refused(*arguments):
        assert main(["pretrain", *map(str, arguments)]) == 2
        stdout, stderr = capfd.readouterr()
        assert stdout == ""
        (line,) = stderr.splitlines()
        assert line.startswith("albert-jax: ")
        return line

    recipe = REPOSITORY / "configs" / "enwiki_cpu.py"
    new = tmp_path / "new"
    assert "no data: give --store" in refused(recipe, "--workdir", new)
    assert "does not exist" in refused(recipe, "--store", tmp_path / "no", "--workdir", new)
    assert "no work directory" in refused(recipe, "--store", store)
    assert "give --model.vocab-size 8000" in refused(
        recipe, "--store", store, "--workdir", new, "--model.vocab-size", "9000"
    )
    assert "use a multiple of 4" in refused(
        recipe, "--store", store, "--workdir", new, "--train.batch-size", "10"
    )
    assert "work directory of another run" in refused(
        recipe, "--store", store, "--workdir", finished
    )


def test_another_vocabulary_than_the_stores_is_refused(store, tmp_path):
    other = tmp_path / "vocabulary"
    lines = (f"some other words number {i} to learn from" for i in range(300))
    albert_jax.train_tokenizer(lines, output=other, vocab_size=60)
    config = dataclasses.replace(tiny_config(store, tmp_path / "run"), vocab=str(other))
    with pytest.raises(UserError, match="made with another vocabulary"):
        pretrain(config)


def test_a_refused_run_leaves_the_vocabulary_of_the_one_before(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    corpus = write_corpus(tmp_path / "corpus.txt")
    other = tmp_path / "vocabulary"
    albert_jax.train_tokenizer([corpus], output=other, vocab_size=36)
    store = tmp_path / "store"
    albert_jax.prepare([corpus], vocab=other, output=store, holdout=0.2, workers=1)
    model = dataclasses.replace(TINY, vocab_size=36)
    with pytest.raises(UserError, match=r"is the work directory of another run: .* vocabulary is"):
        pretrain(dataclasses.replace(tiny_config(store, workdir), model=model))
    export(workdir, tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config,
        lambda config: dataclasses.replace(config, train=dataclasses.replace(config.train, seed=9)),
    ],
    ids=["text", "text and seed"],
)
def test_a_run_on_text_makes_nothing_in_another_runs_work_directory(finished, tmp_path, change):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    config = change(tiny_config(Path("unused"), workdir))
    text = (str(write_corpus(tmp_path / "corpus.txt")),)
    for vocab in (None, str(VOCABULARY)):
        with pytest.raises(
            UserError, match=r"is the work directory of another run: (text|train.seed) is"
        ):
            pretrain(dataclasses.replace(config, store=None, text=text, vocab=vocab))
        after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
        after.pop(workdir / "run.lock", None)
        before.pop(workdir / "run.lock", None)
        assert after == before


def test_two_runs_in_one_work_directory_are_refused(store, tmp_path):
    from albert_jax.checkpoint.manager import lock_workdir

    with lock_workdir(tmp_path), pytest.raises(UserError, match=f"in use by pid {os.getpid()}"):
        pretrain(tiny_config(store, tmp_path))


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_the_work_directory_of_a_fine_tuning_run_is_left_as_it_is(store, tmp_path, finished):
    workdir = tmp_path / "run"
    best = random_model(workdir / "seed-3" / "best", TINY)
    if finished:
        (workdir / "model").symlink_to(best)
    else:
        (workdir / "seed-3" / "checkpoints").mkdir()
    (workdir / "config.json").write_text("the fine-tuning run's")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"of a fine-tuning run; give another workdir"):
        pretrain(tiny_config(store, workdir, steps=1))
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    made = "its model is" if finished else "its command writes the model"
    with pytest.raises(UserError, match=rf"run; {made} .*run/model"):
        export(workdir, tmp_path / "dest")


def test_a_full_disk_ends_the_run_with_one_sentence_and_the_last_good_step(
    store, tmp_path, monkeypatch
):
    real = Checkpointer.save

    def save(self, step, *args, **options):
        self.wait()  # what was begun before still finds room
        with writes_fail(FULL) if step >= 4 else contextlib.nullcontext():
            real(self, step, *args, **options)
            if step >= 4:
                self.wait()

    monkeypatch.setattr(Checkpointer, "save", save)
    with pytest.raises(UserError, match=r"checkpoint 4 NOT saved: disk full, .*; last good step 2"):
        pretrain(tiny_config(store, tmp_path))
    monkeypatch.undo()
    assert last_checkpoint(tmp_path)["step"] == 2
    pretrain(tiny_config(store, tmp_path))
    assert last_checkpoint(tmp_path)["step"] == 6


def test_the_held_out_loss_of_an_untrained_model_is_that_of_a_uniform_guess(one_step):
    (entry,) = [e for e in read_metrics(one_step / "metrics.jsonl") if e["kind"] == "eval"]
    assert abs(entry["masked_lm_loss"] - math.log(8000)) < 0.05
    assert abs(entry["sentence_order_loss"] - math.log(2)) < 0.05


def test_settings_that_cannot_be_are_refused_when_made():
    with pytest.raises(UserError, match="does not divide into"):
        TrainConfig(batch_size=10, accumulate=4)
    with pytest.raises(UserError, match="exceeds"):
        PretrainConfig(model=TINY)
