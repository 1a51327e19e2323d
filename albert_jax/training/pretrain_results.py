# SPDX-License-Identifier: Apache-2.0
"""What `pretrain` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from albert_jax.utils.results import Result


@dataclass(frozen=True, kw_only=True, eq=False)
class PretrainResult(Result):
    """A pretraining run that ended.

    It is also the path of the model directory, for `load`, `open`, `Path`, `str` and `/`.
    """

    model: str
    """The model directory."""
    workdir: str
    step: int
    """Updates made: `steps`, or fewer where a callback stopped the run."""
    steps: int
    parameters: int
    held_out: dict[str, float]
    """The last evaluation's step and metrics; empty where nothing is held out."""
    baselines: dict[str, float]
    """What knowing only frequencies reaches on the text that is held out."""

    def __fspath__(self) -> str:
        return self.model

    def __str__(self) -> str:
        return self.model

    def __truediv__(self, name: str) -> Path:
        return Path(self.model) / name
