# SPDX-License-Identifier: Apache-2.0
"""Check the names of tasks and of their labels in settings."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Sequence
from typing import Final, Literal

from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

# The names of `albert_jax.TASKS`, to check settings without the tasks, which need NumPy.
TASK_NAMES = (
    *("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"),
    *("squad1", "squad2", "race", "race-middle", "race-high"),
    *("single", "pair", "regression", "pair-regression"),
    *("multiple-choice", "token-classification", "similarity", "multi-label"),
)


def task_name(name: str) -> str:
    """Return the name in TASK_NAMES that matches without regard to case and hyphens (SST-2, sst2).

    Raises UserError for an unknown name; the error proposes the nearest.
    """

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    known = {plain(task): task for task in TASK_NAMES}
    if plain(name) not in known:
        near = difflib.get_close_matches(plain(name), list(known), n=1)
        meant = f" (did you mean {known[near[0]]!r}?)" if near else ""
        raise UserError(f"task {name!r} is unknown{meant}; known: {', '.join(TASK_NAMES)}")
    return known[plain(name)]


def label_pairs(labels: str | Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a file's label and the task's label in `--labels a=0,b=1`.

    The last = of a pair divides it. Raises UserError for anything else, and for a label of the file
    that is given twice.
    """
    pairs: dict[str, str] = {}
    given = [labels] if isinstance(labels, str) else labels
    for part in ",".join(given).split(",") if given else ():
        theirs, separator, ours = (x.strip() for x in part.rpartition("="))
        if not (theirs and separator and ours):
            raise UserError(
                f"{setting('labels')} {part!r} must be a label of the file, = and the task's label "
                "for it, as in negative=0,positive=1"
            )
        if pairs.setdefault(theirs, ours) != ours:
            raise UserError(
                f"{setting('labels')} gives {theirs!r} two meanings, {pairs[theirs]!r} and "
                f"{ours!r}; give one"
            )
    return tuple(pairs.items())


BALANCED: Final = "balanced"


def class_weights(weights: str | Sequence[str]) -> dict[str, float] | Literal["balanced"]:
    """Return the weights by label in `--class-weights a=1,b=4`, or "balanced".

    The weights are {} if there are none. Raises UserError for anything else, and for a weight that
    is not a positive number.
    """
    parts = (weights if isinstance(weights, str) else ",".join(weights)).split(",")
    if parts == [BALANCED]:
        return BALANCED
    found: dict[str, float] = {}
    for part in parts if parts != [""] else ():
        label, separator, number = (x.strip() for x in part.rpartition("="))
        value = math.nan
        with contextlib.suppress(ValueError):
            value = float(number)
        if not (separator and label and 0 < value < math.inf):
            wrong = ",".join(parts) if part == BALANCED else part  # it must stand alone
            raise UserError(
                f"{setting('class_weights')} {wrong!r} must be balanced, or LABEL=WEIGHT with a "
                "positive weight, as in positive=1,negative=4"
            )
        if found.setdefault(label, value) != value:
            raise UserError(f"{setting('class_weights')} gives {label!r} two weights; give one")
    return found
