# SPDX-License-Identifier: Apache-2.0
"""Judge which checkpoints with other settings a run may continue, and keep the history of it."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from albert_jax.checkpoint.manager import (
    Checkpointer,
    another_run,
    differences_from,
)
from albert_jax.config.history import (
    CONTINUABLE,
    Continuation,
    Setting,
    history_in,
    read_history,
    recorded,
)
from albert_jax.config.run import FIRST_VALUES, PretrainConfig
from albert_jax.config.sections import SCHEDULES
from albert_jax.distributed import multihost
from albert_jax.training.position import Position
from albert_jax.training.step_meter import Workload
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import UNSET, JsonObject, flat, is_number, json_sha256
from albert_jax.utils.wording import in_short, setting

# What a pretraining run's identity has in a checkpoint's meta, beside what the checkpoint keeps.
_IDENTITY = (
    *("vocabulary", "data", "records"),
    *("model", "examples", "optimizer", "train", "positions"),
    *FIRST_VALUES,
)
# What a stage has; the learning rate's factor is the newest settings' in all steps.
_OF_STAGES = frozenset(f"train.{name}" for name in SCHEDULES) - {"train.rate", "train.batch_ramp"}


def _floats(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a configuration's fields that may be a float."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _floats(cast(type, hint), f"{prefix}{name}.")
        elif float in (hint, *get_args(hint)):
            yield f"{prefix}{name}"


_FLOATS = frozenset(_floats(PretrainConfig))


def require_checkpoint(workdir: Path) -> None:
    """Raise UserError if a work directory has no run, or runs of seeds, to continue."""
    folders = [workdir / "checkpoints", *workdir.glob("seed-*/checkpoints")]
    if not any(Checkpointer(folder, read_only=True).steps() for folder in folders):
        raise UserError(
            f"work directory {workdir} has no checkpoint to continue from; leave out "
            f"{setting('continue_with')} to begin a run there"
        )


def run_record(meta: Mapping[str, Any]) -> JsonObject:
    """Return what an export keeps of its run, by which `is_of_run` knows it again.

    `meta` is a checkpoint's, or the run's identity. All checkpoints of a run have the same digest,
    also where it was continued: the settings that may change during a run are left out, so that
    runs which differ in these alone have it too. The model that a run started from is no part of
    it, because it may have been moved, or trained further.
    """
    values = _flat({name: meta[name] for name in _IDENTITY if name in meta})
    # 1 of a recipe and 1.0 of a file are one value, and two texts.
    for name in _FLOATS & values.keys():
        values[name] = float(values[name]) if is_number(values[name]) else values[name]
    digest = json_sha256({name: x for name, x in values.items() if name not in CONTINUABLE})
    return {"run": digest, "init_from": meta.get("init_from")}


def is_of_run(provenance: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Return whether a model's provenance has the record of this run, or of a copy of it."""
    there, here = ({"init_from": each.get("init_from")} for each in (provenance, run))
    began_apart = there["init_from"] and here["init_from"] and differences_from(there, here)
    return bool(provenance.get("run") == run["run"] and not began_apart)


