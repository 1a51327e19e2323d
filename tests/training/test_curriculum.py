# SPDX-License-Identifier: Apache-2.0
"""Runs whose depth, length, batch size, masking and loss change on the way."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.config.sections import OptimizerConfig
from albert_jax.data.loader import batch_at
from albert_jax.data.pretraining import open_data
from albert_jax.distributed.placement import local_devices, make_placement
from albert_jax.models.flops import run_flops, stage_flops, train_flops_per_sequence
from albert_jax.models.lowering import Lowering
from albert_jax.perf.dry_run import _largest
from albert_jax.training.heldout import evaluator
from albert_jax.training.memory import out_of_memory_advice
from albert_jax.training.metrics import read_metrics
from albert_jax.training.optimizer import learning_rate_preset
from albert_jax.training.position import Position
from albert_jax.training.pretrain import pretrain
from albert_jax.training.pretrain_report import run_plan
from albert_jax.training.step import StagedSteps
from albert_jax.utils.errors import UserError
from tests.helpers.paths import DATA
from tests.helpers.pretraining_runs import VOCABULARY, make_store, tiny_config

pytestmark = pytest.mark.usefixtures("steps_made_once")

SCHEDULES = {
    "depth": "1:0.5,2:0.5",
    "length": "16:0.25,32:0.75",
    "batch_ramp": "4:0.75,8:0.25",
    "masking": "0.3:0.25,0.15:0.75",
    "sop_weight": "0.5:0.5,1:0.5",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"))


def test_rate_plan_and_memory_go_by_the_batches_that_a_run_has(store, tmp_path):
    config = tiny_config(store, tmp_path, batch_size=64, batch_ramp="4:0.5,8:0.5")
    optimizer = OptimizerConfig(name="lamb", warmup_steps=0, schedule="constant")
    config = replace(config, optimizer=optimizer)
    usual = learning_rate_preset("lamb", 8)
    assert f"peak learning rate {usual:.4g}" in run_plan(config, None)
    made = StagedSteps(config, config.stages, Lowering("cpu")).at(0)
    assert float(made.schedule(5)) == pytest.approx(usual)
    # Stages of as many tokens and passes: the longest rows have the largest attention.
    long = replace(config.train, batch_ramp="16:0.5,8:0.5", length="16:0.5,32:0.5")
    largest = _largest(replace(config, train=long))
    assert (largest.train.batch_size, largest.examples.max_seq_length) == (8, 32)


def staged_config(store, workdir, **train):
    config = tiny_config(store, workdir, steps=8)
    settings = {"log_every": 1, "save_every": 1, "keep": 9, "eval_every": 4, **SCHEDULES, **train}
    model = replace(config.model, num_hidden_layers=2)
    return replace(config, model=model, train=replace(config.train, **settings))


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "staged"
    pretrain(staged_config(store, workdir))
    return workdir


def entries(workdir, kind):
    return [e for e in read_metrics(workdir / "metrics.jsonl") if e["kind"] == kind]


def leaves(workdir):
    (document,) = (workdir / "checkpoints" / "8").rglob("meta/metadata")
    return json.loads(document.read_bytes())["leaves"]


@pytest.mark.parametrize("kept", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_resumed_in_any_stage_ends_with_the_same_bits(store, finished, tmp_path, kept):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        if folder.name.isdecimal() and int(folder.name) > kept:
            shutil.rmtree(folder)
    pretrain(staged_config(store, tmp_path / "run"))
    assert leaves(tmp_path / "run") == leaves(finished)
    again, once = (
        [(e["step"], e["loss"], e["flops"]) for e in entries(workdir, "train")]
        for workdir in (tmp_path / "run", finished)
    )
    assert again == once


def test_the_schedule_is_in_the_checkpoint_and_another_is_refused(store, finished):
    (document,) = (finished / "checkpoints" / "8").rglob("meta/metadata")
    meta = json.loads(document.read_bytes())["meta"]
    assert {name: meta["train"][name] for name in SCHEDULES} == SCHEDULES
    with pytest.raises(UserError, match=r"train\.depth is '1:0.5,2:0.5'"):
        pretrain(staged_config(store, finished, depth="1:0.75,2:0.25"))


def test_flops_are_those_of_each_stage(store, finished):
    config = staged_config(store, finished)

    def flops(depth, length, predictions):
        model = replace(config.model, num_hidden_layers=depth)
        return train_flops_per_sequence(model, length, predictions)

    few = config.examples.max_predictions_per_seq
    assert config.examples.max_seq_length == 32
    expected = [4 * flops(1, 16, few)] * 2 + [4 * flops(1, 32, few)] * 2
    expected += [4 * flops(2, 32, few)] * 2 + [8 * flops(2, 32, few)] * 2
    logged = [e["flops"] for e in entries(finished, "train")]
    np.testing.assert_allclose(logged, np.cumsum(expected), rtol=1e-12)


def test_evaluations_are_as_deep_as_the_steps_before_them(store, finished, tmp_path):
    first, last = entries(finished, "eval")
    assert (first["step"], last["step"]) == (4, 8)
    shallow, deep = (
        albert_jax.load(finished / "model", depth=depth).fill_mask("a [MASK] of it.")[0]["score"]
        for depth in (1, 2)
    )
    assert shallow != deep  # else the next line would prove nothing
    steps = StagedSteps(config := staged_config(store, finished), config.stages, Lowering())
    depths = [steps.to_evaluate(n).model.config.num_hidden_layers for n in (0, 4, 5, 8)]
    assert depths == [2, 1, 2, 2]


def test_after_a_rollback_what_is_evaluated_has_the_depth_of_the_batch(store, tmp_path):
    """The run's second half begins at batch 4, which is step 3 if a batch was left out."""
    config = staged_config(store, tmp_path)
    depths = []

    class Steps(StagedSteps):
        def to_evaluate(self, batches):
            made = super().to_evaluate(batches)
            depths.append(made.model.config.num_hidden_layers)
            return made

    placement = make_placement("jit", local_devices(1))
    steps = Steps(config, config.stages, placement.lowering)
    evaluate = evaluator(config, open_data(config, None), steps, placement)
    params = placement.put_state(steps.at(0).random_state(0)).params
    for position in (Position(step=4, batch=4), Position(step=4, batch=5)):
        evaluate(params, position, lambda done, total: None)
    assert depths == [1, 2]


