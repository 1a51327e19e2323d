# SPDX-License-Identifier: Apache-2.0
"""English prose that every CPython carries: `pydoc_data.topics` and the library's docstrings.

A default corpus for trying things out. Modules are parsed, never imported.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from albert_jax.data.text.sentences import split_sentences
from albert_jax.utils.errors import UserError

PROSE_BYTES = 1_750_000  # of all documents, nearly, in CPython 3.11 to 3.13; for the forecast
MIN_SENTENCES = 3  # the character sets alone are 80 modules with the same one-line docstring

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# Not prose, or not part of every installation.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload"}


def read_python_docs(language: str = "en") -> Iterator[list[str]]:
    """One document for each help topic, then one for each module: its docstrings, top to bottom."""
    for text in _topics().values():
        if len(sentences := _sentences(text, language)) >= MIN_SENTENCES:
            yield sentences
    for path in _modules():
        sentences = [s for text in _docstrings(path) for s in _sentences(text, language)]
        if len(sentences) >= MIN_SENTENCES:
            yield sentences


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics  # 700 kB of literals, so only where they are asked for

    return dict(sorted(topics.items()))


@functools.cache
def _modules() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    found = [
        path
        for path in library.rglob("*.py")
        if not _LEFT_OUT & set(path.relative_to(library).parts[:-1])
        and not path.name.startswith("_sysconfigdata")
        and path.parent.name != "pydoc_data"
    ]
    if not found:
        raise UserError(
            f"python-docs: this Python has no library sources in {library}; give text files instead"
        )
    return sorted(found)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in the library's own strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # lib2to3 and others keep broken files as samples
        return
    for node in _documented(tree):
        if text := ast.get_docstring(node, clean=True):
            yield text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates


def _documented(node: ast.AST) -> Iterator[Documented]:
    # Statements only, in the order of the source: ast.walk, which visits expressions, takes twice
    # as long as parsing.
    if isinstance(node, Documented):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody"):
        children = getattr(node, block, None)
        for child in children if isinstance(children, list) else ():
            yield from _documented(child)


def _sentences(text: str, language: str) -> list[str]:
    """The prose of a docstring or topic: no code, tables, signatures or headings."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.splitlines()
        if ">>>" in block or any(line.lstrip().startswith(("...", "|", "+--")) for line in lines):
            continue
        paragraph = " ".join(block.split())
        paragraph = re.sub(r"[`*]{1,2}(\S(?:[^`*]*\S)?)[`*]{1,2}", r"\1", paragraph)
        paragraph = re.sub(
            r":[a-z]+:(?=\S)", "", paragraph
        )  # :func:`name`, of which :func: is left
        found += [s for s in split_sentences(paragraph, language) if _is_prose(s)]
    return found


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    plain = sum(bool(re.fullmatch(r"[\"'(]?[A-Za-z][A-Za-z'-]*[\"')]?[.,;:!?]*", w)) for w in words)
    return len(words) >= 4 and plain >= 0.7 * len(words) and sentence[-1] in ".!?:;\"')"
