# SPDX-License-Identifier: Apache-2.0
"""Check what a caller passes to a public function.

For a value of the wrong type, a UserError names the argument, shows the value and says what would
be right. Only the standard library is imported, so that `import albert_jax` is instant.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import os
import reprlib
import types
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import (
    Any,
    Literal,
    SupportsIndex,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

F = TypeVar("F", bound=Callable[..., Any])

# What an error calls one value of a type, and several.
WORDS: dict[Any, tuple[str, str]] = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    type(None): ("None", "None"),
    collections.abc.Callable: ("a function", "functions"),
    collections.abc.Mapping: ("a mapping", "mappings"),
    collections.abc.Iterator: ("an iterator", "iterators"),
    dict: ("a dict", "dicts"),
    SupportsIndex: ("a whole number", "whole numbers"),
}


def checked(function: F) -> F:
    """Make a function check the types of its arguments against its annotations.

    A number of NumPy's becomes Python's own. Calls with too many, too few or unknown arguments are
    left to Python. The wrapper raises UserError for an argument of another type than its
    annotation.
    """
    signature = inspect.signature(function)
    hints: dict[str, object] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not hints:
            hints.update(get_type_hints(function))
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own error says it best
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                known = _hints_of_keywords(hints.get(name))
                if known and (unknown := next((key for key in value if key not in known), None)):
                    said = f"{function.__name__}() got an unexpected keyword argument {unknown!r}"
                    raise TypeError(said)
                bound.arguments[name] = {key: _of_kind(key, x, known) for key, x in value.items()}
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = _of_kind(name, value, hints)
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def _hints_of_keywords(hint: Any) -> dict[str, object]:
    """Return the annotations by name of `**settings: Unpack[a TypedDict]`."""
    return get_type_hints(get_args(hint)[0]) if get_origin(hint) is Unpack else {}


def _of_kind(name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    """Return an argument after checking it against its annotation, if it has one."""
    if name not in hints:
        return value
    _require_kind(name, value, hints[name])
    return _pythons_own(value, hints[name])


def _pythons_own(value: Any, hint: Any) -> Any:
    """Return a NumPy number as Python's own, because JSON cannot hold NumPy's."""
    is_scalar = hasattr(value, "item") and getattr(value, "ndim", 1) == 0
    return value.item() if is_scalar and {bool, int, float} & set(_choices(hint)) else value


def _require_kind(name: str, value: Any, hint: Any) -> None:
    """Raise UserError for a value, or an item of a list, of another type than the annotation."""
    if _fits(value, hint):
        return
    lists = [x for x in _choices(hint) if get_args(x) and _is_list_for(value, x)]
    for position, item in enumerate(value if lists else ()):
        if not any(_fits(item, get_args(x)[0]) for x in lists):
            wanted = " or ".join(in_words(get_args(x)[0]) for x in lists)
            raise UserError(f"{name}[{position}] {shown(item)} must be {wanted}")
    raise UserError(f"{name} {shown(value)} must be {in_words(hint)}")


def shown(value: Any) -> str:
    """Return a value as an error message shows it: one line, shortened."""
    return " ".join(reprlib.repr(value).split())


def path_of(value: Any, name: str) -> Path:
    """Return an argument as a path.

    Raises UserError for another type, for an empty path and for one that no file system accepts.
    """
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise UserError(f"{name} {shown(value)} must be a string or a path")
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise UserError(f"{name} {shown(os.fspath(value))} is no path; give one")
    try:
        os.stat(value)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: characters that no file name can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name} {shown(os.fspath(value))} cannot be read ({reason})") from None
    return Path(value)


def whole_number(value: Any, name: str, least: int, most: int) -> int:
    """Return an argument as a whole number, NumPy's included, from `least` to `most`.

    Raises UserError otherwise.
    """
    if not _fits(value, int):
        raise UserError(f"{setting(name)} {shown(value)} must be a whole number, {least} to {most}")
    if not least <= value <= most:
        raise UserError(f"{setting(name)} {value} must be between {least} and {most}")
    return int(value)


def texts_of(value: Any, name: str) -> list[str]:
    """Return the texts of an argument as a list.

    They are one string, or any ordered iterable of strings: a list, a generator, or a
    one-dimensional array or column. Raises UserError, with the position, for anything else.
    """
    if isinstance(value, str):
        return [value]
    if not is_list(value):
        raise UserError(f"{name} {shown(value)} must be a string or a list of strings")
    texts = list(value)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name}[{position}] {shown(text)} must be a string")
    return texts


def is_list(value: Any) -> bool:
    """Return whether a value is an ordered iterable of one dimension.

    Those of no texts are none, and neither is a table, whose elements are its columns' names.
    """
    refused = isinstance(value, (bytes, bytearray, Mapping, Set))
    return not refused and getattr(value, "ndim", 1) == 1 and _is_iterable(value)


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has the type of an annotation.

    Everything fits annotations that are unknown here.
    """
    if hint is Any or type(value) is hint:  # most of them, at once
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(isinstance(value, type(choice)) and value == choice for choice in arguments)
    if origin in (types.UnionType, Union):
        return any(_fits(value, choice) for choice in arguments)
    is_flag = isinstance(value, bool) or _is_numpys_flag(value)
    if hint is bool or is_flag:  # which is an int to Python
        return hint is bool and is_flag
    if hint is int:
        return isinstance(value, numbers.Integral)
    if hint is float:
        return isinstance(value, numbers.Real)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if hint is SupportsIndex:
        return hasattr(value, "__index__")  # ten times as fast as isinstance with a protocol
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if arguments and _is_list_for(value, hint):
        return all(_fits(item, arguments[0]) for item in value)
    return isinstance(value, kind)


def _is_numpys_flag(value: Any) -> bool:
    return getattr(value, "ndim", 1) == 0 and getattr(value, "dtype", None) == "bool"


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the annotations of a union, or the one that it is."""
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def _is_list_for(value: Any, hint: Any) -> bool:
    """Return whether a value is a list or tuple of the annotation, whose items can be checked."""
    kind = get_origin(hint)
    return isinstance(value, (list, tuple)) and isinstance(kind, type) and isinstance(value, kind)


def _is_list_of(hint: Any, choices: Set[Any]) -> bool:
    """Return whether an annotation is a list of what all are choices of the same union."""
    items = get_args(hint)
    return len(items) == 1 and len(own := {*_choices(items[0])}) > 1 and own <= choices


def in_words(hint: Any, *, many: bool = False, words: Mapping[Any, tuple[str, str]] = WORDS) -> str:
    """Return what an annotation asks for, in the words of an error.

    `words` has the words for one value of a type and for several.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (types.UnionType, Union):
        lists = [x for x in arguments if _is_list_of(x, {*arguments})]
        others = [in_words(x, many=many, words=words) for x in arguments if x not in lists]
        told = " or ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
        return f"{told}, or {'lists' if many else 'a list'} of these" if lists else told
    kind = origin or hint
    if kind in words:
        return words[kind][many]
    if arguments:
        sequence = "tuple" if origin is tuple else "list"
        if arguments[0] is Any:
            return f"{sequence}s" if many else f"a {sequence}"
        return f"a {sequence} of {in_words(arguments[0], many=True, words=words)}"
    return f"of type {getattr(hint, '__name__', hint)}"
