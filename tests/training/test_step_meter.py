# SPDX-License-Identifier: Apache-2.0
"""The log's figures of steps whose times are made up."""

from types import SimpleNamespace

import jax
import pytest

from albert_jax.training import step_meter
from albert_jax.training.metrics import MetricsLog
from albert_jax.training.pipeline import StepResult
from albert_jax.training.position import Tally
from albert_jax.training.step_meter import StepMeter, Workload

WORKLOAD = Workload(
    steps=100,
    rows=lambda _: 8,
    flops=lambda batches: batches * 8e9,
    schedule=lambda step: 0.1 * step,
    passes=lambda batches: batches / 10,
)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(step_meter, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


class Lines(MetricsLog):
    """A log that keeps what it is told."""

    def __init__(self):
        super().__init__(None, total_steps=100, console=False)
        self.lines = []

    def scalars(self, kind, step, values, *, line=""):
        self.lines.append((kind, step, values, line))


def result(number, **metrics):
    return StepResult(number, number + 9, {"grad_norm": 2.0, **metrics}, 500, 0.5)


def test_a_line_has_means_rates_and_the_time_left(clock, monkeypatch):
    monkeypatch.setattr(step_meter, "peak_flops", lambda kind: 4e9)
    meter, log, tally = StepMeter(WORKLOAD, jax.devices()[:2]), Lines(), Tally()
    for number in (1, 2, 3):  # the first compiles, the others take two seconds
        clock.seconds += 2
        meter.stepped(result(number))
        tally = tally.plus({"loss": number, "grad_norm": 2.0, "skipped": 0.0})
    meter.report(result(3, trust_ratio=[1.0, 2.0, 6.0]), tally, log)
    ((kind, step, values, line),) = log.lines
    assert (kind, step) == ("train", 3)
    assert values == {
        "loss": 2.0,
        "grad_norm": 2.0,
        "learning_rate": 0.2,
        "trust_ratio_min": 1.0,
        "trust_ratio_median": 2.0,
        "trust_ratio_max": 6.0,
        "sequences_per_second": 4.0,
        "tokens_per_second": 250.0,
        "input_wait": 0.25,
        "mfu": 0.5,
        "passes": 1.3,
        "flops": 13 * 8e9,
    }
    assert line == (
        "step 3/100  loss 2.0000  |g| 2  lr 0.2  trust 1/2/6  4.0 seq/s  250 tok/s  MFU 50.0%  "
        "input wait 25%  pass 1.30  left 0:03:14"
    )


def test_an_evaluation_counts_as_no_steps_time(clock):
    meter, log = StepMeter(WORKLOAD, jax.devices()[:1]), Lines()
    meter.stepped(result(1))
    clock.seconds += 3600
    meter.restart_clock()
    clock.seconds += 2
    meter.stepped(result(2))
    meter.report(result(2), Tally({"grad_norm": 2.0}, 1), log)
    assert log.lines[0][2]["sequences_per_second"] == 4.0
