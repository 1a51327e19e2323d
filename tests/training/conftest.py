# SPDX-License-Identifier: Apache-2.0
"""What the tests of fine-tuning start from: the toy task's files and a model with random weights.
No test writes to either."""

from pathlib import Path

import pytest

from tests.helpers.toy_task import toy_data, toy_model


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with both pretraining heads, as pretrain leaves it."""
    return toy_model(tmp_path_factory.mktemp("toy") / "base")
