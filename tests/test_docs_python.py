# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/python.md run, and print what stands below them."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.documents import run_python
from tests.helpers.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```)?", body, re.M | re.S)
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}
TRAINING = {"Pretraining", "Fine-tuning and prediction"}  # which compile steps


@pytest.mark.parametrize(
    "title",
    [
        pytest.param(title, marks=pytest.mark.slow) if title in TRAINING else title
        for title, blocks in SECTIONS.items()
        if blocks
    ],
)
def test_a_sections_examples_print_what_is_said(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for source, expected in SECTIONS[title]:
        assert run_python(source, names, f"docs/python.md, {title}") == expected


def test_the_page_has_its_examples() -> None:
    assert sum(map(len, SECTIONS.values())) == PAGE.count("```python") >= 6
    assert SECTIONS.keys() >= TRAINING
