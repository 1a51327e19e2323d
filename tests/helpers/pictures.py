# SPDX-License-Identifier: Apache-2.0
"""What every picture of the project must have, read from its figure, not from its pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

WIDEST = 8.0  # inches: 800 pixels at 100 an inch
SMALLEST = 8.0  # points: 11 pixels at 100 an inch
TOUCH = 1.0  # pixels by which the boxes of two texts may overlap: a box is wider than its letters


def faults(figure: Figure) -> list[str]:
    """Return what a reader of the picture would miss, a sentence each."""
    figure.draw_without_rendering()
    found = [] if figure.get_suptitle() else ["no title"]
    if figure.get_figwidth() > WIDEST:
        found.append(f"{figure.get_figwidth()} inches wide")
    panels = [axis for axis in figure.axes if axis.axison]
    images = [axis for axis in panels if axis.images]
    if images and not colour_bars(figure):
        found.append("no colour bar")
    for name in ("xaxis", "yaxis") if images else ():
        if not any(getattr(axis, name).get_ticklabels() for axis in images):
            found.append(f"no labels along the {name}")
    for number, axis in enumerate(panels):
        found += [f"panel {number}: {fault}" for fault in _panel_faults(axis)]
    return found + _text_faults(figure, panels)


def styles(axis: Axes) -> list[tuple[str, str, str]]:
    """Return colour, line style and marker of a panel's lines."""
    # Of a line's own dashes get_linestyle says no more than "--".
    return [
        (
            line.get_color(),
            str(line._unscaled_dash_pattern),
            line.get_marker() + line.get_fillstyle(),
        )
        for line in axis.lines
    ]


def legend_entries(figure: Figure) -> set[str]:
    """Return the texts of all legends of a figure, each in one line."""
    return {" ".join(text.get_text().split()) for each in _legends(figure) for text in each.texts}


def colour_bars(figure: Figure) -> list[Axes]:
    """Return the panels that are colour bars."""
    return [axis for axis in figure.axes if _is_colour_bar(axis)]


def _is_colour_bar(axis: Axes) -> bool:
    return axis.get_label() == "<colorbar>"


def _legends(figure: Figure) -> list[Any]:
    own = [axis.get_legend() for axis in figure.axes]
    return [*figure.legends, *(legend for legend in own if legend is not None)]


def _panel_faults(axis: Axes) -> list[str]:
    found = []
    for name, label, ticks in (
        ("x", axis.get_xlabel(), axis.get_xticklabels()),
        ("y", axis.get_ylabel(), axis.get_yticklabels()),
    ):
        if not label and any(tick.get_text() and tick.get_visible() for tick in ticks):
            found.append(f"no name of the {name} axis")
    if not _is_colour_bar(axis):
        _, labels = axis.get_legend_handles_labels()
        missing = {" ".join(label.split()) for label in labels} - legend_entries(axis.figure)
        if missing and len(labels) > 1:
            found.append(f"not in the legend: {sorted(missing)}")
        unnamed = [line for line in axis.lines if line.get_label().startswith("_child")]
        if unnamed and len(axis.lines) > 1 and not axis.containers:
            found.append(f"{len(unnamed)} lines without a label")
        spanning = [line for line in axis.lines if line.get_transform() != axis.transData]
        if any(line.get_label().startswith("_") for line in spanning):
            found.append("a line across the panel without a label")
        if len(set(styles(axis))) < len(axis.lines) and not axis.containers:
            found.append("two lines look alike")
    return found


def _texts(figure: Figure, panels: list[Axes]) -> Iterator[Text]:
    """The texts that are drawn; ticks outside a panel's limits are not."""
    yield from figure.texts
    for legend in _legends(figure):
        yield from (*legend.get_texts(), legend.get_title())
    for axis in panels:
        yield from (axis.title, *axis.texts, axis.xaxis.label, axis.yaxis.label)
        for one in (axis.xaxis, axis.yaxis):
            low, high = sorted(one.get_view_interval())
            for tick in one.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    yield from (tick.label1, tick.label2)
            yield one.get_offset_text()


def _text_faults(figure: Figure, panels: list[Axes]) -> list[str]:
    texts = [t for t in _texts(figure, panels) if t.get_visible() and t.get_text().strip()]
    boxes = [(text, text.get_window_extent()) for text in texts]
    found = []
    for text, box in boxes:
        if text.get_fontsize() < SMALLEST:
            found.append(f"{text.get_text()!r} in {text.get_fontsize()} points")
        whole = figure.bbox
        if min(box.x0, box.y0, whole.x1 - box.x1, whole.y1 - box.y1) < -TOUCH:
            found.append(f"{text.get_text()!r} is cut off")
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > TOUCH and along > TOUCH:
            found.append(f"{one.get_text()!r} and {other.get_text()!r} overlap")
    for legend, axis in itertools.product(_legends(figure), panels):
        box, panel = legend.get_window_extent(), axis.get_window_extent()
        if box.overlaps(panel.padded(-TOUCH)):
            found.append("a legend hides data")
    return found
