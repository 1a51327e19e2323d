# SPDX-License-Identifier: Apache-2.0
"""Define what a run trains: all that the loop knows about pretraining or a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from albert_jax.checkpoint.manager import Judge
from albert_jax.config.sections import GuardConfig, TrainConfig
from albert_jax.training.pipeline import Batches
from albert_jax.training.position import Position
from albert_jax.training.programs import Check
from albert_jax.training.standing import Standing
from albert_jax.training.step import TrainState
from albert_jax.training.step_meter import Workload
from albert_jax.training.watching import NOBODY, Watching
from albert_jax.utils.progress import Tick

Evaluate = Callable[[Any, Position, Tick], dict[str, float]]
"""(params as placed, where the run stands, tick) -> metrics; `tick` hears of every batch."""


def _nothing(*_: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Run:
    """Define what a run trains, and how it is judged."""

    config: TrainConfig
    guard: GuardConfig
    step_at: Callable[[int], Callable[..., Any]]
    """The pure training step for a batch of that number: (state, batch) -> (state, metrics); the
    same object for batches that are computed alike."""
    batches: Batches
    workload: Workload
    identity: Mapping[str, Any]
    """What a run that resumes must have in common with this one."""
    judge: Judge
    """Refuses a checkpoint whose identity is another, by raising."""
    stage_at: Callable[[int], int] = lambda _: 0
    """The number of a batch's stage. The loss may jump where another begins, for example with more
    passes."""
    evaluate: Evaluate | None = None
    """Held-out metrics, None where nothing is held out."""
    evaluated: Callable[[TrainState], Any] = lambda state: state.params
    """Which part of the state is evaluated, as placed."""
    after_evaluation: Callable[[], None] = _nothing
    ends_at: Callable[[int], bool] = lambda _: False
    """Whether a run that stands at this step, whose evaluation is made if one is due, ends there,
    before its last step."""
    standing: Standing | None = None
    """Hears what is logged, and says what should be known of it."""
    watching: Watching = NOBODY
    """The caller's functions and the trackers that hear of it."""
    check_program: Check | None = None
    """Refuses a compiled step by raising, before it runs."""
    kept: Callable[[Position], Mapping[str, Any]] = lambda _: {}
    """What else a checkpoint at a position keeps, as JSON."""
    recall: Callable[[Mapping[str, Any]], None] = _nothing
    """Takes what the checkpoint that is resumed from kept."""
