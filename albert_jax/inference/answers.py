# SPDX-License-Identifier: Apache-2.0
"""Define the answers of `predict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from albert_jax.utils.results import ABSENT_IF_NONE, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer(Result):
    """Hold the answer of a fine-tuned model to one input.

    A field that is None here is absent from the JSON object.

    Attributes:
        id: the input's own id, or its number.
        prediction: a label, a choice, a score, the text of an answer, or a label for each word.
        probabilities: the probability of each class or choice, by label.
        start: of a `SpanAnswer`, the first character.
        probability: of a `SpanAnswer`, the probability.
        null_odds: of a `SpanAnswer`, the logit of "no answer", if the head has one.
        passes: with an early exit, the number of passes of the shared layer.
        truncated: True if the input was too long for a row.
        tokens_left_out: the number of tokens that a truncated input lost.
        windows: the number of windows in which a long text was read; the answer is their mean.
    """

    id: Any
    prediction: str | float | list[str]
    probabilities: dict[str, float] | None = field(default=None, metadata=ABSENT_IF_NONE)
    start: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    probability: float | None = field(default=None, metadata=ABSENT_IF_NONE)
    null_odds: float | None = field(default=None, metadata=ABSENT_IF_NONE)
    passes: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    truncated: bool | None = field(default=None, metadata=ABSENT_IF_NONE)
    tokens_left_out: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    windows: int | None = field(default=None, metadata=ABSENT_IF_NONE)


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanAnswer(Answer):
    """Hold the answer to a question about a context; `start` and `probability` are always keys.

    Attributes:
        start: the character of the context at which the answer begins; None if there is no answer.
        probability: the text's probability among the likely ones; None if there is no answer.
    """

    start: int | None
    probability: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class NoAnswer(Result):
    """Stand for an input without an answer, where `skip_bad` lets the others continue.

    Attributes:
        id: the input's own id, or its number.
        error: why there is no answer, in one sentence.
    """

    id: Any
    error: str
