# SPDX-License-Identifier: Apache-2.0
"""Check types and ranges of settings, because Python does not check a recipe's.

Errors name the field with its section, train.batch_size or as a flag --train.batch-size. A value is
never converted: settings are stored as JSON and decide whether a run resumes, so that a value is
either kept or refused.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from albert_jax.utils.arguments import WORDS, in_words, shown
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

_WORDS = WORDS | {float: ("a finite number", "finite numbers")}


def check_types(config: Any, section: str, *, flags: str | None = None) -> None:
    """Raise UserError for the first field whose value is not of its declared type.

    `flags` is the section of the fields' flags, here and below, where errors in Python have none.
    """
    for name, hint in _type_hints(config.__class__).items():
        if not _fits(getattr(config, name), hint):
            raise _error(config, section, flags, name, in_words(hint, words=_WORDS))


def check_least(
    config: Any, section: str, least: int, *names: str, flags: str | None = None
) -> None:
    """Raise UserError for a field below `least`, or NaN; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise _error(config, section, flags, name, f"at least {least}")


def check_most(
    config: Any, section: str, most: float, *names: str, flags: str | None = None
) -> None:
    """Raise UserError for a field above `most`, or NaN; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value <= most:
            raise _error(config, section, flags, name, f"at most {most}")


@functools.cache  # resolving them takes longer than all checks
def _type_hints(kind: type) -> dict[str, object]:
    return get_type_hints(kind)


def _error(config: Any, section: str, flags: str | None, name: str, wanted: str) -> UserError:
    dotted = f"{section}.{name}".removeprefix(".")
    named = setting(dotted, flag=dotted if flags is None else f"{flags}.{name}")
    return UserError(f"{named} {shown(getattr(config, name))} must be {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (types.UnionType, Union):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:  # tuple[str, ...] is the only kind there is
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):  # which is an int to Python
        return hint is bool
    if hint is float:  # a number for calculations
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)
