# SPDX-License-Identifier: Apache-2.0
"""Record a run's figures: a console line, `metrics.jsonl` and experiment trackers."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from albert_jax.training.curves import curves_figure
from albert_jax.training.trackers import End, Tracker
from albert_jax.utils.arguments import path_of
from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.json_values import JsonObject, finite
from albert_jax.utils.plots import save_picture, styled
from albert_jax.utils.wording import first_line

LINE_SECONDS = 30.0  # between lines on the progress, if there is no bar

METRICS = "metrics.jsonl"


class MetricsLog:
    """Write a run's scalars as they come.

    A line of `metrics.jsonl` is {"kind": "train" | "eval" | "event", "step": …, name: value …}.
    When opened at `resume_step`, it first drops the train and eval lines of later steps, which a
    killed run wrote after its last checkpoint and which will be written again. With `console` False
    it writes files only, with `workdir` None the console only. `trackers` get the scalars too. A
    tracker that fails is reported and then left out, because that is no reason to stop a run. A
    file that cannot be written, as on a full disk, is reported once, and later lines are tried
    again.
    """

    def __init__(
        self,
        workdir: Path | None,
        *,
        total_steps: int,
        resume_step: int = 0,
        console: bool = True,
        stream: TextIO | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._stream = stream or sys.stderr
        self._console = console
        self._path = workdir and workdir / METRICS
        self._jsonl: TextIO | None = None
        self._is_told = False  # that the file cannot be written
        self._trackers = list(trackers)
        self._evaluated: set[int] = set()
        self.rewind(resume_step)
        self._bar: tqdm | None = None
        self._clock_runs = False
        self._worked = time.monotonic()  # when `working` last said something
        if console and self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=resume_step,
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
            )

    def rewind(self, step: int) -> None:
        """Drop the train and eval lines of later steps, because these steps are made again."""
        if self._path is None:
            return
        self._close_file()
        entries, damaged = _entries(self._path)
        if damaged:
            self.say(f"{self._path}: {damaged} damaged lines left out")
        kept = [e for e in entries if e["kind"] == "event" or e["step"] <= step]
        self._evaluated = {e["step"] for e in kept if e["kind"] == "eval"}
        if self._path.exists():
            with self._failure_told(), appearing_file(self._path) as temporary:
                text = "".join(_as_line(entry) for entry in kept)
                temporary.write_text(text, encoding="utf-8")
        self._jsonl = self._path.open("a", encoding="utf-8")

    def scalars(self, kind: str, step: int, values: Mapping[str, float], *, line: str = "") -> None:
        """Record `values` (nested names as "a/b") of a step; `line` is what people read."""
        self._record({"kind": kind, "step": step, **values})
        if kind == "eval":
            self._evaluated.add(step)
        self._each_tracker(lambda tracker: tracker.scalars(kind, step, values))
        if line:
            self.say(line)

    def has_evaluation(self, step: int) -> bool:
        """Return whether an evaluation at that step is in the log."""
        return step in self._evaluated

    def event(self, step: int, message: str, **details: Any) -> None:
        """Record something that happened once, and print it."""
        self._record({"kind": "event", "step": step, "message": message, **details})
        self.say(message)

    def say(self, message: str) -> None:
        """Print a line to stderr, above the progress bar if there is one."""
        if self._console:
            tqdm.write(message, file=self._stream)
            self._stream.flush()

    def progress(self, step: int, text: str = "") -> None:
        """Move the bar, on a terminal."""
        if self._bar is not None:
            if not self._clock_runs:  # the time so far, compiling or evaluating, belongs to no step
                self._bar.unpause()
                self._clock_runs = True
            self._bar.n = step
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(0)

    def working(self, step: int, text: str) -> None:
        """Report what happens between two steps: in the bar, or in a line now and then."""
        now = time.monotonic()
        self._clock_runs = False
        if self._bar is not None and now - self._worked >= 0.1:
            self._bar.set_postfix_str(text, refresh=True)
        elif self._bar is None and now - self._worked >= LINE_SECONDS:
            self.say(f"step {step}  {text}")
        else:
            return
        self._worked = now

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, TryAgain)
        self.close("finished" if kind is None else "stopped" if stopped else "failed")

    def close(self, end: End = "finished") -> None:
        """Flush and close everything; trackers learn how the run ended."""
        try:
            if self._bar is not None:
                self._bar.close()
            self._close_file()
        finally:
            self._each_tracker(lambda tracker: tracker.close(end))

    def _close_file(self) -> None:
        if self._jsonl is not None:
            with self._failure_told():
                self._jsonl.close()

    def _each_tracker(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # of another program, for whatever reason
                self._trackers.remove(tracker)
                name, told = type(tracker).__name__, first_line(error)
                self.say(f"{name} failed and gets no more figures of this run: {told}")

    def _record(self, entry: Mapping[str, Any]) -> None:
        if self._jsonl is not None:
            # One write call for each line: a killed run leaves at most one incomplete line, which
            # readers skip.
            with self._failure_told():
                self._jsonl.write(_as_line(entry))
                self._jsonl.flush()

    @contextlib.contextmanager
    def _failure_told(self) -> Iterator[None]:
        """Report an error of the file, once, in place of raising it."""
        try:
            yield
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                told = error.strerror or first_line(error)
                self.say(f"{self._path} is not written, and the run goes on: {told}")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as a JSON file of a work directory, which appears complete by a rename."""
    with appearing_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _as_line(entry: Mapping[str, Any]) -> str:
    return json.dumps(finite(entry)) + "\n"


def read_metrics(path: str | Path) -> list[JsonObject]:
    """Return the entries of a run's log; lines that are no entry are left out.

    Args:
        path: the work directory, or the file `metrics.jsonl` in it.

    Returns:
        A dict for each line of the log.

    Raises:
        UserError: if there is no such file.
    """
    file = path_of(path, "path")
    file = file / METRICS if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"{file} does not exist; give a run's work directory, or its {METRICS}")
    return entries_of(file)


def entries_of(file: Path) -> list[JsonObject]:
    """Return the entries of a log, none if it does not exist; see `read_metrics`."""
    return _entries(file)[0]


def _entries(path: Path) -> tuple[list[JsonObject], int]:
    """Return the entries, and the number of damaged lines.

    A last line that a kill cut short is not counted.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    return entries, len(lines) - len(entries) - (_entry(lines[-1]) is None)


def _entry(line: bytes) -> JsonObject | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(entry, dict) and isinstance(entry.get("kind"), str)
    return entry if is_one and type(entry.get("step")) is int else None


def draw_curves(metrics: Path, picture: Path, *, baselines: dict[str, float], title: str) -> None:
    """Draw losses and accuracies over the steps into a PNG.

    `baselines` are dashed lines {"loss: unigram": 5.9}, whose names start with their panel. The run
    may be going on: damaged lines of `metrics` are left out, and `picture` is either the old or the
    new one. Raises OSError if it cannot be written.
    """
    with styled():
        figure = curves_figure(entries_of(metrics), baselines=baselines, title=title)
        save_picture(figure, picture)