class Continuations:
    """Judge the checkpoints that a run may continue, and keep its history."""

    def __init__(
        self,
        identity: Mapping[str, Any],
        allowed: Collection[str],
        *,
        steps: int,
        continue_with: bool,
        makes_steps: bool = True,
    ) -> None:
        """Prepare to judge.

        Args:
            identity: the run's.
            allowed: the settings of it that may differ in a checkpoint, with `continue_with`.
            steps: the run's.
            continue_with: whether the user asked to continue with other settings.
            makes_steps: whether the run goes on from a checkpoint, and is not only exported.
        """
        self._makes_steps = makes_steps
        self.identity = identity
        self._allowed, self._steps, self._continue_with = allowed, steps, continue_with
        self.history: list[Continuation] = []
        self.begun: Continuation | None = None
        """The continuation that begins at the checkpoint which was recalled last."""
        self._since: list[Continuation] = []  # those after the checkpoint that was judged last

    def judge(self, directory: Path, meta: Mapping[str, Any]) -> None:
        """Raise UserError if a checkpoint is another run's and may not be continued; a `Judge`.

        One from before a continuation that the work directory's history has is this run's, if its
        steps up to there can be repeated as they were.
        """
        other = differences_from(meta, self.identity)
        since = _since(read_history(directory.parent), meta, other) if other else []
        is_repeated = not self._makes_steps or self._are_followed(since)
        self._since = since if is_repeated else []
        if not other or self._since:
            return
        fixed = [name for name in other if name not in self._allowed]
        if not self._continue_with:
            way = setting("continue_with", True)
            onward = "" if fixed else f", or {way} to continue it with these"
            raise UserError(
                f"{another_run(directory, other)}; give that run's settings or another work "
                f"directory{onward}"
            )
        if fixed:
            there, here = other[fixed[0]]
            more = f" (also {', '.join(fixed[1:])})" if fixed[1:] else ""
            batches = ", the batches" if "train.batch_size" in self._allowed else ""
            raise UserError(
                f"{setting('continue_with')} changes the length{batches} and the learning rate of "
                f"a run, but {fixed[0]} is {in_short(there)} in {directory} and {in_short(here)} "
                f"here{more}; give that run's settings, or begin a run from its model in another "
                "work directory"
            )
        if meta["position"]["step"] >= self._steps:
            raise UserError(
                f"the run in {directory} has made {meta['position']['step']} steps, as many as "
                f"{setting('train.steps', self._steps)} or more; raise that to continue it"
            )

    def _are_followed(self, changes: Sequence[Continuation]) -> bool:
        """Return whether a run follows its history in all that changed.

        Stages do. A learning rate and accumulation are those of the newest settings from the first
        step on, so that steps before the change would not be what they were.
        """
        settings = _flat(self.identity)
        is_constant = settings.get("optimizer.schedule") == "constant"
        followed = set(_OF_STAGES)
        if is_constant and settings.get("optimizer.warmup_steps") is not None:  # else a share
            followed.add("train.steps")
        of_batches = {"train.batch_size", "train.batch_ramp"}  # which an unset rate goes by
        if settings.get("optimizer.learning_rate") is not None:
            followed |= of_batches
        return all(change.after.keys() <= followed for change in changes)

    def recall(self, meta: Mapping[str, Any]) -> None:
        """Accept the history of a checkpoint.

        If the checkpoint has other settings, which `judge` allowed, this run's settings hold from
        there on. If it is from before a recorded continuation, they hold from that on.
        """
        self.history = _history_of(meta)
        if self._since:
            self.history, self.begun = [*self.history, *self._since], None
            return
        other = differences_from(meta, self.identity)
        self.begun = _continuation(Position.from_meta(meta["position"]), other) if other else None
        if self.begun:
            self.history.append(self.begun)

    def kept(self) -> JsonObject:
        """Return what a checkpoint keeps: the history, if the run has one."""
        return recorded(self.history)

    def begun_in_words(self, workload: Workload) -> str | None:
        """Return a sentence about the continuation that begins, None if none does."""
        if self.begun is None:
            return None
        rate = float(workload.schedule(self.begun.step))
        return f"continued with {self.begun.in_words()}; the learning rate goes on at {rate:.4g}"


def _flat(settings: Mapping[str, Any]) -> JsonObject:
    """Return settings by dotted names, as JSON has them: tuples are lists."""
    return flat(json.loads(json.dumps(settings)))


def _history_of(meta: Mapping[str, Any]) -> list[Continuation]:
    return history_in(meta, "the checkpoint", hint="restore it from a copy")


def _since(
    history: Sequence[Continuation],
    meta: Mapping[str, Any],
    other: Mapping[str, tuple[Any, Any]],
) -> list[Continuation]:
    """Return the changes in a history that make a checkpoint's settings the expected ones.

    None of them if they do not. `other` has the settings that differ, (there, here).
    """
    before = _history_of(meta)
    dates = [change.date for change in history[: len(before)]]
    since = list(history[len(before) :])
    settings = {name: _setting(there) for name, (there, _) in other.items()}
    for change in since:
        if any(settings.get(name, value) != value for name, value in change.before.items()):
            return []
        settings |= change.after
    is_this_run = dates == [change.date for change in before] and all(
        settings[name] == _setting(here) for name, (_, here) in other.items()
    )
    return since if is_this_run else []


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
