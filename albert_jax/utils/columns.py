# SPDX-License-Identifier: Apache-2.0
"""Align columns of text, as commands print them."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], align: str = "", *, indent: str = "") -> str:
    """Return the rows as lines of columns two spaces apart, without spaces at the end of a line.

    Args:
        rows: cells. A row may be shorter than the first, such as one with an error instead of
            figures; its last cell may then have any length.
        align: a letter for each column, "r" for numbers and "l" for text; columns without one are
            text.
        indent: the beginning of each line.
    """
    columns = len(rows[0]) if rows else 0
    widths = [0] * columns
    for row in rows:
        counted = row if len(row) == columns else row[:-1]
        for column, cell in enumerate(counted):
            widths[column] = max(widths[column], len(cell))
    pads = [str.rjust if letter == "r" else str.ljust for letter in align.ljust(columns, "l")]
    lines = []
    for row in rows:
        cells = [pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=False)]
        lines.append(f"{indent}{'  '.join(cells)}".rstrip())
    return "\n".join(lines)
