# SPDX-License-Identifier: Apache-2.0
"""Guess which columns of a user's own file hold the texts and the label, for an error.

The guess is never used unasked, because a model trained on a wrong column answers nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar

from albert_jax.utils.wording import is_in_python, setting

_OF_RECORDS = ContextVar("of_records", default=False)

# By the words in a column's name.
_TEXT = {"text", "sentence", "review", "content", "comment", "body", "message", "tweet", "document"}
_LABEL = {
    *("label", "class", "category", "sentiment", "intent", "target", "polarity"),
    *("rating", "stars", "score", "tag", "tags"),
}
_ID = {"id", "idx", "index"}
_PAIRS = (
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "answer"),
    ("query", "document"),
)
_WORDS = ("words", "tokens")


@contextlib.contextmanager
def of_records() -> Iterator[None]:
    """Read rows within it as records of a Python call, which has no setting for their keys."""
    token = _OF_RECORDS.set(True)
    try:
        yield
    finally:
        _OF_RECORDS.reset(token)


def is_of_records() -> bool:
    """Return whether rows are records of a Python call."""
    return _OF_RECORDS.get()


def advice(
    found: Iterable[str], *, texts: Sequence[str], label: str, of_words: bool, is_asked: bool
) -> str:
    """Return the end of a sentence about a missing column: the settings that would name it.

    For a record of a Python call it is how to rename its key.

    Args:
        found: the columns that the file has.
        texts: what the task calls the texts.
        label: what the task calls the label.
        of_words: whether the text is a list of words.
        is_asked: whether a label is needed too.
    """
    # Nothing that a shell would take for a flag, or a terminal obey.
    columns = [c for c in found if c and c.isprintable() and not c.startswith("-")]
    own, own_label = _guess(columns, texts=len(texts), of_words=of_words, is_asked=is_asked)
    if is_of_records():
        return _renaming(own, texts)
    settings = " and ".join([setting("texts"), setting("label")][: 1 + is_asked])
    if any(map(_is_sentence, columns)):
        header = ",".join(filter(None, [*texts, label][: len(texts) + is_asked]))
        return (
            f"; if its first row is no header, write one above it, as {header}; else name its "
            f"columns with {settings}"
        )
    proposed = _proposed(own, own_label if own_label != label else None)
    more = f", as {proposed}" if proposed else ""
    return f"; name its columns with {settings}{more}"


def _proposed(texts: Sequence[str], label: str | None) -> str:
    """Return the settings that name these columns, as the reader writes them; "" without texts."""
    if not texts:
        return ""
    labels = [setting("label", label)] if label else []
    return (", " if is_in_python() else " ").join([setting("texts", tuple(texts)), *labels])


def divider(columns: Iterable[str]) -> str:
    """Return the end of a sentence about a file whose one column seems to be several, else ""."""
    whole, *others = [*columns] or [""]
    mark = None if others else next((x for x in ";\t|," if x in whole), None)
    return f"; its columns seem to be divided by {mark!r}" if mark else ""


def _is_sentence(column: str) -> bool:
    """Return whether a column's name looks like a text of a file without a header."""
    return len(column.split()) >= 3 and not _parts(column) & (_TEXT | _LABEL)


def _renaming(own: Sequence[str], texts: Sequence[str]) -> str:
    pairs = [(theirs, ours) for theirs, ours in zip(own, texts, strict=False) if theirs != ours]
    told = " and ".join(f"{theirs!r} to {ours!r}" for theirs, ours in pairs)
    return f"; rename {told}" if told else ""


def _guess(
    columns: Sequence[str], *, texts: int, of_words: bool, is_asked: bool
) -> tuple[list[str], str | None]:
    """Return the columns of the texts, [] if they cannot be guessed, and that of the label."""
    label = _only([c for c in columns if _parts(c) & _LABEL and not _parts(c) & _TEXT])
    others = [c for c in columns if c != label and not _parts(c) & _ID]
    own: list[str] = []
    if of_words:
        own = [c for c in others if c.casefold() in _WORDS][:1]
    elif texts == 2:
        named = {c.casefold(): c for c in others}
        pairs = [[named[a], named[b]] for a, b in _PAIRS if a in named and b in named]
        own = pairs[0] if pairs else others if len(others) == 2 and label else []
    elif texts == 1:
        found = _only([c for c in others if _parts(c) & _TEXT])
        found = found or (_only(others) if label or not is_asked else None)
        own = [found] if found else []
    if label is None:
        label = _only([c for c in others if c not in own])
    return own, label


def _only(columns: Sequence[str]) -> str | None:
    return columns[0] if len(columns) == 1 else None


def _parts(column: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", column.casefold()))
