# SPDX-License-Identifier: Apache-2.0
"""Not a test: the figures of the code in docs/lab/code.md, of one or several trees.

python -m benchmarks.code_figures [TREE…]

All but the times are counted over the `ast` of the files, so that a tree need not be installed. The
imports are those that run when a module is imported: not those in functions, nor those under `if
TYPE_CHECKING:`. Times are the least CPU seconds of seven processes; several trees take turns.
"""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "albert_jax"
MOST_PARAMETERS = 6
ROUNDS = 7

Graph = dict[str, set[str]]


def figures(tree: Path) -> dict[str, str]:
    """Return name -> value, all that is counted in the files of one tree."""
    folder = tree / PACKAGE
    files = _files(folder)
    asts = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in files.items()}
    # But for the package itself, which only hands on the names of others.
    others = {module: file for module, file in files.items() if module != PACKAGE}
    graph = {module: set(_imported(asts[module], others)) - {module} for module in others}
    entries = [entry for entry in folder.iterdir() if entry.name != "__pycache__"]
    groups = _groups(graph)
    text = "".join(file.read_text(encoding="utf-8") for file in files.values())
    return {
        "entries under the package": f"{len(entries)}",
        "modules": f"{len(files)}",
        "longest chain of imports, modules": f"{_longest_chain(graph)}",
        "longest chain of imports, packages and files at the top": f"{_longest_chain(groups)}",
        "circular imports": f"{sum(len(cycle) > 1 for cycle in _components(graph))}",
        "lines of the package": f"{_lines(folder):,}",
        "lines of tests and benchmarks": f"{_lines(tree / 'tests', tree / 'benchmarks'):,}",
        f"functions with more than {MOST_PARAMETERS} parameters": f"{len(long_signatures(asts))}",
        "dict[str, Any]": f"{text.count('dict[str, Any]')}",
        "# type: ignore": f"{text.count('# type: ignore')}",
    }


def long_signatures(asts: dict[str, ast.Module]) -> list[str]:
    """Return module.function for every `def` with too many parameters, overloads too.

    Positional and keyword-only parameters count, without self and cls.
    """
    found = []
    for module, tree in asts.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                names = [argument.arg for argument in given if argument.arg not in ("self", "cls")]
                if len(names) > MOST_PARAMETERS:
                    found.append(f"{module}.{node.name}")
    return found


def _files(folder: Path) -> dict[str, Path]:
    """Return a module's dotted name -> file; a package is its `__init__.py`."""
    named = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


def _lines(*folders: Path) -> int:
    files = [file for folder in folders for file in folder.rglob("*.py")]
    return sum(file.read_bytes().count(b"\n") for file in files)


def _imported(tree: ast.Module, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports. `from a import b` is of a.b if that
    is a module, else of a."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else f"{node.module}" for name in whole]
        yield from (name for name in names if name in modules)


def _groups(graph: Graph) -> Graph:
    """Return the graph of the packages and files that stand directly under the package."""

    def group(module: str) -> str:
        return ".".join(module.split(".")[:2])

    grouped: Graph = {}
    for module, imported in graph.items():
        targets = {group(name) for name in imported}
        grouped.setdefault(group(module), set()).update(targets - {group(module)})
    return grouped


def _longest_chain(graph: Graph) -> int:
    """Return the number of nodes on the longest path that visits no cycle twice."""
    lengths: dict[frozenset[str], int] = {}
    of_node: dict[str, frozenset[str]] = {}
    for component in _components(graph):  # those that are imported come first
        of_node |= dict.fromkeys(component, component)
        below = {of_node[name] for node in component for name in graph[node]} - {component}
        lengths[component] = len(component) + max((lengths[each] for each in below), default=0)
    return max(lengths.values())


def _components(graph: Graph) -> list[frozenset[str]]:
    """Return the strongly connected components, each after those that it imports (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for name in graph[node]:
            if name not in order:
                visit(name)
            if name in stack:
                low[node] = min(low[node], low[name])
        if low[node] == order[node]:
            start = stack.index(node)
            found.append(frozenset(stack[start:]))
            del stack[start:]

    for node in graph:
        if node not in order:
            visit(node)
    return found


def _cpu_seconds(command: list[str], tree: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    subprocess.run(command, check=True, cwd=tree, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _times(trees: list[Path]) -> dict[str, list[str]]:
    commands = {
        "import albert_jax, CPU seconds": ["-c", "import albert_jax"],
        "albert-jax --help, CPU seconds": ["-m", PACKAGE, "--help"],
    }
    found = {}
    for name, command in commands.items():
        seconds: dict[Path, list[float]] = {tree: [] for tree in trees}
        for _ in range(ROUNDS):
            for tree in trees:
                seconds[tree].append(_cpu_seconds([sys.executable, *command], tree))
        found[name] = [f"{min(seconds[tree]):.3f}" for tree in trees]
    return found


def main(trees: list[Path]) -> None:
    """Print a line for each figure, with a column for each tree."""
    columns = [figures(tree) for tree in trees]
    rows = {name: [column[name] for column in columns] for name in columns[0]} | _times(trees)
    for name, values in rows.items():
        print(f"{name:57}" + "".join(f"{value:>12}" for value in values), flush=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or [Path()])
