# SPDX-License-Identifier: Apache-2.0
"""Define what functions return and files hold: frozen dataclasses that are JSON objects, too."""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from albert_jax.utils import tables
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.wording import shortened

Self = TypeVar("Self", bound="Result")
Row = TypeVar("Row", bound="Result")

_SHOWN = 20  # rows that a list of results shows


ABSENT_IF_NONE = {"absent_if_none": True}
"""Metadata of a field that is no key of the JSON object while it is None:
`field(default=None, metadata=ABSENT_IF_NONE)`."""


class Result(dict[str, Any]):
    """Give results typed fields, as `result.step_ms`, and JSON values, as `result["step_ms"]`.

    A subclass is a dataclass with `frozen=True, kw_only=True, eq=False`. Its fields are JSON
    values, other results, or dataclasses of JSON values. As a dict, a result is what `to_json`
    returns, so that `json.dumps`, `|`, `in` and `==` work; it cannot be changed. Printed, and in a
    notebook, it is a table.
    """

    def __init_subclass__(cls) -> None:
        if "__repr__" not in vars(cls):  # which @dataclass would write otherwise
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        super().update(self.to_json())

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object, with results in it as JSON objects."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # its subclasses are
        values = ((field, getattr(self, field.name)) for field in fields)
        return {
            field.name: _plain(value)
            for field, value in values
            if not (field.metadata.get("absent_if_none") and value is None)
        }

    @classmethod
    def from_json(cls: type[Self], document: Mapping[str, Any]) -> Self:
        """Return the result that a JSON object holds; unknown keys are ignored.

        Raises msgspec.ValidationError, which names the key, if the object lacks or mistypes one.
        """
        try:
            found: Self = _as_results(msgspec.convert(document, _plain_class(cls)))
        except (UnicodeError, RecursionError) as error:  # of a lone surrogate; of a deep list
            raise msgspec.ValidationError(shortened(str(error))) from None
        return found

    @classmethod
    def from_file(cls: type[Self], document: Mapping[str, Any], name: str, *, hint: str) -> Self:
        """Return the result that a JSON object from a file of that name holds.

        Raises UserError, which names the file, the key and `hint`, where `from_json` raises.
        """
        try:
            return cls.from_json(document)
        except msgspec.ValidationError as error:
            raise UserError(f"{name} is damaged ({shortened(str(error))}); {hint}") from None

    def shown(self) -> Mapping[str, Any]:
        """Return what a table of this result shows, by name; by default, all fields."""
        return self

    def __repr__(self) -> str:
        return tables.text_of(type(self).__name__, list(tables.lines_of(self.shown())))

    def _repr_html_(self) -> str:
        return tables.html_of(type(self).__name__, list(tables.lines_of(self.shown())))

    def _repr_markdown_(self) -> str:
        return tables.markdown_of(type(self).__name__, list(tables.lines_of(self.shown())))

    def __reduce__(self) -> tuple[Any, ...]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # its subclasses are
        return _made, (type(self), {field.name: getattr(self, field.name) for field in fields})

    def _unchangeable(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be changed; dict(result) can")

    __setitem__ = __delitem__ = __ior__ = _unchangeable
    clear = pop = popitem = setdefault = update = _unchangeable


class Rows(list[Row]):
    """Show a list of results as a table when printed and in a notebook."""

    def __repr__(self) -> str:
        return tables.grid_text(self._grid()) if self else "[]"

    def _repr_html_(self) -> str:
        return tables.grid_html(self._grid()) if self else "[]"

    def _repr_markdown_(self) -> str:
        return tables.grid_markdown(self._grid()) if self else "[]"

    def _grid(self) -> tables.Grid:
        first = [each.shown() for each in self[:_SHOWN]]
        grid = tables.grid_of(first, limit=_SHOWN)
        return grid._replace(more=len(self) - len(first))


def _made(kind: type[Self], fields: JsonObject) -> Self:
    return kind(**fields)


# msgspec (0.20) crashes on a dataclass that is a dict, so it decodes to classes that are none.


@functools.cache
def _plain_class(kind: type[Result]) -> type:
    """Return a dataclass of the same fields in which nothing is a dict."""
    hints = get_type_hints(kind, include_extras=True)
    fields = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        default: dict[str, Any] = {
            "default": field.default,
            "default_factory": field.default_factory,
        }
        fields.append(
            (field.name, _without_results(hints[field.name]), dataclasses.field(**default))
        )
    return dataclasses.make_dataclass(
        kind.__name__, fields, kw_only=True, namespace={"result": kind}
    )


def _without_results(hint: Any) -> Any:
    if isinstance(hint, type) and not get_args(hint) and issubclass(hint, Result):
        return _plain_class(hint)
    origin = get_origin(hint)
    if origin is None or origin is Literal:
        return hint
    if origin is Annotated:
        return Annotated[(_without_results(hint.__origin__), *hint.__metadata__)]
    inner = tuple(map(_without_results, get_args(hint)))
    return functools.reduce(operator.or_, inner) if origin is types.UnionType else origin[inner]


def _as_results(value: Any) -> Any:
    """Return a value with results in place of instances of their plain classes."""
    if kind := getattr(type(value), "result", None):
        fields = dataclasses.fields(value)
        return kind(**{field.name: _as_results(getattr(value, field.name)) for field in fields})
    if isinstance(value, dict):
        return {key: _as_results(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_as_results, value))
    return value


def _plain(value: Any) -> Any:
    """Return a JSON value without results, other dataclasses and tuples in it."""
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
