# SPDX-License-Identifier: Apache-2.0
"""Handle standard streams that may be closed, full or ASCII, and libraries' output to them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from albert_jax.utils.errors import UserError


def say(text: str) -> None:
    """Write a line for people to stderr; a closed or full stderr does not stop the program."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


class _Stream:
    """Wrap a text stream; `_failed` handles its failures."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Stderr(_Stream):
    def _failed(self, error: OSError) -> None:
        """Ignore the error: nobody reads on, and a run of days must not end for that."""


class _Stdout(_Stream):
    def _failed(self, error: OSError) -> None:
        """Raise UserError, or BrokenPipeError if the reader has closed the pipe."""
        _drop_buffered(self._stream)
        if error.errno == errno.EPIPE:
            raise error
        raise UserError(
            f"standard output cannot be written ({error.strerror}); give it a place with room"
        )


def _drop_buffered(stream: TextIO) -> None:
    """Point a stream that failed at the null device, where its buffered text then goes.

    Otherwise it would be written, and fail, again when the interpreter ends, with status 120.
    """
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def mended_standard_streams() -> Iterator[None]:
    """Make stdin, stdout and stderr safe for a command while entered.

    A closed one is opened on the null device; otherwise the next opened file would get its number,
    and what libraries print. Writing to a closed or full stdout raises UserError, to such a stderr
    it does nothing. Characters that stdout's encoding lacks are written as escapes.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free, and so this one
    before = sys.stdin, sys.stdout, sys.stderr
    stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (stdout, stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdin = stdin
    sys.stdout, sys.stderr = _Stdout(stdout), _Stderr(stderr)
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        try:
            stderr.flush()
        except OSError:
            _drop_buffered(stderr)


@contextlib.contextmanager
def without_orbax_stacks() -> Iterator[None]:
    """Report a failed checkpoint once while entered, by the error that is raised.

    For one failed write, orbax logs its stack several times and closes its event loop; then each
    other write complains from its own thread.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook

    def is_other(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    def unless_loop_is_closed(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logger.addFilter(is_other)
    sys.unraisablehook = unless_loop_is_closed
    try:
        yield
    finally:
        logger.removeFilter(is_other)
        sys.unraisablehook = hook


def json_line(value: Any, stream: TextIO) -> str:
    """Return a value as a line of JSON that `stream` can encode.

    Lone surrogates, and all that is not ASCII if the stream is not UTF-8, become JSON's own
    escapes. Raises ValueError for NaN.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    return text + "\n"
