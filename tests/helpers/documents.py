# SPDX-License-Identifier: Apache-2.0
"""The documentation's code: blocks, which of them run, and command lines.

`<!-- run -->` on the line before a block says that it runs, `<!-- run: OLD -> NEW -->` that it runs
with OLD replaced by NEW (fewer steps, say), and `<!-- output -->` that the block is what the last
one that ran printed. `<!-- story -->` and `<!-- story: OLD -> NEW -->` say the same of blocks that
need what only a test has, such as a server: tests/test_stories.py. A page's blocks run in order, in
one folder.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.cli import main as cli
from albert_jax.cli import parse
from tests.helpers.paths import REPOSITORY

_BLOCK = re.compile(
    r"^(?P<indent> *)"
    r"(?:<!-- (?P<mark>run|output|story)(?:: (?P<old>.+?) -> (?P<new>.+?))? -->\n\s*)?"
    r"```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```$",
    re.M | re.S,
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text without indentation, and how it is marked."""

    language: str
    text: str
    mark: str | None


def documents() -> list[Path]:
    """Return every page of the documentation that people write."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "launch" / "README.md"]
    return [*pages, *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks(path: Path) -> list[Block]:
    """Return a page's fenced blocks in order."""
    found = []
    for match in _BLOCK.finditer(path.read_text(encoding="utf-8")):
        text = textwrap.dedent(match["text"])
        if match["old"]:
            assert match["old"] in text, (path, match["old"])
            text = text.replace(match["old"], match["new"])
        found.append(Block(match["language"], text, match["mark"]))
    return found


def command_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a page's blocks that run `albert-jax`, without what a shell adds.

    Lines with … or NAME stand for others and are left out, and so is what the program prints.
    """
    for block in blocks(path):
        if block.language not in ("", "sh", "bash", "console"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\||;", line.strip().removeprefix("$ ")):
                is_template = re.search(r"…|\bNAME\b", command)
                if not is_template and re.match(r"\s*(\S*/bin/)?albert-jax [a-z]", command):
                    yield command.strip().rpartition("/bin/")[2]


def parsed(line: str) -> Any:
    """Return the command that a line is, whose first word is the program's name."""
    program, command, *arguments = shlex.split(line, comments=True)
    assert program == "albert-jax"
    return parse.parse(cli.COMMANDS[command], arguments, f"albert-jax {command}")


def run_page(page: Path, mark: str) -> None:
    """Run a page's blocks that have this mark, in the working directory.

    Raises AssertionError where a block fails, or prints something else than the page shows.
    """
    names: dict[str, Any] = {}
    printed = ""
    for block in blocks(page):
        if block.mark == mark:
            printed = _run(block, names)
        elif block.mark == "output":
            shown = block.text
            assert same_output(shown, printed), f"the page shows\n{shown}\nnot\n{printed}"


def _run(block: Block, names: dict[str, Any]) -> str:
    if block.language == "python":
        return run_python(block.text, names, "block")
    program = f'albert-jax() {{ {sys.executable} -m albert_jax "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program + block.text],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(text: str, names: dict[str, Any], page: str) -> str:
    """Run a page's code with `names` for its globals; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, page, "exec"), names)
    return printed.getvalue()


def same_output(shown: str, printed: str, *, tolerance: float = 0.02) -> bool:
    """Return whether two texts agree but for white space and the last digits of numbers."""
    if _NUMBER.sub("#", shown).split() != _NUMBER.sub("#", printed).split():
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True)
    return all(_alike(a, b, tolerance) for a, b in pairs)


def _alike(a: str, b: str, tolerance: float) -> bool:
    """Return whether two numbers agree: whole ones exactly, rounded ones to one in the last digit,
    which another machine's order of sums may change."""
    if "." not in a:
        return a == b
    return abs(float(a) - float(b)) <= max(tolerance * float(a), 10.0 ** -len(a.partition(".")[2]))
