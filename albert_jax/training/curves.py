# SPDX-License-Identifier: Apache-2.0
"""Draw the losses and accuracies of a pretraining run over its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from albert_jax.utils.plots import (
    legend,
    line_style,
    new_figure,
    percent_axis,
    reference_line,
    thinned,
    whole_steps,
)

# The name of a panel in `baselines`; the figure's name in metrics.jsonl; the axis.
_PANELS = {
    "loss": ("masked_lm_loss", "masked-LM loss (nats)"),
    "masked_lm_accuracy": ("masked_lm_accuracy", "masked-LM accuracy"),
    "sentence_order_accuracy": ("sentence_order_accuracy", "sentence-order accuracy"),
}
_KINDS = {"train": "training", "eval": "held out"}
_FEW = 30  # points; up to this number each gets a marker, so that a single point is visible
_LOG_RATIO = 100.0  # a loss with a wider range, such as a diverging one, needs a logarithmic axis


def curves_figure(entries: Iterable[Any], *, baselines: Mapping[str, float], title: str) -> Any:
    """Return a figure of the entries of a metrics.jsonl, a panel for each of loss and accuracies.

    `baselines` are dashed lines {"loss: unigram": 5.9}. A name starts with its panel: "loss",
    "masked_lm_accuracy" or "sentence_order_accuracy". Entries that are damaged, lack a figure or
    have a value that is not finite are left out. If none is left, the figure says so.
    """
    lines = _lines(entries)
    panels = [panel for panel in _PANELS if any(panel == name for _, name in lines)]
    figure, axes = new_figure(
        f"Pretraining: {title}", max(1, len(panels)), height=0.5 + 2.4 * max(1, len(panels))
    )
    if not panels:
        axes[0, 0].set(xlabel="step", ylabel=_PANELS["loss"][1], xticks=[], yticks=[])
        axes[0, 0].text(0.5, 0.5, "no step is logged yet", ha="center", va="center")
    for axis, panel in zip(axes[:, 0], panels, strict=False):
        for number, kind in enumerate(_KINDS):
            if (kind, panel) in lines:
                _draw_line(axis, *lines[kind, panel], number=number, label=_KINDS[kind])
        for name, value in baselines.items():
            if name.startswith(f"{panel}:") and math.isfinite(value):
                reference_line(axis, value, name.partition(":")[2].strip())
        axis.set(xlabel="step", ylabel=_PANELS[panel][1])
        _scale(axis, panel)
        whole_steps(axis)
        legend(axis)
    return figure


def _lines(entries: Iterable[Any]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Return the steps and values, as float64, of each (kind, panel); only finite values count."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for entry in entries:
        kind = entry.get("kind") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            continue
        step = _number(entry.get("step"))
        for panel, (name, _) in _PANELS.items():
            value = _number(entry.get(name))
            if math.isfinite(step) and math.isfinite(value):
                points.setdefault((kind, panel), []).append((step, value))
    arrays = {line: np.array(found) for line, found in points.items()}
    return {line: (array[:, 0], array[:, 1]) for line, array in arrays.items()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int of more than 308 digits
        return math.nan


def _draw_line(
    axis: Any, steps: np.ndarray, values: np.ndarray, *, number: int, label: str
) -> None:
    kept = thinned(steps, values)
    style = line_style(number)
    if len(steps) > _FEW:
        style |= {"marker": "", "linewidth": 1.0}
    axis.plot(steps[kept], values[kept], **style, label=label)


def _scale(axis: Any, panel: str) -> None:
    if panel != "loss":
        percent_axis(axis)
        return
    values = np.concatenate([line.get_ydata() for line in axis.get_lines()])
    if values.min() > 0 and values.max() > _LOG_RATIO * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
