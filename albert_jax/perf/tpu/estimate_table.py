# SPDX-License-Identifier: Apache-2.0
"""A table of estimates, a JSON object a line: written by `estimate --table`, read by `info` for a
recipe's chip-hours, drawn over the sizes of a slice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from albert_jax.config.model import MODELS
from albert_jax.config.run import PretrainConfig
from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.plots import (
    from_zero,
    legend_below,
    new_figure,
    number_axis,
    save_plot,
    styled,
)

ESTIMATES = Path(__file__).with_name("estimates.jsonl")  # what `info` reads

_SETTING = ("model", "topology", "phase", "batch_size", "sequence", "predictions", "dtype", "remat")
_SETTING += ("attention", "unroll", "accumulate", "mode")
_FIGURES = ("chips", "global_batch_size", "fits", "ms_per_sequence_per_chip", "step_ms", "ms_of")
_FIGURES += ("mfu", "hbm_bytes", "hbm_capacity_bytes", "collective_bytes", "compile_seconds")


def row_of(figures: dict[str, Any], date: str | None = None) -> dict[str, Any]:
    """What the table keeps of an estimate, and the day, today's in UTC unless given."""
    kept = {name: figures.get(name) for name in (*_SETTING, *_FIGURES, "commit")}
    versions = {name: figures["versions"][name] for name in ("jax", "libtpu")}
    return kept | {"versions": versions, "date": date or f"{datetime.now(UTC):%Y-%m-%d}"}


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a table, none where there is no file. Raises UserError for anything else."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"table {path} cannot be read: {error}") from None
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError:
        rows = [None]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() >= {*_SETTING, *_FIGURES}:
            raise UserError(
                f"line {number} of table {path} is no estimate; give a file that --table wrote, or "
                "a new one"
            )
    return rows


def record(path: str | Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Writes a row into a table in place of the one of the same setting; returns all rows."""
    rows = [each for each in read_table(path) if _setting(each) != _setting(row)] + [row]
    rows.sort(key=lambda each: (each["model"], each["topology"].partition(":")[0], each["chips"]))
    text = "".join(json.dumps(each) + "\n" for each in rows)
    try:
        with appearing_file(Path(path)) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--table {path} cannot be written: {error.strerror}") from None
    return rows


def _setting(row: dict[str, Any], *, but: str = "") -> tuple[Any, ...]:
    return tuple(row[name] for name in _SETTING if name != but)


def command(row: dict[str, Any]) -> str:
    """The command line that makes a row."""
    default = PretrainConfig()
    usual = {
        "phase": "train",
        "sequence": default.examples.max_seq_length,
        "dtype": "bfloat16",  # without a recipe
        "remat": default.compute.remat,
        "attention": default.compute.attention,
        "unroll": default.compute.scan_unroll,
        "accumulate": default.train.accumulate,
        "mode": default.train.mode,
    }
    told = [name for name in _SETTING if row[name] != usual.get(name)]
    return " ".join(["albert-jax estimate", *(f"--{n.replace('_', '-')} {row[n]}" for n in told)])


# -------------------------------------------------------------------------------------- chip-hours


def chip_hours(
    config: PretrainConfig, sequences: int, rows: Sequence[dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """What so many sequences of a run take by the table, by the kind of chip.

    Only a row of the very model, length and compute settings counts, with as many predictions or
    more; of several the one of the smallest slice, which has the least of rings, and there the
    fastest.
    """
    found: dict[str, dict[str, Any]] = {}
    alike = [
        row for row in (read_table(ESTIMATES) if rows is None else rows) if _is_of(row, config)
    ]
    for row in sorted(alike, key=lambda each: (each["chips"], each["ms_per_sequence_per_chip"])):
        kind, versions = f"TPU {row['topology'].partition(':')[0]}", row["versions"]
        found.setdefault(
            kind,
            {
                "hours": sequences * row["ms_per_sequence_per_chip"] / 3.6e6,
                "compiled_for": f"{row['topology']}, {row['batch_size']} x {row['sequence']} a "
                f"chip, {row['predictions']} predictions",
                "by": f"libtpu {versions['libtpu']}, jax {versions['jax']}, {row['date']}",
                "command": command(row),
            },
        )
    return found


def _is_of(row: dict[str, Any], config: PretrainConfig) -> bool:
    compute, examples = config.compute, config.examples
    return (
        row["fits"]
        and row["phase"] == "train"
        and MODELS.get(row["model"]) == config.model
        and row["sequence"] == examples.max_seq_length
        and row["predictions"] >= examples.max_predictions_per_seq
        and (row["dtype"], row["remat"]) == (compute.dtype, compute.remat)
        and (row["attention"], row["unroll"]) == (compute.attention, compute.scan_unroll)
        and row["mode"] == config.train.mode
    )


# ----------------------------------------------------------------------------------------- scaling


def scaling(rows: Sequence[dict[str, Any]], like: dict[str, Any]) -> dict[str, list[dict]]:
    """The rows of one row's step on slices of every size, by the kind of chip, smallest first: as
    {chips, collectives, efficiency}, shares of the step and of the smallest slice's rate a chip."""
    curves: dict[str, list[dict[str, Any]]] = {}
    same = _setting(like, but="topology")
    for row in sorted(rows, key=lambda each: each["chips"]):
        if row["fits"] and _setting(row, but="topology") == same:
            curve = curves.setdefault(row["topology"].partition(":")[0], [])
            least = curve[0]["row"] if curve else row
            curve.append(
                {
                    "chips": row["chips"],
                    "collectives": row["ms_of"]["collective"] / row["step_ms"],
                    "efficiency": least["ms_per_sequence_per_chip"]
                    / row["ms_per_sequence_per_chip"],
                    "row": row,
                }
            )
    return curves


def draw_scaling(rows: Sequence[dict[str, Any]], like: dict[str, Any], picture: str | Path) -> None:
    """Draw `scaling` into a file, as `scaling_figure`; raise UserError where there is nothing to
    draw or the file cannot be written."""
    with styled():
        save_plot(scaling_figure(rows, like), picture)


def scaling_figure(rows: Sequence[dict[str, Any]], like: dict[str, Any]) -> Any:
    """Return a figure of `scaling`, a line for each kind of chip: time a sequence and chip, the
    collectives' share of the step, efficiency and MFU. Raise UserError where nothing fits."""
    curves = scaling(rows, like)
    if not curves:
        raise UserError(f"nothing to draw: {like['model']} does not fit {like['topology']}")
    figure, axes = new_figure(
        f"{like['model']}, {like['batch_size']} x {like['sequence']} tokens a chip, on slices of "
        f"every size: the compiler's estimate, libtpu {like['versions']['libtpu']}",
        *(2, 2),
        height=5.6,
    )
    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        "ms a sequence and chip": lambda point: point["row"]["ms_per_sequence_per_chip"],
        "collectives (% of the step)": lambda point: 100 * point["collectives"],
        "efficiency (% of the smallest slice)": lambda point: 100 * point["efficiency"],
        "MFU (%)": lambda point: 100 * point["row"]["mfu"],
    }
    chips = [point["chips"] for curve in curves.values() for point in curve]
    for axis, (label, value) in zip(axes.flat, panels.items(), strict=True):
        number_axis(axis, chips)
        for kind, curve in curves.items():
            axis.plot([p["chips"] for p in curve], [value(p) for p in curve], label=kind)
        axis.set(xlabel="chips", ylabel=label)
        from_zero(axis)
    legend_below(figure, axes.flat, title="TPU")
    return figure
