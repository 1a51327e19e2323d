# SPDX-License-Identifier: Apache-2.0
"""How every picture of this project looks: one style, one width, heat maps, files written whole.

Figures are made without pyplot, so they need no display and leave the caller's own figures alone.
Matplotlib is imported where something is drawn.
"""

from __future__ import annotations

import contextlib
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import UserError

WIDTH = 8.0  # inches: 800 pixels on a screen, where the smallest text is 11 pixels high
# Okabe and Ito's colours, which colour-blind readers tell apart, without yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MOST_POINTS = 1000  # of a line: more than a picture has columns of pixels to show
_REFERENCE: dict[str, Any] = {"color": "0.35", "linestyle": (0, (8, 2, 1, 2)), "linewidth": 1.2}
_LETTER = 0.067  # inches of a letter in the smallest size, on average
_PITCH = 0.125  # inches from one line of it to the next
_ENTRY = 0.17  # and from one entry of a legend to the next


# -------------------------------------------------------------------------------------- the style


def _style() -> dict[Any, Any]:
    from cycler import cycler

    count = math.lcm(len(COLOURS) * len(LINE_STYLES), len(MARKERS))
    styles = [line_style(number) for number in range(count)]
    return {
        "axes.axisbelow": True,
        "axes.formatter.limits": (-5, 6),
        "axes.formatter.useoffset": False,
        "axes.grid": True,
        "axes.labelsize": 9,
        "axes.prop_cycle": cycler(**{key: [style[key] for style in styles] for key in styles[0]}),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 9,
        "figure.dpi": 100,
        "figure.titlesize": 10,
        "font.size": 9,
        "grid.alpha": 0.3,
        "image.cmap": "viridis",
        "legend.fontsize": 8,
        "legend.handlelength": 3.2,  # shows a whole dash
        "legend.title_fontsize": 8,
        "lines.linewidth": 1.5,
        "lines.markersize": 4.5,
        "savefig.dpi": 150,
        "text.parse_math": False,  # a piece of a vocabulary may be a dollar sign
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
    }


def line_style(number: int) -> dict[str, Any]:
    """Return colour, line style and marker of line `number` of a picture.

    The first 35 lines differ in colour or line style; markers differ from neighbour to neighbour,
    which helps where there is no colour, and keep 315 lines apart.
    """
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def set_style() -> None:
    """Make Matplotlib draw in this project's style from here on, as a notebook wants it."""
    import matplotlib

    matplotlib.rcParams.update(_style())


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in this project's style within, and leave the caller's settings as they were."""
    import matplotlib

    with matplotlib.rc_context(_style()):
        yield


# ------------------------------------------------------------------------------- figures and axes


def new_figure(
    title: str,
    rows: int = 1,
    columns: int = 1,
    *,
    height: float,
    width: float = WIDTH,
    layout: Literal["constrained", "compressed"] = "constrained",
) -> tuple[Any, np.ndarray]:
    """Return a Matplotlib figure of so many inches and its panels [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    lines = [_wrapped(line, width - 1.0, lines=3) for line in title.splitlines()]
    figure.suptitle("\n".join(lines))
    return figure, figure.subplots(rows, columns, squeeze=False)


def reference_line(axis: Any, value: float, label: str, *, vertical: bool = False) -> None:
    """Draw a broken grey line across a panel at `value`; the legend says what it is."""
    from matplotlib.lines import Line2D

    along = axis.get_xaxis_transform() if vertical else axis.get_yaxis_transform()
    places = ([value] * 2, [0, 1]) if vertical else ([0, 1], [value] * 2)
    # Not axhline, which puts the value into the panel's limits with an error of rounding: a panel
    # that is 0 throughout would reach from 0 to 1e-17.
    axis.add_artist(Line2D(*places, transform=along, label=label, **_REFERENCE))
    axis.update_datalim([(value, value)], updatex=vertical, updatey=not vertical)
    axis.autoscale(axis="x" if vertical else "y")


def legend(axis: Any) -> None:
    """Explain a panel's lines beside it, where no data are hidden; below it where they are many."""
    handles, labels = axis.get_legend_handles_labels()
    labels = [_wrapped(label, 1.6, lines=3) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels)
    panels = axis.get_subplotspec().get_gridspec().nrows
    if lines * _ENTRY > axis.figure.get_figheight() / panels - 0.8:
        legend_below(axis.figure, [axis])
    elif labels:
        axis.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)


def legend_below(figure: Any, axes: Sequence[Any], title: str | None = None) -> None:
    """Explain the lines of several panels once, below them all, and make the figure higher by as
    much as that takes."""
    entries: dict[str, object] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    labels = [_wrapped(label, WIDTH - 1.5, lines=1) for label in entries]
    widest = _LETTER * max(map(len, labels)) + 0.8
    columns = max(1, min(len(labels), int((WIDTH - 0.3) / widest)))
    lines = math.ceil(len(labels) / columns) + (title is not None)
    figure.set_figheight(figure.get_figheight() + _ENTRY * lines + 0.1)
    place = "outside lower center"
    figure.legend(entries.values(), labels, loc=place, ncols=columns, title=title)


