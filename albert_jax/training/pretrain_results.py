# SPDX-License-Identifier: Apache-2.0
"""Define what `pretrain` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from albert_jax.utils.results import Result


@dataclass(frozen=True, kw_only=True, eq=False)
class PretrainResult(Result):
    """Hold the outcome of a pretraining run.

    It is also the path of the model directory, for `load`, `open`, `Path`, `str` and `/`.

    Attributes:
        model: the model directory.
        workdir: the work directory.
        step: the number of updates: `steps`, or fewer if a callback stopped the run.
        steps: the configured number of updates.
        parameters: the number of parameters.
        held_out: the step and metrics of the last evaluation; empty if nothing is held out.
        baselines: the metrics of a model that knows only frequencies, on the held-out text.
    """

    model: str
    workdir: str
    step: int
    steps: int
    parameters: int
    held_out: dict[str, float]
    baselines: dict[str, float]

    def __fspath__(self) -> str:
        return self.model

    def __str__(self) -> str:
        return self.model

    def __truediv__(self, name: str) -> Path:
        return Path(self.model) / name
