# SPDX-License-Identifier: Apache-2.0
"""Print how many words the sentences of Markdown pages have: the median and the 90th percentile.

python docs/sentence_length.py PAGE…

Paragraphs, list items and table cells count; code, headings and fragments below four words do not.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 4  # words


def words_of_sentences(markdown: str) -> list[int]:
    """Return the number of words of each sentence, code spans as one word."""
    text = re.sub(r"^ *```.*?^ *```|<!--.*?-->", "", markdown, flags=re.M | re.S)
    found = []
    for block in _blocks(text):
        linked = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block)
        for sentence in re.split(r"(?<=[.!?])[\"'*)]*\s+(?=[A-Z`*\[(])", linked):
            plain = re.sub(r"`[^`]*`", "X", sentence)
            found.append(len(re.findall(r"[A-Za-z][A-Za-z'’-]*", plain)))
    return [words for words in found if words >= SHORTEST]


def _blocks(text: str) -> Iterator[str]:
    """Yield each paragraph, list item and table cell."""
    block: list[str] = []
    for line in map(str.strip, [*text.splitlines(), ""]):
        begins = re.match(r"(?:[-*]|\d+\.) ", line)
        if block and (not line or begins or line.startswith(("|", "#", "===", "!"))):
            yield " ".join(block)
            block = []
        if line.startswith("|"):
            yield from line.strip("|").split("|")
        elif line and not line.startswith(("#", "===", "!")):
            block.append(line[begins.end() :] if begins else line)


if __name__ == "__main__":
    counts = {name: words_of_sentences(Path(name).read_text("utf-8")) for name in sys.argv[1:]}
    counts["all"] = [words for page in counts.values() for words in page]
    for name, words in counts.items():
        if len(words) > 1:
            last = statistics.quantiles(words, n=10)[-1]
            print(f"{statistics.median(words):5.1f} {last:5.1f}  {len(words):5} sentences  {name}")
