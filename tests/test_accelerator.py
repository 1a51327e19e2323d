# SPDX-License-Identifier: Apache-2.0
"""The script of measurements for a borrowed GPU: its commands are ones that this version has."""

import functools
import inspect
import json
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

from albert_jax.cli.commands import COMMANDS
from albert_jax.cli.parse import parse
from benchmarks import accelerator, learning
from benchmarks.accelerator import PEERS, Measurement, measured, measurements
from benchmarks.answers import answer_of
from tests.helpers.paths import REPOSITORY


@pytest.mark.parametrize("tiny", [False, True])
def test_every_command_is_one_that_this_version_takes(tmp_path: Path, tiny: bool) -> None:
    for each in measurements(tmp_path, tiny=tiny):
        python, option, module, *arguments = each.command
        assert (python, option) == (sys.executable, "-m")
        if module == "albert_jax":
            name, *flags = arguments
            recipe = [Path(flag) for flag in flags if flag.startswith("configs/")]
            assert all(path.exists() for path in recipe)
            if not recipe:
                parse(COMMANDS[name], flags, name)
        elif module == "pytest":
            assert Path(arguments[-1]).exists()
        elif module == "benchmarks.learning":
            assert arguments[0] == "minutes"
            assert {flag for flag in arguments if flag.startswith("--")} <= {
                f"--{name}" for name in inspect.signature(learning.minutes).parameters
            }
        else:
            assert module == "benchmarks.compare_gpu"


@pytest.mark.peers
def test_what_is_measured_beside_pytorch_is_asked_as_it_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from benchmarks import compare_gpu

    taken = []

    @functools.wraps(compare_gpu.main)  # its arguments, without its work
    def asked(**arguments: object) -> None:
        taken.append(arguments)

    beside = [each.command for each in measurements(tmp_path) if each.command[:3] == PEERS]
    assert len(beside) == 2
    for command in beside:
        tyro.cli(asked, args=command[3:])
    assert [arguments["model"] for arguments in taken] == ["base-v2", "large-v2"]


@pytest.mark.peers
def test_pytorch_is_waited_for_on_a_gpu(monkeypatch) -> None:
    """By the calls of torch.cuda, which no machine of these tests has."""
    torch = pytest.importorskip("torch")
    from benchmarks import compare_gpu

    waits: list[None] = []
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    nothing = {"pytorch_step": lambda *given, **settings: (lambda: None, lambda: None)}
    nothing |= dict.fromkeys(("peer_config", "made_up_batch"), lambda *given: None)
    for name, replacement in nothing.items():
        monkeypatch.setattr(compare_gpu, name, replacement)
    assert compare_gpu.one("PyTorch", None, "base-v2")["device"] == "NVIDIA H200"
    assert len(waits) == 2 * (compare_gpu.WARM + compare_gpu.STEPS)


def test_each_part_fits_eight_minutes_and_names_are_its_own(tmp_path: Path) -> None:
    seconds: dict[int, int] = defaultdict(int)
    chosen = measurements(tmp_path)
    for each in chosen:
        seconds[each.part] += each.seconds
    assert sorted(seconds) == [1, 2, 3, 4, 5, 6]
    assert max(seconds.values()) <= 480
    assert len({each.name for each in chosen}) == len(chosen)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("print('a line'); print('{\"step_ms\": 2}')", {"status": 0, "answer": {"step_ms": 2}}),
        ("print('12 passed')", {"status": 0, "answer": ["12 passed"]}),
        ("import sys; sys.exit('no GPU')", {"status": 1, "error": "no GPU"}),
        ("import time; time.sleep(9)", {"error": "no answer within 2 s"}),
    ],
)
def test_what_came_of_a_measurement_is_kept_whatever_it_is(code: str, found: dict) -> None:
    row = measured(Measurement(1, "a", (sys.executable, "-c", code), 60), 2)
    assert {key: row.get(key) for key in found} == found


def test_what_was_printed_until_the_limit_is_kept_and_nothing_lives_on(tmp_path: Path) -> None:
    """The process that a measurement starts would hold the device."""
    child = f"import time; time.sleep(3); open({str(tmp_path / 'alive')!r}, 'w')"
    start = f"subprocess.run([sys.executable, '-c', {child!r}])"
    code = f"import subprocess, sys; print(1, flush=True); {start}"
    row = measured(Measurement(1, "a", (sys.executable, "-c", code), 60), 1.5)
    assert (row["error"], row["printed"]) == ("no answer within 2 s", ["1"])
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_what_holds_a_pipe_open_does_not_hold_up_the_limit() -> None:
    """As torch.compile's workers, of a command that another measurement's session has."""
    start = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(8)'])"
    code = f"import subprocess, sys, time; {start}; time.sleep(8)"
    since = time.monotonic()
    found = answer_of((sys.executable, "-c", code), 1, own_session=False)
    assert found["error"] == "no answer within 1 s"
    assert time.monotonic() - since < 6


def test_an_interrupt_ends_the_command_too(tmp_path: Path) -> None:
    child = f"import time; time.sleep(3); open({str(tmp_path / 'alive')!r}, 'w')"
    code = (
        "import signal, sys; from benchmarks.answers import answer_of; "
        "signal.signal(signal.SIGALRM, signal.default_int_handler); signal.alarm(1); "
        f"answer_of((sys.executable, '-c', {child!r}), 60)"
    )
    done = subprocess.run((sys.executable, "-c", code), cwd=REPOSITORY, capture_output=True)
    assert b"KeyboardInterrupt" in done.stderr
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_a_failure_keeps_the_last_lines_of_both_streams() -> None:
    code = "import sys; print('FAILED test_a'); sys.exit('a warning')"
    row = measured(Measurement(1, "a", (sys.executable, "-c", code), 60), 20)
    assert row["printed"] == ["FAILED test_a", "a warning"]


def test_another_attempt_has_another_work_directory(tmp_path: Path, monkeypatch) -> None:
    runs = set()
    for second in (1, 2):
        at = datetime(2026, 1, 1, second=second)
        monkeypatch.setattr(accelerator, "datetime", SimpleNamespace(now=lambda zone, at=at: at))
        (recipe,) = (each for each in measurements(tmp_path) if each.part == 5)
        runs.add(recipe.command[recipe.command.index("--workdir") + 1])
    assert len(runs) == 2


def test_each_answer_is_written_at_once(tmp_path: Path, monkeypatch) -> None:
    file, before = tmp_path / "accelerator.jsonl", []

    def one(each: Measurement, seconds: float) -> dict[str, str]:
        before.append(len(file.read_text().splitlines()) if file.exists() else 0)
        return {"name": each.name}

    monkeypatch.setattr(accelerator, "measured", one)
    accelerator.main(4, tmp_path)
    assert before == list(range(len(file.read_text().splitlines())))
    accelerator.main(4, tmp_path, minutes=0.1)
    assert json.loads(file.read_text().splitlines()[-1])["error"] == "no time left"
    with pytest.raises(SystemExit, match="no part 7"):
        accelerator.main(7, tmp_path)
