# SPDX-License-Identifier: Apache-2.0
"""Every recipe in configs/ loads and validates, and says what it is."""

import ast
import json
from pathlib import Path

import pytest

from albert_jax.config import MODELS, PretrainConfig, load_recipe, to_dict
from albert_jax.info import describe

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.py"))


def _docstring(recipe: Path) -> str:
    return ast.get_docstring(ast.parse(recipe.read_text(encoding="utf-8"))) or ""


def test_there_are_recipes() -> None:
    assert CONFIGS / "python_docs.py" in RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads_and_its_settings_are_json(recipe: Path) -> None:
    config = load_recipe(str(recipe))
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)
    described = describe(recipe)
    if isinstance(config, PretrainConfig):
        assert described["flops_per_step"] > 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipes_docstring_has_its_command(recipe: Path) -> None:
    assert f"albert-jax pretrain configs/{recipe.name}" in _docstring(recipe)


def _takes_a_model(recipe: Path) -> bool:
    tree = ast.parse(recipe.read_text(encoding="utf-8"))
    functions = {n.name: n.args.args for n in tree.body if isinstance(n, ast.FunctionDef)}
    return "model" in [argument.arg for argument in functions["get_config"]]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if _takes_a_model(r)], ids=lambda path: path.name
)
def test_a_recipe_that_takes_a_model_takes_each(recipe: Path, model: str) -> None:
    assert load_recipe(f"{recipe}:model={model}").model == MODELS[model]
