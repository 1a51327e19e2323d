# SPDX-License-Identifier: Apache-2.0
"""What `finetune` returns, and results.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from albert_jax.tasks.scores import Metrics
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.results import ABSENT_IF_NONE, Result

RESULTS_FORMAT = 1  # 0.1 wrote this format without its number


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedStep(Result):
    """A step, and its metrics on all of dev."""

    step: int
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedRun(Result):
    """One seed's run.

    `directory` is relative to the work directory. `best` is the step that is kept as the model.
    `ended` says why no step followed `last`: all were made, the metric no longer improved, or a
    callback stopped the run; None in results of version 0.1. `degenerate` runs answer all dev
    examples alike at their best step, `collapsed_at_the_end` at their last. A run that was
    `restarted` does not count: another seed began anew in its place.
    """

    seed: int
    directory: str
    last: JudgedStep
    best: JudgedStep
    degenerate: bool
    collapsed_at_the_end: bool
    restarted: bool = False
    ended: Literal["last_step", "early_stopping", "callback"] | None = field(
        default=None, metadata=ABSENT_IF_NONE
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedSpread(Result):
    """A metric over the seeds."""

    median: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary(Result):
    """The spread over the seeds, at their last and at their best steps."""

    last: SeedSpread
    best: SeedSpread


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline(Result):
    """What one answer to all examples reaches, and which answer that is."""

    what: str
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class Hardware(Result):
    """The devices that computed, and the machine's cores and architecture."""

    device: str
    devices: int
    platform: str
    cores: int | None
    machine: str


@dataclass(frozen=True, kw_only=True, eq=False)
class FinetuneResults(Result):
    """All runs of one `finetune`, and what made them; `metric` chooses the best step."""

    format_version: int = RESULTS_FORMAT
    task: str
    metric: str
    model: str | None
    random_weights: bool
    train_examples: int
    dev_examples: int
    runs: list[SeedRun]
    summary: Summary
    baseline: Baseline
    class_weights: dict[str, float] | None = field(default=None, metadata=ABSENT_IF_NONE)
    seconds: float
    command: str
    commit: str | None
    versions: dict[str, str]
    hardware: Hardware
    config: JsonObject

    def shown(self) -> Mapping[str, Any]:
        """Return the metric of each seed's last and best step, and of the baseline."""
        metric = self.metric
        runs = [
            {
                "seed": run.seed,
                "last_step": run.last.step,
                f"last {metric}": run.last.metrics.get(metric),
                "best_step": run.best.step,
                f"best {metric}": run.best.metrics.get(metric),
                "ended": run.ended,
            }
            for run in self.runs
        ]
        return {
            **{name: self[name] for name in ("task", "model", "train_examples", "dev_examples")},
            "runs": runs,
            self.baseline.what: self.baseline.metrics.get(metric),
            "seconds": self.seconds,
        }
