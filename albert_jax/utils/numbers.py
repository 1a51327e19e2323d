# SPDX-License-Identifier: Apache-2.0
"""Numbers for people to read."""

from __future__ import annotations

import math


def rounded(value: float, digits: int = 4) -> str:
    """To that many significant digits, and to whole numbers, with commas and without an exponent,
    where those have more: 0.0434, 2.451, 39.22, 105,234. Small ones have exponents as `g` has."""
    if math.isfinite(value) and abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
