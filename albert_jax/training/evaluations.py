# SPDX-License-Identifier: Apache-2.0
"""Evaluate during a run: when due, cut short by a signal, and made up for later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from albert_jax.distributed import multihost
from albert_jax.training.guards import Watchdog
from albert_jax.training.metrics import MetricsLog
from albert_jax.training.position import Position
from albert_jax.training.run import Run
from albert_jax.training.step_meter import figure
from albert_jax.training.watching import Hooks


class Cut(Exception):
    """Report that an evaluation was cut short, because the run is to stop."""


class Evaluations:
    """Evaluate a run's parameters and log the metrics."""

    def __init__(
        self,
        run: Run,
        log: MetricsLog,
        watchdog: Watchdog,
        must_stop: Callable[[], bool],
        hooks: Hooks,
    ) -> None:
        """Prepare to evaluate; `must_stop` is called after every batch of an evaluation."""
        self._run, self._log, self._hooks = run, log, hooks
        self._watchdog, self._must_stop = watchdog, must_stop

    def is_logged(self, step: int) -> bool:
        """Return whether the evaluation after a step was made, perhaps before a restart."""
        return multihost.gather(self._log.has_evaluation(step))[0]

    def make(self, params: Any, position: Position) -> None:
        """Evaluate placed parameters and log the metrics; raises Cut if the run is to stop."""
        assert self._run.evaluate is not None
        step = position.step

        def tick(done: int, total: int) -> None:
            self._watchdog.alive(f"{done} of {total} examples of the evaluation at step {step}")
            self._log.working(step, f"evaluating {done:,} of {total:,}")
            if self._must_stop():
                raise Cut

        metrics = self._run.evaluate(params, position, tick)
        log_evaluation(self._log, step, metrics)
        if self._run.standing and (said := self._run.standing.evaluated(step, metrics)):
            self._log.event(step, f"note: {said}")
        self._run.after_evaluation()
        self._hooks.evaluation(step, metrics)
        self._watchdog.alive(f"the evaluation at step {step}")


def log_evaluation(
    log: MetricsLog, step: int, values: Mapping[str, float], of: str = "held out"
) -> None:
    """Record an evaluation's metrics and print them, by their own `line` if they have one."""
    figures = "  ".join(figure(name, value) for name, value in values.items())
    text = getattr(values, "line", figures)
    log.scalars("eval", step, values, line=f"step {step}  {of}:  {text}")
