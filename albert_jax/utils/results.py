# SPDX-License-Identifier: Apache-2.0
"""What functions return and files hold: frozen dataclasses that read as a JSON object, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from albert_jax.utils.wording import shortened

Self = TypeVar("Self", bound="Result")


ABSENT_IF_NONE = {"absent_if_none": True}
"""Metadata of a field that is no key of the JSON object while it is None:
`field(default=None, metadata=ABSENT_IF_NONE)`."""


class Result(Mapping[str, Any]):
    """Base of results: `result.step_ms` is a typed field, `result["step_ms"]` a JSON value.

    A subclass is a dataclass with `frozen=True, kw_only=True, eq=False`; its fields are JSON values
    or other results. As a mapping, a result is what `to_json` returns: it equals that dict, and
    `dict(result)`, `result.get`, `in` and `|` do what they do with it.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object, results in them as JSON objects."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # its subclasses are
        values = ((field, getattr(self, field.name)) for field in fields)
        return {
            field.name: _plain(value)
            for field, value in values
            if not (field.metadata.get("absent_if_none") and value is None)
        }

    @classmethod
    def from_json(cls: type[Self], document: Mapping[str, Any]) -> Self:
        """Return the result that a JSON object holds; unknown keys are passed over.

        Raises msgspec.ValidationError, which names the key, for one that lacks or mistypes a key.
        """
        try:
            return msgspec.convert(document, cls)
        except (UnicodeError, RecursionError) as error:  # of a lone surrogate; of a deep list
            raise msgspec.ValidationError(shortened(str(error))) from None

    def __getitem__(self, name: str) -> Any:
        return self.to_json()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_json())

    def __len__(self) -> int:
        return len(self.to_json())

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return self.to_json() | dict(other)

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(other) | self.to_json()


def _plain(value: Any) -> Any:
    """Return a JSON value without results and tuples in it."""
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
