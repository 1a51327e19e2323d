# SPDX-License-Identifier: Apache-2.0
"""Send a run's figures to experiment trackers: TensorBoard, Weights & Biases, MLflow.

Each gets the figures of `metrics.jsonl` by the names KIND/NAME, and a run's settings, versions and
commit. Nothing of the machine's environment is sent: no variables, command line or host name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from tensorboardX import SummaryWriter

from albert_jax.config.sections import Destination
from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.json_values import flat
from albert_jax.utils.wording import current_naming, first_line, name_as, setting

End = Literal["finished", "stopped", "failed"]
PROJECT = "albert_jax"  # the default, if the environment names no project or experiment
IDS = "trackers.json"  # in a run's directory: the run's id with each tracker, to go on with it
_OPTIONAL = ("wandb", "mlflow")  # each its package's name and this one's extra
_LONGEST = 500  # characters of a parameter that any MLflow server takes
_TOGETHER = 100  # parameters that MLflow takes in a call


@dataclass(frozen=True)
class TrackedRun:
    """Hold what trackers learn about a run when it begins."""

    directory: Path
    resume_step: int
    about: Mapping[str, Any]
    """"config", "versions" and "commit"."""

    @property
    def name(self) -> str:
        """The last two folders of the run's directory."""
        return "/".join(self.directory.absolute().parts[-2:])


