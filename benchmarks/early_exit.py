# SPDX-License-Identifier: Apache-2.0
"""Not a test: accuracy and time of a classifier that answers after fewer passes.

python -m benchmarks.early_exit --model runs/sst2-exits/model --task sst2 --data glue/SST-2

The model was fine-tuned with --exits. Texts are answered one at a time by `Albert.predict`, as a
service does, tokenizer included. In each round all rules answer the same texts in turn; compiling
is left out. Of the rounds the least time is printed.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import albert_jax
from albert_jax.config.model import ComputeConfig, Dtype
from albert_jax.tasks import TASKS

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
    texts: int = 10_000
    """Examples of the dev set at most."""
    dtype: Dtype = "float32"


def main(settings: Settings) -> None:
    examples = TASKS[settings.task].examples("dev", settings.data)[: settings.texts]
    texts: list[Any] = [e.texts[0] if len(e.texts) == 1 else tuple(e.texts) for e in examples]
    asked: list[tuple[str, Path, str | None]] = [("all passes", settings.model, None)]
    asked += [(rule, settings.model, rule) for rule in settings.rules]
    asked += [(f"all passes of {path}", path, None) for path in settings.others]
    compute = ComputeConfig(dtype=settings.dtype)
    # A model for each, as `Albert.predict` keeps the programs of its last settings only.
    models = {name: albert_jax.load(path, compute=compute) for name, path, _ in asked}
    wall: dict[str, list[float]] = {name: [] for name in models}
    cpu: dict[str, list[float]] = {name: [] for name in models}
    found: dict[str, list[Any]] = {}
    for turn in range(settings.rounds + 1):
        for name, _, rule in asked:
            start, used = time.perf_counter(), time.process_time()
            predict = models[name].predict
            found[name] = [predict(text, task=settings.task, exit=rule) for text in texts]
            if turn:  # the first compiles
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - used)
    base = min(cpu["all passes"])
    for name, answers in found.items():
        right = [a.prediction == e.label for a, e in zip(answers, examples, strict=True)]
        passes = [answer.passes for answer in answers if answer.passes is not None]
        each = 1e3 / len(texts)
        print(
            f"{name:24} {100 * np.mean(right):.2f} % of {len(texts)}, "
            f"{np.mean(passes) if passes else np.nan:.2f} passes, "
            f"{each * min(cpu[name]):.2f} ms of CPU a text ({each * min(wall[name]):.2f} by the "
            f"clock), {base / min(cpu[name]):.2f} times as fast",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Settings))
