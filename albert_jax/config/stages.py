# SPDX-License-Identifier: Apache-2.0
"""Divide a pretraining run into stages: depth, length, rows, masking and loss weights.

A schedule is a text, `VALUE:SHARE,VALUE:SHARE,…`, with shares of the run's updates. The schedules
together divide a run into stages. In each stage one compiled step makes all updates (with random
depth, one for each depth).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from albert_jax.config.model import LARGEST
from albert_jax.config.sections import ExamplesConfig, TrainConfig
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

Value = TypeVar("Value")


@dataclass(frozen=True)
class Stage:
    """Hold the settings of the batches from `first` on."""

    first: int
    """Number of its first batch."""
    depths: tuple[int, int]
    """Least and most passes of the shared layer; between them each batch draws its own."""
    batch_size: int
    examples: ExamplesConfig
    sentence_order_weight: float
    """Of the second objective's loss."""
    seed: int

    def depth(self, batch: int) -> int:
        """Return how often the shared layer is applied to a batch, by its number alone."""
        least, most = self.depths
        if least == most:
            return most
        drawn = hashlib.sha256(f"depth {self.seed} {batch}".encode()).digest()
        return least + int.from_bytes(drawn[:8], "big") % (most - least + 1)


class Stages:
    """Hold a run's stages in order; the last one has no end."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        assert stages, "a run has a stage"
        assert stages[0].first == 0, "and begins with it"
        self._stages = tuple(stages)
        self._firsts = [stage.first for stage in stages]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def __getitem__(self, number: int) -> Stage:
        return self._stages[number]

    @property
    def most_rows(self) -> int:
        """The rows of the largest batch."""
        return max(stage.batch_size for stage in self)

    def number_at(self, batch: int) -> int:
        """Return the number of a batch's stage, from 0."""
        return bisect_right(self._firsts, batch) - 1

    def at(self, batch: int) -> Stage:
        """Return the stage of a batch."""
        return self._stages[self.number_at(batch)]

    def end(self, number: int) -> int | None:
        """Return the batch after a stage's last, or None for the last stage."""
        return self._firsts[number + 1] if number + 1 < len(self) else None

    def continued(self, batch: int, onward: Stages) -> Stages:
        """Return these stages up to a batch, and from it on those of another run."""
        before = [stage for stage in self if stage.first < batch]
        after = [dataclasses.replace(onward.at(batch), first=batch)]
        after += [stage for stage in onward if stage.first > batch]
        if before and dataclasses.replace(after[0], first=before[-1].first) == before[-1]:
            del after[0]  # the same stage goes on
        return Stages([*before, *after])

    def sequences(self, batches: int) -> int:
        """Return the rows of the first batches."""
        return int(self.total(batches, lambda stage: stage.batch_size))

    def tokens(self, batches: int) -> int:
        """Return the tokens of the first batches, padding included."""
        return int(self.total(batches, lambda s: s.batch_size * s.examples.max_seq_length))

    def total(self, batches: int, each: Callable[[Stage], float]) -> float:
        """Return the sum over the first batches of `each`, a figure of a stage's batches."""
        ends = [*self._firsts[1:], batches]
        return sum(
            (min(end, batches) - stage.first) * each(stage)
            for stage, end in zip(self._stages, ends, strict=True)
            if stage.first < batches
        )


def stages_of(train: TrainConfig, examples: ExamplesConfig, depth: int) -> Stages:
    """Return the stages of a run, from its schedules, its settings and its model's depth.

    Raises UserError for text that is no schedule.
    """
    schedules: dict[str, Sequence[tuple[Any, float]]] = {
        "depth": _parsed("train.depth", train.depth, (depth, depth), partial(_depths, depth)),
        "batch_size": _parsed("train.batch_ramp", train.batch_ramp, train.batch_size, _count),
        "length": _parsed("train.length", train.length, examples.max_seq_length, _count),
        "masking": _parsed("train.masking", train.masking, examples.masked_lm_prob, _number),
        "weight": _parsed("train.sop_weight", train.sop_weight, 1.0, _number),
    }
    rate_factors(train)  # raises for text that is no schedule
    firsts = {name: _firsts(train.steps, of) for name, of in schedules.items()}
    starts = sorted({first for of in firsts.values() for first in of[:-1] if first < train.steps})

    def value(name: str, start: int) -> Any:
        return schedules[name][bisect_right(firsts[name][:-1], start) - 1][0]

    return Stages(
        [
            Stage(
                first=start,
                depths=value("depth", start),
                batch_size=value("batch_size", start),
                examples=_examples(examples, value("length", start), value("masking", start)),
                sentence_order_weight=value("weight", start),
                seed=train.seed,
            )
            for start in starts
        ]
    )


