# SPDX-License-Identifier: Apache-2.0
"""Processes that have joined: signals to them, waits for each other, and what a cluster says.

Those that are real make no run, but do what a run does between two lines of it, so that they cost
seconds; `test_multihost.py` has whole runs."""

import itertools
import math
import os
import signal
import socket
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import pytest

from albert_jax.distributed import multihost
from albert_jax.distributed.multihost import Launch
from albert_jax.utils.errors import TryAgain, UserError
from tests.helpers.multihost_runs import free_port
from tests.helpers.warm import WarmProcess, script

# What each process does once it has joined is the body; `rank` is its number.
MEMBER = """
    import hashlib, sys, threading, time
    from albert_jax import __main__
    from albert_jax.cli import main as cli
    from albert_jax.distributed import multihost
    from albert_jax.utils import interrupts
    from albert_jax.utils.errors import TryAgain, UserError

    rank, port = map(int, sys.argv[2:])

    def stuck(seconds=60):  # in C, as a compilation is
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_200_000 * seconds)

    def command(arguments):
        address = f"127.0.0.1:{{port}}"
        with multihost.joined(multihost.Launch(address, 2, rank, peer_timeout=60)):
{body}

    cli._run = command
    sys.exit(__main__.main())
"""


class Pair:
    """Two processes that have joined and printed "ready"; leaving kills those that still live."""

    def __init__(self, body: str) -> None:
        code = MEMBER.format(body=textwrap.indent(textwrap.dedent(body), 12 * " "))
        self._port = free_port()
        self.processes = [
            WarmProcess(script, textwrap.dedent(code), "pretrain", rank, self._port)
            for rank in range(2)
        ]
        for process in self.processes:
            assert process.line(process.out) == "ready\n", process.communicate()[1]

    def end(self, rank: int) -> tuple[int, str, str]:
        """(status, stdout without "ready", stderr) of one that is about to end."""
        stdout, stderr = self.processes[rank].communicate(timeout=120)
        return self.processes[rank].wait(), stdout.removeprefix("ready\n"), stderr


@contextmanager
def pair(body: str) -> Iterator[Pair]:
    both = Pair(body)
    try:
        yield both
    finally:
        for process in both.processes:
            process.kill()
            process.wait()


RESTORING = """
    if rank == victim:
        print("ready", flush=True)
        stuck()
    threading.Timer(0.2, lambda: print("ready", flush=True)).start()
    multihost.barrier()
"""


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_before_the_loop_ends_the_process_and_then_the_others(victim: int) -> None:
    with pair(f"victim = {victim}\n{textwrap.dedent(RESTORING)}") as both:
        since = time.monotonic()
        both.processes[victim].send_signal(signal.SIGTERM)
        status, _, stderr = both.end(victim)
        assert status == 75
        assert stderr.startswith("albert-jax: stopped by SIGTERM; what was finished is kept")
        assert time.monotonic() - since < 10
        status, _, stderr = both.end(1 - victim)
        assert time.monotonic() - since < 20  # the peers' timeout is 60 s
    assert status == 75
    assert stderr == (
        f"albert-jax: process {victim} on {socket.gethostname()} was stopped by a signal; "
        "run the same command again on all\n"
    )


