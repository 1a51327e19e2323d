# SPDX-License-Identifier: Apache-2.0
"""Define what `finetune` returns, and results.json holds."""

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
    """Hold a step and its metrics on all of dev."""

    step: int
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedRun(Result):
    """Hold one seed's run.

    Attributes:
        seed: the run's seed.
        directory: relative to the work directory.
        last: the last step.
        best: the step that is kept as the model.
        degenerate: True if the model gives all dev examples the same answer at its best step.
        collapsed_at_the_end: the same at its last step.
        restarted: True if another seed replaced this degenerate run, which then does not count.
        ended: why no step followed `last`: all were made, the metric no longer improved, or a
            callback stopped the run. None in results of version 0.1.
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
    """Hold a metric's median, minimum and maximum over the seeds."""

    median: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary(Result):
    """Hold the spread over the seeds, at their last and at their best steps."""

    last: SeedSpread
    best: SeedSpread


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline(Result):
    """Hold the metrics of giving all examples one answer, and which answer that is."""

    what: str
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class Hardware(Result):
    """Describe the devices that computed, and the machine's cores and architecture."""

    device: str
    devices: int
    platform: str
    cores: int | None
    machine: str


@dataclass(frozen=True, kw_only=True, eq=False)
class FinetuneResults(Result):
    """Hold all runs of one `finetune`, and the settings that made them.

    Attributes:
        format_version: the version of results.json.
        task: the task's name.
        metric: the metric that chooses the best step.
        model: the model directory that the runs started from.
        random_weights: True if only the architecture and the vocabulary were taken from `model`.
        train_examples: the number of training examples.
        dev_examples: the number of dev examples.
        runs: a `SeedRun` for each seed.
        summary: the metric's median, minimum and maximum over the seeds.
        baseline: the metrics of giving all dev examples one answer.
        class_weights: the loss's weight of each label, if they were set.
        seconds: the time that this call took; a run that was resumed took longer in all.
        command: the command line.
        commit: the commit of this package's code, if it runs from a repository.
        versions: the versions of Python and the libraries.
        hardware: the devices.
        config: the fields of `FinetuneConfig`.
    """

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
