# SPDX-License-Identifier: Apache-2.0
"""Show the progress of long work on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from albert_jax.utils.numbers import rounded
from albert_jax.utils.streams import say

Tick = Callable[[int, int], None]  # (done, in all), called as often as some of it is done

LINE_SECONDS = 10.0  # between lines where stderr is no terminal


def show_bytes(size: float) -> str:
    """Return a number of bytes in units for people: 1.75MB."""
    return tqdm.format_sizeof(size, "B")


class ProgressMeter:
    """Show how much of `total` is done; a context manager, because the bar is removed at the end.

    Args:
        what: what is being done: "dev, 10,570 questions".
        total: the amount of all work; None if unknown.
        unit: what is counted, as "row"; B for bytes, which get their own units.
        show: whether to show anything.
        delay: seconds before a bar is shown.
    """

    def __init__(
        self, what: str, total: int | None, *, unit: str, show: bool = True, delay: float = 0.0
    ) -> None:
        self._what, self._total, self._unit, self._show = what, total, unit, show
        self._done = 0
        self._started = self._said = time.monotonic()
        self._bar: tqdm | None = None
        if show and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                unit=unit if unit == "B" else f" {unit}s",
                unit_scale=unit == "B",
                desc=what,
                leave=False,
                dynamic_ncols=True,
                delay=delay,
            )

    def __enter__(self) -> ProgressMeter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, amount: int) -> None:
        """Count what was done since the last call."""
        self._done += amount
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(amount)
        elif self._show and now - self._said >= LINE_SECONDS:
            self._said = now
            say(self._line(now - self._started))

    def reach(self, done: int) -> None:
        """Set how much is done in total."""
        self.add(done - self._done)

    def tick(self, done: int, total: int) -> None:
        """Set how much is done, for a callback that gets the total too."""
        self.reach(done)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, seconds: float) -> str:
        speed = self._done / max(seconds, 1e-9)
        if self._unit == "B":
            done, rate = show_bytes(self._done), f"{show_bytes(speed)}/s"
        else:
            done, rate = f"{self._done:,} {self._unit}s", f"{rounded(speed)} {self._unit}s/s"
        if not self._total:
            return f"{self._what}: {done}, {rate}"
        left = max(self._total - self._done, 0) / max(speed, 1e-9)
        share = self._done / self._total
        return f"{self._what}: {share:.0%}, {rate}, {tqdm.format_interval(left)} left"
