# SPDX-License-Identifier: Apache-2.0
"""Types and ranges of settings: a recipe is not type-checked, so every dataclass checks itself."""

from __future__ import annotations

import sys
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from albert_jax.utils.arguments import shown
from albert_jax.utils.errors import UserError


def check_types(config: Any, section: str) -> None:
    """Raises UserError for the first field whose value is not of its declared type: a recipe is not
    type-checked."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            raise UserError(
                f"{section}.{name} {shown(value)} must be {_in_words(hint)}".removeprefix(".")
            )


def check_least(config: Any, section: str, least: int, *names: str) -> None:
    """Raises UserError for a field that is less than `least`, or not a number; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UserError(
                f"{section}.{name} {shown(value)} must be at least {least}".removeprefix(".")
            )


def check_most(config: Any, section: str, most: float, *names: str) -> None:
    """Raises UserError for a field that is more than `most`."""
    for name in names:
        value = getattr(config, name)
        if not value <= most:
            raise UserError(
                f"{section}.{name} {shown(value)} must be at most {most}".removeprefix(".")
            )


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (types.UnionType, Union):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:  # tuple[str, ...] is the only kind there is
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):  # which is an int to Python
        return hint is bool
    if hint is float:  # one that a calculation can go on with
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join(map(_in_words, get_args(hint)))
    words = {
        bool: "True or False",
        int: "a whole number",
        float: "a finite number",
        str: "a string",
        type(None): "None",
    }
    return words.get(hint) or (
        f"of type {hint.__name__}" if isinstance(hint, type) else "strings in a tuple"
    )
