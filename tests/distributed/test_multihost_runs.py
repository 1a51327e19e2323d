# SPDX-License-Identifier: Apache-2.0
"""One run by several processes: the same run as by one, stopped, killed, resumed, and misused.

The processes are real, on loopback, with two fake CPU devices each; nothing here waits for a time
but for what is logged, and no process outlives its test.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import albert_jax
from albert_jax.checkpoint.manager import lock_workdir
from albert_jax.cli.main import main
from albert_jax.training.metrics import read_metrics
from albert_jax.training.pretrain import export, pretrain
from tests.helpers.multihost_runs import Fleet, config_of, count_lines, free_port, write_recipe
from tests.helpers.network_hosts import Hosts, why_no_hosts
from tests.helpers.paths import REPOSITORY
from tests.helpers.pretraining_runs import make_store

pytestmark = pytest.mark.timeout(1500)  # a busy machine is slow, not wrong

STEPS = 12
# Sums over four devices in another order, gloo's instead of one process's, magnified by LAMB.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"))


SETTINGS = {"steps": STEPS, "eval_every": 6, "save_every": 4}


def recipe_in(folder: Path, store: Path, workdir: str, **settings: object) -> Path:
    return write_recipe(folder / f"{workdir}.py", store, folder / workdir, **(SETTINGS | settings))


def by_one(folder: Path, store: Path, workdir: str, **settings: object) -> None:
    """The run of `recipe_in` in this process, on its four devices."""
    pretrain(config_of(store, folder / workdir, **(SETTINGS | settings)))


@pytest.fixture(scope="module")
def of_two(store, tmp_path_factory):
    """The folder of a run that two processes made and ended."""
    folder = tmp_path_factory.mktemp("two")
    with Fleet(folder) as fleet:
        fleet.start(recipe_in(folder, store, "run"))
        assert fleet.wait() == [0, 0], fleet.all_said()
        assert fleet.said(1) == "", "process 0 speaks for all"
    return folder


@pytest.fixture(scope="module")
def of_one(store, tmp_path_factory):
    """The folder of the same run made by one process."""
    folder = tmp_path_factory.mktemp("one")
    by_one(folder, store, "run")
    return folder


@pytest.fixture
def hosts():
    """Two hosts with addresses of their own."""
    if why := why_no_hosts():
        pytest.skip(why)
    with Hosts(2) as hosts:
        yield hosts


def newest(workdir: Path) -> dict:
    """The newest checkpoint's document."""
    steps = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()]
    step = max(steps, key=lambda path: int(path.name))
    return json.loads((step / "meta" / "metadata").read_bytes())


def figures(workdir: Path, kind: str, name: str) -> dict[int, float]:
    return {
        e["step"]: e[name] for e in read_metrics(workdir / "metrics.jsonl") if e["kind"] == kind
    }


def assert_same_run(workdir: Path, reference: Path) -> None:
    for kind in ("train", "eval"):
        ours, theirs = (figures(w, kind, "loss") for w in (workdir, reference))
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    assert_same_weights(workdir, reference)


def assert_same_weights(workdir: Path, reference: Path, model: str = "model") -> None:
    ours, theirs = (albert_jax.load(path).params for path in (workdir / model, reference / "model"))
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(ours["pooler"][name], theirs["pooler"][name], **TOLERANCE)


# ----------------------------------------------------------------------------------------- the same


def test_two_processes_make_the_run_of_one(of_two, of_one):
    assert_same_run(of_two / "run", of_one / "run")
    two, one = (dict(newest(of / "run")["meta"]["position"]) for of in (of_two, of_one))
    # Sums of two devices' numbers are not in the order of one's.
    np.testing.assert_allclose(two.pop("losses"), one.pop("losses"), rtol=1e-6)
    assert two == one


@pytest.mark.slow
def test_two_hosts_make_the_run_of_one(hosts, store, of_one, tmp_path):
    """Each has an address of its own, while its name means 127.0.0.1 to itself."""
    with Fleet(tmp_path, hosts=hosts) as fleet:
        fleet.start(recipe_in(tmp_path, store, "run"))
        assert fleet.wait() == [0, 0], fleet.all_said()
    assert_same_run(tmp_path / "run", of_one / "run")


