# SPDX-License-Identifier: Apache-2.0
"""Word names for errors: short, in one line, whatever a file holds."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

MOST_NAMES = 10
MOST_CHARACTERS = 200

# An address: its user and password, its host and path, and its query; the punctuation of
# the sentence around it stays.
_ADDRESS = re.compile(
    r"://(?:[^/\s]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*?(?=[).,:;]{0,3}(?:[\s'\"]|$)))?"
)

_IN_PYTHON = ContextVar("in_python", default=False)


@contextlib.contextmanager
def python_names() -> Iterator[None]:
    """Name settings within it as Python's arguments: the caller has no flags."""
    token = _IN_PYTHON.set(True)
    try:
        yield
    finally:
        _IN_PYTHON.reset(token)


def is_in_python() -> bool:
    """Return whether settings are to be named as Python's arguments."""
    return _IN_PYTHON.get()


def setting(name: str, value: str | int | None = None) -> str:
    """Return a setting as the reader writes it.

    That is `--max-seq-length 512`, or in Python `max_seq_length=512`.
    """
    if is_in_python():
        return name if value is None else f"{name}={value!r}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None else f"{flag} {shlex.quote(str(value))}"


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
