# SPDX-License-Identifier: Apache-2.0
"""Report a run's figures while it goes on, to a caller's functions and to experiment trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from albert_jax.config.sections import Destination
from albert_jax.distributed import multihost
from albert_jax.utils.errors import UserError

Callback = Callable[[int, Mapping[str, float]], None]
"""(step, metrics by name) -> None; may raise `StopTraining`."""

TENSORBOARD: tuple[Destination, ...] = ("tensorboard",)


class StopTraining(Exception):
    """Raise this in a callback to end the run after the current step.

    The run is then saved, evaluated and exported, and the call returns. The same call later
    continues from there.
    """


@dataclass(frozen=True)
class Watching:
    """Name who receives a run's figures."""

    log: tuple[Destination, ...] = TENSORBOARD
    """Trackers, beside the console and metrics.jsonl."""
    on_step: Callback | None = None
    """Called with what each log line on training has."""
    on_evaluation: Callback | None = None
    """Called with what each log line on an evaluation has."""


NOBODY = Watching()
"""The console, metrics.jsonl and TensorBoard alone."""


def watching_of(
    log: Destination | Sequence[Destination],
    on_step: Callback | None,
    on_evaluation: Callback | None,
) -> Watching:
    """Return who receives a run's figures, from a call's arguments."""
    return Watching((log,) if isinstance(log, str) else tuple(log), on_step, on_evaluation)


class Hooks:
    """Call a run's callbacks in process 0, and let every process know their outcome."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        given = watching.on_step is not None or watching.on_evaluation is not None
        self.active: bool = multihost.gather(given)[0]
        """Whether there is anything to call, in process 0."""
        self.stopped = False
        """Whether a callback raised StopTraining."""
        self.failure: Exception | None = None
        """What else a callback raised."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Call `on_step` with a line on training."""
        self._call(self._watching.on_step, step, metrics)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Call `on_evaluation` with an evaluation."""
        self._call(self._watching.on_evaluation, step, metrics)

    def _call(self, callback: Callback | None, step: int, metrics: Mapping[str, float]) -> None:
        """Call a function and note its exception, because the loop first saves what was learnt."""
        if not self.active:
            return
        stops, failure = False, None
        if callback is not None and multihost.is_primary():
            try:
                callback(step, dict(metrics))
            except StopTraining:
                stops = True
            except Exception as error:
                failure = error
        said = f"{type(failure).__name__}: {failure}" if failure else None
        stops, told = multihost.gather([stops, said])[0]
        self.stopped = self.stopped or stops
        if told is not None:
            self.failure = failure or UserError(f"a callback of process 0 failed: {told}")
