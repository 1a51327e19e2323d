# SPDX-License-Identifier: Apache-2.0
"""What the tests of fine-tuning start from: the toy task's files and a model with random weights.
No test writes to either."""

from pathlib import Path

import pytest

from albert_jax.training.finetune import finetune
from albert_jax.training.finetune_results import FinetuneResults
from tests.helpers.toy_task import toy_config, toy_data, toy_model


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with both pretraining heads, as pretrain leaves it."""
    return toy_model(tmp_path_factory.mktemp("toy") / "base")


@pytest.fixture(scope="session")
def finished(
    base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FinetuneResults]:
    """The work directory of a finished run of the toy task, and its results."""
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    return workdir, finetune(toy_config(base, data, workdir))
