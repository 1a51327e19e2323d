# SPDX-License-Identifier: Apache-2.0
"""Docstrings of the public names are complete and their examples run; pages they name exist."""

from __future__ import annotations

import dataclasses
import doctest
import functools
import importlib
import inspect
import io
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import albert_jax
from tests.helpers.paths import REPOSITORY

# Their fields are settings, each with its meaning beside it: the site's page of recipe fields.
SETTINGS = {name for name in albert_jax.__all__ if name.endswith("Config")}
# Examples that load a model or compile take seconds.
SLOW = {"load", "verify", *(f"Albert.{method}" for method in vars(albert_jax.Albert))}


def _members(name: str, found: Any) -> Iterator[tuple[str, Any]]:
    """Yield a public name's object and those of its public methods, properties or members."""
    if inspect.ismodule(found):
        for member in found.__all__:
            yield from _members(f"{name}.{member}", getattr(found, member))
    elif inspect.isclass(found):
        yield name, found
        for member, value in vars(found).items():
            value = getattr(value, "__func__", value)  # of a class method
            if not member.startswith("_") and (
                inspect.isfunction(value) or isinstance(value, property)
            ):
                yield f"{name}.{member}", value
    elif inspect.isfunction(found):
        yield name, found


PUBLIC = dict(
    pair for name in albert_jax.__all__ for pair in _members(name, getattr(albert_jax, name))
)
# A result's methods say what those of its base class say.
INHERITED = {name for name in PUBLIC if name.endswith((".to_json", ".from_json", ".shown"))}


def _entries(document: str, section: str) -> set[str]:
    """Return the names that a section of a docstring explains."""
    found = re.search(rf"^{section}:\n((?:    .*\n|\n)*)", document + "\n", re.M)
    return set(re.findall(r"^    \*{0,2}(\w+): ", found[1], re.M)) if found else set()


def _unexplained(found: Any) -> set[str]:
    """Return the arguments, or the fields of a dataclass, that a docstring leaves out."""
    if dataclasses.is_dataclass(found):
        bases = [base for base in found.__mro__ if dataclasses.is_dataclass(base)]
        explained = [_entries(inspect.cleandoc(base.__doc__ or ""), "Attributes") for base in bases]
        return {field.name for field in dataclasses.fields(found)} - set().union(*explained)
    if isinstance(found, property) or (inspect.isclass(found) and "__init__" not in vars(found)):
        return set()
    names = [*inspect.signature(found).parameters]
    return {*names} - {"self", "cls"} - _entries(inspect.getdoc(found) or "", "Args")


def test_every_public_name_has_a_docstring_whose_first_line_is_a_sentence() -> None:
    modules = [albert_jax, albert_jax.optimizer, albert_jax.plots]
    modules.append(importlib.import_module("albert_jax.errors"))
    # Methods may inherit theirs, classes may not.
    documents = {
        name: found.__doc__ if inspect.isclass(found) else inspect.getdoc(found)
        for name, found in PUBLIC.items()
    }
    documents |= {module.__name__: module.__doc__ for module in modules}
    for name, document in documents.items():
        assert document, name
        first, *rest = document.splitlines()
        assert first.endswith("."), name
        assert not rest or not rest[0], f"{name}: its first line is no sentence of its own"


def test_docstrings_explain_every_argument_and_field() -> None:
    # Tokenizers are made by Tokenizer.load, not by the class.
    names = PUBLIC.keys() - SETTINGS - INHERITED - {"Tokenizer"}
    assert {name: left for name in names if (left := _unexplained(PUBLIC[name]))} == {}


def test_an_argument_or_a_field_without_an_explanation_is_found() -> None:
    def function(named: int, left_out: int, *rest: int) -> None:
        """Do nothing.

        Args:
            named: a number,
                left_out: of which this is no entry.
            *rest: more numbers.
        """

    @dataclasses.dataclass
    class Fields:
        """Hold two numbers.

        Attributes:
            one: the first.
        """

        one: int
        two: int

    assert _unexplained(function) == {"left_out"}
    assert _unexplained(Fields) == {"two"}


def test_pages_that_the_package_names_exist() -> None:
    for path in sorted((REPOSITORY / "albert_jax").rglob("*.py")):
        for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
            assert (REPOSITORY / page).is_file(), f"{path.name}: {page}"


def test_no_default_fills_a_page_of_help() -> None:
    for name in PUBLIC.keys() - SETTINGS:
        if inspect.isfunction(PUBLIC[name]):
            for parameter in inspect.signature(PUBLIC[name]).parameters.values():
                assert len(str(parameter.default)) < 400, (name, parameter.name)


# -------------------------------------------------------------------------------------- examples


def _examples() -> Iterator[Any]:
    for name, found in PUBLIC.items():
        document = inspect.getdoc(found) or ""
        if ">>> " in document:
            slow = [pytest.mark.slow] * (name in SLOW)
            yield pytest.param(document, id=name, marks=slow)


@pytest.fixture(scope="module")
def models_loaded_once() -> Iterator[ModuleType]:
    """Make `load` return one model for one name, whose compiled programs examples then share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(albert_jax, "load", functools.cache(albert_jax.load))
        yield albert_jax


@pytest.mark.usefixtures("models_loaded_once")
@pytest.mark.parametrize("document", [*_examples()])
def test_an_example_prints_what_its_docstring_shows(
    document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)  # its recipes
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    example = doctest.DocTestParser().get_doctest(document, {}, "example", None, 0)
    runner.run(example, out=report.write)
    assert not runner.failures, report.getvalue()
    assert runner.tries
