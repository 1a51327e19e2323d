# SPDX-License-Identifier: Apache-2.0
"""Signals to real processes: wherever they are, they end in time, with the status that says whether
to start them again."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.helpers.paths import REPOSITORY

# What a command does in these tests, in place of the real one: the line is its body.
BODY = """
    import contextlib, hashlib, os, sys, time, tempfile, threading
    from albert_jax import __main__
    from albert_jax.cli import main as cli
    from albert_jax.utils import interrupts
    from albert_jax.utils.errors import TryAgain
    from albert_jax.training.guards import StopSignals

    def stuck(seconds=30):  # in C, and so that Python's own handlers have to wait
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_200_000 * seconds)

    def command():
{body}

    cli.main = command
    sys.exit(__main__.main())
"""


def start(body: str, command: str = "pretrain") -> subprocess.Popen[str]:
    """Runs `body` as that command; returns once it has printed its first line."""
    code = BODY.format(body=textwrap.indent(textwrap.dedent(body), 8 * " "))
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def end(process: subprocess.Popen[str], number: int, pause: float = 0.0) -> tuple[int, str, float]:
    """(status, stderr, seconds that it took) of a process that gets a signal."""
    time.sleep(pause)
    since = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, time.monotonic() - since


SLEEPING = """
    from pathlib import Path
    from albert_jax.utils.atomic import appearing_file, appearing_whole
    from albert_jax.utils.atomic import result_lines, scratch_folder
    kept = Path(os.environ["KEPT"])
    tempfile.tempdir = str(kept)
    with (
        scratch_folder() as scratch,
        appearing_whole(kept / "model") as model,
        appearing_file(kept / "file") as file,
        result_lines(str(kept / "lines")) as lines,
    ):
        for folder in (scratch, model):
            (folder / "half").write_text("half")
        file.write_text("half")
        print("an answer", file=lines, flush=True)
        print("ready", flush=True)
        time.sleep(60)
"""
STUCK = """
    print("ready", flush=True)
    stuck()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("command", ["pretrain", "convert"])
def test_a_signal_ends_a_command_in_order(tmp_path, monkeypatch, name, command):
    monkeypatch.setenv("KEPT", str(tmp_path))
    number = getattr(signal, name)
    status, stderr, seconds = end(start(SLEEPING, command), number)
    if command == "pretrain":
        assert status == 75
        assert stderr.startswith(f"albert-jax: stopped by {name}; what was finished is kept")
    else:
        assert (status, stderr) == (128 + number, "")
    # What was half-written is gone, and whole answers are kept.
    assert [path.name for path in tmp_path.iterdir()] == ["lines.partial"]
    assert (tmp_path / "lines.partial").read_text() == "an answer\n"
    assert seconds < 5


@pytest.mark.parametrize(("command", "status"), [("pretrain", 75), ("convert", 143)])
def test_a_library_that_does_not_come_back_is_not_waited_for(command, status):
    found, stderr, seconds = end(start(STUCK, command), signal.SIGTERM, pause=0.3)
    assert found == status
    assert ("stopped by SIGTERM" in stderr) == (status == 75)
    assert seconds < 5


HOLDING = """
    saved = threading.Event()
    with StopSignals(saved.is_set) as signals:
        threading.Timer(2.5, saved.set).start()
        print("ready", flush=True)
        stuck()
"""


def test_work_that_is_not_saved_is_waited_for_and_no_longer():
    status, stderr, seconds = end(start(HOLDING), signal.SIGTERM, pause=0.3)
    assert status == 75
    assert stderr.startswith("albert-jax: stopped by SIGTERM; what was finished is kept")
    assert 1.5 < seconds < 8


NOTED = """
    with StopSignals() as signals:
        print("ready", flush=True)
        while not signals.due():
            time.sleep(0.01)
        time.sleep(1.5)
        interrupts.acting()
        time.sleep(float(os.environ["UNWINDING"]))
        raise TryAgain("saved")
"""


def test_a_loop_that_stops_by_itself_is_left_to_it(monkeypatch):
    monkeypatch.setenv("UNWINDING", "0")
    process = start(NOTED)
    status, stderr, _ = end(process, signal.SIGTERM)
    assert status == 1  # the body is not the command line, which turns it into 75
    assert "SIGTERM: saving a checkpoint after this step; once more to stop at once" in stderr
    assert "TryAgain: saved" in stderr


def test_the_time_to_end_counts_from_when_the_loop_has_saved(monkeypatch):
    monkeypatch.setenv("UNWINDING", "0.5")
    body = f"interrupts.UNWIND = 1.4\n{textwrap.dedent(NOTED)}"  # it saves for 1.5 seconds
    status, stderr, _ = end(start(body), signal.SIGTERM)
    assert status == 1  # as above
    assert "TryAgain: saved" in stderr


def test_an_end_that_never_comes_is_not_waited_for_either(monkeypatch):
    monkeypatch.setenv("UNWINDING", "60")
    body = f"interrupts.UNWIND = 3.0\n{textwrap.dedent(NOTED)}"
    status, _, seconds = end(start(body), signal.SIGTERM)
    assert status == 75
    assert 2.5 < seconds < 8


def test_the_second_signal_kills():
    process = start(NOTED)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    status, _, seconds = end(process, signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert seconds < 2


IN_A_CALLBACK = """
    import ctypes
    def called():  # an exception that is raised here is printed and lost
        print("ready", flush=True)
        time.sleep(20)
    ctypes.CFUNCTYPE(None)(called)()
"""


def test_no_library_can_swallow_the_signal():
    status, stderr, seconds = end(start(IN_A_CALLBACK), signal.SIGTERM)
    assert (status, len(stderr.splitlines())) == (75, 1)
    assert seconds < 5


IGNORING = """
    print("ready", flush=True)
    time.sleep(1.5)
"""


def test_what_the_process_was_started_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a child inherits, as of nohup
    try:
        process = start(IGNORING)
    finally:
        signal.signal(signal.SIGHUP, before)
    status, stderr, _ = end(process, signal.SIGHUP)
    assert (status, stderr) == (0, "")


LATE = """
    import atexit
    atexit.register(lambda: (print("ready", flush=True), time.sleep(1.0)))
"""


def test_a_signal_after_the_end_does_not_change_the_status():
    status, stderr, _ = end(start(LATE), signal.SIGTERM)
    assert (status, stderr) == (0, "")


def test_the_command_line_is_interruptible_before_anything_slow_is_imported():
    code = "import sys, albert_jax.__main__; print({'tyro', 'numpy', 'jax'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
