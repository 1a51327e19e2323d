# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/lab/code.md, counted in a tree made up here."""

from pathlib import Path

from benchmarks.code_figures import figures

FILES = {
    "__init__.py": "from albert_jax.top import run\n",
    "top.py": "from albert_jax.low.one import f\nimport albert_jax.low.two\n",
    "low/__init__.py": "",
    "low/one.py": "import albert_jax.low.two as two\n\n"
    "def f(self, a, b, /, c, d, e, *, g): ...\n\n"
    "def h(a, b, c, d, e, f, *, g) -> dict[str, Any]: ...\n",
    "low/two.py": "if TYPE_CHECKING:\n    from albert_jax.low.one import f\n\n"
    "def late():\n    import albert_jax.top\n",
}


def test_the_figures_are_those_of_a_small_tree(tmp_path: Path) -> None:
    for name, text in FILES.items():
        file = tmp_path / "albert_jax" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = figures(tmp_path)
    assert found["entries under the package"] == "3"
    assert found["modules"] == "5"
    assert found["longest chain of imports, modules"] == "3"  # top, one, two
    assert found["longest chain of imports, packages and files at the top"] == "2"
    assert found["circular imports"] == "0"
    assert found["functions with more than 6 parameters"] == "1"  # f's self is none
    assert found["dict[str, Any]"] == "1"


def test_a_circle_of_imports_is_found(tmp_path: Path) -> None:
    (tmp_path / "albert_jax").mkdir()
    for name, other in ("ab", "ba"):
        (tmp_path / "albert_jax" / f"{name}.py").write_text(f"import albert_jax.{other}\n")
    assert figures(tmp_path)["circular imports"] == "1"
