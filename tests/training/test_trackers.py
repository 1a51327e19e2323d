# SPDX-License-Identifier: Apache-2.0
"""Trackers are sent a run's figures and what made it, and nothing of the machine's environment."""

import importlib.machinery
import importlib.util
import io
import json
import math
import sys
import threading
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from albert_jax.cli import main as cli
from albert_jax.training import trackers
from albert_jax.training.metrics import MetricsLog, read_metrics
from albert_jax.training.trackers import (
    CallsInBackground,
    TrackedRun,
    open_trackers,
    require_trackers,
)
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.provenance import without_credentials

SECRET = "sk-6f1d2c"
ABOUT = {
    "config": {"train": {"steps": 7}, "store": "gs://store", "text": []},
    "versions": {"jax": "0.8"},
    "commit": "abc",
}


def tracked(folder: Path, resume_step: int = 0) -> TrackedRun:
    return TrackedRun(folder / "runs" / "base", resume_step, ABOUT)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setattr(sys, "argv", ["albert-jax", "pretrain", f"--key={SECRET}"])
    return tmp_path


def has_secret(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if SECRET.encode() in path.read_bytes()]


# ----------------------------------------------------------------------------- which there may be


def pretend_wandb(monkeypatch: pytest.MonkeyPatch, *, login: bool) -> None:
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.login = lambda **_: login  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_a_tracker_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    require_trackers(("tensorboard",))
    with pytest.raises(UserError, match="log 'tensorbord' is unknown; known: tensorboard, wandb"):
        require_trackers(("tensorbord",))
    with pytest.raises(UserError, match="log 'tensorboard' is named twice"):
        require_trackers(("tensorboard", "tensorboard"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(UserError, match=rf"not installed; pip install 'albert-jax\[{name}\]'"):
            require_trackers(("tensorboard", name))


def test_wandb_without_a_login_is_one_line_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_wandb(monkeypatch, login=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "text").write_text("a text")
    work = tmp_path / "work"
    arguments = ["--text", str(tmp_path / "text"), "--workdir", str(work), "--log", "wandb"]
    assert cli.main(["pretrain", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--log wandb has no login; run `wandb login`" in line
    assert not work.exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_trackers(("wandb",))
    monkeypatch.delenv("WANDB_MODE")
    pretend_wandb(monkeypatch, login=True)
    require_trackers(("wandb",))


# ------------------------------------------------------------------------------ what the log sends


class Kept:
    """A tracker that keeps what it is sent, and fails at a step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.sent: list[Any] = []
        self._fails_at = fails_at

    def scalars(self, kind: str, step: int, values: Any) -> None:
        if step == self._fails_at:
            raise ConnectionError("no route to the server\nand more")
        self.sent.append((kind, step, dict(values)))

    def close(self, end: str) -> None:
        self.sent.append(end)


def test_a_tracker_gets_the_logs_figures_and_how_the_run_ended(tmp_path: Path) -> None:
    for error, end in ((None, "finished"), (TryAgain("stopped"), "stopped"), (OSError, "failed")):
        kept = Kept()
        try:
            with MetricsLog(tmp_path, total_steps=3, stream=io.StringIO(), trackers=[kept]) as log:
                log.scalars("train", 1, {"loss": 2.5})
                log.scalars("eval", 1, {"accuracy": 0.5})
                log.event(1, "a note")
                if error:
                    raise error
        except (TryAgain, OSError):
            pass
        assert kept.sent == [("train", 1, {"loss": 2.5}), ("eval", 1, {"accuracy": 0.5}), end]


def test_a_tracker_that_fails_stops_neither_the_run_nor_the_others(tmp_path: Path) -> None:
    broken, kept, told = Kept(fails_at=2), Kept(), io.StringIO()
    with MetricsLog(tmp_path, total_steps=3, stream=told, trackers=[broken, kept]) as log:
        for step in (1, 2, 3):
            log.scalars("train", step, {"loss": 1.0})
    assert told.getvalue() == (
        "Kept failed and gets no more figures of this run: no route to the server\n"
    )
    assert [sent[1] for sent in broken.sent] == [1]
    assert [sent[1] for sent in kept.sent[:-1]] == [1, 2, 3]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    with pytest.raises(UserError, match=r"none/metrics.jsonl does not exist; give a run's work"):
        read_metrics(tmp_path / "none" / "metrics.jsonl")


def test_a_server_that_is_slow_holds_up_no_step() -> None:
    answers = threading.Event()

    def fill(calls: CallsInBackground) -> None:
        while True:
            calls.put(partial(answers.wait, 60))

    with pytest.raises(TimeoutError, match="its server is 2 calls behind"):
        fill(CallsInBackground(room=2))
    late = CallsInBackground(patience=0.05)
    late.put(partial(answers.wait, 60))
    with pytest.raises(TimeoutError, match=r"did not take the last in 0.05 s"):
        late.close()
    answers.set()


def test_calls_in_the_background_are_made_in_order_until_one_fails() -> None:
    made: list[int] = []

    def call(number: int) -> None:
        if number == 7:
            raise ConnectionError("no route to the server")
        made.append(number)

    whole, broken = CallsInBackground(), CallsInBackground()
    for number in (1, 2, 3):
        whole.put(partial(call, number))
    whole.close()
    assert made == [1, 2, 3]
    broken.put(partial(call, 7))
    with pytest.raises(ConnectionError, match="no route"):
        broken.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_stops_neither_the_run_nor_the_trackers(tmp_path: Path) -> None:
    kept, told = Kept(), io.StringIO()
    with MetricsLog(tmp_path, total_steps=3, stream=told, trackers=[kept]) as log:
        log.scalars("train", 1, {"loss": 1.0})
        assert log._jsonl is not None
        log._jsonl.close()
        full = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115  # the log closes it
        log._jsonl = full
        for step in (2, 3):
            log.scalars("train", step, {"loss": 1.0})
    assert told.getvalue() == (
        f"{tmp_path / 'metrics.jsonl'} is not written, and the run goes on: No space left on "
        "device\n"
    )
    assert kept.sent[-2:] == [("train", 3, {"loss": 1.0}), "finished"]
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1]


def test_addresses_lose_what_may_be_a_token() -> None:
    given = {
        "store": "s3://key:se@cret@bucket/store",
        "text": ("https://host/file.txt?sig=secret", "plain?.txt", 5),
        "nested": {"a": "mix gs://b/c, https://u@h/d#x 'https://h?t=secret'"},
    }
    assert without_credentials(given) == {
        "store": "s3://bucket/store",
        "text": ["https://host/file.txt", "plain?.txt", 5],
        "nested": {"a": "mix gs://b/c, https://h/d 'https://h'"},
    }


# ------------------------------------------------------------------------------- the real packages


def test_tensorboard_has_the_figures_in_the_runs_folder(folder: Path) -> None:
    (board,) = open_trackers(("tensorboard",), tracked(folder))
    board.scalars("train", 3, {"loss": 1.5})
    board.close("finished")
    (file,) = (folder / "runs" / "base" / "tensorboard").iterdir()
    assert b"train/loss" in file.read_bytes()
    assert not has_secret(folder)


def test_trackers_are_closed_if_a_later_one_cannot_begin(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: object) -> None:
        raise UserError("no server")

    closed: list[str] = []
    monkeypatch.setattr(trackers.TensorBoard, "close", lambda self, end: closed.append(end))
    monkeypatch.setitem(trackers._KINDS, "mlflow", refuse)
    with pytest.raises(UserError, match="no server"):
        open_trackers(("tensorboard", "mlflow"), tracked(folder))
    assert closed == ["failed"]


@pytest.mark.extras
def test_wandb_keeps_a_run_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(folder))
    ids = []
    for resume_step in (0, 5, 0):
        require_trackers(("wandb",))
        (tracker,) = open_trackers(("wandb",), tracked(folder, resume_step))
        tracker.scalars("train", 7, {"loss": 1.5})
        tracker.scalars("train", 6, {"loss": math.inf})  # after a rollback
        tracker.close("finished")
        ids.append(json.loads((folder / "runs/base" / trackers.IDS).read_text())["wandb"])
    assert ids[0] == ids[1] != ids[2]
    runs = sorted((folder / "runs" / "base" / "wandb").glob("offline-run-*"))
    assert len(runs) == 3
    assert not has_secret(folder)
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    with pytest.raises(UserError, match="cannot begin a run"):
        open_trackers(("wandb",), tracked(folder))


@pytest.mark.extras
def test_mlflow_keeps_a_run_in_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (folder / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for resume_step, step in ((0, 7), (5, 8)):
        require_trackers(("mlflow",))
        (tracker,) = open_trackers(("mlflow",), tracked(folder, resume_step))
        tracker.scalars("train", step, {"loss": step / 2, "grad_norm": math.nan})
        tracker.close("finished" if step == 8 else "stopped")
    client = MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "albert_jax"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "runs/base"
    assert run.data.params == {
        "config.train.steps": "7",
        "config.store": "gs://store",
        "config.text": "[]",
        "versions.jax": "0.8",
        "commit": "abc",
    }
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(7, 3.5), (8, 4.0)]
    assert not has_secret(folder)
