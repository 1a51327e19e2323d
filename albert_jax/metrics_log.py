# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers go: one console line, `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tensorboardX import SummaryWriter
from tqdm import tqdm

from albert_jax.appearing import appearing_file
from albert_jax.curves import curves_figure, read_entries
from albert_jax.plots import save_picture, styled


class MetricsLog:
    """Writes a run's scalars as they come.

    A line of `metrics.jsonl` is {"kind": "train" | "eval" | "event", "step": …, name: value …}.
    Opened at `resume_step`, it first drops the train and eval lines of later steps, which a killed
    run wrote after its last checkpoint and which will be written again. `console` False writes
    files only, `workdir` None the console only.
    """

    def __init__(
        self,
        workdir: Path | None,
        *,
        total_steps: int,
        resume_step: int = 0,
        console: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        self._console = console
        self._path = workdir and workdir / "metrics.jsonl"
        self._jsonl: TextIO | None = None
        self._board: SummaryWriter | None = None
        self.rewind(resume_step)
        if workdir is not None:
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)
        self._bar: tqdm | None = None
        if console and self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=resume_step,
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
            )

    def rewind(self, step: int) -> None:
        """Drops the train and eval lines of later steps: they are about to be made again."""
        if self._path is None:
            return
        if self._jsonl is not None:
            self._jsonl.close()
        _drop_after(self._path, step)
        self._jsonl = self._path.open("a", encoding="utf-8")

    def scalars(self, kind: str, step: int, values: dict[str, float], *, line: str = "") -> None:
        """Records `values` (nested names as "a/b") of a step; `line` is what a person reads."""
        self._record({"kind": kind, "step": step, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        if line:
            self.say(line)

    def event(self, step: int, message: str, **details: Any) -> None:
        """Records something that happened once, and says it."""
        self._record({"kind": "event", "step": step, "message": message, **details})
        self.say(message)

    def say(self, message: str) -> None:
        """A line for a person, on stderr, above the progress bar where there is one."""
        if self._console:
            tqdm.write(message, file=self._stream)
            self._stream.flush()

    def progress(self, step: int, text: str = "") -> None:
        """Moves the bar, on a terminal."""
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(0)

    def close(self) -> None:
        """Flushes and closes all."""
        if self._bar is not None:
            self._bar.close()
        if self._jsonl is not None:
            self._jsonl.close()
        if self._board is not None:
            self._board.close()

    def _record(self, entry: dict[str, Any]) -> None:
        if self._jsonl is not None:
            # One write call a line: a killed run leaves at most one line cut short, which readers
            # skip.
            self._jsonl.write(json.dumps(entry) + "\n")
            self._jsonl.flush()


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as a JSON file of a work directory, which appears whole, by rename."""
    with appearing_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a `metrics.jsonl`; a line cut short by a kill is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _drop_after(path: Path, step: int) -> None:
    kept = [e for e in read_metrics(path) if e["kind"] == "event" or e["step"] <= step]
    if path.exists():
        with appearing_file(path) as temporary:
            temporary.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")


def draw_curves(metrics: Path, picture: Path, *, baselines: dict[str, float], title: str) -> None:
    """Draws losses and accuracies over the steps into a PNG; `baselines` are dashed lines {"loss:
    unigram": 5.9}, whose names start with the panel they belong to.

    May be called while the run is going on: what is damaged in `metrics` is left out, and `picture`
    is the last one or the new one. Raises OSError where it cannot be written.
    """
    with styled():
        figure = curves_figure(read_entries(metrics), baselines=baselines, title=title)
        save_picture(figure, picture)
