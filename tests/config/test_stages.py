# SPDX-License-Identifier: Apache-2.0
"""Schedules over a run, divided into stages."""

from dataclasses import replace

import pytest

from albert_jax.config import (
    AlbertConfig,
    ExamplesConfig,
    FinetuneConfig,
    PretrainConfig,
    TrainConfig,
)
from albert_jax.errors import UserError
from albert_jax.models.flops import stage_flops, train_flops_per_sequence

MODEL = AlbertConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
)
EXAMPLES = ExamplesConfig(max_seq_length=128, max_predictions_per_seq=20)


def config(**train):
    return PretrainConfig(
        model=MODEL, examples=EXAMPLES, train=TrainConfig(**{"steps": 100, "batch_size": 8} | train)
    )


def test_a_run_without_schedules_is_one_stage():
    stages = config().stages
    assert len(stages) == 1
    stage = stages[0]
    assert (stage.depths, stage.batch_size, stage.sentence_order_weight) == ((6, 6), 8, 1.0)
    assert stage.examples is EXAMPLES
    assert stages.end(0) is None


def test_schedules_divide_a_run_where_any_of_them_changes():
    stages = config(
        depth="2:0.3,4:0.3,6:0.4",
        length="64:0.5,128:0.5",
        batch_ramp="4:0.1,8:0.9",
        masking="0.3:0.6,0.15:0.4",
        sop_weight="0.5",
    ).stages
    found = [
        (s.first, s.depths[1], s.examples.max_seq_length, s.batch_size, s.examples.masked_lm_prob)
        for s in stages
    ]
    assert found == [
        (0, 2, 64, 4, 0.3),
        (10, 2, 64, 8, 0.3),
        (30, 4, 64, 8, 0.3),
        (50, 4, 128, 8, 0.3),
        (60, 6, 128, 8, 0.15),
    ]
    # 20 of 128 tokens at 0.15 are 20 of 64 at 0.3, and 40 of 128.
    assert [s.examples.max_predictions_per_seq for s in stages] == [20, 20, 20, 40, 20]
    assert {s.sentence_order_weight for s in stages} == {0.5}
    assert [stages.number_at(batch) for batch in (0, 9, 10, 59, 60, 1000)] == [0, 0, 1, 3, 4, 4]
    assert [stages.end(number) for number in range(5)] == [10, 30, 50, 60, None]
    # Batches that a rollback left out make the last stage longer.
    assert stages.total(110, lambda stage: stage.batch_size) == 10 * 4 + 100 * 8
    assert stages.total(20, lambda stage: 1) == 20


def test_all_passes_are_as_many_as_the_model_has():
    stages = config(depth="2:0.5,all:0.5").stages
    assert [stage.depths for stage in stages] == [(2, 2), (6, 6)]


def test_a_random_depth_depends_on_seed_and_batch_alone():
    stage = config(depth="2-6").stages[0]
    drawn = [stage.depth(batch) for batch in range(400)]
    assert drawn == [stage.depth(batch) for batch in range(400)]
    assert sorted(set(drawn)) == [2, 3, 4, 5, 6]
    assert min(drawn.count(depth) for depth in range(2, 7)) > 50
    other = config(depth="2-6", seed=1).stages[0]
    assert drawn != [other.depth(batch) for batch in range(400)]
    of_each = [
        8 * train_flops_per_sequence(replace(MODEL, num_hidden_layers=depth), 128, 20)
        for depth in range(2, 7)
    ]
    assert stage_flops(MODEL, stage) == pytest.approx(sum(of_each) / 5)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"depth": "2:0.3,6:0.3"}, "has shares of 0.6 together"),
        ({"depth": "2:0.5,six:0.5"}, "is no schedule; give VALUE:SHARE"),
        ({"depth": "2,6"}, "is no schedule"),
        ({"depth": "0:0.5,6:0.5"}, "is no schedule"),
        ({"depth": "6-2"}, "is no schedule"),
        ({"depth": "2:1,6:0"}, "shares above 0"),
        ({"depth": "8:0.5,6:0.5"}, "has 8 passes, more than model.num_hidden_layers 6"),
        ({"depth": "2:0.5,4:0.5"}, "ends with 4 passes, but model.num_hidden_layers is 6"),
        ({"batch_ramp": "2147483648"}, "is no schedule"),
        ({"length": "64:0.5,256:0.5"}, "rows of 256 tokens, more than examples.max_seq_length"),
        ({"length": "4:0.5,128:0.5"}, "a stage of train.length .* 4 is too short"),
        ({"batch_ramp": "3:0.5,8:0.5", "accumulate": 2}, "3 sequences do not divide into"),
        ({"masking": "1.5:0.5,0.15:0.5"}, "must lie in"),
        ({"sop_weight": "nan"}, "is no schedule"),
    ],
)
def test_a_schedule_that_is_none_is_refused(train, words):
    with pytest.raises(UserError, match=words):
        config(**train)


def test_a_trial_of_few_steps_need_not_come_to_a_schedules_end():
    assert [stage.depths for stage in config(depth="2:0.9,6:0.1", steps=1).stages] == [(2, 2)]


def test_a_depth_schedule_needs_layers_that_are_all_one():
    with pytest.raises(UserError, match="num_hidden_groups is 2"):
        PretrainConfig(
            model=replace(MODEL, num_hidden_groups=2),
            examples=EXAMPLES,
            train=TrainConfig(depth="2:0.5,6:0.5"),
        )


def test_finetuning_has_no_stages():
    with pytest.raises(UserError, match=r"train\.depth '2:0.5,6:0.5' is of pretraining"):
        FinetuneConfig(train=TrainConfig(depth="2:0.5,6:0.5"))
