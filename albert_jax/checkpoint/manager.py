# SPDX-License-Identifier: Apache-2.0
"""Save training checkpoints with orbax: asynchronous, atomic, each array verified on restore.

A step is a directory `STEP/{state,meta}`: orbax's arrays as nested dicts by leaf name, and one JSON
document with the caller's meta and each leaf's shape, dtype and CRC-32C. Steps appear by a rename,
so that a killed run leaves a complete checkpoint or none. A damaged one is reported, skipped and
moved to `STEP.damaged`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from albert_jax.checkpoint.disk import WRITE_ERRORS, cause_of, require_space
from albert_jax.checkpoint.integrity import (
    Damaged,
    Leaves,
    array_table,
    data_of,
    differences,
    named_leaves,
    nest,
    not_finite,
    on_host,
    read_arrays,
    read_document,
    seal,
)
from albert_jax.config.history import HISTORY_KEY
from albert_jax.distributed import multihost
from albert_jax.utils.atomic import remove_leftovers
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject, differing_values
from albert_jax.utils.locks import Lock
from albert_jax.utils.remote_fs import MOUNT, require_here
from albert_jax.utils.streams import say
from albert_jax.utils.wording import first_ten, in_short

FORMAT_VERSION = 2
_FIRST_FORMAT = 1  # of runs that were never continued with other settings
LOCK = "run.lock"  # in a work directory
State = TypeVar("State")


Judge = Callable[[Path, Mapping[str, Any]], None]
"""A function of the checkpoints' directory and a checkpoint's meta. It raises UserError if the
checkpoint is another run's."""


_EITHER = frozenset({"init_from.name", "init_from.weights"})
"""Of these, one that is the same is enough: a model is moved, or trained further."""


def differences_from(
    meta: Mapping[str, Any], expect: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the expected values from which a checkpoint's meta differs, (there, here) by name.

    A key of `expect` that the meta lacks is ignored, because the checkpoint is older than the key.
    """
    known = [key for key in expect if key in meta]
    there, here = ({key: of[key] for key in known} for of in (meta, expect))
    other = differing_values(there, here)
    if not other.keys() >= _EITHER:
        other = {name: values for name, values in other.items() if name not in _EITHER}
    return other


def same_run(expect: Mapping[str, Any]) -> Judge:
    """Return the `Judge` that refuses every checkpoint whose meta differs from what is expected."""

    def judge(directory: Path, meta: Mapping[str, Any]) -> None:
        if other := differences_from(meta, expect):
            raise UserError(
                f"{another_run(directory, other)}; give that run's settings or another work "
                "directory"
            )

    return judge


def another_run(directory: Path, other: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the words for a directory whose checkpoints have other values, (there, here)."""
    told = (
        f"{name} is {in_short(there)} there and {in_short(here)} here"
        for name, (there, here) in other.items()
    )
    return f"{directory} is the work directory of another run: {'; '.join(told)}"


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]  # untyped
    def reached_preemption(self, step: int) -> bool:
        # A query to JAX counts as a step of the loop, which makes the query:
        # `multihost.StopTogether`.
        return False


class SaveError(UserError):
    """Report that a checkpoint was not written: the step, the cause and the last good step."""