def test_steps_of_any_depth_draw_one_for_each_batch(store, tmp_path):
    config = staged_config(store, tmp_path / "run", depth="1-2", length="", batch_ramp="")
    stages = config.stages
    steps = StagedSteps(config, stages, Lowering())
    drawn = [steps.at(batch).model.config.num_hidden_layers for batch in range(20)]
    assert drawn == [stages.at(batch).depth(batch) for batch in range(20)]
    assert set(drawn) == {1, 2}
    assert steps.at(0) is steps.at(next(b for b in range(1, 20) if drawn[b] == drawn[0]))


def test_the_second_loss_weighs_what_it_is_told(store, tmp_path):
    config = staged_config(store, tmp_path)
    steps = StagedSteps(config, config.stages, Lowering())
    made = steps.at(0)
    assert config.stages.at(0).sentence_order_weight == 0.5
    batch = batch_at(open_data(config, None).train, 0, 4)

    @jax.jit
    def of_random_weights(batch):
        weights = made.objective.normalizers(batch)
        return made.objective.loss(made.random_state(0).params, batch, weights, None)

    loss, metrics = of_random_weights(batch)
    masked_lm, order = metrics["masked_lm_loss"], metrics["sentence_order_loss"]
    assert float(loss) == pytest.approx(float(masked_lm + 0.5 * order), rel=1e-6)


def test_tfrecord_rows_cannot_be_drawn_otherwise(store, tmp_path):
    records = DATA / "pretraining" / "first50.tfrecord"
    config = replace(tiny_config(records, tmp_path, steps=2), vocab=str(VOCABULARY))
    with pytest.raises(UserError, match="have 128 tokens, and the model has 32 positions; give"):
        pretrain(config)
    config = replace(config, model=replace(config.model, max_position_embeddings=128))
    for schedule in ({"length": "16:0.5,32:0.5"}, {"masking": "0.3:0.5,0.15:0.5"}):
        with pytest.raises(UserError, match="TFRecord shards hold rows as they were drawn"):
            pretrain(replace(config, train=replace(config.train, **schedule)))
    with pytest.raises(UserError, match="output_bias='unigram' needs the frequencies"):
        pretrain(replace(config, output_bias="unigram"))


def test_the_plan_warns_of_settings_that_schedules_overrule(store, tmp_path):
    config = staged_config(store, tmp_path / "run")
    examples = replace(config.examples, masked_lm_prob=0.3)
    train = replace(config.train, batch_size=12, masking="0.2:0.5,0.15:0.5")
    config = replace(config, examples=examples, train=train)
    plan = run_plan(config, open_data(config, None))
    ramp = config.train.batch_ramp
    assert f"warning: no step has train.batch_size 12, as train.batch_ramp {ramp!r} decides" in plan
    assert "no step has examples.masked_lm_prob 0.3, as train.masking '0.2:0.5,0.15:0.5'" in plan
    assert "examples.max_seq_length" not in plan
    assert f"lower train.batch_ramp ({ramp})" in out_of_memory_advice(config)


def test_the_plan_has_a_line_for_each_stage_and_adds_them_up(store, tmp_path):
    config = staged_config(store, tmp_path / "run")
    lines = run_plan(config, open_data(config, None)).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("updates"))
    few = config.examples.max_predictions_per_seq
    sequences = "sequences of {} tokens, {} predictions at most, depth {}"
    assert lines[first].startswith(f"updates    2 x 4 {sequences.format(16, few, 1)}; ")
    assert [line.strip().partition(";")[0] for line in lines[first + 1 : first + 4]] == [
        f"from step 3: 2 x 4 {sequences.format(32, few, 1)}",
        f"from step 5: 2 x 4 {sequences.format(32, few, 2)}",
        f"from step 7: 2 x 8 {sequences.format(32, few, 2)}",
    ]
    assert config.stages.sequences(8) == 6 * 4 + 2 * 8
    assert config.stages.tokens(8) == 2 * 4 * 16 + 4 * 4 * 32 + 2 * 8 * 32
    assert run_flops(config) == pytest.approx(
        sum(
            (config.stages.end(n) or 8) * stage_flops(config.model, stage)
            - stage.first * stage_flops(config.model, stage)
            for n, stage in enumerate(config.stages)
        )
    )


def test_a_stage_whose_batch_does_not_divide_over_the_devices_is_refused_before_it_begins(
    store, tmp_path
):
    config = staged_config(store, tmp_path / "run", devices=4, batch_ramp="6:0.5,8:0.5")
    with pytest.raises(UserError, match="batch_size 6 does not divide over 4 devices"):
        pretrain(config)
