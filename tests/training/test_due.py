# SPDX-License-Identifier: Apache-2.0
"""When a run saves and evaluates."""

from types import SimpleNamespace

import pytest

from albert_jax.config.sections import TrainConfig
from albert_jax.training import due
from albert_jax.training.due import NOTHING, Due, Timetable, is_due


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(due, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def timetable(*, evaluates=True, **settings):
    defaults = {"steps": 100, "save_every": 0, "eval_every": 0, "save_minutes": 0}
    return Timetable(TrainConfig(**(defaults | settings)), evaluates=evaluates)


def test_the_last_step_and_every_so_many_are_due():
    assert [n for n in range(1, 12) if is_due(n, 4, 11)] == [4, 8, 11]
    assert [n for n in range(1, 12) if is_due(n, 0, 11)] == [11]


def test_what_is_due_after_a_step_goes_by_its_number(clock):
    table = timetable(save_every=10, eval_every=20)
    assert table.due(7, stop=False) == NOTHING
    assert table.due(10, stop=False) == Due(save=True)
    assert table.due(20, stop=False) == Due(save=True, evaluate=True)
    assert table.due(7, stop=True) == Due(stop=True)
    assert table.due(100, stop=False) == Due(save=True, evaluate=True, end=True)
    without = timetable(evaluates=False, eval_every=20)
    assert without.due(20, stop=False) == NOTHING


def test_a_checkpoint_is_due_some_minutes_after_the_last(clock):
    table = timetable(save_minutes=2)
    clock.seconds = 119
    assert table.due(1, stop=False) == NOTHING
    clock.seconds = 120
    assert table.due(2, stop=False) == Due(save=True)
    table.saved()
    assert table.due(3, stop=False) == NOTHING


def test_more_than_a_minutes_work_is_saved_before_an_evaluation(clock):
    table = timetable(save_minutes=30, eval_every=5)
    clock.seconds = due.UNSAVED_SECONDS - 1
    assert table.due(5, stop=False) == Due(evaluate=True)
    clock.seconds = due.UNSAVED_SECONDS
    assert table.due(6, stop=False) == NOTHING
    assert table.due(10, stop=False) == Due(save=True, evaluate=True)
