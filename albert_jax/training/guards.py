# SPDX-License-Identifier: Apache-2.0
"""Watch a run: its losses, its signals and its pulse.

Each guard only observes; `loop.fit` decides.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NamedTuple

from albert_jax.config.sections import GuardConfig
from albert_jax.distributed import multihost
from albert_jax.training.programs import is_compiling
from albert_jax.utils import interrupts
from albert_jax.utils.errors import TryAgain


class Offence(NamedTuple):
    """Describe what is wrong with a run, and the first batch that shows it."""

    reason: str
    batch: int


class LossGuard:
    """Detect a run that has gone wrong by its losses.

    A loss is not finite, or `patience` losses in a row are spikes.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._spikes: list[int] = []

    def observe(self, batch: int, loss: float, *, skipped: bool) -> Offence | None:
        """Take the loss of a batch; return what is wrong, or None."""
        if skipped or not math.isfinite(loss):
            return Offence(f"the loss or gradient is not finite (loss {loss})", batch)
        if self._config.spike > 0 and len(self._losses) >= min(20, self._config.window):
            median = statistics.median(self._losses)
            if loss > median + self._config.spike:
                self._spikes.append(batch)
                if len(self._spikes) >= self._config.patience:
                    reason = (
                        f"the loss is {loss:.3f}, {loss - median:.2f} above its median {median:.3f}"
                    )
                    return Offence(reason, self._spikes[0])
                return None  # a spike must not raise the median that it is compared with
        self._spikes.clear()
        self._losses.append(loss)
        return None

    @property
    def spikes(self) -> int:
        """Return how many losses up to the last are spikes; if any, no checkpoint should be saved.

        The last checkpoint of a run is saved nevertheless.
        """
        return len(self._spikes)

    @property
    def losses(self) -> tuple[float, ...]:
        """Return the losses that the next is judged by; spikes are not among them."""
        return tuple(self._losses)

    def reset(self, losses: Iterable[float] = ()) -> None:
        """Judge by these losses from now on; by none after a rollback or in another stage."""
        self._losses = deque(losses, maxlen=self._config.window)
        self._spikes.clear()


class StopSignals:
    """Set `requested` to the name of a SIGTERM, SIGINT or SIGHUP while entered.

    A second signal kills the process at once. So does the first, if `nothing_to_lose`, which a
    second thread calls, returns True because everything finished is saved. JAX itself notices a
    preemption only under jax.distributed, so a single TPU VM, a GPU machine and Colab need this.
    """

    def __init__(self, nothing_to_lose: Callable[[], bool] = lambda: False) -> None:
        self.requested: str | None = None
        self._nothing_to_lose = nothing_to_lose
        self._entered = contextlib.ExitStack()

    def due(self) -> bool:
        """Return whether to stop after this step."""
        return self.requested is not None

    def __enter__(self) -> StopSignals:
        self._entered.enter_context(interrupts.holding(self._nothing_to_lose))
        self._entered.enter_context(interrupts.handled(self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def _note(self, number: int) -> None:
        self.requested = signal.Signals(number).name
        interrupts.last_words(
            f"{self.requested}: saving a checkpoint after this step; once more to stop at once"
        )


def stop_signals(nothing_to_lose: Callable[[], bool]) -> StopSignals | multihost.StopTogether:
    """Return the object that notes signals during a run, for one process or for several."""
    watching = multihost.StopTogether if multihost.several() else StopSignals
    return watching(nothing_to_lose)


class Watchdog:
    """End a process whose steps have stopped: dump every thread's stack and exit with status 75.

    Otherwise a stuck peer or a deadlocked input pipeline would hold the machine for ever. The limit
    is `timeout` seconds, or with 0 max(300, 20 x the median of the beats so far). It counts from
    the first beat. Time in which a step is compiled does not count, and neither does time in which
    the whole process was stopped (Ctrl-Z and fg, a debugger).
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._beats: deque[float] = deque(maxlen=101)
        self._what, self._last = "", 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, what: str) -> None:
        """Record that something finished; `what` names it, in case the next beat never comes."""
        self._last = time.monotonic()
        self._beats.append(self._last)
        self._what = what

    def alive(self, what: str) -> None:
        """Record that something between two beats goes on.

        The limit does not depend on its time.
        """
        if self._beats:
            self._last, self._what = time.monotonic(), what

    def limit(self) -> float:
        """Return the seconds that may pass between two beats."""
        if self._timeout > 0:
            return self._timeout
        beats = list(self._beats)
        gaps = [b - a for a, b in itertools.pairwise(beats)]
        return max(300.0, 20 * statistics.median(gaps)) if gaps else 300.0

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        turn, woke = min(1.0, max(0.05, self._timeout / 10 or 1.0)), time.monotonic()
        while not self._stop.wait(turn):
            slept_from, woke = woke, time.monotonic()
            # This thread has waited too long only if all of the process has, so that nothing else
            # could go on either. A beat since then is not moved past the present.
            self._last = min(woke, self._last + max(0.0, woke - slept_from - turn))
            if is_compiling():
                self._last = woke
            if self._beats and time.monotonic() - self._last > self.limit():
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
                interrupts.last_words(
                    f"nothing finished in the {self.limit():.0f} s after {self._what}; "
                    "the stacks are above; run the same command again to continue"
                )
                os._exit(TryAgain.exit_status)
