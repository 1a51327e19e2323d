# SPDX-License-Identifier: Apache-2.0
"""Progress as it is seen on a terminal and elsewhere."""

import io

import pytest

from albert_jax.utils import progress
from albert_jax.utils.progress import ProgressMeter


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the meter reads, to be changed."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_a_line_comes_every_ten_seconds_at_most(
    clock: list[float], capsys: pytest.CaptureFixture
) -> None:
    with ProgressMeter("dev, 1,000 questions", 2000, unit="row") as meter:
        for second in range(1, 26):
            clock[0] = second
            meter.tick(second * 20, 2000)
    assert capsys.readouterr().err.splitlines() == [
        "dev, 1,000 questions: 10%, 20 rows/s, 01:30 left",
        "dev, 1,000 questions: 20%, 20 rows/s, 01:20 left",
    ]


def test_bytes_have_units_of_their_own_and_a_total_may_be_unknown(
    clock: list[float], capsys: pytest.CaptureFixture
) -> None:
    for total, unit in ((4_000_000, "B"), (None, "B"), (None, "input"), (0, "row")):
        clock[0] = 0
        meter = ProgressMeter("work", total, unit=unit)
        clock[0] = 10
        meter.add(1_000_000)
        meter.close()
    assert capsys.readouterr().err.splitlines() == [
        "work: 25%, 100kB/s, 00:30 left",
        "work: 1.00MB, 100kB/s",
        "work: 1,000,000 inputs, 100,000 inputs/s",
        "work: 1,000,000 rows, 100,000 rows/s",
    ]


def test_on_a_terminal_there_is_a_bar_which_goes_away_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    with ProgressMeter("dev, 1,000 questions", 2000, unit="row") as meter:
        assert "dev, 1,000 questions:   0%" in screen.getvalue()
        assert "0/2000" in screen.getvalue()
        meter.tick(2000, 2000)
    assert screen.getvalue().endswith("\r")
    assert "\n" not in screen.getvalue()


def test_what_is_not_to_be_shown_is_silent(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    with ProgressMeter("work", 10, unit="row", show=False) as meter:
        clock[0] = 60
        meter.add(10)
    assert screen.getvalue() == ""
