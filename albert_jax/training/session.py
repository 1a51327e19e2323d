# SPDX-License-Identifier: Apache-2.0
"""Carry out what every run does: open, resume or begin, train, judge and export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from albert_jax.checkpoint.manager import Checkpointer
from albert_jax.config.recipes import to_dict
from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.distributed import multihost
from albert_jax.distributed.placement import (
    Placement,
    check_batch_size,
    local_devices,
    make_placement,
    place,
    run_devices,
)
from albert_jax.training.loop import fit
from albert_jax.training.memory import check_fits, out_of_memory_told
from albert_jax.training.metrics import MetricsLog
from albert_jax.training.position import Position
from albert_jax.training.programs import Check
from albert_jax.training.run import Run
from albert_jax.training.saving import Saves
from albert_jax.training.step import TrainState
from albert_jax.training.trackers import TrackedRun, Tracker, open_trackers
from albert_jax.utils.malloc import give_back_large_buffers
from albert_jax.utils.provenance import commit, versions, without_credentials


@dataclass(frozen=True)
class Beginning:
    """Describe what a session begins with: a checkpoint's state, or its first one."""

    position: Position
    origin: str  # in words


@dataclass(frozen=True)
class Session:
    """Define a run in its directory, and what is done before and after its steps."""

    config: PretrainConfig | FinetuneConfig
    run: Run
    placement: Placement
    directory: Path
    """Gets checkpoints/, metrics.jsonl and what trackers write, as tensorboard/."""
    random_state: Callable[[], TrainState]
    """The state before the first step; traceable, for its shapes."""
    first_state: Callable[[], tuple[TrainState, str]]
    """The state that a new run starts from, and in words what that is."""
    begin: Callable[[Beginning, TrainState, MetricsLog], None]
    """Announces the run; the state is placed as a checkpoint's."""
    finish: Callable[[TrainState], Any]
    """Judges and exports the final state, in one process; `carry_out` returns what it returns."""


def carry_out(session: Session) -> Any:
    """Train from the newest checkpoint, or from the first state, to the end, and finish.

    Raises OutOfMemory for a step that does not fit, and the errors of `fit`.
    """
    state = _train(session)
    with multihost.together():
        return session.finish(state) if multihost.is_primary() else None


def _train(session: Session) -> TrainState:
    train, directory, primary = session.run.config, session.directory, multihost.is_primary()
    with (
        out_of_memory_told(local_devices(train.devices), session.config),
        Checkpointer(directory / "checkpoints", keep=train.keep) as checkpointer,
    ):
        saves = Saves(session.run, checkpointer)
        beginning, state = _beginning(session, saves)
        position = beginning.position
        with multihost.together():
            trackers = _trackers(session, position) if primary else ()
        log = MetricsLog(  # of process 0; those of the others print and write nothing
            directory if primary else None,
            total_steps=train.steps,
            resume_step=position.step,
            console=primary,
            trackers=trackers,
        )
        with log:
            session.begin(beginning, state, log)
            held = [state]
            del state  # the loop's copy of it is the only one that stays on the devices
            return fit(session.run, held.pop, position, session.placement, saves, log)


def _trackers(session: Session, position: Position) -> Sequence[Tracker]:
    about = {
        "config": without_credentials(to_dict(session.config)),
        "versions": versions(),
        "commit": commit(),
    }
    tracked = TrackedRun(session.directory, position.step, about)
    return open_trackers(session.run.watching.log, tracked)


def _beginning(session: Session, saves: Saves) -> tuple[Beginning, TrainState]:
    placement = session.placement
    shapes = jax.eval_shape(session.random_state)
    restored = saves.restore(placement.restore_target(shapes))
    if restored is not None:
        state, position = restored
        words = f"resumed at step {position.step}, next batch {position.batch}"
        return Beginning(position, words), state
    state, origin = session.first_state()
    placed = place(state, placement.state_sharding)
    return Beginning(Position(), f"starting from {origin}"), placed


# ---------------------------------------------------------------------------------- the run's parts


def open_placement(config: PretrainConfig | FinetuneConfig) -> Placement:
    """Return the configured placement; raises UserError if the batch does not divide over it."""
    check_batch_sizes(config)
    return make_placement(config.train.mode, run_devices(config.train.devices))


def check_batch_sizes(config: PretrainConfig | FinetuneConfig) -> None:
    """Raise UserError unless every batch of the run divides over its devices."""
    train, devices = config.train, len(run_devices(config.train.devices))
    sizes = {train.batch_size}
    if isinstance(config, PretrainConfig):
        sizes |= {stage.batch_size for stage in config.stages}
    for size in sorted(sizes):
        check_batch_size(size, train.accumulate, devices)


def memory_check(config: PretrainConfig | FinetuneConfig) -> Check:
    """Return a check that refuses a compiled step which takes more memory than the devices have."""
    return partial(
        check_fits,
        devices=local_devices(config.train.devices),
        config=config,
        when_tight=give_back_large_buffers,
    )
