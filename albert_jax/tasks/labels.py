# SPDX-License-Identifier: Apache-2.0
"""A file's labels as the task's: renamed by --labels, in any case, by number, or as published."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from albert_jax.tasks.values import class_of, json_shown, quoted, score_of
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say

Pairs = Sequence[tuple[str, str]]
P = ParamSpec("P")
T = TypeVar("T")


def _or_none(
    read: Callable[Concatenate[LabelReader, P], T],
) -> Callable[Concatenate[LabelReader, P], T | None]:
    """Make what cannot be read as a label none, where no label is needed."""

    @functools.wraps(read)
    def tried(reader: LabelReader, /, *args: P.args, **options: P.kwargs) -> T | None:
        try:
            return read(reader, *args, **options)
        except UserError:
            if reader.is_needed:
                raise
            return None

    return tried


class LabelReader:
    """Reads the labels of one file as those of its task; what is null or blank is none.

    `labels` are the task's, () where training finds them. `renamed` has pairs of a file's label and
    the task's. `published` are the classes in the order in which the published data sets (the hub's
    and TFDS's) number them. Where these are the task's labels, and a file has numbers, they are
    taken by that order; stderr says so once, of `source`, unless that is "". Where a label is not
    `is_needed`, what cannot be read as one is none.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        renamed: Pairs = (),
        published: Sequence[str] = (),
        source: str = "",
        is_needed: bool = True,
        is_test: bool = False,
    ) -> None:
        self.is_needed, self.is_test, self._source = is_needed, is_test, source
        self._own, self._renamed = _themselves(labels), dict(renamed)
        self._numbers, self._names = _published(labels, published)
        self._may_be_none = is_test or bool(published)
        if self._renamed.keys() & self._numbers.keys():
            self._numbers = {}  # the file's numbers are not the published ones

    def check_renamed(self) -> None:
        """Raise UserError where --labels takes a file's label for one that the task lacks."""
        for found, label in self._renamed.items():
            is_none = label == "-1" and self._may_be_none
            if self._own and not is_none and self._known(label, self._own) is None:
                raise UserError(
                    f"label {quoted([found])}, which --labels takes for {quoted([label])}, is "
                    f"unknown; expected {_some(self._own)}"
                )

    @_or_none
    def read(self, value: Any, field: str, place: str, labels: Sequence[str] = ()) -> str | None:
        """Return the task's label that a value stands for; None also for -1 where that says so.

        `labels` go before the reader's own. Raises UserError, with the row and the field, for what
        is no class and for an unknown one.
        """
        return self._read(value, field, place, _themselves(labels) or self._own)

    @_or_none
    def read_each(self, values: Any, count: int, field: str, place: str) -> tuple[str, ...] | None:
        """Return the labels of `count` words; UserError where a word has none."""
        if values is None:
            return None
        if not isinstance(values, (list, tuple)) or len(values) != count:
            raise UserError(
                f"{place} has {count} words, but {field!r} is {json_shown(values)}; expected a "
                "list of one label a word"
            )
        names = [f"{field}[{i}]" for i in range(count)]
        found = [self._read(x, n, place, self._own) for x, n in zip(values, names, strict=True)]
        if self.is_test and not any(found):
            return None
        for value, name, label in zip(values, names, found, strict=True):
            if label is None:
                raise UserError(f"{place}: {name!r} is {json_shown(value)}; expected a label")
        return tuple(filter(None, found))

    @_or_none
    def read_score(self, value: Any, field: str, place: str) -> float | None:
        """Return the number that a value is; UserError where it is none, or not finite."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return score_of(value, field, place)

    def _read(self, value: Any, field: str, place: str, own: Mapping[str, str]) -> str | None:
        if value is None or not (found := class_of(value, field, place)):
            return None
        label = found
        if found in self._renamed or found not in own:
            label = _by_case(self._renamed, found) or found
        if (known := self._known(label, own)) is not None:
            return known
        # The published data sets' "none". In training data of one's own -1 may be a class.
        if label == "-1" and self._may_be_none:
            return None
        if not own:
            return label
        what, way_out = f"{field} {quoted([found])}", ", or say which it is with --labels"
        if label != found:
            what, way_out = f"{what}, which --labels takes for {quoted([label])},", ""
        raise UserError(f"{place}: {what} is unknown; expected {_some(own)}{way_out}")

    def _known(self, label: str, own: Mapping[str, str]) -> str | None:
        found = _by_case(own, label) or _by_case(self._names, label)
        if found is None and (found := self._numbers.get(label)) is not None:
            self._say_numbers()
        return found

    def _say_numbers(self) -> None:
        if self._source:
            told = ", ".join(f"{number} {name}" for number, name in self._numbers.items())
            say(
                f"{self._source}: its labels are numbers, taken as {told}, the order of the "
                "published data set; --labels says otherwise"
            )
            self._source = ""


def _themselves(labels: Iterable[str]) -> dict[str, str]:
    return {label: label for label in labels}


def _published(
    labels: Sequence[str], published: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return what else the task's labels are called: their numbers, and their published names."""
    if not published:
        return {}, {}
    if set(labels) == set(published):
        return {str(i): name for i, name in enumerate(published)}, {}
    return {}, dict(zip(published, labels, strict=True))


def _by_case(names: Mapping[str, str], name: str) -> str | None:
    """Return what is by that name; without a look at case where only one is so called."""
    if name in names:
        return names[name]
    found = {value for key, value in names.items() if key.casefold() == name.casefold()}
    return found.pop() if len(found) == 1 else None


def _some(labels: Iterable[str]) -> str:
    text = ", ".join(labels)
    return text if len(text) <= 300 else f"{text[:297]}..."
