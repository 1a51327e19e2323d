# SPDX-License-Identifier: Apache-2.0
"""Decide when a run saves a checkpoint and when it evaluates."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from albert_jax.config.sections import TrainConfig
from albert_jax.distributed import multihost

# An evaluation may take hours. If more work than this is unsaved, it is saved first, because the
# machine may be lost meanwhile.
UNSAVED_SECONDS = 60.0


class Due(NamedTuple):
    """Hold what is to be done after a step."""

    stop: bool = False
    save: bool = False
    evaluate: bool = False
    end: bool = False


NOTHING = Due()


class Timetable:
    """Decide what is due after a step, by the step's number and the time since the last save."""

    def __init__(self, config: TrainConfig, *, evaluates: bool) -> None:
        self._config, self._evaluates = config, evaluates
        self._saved_at = time.monotonic()

    def saved(self) -> None:
        """Record that a checkpoint was just saved."""
        self._saved_at = time.monotonic()

    def due(self, step: int, *, stop: bool) -> Due:
        """Return what is due after a step; every process must ask once a step."""
        evaluate = self.evaluation_is_due(step)
        save = is_due(step, self._config.save_every, self._config.steps)
        save = save or self._is_late(step, evaluate)
        return Due(stop, save, evaluate, step == self._config.steps)

    def evaluation_is_due(self, step: int) -> bool:
        """Return whether the run evaluates after this step."""
        return self._evaluates and is_due(step, self._config.eval_every, self._config.steps)

    def _is_late(self, step: int, evaluating: bool) -> bool:
        limit = 60 * self._config.save_minutes or math.inf
        if evaluating:
            limit = limit if limit == math.inf else min(limit, UNSAVED_SECONDS)
        late = time.monotonic() - self._saved_at >= limit
        if multihost.several():  # each has its own clock, and asking another costs time
            asked = evaluating or step % self._config.log_every == 0
            late = asked and multihost.gather(late)[0]
        return late


def is_due(step: int, every: int, last: int) -> bool:
    """Return whether a step is the last one, or a multiple of `every` (0: never)."""
    return step == last or (every > 0 and step % every == 0)
