# SPDX-License-Identifier: Apache-2.0
"""What `predict` answers to an input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from albert_jax.utils.results import ABSENT_IF_NONE, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer(Result):
    """A fine-tuned model's answer; what is None here is no key of the JSON object."""

    id: Any
    """The input's own id, or else its number."""
    prediction: str | float | list[str]
    """A label, a choice, a score, an answer's text, or a label for each word."""
    probabilities: dict[str, float] | None = field(default=None, metadata=ABSENT_IF_NONE)
    """Of classes and choices, by label."""
    start: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    """Of a `SpanAnswer`."""
    probability: float | None = field(default=None, metadata=ABSENT_IF_NONE)
    """Of a `SpanAnswer`."""
    null_odds: float | None = field(default=None, metadata=ABSENT_IF_NONE)
    """Of a `SpanAnswer`, where the head knows them: the odds of there being no answer."""
    passes: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    """With an early exit, the passes of the shared layer that were made."""
    truncated: bool | None = field(default=None, metadata=ABSENT_IF_NONE)
    """True where the input was too long for a row."""
    tokens_left_out: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    """How many tokens a truncated input lost."""
    windows: int | None = field(default=None, metadata=ABSENT_IF_NONE)
    """In how many windows a long text was read, whose mean is the answer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanAnswer(Answer):
    """The answer to a question on a context, whose place and probability are always keys."""

    start: int | None
    """The character of the context at which the answer begins; None where there is no answer."""
    probability: float | None
    """The text's probability among the likely ones; None where there is none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NoAnswer(Result):
    """Why an input has no answer, in place of one (`skip_bad`)."""

    id: Any
    error: str
