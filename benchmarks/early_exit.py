# SPDX-License-Identifier: Apache-2.0
"""Not a test: accuracy and time of a classifier that answers after fewer passes.

python -m benchmarks.early_exit --model runs/sst2-exits/model --task sst2 --data glue/SST-2

The model was fine-tuned with --exits. Texts are answered one at a time by `Albert.predict`, as a
service does, tokenizer included. In each round all rules answer the same texts in turn; compiling
is left out. Of the rounds the least time is printed. Accuracy is that of the whole dev set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import albert_jax
from albert_jax import Answer
from albert_jax.config.model import ComputeConfig, Dtype
from albert_jax.tasks import TASKS
from benchmarks.timing import CPU, WALL, seconds_in_turn

RULES = (
    *(f"confidence={p}" for p in (0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)),
    *(f"patience={n}" for n in (1, 2)),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    model: Path
    """A model directory that was fine-tuned with --exits."""
    task: str
    data: Path
    """The folder with its dev set, or the file."""
    others: tuple[Path, ...] = ()
    """Models to answer with all passes beside it, as one fine-tuned without --exits."""
    rules: tuple[str, ...] = RULES
    rounds: int = 3
    timed: int = 200
    """Texts of each round."""
    dtype: Dtype = "float32"


def main(settings: Settings) -> None:
    examples = TASKS[settings.task].examples("dev", settings.data)
    texts: list[Any] = [e.texts[0] if len(e.texts) == 1 else tuple(e.texts) for e in examples]
    asked: list[tuple[str, Path, str | None]] = [("all passes", settings.model, None)]
    asked += [(rule, settings.model, rule) for rule in settings.rules]
    asked += [(f"all passes of {path}", path, None) for path in settings.others]
    compute = ComputeConfig(dtype=settings.dtype)
    answers: dict[str, Callable[[Any], Answer]] = {}
    for name, path, rule in asked:
        # A model for each, as `Albert.predict` keeps the programs of its last settings only.
        predict = albert_jax.load(path, compute=compute).predict
        answers[name] = partial(predict, task=settings.task, exit=rule)
    found = {name: [answer(text) for text in texts] for name, answer in answers.items()}
    timed = texts[: settings.timed]

    def answer_all(answer: Callable[[Any], Answer]) -> None:
        for text in timed:
            answer(text)

    turns = {name: partial(answer_all, answer) for name, answer in answers.items()}
    each = 1e3 / len(timed)
    least = {
        name: each * seconds.min(axis=0)
        for name, seconds in seconds_in_turn(turns, settings.rounds).items()
    }
    base = least["all passes"][CPU]
    for name, answered in found.items():
        right = [a.prediction == e.label for a, e in zip(answered, examples, strict=True)]
        passes = [a.passes for a in answered if a.passes is not None]
        print(
            f"{name:24} {100 * np.mean(right):.2f} % of {len(texts)}, "
            f"{np.mean(passes) if passes else np.nan:.2f} passes, "
            f"{least[name][CPU]:.2f} ms of CPU a text ({least[name][WALL]:.2f} by the "
            f"clock), {base / least[name][CPU]:.2f} times as fast",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Settings))
