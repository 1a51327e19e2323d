# SPDX-License-Identifier: Apache-2.0
"""What `benchmark` found, as a person reads it: a card, a table of a sweep, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from albert_jax.figures import rounded
from albert_jax.memory import GIB
from albert_jax.plots import new_figure, save_plot

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


def card(r: dict[str, Any]) -> str:
    """The figures of one `benchmark`, a line each."""
    spread, rate = r["step_ms_of"], r["sequences_per_second"]
    lines = [
        f"measured    {_PHASES[r['phase']]} of {r['model']}, {r['parameters']:,} parameters",
        f"batch       {r['batch_size']} x {r['sequence']} tokens"
        + (f", {r['predictions']} predictions" if r["phase"] != "finetune" else "")
        + (f", of {r['store']}" if r["store"] else ", made up"),
    ]
    if r["phase"] != "input":
        lines += [
            f"compute     {r['dtype']}, remat {r['remat']}, attention {r['attention']}, "
            f"unroll {r['unroll']}, accumulate {r['accumulate']}",
            f"compiled    in {r['compile_seconds']:.1f} s, of which tracing "
            f"{r['trace_seconds']:.1f} s",
        ]
    lines += [
        f"device      {r['devices']} x {r['device']}"
        + (f" under {r['mode']}" if r["phase"] != "input" else ""),
        f"step        {_ms(r['step_ms'])} "
        + ("on average" if r["phase"] == "input" else "median")
        + f" of {spread['steps']}; quartiles {_ms(spread['quarter'])} to "
        f"{_ms(spread['three_quarters'])}, {_ms(spread['least'])} to {_ms(spread['most'])} in all",
        f"rate        {rounded(rate)} sequences/s, {r['tokens_per_second']:,.0f} tokens/s, "
        f"{_ms(r['ms_per_sequence'])} a sequence"
        + (f"; {_ms(r['pipelined_step_ms'])} a step in a row" if "pipelined_step_ms" in r else ""),
    ]
    if "tflop_per_second" in r:
        of = (
            f"MFU {r['mfu']:.1%} of {rounded(r['peak_flops'] / 1e12)} (dense bfloat16) a device"
            if r["mfu"] is not None
            else "no peak is known of this device, so no MFU"
        )
        lines.append(
            f"arithmetic  {rounded(r['tflop_per_step'])} TFLOP a step, "
            f"{rounded(r['tflop_per_second'])} TFLOP/s; {of}"
        )
    lines.append(
        f"memory      {rounded(r['peak_bytes'] / GIB, 3)} GiB ({_PEAK_OF[r['peak_bytes_of']]})"
    )
    if r.get("input_wait") is not None:
        lines.append(f"input       {r['input_wait']:.1%} of the time went by waiting for data")
    return "\n".join(lines)


_COLUMNS = {
    "step_ms": ("step ms", ".1f"),
    "ms_per_sequence": ("ms/seq", ".3f"),
    "sequences_per_second": ("seq/s", ",.1f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "mfu": ("MFU", ".1%"),
    "compile_seconds": ("compile s", ".1f"),
    "peak_bytes": ("peak GiB", ".2f"),
}


def table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The results of a `sweep` over the settings `names`, a line each."""
    rows = [[*names, *(title for title, _ in _COLUMNS.values())]]
    for result in results:
        setting = [str(result[name]) for name in names]
        if "error" in result:
            rows.append([*setting, result["error"].partition(";")[0]])
        else:
            rows.append([*setting, *(_cell(result, name) for name in _COLUMNS)])
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    widths[: len(names)] = [max(len(row[i]) for row in rows) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False))
        for row in rows
    )


def _cell(result: dict[str, Any], name: str) -> str:
    value = result[name]
    if value is None:
        return "-"
    return format(value / GIB if name == "peak_bytes" else value, _COLUMNS[name][1])


def draw(results: Sequence[dict[str, Any]], names: Sequence[str], picture: str | Path) -> None:
    """Draws a sweep as a PNG: rate, time a sequence, memory and MFU over the first of `names`, a
    curve for each value of the others."""
    measured = [r for r in results if "error" not in r]
    panels = {
        "sequences_per_second": ("sequences/s", 1.0),
        "ms_per_sequence": ("ms a sequence", 1.0),
        "peak_bytes": ("peak memory (GiB)", 1.0 / GIB),
        "mfu": ("MFU", 1.0),
    }
    panels = {k: v for k, v in panels.items() if any(r[k] is not None for r in measured)}
    curves: dict[str, list[dict[str, Any]]] = {}
    for result in measured:
        label = ", ".join(f"{name} {result[name]}" for name in names[1:])
        curves.setdefault(label, []).append(result)
    # As categories: batch sizes double, and dtypes are no numbers.
    ticks = list(dict.fromkeys(str(r[names[0]]) for r in results))
    figure, axes = new_figure(len(panels), width=4, height=3.4)
    for axis, (key, (label, scale)) in zip(axes, panels.items(), strict=True):
        for name, points in curves.items():
            known = [r for r in points if r[key] is not None]  # MFU of --phase input is none
            xs = [ticks.index(str(r[names[0]])) for r in known]
            axis.plot(xs, [r[key] * scale for r in known], marker="o", label=name)
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_xlabel(names[0])
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(fontsize="small")
    first = measured[0]
    title = f"{_PHASES[first['phase']]} of {first['model']}, {first['devices']} x {first['device']}"
    save_plot(figure, title, picture)


def _ms(value: float) -> str:
    return f"{rounded(value)} ms"
