# SPDX-License-Identifier: Apache-2.0
"""Run the one training loop, of pretraining and of every task.

It knows steps, batches, checkpoints and clocks, and nothing of what is being learnt. Each part has
a module: `pipeline` (steps in flight), `guards` (losses, signals, the watchdog), `saving`
(checkpoints and rollbacks), `evaluations`, `due` (when), `step_meter` (the log's figures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax

from albert_jax.distributed.placement import Placement
from albert_jax.training.due import NOTHING, Due, Timetable, is_due
from albert_jax.training.evaluations import Cut, Evaluations
from albert_jax.training.guards import LossGuard, Offence, Watchdog, stop_signals
from albert_jax.training.metrics import MetricsLog
from albert_jax.training.pipeline import Pipeline, StepResult
from albert_jax.training.position import Position, Tally
from albert_jax.training.programs import StepPrograms
from albert_jax.training.run import Run
from albert_jax.training.saving import Rollbacks, Saves
from albert_jax.training.step import TrainState
from albert_jax.training.step_meter import StepMeter
from albert_jax.training.watching import Hooks
from albert_jax.utils import interrupts
from albert_jax.utils.errors import TryAgain
from albert_jax.utils.wording import setting


def fit(
    run: Run,
    take_state: Callable[[], TrainState],
    position: Position,
    placement: Placement,
    saves: Saves,
    log: MetricsLog,
) -> TrainState:
    """Train from `position` to the run's last step and return the final state as plain arrays.

    `take_state` hands over the state at `position`, as plain arrays. Its caller should not keep
    it, because the loop's copy takes the same memory again.

    A callback may end the run earlier by raising StopTraining. Raises TryAgain if a signal stops
    the run, and any other exception of a callback; a checkpoint is saved first. Raises UserError if
    the guard gives up or a checkpoint cannot be saved.
    """
    loop = _Loop(run, position, placement, saves, log)
    state = take_state()
    if position.step == 0 and not saves.steps():
        loop.save(state)  # a rollback needs a target, and a full disk should show now
    loop.begin(state, position)
    del state
    try:
        with loop.signals, loop.watchdog:
            loop.run()
            saves.wait()
            return placement.get_state(loop.pipeline.state)
    finally:
        loop.pipeline.close()


class _Loop:
    """Hold the parts of one call of `fit`, and what they do between steps."""

    pipeline: Pipeline

    def __init__(
        self, run: Run, position: Position, placement: Placement, saves: Saves, log: MetricsLog
    ) -> None:
        self._run, self._placement, self._saves = run, placement, saves
        if run.standing:
            run.standing.begin(position.step)
        self._began_at = position.step
        self._program = StepPrograms(run.step_at, placement.compile, run.check_program)
        self._timetable = Timetable(run.config, evaluates=run.evaluate is not None)
        self._rollbacks = Rollbacks(run.guard.max_rollbacks, saves, log)
        self.signals = stop_signals(self._nothing_to_lose)
        self.watchdog = Watchdog(run.guard.step_timeout)
        self._hooks = Hooks(run.watching)
        self._log = log
        self._progress = Progress(run, position, placement.devices, log, self.watchdog, self._hooks)
        self._evaluations = Evaluations(run, log, self.watchdog, self.signals.due, self._hooks)

    def begin(self, state: TrainState, position: Position) -> None:
        """Fill the pipeline from a position on."""
        self._target = jax.tree.map(_shape_of, state)
        self.pipeline = Pipeline(self._program, self._run.batches, self._placement, state, position)

    def run(self) -> None:
        """Train to the last step, or to the one at which the run ends early."""
        if self._owes_evaluation():
            self._evaluate()
        while self.pipeline.step < self._run.config.steps:
            # After an evaluation no step is in flight: these are the parameters that it judged.
            if self._hooks.stopped or self._run.ends_at(self._progress.position.step):
                self._end_early()
                break
            self.pipeline.start()
            due = self._timetable.due(self.pipeline.step, stop=self.signals.due())
            offence = self._progress.observe(self.pipeline.finished(self._ahead(due)))
            if offence is not None:
                self._roll_back(offence)
                continue
            self._raise_failure()
            if self._hooks.stopped:
                due = due._replace(end=True, evaluate=self._run.evaluate is not None)
            if due.stop and not due.end:
                raise self._stopped()
            if due.end or (due.save and not self._progress.spikes):
                self.save(self._placement.get_state(self.pipeline.state), wait=due.stop)
            if due.evaluate:
                self._evaluate()
        self._tell_spikes()

    def _tell_spikes(self) -> None:
        """Say that the run's last state, which is its model, was made by losses that are spikes."""
        if count := self._progress.spikes:
            step = self._progress.position.step
            earlier = max((x for x in self._saves.steps() if x < step), default=0)
            last = "last loss is a spike" if count == 1 else f"last {count} losses are spikes"
            self._log.event(
                step,
                f"note: the run's {last}, so that the model may be worse than checkpoint {earlier} "
                f"in {self._saves.directory}; train on with {setting('continue_with', True)} and "
                f"more {setting('train.steps')}, or begin again at a lower "
                f"{setting('optimizer.learning_rate')}",
            )

    def _ahead(self, due: Due) -> int:
        """Return how many steps may stay in flight: none if something is done with the last."""
        is_told = self._hooks.active and self._progress.logs(self.pipeline.step)
        return self._placement.max_in_flight if due == NOTHING and not is_told else 0

    def _end_early(self) -> None:
        self._save_unsaved()
        if self._hooks.stopped:
            step, steps = self._progress.position.step, self._run.config.steps
            self._log.event(step, f"stopped by a callback after step {step} of {steps}")

    def _raise_failure(self) -> None:
        """Raise a callback's exception, after saving the steps so far."""
        if self._hooks.failure is None:
            return
        if not self._progress.spikes:
            self.save(self._placement.get_state(self.pipeline.state), wait=True)
        raise self._hooks.failure

    def _owes_evaluation(self) -> bool:
        """Return whether the run was interrupted before or in the evaluation at its position."""
        step = self._progress.position.step
        due = step > 0 and self._timetable.evaluation_is_due(step)
        return due and not self._evaluations.is_logged(step)

    def save(self, state: TrainState, *, wait: bool = False) -> None:
        """Save a checkpoint of a plain state at the position of the last finished step."""
        position = self._progress.position
        self._saves.save(state, position, wait=wait)
        self._timetable.saved()
        self._rollbacks.forgive()
        self.watchdog.alive(f"the checkpoint at step {position.step}")

    def _save_unsaved(self) -> None:
        self._saves.wait()
        if self._progress.position.step not in self._saves.steps():
            self.save(self._placement.get_state(self.pipeline.state))

    def _evaluate(self) -> None:
        state = self.pipeline.state
        try:
            self._evaluations.make(self._run.evaluated(state), self._progress.position)
        except Cut:
            raise self._stopped() from None
        self._progress.meter.restart_clock()
        self._raise_failure()

    def _roll_back(self, offence: Offence) -> None:
        end = self.pipeline.batch
        self.pipeline.close()  # its memory is wanted by the restored state
        state, position = self._rollbacks.roll_back(
            self._target, offence, self._progress.position, end
        )
        self._progress.rewind(position)
        self.begin(state, position)

    def _nothing_to_lose(self) -> bool:
        return self._progress.position.step in (self._began_at, *self._saves.steps())

    def _stopped(self) -> TryAgain:
        """Save the last step, and return the error that ends the run.

        A step whose loss is a spike is not saved: a rollback would go back to it. The steps since
        the last checkpoint are made again, and judged alike.
        """
        step = self._progress.position.step
        if self._progress.spikes:
            self._saves.wait()
            kept = f"whose loss is a spike; step {self._saves.steps()[-1]} is saved"
        else:
            self.save(self._placement.get_state(self.pipeline.state), wait=True)
            kept = "which is saved"
        interrupts.acting()
        return TryAgain(
            f"stopped by {self.signals.requested} after step {step}, {kept} in "
            f"{self._saves.directory}; run the same command again to continue"
        )


