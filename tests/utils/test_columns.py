# SPDX-License-Identifier: Apache-2.0
"""Columns are aligned, and one long message does not widen them."""

from albert_jax.utils.columns import aligned


def test_columns_begin_at_one_place_and_lines_end_without_spaces():
    rows = [("name", "value"), ("a", "1"), ("longer", "")]
    assert aligned(rows, indent="> ") == "> name    value\n> a       1\n> longer"
    assert aligned([]) == ""


def test_a_short_rows_last_cell_widens_no_column():
    rows = [("size", "ms", "by"), ("8", "1.5", "a"), ("4096", "out of memory")]
    assert aligned(rows, "rr").splitlines() == [
        "size   ms  by",
        "   8  1.5  a",
        "4096  out of memory",
    ]
