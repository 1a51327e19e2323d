# SPDX-License-Identifier: Apache-2.0
"""Draw the batches of a run whose examples change from stage to stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from albert_jax.config.sections import ExamplesConfig
from albert_jax.config.stages import Stages
from albert_jax.data.loader import Batch, Batches, Draw, Example, ExampleSource, make_dataset


class StagedExamples:
    """Hold a run's examples; stages with the same settings share a source, and continue in it."""

    def __init__(
        self, stages: Stages, source_of: Callable[[ExamplesConfig], ExampleSource]
    ) -> None:
        self._stages = stages
        self._sources = {stage.examples: source_of(stage.examples) for stage in stages}
        self._first_rows: list[int] = []  # of each stage, in its source
        drawn = dict.fromkeys(self._sources, 0)
        for number, stage in enumerate(stages):
            self._first_rows.append(drawn[stage.examples])
            end = stages.end(number)
            if end is not None:
                drawn[stage.examples] += (end - stage.first) * stage.batch_size

    def batches(
        self, start: int, stop: int | None, process: tuple[int, int] = (0, 1), **loading: int
    ) -> Iterator[Batch]:
        """Return batches start, start + 1, … (to stop): of process (index, count) its rows.

        `loading` are `make_dataset`'s threads and workers.
        """
        if len(self._stages) == 1:
            return self._of_stage(0, start, stop, process, loading)
        return self._across(start, stop, process, loading)

    def _across(
        self, start: int, stop: int | None, process: tuple[int, int], loading: Mapping[str, int]
    ) -> Iterator[Batch]:
        for number in range(self._stages.number_at(start), len(self._stages)):
            end = self._stages.end(number)
            if stop is not None:
                end = stop if end is None else min(stop, end)
            first = max(start, self._stages[number].first)
            if end is not None and first >= end:
                return
            with contextlib.closing(self._of_stage(number, first, end, process, loading)) as drawn:
                yield from drawn

    def _of_stage(
        self,
        number: int,
        start: int,
        stop: int | None,
        process: tuple[int, int],
        loading: Mapping[str, int],
    ) -> Batches:
        stage = self._stages[number]
        source = self._sources[stage.examples]
        if shift := self._row(stage.first) - stage.first * stage.batch_size:
            source = cast(ExampleSource, _Shifted(source, shift))  # a loader asks for items alone
        draw = Draw(source, stage.batch_size, *process)
        return make_dataset(draw, start=start, stop=stop, **loading)

    def _row(self, batch: int) -> int:
        """Return the first row of a batch, counted in the source of its stage."""
        number = self._stages.number_at(batch)
        stage = self._stages[number]
        return self._first_rows[number] + (batch - stage.first) * stage.batch_size

    def passes(self, batches: int) -> float:
        """Return the number of passes over the text in the first `batches`."""
        passes, drawn = 0.0, dict.fromkeys(self._sources, 0)
        for number, stage in enumerate(self._stages):
            end = self._stages.end(number)
            end = batches if end is None else min(end, batches)
            drawn[stage.examples] += max(0, end - stage.first) * stage.batch_size
        for examples, rows in drawn.items():
            source = self._sources[examples]
            epoch, index = source.epoch_of(rows)
            passes += epoch + index / source.epoch_size(epoch)
        return passes

    def ended_epochs(self, batch: int) -> list[Any]:
        """Return the sizes of the epochs that a batch's source ended before it, as JSON."""
        return self._sources[self._stages.at(batch).examples].ended_epochs(self._row(batch))

    def remember_epochs(self, batch: int, sizes: list[Any]) -> None:
        """Accept the result of `ended_epochs` for a batch, so that those are not planned again."""
        self._sources[self._stages.at(batch).examples].remember_epochs(sizes)


class _Shifted:
    """Give a source's examples from another one on; can be sent to a worker process."""

    def __init__(self, source: ExampleSource, shift: int) -> None:
        self._source, self._shift = source, shift

    def __getitem__(self, index: int) -> Example:
        return self._source[index + self._shift]
