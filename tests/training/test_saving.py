# SPDX-License-Identifier: Apache-2.0
"""Rollbacks and a run's checkpoints, on a state of one number."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from albert_jax.checkpoint.manager import Checkpointer, same_run
from albert_jax.training.guards import Offence
from albert_jax.training.metrics import MetricsLog, read_metrics
from albert_jax.training.position import Position, Tally
from albert_jax.training.saving import Rollbacks, Saves
from albert_jax.utils.errors import UserError

POSITION = Position(5, 9, ((2, 4),), Tally({"loss": 7.5}, 3), (5.5, 0.1))
BAD = Offence("the loss is no good", 11)


def state_of(number):
    return {"weight": np.full(3, number, np.float32)}


@pytest.fixture
def recalled():
    return []


@pytest.fixture
def saves(tmp_path, recalled):
    run = SimpleNamespace(
        judge=same_run({"run": "test"}),
        identity={"run": "test"},
        kept=lambda position: {"batch drawn": position.batch},
        recall=lambda meta: recalled.append(meta["batch drawn"]),
    )
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        yield Saves(run, checkpointer)


@pytest.fixture
def log(tmp_path):
    with contextlib.closing(MetricsLog(tmp_path, total_steps=20)) as log:
        yield log


def test_a_checkpoint_gives_back_state_position_and_what_the_run_keeps(saves, recalled):
    assert saves.restore(state_of(0)) is None
    saves.save(state_of(5), POSITION)
    saves.wait()
    state, position = saves.restore(state_of(0))
    assert (state["weight"].tolist(), position) == ([5.0] * 3, POSITION)
    assert recalled == [9]


def test_a_rollback_leaves_the_offending_batches_out(saves, log, tmp_path):
    saves.save(state_of(5), POSITION, wait=True)
    now = Position(8, 13, ((2, 4), (9, 10)))
    state, back = Rollbacks(2, saves, log).roll_back(state_of(0), BAD, now, 14)
    assert state["weight"].tolist() == [5.0] * 3
    assert (back.step, back.batch, back.tally) == (5, 9, POSITION.tally)
    assert (back.left_out, back.losses) == (((2, 4), (9, 10), (11, 14)), ())
    (event,) = read_metrics(tmp_path / "metrics.jsonl")
    assert event["message"] == (
        "the loss is no good: rolled back from step 8 to step 5, leaving out batches 11 to 13 "
        "(rollback 1 of 2)"
    )


def test_rollbacks_end_unless_a_checkpoint_comes_between(saves, log):
    saves.save(state_of(5), POSITION, wait=True)
    rollbacks = Rollbacks(1, saves, log)
    rollbacks.roll_back(state_of(0), BAD, POSITION, 12)
    rollbacks.forgive()
    rollbacks.roll_back(state_of(0), BAD, POSITION, 12)
    with pytest.raises(UserError, match=r"no good at batch 11, after 1 rollbacks .* \(5\); lower"):
        rollbacks.roll_back(state_of(0), BAD, POSITION, 12)


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(saves, log):
    with pytest.raises(UserError, match="no good at batch 11, and there is no checkpoint"):
        Rollbacks(1, saves, log).roll_back(state_of(0), BAD, POSITION, 12)