@pytest.mark.slow
def test_two_processes_make_the_run_of_one_without_dropout_too(store, tmp_path):
    """Then the step is divided over the devices before XLA sees it."""
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe_in(tmp_path, store, "two", dropout=False))
        assert fleet.wait() == [0, 0], fleet.all_said()
    by_one(tmp_path, store, "one", dropout=False)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    ("processes", "devices"),
    [
        pytest.param(2, 4, marks=pytest.mark.endurance),
        pytest.param(4, 2, marks=pytest.mark.endurance),
        pytest.param(4, 4, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_and_devices_makes_the_run_of_one(
    store, tmp_path, processes, devices
):
    with Fleet(tmp_path, count=processes, devices=devices) as fleet:
        fleet.start(recipe_in(tmp_path, store, "run", batch_size=16))
        assert set(fleet.wait()) == {0}, fleet.all_said()
    by_one(tmp_path, store, "one", batch_size=16)
    assert_same_run(tmp_path / "run", tmp_path / "one")
    # One process restores what all of them wrote.
    export(tmp_path / "run", tmp_path / "restored")
    assert_same_weights(tmp_path, tmp_path / "one", "restored")


def test_every_file_of_a_run_is_there_once(of_two):
    for name in ("config.json", "loss.png", "tensorboard", "model/manifest.json"):
        assert (of_two / "run" / name).exists()
    entries = list(read_metrics(of_two / "run" / "metrics.jsonl"))
    steps = {k: [e["step"] for e in entries if e["kind"] == k] for k in ("train", "eval")}
    assert steps == {"train": list(range(1, STEPS + 1)), "eval": [6, STEPS]}
    # What is said of the run, of which there may be more at a step.
    said = [(e["step"], e.get("message")) for e in entries if e["kind"] not in steps]
    assert len(said) == len(set(said))


@pytest.mark.slow
def test_a_process_that_compiles_long_is_waited_for(store, tmp_path):
    """Gloo gives a collective 30 s."""
    recipe = recipe_in(tmp_path, store, "run", steps=2)
    with recipe.open("a") as file:
        file.write("import sys\nfrom tests.helpers.multihost_runs import compile_late\n")
        file.write("if sys.argv[-1] == '1':  # --process-id\n    compile_late(40)\n")
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe)
        assert fleet.wait() == [0, 0], fleet.all_said()


# ------------------------------------------------------------------------------------- checkpoints


def test_all_processes_write_a_checkpoint_and_one_restores_it(of_two, tmp_path):
    state = of_two / "run" / "checkpoints" / str(STEPS) / "state"
    assert {p.name for p in state.glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    export(of_two / "run", tmp_path / "model")
    ours, theirs = (albert_jax.load(d) for d in (tmp_path / "model", of_two / "run" / "model"))
    np.testing.assert_array_equal(
        ours.params["pooler"]["kernel"], theirs.params["pooler"]["kernel"]
    )


@pytest.mark.slow
def test_four_processes_stop_and_two_go_on(store, of_one, tmp_path):
    recipe = recipe_in(tmp_path, store, "run")
    (tmp_path / "slow").write_text("4 4")
    with Fleet(tmp_path, count=4, devices=1) as fleet:
        fleet.start(recipe)
        fleet.wait_for(tmp_path / "run" / "metrics.jsonl", 2)
        fleet.processes[3].send_signal(signal.SIGTERM)
        assert set(fleet.wait()) == {75}, fleet.all_said()
    (tmp_path / "slow").unlink()
    with Fleet(tmp_path, count=2, devices=2) as fleet:
        fleet.start(recipe)
        assert fleet.wait() == [0, 0], fleet.all_said()
        assert "resumed at step" in fleet.said(0)
    assert_same_weights(tmp_path / "run", of_one / "run")


# ---------------------------------------------------------------------------------------- stopping


@pytest.mark.slow
def test_sigterm_to_one_saves_the_same_step_in_all_and_one_process_goes_on(store, of_one, tmp_path):
    recipe = recipe_in(tmp_path, store, "run", save_every=1000)
    (tmp_path / "slow").write_text("4 4")
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe)
        fleet.wait_for(tmp_path / "run" / "metrics.jsonl", 3)
        fleet.processes[1].send_signal(signal.SIGTERM)
        assert fleet.wait() == [75, 75], fleet.all_said()
        last = [fleet.said(rank).splitlines()[-1] for rank in range(2)]
    document = newest(tmp_path / "run")
    step = document["step"]
    assert 3 < step < STEPS
    assert last[0] == last[1]
    assert f"SIGTERM to one of the processes after step {step}, which is saved" in last[0]
    (tmp_path / "slow").unlink()
    by_one(tmp_path, store, "run", save_every=1000)
    events = [
        e["message"]
        for e in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if e["kind"] == "event"
    ]
    assert events == [f"resumed at step {step}, next batch {step}"]
    assert_same_weights(tmp_path / "run", of_one / "run")


# -------------------------------------------------------------------------------------------- death


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_with_a_line_and_status_75(store, tmp_path, victim):
    (tmp_path / "slow").write_text("4 4")
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe_in(tmp_path, store, "run"), "--peer-timeout", "10")
        fleet.wait_for(tmp_path / "run" / "metrics.jsonl", 3)
        fleet.processes[victim].kill()
        statuses = fleet.wait()
        assert statuses[1 - victim] == 75, fleet.all_said()
        last = fleet.said(1 - victim).splitlines()[-1]
    assert last.startswith(f"albert-jax: process {1 - victim} stops: another process of the run")
    assert "run the same command again" in last


