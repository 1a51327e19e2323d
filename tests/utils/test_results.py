# SPDX-License-Identifier: Apache-2.0
"""Results read as typed fields and as JSON objects, and come back from JSON."""

import copy
import json
import operator
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import pytest

from albert_jax.utils.results import ABSENT_IF_NONE, Result, Rows
from albert_jax.utils.tables import Grid, grid_markdown


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread(Result):
    least: float
    most: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured(Result):
    step_ms: float
    mfu: float | None
    spread: Spread
    runs: tuple[Spread, ...] = ()
    error: str | None = field(default=None, metadata=ABSENT_IF_NONE)


SPREAD = Spread(least=1.0, most=2.0)
MEASURED = Measured(step_ms=1.5, mfu=None, spread=SPREAD, runs=(SPREAD,))
DOCUMENT = {
    "step_ms": 1.5,
    "mfu": None,
    "spread": {"least": 1.0, "most": 2.0},
    "runs": [{"least": 1.0, "most": 2.0}],
}


def test_a_result_is_the_mapping_that_its_json_is():
    assert isinstance(MEASURED, Mapping)
    assert MEASURED == DOCUMENT
    assert DOCUMENT == MEASURED
    assert dict(MEASURED) == MEASURED.to_json() == DOCUMENT
    assert json.loads(json.dumps(MEASURED)) == DOCUMENT
    assert pickle.loads(pickle.dumps(MEASURED)).spread == copy.deepcopy(MEASURED).spread == SPREAD
    assert MEASURED["spread"]["most"] == MEASURED.spread.most == 2.0
    assert MEASURED["runs"] == [{"least": 1.0, "most": 2.0}]
    assert list(MEASURED) == list(DOCUMENT)
    assert len(MEASURED) == 4
    assert MEASURED.get("step_ms") == 1.5
    assert MEASURED.get("nothing", 3) == 3
    assert (MEASURED | {"mfu": 0.5})["mfu"] == 0.5
    assert ({"mfu": 0.5, "x": 1} | MEASURED) == {"x": 1} | DOCUMENT
    assert {**MEASURED} == DOCUMENT


def test_a_field_that_may_be_absent_is_no_key_while_it_is_none():
    assert "error" not in MEASURED
    assert "mfu" in MEASURED
    assert "to_json" not in MEASURED
    with pytest.raises(KeyError, match="error"):
        MEASURED["error"]
    failed = Measured(step_ms=0.0, mfu=None, spread=SPREAD, error="too large")
    assert failed["error"] == "too large"
    assert failed.to_json() == DOCUMENT | {"step_ms": 0.0, "runs": [], "error": "too large"}


def test_a_result_comes_back_from_json_and_what_is_unknown_is_passed_over():
    found = Measured.from_json(json.loads(json.dumps(DOCUMENT)) | {"later": 1})
    assert found == MEASURED
    assert found.runs == (SPREAD,)
    assert isinstance(found.spread, Spread)
    with pytest.raises(msgspec.ValidationError, match=r"step_ms"):
        Measured.from_json(DOCUMENT | {"step_ms": "fast"})
    with pytest.raises(msgspec.ValidationError, match=r"spread"):
        Measured.from_json({key: DOCUMENT[key] for key in ("step_ms", "mfu")})


def test_a_result_cannot_be_changed():
    with pytest.raises(AttributeError):
        MEASURED.mfu = 1.0
    for change in (
        lambda: MEASURED.update(mfu=1.0),
        lambda: MEASURED.pop("mfu"),
        lambda: operator.setitem(MEASURED, "mfu", 1.0),
        lambda: operator.ior(MEASURED, {"mfu": 1.0}),
    ):
        with pytest.raises(TypeError, match="a Measured cannot be changed"):
            change()
    with pytest.raises(TypeError):
        MEASURED["mfu"] = 1.0


# --------------------------------------------------------------------------------------- as a table


@dataclass(frozen=True, kw_only=True, eq=False)
class Score(Result):
    name: str
    value: float | None
    count: int = 0
    of: dict[str, float] = field(default_factory=dict)
    runs: list[Spread] = field(default_factory=list)


SCORE = Score(name="a|b <c>\nd", value=0.123456, count=12345, of={"x": 1e-9}, runs=[SPREAD, SPREAD])


def test_a_result_is_an_aligned_table_when_printed():
    assert repr(SCORE).splitlines() == [
        "Score",
        "  name   a|b <c> d",
        "  value  0.1235",
        "  count  12,345",
        "  of",
        "    x    1e-09",
        "  runs   least  most",
        "         1      2",
        "         1      2",
    ]
    assert str(SCORE) == repr(SCORE)
    assert SCORE.value == SCORE["value"] == 0.123456  # the data are exact
    assert repr(Score(name="", value=None)).splitlines()[2:4] == ["  value  -", "  count  0"]


def test_long_values_are_cut():
    many = Score(name="x" * 200, value=1234.5, of=dict.fromkeys(map(str, range(99)), 0.0))
    many = Score(**{**vars(many), "runs": [SPREAD] * 9})
    text = repr(many)
    assert max(map(len, text.splitlines())) < 95
    assert "99 entries" in text
    assert "1,234" in text
    assert "… 4 more" in text


def test_a_notebook_gets_tables():
    page = SCORE._repr_html_()
    assert page.startswith("<table><caption>Score</caption>")
    assert "a|b &lt;c&gt; d" in page
    assert page.count("<table>") == 2
    assert page.count("<tr>") == page.count("</tr>") == 6 + 3
    lines = SCORE._repr_markdown_().splitlines()
    assert lines[:3] == ["| Score |  |", "| --- | --- |", r"| name | a\|b <c> d |"]


def test_no_rows_and_signs_of_markdown_are_shown_as_they_are():
    empty = Rows()
    assert (repr(empty), empty._repr_html_(), empty._repr_markdown_()) == ("[]",) * 3
    assert grid_markdown(Grid(["a"], [[r"x\|y"]])).endswith(r"| x\\\|y |")


def test_rows_are_one_table_and_still_a_list():
    rows = Rows([SPREAD] * 25)
    assert rows == [SPREAD] * 25
    lines = repr(rows).splitlines()
    assert lines[0].split() == ["least", "most"]
    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == "… 5 more"
    assert rows._repr_html_().count("<tr>") == 21
    assert rows._repr_markdown_().splitlines()[2] == "| 1 | 2 |"
    assert repr(Rows()) == "[]"
    assert pickle.loads(pickle.dumps(rows)) == rows
