# SPDX-License-Identifier: Apache-2.0
"""The original's checkpoints as it wrote them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.golden import CHECKPOINTS


@pytest.fixture(scope="session")
def original_checkpoint(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """`original_checkpoint("tiny")` is a folder with the model's variables and LAMB's slots;
    tiny_inner2's, 1.5 MB, lies in shared/ and skips the test without it."""

    def find(model: str) -> Path:
        if model == "tiny":
            return CHECKPOINTS[model]
        return request.getfixturevalue("shared") / "golden" / model / "tf_ckpt"

    return find
