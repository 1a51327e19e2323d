# SPDX-License-Identifier: Apache-2.0
"""Read English prose that is on every machine: documentation inside CPython and packages.

`python-docs` is CPython's `pydoc_data.topics` and its library's docstrings. `package-docs` is the
docstrings of packages that this one depends on. Both are default corpora for trials. Modules are
parsed, never imported.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from albert_jax.data.text.sentences import split_sentences
from albert_jax.utils.errors import UserError

# Bytes of all documents, nearly (CPython 3.11 to 3.13, packages of 2026); for the forecast.
PROSE_BYTES = {"python-docs": 1_750_000, "package-docs": 7_600_000}
MIN_SENTENCES = 3  # the character sets alone are 80 modules with the same one-line docstring

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# Packages with much prose that are dependencies of this one: import name -> distribution.
PACKAGES = {
    "flax": "flax",
    "jax": "jax",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "scipy": "scipy",
    "tensorflow_datasets": "tensorflow-datasets",
}

# Not prose, or not part of every installation.
_LEFT_OUT = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages"}
_LEFT_OUT |= {"lib-dynload", "_vendor"}


def is_docs(given: str) -> bool:
    """Return whether an input names one of the two corpora, not a file."""
    return given in PROSE_BYTES and not os.path.exists(given)


def read_docs(name: str, language: str = "en") -> Iterator[list[str]]:
    """Yield documents of a corpus.

    Of `python-docs`, there is one for each help topic, then one for each module, its docstrings
    from top to bottom; of `package-docs`, one for each module.
    """
    if name == "python-docs":
        for text in _topics().values():
            if len(sentences := _sentences(text, language)) >= MIN_SENTENCES:
                yield sentences
    for path in _library() if name == "python-docs" else _packages():
        sentences = [s for text in _docstrings(path) for s in _sentences(text, language)]
        if len(sentences) >= MIN_SENTENCES:
            yield sentences


def versions_of(name: str) -> dict[str, str]:
    """Return the versions that the text of a corpus depends on."""
    if name == "python-docs":
        return {"python": platform.python_version()}
    return {package: version(package) for package in PACKAGES.values()}


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics  # 700 kB of literals, so imported only on demand

    return dict(sorted(topics.items()))


@functools.cache
def _library() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    found = [
        path
        for path in _modules(library)
        if not path.name.startswith("_sysconfigdata") and path.parent.name != "pydoc_data"
    ]
    if not found:
        raise UserError(
            f"python-docs: this Python has no library sources in {library}; give text files instead"
        )
    return found


@functools.cache
def _packages() -> list[Path]:
    folders: list[Path] = []
    for name in PACKAGES:
        spec = find_spec(name)  # which imports no package
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"package-docs: {name} is not installed; give text files instead")
        folders += map(Path, spec.submodule_search_locations)
    return [path for folder in folders for path in _modules(folder)]


def _modules(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*.py") if not _LEFT_OUT & {*p.relative_to(folder).parts[:-1]})
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
    # Only statements, in the order of the source: ast.walk, which visits expressions, takes twice
    # as long as parsing.
    if isinstance(node, Documented):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody"):
        children = getattr(node, block, None)
        for child in children if isinstance(children, list) else ():
            yield from _documented(child)


def _sentences(text: str, language: str) -> list[str]:
    """Return the prose of a docstring or topic, without code, tables, signatures and headings."""
    found: list[str] = []
    text = re.sub(r"(?m)^.*\n\s*[-=~]{3,}\s*$", "\n", inspect.cleandoc(text))  # underlined headings
    for block in re.split(r"\n\s*\n", text):
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