class Checkpointer:
    """Keep the checkpoints of one run, at most `keep` (2 or more) of them; a context manager.

    Opening removes what a killed save left, so that only one run at a time may open a directory:
    see `lock_workdir`. With `read_only` nothing is changed, so that a running run can be inspected.
    If a run has several processes, all must make the same calls, on a file system that they share.
    """

    def __init__(self, directory: str | Path, *, keep: int = 5, read_only: bool = False) -> None:
        if keep < 2:
            raise UserError(f"keep {keep} must be at least 2: a checkpoint may turn out damaged")
        require_here(directory, MOUNT)
        self.directory = Path(directory).resolve()
        self._keep, self._read_only = keep, read_only
        self._saving: int | None = None  # the step whose save is in flight
        self._size = 0  # of its arrays, bytes
        self._good: dict[int, str] = {}  # steps known to be on disk -> their document's checksum
        if not read_only:
            self._open()

    def _open(self) -> None:
        try:
            if multihost.is_primary():
                self.directory.mkdir(parents=True, exist_ok=True)
                self._tidy()
            multihost.barrier()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, lightweight_initialize=True
            )
            self._manager = _Manager(self.directory, options=options)
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot hold checkpoints: {error.strerror or error}"
            ) from None

    def _tidy(self) -> None:
        """Remove what a killed save left, and restore the step that it was about to replace."""
        for debris in self.directory.glob("*.orbax-checkpoint-tmp*"):
            for _ in range(20):
                shutil.rmtree(debris, ignore_errors=True)
                if not debris.exists():
                    break
                time.sleep(0.05)  # after one write has failed, the others continue for a moment
        for replaced in self.directory.glob("[0-9]*.replaced"):
            if replaced.with_suffix("").exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(replaced.with_suffix(""))

    # ----------------------------------------------------------------------------------------- save

    def save(self, step: int, state: Any, meta: Mapping[str, Any], *, wait: bool = False) -> None:
        """Start to write `state` and `meta` (JSON) as checkpoint `step`.

        The call returns when the host has a copy, so that the state may be donated at once. An
        existing step is replaced, unless it is known to be the same. Raises SaveError if this save
        cannot start or, with `wait`, complete. Without `wait`, also raises it if the save before
        turns out to have failed; this one then continues.
        """
        assert not self._read_only
        earlier = self._finish()
        leaves = named_leaves(state)
        data = data_of(leaves)
        arrays = on_host(data)
        table = array_table(leaves, arrays)
        # A version that passed over a history would draw other batches.
        version = FORMAT_VERSION if meta.get(HISTORY_KEY) else _FIRST_FORMAT
        document = seal({"format_version": version, "step": step, "meta": meta, "leaves": table})
        if self._good.get(step) != document["crc32c"] or not self._path(step).is_dir():
            # With several processes each writes its share; orbax divides only what is on devices.
            self._begin(step, data if multihost.several() else arrays, document)
        later = self._finish() if wait else None
        if later:
            raise later
        if earlier and wait:
            _say_as_primary(f"{earlier}; step {step} is saved")
        elif earlier:
            raise earlier

    def _begin(self, step: int, arrays: Leaves, document: JsonObject) -> None:
        self._size = sum(x.nbytes for x in arrays.values())
        state, meta = ocp.args.StandardSave(nest(arrays)), ocp.args.JsonSave(document)
        try:
            with multihost.together(OSError):
                if multihost.is_primary():
                    self._make_way(step)
            self._manager.reload()
            # Without force, orbax skips any step before its latest.
            self._manager.save(step, args=ocp.args.Composite(state=state, meta=meta), force=True)
        except WRITE_ERRORS as error:
            raise self._failure(step, error) from error
        self._saving = step
        self._good[step] = document["crc32c"]

    def _make_way(self, step: int) -> None:
        self._tidy()
        require_space(self.directory, self._size)
        if self._path(step).exists():
            self._path(step).rename(self._path(f"{step}.replaced"))

    def _finish(self) -> SaveError | None:
        """Wait for the save in flight and return its error, if any."""
        step, self._saving = self._saving, None
        if step is None:
            return None
        failed: Exception | None = None
        try:
            self._manager.wait_until_finished()
        except WRITE_ERRORS as error:
            failed = error
        if not self._path(step).is_dir():
            return self._failure(step, failed or RuntimeError("it was not committed"))
        if failed:  # after the commit: an old checkpoint could not be removed
            _say_as_primary(f"{self.directory}: {cause_of(failed, self.directory, 0)}")
        if multihost.is_primary():
            shutil.rmtree(self._path(f"{step}.replaced"), ignore_errors=True)
        return None

    def _failure(self, step: int, error: Exception) -> SaveError:
        """Return the error to raise for a failed save.

        Free its space and open the directory anew.
        """
        cause = cause_of(error, self.directory, self._size)
        self._good.pop(step, None)
        with contextlib.suppress(Exception):  # it would raise the same error again
            self._manager.close()
        with contextlib.suppress(UserError, OSError):
            self._open()
        last = max(self.steps(), default="none")
        return SaveError(f"checkpoint {step} NOT saved: {cause}; last good step {last}")

    # -------------------------------------------------------------------------------------- restore

    def restore(self, target_state: State, judge: Judge) -> tuple[State, JsonObject] | None:
        """Return the newest good checkpoint as (state, meta), or None if there is none.

        The arrays get the shardings of `target_state` (arrays or jax.ShapeDtypeStruct), whatever
        devices they were saved from. A damaged checkpoint is reported, skipped and, after an older
        one is found good, moved to STEP.damaged. Raises UserError if `judge` refuses the meta (the
        work directory of another run), if the state differs in tree, shape or dtype, and if every
        checkpoint is damaged.
        """
        if error := self._finish():
            _say_as_primary(str(error))
        steps = self.steps()
        targets = named_leaves(target_state)
        damaged: dict[int, str] = {}
        for step in reversed(steps):
            try:
                document, arrays = self._read(step, targets, judge)
            except Damaged as error:
                older = [s for s in steps if s < step]
                onward = f"falling back to {older[-1]}" if older else "there is none before it"
                damaged[step] = str(error)
                self._good.pop(step, None)
                _say_as_primary(f"checkpoint {step} is damaged ({error}); {onward}")
                continue
            if damaged and not self._read_only:
                self._move_aside(damaged)
            self._good[step] = document["crc32c"]
            leaves = [
                _place(arrays[name], leaf, document["leaves"][name].get("impl"))
                for name, leaf in targets.items()
            ]
            return jax.tree.unflatten(jax.tree.structure(target_state), leaves), document["meta"]
        if damaged:
            raise UserError(
                f"all {len(damaged)} checkpoints in {self.directory} are damaged "
                f"({'; '.join(f'{step}: {reason}' for step, reason in damaged.items())}); "
                "restore one from a copy, or begin in another work directory"
            )
        return None

    def require(self, judge: Judge) -> JsonObject | None:
        """Return the newest checkpoint's meta, None without one; reads no arrays.

        Raises UserError if `judge` refuses it.
        """
        for step in reversed(self.steps()):
            try:
                document = read_document(self._path(step) / "meta" / "metadata")
            except Damaged:  # `restore` reports it
                continue
            if document["format_version"] > FORMAT_VERSION:  # `restore` reports it too
                return None
            judge(self.directory, document["meta"])
            return document["meta"]
        return None

    def _read(
        self, step: int, targets: Mapping[str, Any], judge: Judge
    ) -> tuple[JsonObject, dict[str, np.ndarray]]:
        """Return one step, verified.

        Raises Damaged if it is not as written, and UserError if it is another run's.
        """
        with multihost.together(Damaged):
            document = read_document(self._path(step) / "meta" / "metadata")
            if document["step"] != step:
                raise Damaged(f"it holds step {document['step']}")
        if document["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{self._path(step)} has format {document['format_version']}, newer than "
                f"{FORMAT_VERSION}; update albert_jax"
            )
        judge(self.directory, document["meta"])
        if unlike := differences(document["leaves"], array_table(targets)):
            raise UserError(
                f"checkpoint {step} in {self.directory} holds another state: {'; '.join(unlike)}; "
                "give that run's settings or another work directory"
            )
        with multihost.together(Damaged):
            arrays = read_arrays(self._path(step) / "state", document["leaves"])
            if wrong := not_finite(arrays):
                raise Damaged(f"not finite: {first_ten(wrong)}")
        return document, arrays

    def _move_aside(self, damaged: Mapping[int, str]) -> None:
        for step in damaged:
            aside = self._path(f"{step}.damaged")
            if multihost.is_primary():
                shutil.rmtree(aside, ignore_errors=True)  # of an earlier failure of the same step
                self._path(step).rename(aside)
            _say_as_primary(f"checkpoint {step} is now {aside}")
        multihost.barrier()
        self._manager.reload()

    # ---------------------------------------------------------------------------------------- other

    def steps(self) -> list[int]:
        """Return the steps that are on disk, oldest first; damage shows only on restore."""
        return sorted(
            int(path.name)
            for path in self.directory.glob("*")
            if path.name.isdecimal() and path.is_dir()
        )

    def wait(self) -> None:
        """Wait until the last save is on disk; raises SaveError if it failed."""
        if error := self._finish():
            raise error

    def close(self) -> None:
        """Wait and release the threads; raises SaveError if the last save failed."""
        error = self._finish()
        if not self._read_only:
            self._manager.close()
        if error:
            raise error

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except SaveError as error:
            if kind is None:
                raise
            # The error that ended the run is worse, and this one must not hide it.
            _say_as_primary(str(error))

    def _path(self, name: int | str) -> Path:
        return self.directory / str(name)


