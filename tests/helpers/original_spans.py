# SPDX-License-Identifier: Apache-2.0
"""Where squad_utils.py finds the pieces of a passage in its text: a longest common subsequence of
the two within a band, cell by cell. Slow and literal, and without the tokenizer's offsets."""

from albert_jax.data.tokenizer import MARKER, clean_text

UP, LEFT, MATCH = range(3)


def piece_spans(text: str, pieces: list[str], *, lower: bool) -> list[tuple[int, int]] | None:
    """Each piece's [start, end) in `text`; None where the original gives the passage up."""
    spelt = "".join(pieces).replace(MARKER, " ")
    cleaned = _cleaned_one_by_one(text, lower)
    places = _alignment(cleaned, spelt)
    if places is None:
        return None
    spans, at = [], 0
    for piece in pieces:
        last = at + len(piece) - 1
        spans.append((_start(places, at, len(text)), _end(places, last, len(text)) + 1))
        at = last + 1
    return spans


def _cleaned_one_by_one(text: str, lower: bool) -> list[str]:
    # clean_text drops white space at the ends, which here are every character's.
    return [" " if c == " " else clean_text(f"a{c}a", lower=lower)[1:-1] for c in text]


def _alignment(cleaned: list[str], spelt: str) -> list[int | None] | None:
    """The index in the text of each character that is spelt, None where it has no partner."""
    width = abs(len(cleaned) - len(spelt)) + 5
    for band in (width, 2 * width):
        lengths, steps = _longest_common(cleaned, spelt, band)
        if lengths > 0.8 * len(cleaned):
            break
    places: list[int | None] = [None] * len(spelt)
    i, j = len(cleaned) - 1, len(spelt) - 1
    while (i, j) in steps:
        step = steps[i, j]
        if step == MATCH:
            places[j] = i
        i, j = i - (step != LEFT), j - (step != UP)
    given_up = lengths < 0.8 * len(cleaned) or all(place is None for place in places)
    return None if given_up else places


def _longest_common(
    cleaned: list[str], spelt: str, band: int
) -> tuple[int, dict[tuple[int, int], int]]:
    """The length of the subsequence, and the last step to each cell of the band that has one."""
    lengths: dict[tuple[int, int], int] = {}  # 0 outside the band
    steps: dict[tuple[int, int], int] = {}
    for i, character in enumerate(cleaned):
        for j in range(max(i - band, 0), min(i + band, len(spelt))):
            best = lengths.get((i - 1, j), 0)
            if i:
                steps[i, j] = UP
            if lengths.get((i, j - 1), 0) > best:
                best, steps[i, j] = lengths[i, j - 1], LEFT
            if character == spelt[j] and lengths.get((i - 1, j - 1), 0) + 1 > best:
                best, steps[i, j] = lengths.get((i - 1, j - 1), 0) + 1, MATCH
            lengths[i, j] = best
    return lengths.get((len(cleaned) - 1, len(spelt) - 1), 0), steps


def _neighbours(places: list[int | None], at: int) -> tuple[int | None, int | None]:
    """The places of the nearest characters before and after that have one."""
    before = next((p for p in reversed(places[:at]) if p is not None), None)
    return before, next((p for p in places[at + 1 :] if p is not None), None)


def _start(places: list[int | None], at: int, size: int) -> int:
    if (place := places[at]) is not None:
        return place
    before, after = _neighbours(places, at)
    if before is None:
        return 0
    if after is None:
        return before + (before < size - 1)
    return before + 1 if after > before + 1 else after


def _end(places: list[int | None], at: int, size: int) -> int:
    if (place := places[at]) is not None:
        return place
    before, after = _neighbours(places, at)
    if before is None:
        return max(after - 1, 0)
    if after is None:
        return size - 1
    return after - 1 if after > before + 1 else before
