# SPDX-License-Identifier: Apache-2.0
"""Read recipes: Python files whose `get_config(key=value, …)` returns a configuration."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import json
import runpy
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from albert_jax.utils.arguments import checked
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import did_you_mean, python_names


@checked
def load_recipe(spec: str) -> Any:
    """Return the configuration that a recipe makes.

    Args:
        spec: `FILE.py` or `FILE.py:key=value,key=value`. The values are Python literals (`1e-4`,
            `True`, `None`) or else strings, and become the arguments of the recipe's `get_config`.

    Returns:
        What `get_config` returns: a `PretrainConfig` or a `FinetuneConfig`.

    Raises:
        UserError: if the file is missing, has no `get_config`, or `get_config` does not take a key
            or raises an exception. The error names the nearest key, or the recipe's line.

    Examples:
        >>> import albert_jax
        >>> albert_jax.load_recipe("configs/python_docs.py:steps=100").train.steps
        100
    """
    return recipe_with(spec, {})


def recipe_with(spec: str, flags: Mapping[str, object]) -> Any:
    """Return the configuration that a recipe makes, as `load_recipe`.

    `flags` are arguments for a `get_config` that takes them, where the specification has none.
    """
    path, _, arguments = spec.partition(":")
    if not Path(path).is_file():
        raise UserError(
            f"recipe {path} does not exist; give a file such as configs/pretrain.py:model=base-v2"
        )
    with _recipe_errors(path):
        get_config = runpy.run_path(path).get("get_config")
    if not callable(get_config):
        raise UserError(f"recipe {path} defines no get_config(); see configs/ for examples")
    parameters = inspect.signature(get_config).parameters
    known = {k for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    takes_any = len(known) < len(parameters)
    values = {key: value for key, value in flags.items() if key in known}
    for argument in filter(None, arguments.split(",")):
        key, separator, text = argument.partition("=")
        if not separator:
            raise UserError(
                f"recipe argument {argument!r} must be key=value, as in {path}:model=base-v2"
            )
        if key not in known and not takes_any:
            raise UserError(
                f"recipe {path} takes no {key!r}{did_you_mean(key, known)}; "
                f"it takes {', '.join(k for k in parameters if k in known) or 'nothing'}"
            )
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):  # the last: an unhashable key
            values[key] = text
    with _recipe_errors(path):
        return get_config(**values)


@contextlib.contextmanager
def _recipe_errors(path: str) -> Iterator[None]:
    """Raise UserError for any exception of a recipe, because the recipe is the user's."""
    try:
        with python_names():  # the recipe is Python
            yield
    except UserError:
        raise
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        line = f" in line {lines[-1]}" if lines else ""
        raise UserError(f"recipe {path} fails{line}: {type(error).__name__}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON values, nested as its dataclasses are."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
