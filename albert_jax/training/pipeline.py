# SPDX-License-Identifier: Apache-2.0
"""Keep several steps in flight: the devices compute while the host draws the next batches."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax

from albert_jax.data.loader import Batch
from albert_jax.distributed.placement import Placement
from albert_jax.training.losses import Metrics
from albert_jax.training.position import Position
from albert_jax.training.step import TrainState

Batches = Callable[[int, int | None], Iterator[Batch]]
"""Batches by number, from one on and up to another, or without end."""


class StepResult(NamedTuple):
    """Hold a step that was started; `Pipeline.finished` yields it with its metrics on the host."""

    number: int  # the updates that are made with it
    batch: int  # the number of its batch
    metrics: Metrics
    tokens: int  # in its batch, of every process
    waited: float  # seconds that it waited for its batch


class Pipeline:
    """Start the steps of a run from a position on one by one, and finish them in order."""

    def __init__(
        self,
        program: Callable[..., Any],
        batches: Batches,
        placement: Placement,
        state: TrainState,
        position: Position,
    ) -> None:
        """Begin at `position`.

        `program` takes a batch's number, a state and the placed batch. `state` has plain arrays and
        is copied.
        """
        self._program, self._placement = program, placement
        self._stream = numbered_batches(batches, position)
        self._in_flight: collections.deque[StepResult] = collections.deque()
        self.state: Any = placement.put_state(state)  # after the last step that was started
        self.step = position.step  # steps started
        self.batch = position.batch  # the next batch to draw

    def start(self) -> None:
        """Start the next step; raises any exception of drawing its batch."""
        began = time.perf_counter()
        number, batch = next(self._stream)
        waited = time.perf_counter() - began
        # This process's rows, taken for those of every process.
        tokens = int(batch["input_mask"].sum()) if "input_mask" in batch else 0
        on_device = self._placement.put_batch(batch)
        with jax.transfer_guard("disallow"):  # a stray synchronisation is an error
            self.state, metrics = self._program(number, self.state, on_device)
        self.step, self.batch = self.step + 1, number + 1
        tokens *= jax.process_count()
        self._in_flight.append(StepResult(self.step, number, metrics, tokens, waited))

    def finished(self, ahead: int) -> Iterator[StepResult]:
        """Yield steps as they finish until only `ahead` are in flight."""
        while len(self._in_flight) > ahead:
            step = self._in_flight.popleft()
            yield step._replace(metrics=self._placement.fetch(step.metrics))

    def close(self) -> None:
        """Drop the steps in flight, the state and the batches drawn ahead."""
        self._in_flight.clear()
        self.state = None
        self._stream.close()


def numbered_batches(
    batches: Batches, position: Position
) -> Generator[tuple[int, Batch], None, None]:
    """Yield (number, batch) from the position on, without the ranges that are left out."""
    start = position.batch
    ends: list[tuple[int | None, int]] = [*sorted(position.left_out), (None, start)]
    for first, after in ends:
        if first is not None and after <= start:
            continue
        if first is None or start < first:
            drawn = batches(start, first)
            try:
                yield from enumerate(drawn, start)
            finally:
                getattr(drawn, "close", lambda: None)()
        start = after
