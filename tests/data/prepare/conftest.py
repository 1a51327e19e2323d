# SPDX-License-Identifier: Apache-2.0
"""Small units of work, so that little text makes many."""

import pytest

from albert_jax.data.prepare import units
from tests.helpers.texts import UNIT_BYTES


@pytest.fixture(scope="module", autouse=True)
def small_units():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "MIN_UNIT_BYTES", UNIT_BYTES)
        yield
