# SPDX-License-Identifier: Apache-2.0
"""Read a file's labels as the task's.

They may be renamed by --labels, in any case, numbers, or the published names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from albert_jax.tasks.values import class_of, json_shown, quoted, score_of
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.wording import setting

Pairs = Sequence[tuple[str, str]]
P = ParamSpec("P")
T = TypeVar("T")


def _or_none(
    read: Callable[Concatenate[LabelReader, P], T],
) -> Callable[Concatenate[LabelReader, P], T | None]:
    """Make a label that cannot be read None, if no label is needed."""

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
    """Read the labels of one file as those of its task; a null or blank label is None.

    `labels` are the task's, () if training finds them. `renamed` has pairs of a file's label and
    the task's. `published` are the classes in the order of their numbers in the published data sets
    (the hub's and TFDS's). If these are the task's labels, numbers in the file are read in that
    order; stderr reports this once with the file's name `source`, unless it is "". If a label is
    not `is_needed`, one that cannot be read is None.
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
        """Raise UserError if `labels` maps a file's label to one that the task lacks."""
        for found, label in self._renamed.items():
            is_none = label == "-1" and self._may_be_none
            if self._own and not is_none and self._known(label, self._own) is None:
                raise UserError(_wrong_meaning(found, label, self._own))

    def by_name(self, label: str) -> str | None:
        """Return the task's label of that name, or published name, in any case; None without."""
        return _by_case(self._own, label) or _by_case(self._names, label)

    @_or_none
    def read(self, value: Any, field: str, place: str, labels: Sequence[str] = ()) -> str | None:
        """Return the task's label for a value; None also for -1, if that means "none".

        `labels` replace the reader's own. Raises UserError, with the row and the field, for a value
        that is no class and for an unknown one.
        """
        return self._read(value, field, place, _themselves(labels) or self._own)

    @_or_none
    def read_each(self, values: Any, count: int, field: str, place: str) -> tuple[str, ...] | None:
        """Return the labels of `count` words; raises UserError if a word has none."""
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
        """Return a value as a number; raises UserError if it is none, or not finite."""
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
        if label != found:
            raise UserError(f"{place}: {_wrong_meaning(found, label, own)}")
        raise UserError(
            f"{place}: {field} {quoted([found])} is unknown; expected {_some(own)}, or say which "
            f"it is with {setting('labels', 'LABEL=MEANING')}"
        )

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
                f"published data set; {setting('labels')} says otherwise"
            )
            self._source = ""


def _themselves(labels: Iterable[str]) -> dict[str, str]:
    return {label: label for label in labels}


def _published(
    labels: Sequence[str], published: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the other names of the task's labels: their numbers, and their published names."""
    if not published:
        return {}, {}
    if set(labels) == set(published):
        return {str(i): name for i, name in enumerate(published)}, {}
    return {}, dict(zip(published, labels, strict=True))


def _by_case(names: Mapping[str, str], name: str) -> str | None:
    """Return the entry with that name; case is ignored if only one entry matches."""
    if name in names:
        return names[name]
    found = {value for key, value in names.items() if key.casefold() == name.casefold()}
    return found.pop() if len(found) == 1 else None


def _wrong_meaning(found: str, label: str, own: Iterable[str]) -> str:
    """Return the error about a pair of `labels` whose second label the task lacks."""
    given = setting("labels", f"{found}={label}")
    return f"{given} names the label {quoted([label])}, which is unknown; expected {_some(own)}"


def _some(labels: Iterable[str]) -> str:
    text = ", ".join(labels)
    return text if len(text) <= 300 else f"{text[:297]}..."
