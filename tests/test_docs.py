# SPDX-License-Identifier: Apache-2.0
"""The documentation: its code runs, its commands parse, its links lead somewhere, its generated
pages are whole."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import albert_jax
from albert_jax.cli import main as cli
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import TrainConfig
from tests.helpers.documents import (
    blocks,
    command_lines,
    documents,
    parsed,
    run_page,
    same_output,
)
from tests.helpers.paths import REPOSITORY

LINES = sorted({line for page in documents() for line in command_lines(page)})
LINKED = [*documents(), *(REPOSITORY / name for name in ("CHANGELOG.md", "CONTRIBUTING.md"))]


def _pages_that_run() -> list[Any]:
    """A page that runs commands is slow: each is a process of its own."""
    found = []
    for page in documents():
        running = [block for block in blocks(page) if block.mark == "run"]
        slow = [pytest.mark.slow] * any(block.language != "python" for block in running)
        if running:
            name = page.relative_to(REPOSITORY).as_posix()
            found.append(pytest.param(page, marks=slow, id=name))
    return found


@pytest.mark.parametrize("page", _pages_that_run())
def test_what_is_marked_to_run_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    run_page(page, "run")


def test_outputs_agree_but_for_the_last_digits() -> None:
    assert same_output("0.2851  france\n", "0.2850 france")
    assert same_output("0.07  b", "0.08  b")
    assert not same_output("0.2851  france", "0.2851  germany")
    assert not same_output("0.2851  france", "0.3851  france")
    assert not same_output("[100, 15]", "[101, 15]")


def _one_of_each_kind() -> list[str]:
    """Of the lines with one command, recipe and set of flags the first: parsing takes its time."""
    kinds: dict[Any, str] = {}
    for line in LINES:
        words = line.partition(" #")[0].split()
        recipe = [word.partition("=")[0] for word in words if ".py" in word]
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        kinds.setdefault((words[1], *recipe, frozenset(flags)), line)
    return list(kinds.values())


@pytest.mark.parametrize("line", _one_of_each_kind())
def test_every_kind_of_command_line_in_the_documentation_parses(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert type(parsed(line)) in cli.COMMANDS.values()


def test_every_setting_of_fine_tuning_is_in_a_command_of_its_pages() -> None:
    pages = (REPOSITORY / "docs" / "how-to" / f"finetune{more}.md" for more in ("", "-options"))
    lines = (line for page in pages for line in command_lines(page))
    shown = {word.split("=")[0] for line in lines for word in line.split()}
    names = [field.name for field in dataclasses.fields(FinetuneConfig)]
    flags = {f"--{name.replace('_', '-')}" for name in names}
    of_pretraining_too = {"--compute", "--optimizer", "--train", "--guard"}
    assert flags - of_pretraining_too <= shown


def test_quoted_commands_exist_and_have_the_quoted_flags(generated: dict[str, str]) -> None:
    commands, shown = generated["reference/commands.md"], set()
    for page in documents():
        text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for name, rest in re.findall(r"`albert-jax ([a-z][a-z-]+)([^`]*)`", text):
            assert name in cli.COMMANDS, (page.name, name)
            section = commands.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
            flags = re.findall(r"--[a-z][a-z.-]+", rest)
            assert all(flag in section for flag in flags), (page.name, name, rest)
    for line in LINES:
        shown.add(line.split()[1])
    assert shown == set(cli.COMMANDS)  # each is shown in a block


def test_python_blocks_import_names_that_exist() -> None:
    """Also those of the blocks that do not run, for which a store or a model is missing."""
    for page in documents():
        for block in blocks(page):
            if block.language == "python":
                for module, name in _imported_names(block.text):
                    assert hasattr(importlib.import_module(module), name), (page.name, name)


def _imported_names(text: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of what code takes from this package."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("albert_jax"):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "albert_jax":
            yield "albert_jax", node.attr


def test_command_lines_are_found_in_tabs_and_across_line_ends(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '=== "Command line"\n\n    ```\n    albert-jax info a \\\n        --json # why\n    ```\n\n'
        "```\nalbert-jax … left out\n$ albert-jax info b && echo done\nalbert-jax: an error\n```\n"
    )
    assert [line.split() for line in command_lines(page)] == [
        ["albert-jax", "info", "a", "--json", "#", "why"],
        ["albert-jax", "info", "b"],
    ]


def _anchors(path: Path) -> set[str]:
    """A page's anchors, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_to_files_and_headings_that_exist(page: Path, generated: dict[str, str]) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        address, _, anchor = target.partition("#")
        if "://" in address or address.startswith("mailto:"):
            continue
        path = (page.parent / address).resolve() if address else page
        docs = REPOSITORY / "docs"
        if path.is_relative_to(docs) and path.relative_to(docs).as_posix() in generated:
            continue
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(path), f"{page.name}: {target}"


