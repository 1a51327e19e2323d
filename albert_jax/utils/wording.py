# SPDX-License-Identifier: Apache-2.0
"""Word names for errors: short, in one line, whatever a file holds."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

MOST_NAMES = 10
MOST_CHARACTERS = 200

# An address: its user and password, its host and path, and its query; the punctuation of
# the sentence around it stays.
_ADDRESS = re.compile(
    r"://(?:[^/\s]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*?(?=[).,:;]{0,3}(?:[\s'\"]|$)))?"
)


@dataclass(frozen=True)
class Naming:
    """Say how errors name settings: for whom, and by which names of a caller's own settings."""

    in_python: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)


_IN_PYTHON = Naming()
_NAMING: ContextVar[Naming] = ContextVar("naming", default=_IN_PYTHON)


def current_naming() -> Naming:
    """Return how settings are named here, for a thread or process that is to name them alike."""
    return _NAMING.get()


def name_as(naming: Naming) -> None:
    """Name settings so in this thread from now on: in one, or a process, that has just started.

    A new thread does not inherit the naming of the thread that starts it.
    """
    _NAMING.set(naming)


@contextlib.contextmanager
def named_as(naming: Naming) -> Iterator[None]:
    """Name settings so within it, in this thread alone."""
    token = _NAMING.set(naming)
    try:
        yield
    finally:
        _NAMING.reset(token)


def python_names() -> AbstractContextManager[None]:
    """Name settings within it as Python's arguments, as a recipe does."""
    return named_as(replace(_NAMING.get(), in_python=True))


def flag_names() -> AbstractContextManager[None]:
    """Name settings within it as flags: a command runs."""
    return named_as(replace(_NAMING.get(), in_python=False))


def renamed(names: Mapping[str, str]) -> AbstractContextManager[None]:
    """Name settings within it by the names that the caller's own settings have, by their names.

    For a configuration that is made of another one, whose names the user gave. A name with a blank
    is no setting of the user's, and stays as it is.
    """
    return named_as(replace(_NAMING.get(), renamed=names))


def is_in_python() -> bool:
    """Return whether settings are to be named as Python's arguments."""
    return _NAMING.get().in_python


def setting(name: str, value: object = None, *, flag: str | None = None) -> str:
    """Return a setting as the reader writes it.

    That is `max_seq_length=512`, or for a command `--max-seq-length 512`. A switch with the value
    True is `--truncate`, and with False `--no-truncate`.

    Args:
        name: the argument, or the field of a configuration, as `train.batch_size`.
        value: what to give it, a tuple for several values; None for the name alone.
        flag: the flag without its dashes, if its name is another.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if name in (names := _NAMING.get().renamed):
        name, flag = names[name], None
    if " " in name:
        return name
    if is_in_python():
        return name if value is None else f"{name}={value!r}"
    dashed = (flag or name).replace("_", "-")
    if value is False:
        return f"--no-{dashed}"
    if value is None or value is True:
        return f"--{dashed}"
    values = value if isinstance(value, tuple) else (value,)
    return f"--{dashed} {shlex.join(map(str, values))}"


def settings_are_of(command: str, *arguments: str) -> str:
    """Return whose settings an error names: those of a command with its arguments, or of a call."""
    if is_in_python():
        return f"arguments are those of albert_jax.{command}"
    return f"flags are those of albert-jax {' '.join([command, *arguments])}"


def positional(name: str) -> str:
    """Return an argument that a command takes without a flag, `DEST`, or in Python `dest`."""
    return name if is_in_python() else name.upper()


def first_ten(names: Collection[str], separator: str = ", ") -> str:
    """Return the first ten names and the number of others: `a, b, … and 7 more`."""
    more = len(names) - MOST_NAMES
    said = separator.join(map(shortened, itertools.islice(names, MOST_NAMES)))
    return f"{said}{separator}and {more:,} more" if more > 0 else said


def in_short(value: Any) -> str:
    """Return `repr(value)`, but of a SHA-256 the first twelve digits, enough to tell two apart."""
    is_digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"{value[:12]}…" if is_digest else repr(value)


def shortened(text: str) -> str:
    """Return a text of at most 200 characters, with escapes for control characters."""
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - 1]}…"
    return text if text.isprintable() else "".join(map(_visible, text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; if it has none, the error's type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def without_secrets(text: str) -> str:
    """Return a text whose addresses have no user, password, query or fragment.

    Any of these may be a secret.
    """
    return _ADDRESS.sub(r"://\1", text)


def did_you_mean(name: str, known: Iterable[str], quote: str = "'") -> str:
    """Return ` (did you mean 'name'?)` with the nearest known name, or "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {quote}{near[0]}{quote}?)" if near else ""


def _visible(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
