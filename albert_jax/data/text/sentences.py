# SPDX-License-Identifier: Apache-2.0
"""Split text into sentences, and find how a text lays out its sentences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import sentencex

Layout = Literal["lines", "split", "wrapped"]
LAYOUTS: dict[str, str] = {
    "lines": "one sentence a line",
    "split": "prose, a paragraph a line",
    "wrapped": "prose, wrapped lines",
}

# sentencex takes quadratic time on unmatched opening quotes (80,000 characters: 2.4 s), so long
# text is split in windows. 2,048 characters are a dozen sentences: few paragraphs are cut.
_WINDOW = 2048


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Split one paragraph into sentences; white space becomes single spaces, none is empty.

    It takes linear time: text without the end of a sentence is cut every 2,048 characters at white
    space.
    """
    # Also because sentencex panics at other spaces before an initial's full stop ("J\u00a0.").
    text = " ".join(text.split())
    pieces: list[str] = []
    start = 0
    while len(text) - start > _WINDOW:
        end = text.rfind(" ", start + _WINDOW // 2, start + _WINDOW) + 1 or start + _WINDOW
        window = _segment(text[start:end], language)
        # The window's last sentence goes on behind it, unless that would make hardly any way.
        if len(window) > 1 and len(window[-1]) < _WINDOW // 2:
            end -= len(window.pop())
        pieces += window
        start = end
    pieces += _segment(text[start:], language)
    return [stripped for piece in pieces if (stripped := piece.strip())]


def _segment(text: str, language: str) -> list[str]:
    try:
        return sentencex.segment(language, text)
    except BaseException as error:
        # A panic in Rust becomes no Exception. One unusual line must not end a long run.
        if type(error).__name__ != "PanicException":
            raise
        return [text]


def detect_layout(lines: Sequence[str], language: str = "en") -> Layout:
    """Return how the first lines of a text lay out its sentences.

    An empty text counts as `lines`.
    """
    lines = [line.strip() for line in lines]
    filled = [line for line in lines if line]
    if not filled:
        return "lines"
    # A greedy filler breaks a line only if the next word would not fit.
    width = sorted(map(len, filled))[int(0.95 * (len(filled) - 1))]
    pairs = [(a, b) for a, b in itertools.pairwise(lines) if a and b]
    full = sum(len(a) + 1 + len(b.split(maxsplit=1)[0]) >= width - 3 for a, b in pairs)
    if len(pairs) >= 8 and 40 <= width <= 200 and full > 0.7 * len(pairs):
        return "wrapped"
    several = sum(len(split_sentences(line, language)) > 1 for line in filled)
    return "lines" if several <= 0.15 * len(filled) else "split"
