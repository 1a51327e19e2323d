# SPDX-License-Identifier: Apache-2.0
"""Keep a table of estimates, a JSON object a line.

`estimate --table` writes it, `info` reads it for a recipe's chip-hours, and plots draw it over the
sizes of a slice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from albert_jax.config.model import MODELS
from albert_jax.config.run import PretrainConfig
from albert_jax.perf.tpu.results import TABLE_FORMAT, EstimateRow
from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject, refuse_newer_format
from albert_jax.utils.plots import (
    from_zero,
    legend_below,
    new_figure,
    number_axis,
    save_plot,
    styled,
)
from albert_jax.utils.results import Result
from albert_jax.utils.wording import setting

ESTIMATES = Path(__file__).with_name("estimates.jsonl")  # what `info` reads

# The fields that tell one step from another, in the order of the command's flags.
_SETTING: tuple[str, ...] = (
    *("model", "topology", "phase", "batch_size", "sequence", "predictions", "dtype", "remat"),
    *("attention", "unroll", "accumulate", "mode"),
)


def row_of(figures: Mapping[str, Any], date: str | None = None) -> EstimateRow:
    """Return what the table keeps of an estimate, with the day, by default today's in UTC."""
    kept = {field.name: figures.get(field.name) for field in dataclasses.fields(EstimateRow)}
    return EstimateRow.from_json(
        kept
        | {
            "format_version": TABLE_FORMAT,
            "versions": {name: figures["versions"][name] for name in ("jax", "libtpu")},
            "date": date or f"{datetime.now(UTC):%Y-%m-%d}",
        }
    )


def read_table(path: str | Path) -> list[EstimateRow]:
    """Return the rows of a table, none if there is no file; raises UserError for anything else."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"table {path} cannot be read: {error}") from None
    return [_row(line, f"line {number} of table {path}") for number, line in enumerate(lines, 1)]


def _row(line: str, name: str) -> EstimateRow:
    try:
        document = msgspec.json.decode(line, type=JsonObject)
        refuse_newer_format(document, TABLE_FORMAT, name)
        return EstimateRow.from_json(document)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UserError(
            f"{name} is no estimate ({error}); give a file that {setting('table')} wrote, or a new "
            "one"
        ) from None


def record(path: str | Path, row: EstimateRow) -> list[EstimateRow]:
    """Write a row into a table, replacing the row of the same setting; return all rows."""
    rows = [each for each in read_table(path) if _setting(each) != _setting(row)] + [row]
    rows.sort(key=lambda each: (each.model, each.chip, each.chips))
    text = "".join(json.dumps(each.to_json()) + "\n" for each in rows)
    try:
        with appearing_file(Path(path)) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{setting('table')} {path} cannot be written: {error.strerror}") from None
    return rows


def _setting(row: EstimateRow, *, but: str = "") -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in _SETTING if name != but)


def command(row: EstimateRow) -> str:
    """Return the command line that makes a row."""
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
    told = {name: getattr(row, name) for name in _SETTING if getattr(row, name) != usual.get(name)}
    flags = (f"--{name.replace('_', '-')} {value}" for name, value in told.items())
    return " ".join(["albert-jax estimate", *flags])


# -------------------------------------------------------------------------------------- chip-hours


@dataclass(frozen=True, kw_only=True, eq=False)
class ChipHours(Result):
    """Hold what a run takes on one kind of chip: the step, the compiler, and the command.

    Prices differ by region and contract. This kind is the cheaper one if its chip-hour costs less
    than `pays_below` times that of the kind with the most hours.
    """

    hours: float
    pays_below: float = 1.0
    compiled_for: str
    by: str
    command: str


def chip_hours(
    config: PretrainConfig, sequences: int, rows: Sequence[EstimateRow] | None = None
) -> dict[str, ChipHours]:
    """Return what a number of a run's sequences takes by the table, by the kind of chip.

    Only rows of exactly this model, length and compute settings count, with at least as many
    predictions. Of several, the one of the smallest slice counts, because it has the fewest rings,
    and of these the fastest. The kind with the fewest hours comes first.
    """
    known = read_table(ESTIMATES) if rows is None else rows
    alike = [
        (row.chips, row.ms_per_sequence_per_chip, row)
        for row in known
        if row.ms_per_sequence_per_chip is not None and _is_of(row, config)
    ]
    found: dict[str, ChipHours] = {}
    for _, ms, row in sorted(alike, key=lambda each: each[:2]):
        hours = ChipHours(
            hours=sequences * ms / 3.6e6,
            compiled_for=f"{row.topology}, {row.batch_size} x {row.sequence} a chip, "
            f"{row.predictions} predictions",
            by=f"libtpu {row.versions['libtpu']}, jax {row.versions['jax']}, {row.date}",
            command=command(row),
        )
        found.setdefault(f"TPU {row.chip}", hours)
    most = max((each.hours for each in found.values()), default=0.0)
    fewest_first = sorted(found.items(), key=lambda named: named[1].hours)
    return {
        kind: dataclasses.replace(each, pays_below=most / each.hours) for kind, each in fewest_first
    }


def _is_of(row: EstimateRow, config: PretrainConfig) -> bool:
    compute, examples = config.compute, config.examples
    dtype = "bfloat16" if compute.dtype == "auto" else compute.dtype  # on a TPU
    return (
        row.fits
        and row.phase == "train"
        and MODELS.get(row.model) == config.model
        and row.sequence == examples.max_seq_length
        and row.predictions >= examples.max_predictions_per_seq
        and (row.dtype, row.remat) == (dtype, compute.remat)
        and (row.attention, row.unroll) == (compute.attention, compute.scan_unroll)
        and row.mode == config.train.mode
    )


# ----------------------------------------------------------------------------------------- scaling


@dataclass(frozen=True)
class ScalingPoint:
    """Hold a step on one slice.

    `collectives` is their fraction of the step's time. `efficiency` is the rate of a chip as a
    fraction of that on the smallest slice. `mfu` is as in the row.
    """

    chips: int
    ms_per_sequence_per_chip: float
    collectives: float
    efficiency: float
    mfu: float


def scaling(rows: Sequence[EstimateRow], like: EstimateRow) -> dict[str, list[ScalingPoint]]:
    """Return one row's step on slices of every size, by the kind of chip, the smallest first."""
    curves: dict[str, list[ScalingPoint]] = {}
    same = _setting(like, but="topology")
    for row in sorted(rows, key=lambda each: each.chips):
        if not row.fits or _setting(row, but="topology") != same:
            continue
        if row.ms_per_sequence_per_chip and row.step_ms and row.ms_of and row.mfu is not None:
            curve, ms = curves.setdefault(row.chip, []), row.ms_per_sequence_per_chip
            curve.append(
                ScalingPoint(
                    chips=row.chips,
                    ms_per_sequence_per_chip=ms,
                    collectives=row.ms_of["collective"] / row.step_ms,
                    efficiency=(curve[0].ms_per_sequence_per_chip if curve else ms) / ms,
                    mfu=row.mfu,
                )
            )
    return {chip: curve for chip, curve in curves.items() if curve}


