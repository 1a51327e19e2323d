# SPDX-License-Identifier: Apache-2.0
"""The architecture as it can be seen from imports, and what no module may do."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "albert_jax"

# A module may import those of lower levels, and of its own where that makes no circle. The longest
# matching prefix counts: data.store is of level 2 because data is.
LEVELS = {
    0: ("arguments", "errors", "streams", "wording"),
    1: (
        "addresses",
        "appearing",
        "caches",
        "config",
        "curves",
        "digests",
        "figures",
        "guards",
        "host_memory",
        "interrupts",
        "json_files",
        "locks",
        "manifests",
        "metrics_log",
        "model_paths",
        "plots",
        "progress",
        "provenance",
        "released",
        "rendezvous",
        "target",
        "text_files",
        "tokenizer",
        "tpu_library",
    ),
    2: (
        "attention",
        "attention_tpu",
        "batching",
        "data",
        "dropout",
        "flops",
        "hlo",
        "heads",
        "id_arrays",
        "layers",
        "losses",
        "memory",
        "model",
        "optimizer",
        "parallel",
        "processes",
        "tasks",
        "tpu_slice",
    ),
    3: (
        "checkpoint",
        "formats",
        "functions",
        "model_dir",
        "run_inputs",
        "step",
        "step_cost",
        "task_batches",
        "task_rows",
    ),
    4: (
        "benchmark",
        "benchmark_report",
        "benchmark_work",
        "converting",
        "estimate",
        "estimate_report",
        "estimate_table",
        "finetune_data",
        "finetune_report",
        "inference",
        "pretrain_data",
        "pretrain_report",
        "pretrain_step",
        "roofline",
        "task_model",
        "train",
    ),
    5: (
        "answers",
        "evaluation",
        "finetune",
        "info",
        "prediction",
        "pretrain",
        "recipe_plan",
        "serving",
        "verification",
    ),
    6: ("", "__main__", "cli"),
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names}

FORBIDDEN_MODULES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
FORBIDDEN_MODULES |= {"tensorflow", "tensorflow_text", "torch", "transformers", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
FORBIDDEN_KEYWORDS = {"shell", "allow_pickle"}


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


def _level(module: str) -> float:
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((LEVEL_OF[prefix] for prefix in prefixes if prefix in LEVEL_OF), math.nan)


LEVEL = {module: _level(module) for module in MODULES}


def _own(name: str) -> str:
    """The module of ours that `albert_jax.a.b.c` is, or is a name in."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


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


def _own_imports(module: str) -> set[str]:
    # __version__ stands before the package's imports, so that asking for it makes no circle.
    names = {name for _, name in _imports(_parse(module))} - {"albert_jax.__version__"}
    return {_own(name) for name in names if name.split(".")[0] == "albert_jax"} - {module}


def test_every_module_has_a_level() -> None:
    assert [module for module in MODULES if math.isnan(LEVEL[module])] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    assert {name for name in _own_imports(module) if LEVEL[name] > LEVEL[module]} == set()


def test_modules_of_one_level_import_in_no_circle() -> None:
    waiting = {module: _own_imports(module) for module in MODULES if LEVEL[module] != 6}
    while waiting:
        ready = {module for module, needs in waiting.items() if not needs & waiting.keys()}
        assert ready, f"a circle among {sorted(waiting)}"
        for module in ready:
            del waiting[module]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("", "__main__", "cli")])
def test_own_modules_are_imported_at_the_top(module: str) -> None:
    tree = _parse(module)
    late = [n for s, n in _imports(tree) if s not in tree.body and n.split(".")[0] == "albert_jax"]
    assert late == []


@pytest.mark.parametrize("module", MODULES)
def test_first_line_is_the_licence_and_a_docstring_follows(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    if text:  # an empty __init__.py says nothing
        assert text.splitlines()[0] == "# SPDX-License-Identifier: Apache-2.0"
        assert ast.get_docstring(ast.parse(text))


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


@pytest.mark.parametrize("module", MODULES)
def test_no_pickle_no_shell_no_eval_no_tensorflow_no_torch(module: str) -> None:
    assert _forbidden(_parse(module)) == []


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


# What must not be imported, even by what is imported, so that reading text needs no accelerator.
WITHOUT_JAX = [m for m in MODULES if m.split(".")[0] in ("tokenizer", "data", "config", "errors")]


@pytest.mark.parametrize("module", [*WITHOUT_JAX, "cli", "flops", "info", "text_files"])
def test_importing_these_does_not_import_jax(module: str) -> None:
    name = f"albert_jax.{module}".rstrip(".")
    code = f"import sys, {name}; sys.exit(bool({{'jax', 'tensorflow'}} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent, timeout=60)


def test_config_and_the_package_itself_need_the_standard_library_only() -> None:
    for module in ("config", "errors", ""):
        names = {name.split(".")[0] for _, name in _imports(_parse(module))}
        assert names <= sys.stdlib_module_names | {"albert_jax"}