class Progress:
    """Judge and log finished steps, and hold the position that they reached."""

    def __init__(
        self,
        run: Run,
        position: Position,
        devices: tuple[jax.Device, ...],
        log: MetricsLog,
        watchdog: Watchdog,
        hooks: Hooks,
    ) -> None:
        self._run, self._devices, self._log, self._watchdog = run, devices, log, watchdog
        self._hooks = hooks
        self._losses = LossGuard(run.guard)
        self.rewind(position)

    def rewind(self, position: Position) -> None:
        """Continue from a position, as after a rollback."""
        self.position = position  # of the last step that has finished
        self._losses.reset(position.losses)
        self._stage = self._run.stage_at(max(position.batch - 1, 0))  # of the last loss
        self.meter = StepMeter(self._run.workload, self._devices)

    @property
    def spikes(self) -> int:
        """Return how many losses up to the last are spikes; after one, nothing should be saved."""
        return self._losses.spikes

    def logs(self, step: int) -> bool:
        """Return whether a step has a line in the log."""
        config = self._run.config
        return step == 1 or is_due(step, config.log_every, config.steps)

    def observe(self, finished: Iterable[StepResult]) -> Offence | None:
        """Take steps as they finish; return what is wrong as soon as something is."""
        for step in finished:
            self._watchdog.beat(f"step {step.number}")
            loss = float(step.metrics["loss"])
            skipped = bool(step.metrics["skipped"] > 0)
            if (stage := self._run.stage_at(step.batch)) != self._stage:
                self._stage = stage
                self._losses.reset()  # those of another stage are no measure
            if offence := self._losses.observe(step.batch, loss, skipped=skipped):
                return offence
            self.meter.stepped(step)
            tally, figures = self.position.tally.plus(step.metrics), None
            if self.logs(step.number):
                figures = self.meter.report(step, tally, self._log)
                if self._run.standing and (
                    said := self._run.standing.trained(step.number, figures)
                ):
                    self._log.event(step.number, f"note: {said}")
                tally = Tally()
            self.position = replace(
                self.position,
                step=step.number,
                batch=step.batch + 1,
                tally=tally,
                losses=self._losses.losses,
            )
            self._log.progress(step.number, f"loss {loss:.3f}")
            if figures is not None and self._hooks.active:
                self._hooks.step(step.number, figures)
                self.meter.restart_clock()
                self._watchdog.alive(f"the callback of step {step.number}")
        return None


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
