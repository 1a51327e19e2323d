# SPDX-License-Identifier: Apache-2.0
"""Standard streams that are closed, full or ASCII, as a shell makes them."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from albert_jax.utils.streams import without_orbax_stacks
from tests.helpers.paths import REPOSITORY

FULL = Path("/dev/full")


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell's line in which `albert-jax` is this tree's."""
    line = command.replace("albert-jax", f"{sys.executable} -m albert_jax")
    # Buffered, as for users: text that could not be written is then tried again at the end.
    here = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""} | env
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=here, timeout=120
    )


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_closed_stdin_is_an_empty_one_and_not_the_pipe_of_signals(tmp_path: Path) -> None:
    program = (
        "from albert_jax.cli import main\n"
        "from albert_jax import __main__\n"
        "from albert_jax.utils.text_files import read_texts\n"
        "main._run = lambda arguments: read_texts('-')\n"
        "raise SystemExit(__main__.main())\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" predict <&-', sys.executable, program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "albert-jax: standard input is empty; give a text a line\n"


def test_a_full_stdout_is_one_line_and_status_2():
    done = shell("albert-jax --help > /dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "albert-jax: standard output cannot be written (No space left on device); "
        "give it a place with room\n"
    )


def test_a_closed_stdout_is_one_line_and_status_2():
    done = shell("albert-jax info configs/pretrain.py >&-")
    assert done.returncode == 2
    assert "standard output cannot be written (Bad file descriptor)" in done.stderr


def test_a_reader_who_has_had_enough_is_no_error():
    done = shell("set -o pipefail; albert-jax info configs/pretrain.py --json | head -c 1")
    assert done.stdout == "{"
    assert done.stderr == ""


@pytest.mark.parametrize("closed", ["2>&-", "2> /dev/full", "0<&- 2>&-"])
def test_a_stderr_that_takes_nothing_stops_nothing(closed, tmp_path):
    text, output = tmp_path / "text.txt", tmp_path / "vocabulary"
    text.write_text("one and two and three\n" * 50)
    done = shell(f"albert-jax train-tokenizer {text} --vocab-size 25 --output {output} {closed}")
    assert (done.returncode, done.stdout) == (0, f"{output / 'spiece.model'}\n")
    # What libraries print to a closed stderr must not land in a file that got its number.
    assert b"vocabulary of" not in (output / "spiece.model").read_bytes()


def test_an_ascii_stdout_gets_escapes(tmp_path):
    recipe = tmp_path / "récipe.py"
    recipe.write_text("from albert_jax.config import PretrainConfig as get_config\n")
    done = shell(f"albert-jax info {recipe}", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"r\xe9cipe.py" in done.stdout
    done = shell(f"albert-jax info {recipe} --json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["path"] == str(recipe)


def test_orbax_is_quiet_while_entered_and_nothing_else_is(caplog, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    logger, closed = logging.getLogger("absl"), SimpleNamespace(exc_value="Event loop is closed")
    monkeypatch.setattr(logger, "filters", [])  # conftest's, which is there for all tests
    other = SimpleNamespace(exc_value="another")
    record = logger.makeRecord("absl", logging.ERROR, "/lib/orbax/a.py", 1, "stack", (), None)
    with without_orbax_stacks():
        logger.handle(record)
        logger.error("of another library")
        sys.unraisablehook(closed)
        sys.unraisablehook(other)
    assert (caplog.messages, unraisable) == (["of another library"], [other])
    logger.handle(record)
    sys.unraisablehook(closed)
    assert (caplog.messages, unraisable) == (["of another library", "stack"], [other, closed])