# ------------------------------------------------------------------------------ the generated pages


@pytest.fixture(scope="module")
def site_pages() -> Any:
    """The hooks of mkdocs.yml."""
    spec = importlib.util.spec_from_file_location("site_pages", REPOSITORY / "docs/site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated(site_pages: Any) -> dict[str, str]:
    """The generated pages, name to Markdown."""
    return site_pages.generated_pages()


def test_the_page_of_commands_has_every_command_and_flag(
    site_pages: Any, generated: dict[str, str]
) -> None:
    page = generated["reference/commands.md"]
    assert re.findall(r"^## (.*)$", page, re.M) == list(cli.COMMANDS)
    for command in cli.COMMANDS:
        section = page.partition(f"\n## {command}\n")[2].partition("\n## ")[0]
        flags = set(re.findall(r"^│ (--[\w.-]+)", site_pages.help_of(command), re.M))
        assert flags
        assert flags <= set(re.findall(r"--[\w.-]+", section)), command
    assert "| `--top-k` `INT` | Pieces to print. | `5` |" in page


def test_the_page_of_recipe_fields_has_every_field_and_its_meaning(
    generated: dict[str, str],
) -> None:
    page = generated["reference/settings.md"]
    for field in TrainConfig.__dataclass_fields__:
        assert f"| `train.{field}` |" in page
    row = next(line for line in page.splitlines() if line.startswith("| `train.batch_size` |"))
    assert row == "| `train.batch_size` | `int` | `4096` | Sequences an update, over all devices. |"
    row = next(line for line in page.splitlines() if line.startswith("| `model.hidden_size` |"))
    assert row == "| `model.hidden_size` | `int` | `4096` | H |"


def test_the_page_of_the_api_has_every_public_name(generated: dict[str, str]) -> None:
    page = generated["reference/api.md"]
    for name in albert_jax.__all__:
        assert re.search(rf"\b{name}\b", page), name


def test_the_picture_of_the_packages_has_the_contracts_layers_and_imports(site_pages: Any) -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r"^layers = \[(.*?)\]", project, re.M | re.S)
    assert layers is not None
    assert re.findall(r'"(\w+)"', layers[1]) == list(site_pages.LAYERS)
    counts = site_pages.imports_between()
    assert counts["training", "models"] > 0
    order = list(site_pages.LAYERS)
    assert all(order.index(above) < order.index(below) for above, below in counts)


def test_words_are_counted_in_sentences_lists_and_cells_but_not_in_code() -> None:
    path = REPOSITORY / "docs/sentence_length.py"
    spec = importlib.util.spec_from_file_location("sentence_length", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (
        "# A heading\n\nThis has five `code span` words. And [these are](x.md) four.\n\n"
        "```\nnot one of these counts\n```\n\n- an item that goes\n  on here\n- too short\n\n"
        "| one two three four | no |\n| --- | --- |\n"
    )
    assert module.words_of_sentences(page) == [5, 4, 6, 4]


def test_links_that_leave_docs_lead_to_pages_or_become_text(site_pages: Any) -> None:
    def led(markdown: str, page: str) -> str:
        return site_pages.links_within(markdown, page)

    assert led("[a](../launch/README.md#x)", "tpu.md") == "[a](files/launch.md#x)"
    assert led("[a](../../CHANGELOG.md)", "how-to/b.md") == "[a](../files/changelog.md)"
    assert led("[a](lab/)", "benchmarks.md") == "[a](lab/index.md)"
    assert led("[a](../docs/tpu.md)", "files/launch.md") == "[a](../tpu.md)"
    assert led("[a](../SECURITY.md)", "tpu.md") == "a"
    assert led("[a](https://b.c)", "tpu.md") == "[a](https://b.c)"


def test_every_page_is_in_the_sites_navigation(site_pages: Any, generated: dict[str, str]) -> None:
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml, whose functions are not wanted here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), Loader)

    class Config:
        nav = config["nav"]
        copyright = ""  # the footer

    named = set(site_pages._pages_named(site_pages.on_config(Config).nav))
    docs = REPOSITORY / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert named == pages | generated.keys()
    assert Config.copyright == f"albert_jax {albert_jax.__version__}"