def lock_workdir(path: str | Path) -> Lock:
    """Lock the work directory until the lock is released or this process ends.

    The directory is created if it is missing, and what killed runs had begun to write is removed.
    Raises UserError, which names the process that holds the lock. If several processes make one
    run, only the first locks the directory.
    """
    path = Path(path)
    busy = f"work directory {path} is in use by {{owner}}; wait for it or use another directory"
    try:
        lock = Lock(path / LOCK, busy)
    except OSError as error:
        raise UserError(f"work directory {path} cannot be used: {error.strerror}") from None
    remove_leftovers(path)
    return lock


def lock_owner(path: str | Path) -> str:
    """Return the owner in a work directory's lock, the same for all who see one file system."""
    try:
        return (Path(path) / LOCK).read_text(encoding="utf-8").strip()
    except OSError:
        return "not there"


def _place(array: np.ndarray, target: Any, impl: str | None) -> Any:
    """Return the array as the target is: in NumPy, with its sharding, or on the default device."""
    if isinstance(target, np.ndarray):
        return array
    with jax.transfer_guard("allow"):
        sharding = getattr(target, "sharding", None)
        if sharding is None:
            placed = jax.device_put(array)
        else:
            placed = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
        return placed if impl is None else jax.random.wrap_key_data(placed, impl=impl)


def _say_as_primary(message: str) -> None:
    """Print a line once for all processes of a run."""
    if multihost.is_primary():
        say(message)
