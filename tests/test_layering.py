# SPDX-License-Identifier: Apache-2.0
"""The architecture as it can be seen from imports (pyproject.toml has its contracts), and what no
module may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "albert_jax"

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
FORBIDDEN_KEYWORDS = {"shell", "allow_pickle"}
FORBIDDEN_MODULES = {"cPickle", "marshal", "pickle", "tensorflow", "torch"}


def _modules() -> dict[str, Path]:
    """Name below albert_jax ("" is the package itself) -> file."""
    modules = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = list(file.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        modules[".".join(parts)] = file
    return modules


MODULES = _modules()


def _imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    """(statement, dotted name imported), wherever in the file they stand."""
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import, line {node.lineno}"
            found += [(node, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def _parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def test_the_contracts_of_imports_are_kept() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_own_modules_are_imported_at_the_top() -> None:
    late = {}
    for module in MODULES:
        # Only the first use of a model's name waits for JAX, which its conversion needs.
        if module not in ("", "__main__", "cli.commands", "checkpoint.named_models"):
            tree = _parse(module)
            for statement, name in _imports(tree):
                if statement not in tree.body and name.split(".")[0] == "albert_jax":
                    late[module] = name
    assert late == {}


def test_importing_a_module_changes_nothing_outside_it() -> None:
    """No statement at the top is a call for its effect, or sets what belongs to another module."""
    found = {}
    for module in MODULES:
        for statement in _parse(module).body:
            match statement:
                case ast.Expr(ast.Call(ast.Attribute(attr="defvjp"))):
                    pass  # completes a function of the module's own
                case ast.Expr(value) if not isinstance(value, ast.Constant):
                    found[module] = ast.unparse(statement)
                case ast.Assign(targets) if any(
                    isinstance(target, ast.Attribute | ast.Subscript) for target in targets
                ):
                    found[module] = ast.unparse(statement)
    assert found == {}


def test_first_line_is_the_licence_and_a_docstring_follows() -> None:
    for module, file in MODULES.items():
        text = file.read_text(encoding="utf-8")
        if text:  # an empty __init__.py says nothing
            assert text.splitlines()[0] == "# SPDX-License-Identifier: Apache-2.0", module
            assert ast.get_docstring(ast.parse(text)), module


def _forbidden(tree: ast.AST) -> list[str]:
    found = [name for _, name in _imports(tree) if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in FORBIDDEN_CALLS:
                found.append(ast.unparse(node))
            found += [
                ast.unparse(keyword)
                for keyword in node.keywords
                if keyword.arg in FORBIDDEN_KEYWORDS
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
    return found


def test_no_pickle_no_shell_no_eval() -> None:
    assert {module: _forbidden(_parse(module)) for module in MODULES} == {m: [] for m in MODULES}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch import nn",
        "import tensorflow.compat.v1 as tf",
        "eval(text)",
        "numpy.load(file, allow_pickle=True)",
        "subprocess.run(command, shell=flag)",
        "def f():\n    os.system('ls')",
    ],
)
def test_what_is_forbidden_is_found(line: str) -> None:
    assert _forbidden(ast.parse(line)) != []
    assert _forbidden(ast.parse("import tensorflow_datasets, re; re.compile('a')")) == []


# What must not be imported, even by what is imported, so that reading text needs no accelerator and
# a mistyped path is told at once.
WITHOUT_JAX = [m for m in MODULES if m.split(".")[0] in ("data", "config", "errors", "utils")]
WITHOUT_JAX += ["cli.main", "cli.commands", "cli.info", "models.flops", "inference.arrays_file"]
WITHOUT_JAX += ["checkpoint.model_paths", "training.run_inputs"]


def test_importing_these_does_not_import_jax() -> None:
    names = ", ".join(f"albert_jax.{module}" for module in WITHOUT_JAX)
    code = f"import sys, {names}; print({{'jax', 'tensorflow'}} & sys.modules.keys())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_the_package_itself_and_config_need_the_standard_library_only() -> None:
    code = "import sys, albert_jax, albert_jax.config, albert_jax.errors; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]  # without site-packages
    done = subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert "albert_jax.config.run" in done.stdout


def test_loading_a_model_does_not_import_orbax() -> None:
    """It takes longer to import than a model to read, and who asks a model writes none."""
    code = "import sys, albert_jax; albert_jax.load; sys.exit('orbax.checkpoint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
