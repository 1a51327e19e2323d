# SPDX-License-Identifier: Apache-2.0
"""Read the values of a record's fields: a text, a list, a score, a class or an id.

An error names the row and the field. A value of another type is never converted to words.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from albert_jax.tasks.guessed_columns import divider
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

# A function from the existing keys or columns to advice about a missing one.
Hint = Callable[[Iterable[str]], str]

# The loss squares the difference of two scores in float32, whose maximum is 3.4e38.
MOST_SCORE = 1e18


def text_of(
    value: Any,
    name: str,
    place: str,
    *,
    may_be_blank: bool = False,
    blanks: str | None = None,
) -> str:
    """Return a text; raises UserError for a value of another type, and for a blank text.

    A text is blank if it has only `blanks`, by default all white space.
    """
    if not isinstance(value, str):
        raise wrong_value(place, name, value, "a text")
    if not may_be_blank and not value.strip(blanks):
        raise UserError(f"{place}: {name!r} is empty; give a text, or leave the row out")
    return value


def list_of(value: Any, name: str, place: str, *, of: str) -> list[Any]:
    """Return a list; raises UserError for anything else. `of` names the items, as "words"."""
    if not isinstance(value, (list, tuple)):
        raise wrong_value(place, name, value, f"a list of {of}")
    return list(value)


def row_texts(
    value: Any,
    name: str,
    place: str,
    *,
    of: str,
    count: int | None = None,
    **options: Any,
) -> tuple[str, ...]:
    """Return the texts of a list of `count` items.

    Raises UserError for another value, another number of items, or an item that is no text by
    `text_of`, which takes the options.
    """
    values = list_of(value, name, place, of=of)
    if count is not None and len(values) != count:
        raise UserError(f"{place}: {name!r} has {len(values)} {of}; expected {count}")
    return tuple(text_of(x, f"{name}[{i}]", place, **options) for i, x in enumerate(values))


def score_of(value: Any, name: str, place: str) -> float:
    """Return a value as a finite number, from a number or text; raises UserError for others."""
    score = math.nan
    if isinstance(value, str) or (isinstance(value, Real) and not isinstance(value, bool)):
        with contextlib.suppress(ValueError, OverflowError):
            score = float(value)
    if isinstance(value, str) and "_" in value:  # Python's own way to write numbers
        score = math.nan
    if not math.isfinite(score):
        raise wrong_value(place, name, value, "a finite number")
    if abs(score) > MOST_SCORE:
        raise wrong_value(place, name, value, f"at most {MOST_SCORE:g}; scale the scores down")
    return score


def class_of(value: Any, name: str, place: str) -> str:
    """Return a class's name, stripped of blanks: a string, or a whole number as one."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (list, tuple)):
        raise UserError(
            f"{place}: {name!r} is the list {json_shown(value)}; give one class, or "
            f"{setting('task', 'multi-label')} for texts with several labels"
        )
    if (number := _whole(value)) is None:
        raise wrong_value(place, name, value, "a class: a string or a whole number")
    return str(number)


def id_of(record: Mapping[str, Any], names: Iterable[str], number: int | None, place: str) -> str:
    """Return a record's id: the first of `names` that is neither null nor empty, or `number`.

    Without either it is "", which `unique_ids` numbers.
    """
    name = next((name for name in names if record.get(name) not in (None, "")), None)
    if name is None:
        return "" if number is None else str(number)
    value = record[name]
    if isinstance(value, str):
        return value
    if (whole := _whole(value)) is None:
        raise wrong_value(place, name, value, "a string or a whole number")
    return str(whole)


def _whole(value: Any) -> int | None:
    """Return a whole number; 1.0 counts, because some writers of JSON have no whole numbers."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def no_hint(found: Iterable[str]) -> str:
    """Return nothing: there is no advice to give."""
    return ""


def require_keys(
    record: Mapping[str, Any], place: str, needed: Iterable[str], *, hint: Hint = no_hint
) -> None:
    """Raise UserError if a record lacks one of the keys."""
    if missing := [name for name in needed if name not in record]:
        raise lacking(f"{place} lacks {quoted(missing)}", needed, record, hint)


class Advised(UserError):
    """Report a mistake in the data in a sentence that ends with what to give instead."""


def lacking(said: str, needed: Iterable[str], found: Collection[Any], hint: Hint) -> UserError:
    """Return the error for data that lack columns or keys, with advice if there is any."""
    said = f"{said}: expected {quoted(needed)}; found {quoted(found) or 'nothing'}"
    names = [name for name in found if isinstance(name, str)]  # pandas' may be numbers
    advice = divider(names) or hint(names)
    return Advised(f"{said}{advice}") if advice else UserError(said)


def task_advice(name: str) -> str:
    """Return what an error adds for data that may be another task's, by the name of the task."""
    return f"; the task is {name}; choose another with {setting('task', 'NAME')}"


def wrong_value(place: str, name: str, value: Any, expected: str) -> UserError:
    """Return the error for a field's value of another type than `expected`."""
    return UserError(f"{place}: {name!r} is {json_shown(value)}; expected {expected}")


def json_shown(value: Any) -> str:
    """Return a value as JSON, in one short line, for an error."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = " ".join(repr(value).split())
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def quoted(names: Iterable[Any]) -> str:
    """Return names for an error, each in quotation marks; a long list is cut."""
    text = ", ".join(repr(name if len(str(name)) <= 40 else str(name)[:40]) for name in names)
    return text if len(text) <= 300 else f"{text[:297]}..."
