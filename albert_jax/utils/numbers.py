# SPDX-License-Identifier: Apache-2.0
"""Format numbers for people."""

from __future__ import annotations

import math


def rounded(value: float, digits: int = 4) -> str:
    """Return a number with that many significant digits, as text.

    Whole numbers with more digits are kept, with commas and without an exponent: 0.0434, 2.451,
    39.22, 105,234. Small ones have exponents as in the format `g`.
    """
    if math.isfinite(value) and abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