def last_depth(train: TrainConfig, depth: int) -> int:
    """Return the most passes of a schedule's end, which a run of few steps may not come to."""
    (_, most), _ = _parsed("train.depth", train.depth, (depth, depth), partial(_depths, depth))[-1]
    return most


def rate_factors(train: TrainConfig) -> list[tuple[int, float]]:
    """Return factors of the learning rate, each with the first update that has it.

    Raises UserError for text that is no schedule.
    """
    factors = _parsed("train.rate", train.rate, 1.0, _number)
    if not any(factor for factor, _ in factors):
        raise UserError(
            f"{setting('train.rate')} {train.rate!r} has no factor above 0, so nothing is learnt"
        )
    firsts = _firsts(train.steps, factors)
    return [(first, factor) for first, (factor, _) in zip(firsts, factors, strict=False)]


def _firsts(steps: int, schedule: Sequence[tuple[Any, float]]) -> list[int]:
    """Return the first update of each value of a schedule and, last, the run's end."""
    ends = itertools.accumulate(share for _, share in schedule)
    return [0, *(round(steps * end) for end in ends)]


def _examples(examples: ExamplesConfig, length: int, rate: float) -> ExamplesConfig:
    """Return the settings of a stage's examples.

    The number of predictions is scaled with the stage's length and masking rate.
    """
    if (length, rate) == (examples.max_seq_length, examples.masked_lm_prob):
        return examples
    scale = length / examples.max_seq_length * (rate / examples.masked_lm_prob)
    count = max(1, math.ceil(examples.max_predictions_per_seq * scale - 1e-9))
    try:
        return dataclasses.replace(
            examples, max_seq_length=length, masked_lm_prob=rate, max_predictions_per_seq=count
        )
    except UserError as error:
        of = f"{setting('train.length')} or {setting('train.masking')}"
        raise UserError(f"a stage of {of}: {error}") from None


def _parsed(
    name: str, text: str, otherwise: Value, read: Callable[[str], Value]
) -> list[tuple[Value, float]]:
    """Return a schedule's values with their shares.

    An empty text gives `otherwise` for the whole run.
    """
    if not text:
        return [(otherwise, 1.0)]
    parts = [part.strip().partition(":") for part in text.split(",")]
    try:
        if len(parts) == 1 and not parts[0][1]:  # one value and no share
            return [(read(parts[0][0]), 1.0)]
        schedule = [(read(value), _number(share)) for value, _, share in parts]
        total = sum(share for _, share in schedule)
    except ValueError:
        raise UserError(
            f"{setting(name)} {text!r} is no schedule; give VALUE:SHARE,VALUE:SHARE,… as in "
            "2:0.5,4:0.5"
        ) from None
    if abs(total - 1) > 1e-6 or min(share for _, share in schedule) <= 0:
        raise UserError(
            f"{setting(name)} {text!r} has shares of {total:g} together; give shares above 0 that "
            "make up 1"
        )
    return schedule


def _depths(whole: int, text: str) -> tuple[int, int]:
    """Return the minimum and maximum of passes in `2`, `2-6` or `all`; `all` is `whole`."""
    if text == "all":
        return whole, whole
    least, dash, most = text.partition("-")
    depths = (_count(least), _count(most if dash else least))
    if depths[0] > depths[1]:
        raise ValueError(text)
    return depths


def _count(text: str) -> int:
    if not 1 <= (count := int(text)) <= LARGEST:
        raise ValueError(text)
    return count


def _number(text: str) -> float:
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError(text)
    return number
