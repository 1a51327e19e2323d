# SPDX-License-Identifier: Apache-2.0
"""Pages of the site that are made when it is built (hooks of mkdocs.yml).

The commands come from `--help`, the recipe fields from the dataclasses, the Python API from
`albert_jax.__all__`, and the picture of the packages from the code's imports. Documents outside
docs/ get a page each, and links to them lead there.
"""

from __future__ import annotations

import ast
import contextlib
import html
import io
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "albert_jax"

# Documents outside docs/ -> their pages.
DOCUMENTS = {
    "launch/README.md": "files/launch.md",
    "CHANGELOG.md": "files/changelog.md",
    "CONTRIBUTING.md": "files/contributing.md",
    "albert_jax/packaged/mini/README.md": "files/mini.md",
}

# Module -> classes whose fields are settings of a recipe, with the prefix of their flags.
SETTINGS = (
    ("config/run.py", "PretrainConfig", "", "`pretrain`: the fields of the run itself."),
    ("config/run.py", "FinetuneConfig", "", "`finetune`: the fields of the run itself."),
    ("config/model.py", "AlbertConfig", "model.", None),
    ("config/model.py", "ComputeConfig", "compute.", None),
    ("config/sections.py", "ExamplesConfig", "examples.", None),
    ("config/sections.py", "OptimizerConfig", "optimizer.", None),
    ("config/sections.py", "TrainConfig", "train.", None),
    ("config/sections.py", "GuardConfig", "guard.", None),
    ("config/perf.py", "StepConfig", "", "Fields that `benchmark` and `estimate` share."),
    ("config/perf.py", "BenchmarkConfig", "", "`benchmark`: its own fields."),
    ("config/perf.py", "EstimateConfig", "", "`estimate`: its own fields."),
)

# From the top down: the layers of pyproject.toml's import contract.
LAYERS = {
    "cli": "the commands",
    "perf": "step time, estimates",
    "training": "the loop, optimizers",
    "inference": "answers of models",
    "checkpoint": "formats of weights",
    "tasks": "GLUE, SQuAD, RACE, CSV",
    "distributed": "devices, processes",
    "data": "text to batches",
    "models": "the network",
    "config": "settings",
    "utils": "files, errors, plots",
}


# ------------------------------------------------------------------------------- mkdocs calls these


