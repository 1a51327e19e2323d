# SPDX-License-Identifier: Apache-2.0
"""Report on a fine-tuning run: baselines, degenerate runs, several seeds, and the environment."""

from __future__ import annotations

import math
import os
import platform
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.config.heads import SCORES
from albert_jax.tasks import RawExample, Task
from albert_jax.tasks.base import Predictions
from albert_jax.tasks.scores import in_words, line_of
from albert_jax.training.finetune_results import (
    Baseline,
    Hardware,
    SeedRun,
    SeedSpread,
    Summary,
)
from albert_jax.utils.provenance import without_credentials

_MAIN = Path(__file__).resolve().parents[1] / "__main__.py"


def constant_predictions(
    task: Task, train: Sequence[RawExample], dev: Sequence[RawExample]
) -> Predictions:
    """Return the best answer that ignores the dev examples.

    It is the most frequent training label (of words for token classification), the mean of a
    regression's scores, or no answer to a question.
    """
    if task.head.startswith("span"):
        return {example.id: "" for example in dev}
    labels = [example.label for example in train if example.label is not None]
    if task.head in SCORES:
        mean = float(np.mean(np.asarray(labels, np.float64)))
        return {example.id: mean for example in dev}
    if task.head == "token_classification":
        (word, _), *_ = Counter(x for label in labels for x in label).most_common(1)  # type: ignore[union-attr]
        return {example.id: [word] * len(example.texts) for example in dev}
    (label, _), *_ = Counter(labels).most_common(1)
    return {example.id: label for example in dev}


BASELINE = {
    **dict.fromkeys(SCORES, "mean of the training scores"),
    "token_classification": "most frequent label of the training words",
    "multi_label": "most frequent set of labels in training",
    "span_v1": "no answers at all",
    "span_v2": "no answers at all",
}


def baseline(task: Task, train: Sequence[RawExample], dev: Sequence[RawExample]) -> Baseline:
    """Return the metrics of `constant_predictions`."""
    what = BASELINE.get(task.head, "most frequent training label")
    found = task.metrics(dev, constant_predictions(task, train, dev))
    return Baseline(what=what, metrics={**found})


def is_degenerate(task: Task, dev: Sequence[RawExample], predictions: Mapping[str, Any]) -> bool:
    """Return whether examples with different labels all get the same answer, so nothing was learnt.

    A number's answers count as the same if their range is less than a twentieth of the labels'
    range, both without the highest and the lowest tenth if these labels differ.
    """
    values = list(predictions.values())
    labels = [example.label for example in dev]
    if task.head in SCORES:
        both_2N = np.asarray([values, labels], np.float64)
        ranges_2 = np.ptp(np.quantile(both_2N, (0.1, 0.9), axis=1), axis=0)
        if not ranges_2[1]:
            ranges_2 = np.ptp(both_2N, axis=1)
        return bool(ranges_2[0] < ranges_2[1] / 20)
    if task.head == "token_classification":
        values, labels = ([x for one in many for x in one] for many in (values, labels))  # type: ignore[union-attr]
    if task.head.startswith("span"):  # texts differ, so only silence is alike
        return len(values) > 1 and not any(values) and any(example.label for example in dev)
    return len(set(values)) == 1 and len(set(labels)) > 1


def summary(runs: Sequence[SeedRun], metric: str) -> Summary:
    """Return the metric's median, minimum and maximum over the runs.

    They are given for the last and for the best steps.
    """
    return Summary(
        last=_spread([run.last.metrics[metric] for run in runs]),
        best=_spread([run.best.metrics[metric] for run in runs]),
    )


def _spread(found: Sequence[float | None]) -> SeedSpread:
    values = [value for value in found if value is not None and math.isfinite(value)]
    if len(values) < len(found):  # of a missing value the order of the seeds would decide
        return SeedSpread(median=None, min=None, max=None)
    return SeedSpread(median=statistics.median(values), min=min(values), max=max(values))


def command_line() -> str:
    """Return the command line, or "Python" if no command of this package runs."""
    program = Path(sys.argv[0])
    is_ours = program.name == "albert-jax" or program.resolve() == _MAIN
    arguments: list[str] = without_credentials(sys.argv[1:])
    return shlex.join(["albert-jax", *arguments]) if is_ours else "Python"


def hardware(devices: Sequence[jax.Device]) -> Hardware:
    """Describe the devices that a run computes on."""
    device = devices[0]
    return Hardware(
        device=device.device_kind,
        devices=len(devices),
        platform=device.platform,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        machine=platform.machine(),
    )


def results_table(
    task: Task,
    runs: Sequence[SeedRun],
    summary: Summary,
    baseline: Baseline,
    metric: str | None = None,
) -> str:
    """Return the results as lines.

    They are each run's last and best dev step, the median and range over several runs, and the
    baseline. `metric` chose the best steps; None, the task's own metric did.
    """
    metric, lines = metric or task.metric, []
    for run in runs:
        told = ""
        if run.degenerate:
            told = "   DEGENERATE: answers all dev examples alike"
        elif run.collapsed_at_the_end:
            told = "   COLLAPSED: the last step answers all dev examples alike"
        if run.ended == "early_stopping":
            told += f"   ended early: {metric} no longer improved; step {run.best.step} is kept"
        lines.append(f"seed {run.seed}{told}")
        for which, judged in (("last", run.last), ("best", run.best)):
            figures = line_of(task, metric, judged.metrics)
            lines.append(f"  {which} step {judged.step:>6}  {figures}")
    seeds = sum(not run.restarted for run in runs)
    if seeds > 1:
        for which, found in (("last", summary.last), ("best", summary.best)):
            middle, least, most = (
                in_words(task, metric, value) for value in (found.median, found.min, found.max)
            )
            lines.append(
                f"{which} steps' {metric} of {seeds} seeds: median {middle}, {least} to {most}"
            )
    lines.append(f"baseline: {baseline.what}  {line_of(task, metric, baseline.metrics)}")
    return "\n".join(lines)
