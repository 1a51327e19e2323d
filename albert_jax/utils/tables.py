# SPDX-License-Identifier: Apache-2.0
"""Show values by name as an aligned table: on a terminal, in a notebook, in Markdown.

A table is for reading: numbers are rounded, long texts and lists are cut. The values themselves do
not change.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from albert_jax.utils.columns import aligned
from albert_jax.utils.numbers import rounded

_WIDTH = 80  # characters of a value
_ENTRIES = 12  # of a mapping that is shown entry by entry
_COLUMNS = 4  # that a mapping within a row may take
_ROWS = 5  # of a list of mappings within a table


class Grid(NamedTuple):
    """Hold rows of cells under their names; `more` rows are not shown."""

    header: list[str]
    rows: list[list[str]]
    more: int = 0


class Line(NamedTuple):
    """Hold a name with its value; `depth` is the number of mappings around it."""

    depth: int
    name: str
    value: str | Grid


def lines_of(values: Mapping[str, Any], depth: int = 0) -> Iterator[Line]:
    """Yield a line for each value, and for each entry of a mapping that is short enough."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and _is_short(value, depth):
            yield Line(depth, name, "")
            yield from lines_of(value, depth + 1)
        elif _has_rows(value):
            yield Line(depth, name, grid_of(value, limit=_ROWS))
        else:
            yield Line(depth, name, _in_words(value))


def grid_of(rows: Sequence[Mapping[str, Any]], *, limit: int) -> Grid:
    """Return the first `limit` mappings as rows.

    Each entry of a mapping within one gets a column.
    """
    flat = [dict(_flat(row)) for row in rows[:limit]]
    names = list(dict.fromkeys(name for row in flat for name in row))
    cells = [[_in_words(row[name]) if name in row else "" for name in names] for row in flat]
    return Grid(names, cells, max(0, len(rows) - limit))


# ------------------------------------------------------------------------------------ how they look


def text_of(title: str, lines: Sequence[Line]) -> str:
    """Return lines under a title, values aligned."""
    rows: list[tuple[str, str]] = []
    for depth, name, value in lines:
        first, *rest = grid_text(value).splitlines() if isinstance(value, Grid) else [value]
        rows.append((f"{'  ' * (depth + 1)}{name}", first))
        rows += [("", line) for line in rest]
    return "\n".join([title, aligned(rows)]) if rows else title


def grid_text(grid: Grid) -> str:
    """Return rows aligned under their header."""
    text = aligned([grid.header, *grid.rows]) if grid.header else ""
    return f"{text}\n… {grid.more:,} more" if grid.more else text


def html_of(title: str, lines: Sequence[Line]) -> str:
    """Return an HTML table of two columns, with a table within it for a list of mappings."""
    rows = []
    for depth, name, value in lines:
        cell = grid_html(value) if isinstance(value, Grid) else html.escape(value)
        pad = f' style="text-align:left;padding-left:{0.5 + depth}em"'
        rows.append(f'<tr><th{pad}>{html.escape(name)}</th><td style="text-align:left">{cell}</td>')
    caption = f"<caption>{html.escape(title)}</caption>"
    return f"<table>{caption}{'</tr>'.join([*rows, ''])}</table>"


def grid_html(grid: Grid) -> str:
    """Return an HTML table with a header."""
    rows = [f"<tr>{_cells('th', grid.header)}</tr>"]
    rows += [f"<tr>{_cells('td', row)}</tr>" for row in grid.rows]
    more = f"<p>… {grid.more:,} more</p>" if grid.more else ""
    return f"<table>{''.join(rows)}</table>{more}"


def _cells(tag: str, cells: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)


def markdown_of(title: str, lines: Sequence[Line]) -> str:
    """Return a Markdown table of two columns."""
    rows = [[title, ""], ["---", "---"]]
    for depth, name, value in lines:
        text = grid_text(value) if isinstance(value, Grid) else value
        rows.append([f"{'&nbsp;&nbsp;' * depth}{name}", text])
    return _markdown(rows)


def grid_markdown(grid: Grid) -> str:
    """Return a Markdown table with a header."""
    table = _markdown([grid.header, ["---"] * len(grid.header), *grid.rows])
    return f"{table}\n\n… {grid.more:,} more" if grid.more else table


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")

    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in rows)


# ------------------------------------------------------------------------------------------- values


def _is_short(values: Mapping[str, Any], depth: int) -> bool:
    """Return whether a mapping is shown entry by entry."""
    plain = not any(isinstance(x, (Mapping, list, tuple)) for x in values.values())
    words = plain and all(isinstance(x, str) for x in values.values())
    return len(values) <= _ENTRIES and not words and (plain or depth < 2)


def _has_rows(value: Any) -> bool:
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and all(isinstance(each, Mapping) for each in value)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and 0 < len(value) <= _COLUMNS:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _in_words(value: Any) -> str:
    """Return a value as a cell of one line."""
    if value is None:
        text = "-"
    elif isinstance(value, float):
        # As numbers are everywhere, but for FLOPs and the like.
        text = rounded(value) if abs(value) < 1e9 else f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    elif isinstance(value, Mapping):
        scalars = not any(isinstance(x, (Mapping, list, tuple)) for x in value.values())
        if not scalars or len(value) > _ENTRIES:
            return f"{len(value):,} entries"
        text = ", ".join(f"{key} {_in_words(x)}" for key, x in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(_in_words, value))
    else:
        text = " ".join(str(value).split())
    if len(text) <= _WIDTH:
        return text
    return f"{text[: _WIDTH // 2]}…{text[1 - _WIDTH // 2 :]}"  # of a path both ends say something