def on_config(config: Any) -> Any:
    """Name the version in the footer, and add the pages that the navigation does not name."""
    import albert_jax

    config.copyright = f"albert_jax {albert_jax.__version__}"
    named = set(_pages_named(config.nav))
    pages = sorted(
        path.relative_to(REPOSITORY / "docs") for path in REPOSITORY.glob("docs/**/*.md")
    )
    missing = [page.as_posix() for page in pages if page.as_posix() not in named]
    if missing:
        (how_to,) = (entry["How-to"] for entry in config.nav if "How-to" in entry)
        how_to.append({"More": missing})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, text in generated_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links that leave docs/ to the pages of those documents."""
    return links_within(markdown, page.file.src_uri)


def _pages_named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages_named(entry)


# -------------------------------------------------------------------------------------- the pages


def generated_pages() -> dict[str, str]:
    """Return name -> Markdown of every page that is made from the code."""
    pages = {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/api.md": api_page(),
        "explanation/packages.md": packages_page(),
        "lab/index.md": lab_page(),
    }
    for source, name in DOCUMENTS.items():
        pages[name] = (REPOSITORY / source).read_text(encoding="utf-8")
    return pages


def links_within(markdown: str, page: str) -> str:
    """Return a page's Markdown with links to repository files outside docs/ made links to pages.

    `page` is the page's place in docs/. A link to a file that has no page becomes its name.
    """
    sources = {target: source for source, target in DOCUMENTS.items()}
    folder = Path(sources[page]).parent if page in sources else Path("docs", page).parent

    def led(match: re.Match[str]) -> str:
        text, target = match.groups()
        address, hash_, anchor = target.partition("#")
        if not address or "://" in address or address.startswith("mailto:"):
            return match.group()
        path = os.path.normpath(folder / address)
        if path == "docs/lab":
            path += "/index.md"
        if path.startswith("docs/"):
            site = path.removeprefix("docs/")
        elif path in DOCUMENTS:
            site = DOCUMENTS[path]
        elif path == "README.md":
            site = "index.md"
        else:
            return text
        return f"[{text}]({os.path.relpath(site, Path(page).parent)}{hash_}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", led, markdown)


def lab_page() -> str:
    """Return the list of the laboratory's pages."""
    lines = [
        "# Lab",
        "",
        "Dated measurements and trials, with their commands, failed ones too.",
        "",
    ]
    for path in sorted((REPOSITORY / "docs" / "lab").glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ the commands


def help_of(command: str) -> str:
    """Return what `albert-jax COMMAND --help` prints, with one box below the other."""
    from albert_jax.cli import main as cli

    page = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # a StringIO gets no boxes
    with (
        patch.dict(os.environ, COLUMNS="129"),  # from 130 on there may be two boxes side by side
        contextlib.redirect_stdout(page),
        contextlib.suppress(SystemExit),
    ):
        cli.main([command, "--help"])
    page.seek(0)
    return page.read()


def commands_page() -> str:
    """Return the page of all commands, from their `--help`."""
    from albert_jax.cli.commands import COMMANDS

    lines = [
        "# Commands",
        "",
        "This page is made from each command's `--help`. `python -m albert_jax` is the same "
        "program. See also [exit statuses](exit-status.md).",
        "",
    ]
    for command in COMMANDS:
        printed = help_of(command)
        usage, *paragraphs = printed.partition("╭")[0].strip().split("\n\n")
        lines += [f"## {command}", "", "```text", usage.removeprefix("usage: "), "```", ""]
        for paragraph in paragraphs:
            example = paragraph.strip().removeprefix("Example: ")
            is_example = example != paragraph.strip()
            lines += [f"```\n{example}\n```" if is_example else _escaped(paragraph), ""]
        for title, rows in option_tables(printed):
            lines += [f"**{title}**", "", "| flag | meaning | default |", "| --- | --- | --- |"]
            lines += [f"| {_flag(a)} | {_escaped(_cell(b))} | {_code(c)} |" for a, b, c in rows]
            lines.append("")
    return "\n".join(lines)


def option_tables(text: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each box of a help page: its title, and (flag, meaning, default) of each entry."""
    for box in re.findall(r"╭─ (.*?) ─+╮\n(.*?)╰", text, re.S):
        rows: list[list[str]] = []
        entries = re.split(r"^│ ─+ │\n", box[1], flags=re.M)[-1]  # before it: what the group is
        for line in entries.splitlines():
            content = line.strip("│ ")
            if line.startswith("│ ") and line[2] != " ":
                flag, _, meaning = content.partition("  ")
                rows.append([flag, meaning.strip()])
            elif rows and content:
                # A line may end behind the comma of a number.
                gap = "" if re.search(r"\d,$", rows[-1][1]) and content[0].isdigit() else " "
                rows[-1][1] = f"{rows[-1][1]}{gap}{content}".strip()
        yield box[0], [_entry(*row) for row in rows]


def _entry(flag: str, meaning: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(.*?)\s*\((?:default: (.*)|(required))\)", meaning, re.S)
    if match is None:
        return flag, meaning, ""
    return flag, match.group(1), match.group(2) if match.group(3) is None else "required"


# ------------------------------------------------------------------------------- the recipe fields


def settings_page() -> str:
    """Return the page of every field of a recipe, from the dataclasses."""
    lines = [
        "# Recipe fields",
        "",
        "A recipe is a Python file whose `get_config(…)` returns a `PretrainConfig` or a "
        "`FinetuneConfig`. Each field is also a flag: `train.batch_size` is `--train.batch-size`. "
        "This page is made from the dataclasses in `albert_jax.config`.",
        "",
    ]
    for module, name, prefix, about in SETTINGS:
        document, fields = fields_of(PACKAGE / module, name)
        lines += [f"## {name}", "", _escaped(document), ""]
        lines += [about, ""] if about else []
        lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        for field, kind, default, meaning in fields:
            told = meaning if meaning.startswith("see [") else _escaped(_cell(meaning))
            cells = (f"`{prefix}{field}`", _code(kind), _code(default), told)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def fields_of(path: Path, name: str) -> tuple[str, list[tuple[str, str, str, str]]]:
    """Return a class's docstring and its fields: name, type, default, meaning.

    The meaning is the string below the field, or the comment behind it.
    """
    text = path.read_text(encoding="utf-8")
    source = text.splitlines()
    (found,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    fields = []
    for node, following in zip(found.body, [*found.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        meaning = source[node.end_lineno - 1 if node.end_lineno else 0][node.end_col_offset or 0 :]
        meaning = meaning.partition("#")[2]
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            meaning = str(following.value.value)
        default = "" if node.value is None else ast.unparse(node.value)
        if default.startswith("field("):
            default = ""  # its own table has them
            kind = ast.unparse(node.annotation)
            meaning = meaning or (f"see [{kind}](#{kind.lower()})" if "Config" in kind else "")
        fields.append((node.target.id, ast.unparse(node.annotation), default, meaning.strip()))
    return ast.get_docstring(found) or "", fields


# ----------------------------------------------------------------------------------------- the API


def api_page() -> str:
    """Return the page of the public names, for mkdocstrings to fill from their docstrings."""
    import albert_jax

    names = sorted(albert_jax.__all__, key=str.lower)
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Settings": [], "Others": []}
    for name in names:
        if name.isupper() or _is_module(name):
            kinds["Others"].append(name)
        elif name.endswith("Config"):
            kinds["Settings"].append(name)
        elif name[0].isupper():
            kinds["Classes"].append(name)
        else:
            kinds["Functions"].append(name)
    lines = [
        "# Python API",
        "",
        "Import each name from `albert_jax`. A wrong argument raises `UserError` with one "
        "sentence.",
        "",
    ]
    for kind, members in kinds.items():
        lines += [f"## {kind}", ""]
        for name in members:
            lines += _api_entry(name)
    return "\n".join(lines)


def _is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").exists()


def _api_entry(name: str) -> list[str]:
    import albert_jax

    found = getattr(albert_jax, name)
    if name.isupper():
        names = ", ".join(f"`{key}`" for key in found)
        return [f"### {name}", "", f"`albert_jax.{name}` is a dict with the keys {names}.", ""]
    if _is_module(name):
        lines = [f"### {name}", "", found.__doc__, ""]
        for member in found.__all__:
            lines += [
                f"::: albert_jax.{name}.{member}",
                "    options:",
                "      heading_level: 4",
                "",
            ]
        return lines
    if name.endswith("Config"):
        return [f"- [`{name}`](settings.md#{name.lower()})", ""]
    return [f"::: albert_jax.{name}", ""]


# -------------------------------------------------------------------- the picture of the packages


def imports_between() -> Counter[tuple[str, str]]:
    """Count the modules of each package that import from each other package."""
    found: Counter[tuple[str, str]] = Counter()
    for package in LAYERS:
        for path in sorted((PACKAGE / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for other in {*_imported(tree)} & LAYERS.keys() - {package}:
                found[package, other] += 1
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "albert_jax":
                yield rest.partition(".")[0]


def packages_page() -> str:
    """Return the page with the picture of the packages."""
    return "\n".join(
        [
            "# Packages and imports",
            "",
            "Each row is a package. A dot means that this package imports the one of the column, "
            "and its number counts the modules that do. All dots are on one side, because a "
            "package imports only packages below it. The picture is drawn from the code's imports "
            "when the site is built, and `lint-imports` checks the same rule in CI. "
            "[Architecture in detail](../architecture.md) describes the parts.",
            "",
            packages_picture(),
            "",
        ]
    )


def packages_picture() -> str:
    """Return an SVG: packages from the top down, and which imports which."""
    counts, names = imports_between(), list(LAYERS)
    step, left, top = 34, 300, 100
    width, height = left + step * len(names) + 40, top + step * len(names) + 10
    parts = [
        f'<div class="packages"><svg viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Which package imports which">'
    ]
    for column, name in enumerate(names):
        x = left + step * (column + 0.5)
        turned = f"rotate(-45 {x + 4} {top - 8})"
        parts.append(f'<text x="{x + 4}" y="{top - 8}" transform="{turned}">{name}</text>')
    for row, (name, job) in enumerate(LAYERS.items()):
        y = top + step * (row + 0.5)
        parts.append(
            f'<rect x="4" y="{y - 14}" width="{left - 16}" height="28" rx="4"/>'
            f'<text class="name" x="14" y="{y + 5}">{name}</text>'
            f'<text class="job" x="104" y="{y + 5}">{html.escape(job)}</text>'
        )
        for column, other in enumerate(names):
            x = left + step * (column + 0.5)
            if count := counts[name, other]:
                radius = 7 + min(7.0, 1.6 * count**0.5)
                parts.append(
                    f'<circle cx="{x}" cy="{y}" r="{radius:.1f}"/>'
                    f'<text class="count" x="{x}" y="{y + 4}">{count}</text>'
                )
            elif name == other:
                parts.append(f'<circle class="self" cx="{x}" cy="{y}" r="2"/>')
    return "".join([*parts, "</svg></div>"])


# ----------------------------------------------------------------------------------------- details


def _cell(text: str) -> str:
    return " ".join(textwrap.dedent(text).split()).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Return text whose brackets, stars and angle brackets Markdown leaves alone, but for code."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([\[\]*_<>])", r"\\\1", piece)
        for piece in pieces
    )


def _flag(text: str) -> str:
    """Return a flag's names and what they take, each as code, so that only the latter is broken."""
    names = re.match(r"(?:--?[\w.-]+(?:, )?)+", text)
    if names is None:
        return _code(text)
    return " ".join(filter(None, (_code(names[0]), _code(text[names.end() :]))))


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text.strip() else ""
