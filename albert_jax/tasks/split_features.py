# SPDX-License-Identifier: Apache-2.0
"""Read a split of a task as a model does: its features, as arrays, and what these lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks import Features, RawExample, Task
from albert_jax.tasks.collate import FeatureRow, as_rows
from albert_jax.tasks.cuts import Cut
from albert_jax.tasks.long_texts import CUT, LongTexts, fitted, window_count
from albert_jax.utils.progress import ProgressMeter

MANY = 5000  # examples whose tokenizing is worth a bar


@dataclass(frozen=True)
class SplitFeatures:
    """Hold examples, their features, and these as arrays."""

    examples: list[RawExample]
    features: list[Features]
    rows: list[FeatureRow]
    cuts: dict[int, list[Cut]] = field(default_factory=dict)  # of the examples that lost tokens
    windows: list[int] = field(default_factory=list)  # those of each text that was read in several


def spaced(count: int, limit: int) -> Sequence[int]:
    """Return the indices of at most `limit` of `count` examples, evenly spaced."""
    return range(count) if count <= limit else [i * count // limit for i in range(limit)]


def features_of(
    task: Task,
    examples: list[RawExample],
    tokenizer: Tokenizer,
    max_seq_length: int,
    long: LongTexts = CUT,
) -> SplitFeatures:
    """Return the examples with their features, and the tokens that these lack.

    Raises UserError for a text that is too long, if `long` refuses it.
    """
    features: list[Features] = []
    cuts: dict[int, list[Cut]] = {}
    windows: list[int] = []
    with ProgressMeter(
        "tokens", len(examples), unit="example", show=len(examples) >= MANY
    ) as meter:
        for index, example in enumerate(examples):
            found = task.features(example, index, tokenizer, max_seq_length)
            found, lost = fitted(task, example, found, tokenizer, max_seq_length, long)
            features += found
            if lost:
                cuts[index] = lost
            if count := window_count(found):
                windows.append(count)
            meter.add(1)
    return SplitFeatures(examples, features, as_rows(features), cuts, windows)
