# SPDX-License-Identifier: Apache-2.0
"""A split of a task as a model reads it: its examples' features, as arrays, and what these lack."""

from __future__ import annotations

from dataclasses import dataclass, field

from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks import Features, RawExample, Task
from albert_jax.tasks.collate import FeatureRow, as_rows
from albert_jax.tasks.cuts import Cut, cuts_of
from albert_jax.utils.progress import ProgressMeter

MANY = 5000  # examples whose tokenizing is worth a bar


@dataclass(frozen=True)
class SplitFeatures:
    """Examples, their features, and these as arrays."""

    examples: list[RawExample]
    features: list[Features]
    rows: list[FeatureRow]
    cuts: dict[int, list[Cut]] = field(default_factory=dict)  # of the examples that lost tokens


def features_of(
    task: Task, examples: list[RawExample], tokenizer: Tokenizer, max_seq_length: int
) -> SplitFeatures:
    """The examples with their features, and what these lack of the texts."""
    features: list[Features] = []
    cuts: dict[int, list[Cut]] = {}
    with ProgressMeter(
        "tokens", len(examples), unit="example", show=len(examples) >= MANY
    ) as meter:
        for index, example in enumerate(examples):
            found = task.features(example, index, tokenizer, max_seq_length)
            features += found
            if lost := cuts_of(task, example, found, tokenizer, max_seq_length):
                cuts[index] = lost
            meter.add(1)
    return SplitFeatures(examples, features, as_rows(features), cuts)