def draw_scaling(rows: Sequence[EstimateRow], like: EstimateRow, picture: str | Path) -> None:
    """Draw `scaling_figure` into a file.

    Raises UserError if there is nothing to draw or the file cannot be written.
    """
    with styled():
        save_plot(scaling_figure(rows, like), picture)


def scaling_figure(rows: Sequence[EstimateRow], like: EstimateRow) -> Any:
    """Return a figure of `scaling`, a line for each kind of chip.

    Its panels are the time for each sequence and chip, the collectives' fraction of the step,
    efficiency and MFU. Raises UserError if nothing fits.
    """
    curves = scaling(rows, like)
    if not curves:
        raise UserError(f"nothing to draw: {like.model} does not fit {like.topology}")
    figure, axes = new_figure(
        f"{like.model}, {like.batch_size} x {like.sequence} tokens a chip, on slices of "
        f"every size: the compiler's estimate, libtpu {like.versions['libtpu']}",
        *(2, 2),
        height=5.6,
    )
    panels: dict[str, Callable[[ScalingPoint], float]] = {
        "ms a sequence and chip": lambda point: point.ms_per_sequence_per_chip,
        "collectives (% of the step)": lambda point: 100 * point.collectives,
        "efficiency (% of the smallest slice)": lambda point: 100 * point.efficiency,
        "MFU (%)": lambda point: 100 * point.mfu,
    }
    chips = [point.chips for curve in curves.values() for point in curve]
    for axis, (label, value) in zip(axes.flat, panels.items(), strict=True):
        number_axis(axis, chips)
        for kind, curve in curves.items():
            axis.plot([p.chips for p in curve], [value(p) for p in curve], label=kind)
        axis.set(xlabel="chips", ylabel=label)
        from_zero(axis)
    legend_below(figure, list(axes.flat), title="TPU")
    return figure