class Tracker(Protocol):
    """Receive a run's figures."""

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Record values of a step; `kind` is train or eval."""

    def close(self, end: End) -> None:
        """Send what is left, and how the run ended."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that cannot be used.

    It may be unknown or named twice, lack its package, or ask for a login.
    """
    known = get_args(Destination)
    for name in names:
        if name not in known:
            raise UserError(f"{setting('log')} {name!r} is unknown; known: {', '.join(known)}")
        if names.count(name) > 1:
            raise UserError(f"{setting('log')} {name!r} is named twice; name it once")
        if name in _OPTIONAL and importlib.util.find_spec(name) is None:
            raise UserError(
                f"{setting('log', name)} needs a package that is not installed; "
                f"pip install 'albert-jax[{name}]'"
            )
    if "wandb" in names and not _wandb_is_offline():
        wandb = importlib.import_module("wandb")
        if not wandb.login(prompt=False, verify=False):
            raise UserError(
                f"{setting('log', 'wandb')} has no login; run `wandb login`, set WANDB_API_KEY, or "
                "set WANDB_MODE=offline to keep the figures here"
            )


def open_trackers(names: Sequence[Destination], run: TrackedRun) -> list[Tracker]:
    """Return the trackers, each with its run begun or resumed.

    Raises UserError if one cannot begin.
    """
    opened: list[Tracker] = []
    try:
        for name in names:
            opened.append(_KINDS[name](run))
    except BaseException:
        for tracker in opened:
            tracker.close("failed")
        raise
    return opened


class TensorBoard:
    """Write event files into DIRECTORY/tensorboard."""

    def __init__(self, run: TrackedRun) -> None:
        folder = str(run.directory / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=run.resume_step + 1)

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self, end: End) -> None:
        self._writer.close()


class WandB:
    """Log to a run of Weights & Biases, whose files are in DIRECTORY/wandb."""

    def __init__(self, run: TrackedRun) -> None:
        wandb = importlib.import_module("wandb")
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,  # whose remote may carry a token
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,  # command line, host and user
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        with _beginning("wandb"), _kept_id(run, "wandb") as ids:
            ids.setdefault("wandb", secrets.token_hex(4))
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=ids["wandb"],
                resume="allow",
                name=run.name,
                dir=str(run.directory),
                config=dict(run.about),
                settings=settings,
                reinit="create_new",
            )
            # Its own step axis: after a rollback steps are repeated, which W&B's step counter
            # refuses.
            self._run.define_metric("step")
            for kind in ("train", "eval"):
                self._run.define_metric(f"{kind}/*", step_metric="step")

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{f"{kind}/{name}": x for name, x in values.items()}})

    def close(self, end: End) -> None:
        self._run.finish(exit_code=0 if end == "finished" else 1)


class CallsInBackground:
    """Make calls in a thread, in their order, so that a slow server holds up no step.

    What a call raises is raised by the next `put`, or by `close`.
    """

    def __init__(self, *, room: int = 1000, patience: float = 15.0) -> None:
        """Start the thread.

        Args:
            room: calls that may wait.
            patience: seconds that `close` waits for them.
        """
        self._patience = patience
        self._waiting: queue.Queue[Callable[[], Any] | None] = queue.Queue(room)
        self._error: Exception | None = None
        self._naming = current_naming()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], Any] | None) -> None:
        """Make a call soon; raises TimeoutError if too many wait already."""
        if self._error is not None:
            raise self._error
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            raise TimeoutError(f"its server is {self._waiting.maxsize:,} calls behind") from None

    def close(self) -> None:
        """Make the calls that are left; raises TimeoutError if that takes too long."""
        self.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            raise TimeoutError(f"its server did not take the last in {self._patience:g} s")
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        name_as(self._naming)
        while (call := self._waiting.get()) is not None:
            try:
                call()
            except Exception as error:  # of another program, for whatever reason
                self._error = error
                return


class MLflow:
    """Log to a run of MLflow, at the address in MLFLOW_TRACKING_URI or MLflow's default."""

    _STATUS: Mapping[End, str] = {
        "finished": "FINISHED",
        "stopped": "KILLED",
        "failed": "FAILED",
    }

    def __init__(self, run: TrackedRun) -> None:
        self._entities = importlib.import_module("mlflow.entities")
        with _beginning("mlflow"), _kept_id(run, "mlflow") as ids:
            # Its own client: `mlflow.start_run` would change the caller's active run.
            self._client = importlib.import_module("mlflow.tracking").MlflowClient()
            if "mlflow" in ids:
                self._client.update_run(ids["mlflow"], status="RUNNING")
            else:
                ids["mlflow"] = self._new_run(run)
            self._id = ids["mlflow"]
        # Its client asks a server that does not answer again for minutes, longer than a watchdog
        # waits.
        self._calls = CallsInBackground()

    def _new_run(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        made: str = self._client.create_run(experiment, run_name=run.name).info.run_id
        said = {key: str(x)[:_LONGEST] for key, x in flat(run.about).items() if x not in (None, {})}
        parameters = [self._entities.Param(key, x) for key, x in said.items() if x]
        for first in range(0, len(parameters), _TOGETHER):
            self._client.log_batch(made, params=parameters[first : first + _TOGETHER])
        return made

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(f"{kind}/{name}", float(x), now, step)
            for name, x in values.items()
            if math.isfinite(x)  # a file store cannot read back others
        ]
        self._calls.put(partial(self._client.log_batch, self._id, metrics=metrics))

    def close(self, end: End) -> None:
        self._calls.put(partial(self._client.set_terminated, self._id, self._STATUS[end]))
        self._calls.close()


_KINDS: dict[Destination, type[TensorBoard] | type[WandB] | type[MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def _wandb_is_offline() -> bool:
    return os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun", "disabled")


@contextlib.contextmanager
def _beginning(name: str) -> Iterator[None]:
    """Raise UserError for an exception of a tracker, because nothing is trained yet."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{setting('log', name)} cannot begin a run: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def _kept_id(run: TrackedRun, name: str) -> Iterator[dict[str, str]]:
    """Give the trackers' ids of a resumed run, or none, and keep what is added to them."""
    file = run.directory / IDS
    try:
        ids = read_json(file, dict[str, str], hint="delete it, and the trackers get a new run")
    except FileNotFoundError:
        ids = {}
    if not run.resume_step:
        ids.pop(name, None)
    yield ids
    with appearing_file(file) as temporary:
        temporary.write_text(json.dumps(ids) + "\n", encoding="utf-8")