FAILING = """
    print("ready", flush=True)
    if rank == 1:
        raise kind("line 7 is no good")
    multihost.barrier()
"""


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("RuntimeError", 1, "RuntimeError: line 7 is no good"),
        pytest.param("UserError", 2, "albert-jax: line 7 is no good", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_one_alone_ends_it_as_ever_and_the_others_with_its_words(
    kind: str, status: int, words: str
) -> None:
    with pair(f"kind = {kind}\n{textwrap.dedent(FAILING)}") as both:
        found, _, stderr = both.end(1)
        assert (found, stderr.splitlines()[-1]) == (status, words)
        assert ("Traceback" in stderr) == (status == 1)
        found, _, stderr = both.end(0)
    assert (found, stderr) == (
        2,  # a launcher that started it again would have it wait for the other for ever
        f"albert-jax: process 1 on {socket.gethostname()} ended: line 7 is no good; "
        "mend that, and run the same command again on all\n",
    )


LOOP = """
    with multihost.StopTogether() as stop:
        for step in range(10_000):
            multihost.barrier()  # as a step over the devices of all
            if stop.due():
                print(step, flush=True)
                interrupts.acting()  # as the loop does
                raise TryAgain(f"stopped by {stop.requested}, saved")
            if step == 2:
                print("ready", flush=True)
            time.sleep(0.01 * (1 + rank))
"""


@pytest.mark.parametrize(
    "sent",
    [
        [(1, "SIGHUP"), (1, "SIGTERM")],  # at once: the same thing said twice
        [(0, "SIGTERM"), (1, "SIGTERM")],
        pytest.param([(0, "SIGINT")], marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_or_all_ends_all_after_the_same_step(sent: list[tuple[int, str]]) -> None:
    with pair(LOOP) as both:
        for rank, name in sent:
            both.processes[rank].send_signal(getattr(signal, name))
        results = [both.end(rank) for rank in range(2)]
    assert [status for status, _, _ in results] == [75, 75], results
    assert results[0][1] == results[1][1] != ""
    for _, _, stderr in results:
        assert (
            stderr.splitlines()[-1]
            == "albert-jax: stopped by SIGTERM to one of the processes, saved"
        )
    rank = sent[0][0]
    # Two signals to one process may reach different threads of it, the later one first.
    names = [name for to, name in sent if to == rank]
    said = [f"{name} to process {rank}: all save a checkpoint after this step" for name in names]
    assert sum(line in results[rank][2] for line in said) == 1, results[rank][2]


COMPILING = """
    multihost.ORDERLY = 6.0  # a busy machine is slow to send the second signal
    with multihost.StopTogether(lambda: rank == 0) as stop:
        print("ready", flush=True)
        if rank == 0:
            stuck()
        time.sleep(60)
"""


def test_who_cannot_stop_in_order_stops_by_itself_or_by_a_second_signal() -> None:
    with pair(COMPILING) as both:
        since = time.monotonic()
        both.processes[1].send_signal(signal.SIGTERM)
        # JAX's thread has a line of its own, sooner or later or not at all.
        wanted = "albert-jax: SIGTERM to process 1: all save"
        while not both.processes[1].said(wanted):
            assert time.monotonic() - since < 40
            time.sleep(0.005)
        time.sleep(multihost.SAME_SIGNAL + 0.1)
        assert both.processes[1].poll() is None  # it has work that is not saved
        both.processes[1].send_signal(signal.SIGINT)
        status, _, stderr = both.end(1)
        assert status == 75
        assert "stopped by a second SIGINT" in stderr.splitlines()[-1]
        both.processes[0].send_signal(signal.SIGTERM)  # to one that is compiling, all saved
        assert both.end(0)[0] == 75
        assert time.monotonic() - since < 40


# ---------------------------------------------------------------------------------- waits, in play


class Store:
    """The coordinator's store, in which the values of some processes never come."""

    def __init__(self, here: dict[int, str], clock: SimpleNamespace) -> None:
        self._here, self._clock = here, clock
        self.ended: dict[int, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        pass

    def key_value_delete(self, key: str) -> None:
        pass

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        assert prefix in ("albert_jax/0/", "albert_jax/ended/")
        here = self.ended if "ended" in prefix else self._here
        return [(f"{prefix}{process}", value) for process, value in here.items()]

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        process = int(key.rpartition("/")[2])
        if process in self._here:
            return self._here[process]
        self._clock.now += milliseconds / 1000
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: timed out")


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch):
    """`waiting(process)` plays one of four processes, of which 2 and 3 do not come."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(multihost.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(multihost, "_hosts", ["a", "b", "c", "d"])
    monkeypatch.setattr(multihost, "_numbers", itertools.count())

    def play(process: int) -> SimpleNamespace:
        state = SimpleNamespace(
            client=Store({0: "1", 1: "2"}, clock), num_processes=4, process_id=process
        )
        monkeypatch.setattr(multihost, "coordination", lambda: state)
        return clock

    return play


def test_a_long_wait_names_who_is_waited_for_and_has_an_end(waiting, capsys) -> None:
    clock = waiting(0)
    with pytest.raises(TryAgain) as error:
        multihost.gather(None)
    assert 3600 <= clock.now < 3610
    assert "waited 60 minutes for process 2 on c, 3 on d, which is alive but stuck" in str(
        error.value
    )
    assert capsys.readouterr().err.splitlines() == [
        f"waiting for process 2 on c, 3 on d ({seconds} s so far)"
        for seconds in (60, 120, 240, 480, 960, 1920)
    ]


def test_one_of_those_that_wait_speaks_for_all(waiting, capsys) -> None:
    waiting(1)
    with pytest.raises(TryAgain):
        multihost.gather(None)
    assert capsys.readouterr().err == ""


def test_one_that_has_ended_is_waited_for_no_longer(waiting) -> None:
    clock = waiting(0)
    multihost.coordination().client.ended[3] = '["ended: it had a bug", false]'
    with pytest.raises(TryAgain, match="process 3 on d ended: it had a bug; run the same command"):
        multihost.gather(None)
    assert clock.now < 10


def test_one_that_has_failed_fails_those_that_wait_for_it(waiting) -> None:
    waiting(0)
    multihost.coordination().client.ended[3] = '["ended: no store there", false, 2]'
    with pytest.raises(UserError, match="process 3 on d ended: no store there; mend that, and run"):
        multihost.gather(None)


def test_what_may_take_hours_is_waited_for(waiting, capsys) -> None:
    clock = waiting(0)
    store = multihost.coordination().client

    class Done(Exception):
        pass

    def give_up(*_: object) -> str:
        if clock.now > 10 * 3600:
            raise Done
        return Store.blocking_key_value_get(store, "albert_jax/0/2", 60_000)

    store.blocking_key_value_get = give_up
    with pytest.raises(Done), multihost.together(limit=math.inf):
        pass
    assert "process 2 on c, 3 on d" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- the clusters


def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("SLURM_", "JAX_COORD", "OMPI_", "TPU_"))]:
        monkeypatch.delenv(name)


def test_slurm_says_where_a_process_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cluster(monkeypatch)
    slurm = {
        "JOB_ID": "7",
        "STEP_NODELIST": "node[001-002]",
        "NTASKS": "16",
        "PROCID": "9",
        "LOCALID": "1",
        "STEP_NUM_NODES": "2",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    place = multihost._place(Launch())
    assert place.coordinator.startswith("node001:")
    assert (place.processes, place.process, place.devices) == (16, 9, [1])


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (None, UserError, "no cluster that JAX knows"),
        (RuntimeError("Failed to recognize coordinator address a"), TryAgain, "run the same"),
        (KeyError("WORKERS"), UserError, "'WORKERS'"),
    ],
)
def test_a_cluster_that_does_not_say_is_a_mistake_or_not_yet_there(
    monkeypatch: pytest.MonkeyPatch, raised: Exception | None, kind: type[Exception], words: str
) -> None:
    no_cluster(monkeypatch)

    def detect(*given: object) -> tuple[object, ...]:
        if raised:
            raise raised
        return given[:4]

    monkeypatch.setattr(multihost, "detect_cluster", detect)
    with pytest.raises(kind, match=words):
        multihost._place(Launch())


@pytest.mark.parametrize(
    ("who", "late"),
    [({}, TryAgain), ({"coordinator": "a:1", "processes": 2, "process": 1}, UserError)],
)
def test_who_is_late_in_a_cluster_is_waited_for_by_starting_again(
    monkeypatch: pytest.MonkeyPatch, who: dict[str, object], late: type[Exception]
) -> None:
    """What a user gives may be wrong; what a cluster gives is not, so the others will come."""
    place = multihost._Place("a:1", 2, 1, None)
    monkeypatch.setattr(multihost, "_place", lambda launch: place)

    def meet(*_: object, late: type[Exception], **__: object) -> list[str]:
        raise late("not all came")

    monkeypatch.setattr(multihost, "meet", meet)
    with pytest.raises(late), multihost.joined(Launch(**who)):
        pass


@pytest.mark.parametrize(
    ("coordinator", "words"),
    [
        ("a", "has no port"),
        ("a:0", "has no port"),
        ("a:99999", "has no port"),
        ("a:²", "has no port"),
        (":1234", "has no host"),
        ("http://a:1234", "has no host"),
        ("a b:1234", "has no host"),
        ("fd00::1:1234", "without brackets"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(coordinator: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Launch(coordinator, 2, 0)


def test_addresses_of_both_kinds_are_taken() -> None:
    for coordinator in ("10.0.0.1:1234", "host-0.domain:1", "[fd00::1]:65535"):
        Launch(coordinator, 2, 0)