@pytest.mark.slow
@pytest.mark.parametrize("unplugged", [0, 1])
def test_a_host_that_is_cut_off_ends_all_with_a_line_and_status_75(
    hosts, store, tmp_path, unplugged
):
    """Nothing says that it is gone: its connections stay open and silent."""
    (tmp_path / "slow").write_text("4 4")
    with Fleet(tmp_path, hosts=hosts) as fleet:
        fleet.start(recipe_in(tmp_path, store, "run"), "--peer-timeout", "10")
        fleet.wait_for(tmp_path / "run" / "metrics.jsonl", 3)
        hosts.unplug(unplugged)
        assert fleet.wait() == [75, 75], fleet.all_said()
        last = [fleet.said(rank).splitlines()[-1] for rank in range(2)]
    for rank in range(2):
        assert last[rank].startswith(
            f"albert-jax: process {rank} stops: another process of the run"
        )


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_a_run_killed_ten_times_ends_with_the_bits_of_one_left_alone(store, tmp_path):
    rng = random.Random(7)
    settings = {"steps": 200, "eval_every": 50, "save_every": 3}
    whole = recipe_in(tmp_path, store, "whole", **settings)
    with Fleet(tmp_path) as fleet:
        fleet.start(whole)
        assert fleet.wait() == [0, 0], fleet.all_said()
    recipe = recipe_in(tmp_path, store, "run", **settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    (tmp_path / "slow").write_text("0 0.3")
    for _ in range(10):
        with Fleet(tmp_path) as fleet:
            fleet.start(recipe, "--peer-timeout", "10")
            victim = rng.randrange(2)
            fleet.wait_for(metrics, count_lines(metrics) + rng.randrange(1, 8))
            time.sleep(rng.uniform(0, 0.3))  # anywhere in a step or a save
            fleet.processes[victim].kill()
            assert fleet.wait()[1 - victim] == 75, fleet.all_said()
    (tmp_path / "slow").unlink()
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe)
        assert fleet.wait() == [0, 0], fleet.all_said()
    assert newest(tmp_path / "run")["leaves"] == newest(tmp_path / "whole")["leaves"]


# ------------------------------------------------------------------------------------------- misuse


def the_one_line(fleet: Fleet, rank: int) -> str:
    lines = fleet.said(rank).splitlines()
    assert len(lines) == 1, fleet.all_said()
    return lines[0]


def test_processes_with_other_settings_refuse_at_the_start_and_name_them(store, tmp_path):
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe_in(tmp_path, store, "run"), "--train.seed", "{rank}")
        assert fleet.wait() == [2, 2], fleet.all_said()
        for rank in range(2):
            line = the_one_line(fleet, rank)
            assert line.startswith("albert-jax: process 1 on ")
            assert "train.seed is 1 there and 0 in process 0" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_other_stores_and_versions_are_named(store, tmp_path):
    other = make_store(tmp_path, documents=40)
    recipe = recipe_in(tmp_path, store, "run")
    (tmp_path / "stores").mkdir()
    for rank, path in enumerate((store, other)):
        (tmp_path / "stores" / str(rank)).symlink_to(path)
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe, "--store", tmp_path / "stores" / "{rank}")
        assert fleet.wait() == [2, 2], fleet.all_said()
        assert "data is '" in the_one_line(fleet, 1)


