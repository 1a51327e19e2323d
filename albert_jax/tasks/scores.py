# SPDX-License-Identifier: Apache-2.0
"""Show a task's metrics to people: fractions in percent, whatever the official scale is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from albert_jax.tasks.base import Task
from albert_jax.tasks.squad_metrics import TUNED
from albert_jax.utils.errors import UserError
from albert_jax.utils.numbers import rounded
from albert_jax.utils.wording import setting

LOSS = "loss"  # the mean dev loss, which any task with logits has in addition to its metrics
_LESS_IS_BETTER = (LOSS, "mean_squared_error")

_NOTES = {
    "matthews": "-1 to 1",
    "pearson": "-1 to 1",
    "spearman": "-1 to 1",
    "mean_squared_error": "of the labels' own unit, squared",
    LOSS: "less is better",
    **dict.fromkeys(TUNED, "threshold tuned on these very answers"),
}


Metrics = dict[str, int | float | None]
"""By name, in the official scale; None for what is not a number, as JSON has it."""


class Shown(NamedTuple):
    """Hold a metric for a table."""

    name: str
    value: str
    note: str  # "" for a fraction, which is shown with %


class Scores(dict[str, float]):
    """Hold metrics on the official scale, with the `line` that people read."""

    def __init__(self, metrics: Mapping[str, float], line: str) -> None:
        super().__init__(metrics)
        self.line = line


def metric_lines(task: Task, metric: str, metrics: Mapping[str, Any]) -> list[Shown]:
    """Return the metrics for a table, first `metric`, which chooses the best step.

    Metrics that repeat another, and the number of examples, are left out.
    """
    repeated = {"total"} | ({"exact_match"} if "exact" in metrics else set())
    names = [name for name in metrics if name not in repeated]
    names.sort(key=lambda name: name != metric)
    return [Shown(n, in_words(task, n, metrics[n]), _NOTES.get(n, "")) for n in names]


def line_of(task: Task, metric: str, metrics: Mapping[str, Any]) -> str:
    """Return the metrics in one line.

    Counts, and metrics that are tuned on the answers themselves, are left out.
    """
    return "  ".join(
        f"{name} {value}"
        for name, value, _ in metric_lines(task, metric, metrics)
        if not isinstance(metrics[name], int) and name not in TUNED
    )


def in_words(task: Task, name: str, value: float | None) -> str:
    """Return a metric's value as text.

    A fraction is in percent, a count a whole number, and no value is -.
    """
    if value is None or math.isnan(value):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if name in _LESS_IS_BETTER:
        return rounded(value)
    if name in ("matthews", "pearson", "spearman") or name.endswith("_thresh"):
        return f"{value:.4f}"
    whole = 100 if task.head.startswith("span") else 1
    return f"{value / whole:.2%}"


def goodness(name: str, value: float | None) -> float:
    """Return a metric's value as a number of which more is better; -inf for none and for NaN."""
    if value is None or math.isnan(value):
        return -math.inf
    return -value if name in _LESS_IS_BETTER else value


def check_metric(task: Task, name: str, metrics: Mapping[str, Any]) -> None:
    """Raise UserError for a metric that cannot choose the best step.

    Args:
        task: the task.
        name: the metric's name, or `LOSS`.
        metrics: the task's metrics for any predictions, for their names.
    """
    names = [name for name, value in metrics.items() if isinstance(value, float)]
    if task.head == "span_v2":  # constant answers have no odds and lack these
        names += TUNED
    known = list(dict.fromkeys(name for name in names if not name.endswith("_thresh")))
    if not task.head.startswith("span"):
        known.append(LOSS)
    if name not in known:
        raise UserError(
            f"{setting('metric')} {name!r} is none of {task.name}'s; give {', '.join(known)}"
        )
