# SPDX-License-Identifier: Apache-2.0
"""Draw all figures of this project in one style, and write them to files that appear complete.

Figures are made without pyplot, so they need no display and leave the caller's own figures alone.
Matplotlib is imported only where something is drawn.
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
from albert_jax.utils.wording import setting

WIDTH = 8.0  # inches: 800 pixels on a screen, where the smallest text is 11 pixels high
# Okabe and Ito's colours, which colour-blind readers can distinguish, without yellow, faint on
# white.
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
    """Return colour, line style and marker of line `number` of a figure.

    The first 35 lines differ in colour or line style. Neighbouring lines differ in their markers,
    which helps without colour and keeps 315 lines apart.
    """
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def set_style() -> None:
    """Make Matplotlib draw in this project's style from here on, as in a notebook."""
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
    """Return a Matplotlib figure and its panels [rows, columns].

    Args:
        title: the title; long lines are wrapped.
        rows: rows of panels.
        columns: columns of panels.
        height: inches.
        width: inches.
        layout: Matplotlib's layout engine.

    Returns:
        The figure, and an array of its axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    lines = [_wrapped(line, width - 1.0, lines=3) for line in title.splitlines()]
    figure.suptitle("\n".join(lines))
    return figure, figure.subplots(rows, columns, squeeze=False)


def reference_line(axis: Any, value: float, label: str, *, vertical: bool = False) -> None:
    """Draw a dashed grey line across a panel, with an entry in the legend.

    Args:
        axis: the panel.
        value: where the line crosses the y axis, or the x axis if it is `vertical`.
        label: the entry.
        vertical: draw the line from bottom to top.
    """
    from matplotlib.lines import Line2D

    along = axis.get_xaxis_transform() if vertical else axis.get_yaxis_transform()
    places = ([value] * 2, [0, 1]) if vertical else ([0, 1], [value] * 2)
    # Not axhline, which adds the value to the panel's limits with a rounding error: a panel that is
    # 0 throughout would reach from 0 to 1e-17.
    axis.add_artist(Line2D(*places, transform=along, label=label, **_REFERENCE))
    axis.update_datalim([(value, value)], updatex=vertical, updatey=not vertical)
    axis.autoscale(axis="x" if vertical else "y")


def legend(axis: Any) -> None:
    """Add a legend beside a panel, or below it if there are many lines.

    Args:
        axis: the panel, whose lines have labels.
    """
    handles, labels = axis.get_legend_handles_labels()
    labels = [_wrapped(label, 1.6, lines=3) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels)
    panels = axis.get_subplotspec().get_gridspec().nrows
    if lines * _ENTRY > axis.figure.get_figheight() / panels - 0.8:
        legend_below(axis.figure, [axis])
    elif labels:
        axis.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)


def legend_below(figure: Any, axes: Sequence[Any], title: str | None = None) -> None:
    """Add one legend for several panels below them, and make the figure higher to fit it.

    Args:
        figure: the figure.
        axes: the panels; a label that several have gets one entry.
        title: the legend's title.
    """
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
    """Give a panel a logarithmic x axis to base 2, with ticks at some values.

    Args:
        axis: the panel.
        values: positive numbers.
    """
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
    """Give a panel an x axis with names at 0, 1, ….

    Args:
        axis: the panel.
        names: the names.
    """
    room = _panel_width(axis) / len(names)
    labels = [_wrapped(name, max(room, 0.5), lines=3) for name in names]
    if _LETTER * max(map(_longest_line, labels)) <= room:
        axis.set_xticks(range(len(names)), labels)
    else:
        labels = [_wrapped(name, 1.6, lines=1) for name in names]
        axis.set_xticks(range(len(names)), labels, rotation=90)
    axis.set_xlim(-0.5, len(names) - 0.5)


def setting_axis(axis: Any, values: Sequence[Any]) -> tuple[dict[Any, float], bool]:
    """Give a panel an x axis for the values of a setting.

    Returns the place of each value, and True if the values are positive numbers on a logarithmic
    axis, False if they are categories at equal distances.
    """
    distinct = list(dict.fromkeys(values))
    if all(type(value) in (int, float) and value > 0 for value in distinct):
        number_axis(axis, distinct)
        return {value: float(value) for value in distinct}, True
    category_axis(axis, [str(value) for value in distinct])
    return {value: float(number) for number, value in enumerate(distinct)}, False


def whole_steps(axis: Any) -> None:
    """Give a panel an x axis of whole numbers, such as steps or passes.

    Args:
        axis: the panel.
    """
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter("{x:,.0f}")


def from_zero(axis: Any) -> None:
    """Start a panel's y axis at 0 and leave room above the maximum.

    Args:
        axis: the panel.
    """
    most = axis.dataLim.y1
    axis.set_ylim(0, 1.1 * most if most > 0 else 1.0)


def percent_axis(axis: Any) -> None:
    """Show fractions between 0 and 1 on a panel's y axis as percentages.

    Args:
        axis: the panel.
    """
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def bytes_unit(most: float) -> tuple[str, float]:
    """Return the binary unit in which a number of bytes is easy to read.

    Args:
        most: the largest number of bytes to show.

    Returns:
        The unit's name, and its size in bytes.

    Examples:
        >>> from albert_jax import plots
        >>> plots.bytes_unit(3e9)
        ('GiB', 1073741824.0)
    """
    units = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
    return next(((name, float(size)) for name, size in units if most >= size / 2), ("bytes", 1.0))


def thinned(xs: np.ndarray, ys: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Return the indices of at most `most` points that show a line as all points would.

    Of each stretch of neighbours, the lowest and the highest remain, so that a spike stays. `ys`
    must be finite.
    """
    if len(xs) <= most:
        return np.arange(len(xs))
    kept = set()
    for part in np.array_split(np.arange(len(xs)), most // 2):
        kept |= {part[ys[part].argmin()], part[ys[part].argmax()]}
    return np.array(sorted(kept))


def _panel_width(axis: Any) -> float:
    """Return the approximate inches of a panel's x axis, without the labels of the y axis."""
    return WIDTH / axis.get_subplotspec().get_gridspec().ncols - 0.8


def _wrapped(text: str, inches: float, *, lines: int) -> str:
    """Return text in lines of at most `inches` in the smallest font size.

    A text of more than `lines` lines loses its middle, because names differ at their ends.
    """
    letters = max(6, int(inches / _LETTER))
    most = letters * lines
    if len(text) > most:
        text = f"{text[: most // 2 - 1]}…{text[len(text) - most // 2 + 1 :]}"
    return _Wrapper(letters).fill(text) if lines > 1 else text


class _Wrapper(textwrap.TextWrapper):
    """Break lines within paths and recipes too: after /, :, =, a comma and a hyphen."""

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
        title: the figure's title.
        matrices: one or several, each a panel.
        rows: the label of each row.
        columns: the label of each column.
        row_name: what a row is, with its unit.
        column_name: what a column is, with its unit.
        value_name: what a value is, with its unit.
        names: the titles of several panels.
        limits: the values at the ends of the colour scale; unset, the minimum and the maximum.
        cells: the format of numbers in the cells, such as ".2f"; unset, cells are empty.

    Returns:
        The Matplotlib figure.
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
    """Return how many of `count` heat maps stand side by side, and the inches of a cell.

    At most four maps share the `room`, in inches. A cell fits its label, unless two maps of such
    cells are too wide.
    """
    fitting = int(room / max(columns * _PITCH + 0.2, 1.2))
    across = min(count, max(2, min(4, fitting)))
    return across, min((room / across - 0.1) / columns, 1.2)


def _longest_line(text: str) -> int:
    return max(map(len, text.split("\n")))


def _column_labels(columns: Sequence[str], cell: float) -> tuple[list[str], int]:
    """Return the labels of columns that are `cell` inches wide, and the degrees to rotate them."""
    labels = [_wrapped(label, cell, lines=3) for label in columns]
    if _LETTER * max(map(_longest_line, labels)) <= cell:
        return labels, 0
    return [_wrapped(label, 1.8, lines=1) for label in columns], 90


def _write_cells(panel: Any, matrix: np.ndarray, image: Any, form: str, cell: float) -> None:
    """Write each number into its cell, unless one of them does not fit the `cell` inches."""
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
    """Raise UserError if `save_plot` cannot write `picture`, before anything is measured."""
    picture = Path(picture)
    if picture.suffix.lower() not in ("", ".png", ".pdf", ".svg"):
        raise UserError(f"{setting('plot')} {picture} must end in .png, .pdf or .svg")
    if picture.is_dir():
        raise UserError(f"{setting('plot')} {picture} is a folder; name a file in it")
    if not picture.parent.is_dir():
        raise UserError(
            f"{setting('plot')} {picture} cannot be written: there is no folder {picture.parent}"
        )


def save_picture(figure: Any, picture: str | Path) -> None:
    """Write a finished figure, as PNG unless the name ends in .pdf or .svg.

    The file appears complete; if writing fails, the former file stays. A pipe or a device is
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
    """Write the figure of a command's --plot; raises UserError if that fails."""
    check_picture(picture)
    try:
        save_picture(figure, picture)
    except OSError as error:
        raise UserError(
            f"{setting('plot')} {picture} cannot be written: {error.strerror}"
        ) from None
