# SPDX-License-Identifier: Apache-2.0
"""Show the results of `benchmark` to people: a card, a table of a sweep, a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from albert_jax.perf.results import BenchmarkResult, StepBenchmark
from albert_jax.training.memory import GIB
from albert_jax.utils.columns import aligned
from albert_jax.utils.numbers import rounded
from albert_jax.utils.plots import (
    bytes_unit,
    from_zero,
    legend_below,
    line_style,
    new_figure,
    percent_axis,
    save_plot,
    setting_axis,
    styled,
)

Point = Mapping[str, Any]
"""A `SweepPoint`, read by the names of the columns and settings that are shown."""

_PEAK_OF = {
    "device": "the device's own count",
    "program": "the program's arguments, results and temporaries, as compiled",
    "process": "resident memory of this process",
}
_PHASES = {
    "train": "training step",
    "forward": "evaluation's step",
    "finetune": "classifier's training step",
    "input": "drawing batches",
}


def benchmark_lines(result: BenchmarkResult) -> str:
    """Return the figures of one `benchmark`, a line each."""
    step = result if isinstance(result, StepBenchmark) else None
    lines = [
        f"measured    {_PHASES[result.phase]} of {result.model}, {result.parameters:,} parameters",
        f"batch       {result.batch_size} x {result.sequence} tokens"
        + (f", {result.predictions} predictions" if result.phase != "finetune" else "")
        + (f", of {result.store}" if result.store else ", made up"),
    ]
    if step is not None:
        lines += [
            f"compute     {step.dtype}, remat {step.remat}, attention {step.attention}, "
            f"unroll {step.unroll}, accumulate {step.accumulate}",
            f"compiled    in {step.compile_seconds:.1f} s, of which tracing "
            f"{step.trace_seconds:.1f} s",
        ]
    lines += [*_time_lines(result, step), *([] if step is None else [_arithmetic_line(step)])]
    lines.append(
        f"memory      {rounded(result.peak_bytes / GIB, 3)} GiB ({_PEAK_OF[result.peak_bytes_of]})"
    )
    if step is not None and step.input_wait is not None:
        lines.append(f"input       {step.input_wait:.1%} of the time went by waiting for data")
    return "\n".join(lines)


def _time_lines(result: BenchmarkResult, step: StepBenchmark | None) -> list[str]:
    spread = result.step_ms_of
    under = "" if step is None else f" under {step.mode}"
    in_a_row = "" if step is None else f"; of steps in a row, {_ms(step.pipelined_step_ms)} each"
    return [
        f"device      {result.devices} x {result.device}{under}",
        f"step        {_ms(result.step_ms)} {'on average' if step is None else 'median'}"
        f" of {spread.steps}; quartiles {_ms(spread.quarter)} to "
        f"{_ms(spread.three_quarters)}, {_ms(spread.least)} to {_ms(spread.most)} in all",
        f"rate        {rounded(result.sequences_per_second)} sequences/s, "
        f"{result.tokens_per_second:,.0f} tokens/s, "
        f"{_ms(result.ms_per_sequence)} a sequence{in_a_row}",
    ]


def _arithmetic_line(step: StepBenchmark) -> str:
    share = "no peak is known of this device, so no MFU"
    if step.mfu is not None and step.peak_flops is not None:
        peak = rounded(step.peak_flops / 1e12)
        share = f"MFU {step.mfu:.1%} of {peak} (dense bfloat16) a device"
    return (
        f"arithmetic  {rounded(step.tflop_per_step)} TFLOP a step, "
        f"{rounded(step.tflop_per_second)} TFLOP/s; {share}"
    )


# Title, unit, and digits after the point; None: three digits of the minimum.
_COLUMNS: dict[str, tuple[str, float, int | None]] = {
    "step_ms": ("step ms", 1.0, None),
    "pipelined_step_ms": ("in-row ms", 1.0, None),
    "ms_per_sequence": ("ms/seq", 1.0, None),
    "sequences_per_second": ("seq/s", 1.0, 1),
    "tokens_per_second": ("tokens/s", 1.0, 0),
    "mfu": ("MFU %", 0.01, 1),
    "compile_seconds": ("compile s", 1.0, 1),
    "peak_bytes": ("peak GiB", GIB, None),
}
_FOOTNOTE = (
    "step ms: median of single steps, each waited for; in-row ms: mean of steps in a row, as in a "
    "run;\nms/seq (in-row ms / batch), seq/s, tokens/s and MFU: of the steps in a row"
)
_INPUT_FOOTNOTE = "step ms: mean time of drawing a batch; ms/seq is step ms / batch"


def sweep_table(results: Sequence[Point], names: Sequence[str]) -> str:
    """Return the results of a `sweep` over the settings `names`, a line each.

    Below them, a line explains the times.
    """
    measured = [result for result in results if "error" not in result]
    cells = zip(*(_column(measured, name) for name in _COLUMNS), strict=True)
    rows = [[*names, *(title for title, *_ in _COLUMNS.values())]]
    for result in results:
        setting = [str(result[name]) for name in names]
        why = result.get("error", "").partition(";")[0]
        rows.append([*setting, *([why] if why else next(cells))])
    lines = [aligned(rows, "r" * len(rows[0]))]
    if any("pipelined_step_ms" in result for result in measured):
        lines.append(_FOOTNOTE)
    if any(result["phase"] == "input" for result in measured):
        lines.append(_INPUT_FOOTNOTE)
    return "\n".join(lines)


def _column(measured: Sequence[Point], name: str) -> list[str]:
    """Return the cells of a column, with the same number of digits after the point.

    A missing value is -: drawing batches, for example, has no steps in a row.
    """
    _, unit, digits = _COLUMNS[name]
    found = [result.get(name) for result in measured]
    values = [None if value is None else value / unit for value in found]
    if digits is None:
        least = min((value for value in values if value), default=1.0)
        digits = max(0, 2 - math.floor(math.log10(least)))
    return ["-" if value is None else f"{value:,.{digits}f}" for value in values]


def draw_sweep(results: Sequence[Point], names: Sequence[str], picture: str | Path) -> None:
    """Draw `sweep_figure` into a file; raises UserError if it cannot be written."""
    with styled():
        save_plot(sweep_figure(results, names), picture)


def sweep_figure(results: Sequence[Point], names: Sequence[str]) -> Any:
    """Return a figure of a sweep over the first of `names`, a line for each setting of the others.

    Its panels are the rate, the time a sequence, the peak memory and, if known, the MFU. Crosses
    are steps that do not fit.
    """
    measured = [r for r in results if "error" not in r]
    unit, size = bytes_unit(max(r["peak_bytes"] for r in measured))
    panels = {
        "sequences_per_second": ("sequences a second", 1.0),
        "ms_per_sequence": ("ms a sequence", 1.0),
        "peak_bytes": (f"peak memory ({unit})", size),
        "mfu": ("MFU", 1.0),
    }
    panels = {k: v for k, v in panels.items() if any(r[k] is not None for r in measured)}
    rows = (len(panels) + 1) // 2
    figure, axes = new_figure(_title(results, names), rows, 2, height=0.9 + 2.6 * rows)
    lines: dict[str, list[Point]] = {}
    for result in results:
        setting = ", ".join(str(result[name]) for name in names[1:])
        lines.setdefault(setting or "measured", []).append(result)
    for axis, (key, (label, size)) in zip(axes.flat, panels.items(), strict=False):
        _draw_panel(axis, names[0], lines, key, size)
        axis.set(xlabel=names[0], ylabel=label)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    if len(lines) > 1 or len(measured) < len(results):
        legend_below(figure, list(axes.flat[: len(panels)]), title=", ".join(names[1:]) or None)
    return figure


def _draw_panel(
    axis: Any, name: str, lines: Mapping[str, Sequence[Point]], key: str, size: float
) -> None:
    """Draw the figure `key`, in units of `size`, over the setting `name`, and what has no value."""
    place, is_number = setting_axis(axis, [r[name] for points in lines.values() for r in points])
    for number, (setting, points) in enumerate(lines.items()):
        # Between categories, such as dtypes, there is nothing for a line to show.
        style = line_style(number) | ({} if is_number else {"linestyle": ""})
        known = [r for r in points if r.get(key) is not None]  # drawing batches has no MFU
        if known:
            drawn = sorted((place[r[name]], r[key] / size) for r in known)
            axis.plot(*zip(*drawn, strict=True), **style, label=setting)
        if failed := [place[r[name]] for r in points if "error" in r]:
            axis.plot(
                failed,
                [0.05 * (number + 1)] * len(failed),
                **style | {"linestyle": "", "marker": "x", "markersize": 7},
                transform=axis.get_xaxis_transform(),
                label=f"{setting}: does not fit" if len(lines) > 1 else "does not fit",
            )
    from_zero(axis)
    if key == "mfu":
        percent_axis(axis)


def _title(results: Sequence[Point], names: Sequence[str]) -> str:
    """Return what varies in a sweep over `names`, and what stays the same."""
    first = next(r for r in results if "error" not in r)
    count = "" if "devices" in names or first["phase"] == "input" else f"{first['devices']} x "
    alike = {"phase": _PHASES[first["phase"]], "model": first["model"]}
    alike = {name: value for name, value in alike.items() if name not in names}
    return (
        f"Sweep of {', '.join(names)}: "
        + " of ".join(alike.values())
        + (f"{', ' if alike else ''}{count}{first['device']}")
    )


def _ms(value: float) -> str:
    return f"{rounded(value)} ms"