@pytest.mark.slow
def test_an_error_of_one_process_is_the_error_of_all(store, tmp_path):
    with Fleet(tmp_path) as fleet, lock_workdir(tmp_path / "run"):
        fleet.start(recipe_in(tmp_path, store, "run"))
        assert fleet.wait() == [2, 2], fleet.all_said()
        assert f"in use by pid {os.getpid()}" in the_one_line(fleet, 0)
        assert "process 0 on " in the_one_line(fleet, 1)
        assert f"in use by pid {os.getpid()}" in the_one_line(fleet, 1)


@pytest.mark.slow  # ten seconds; test_rendezvous.py has it without processes
def test_other_numbers_of_processes_are_told_by_both_at_once(store, tmp_path):
    recipe = recipe_in(tmp_path, store, "run")
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe, only=0)
        fleet.count = 3
        fleet.start(recipe, only=1)
        assert fleet.wait() == [2, 2], fleet.all_said()
        line = the_one_line(fleet, 0)
        assert the_one_line(fleet, 1) == line
    assert line.startswith("albert-jax: process 1 on ")
    assert "was started for 3 processes and process 0" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_processes_that_do_not_find_each_other_say_so_in_bounded_time(store, tmp_path, rank):
    with Fleet(tmp_path) as fleet:
        fleet.start(recipe_in(tmp_path, store, "run"), "--start-timeout", "2", only=rank)
        assert fleet.wait() == [2], fleet.said(rank)
        line = fleet.said(rank)
    assert line.count("\n") == 1
    assert f"127.0.0.1:{fleet.port} within 2 s" in line
    assert ("not all 2 processes" if rank == 0 else "process 1 could not join") in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--coordinator", "a:1"], "need --multihost"),
        (["--multihost", "--dry-run"], "leave out --multihost"),
        (["--multihost", "--coordinator", "a"], "has no port"),
        (["--multihost", "--num-processes", "1"], "one process only"),
        (["--multihost", "--num-processes", "2", "--process-id", "2"], "which is 1"),
    ],
)
def test_flags_that_make_no_sense_are_refused(store, tmp_path, capsys, arguments, told):
    assert main(["pretrain", str(recipe_in(tmp_path, store, "run")), *arguments]) == 2
    assert told in capsys.readouterr().err


CALLBACK = """
import sys, albert_jax
from pathlib import Path
from tests.helpers.multihost_runs import config_of

store, workdir, port, process, error = sys.argv[1:]

def say(*words):  # to a file of its own: gloo's threads write to stdout, within its lines too
    with Path(f"{workdir}-said-{process}").open("a") as file:
        print(*words, file=file)

def on_step(step, metrics):
    say("heard", step)
    if step == 4:
        raise albert_jax.StopTraining if error == "stop" else ZeroDivisionError("as was asked")

config = config_of(Path(store), Path(workdir), steps=12, log_every=2, save_every=100)
launch = albert_jax.Launch(f"127.0.0.1:{port}", 2, int(process))
try:
    found = albert_jax.pretrain(config, launch=launch, on_step=on_step)
    say("result", found.step, sorted(found.held_out))
except (ZeroDivisionError, albert_jax.UserError) as raised:
    say("raised", type(raised).__name__, raised)
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", ["stop", "fail"])
def test_a_callback_of_process_0_ends_the_run_of_all(store, tmp_path, error):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    arguments = [str(store), str(tmp_path / "run"), str(free_port())]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CALLBACK, *arguments, str(process), error],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for process in (0, 1)
    ]
    assert [process.wait(timeout=1200) for process in started] == [0, 0]
    said = [(tmp_path / f"run-said-{k}").read_text().splitlines() for k in (0, 1)]
    assert said[0][:3] == ["heard 1", "heard 2", "heard 4"]
    if error == "stop":
        assert said[0][3:] == said[1] != []
        assert said[1][0].startswith("result 4 [")
    else:
        assert said[0][3:] == ["raised ZeroDivisionError as was asked"]
        told = "a callback of process 0 failed: ZeroDivisionError: as was asked"
        assert said[1] == [f"raised UserError {told}"]
    assert newest(tmp_path / "run")["step"] == 4