def number_axis(axis: Any, values: Sequence[float]) -> None:
    """Give a panel a logarithmic x axis to base 2 with ticks at `values`, positive numbers."""
    values = sorted(set(values))
    axis.set_xscale("log", base=2)
    axis.set_xlim(values[0] / 2**0.3, values[-1] * 2**0.3)
    inches = _panel_width(axis) / (math.log2(values[-1] / values[0]) + 0.6)
    shown: list[float] = []
    for value in values:  # Ticks whose numbers would touch are left out.
        space = _LETTER * len(f"{value:g}") + 0.1
        if not shown or inches * math.log2(value / shown[-1]) > space:
            shown.append(value)
    axis.set_xticks(shown, [f"{value:g}" for value in shown])
    axis.set_xticks([], minor=True)


def category_axis(axis: Any, names: Sequence[str]) -> None:
    """Give a panel an x axis with a tick at 0, 1, … for each of `names`."""
    room = _panel_width(axis) / len(names)
    labels = [_wrapped(name, max(room, 0.5), lines=3) for name in names]
    if _LETTER * max(map(_longest_line, labels)) <= room:
        axis.set_xticks(range(len(names)), labels)
    else:
        labels = [_wrapped(name, 1.6, lines=1) for name in names]
        axis.set_xticks(range(len(names)), labels, rotation=90)
    axis.set_xlim(-0.5, len(names) - 0.5)


def setting_axis(axis: Any, values: Sequence[Any]) -> tuple[dict[Any, float], bool]:
    """Give a panel an x axis of a setting's `values`; return where each stands, and whether they
    are positive numbers, on a logarithmic axis, or else categories at equal distances."""
    distinct = list(dict.fromkeys(values))
    if all(type(value) in (int, float) and value > 0 for value in distinct):
        number_axis(axis, distinct)
        return {value: float(value) for value in distinct}, True
    category_axis(axis, [str(value) for value in distinct])
    return {value: float(number) for number, value in enumerate(distinct)}, False


def whole_steps(axis: Any) -> None:
    """Give a panel an x axis of whole numbers: steps or passes."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter("{x:,.0f}")


def from_zero(axis: Any) -> None:
    """Let a panel's y axis start at 0 and leave room above the greatest value."""
    most = axis.dataLim.y1
    axis.set_ylim(0, 1.1 * most if most > 0 else 1.0)


def percent_axis(axis: Any) -> None:
    """Show shares between 0 and 1 on a panel's y axis as percentages."""
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def bytes_unit(most: float) -> tuple[str, float]:
    """Return the unit, and its bytes, in which `most` bytes are a number that can be read."""
    units = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
    return next(((name, float(size)) for name, size in units if most >= size / 2), ("bytes", 1.0))


