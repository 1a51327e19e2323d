# SPDX-License-Identifier: Apache-2.0
"""Steps in flight, with a step that counts instead of training."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from albert_jax.training.pipeline import Pipeline, numbered_batches
from albert_jax.training.position import Position

HERE = SimpleNamespace(put_state=lambda x: x, put_batch=lambda x: x, fetch=lambda x: x)


class Drawn:
    """Batches by number; `closed` counts the iterators that were closed."""

    def __init__(self):
        self.numbers, self.closed = [], 0

    def __call__(self, start, stop):
        try:
            for number in itertools.count(start) if stop is None else range(start, stop):
                self.numbers.append(number)
                yield {"input_mask": np.ones((2, 3)), "number": number}
        finally:
            self.closed += 1


def counting(number, state, batch):
    assert batch["number"] == number
    return state + 1, {"loss": batch["number"]}


def test_steps_finish_in_order_and_as_many_as_allowed_stay_in_flight():
    pipeline = Pipeline(counting, Drawn(), HERE, 7, Position(step=7, batch=20))
    for _ in range(3):
        pipeline.start()
    assert (pipeline.state, pipeline.step, pipeline.batch) == (10, 10, 23)
    assert [step.number for step in pipeline.finished(ahead=2)] == [8]
    rest = list(pipeline.finished(ahead=0))
    assert [(step.number, step.batch, step.metrics["loss"]) for step in rest] == [
        (9, 21, 21),
        (10, 22, 22),
    ]
    assert rest[0].tokens == 6


def test_closing_gives_up_the_state_and_what_was_drawn_ahead():
    drawn = Drawn()
    pipeline = Pipeline(counting, drawn, HERE, 0, Position())
    pipeline.start()
    pipeline.close()
    assert pipeline.state is None
    assert list(pipeline.finished(ahead=0)) == []
    assert drawn.closed == 1


def test_an_error_of_the_data_is_raised_by_the_step_that_needs_it():
    def failing(start, stop):
        yield {"number": 0}
        raise ZeroDivisionError

    pipeline = Pipeline(counting, failing, HERE, 0, Position())
    pipeline.start()
    with pytest.raises(ZeroDivisionError):
        pipeline.start()
    assert [step.number for step in pipeline.finished(ahead=0)] == [1]


def test_batches_left_out_are_never_drawn():
    drawn = Drawn()
    stream = numbered_batches(drawn, Position(3, 2, ((4, 6), (6, 7), (9, 10))))
    numbers = [next(stream)[0] for _ in range(6)]
    assert numbers == drawn.numbers == [2, 3, 7, 8, 10, 11]
    assert next(numbered_batches(Drawn(), Position(3, 5, ((4, 6),))))[0] == 6
