# SPDX-License-Identifier: Apache-2.0
"""How far a long reading of files is: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from albert_jax.streams import say

LINE_SECONDS = 10.0  # between lines where stderr is no terminal


def show_bytes(size: float) -> str:
    """Return a number of bytes for people, as 1.50GB."""
    return tqdm.format_sizeof(size, "B")


class Meter:
    """Progress by bytes of input; silent unless `show`, and in the first `delay` seconds."""

    def __init__(self, task: str, total: int, *, show: bool, delay: float = 0.0):
        self._task, self._total, self._show, self._done = task, max(total, 1), show, 0
        self._started = self._said = time.monotonic()
        self._bar: tqdm | None = None
        if show and sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc=task, delay=delay)

    def add(self, size: int) -> None:
        """Count bytes that have been read."""
        self._done += size
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(size)
        elif self._show and now - self._said >= LINE_SECONDS:
            self._said = now
            spent = now - self._started
            left = spent * (self._total - self._done) / max(self._done, 1)
            say(
                f"{self._task}: {self._done / self._total:.0%}, "
                f"{show_bytes(self._done / spent)}/s, {tqdm.format_interval(max(left, 0))} left"
            )

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
