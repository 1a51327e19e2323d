# SPDX-License-Identifier: Apache-2.0
"""Save a run's checkpoints, resume from them, and roll back from what went wrong."""

from __future__ import annotations

from dataclasses import replace

from albert_jax.checkpoint.manager import Checkpointer, differences_from
from albert_jax.training.guards import Offence
from albert_jax.training.metrics import MetricsLog
from albert_jax.training.position import Position
from albert_jax.training.run import Run
from albert_jax.training.step import TrainState
from albert_jax.utils.errors import UserError
from albert_jax.utils.provenance import versions
from albert_jax.utils.wording import setting


class Saves:
    """Write a run's state and position into checkpoints, and read them back."""

    def __init__(self, run: Run, checkpointer: Checkpointer) -> None:
        self._run, self._checkpointer = run, checkpointer
        self.directory = checkpointer.directory

    def save(self, state: TrainState, position: Position, *, wait: bool = False) -> None:
        """Start a checkpoint, or with `wait` complete it; raises as `Checkpointer.save`."""
        meta = {
            **self._run.identity,
            **self._run.kept(position),
            "position": position.to_meta(),
            "versions": versions(),
        }
        self._checkpointer.save(position.step, state, meta, wait=wait)

    def restore(self, target: TrainState) -> tuple[TrainState, Position] | None:
        """Return the newest good checkpoint's state, placed as `target` is, and its position.

        None if there is no checkpoint. A checkpoint that is continued with other settings is saved
        again as this run's, so that later checkpoints can go back to it. Raises as
        `Checkpointer.restore` and `Checkpointer.save`.
        """
        restored = self._checkpointer.restore(target, self._run.judge)
        if restored is None:
            return None
        state, meta = restored
        self._run.recall(meta)
        position = Position.from_meta(meta["position"])
        if differences_from(meta, self._run.identity):
            self.save(state, position, wait=True)
        return state, position

    def steps(self) -> list[int]:
        """Return the steps that are on disk, oldest first."""
        return self._checkpointer.steps()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk; raises SaveError if it failed."""
        self._checkpointer.wait()


class Rollbacks:
    """Go back to the last good checkpoint, and leave the offending batches out for good."""

    def __init__(self, limit: int, saves: Saves, log: MetricsLog) -> None:
        """Allow `limit` rollbacks without a new checkpoint in between."""
        self._limit, self._saves, self._log = limit, saves, log
        self._made = 0

    def forgive(self) -> None:
        """Reset the count, because a checkpoint was saved."""
        self._made = 0

    def roll_back(
        self, target: TrainState, offence: Offence, at: Position, end: int
    ) -> tuple[TrainState, Position]:
        """Return the last good checkpoint's state, and its position.

        The position leaves out the batches from the offending one up to `end`, and has no losses:
        those before do not judge the next. `target` has the shapes and shardings, `at` is where the
        run stands. Raises UserError after too many rollbacks, and if there is no checkpoint.
        """
        reason, first = offence
        self._made += 1
        if self._made > self._limit:
            raise UserError(
                f"{reason} at batch {first}, after {self._limit} rollbacks since the last "
                f"checkpoint ({self._saves.steps()[-1]}); lower "
                f"{setting('optimizer.learning_rate')}, lengthen "
                f"{setting('optimizer.warmup_steps')}, or check the data"
            )
        restored = self._saves.restore(target)
        if restored is None:
            raise UserError(f"{reason} at batch {first}, and there is no checkpoint to go back to")
        state, back = restored
        self._log.rewind(back.step)
        self._log.event(
            back.step,
            f"{reason}: rolled back from step {at.step} to step {back.step}, leaving out batches "
            f"{first} to {end - 1} (rollback {self._made} of {self._limit})",
            batches=[first, end],
        )
        return state, replace(back, left_out=(*at.left_out, (first, end)), losses=())
