# SPDX-License-Identifier: Apache-2.0
"""Numbers as they are printed."""

import math

import pytest

from albert_jax.utils.numbers import rounded


@pytest.mark.parametrize(
    ("value", "digits", "told"),
    [
        (0.04344, 4, "0.04344"),
        (2.4513, 4, "2.451"),
        (39.224, 4, "39.22"),
        (105234.4, 4, "105,234"),
        (3413.2, 3, "3,413"),
        (999.7, 3, "1,000"),
        (-20480.0, 3, "-20,480"),
        (1.25e-5, 3, "1.25e-05"),
        (0.0, 4, "0"),
        (math.inf, 4, "inf"),
    ],
)
def test_numbers_have_no_exponent_where_they_are_large(value, digits, told):
    assert rounded(value, digits) == told
