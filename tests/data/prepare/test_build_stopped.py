# SPDX-License-Identifier: Apache-2.0
"""`prepare` ended by a signal, whose handler raises TryAgain wherever the program is: finished
units stay and nothing else, no process is left, and the same call ends in the same bytes."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from albert_jax.data.prepare import beam_runner, local_runner, units
from albert_jax.data.prepare import build as module
from albert_jax.data.prepare.build import prepare
from albert_jax.data.prepare.storage import Folder
from albert_jax.utils.errors import TryAgain
from tests.helpers.fake_beam import FakeBeam
from tests.helpers.paths import REPOSITORY, VOCABULARY
from tests.helpers.texts import COMMAND, UNIT_BYTES, contents, make_text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_text(tmp_path_factory.mktemp("corpus") / "text.txt", 4 * UNIT_BYTES)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("whole") / "store"
    prepare(corpus, vocab=VOCABULARY, output=store, holdout=0.1, workers=1, progress=False)
    return contents(store)


def again(corpus: Path, store: Path, **settings):
    settings = {"workers": 1} | settings
    return prepare(corpus, vocab=VOCABULARY, output=store, holdout=0.1, progress=False, **settings)


def only_finished_units(store: Path) -> int:
    """How many units a store has; that it holds their files, its own, and nothing more."""
    if not store.exists():
        return 0
    files = set(contents(store))
    finished = {name[9:14] for name in files if re.fullmatch(r"progress/\d{5}\.json", name)}
    rest = {name for name in files if not re.match(r"(train|heldout)/", name)}
    assert rest == {"progress/settings.json", "spiece.model"} | {
        f"progress/{unit}.json" for unit in finished
    }
    assert {name.partition("/")[2][:5] for name in files - rest} == finished
    assert all(name.split(".")[-1] in ("tokens", "sentences", "documents") for name in files - rest)
    return len(finished)


class Stop:
    """Raises TryAgain in place of a function's call number `at`, before or after it."""

    def __init__(self, patch, owner: object, name: str, *, at: int = 0, after: bool = False):
        self.left, self.after, self.real = at, after, getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **kwargs: self(*args, **kwargs))

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == -1 and not self.after:
            raise TryAgain("SIGTERM")
        result = self.real(*args, **kwargs)
        if self.left == -1:
            raise TryAgain("SIGTERM")
        return result


@pytest.mark.parametrize(
    ("owner", "name", "where", "finished"),
    [
        (module, "find_pieces", {"after": True}, 0),  # while inputs are looked for
        (module, "plan_units", {}, 0),
        (module, "read_piece", {}, 0),  # the first documents
        (module, "make_forecast", {}, 0),  # a sample
        (module, "_copy_vocabulary", {"after": True}, 0),
        (units, "tokenize", {"at": 1}, 0),  # of the second split: the first is written already
        (units, "tokenize", {"at": 5}, 2),
        (units.ShardWriter, "add", {"at": 4, "after": True}, 2),
        (units.ShardWriter, "finish", {"at": 4, "after": True}, 2),  # half of the unit is in place
        (os, "replace", {"at": 20}, 2),  # between a shard's files
        (Folder, "write", {"at": 4}, 2),  # before the record of unit 2
        (Folder, "write", {"at": 4, "after": True}, 3),
        (module, "_manifest", {}, 4),
        (Folder, "write", {"at": 6}, 4),  # before the manifest
    ],
)
def test_wherever_it_is_stopped_finished_units_stay_and_the_end_is_the_same(
    corpus, whole, tmp_path, monkeypatch, owner, name, where, finished
):
    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        Stop(patch, owner, name, **where)
        with pytest.raises(TryAgain, match="SIGTERM"):
            again(corpus, store)
    assert only_finished_units(store) == finished
    assert not list(tmp_path.rglob("*.tmp"))
    again(corpus, store)
    assert contents(store) == whole


def test_stopped_between_the_manifest_and_the_tidying_up_it_is_complete(
    corpus, whole, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        Stop(patch, Folder, "write", at=6, after=True)
        with pytest.raises(TryAgain):
            again(corpus, tmp_path / "store")
    again(corpus, tmp_path / "store")
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize(
    ("name", "at"), [("_receive", 3), ("_receive", 6), ("_send", 1), ("_send", 2), ("_send", 3)]
)
def test_stopped_with_workers_none_of_them_is_left(corpus, whole, tmp_path, monkeypatch, name, at):
    store = tmp_path / "store"
    before = set(psutil.Process().children(recursive=True))
    with monkeypatch.context() as patch:
        Stop(patch, local_runner, name, at=at)
        with pytest.raises(TryAgain, match="SIGTERM"):
            again(corpus, store, workers=2)
    left = set(psutil.Process().children(recursive=True)) - before
    assert [p for p in left if "resource_tracker" not in " ".join(p.cmdline())] == []
    only_finished_units(store)
    again(corpus, store, workers=2)
    assert contents(store) == whole


@pytest.mark.parametrize("after", [False, True])
def test_stopped_while_beam_runs_it_goes_on_later(corpus, whole, tmp_path, monkeypatch, after):
    fake = FakeBeam()
    monkeypatch.setattr(beam_runner, "import_beam", lambda: fake)
    monkeypatch.setattr(module, "make_pipeline", lambda options: fake)
    with monkeypatch.context() as patch:
        Stop(patch, beam_runner, "prepare_unit", at=1, after=after)
        with pytest.raises(TryAgain, match="SIGTERM"):
            again(corpus, tmp_path / "store", workers=None, beam=())
    assert only_finished_units(tmp_path / "store") == 1 + after
    again(corpus, tmp_path / "store", workers=None, beam=())
    assert contents(tmp_path / "store") == whole


STOPPABLE = """
import signal
def stop(number, frame):
    signal.signal(number, signal.SIG_DFL)
    from albert_jax.utils.errors import TryAgain
    raise TryAgain(signal.Signals(number).name)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_signals_at_random_moments(corpus, whole, tmp_path, workers):
    rng = random.Random(workers)
    script, store = tmp_path / "command.py", tmp_path / "store"
    command = COMMAND.format(vocab=str(VOCABULARY), unit_bytes=UNIT_BYTES)
    script.write_text(command.replace('if __name__ == "__main__":', f"{STOPPABLE}{_MAIN}"))
    stopped = 0
    for number in rng.sample([signal.SIGTERM, signal.SIGINT, signal.SIGHUP] * 2, 6):
        with subprocess.Popen(
            [sys.executable, script, str(workers), store, corpus],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            while process.poll() is None and not (store / "progress" / "settings.json").exists():
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.1 * workers))
            with contextlib.suppress(ProcessLookupError):
                # To all of the group, as a terminal and a batch system send it.
                os.killpg(process.pid, number)
            _, stderr = process.communicate(timeout=100)
        assert process.returncode in (0, 1, -number), stderr
        _no_process_is_left(process.pid)
        if process.returncode == 1:
            stopped += 1
            assert "TryAgain" in stderr.splitlines()[-1], stderr
            only_finished_units(store)
    again(corpus, store)
    assert contents(store) == whole
    assert stopped  # of the six; before Python's handler is set, and after the end, none is


_MAIN = 'if __name__ == "__main__":'


def _no_process_is_left(group: int) -> None:
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process of the group is left")
