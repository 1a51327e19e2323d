# SPDX-License-Identifier: Apache-2.0
"""Record where a run stands, as its checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from albert_jax.utils.json_values import JsonObject

_NOT_SUMMED = ("skipped", "trust_ratio")


@dataclass(frozen=True)
class Tally:
    """Hold sums of the metrics of the steps since the log's last line.

    A checkpoint keeps them, so that a line is the same whether or not the run was interrupted
    before it.
    """

    sums: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0

    def plus(self, metrics: Mapping[str, Any]) -> Tally:
        """Return the sums with one more step's metrics."""
        names = [name for name in metrics if name not in _NOT_SUMMED]
        sums = {name: self.sums.get(name, 0.0) + float(metrics[name]) for name in names}
        return Tally(sums, self.steps + 1)

    def means(self) -> dict[str, float]:
        """Return each metric's mean over the steps."""
        return {name: total / self.steps for name, total in self.sums.items()}


@dataclass(frozen=True)
class Position:
    """Hold how far a run has come."""

    step: int = 0
    """Updates made."""
    batch: int = 0
    """Number of the next batch to draw."""
    left_out: tuple[tuple[int, int], ...] = ()
    """Ranges of batches, (first, end), that a rollback left out."""
    tally: Tally = Tally()
    """Metrics of the last steps that are not in the log yet."""
    losses: tuple[float, ...] = ()
    """The last losses of the stage, by which the guard judges the next."""

    def to_meta(self) -> JsonObject:
        """Return the position as JSON."""
        return {
            "step": self.step,
            "batch": self.batch,
            "left_out": [list(r) for r in self.left_out],
            "tally": {"sums": dict(self.tally.sums), "steps": self.tally.steps},
            "losses": list(self.losses),
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Position:
        """Return the position that `to_meta` wrote."""
        tally = meta.get("tally") or {"sums": {}, "steps": 0}  # 0.1.0 wrote none
        tally = Tally(tally["sums"], tally["steps"])
        left_out = tuple((a, b) for a, b in meta["left_out"])
        losses = tuple(meta.get("losses", ()))  # 0.1.0 wrote none
        return cls(meta["step"], meta["batch"], left_out, tally, losses)
