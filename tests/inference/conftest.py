# SPDX-License-Identifier: Apache-2.0
"""What the tests of answers share: models with random heads, each made once. No test writes to
one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.task_models import task_model


@pytest.fixture(autouse=True, scope="module")
def programs_made_once(steps_made_once: None) -> None:
    """Models of the same architecture answer by the same programs."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`model("squad1")` is a model directory with a random head for that task; `task_model`
    says what else it takes."""
    folder = tmp_path_factory.mktemp("heads")

    def made(name: str, **head: object) -> Path:
        path = folder / "-".join([name, *head])
        return path if path.exists() else task_model(path, name, **head)

    return made
