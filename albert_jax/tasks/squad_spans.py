# SPDX-License-Identifier: Apache-2.0
"""Find answers as spans of pieces: windows over a long passage, and from a head's outputs to text.

The original aligns pieces and passage by a longest common subsequence, which is slow and drops the
passages that it cannot align. Here the tokenizer's own character offsets do it, and no passage is
lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

import numpy as np

from albert_jax.config.heads import BEAM
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks.base import Features


@dataclass(frozen=True)
class Passage:
    """Hold a passage's pieces: ids, and each one's [start, end) in the text."""

    ids: list[int]
    starts: np.ndarray  # int32[pieces]
    ends: np.ndarray

    def pieces_of(self, start: int, end: int) -> tuple[int, int]:
        """Return the first and the last piece that contain the characters [start, end).

        As in the original, white space belongs to the piece after it.
        """
        first = int(np.searchsorted(self.ends, start, side="right"))
        begins = np.minimum(self.starts, np.concatenate([[0], self.ends[:-1]]))
        last = int(np.searchsorted(begins, end, side="left")) - 1
        first = min(first, len(self.ids) - 1)
        return first, max(first, last)

    def answer_ends(self) -> np.ndarray:
        """Return the ends of answers that end with each piece, i32[pieces].

        As in the original, a marker alone before the first character stands for that character,
        because it has none of its own.
        """
        return np.maximum(self.ends, 1)


@lru_cache(maxsize=4)  # the questions about a passage follow each other
def encode_passage(tokenizer: Tokenizer, text: str) -> Passage:
    """Return a passage's pieces; "[SEP]" and the like are text, in any mode of the tokenizer."""
    encoding = tokenizer.encode(text, parse_special=False)
    offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
    return Passage(encoding.ids, offsets[:, 0], offsets[:, 1])


@dataclass(frozen=True)
class Window:
    """Hold a part of a passage's pieces.

    `is_max_context` marks the pieces for which no other window shows more context.
    """

    start: int
    length: int
    is_max_context: np.ndarray  # bool[length]


@lru_cache(maxsize=64)
def windows(pieces: int, room: int, stride: int) -> tuple[Window, ...]:
    """Return windows of at most `room` pieces, each `stride` pieces after the one before.

    A passage without a piece has one window too. If a piece is in several windows, it belongs to
    the one with the most context, which is the smaller of left and right. squad_utils.py:414-427,
    539-577.
    """
    spans = [(0, min(room, pieces))]
    while sum(spans[-1]) < pieces:
        start = spans[-1][0] + min(spans[-1][1], stride)
        spans.append((start, min(room, pieces - start)))
    best, owner = np.full(pieces, -np.inf), np.zeros(pieces, np.int32)
    for index, (start, length) in enumerate(spans):
        left = np.arange(length)
        score = np.minimum(left, length - 1 - left) + 0.01 * length
        better = score > best[start : start + length]
        best[start : start + length][better] = score[better]
        owner[start : start + length][better] = index
    return tuple(
        Window(start, length, owner[start : start + length] == index)
        for index, (start, length) in enumerate(spans)
    )


Candidates = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
# start piece, end piece (from the window's first), start score, end score; the first tried first


def candidates_v1(
    feature: Features, output: Mapping[str, np.ndarray], n_best: int, max_length: int
) -> Candidates:
    """Return the spans of the `n_best` best starts with the `n_best` best ends.

    squad_utils.py:876-905.
    """
    start_S, end_S = (np.asarray(output[f"{x}_logits"], np.float64) for x in ("start", "end"))
    starts, ends = (np.argsort(-x, kind="stable")[:n_best] for x in (start_S, end_S))
    starts, ends = np.repeat(starts, len(ends)), np.tile(ends, len(starts))
    return _allowed(feature, (starts, ends, start_S[starts], end_S[ends]), max_length)


def candidates_v2(
    feature: Features, output: Mapping[str, np.ndarray], n_best: int, max_length: int
) -> Candidates:
    """Return the spans of the head's beam, 5 starts and 5 ends for each.

    squad_utils.py:1252-1292.
    """
    beam = (
        np.repeat(output["start_index"], BEAM),
        np.asarray(output["end_index"]).reshape(-1),
        np.repeat(np.asarray(output["start_log_probs"], np.float64), BEAM),
        np.asarray(output["end_log_probs"], np.float64).reshape(-1),
    )
    return _allowed(feature, beam, max_length)


def _allowed(feature: Features, spans: Candidates, max_length: int) -> Candidates:
    """Return the spans within the passage that are not too long.

    Their start must not be in a better window.
    """
    extra = feature.extra
    starts, ends = spans[0] - extra["passage_start"], spans[1] - extra["passage_start"]
    pieces = len(extra["starts"])
    allowed = (starts >= 0) & (ends < pieces) & (ends >= starts) & (ends - starts < max_length)
    allowed[allowed] = extra["is_max_context"][starts[allowed]]
    return starts[allowed], ends[allowed], spans[2][allowed], spans[3][allowed]


class RankedAnswer(TypedDict):
    """Hold an entry of nbest_predictions.json: a text, its probability, and its scores."""

    text: str
    probability: float
    start_log_prob: float
    end_log_prob: float


def span_answer(text: str, start_score: float, end_score: float) -> RankedAnswer:
    """Return a text by itself, with probability 1."""
    return {
        "text": text,
        "probability": 1.0,
        "start_log_prob": start_score,
        "end_log_prob": end_score,
    }


# The entry in nbest_predictions.json if no span is allowed, as in a context without a piece.
# Differs from TF, whose v1 answers the word "empty" there too.
NO_ANSWER = span_answer("", -1e6, -1e6)
# The original v1's answer if none of the best spans is allowed.
GIVEN_UP = span_answer("empty", 0.0, 0.0)


def best_answers(
    context: str, features: Sequence[Features], candidates: Sequence[Candidates], n_best: int
) -> tuple[list[RankedAnswer], int | None]:
    """Return the most probable texts of a question's windows, the best first.

    They have the form of the original's nbest_predictions.json. Also return the character of the
    context where the first text that is not empty begins, or None. squad_utils.py:951-1027.
    """
    starts, ends, start_scores, end_scores = (np.concatenate(x) for x in zip(*candidates))  # noqa: B905
    window = np.repeat(np.arange(len(candidates)), [len(c[0]) for c in candidates])
    found: dict[str, RankedAnswer] = {}
    place = None
    for i in np.argsort(-(start_scores + end_scores), kind="stable"):
        if len(found) == n_best:
            break
        extra = features[window[i]].extra
        span = context[extra["starts"][starts[i]] : extra["ends"][ends[i]]]
        text = span.strip()
        if text and place is None:
            place = int(extra["starts"][starts[i]]) + len(span) - len(span.lstrip())
        if text not in found:
            found[text] = span_answer(text, float(start_scores[i]), float(end_scores[i]))
    answers = list(found.values()) or [NO_ANSWER.copy()]
    totals = [answer["start_log_prob"] + answer["end_log_prob"] for answer in answers]
    weights = [math.exp(total - max(totals)) for total in totals]
    for answer, weight in zip(answers, weights, strict=True):
        answer["probability"] = weight / sum(weights)
    return answers, place
