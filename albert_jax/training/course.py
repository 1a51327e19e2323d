# SPDX-License-Identifier: Apache-2.0
"""Follow a pretraining run through its stages, with their examples and steps.

A run that was continued with other settings has the stages of both.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from albert_jax.checkpoint.manager import HISTORY_KEY, Checkpointer, another_run, differences_from
from albert_jax.config.history import (
    CONTINUABLE,
    Continuation,
    Setting,
    settings_before,
    stages_of_history,
)
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.pretraining import PretrainingData, pretraining_identity
from albert_jax.data.staged import StagedExamples
from albert_jax.distributed import multihost
from albert_jax.models.lowering import Lowering
from albert_jax.training.position import Position
from albert_jax.training.step import StagedSteps
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import UNSET, JsonObject

_FLAG = "--continue-with"


def require_checkpoint(workdir: Path) -> None:
    """Raise UserError if a work directory has no run to continue."""
    if not Checkpointer(workdir / "checkpoints", read_only=True).steps():
        raise UserError(
            f"work directory {workdir} has no checkpoint to continue from; leave out {_FLAG} to "
            "begin a run there"
        )


class Course:
    """Hold a run's stages, examples and steps, which follow from its settings and its history."""

    def __init__(
        self,
        config: PretrainConfig,
        data: PretrainingData,
        lowering: Lowering,
        *,
        continue_with: bool = False,
    ) -> None:
        """Prepare the stages.

        `continue_with` allows a checkpoint with other settings in `CONTINUABLE`.
        """
        self.config, self.data, self._continue_with = config, data, continue_with
        self._source_of = functools.cache(data.train_as)
        self.identity = pretraining_identity(config, data)
        self.steps = StagedSteps(config, config.stages, lowering)
        self.begun: Continuation | None = None
        """The continuation that begins at the checkpoint which was recalled last."""
        self._follow([])

    def _follow(self, history: Sequence[Continuation]) -> None:
        self.history = list(history)
        self.stages = stages_of_history(self.config, history)
        self.steps.stages = self.stages
        self.examples = StagedExamples(self.stages, self._source_of)

    def judge(self, directory: Path, meta: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
        """Raise UserError if a checkpoint is another run's and may not be continued; a `Judge`."""
        other = differences_from(meta, expect)
        if not other:
            return
        fixed = [name for name in other if name not in CONTINUABLE]
        if not self._continue_with:
            onward = "" if fixed else f", or {_FLAG} to continue it with these"
            raise UserError(
                f"{another_run(directory, other)}; give that run's settings or another work "
                f"directory{onward}"
            )
        if fixed:
            there, here = other[fixed[0]]
            more = f" (also {', '.join(fixed[1:])})" if fixed[1:] else ""
            raise UserError(
                f"{_FLAG} changes the length, the batches and the learning rate of a run, but "
                f"{fixed[0]} is {there!r} in {directory} and {here!r} here{more}; give that run's "
                "settings, or begin a run in another work directory with --init-from"
            )
        if meta["position"]["step"] >= self.config.train.steps:
            raise UserError(
                f"the run in {directory} has made {meta['position']['step']} steps, as many as "
                f"--train.steps {self.config.train.steps} or more; raise that to continue it"
            )

    def recall(self, meta: Mapping[str, Any]) -> None:
        """Accept what a checkpoint kept.

        If the checkpoint has other settings, which `judge` allowed, this run's settings hold from
        there on.
        """
        history = [Continuation.from_json(entry) for entry in meta.get(HISTORY_KEY, [])]
        position, other = meta["position"], differences_from(meta, self.identity)
        self.begun = _continuation(Position.from_meta(position), other) if other else None
        if self.begun:
            history.append(self.begun)
        if history != self.history:
            self._follow(history)
        batch = position["batch"]
        if self._examples_before(batch) == self.stages.at(batch).examples:
            # 0.1.0 wrote no epochs.
            self.examples.remember_epochs(batch, meta.get("epochs", []))

    def _examples_before(self, batch: int) -> ExamplesConfig:
        """Return how the checkpoint's run would have drawn its next batch."""
        if self.begun is None:
            return self.stages.at(batch).examples
        earlier = settings_before(self.config, self.begun)
        return stages_of_history(earlier, self.history[:-1]).at(batch).examples

    def kept(self, position: Position) -> JsonObject:
        """Return what a checkpoint at a position keeps."""
        kept: JsonObject = {
            "tokenizer": self.data.tokenizer,
            "epochs": self.examples.ended_epochs(position.batch),
        }
        return kept | ({HISTORY_KEY: self.history} if self.history else {})


def _continuation(position: Position, other: Mapping[str, tuple[Any, Any]]) -> Continuation:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Continuation(
        step=position.step,
        batch=position.batch,
        date=multihost.gather(now)[0],  # of several processes each would have its own
        before={name: _setting(there) for name, (there, _) in other.items()},
        after={name: _setting(here) for name, (_, here) in other.items()},
    )


def _setting(value: Any) -> Setting:
    return None if value == UNSET else value