def thinned(xs: np.ndarray, ys: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Return the indices of at most `most` points that show a line of finite `ys` as all would:
    of each stretch of neighbours the lowest and the highest, so that a spike stays."""
    if len(xs) <= most:
        return np.arange(len(xs))
    kept = set()
    for part in np.array_split(np.arange(len(xs)), most // 2):
        kept |= {part[ys[part].argmin()], part[ys[part].argmax()]}
    return np.array(sorted(kept))


def _panel_width(axis: Any) -> float:
    """Inches of a panel's x axis, about: the y axis's numbers and name take the rest."""
    return WIDTH / axis.get_subplotspec().get_gridspec().ncols - 0.8


def _wrapped(text: str, inches: float, *, lines: int) -> str:
    """Text in lines of at most so many inches in the smallest size; the middle of what is longer
    than `lines` of them is left out, as names differ at their ends."""
    letters = max(6, int(inches / _LETTER))
    most = letters * lines
    if len(text) > most:
        text = f"{text[: most // 2 - 1]}…{text[len(text) - most // 2 + 1 :]}"
    return _Wrapper(letters).fill(text) if lines > 1 else text


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines in paths and recipes, too: behind /, :, =, a comma and a hyphen."""

    wordsep_re = re.compile(r"(\s+|[^\s/:=,-]+[/:=,-]*|[/:=,-]+)")


# -------------------------------------------------------------------------------------- heat maps


def heat_maps(
    title: str,
    matrices: Sequence[Any],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_name: str,
    column_name: str,
    value_name: str,
    names: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
    cells: str | None = None,
) -> Any:
    """Return a figure of matrices [rows, columns] on one colour scale, with one colour bar.

    Args:
        title: what all of them show.
        matrices: one or several, each a panel.
        rows, columns: the labels of each matrix's rows and columns.
        row_name, column_name, value_name: what a row, a column and a value is, with its unit.
        names: the panels' titles, where there are several.
        limits: the values at the ends of the colour scale; by default the least and the greatest.
        cells: the format of numbers to write into the cells, as ".2f"; by default none.
    """
    stack = np.asarray(matrices)
    finite = stack[np.isfinite(stack)]
    low, high = limits or ((finite.min(), finite.max()) if finite.size else (0.0, 1.0))
    row_labels = [_wrapped(label, 1.8, lines=3) for label in rows]
    names_width = 1.6 + _LETTER * max(map(_longest_line, row_labels))  # and the colour bar's
    across, cell = _grid(len(stack), len(columns), WIDTH - names_width)
    down = math.ceil(len(stack) / across)
    column_labels, rotation = _column_labels(columns, cell)
    label_height = _LETTER * max(map(_longest_line, column_labels)) if rotation else 3 * _PITCH
    height = down * (cell * len(rows) + 0.3) + label_height + 0.8
    width = names_width + across * (cell * len(columns) + 0.1)
    figure, axes = new_figure(title, down, across, height=height, width=width, layout="compressed")
    every = math.ceil(_PITCH / cell)  # labels closer than a line's height would touch
    for panel in axes.flat[len(stack) :]:
        panel.set_axis_off()
    for number, (panel, matrix) in enumerate(zip(axes.flat, stack, strict=False)):
        image = panel.imshow(matrix, vmin=low, vmax=high)
        panel.grid(visible=False)
        panel.spines[:].set_visible(True)
        panel.set(title=names[number] if names else "", xticks=[], yticks=[])
        if number + across >= len(stack):
            places = range(0, len(columns), every)
            panel.set_xticks(places, column_labels[::every], rotation=rotation)
            panel.set_xlabel(column_name)
        if number % across == 0:
            panel.set_yticks(range(0, len(rows), every), row_labels[::every])
            panel.set_ylabel(row_name)
        if cells is not None:
            _write_cells(panel, matrix, image, cells, cell)
    ends = (bool((finite < low).any()), bool((finite > high).any()))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(ends, "neither")
    shrink = min(1.0, 4.5 / height)
    figure.colorbar(image, ax=axes, label=value_name, extend=extend, shrink=shrink, aspect=25)
    return figure


def _grid(count: int, columns: int, room: float) -> tuple[int, float]:
    """How many of `count` heat maps stand side by side in so many inches, four at most, and the
    inches of a cell: one that its label fits, unless two maps of such cells are too wide."""
    fitting = int(room / max(columns * _PITCH + 0.2, 1.2))
    across = min(count, max(2, min(4, fitting)))
    return across, min((room / across - 0.1) / columns, 1.2)


def _longest_line(text: str) -> int:
    return max(map(len, text.split("\n")))


def _column_labels(columns: Sequence[str], cell: float) -> tuple[list[str], int]:
    """Labels for columns of so many inches, and the degrees by which to turn them."""
    labels = [_wrapped(label, cell, lines=3) for label in columns]
    if _LETTER * max(map(_longest_line, labels)) <= cell:
        return labels, 0
    return [_wrapped(label, 1.8, lines=1) for label in columns], 90


def _write_cells(panel: Any, matrix: np.ndarray, image: Any, form: str, cell: float) -> None:
    """Write each number into its cell of so many inches, or none where one would not fit."""
    told = {place: format(value, form) for place, value in np.ndenumerate(matrix)}
    if _LETTER * max(map(len, told.values())) + 0.05 > cell:
        return
    for (i, j), text in told.items():
        red, green, blue, _ = image.cmap(image.norm(matrix[i, j]))
        is_dark = np.isfinite(matrix[i, j]) and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        colour = "white" if is_dark else "black"
        panel.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)


# ------------------------------------------------------------------------------------------ files


def check_picture(picture: str | Path) -> None:
    """Raise UserError where `save_plot` cannot write `picture`: before anything is measured."""
    picture = Path(picture)
    if picture.suffix.lower() not in ("", ".png", ".pdf", ".svg"):
        raise UserError(f"--plot {picture} must end in .png, .pdf or .svg")
    if picture.is_dir():
        raise UserError(f"--plot {picture} is a folder; name a file in it")
    if not picture.parent.is_dir():
        raise UserError(f"--plot {picture} cannot be written: there is no folder {picture.parent}")


def save_picture(figure: Any, picture: str | Path) -> None:
    """Write a finished figure, as PNG unless the name ends in .pdf or .svg.

    The file appears whole; where something fails, what was there stays. A pipe or a device is
    written to directly. Raises OSError.
    """
    picture = Path(picture)
    form = picture.suffix.lower()[1:] or "png"
    if picture.exists() and not picture.is_file():
        with picture.open("wb") as stream:
            figure.savefig(stream, format=form)
        return
    with appearing_file(picture.resolve()) as temporary:  # a link stays one
        figure.savefig(temporary, format=form)


def save_plot(figure: Any, picture: str | Path) -> None:
    """Write what a command's --plot asked for. Raises UserError where it cannot."""
    check_picture(picture)
    try:
        save_picture(figure, picture)
    except OSError as error:
        raise UserError(f"--plot {picture} cannot be written: {error.strerror}") from None
