# SPDX-License-Identifier: Apache-2.0
"""Whether what dropout takes is as if drawn."""

import numpy as np
import pytest

RATE = 0.1


def assert_as_if_drawn(taken, pairs, axes):
    """Of 1 where dropout takes, else 0: their number, the correlation in each of `pairs` (what to
    index by) and the spread of the sums over each of `axes` are those of independent draws."""
    apart, deviation = taken - RATE, np.sqrt(RATE * (1 - RATE))
    assert abs(apart.mean()) * np.sqrt(apart.size) / deviation < 4  # in standard deviations
    for one, other in pairs:
        product = apart[one] * apart[other]
        assert abs(product.mean()) * np.sqrt(product.size) / deviation**2 < 4
    for axis in axes:
        spread = taken.sum(axis=axis).var() / (taken.shape[axis] * deviation**2)
        assert spread == pytest.approx(1, abs=0.05)


def neighbours(axis, distance=1):
    """Places and those so far from them along an axis, counted from the last."""
    rest = [slice(None)] * (-axis - 1)
    return (..., slice(distance, None), *rest), (..., slice(None, -distance), *rest)
