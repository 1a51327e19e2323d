# SPDX-License-Identifier: Apache-2.0
"""Processes that look for each other, played by threads: those that fit meet, the others are told
why not, all in the same words and in bounded time."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from albert_jax.distributed import rendezvous
from albert_jax.distributed.rendezvous import Peer, meet
from albert_jax.utils.errors import TryAgain, UserError
from tests.helpers.multihost_runs import free_port

VERSIONS = {"jax": "0.10.2", "albert_jax": "0.1.0"}


def peer(process: int, processes: int = 2, **changes: object) -> Peer:
    return replace(Peer(process, processes, f"host{process}", 100 + process, VERSIONS), **changes)


@dataclass
class Coming(threading.Thread):
    """One that comes to a port after a while; `result` is the hosts, or what it was told."""

    who: Peer
    port: int
    seconds: float = 20.0
    after: float = 0.0
    host: str = "127.0.0.1"
    result: object = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.start()

    def run(self) -> None:
        time.sleep(self.after)
        address, bind = f"{self.host}:{self.port}", f"[::]:{self.port}"
        try:
            self.result = meet(self.who, address, bind=bind, seconds=self.seconds, late=TryAgain)
        except (UserError, TryAgain) as error:
            self.result = error

    __hash__ = threading.Thread.__hash__


def told(*coming: Coming) -> list[object]:
    for one in coming:
        one.join(60)
        assert not one.is_alive()
    return [one.result for one in coming]


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "LINGER", 2.0)
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.5)


def test_processes_meet_in_whatever_order_they_come() -> None:
    port = free_port()
    late = Coming(peer(0, 3), port, after=0.5)
    assert (
        told(late, Coming(peer(2, 3), port), Coming(peer(1, 3), port))
        == [["host0", "host1", "host2"]] * 3
    )
    with socket.create_server(("127.0.0.1", port)):  # the port is JAX's to take
        pass


def test_a_host_of_ipv6_can_be_the_coordinator() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    port = free_port()
    both = [Coming(peer(n), port, host="[::1]") for n in range(2)]
    assert told(*both) == [["host0", "host1"]] * 2


@pytest.mark.parametrize(
    ("who", "message"),
    [
        (
            [peer(0, 2), peer(1, 3), peer(2, 3)],
            " on host0 for 2; give all the same number of them (processes)",
        ),
        ([peer(0, 3), peer(1, 2)], "process 1 on host1 was started for 2 processes"),
        (
            [peer(0, 3), peer(1, 3), peer(1, 3, host="host7", pid=7)],
            "two processes have process=1: pid ",
        ),
        ([peer(0), peer(0, host="host7", pid=7)], "two processes have process=0: pid "),
        (
            [peer(0), peer(1, versions=VERSIONS | {"jax": "0.12.0"})],
            "process 1 on host1 has jax 0.12.0 and process 0 0.10.2; install the same versions",
        ),
    ],
)
def test_processes_that_do_not_fit_are_all_told_the_same_at_once(
    who: list[Peer], message: str
) -> None:
    port, since = free_port(), time.monotonic()
    results = told(*(Coming(one, port, seconds=60.0) for one in who))
    assert time.monotonic() - since < 20
    assert {type(result) for result in results} == {UserError}
    assert len({str(result) for result in results}) == 1
    assert message in str(results[0])
    for one in who:
        if f"pid {one.pid}" in message:
            assert one.host in str(results[0])


def test_both_hosts_of_a_number_given_twice_are_named() -> None:
    port = free_port()
    who = [peer(0, 3), peer(1, 3), peer(1, 3, host="host7", pid=7)]
    for result in told(*(Coming(one, port) for one in who)):
        assert "pid 101 on host1" in str(result)
        assert "pid 7 on host7" in str(result)
        assert "give each its own, 0 to 2" in str(result)


def test_who_did_not_come_is_named_to_those_who_did() -> None:
    port, since = free_port(), time.monotonic()
    results = told(*(Coming(peer(n, 5), port, seconds=1.0) for n in (0, 2)))
    assert time.monotonic() - since < 20
    assert {type(result) for result in results} == {TryAgain}
    for result in results:
        assert str(result).startswith(
            f"not all 5 processes came to 127.0.0.1:{port} within 1 s: process 1, 3, 4 did not"
        )


def test_without_process_0_the_others_say_where_they_looked() -> None:
    port = free_port()
    (result,) = told(Coming(peer(1), port, seconds=0.5))
    assert isinstance(result, TryAgain)
    assert f"process 1 could not join the coordinator at 127.0.0.1:{port} within" in str(result)
    assert "Connection refused" in str(result)


def test_a_host_that_has_no_address_is_looked_up_until_it_is_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", none)
    (result,) = told(Coming(peer(1), free_port(), seconds=0.5, host="nowhere"))
    assert isinstance(result, TryAgain)
    assert "(Name or service not known)" in str(result)


@contextlib.contextmanager
def _program(port: int, says: bytes) -> Iterator[None]:
    """Another program at the port, which greets whoever connects and then listens."""
    ended = threading.Event()

    def serve() -> None:
        with socket.create_server(("127.0.0.1", port)) as listener, contextlib.ExitStack() as stack:
            listener.settimeout(0.05)
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection = stack.enter_context(listener.accept()[0])
                    connection.sendall(says)

    serving = threading.Thread(target=serve)
    serving.start()
    _connected(port).close()
    yield
    ended.set()
    serving.join()


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def test_another_program_at_the_port_is_found_out(says: bytes) -> None:
    port = free_port()
    with _program(port, says):
        first, other = told(*(Coming(peer(n), port, seconds=1.5) for n in (0, 1)))
    why = "what listens there is not a process 0 that waits for others"
    assert f"could not join the coordinator at 127.0.0.1:{port}" in str(other)
    assert why in str(other)
    assert f"process 0 on host0 does not reach itself at 127.0.0.1:{port}" in str(first)
    assert why in str(first)


def test_a_port_that_becomes_free_in_time_is_taken() -> None:
    port = free_port()
    with _program(port, b""):
        both = [Coming(peer(n), port) for n in (0, 1)]
        time.sleep(0.8)
    assert told(*both) == [["host0", "host1"]] * 2


def test_process_0_on_another_host_than_the_coordinators_says_so() -> None:
    bound, coordinator = free_port(), free_port()
    address = f"127.0.0.1:{coordinator}"
    words = f"process 0 on host0 does not reach itself at {address} within"
    with pytest.raises(TryAgain, match=re.escape(words)):
        meet(peer(0), address, bind=f"[::]:{bound}", seconds=0.5, late=TryAgain)


@pytest.mark.parametrize(
    "says", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"process": 9}\n', b"\xff\n", b"[" * 9999 + b"\n"]
)
def test_whatever_else_connects_is_passed_over(says: bytes) -> None:
    port = free_port()
    first = Coming(peer(0), port)
    stranger = _connected(port)
    stranger.sendall(says)
    assert told(first, Coming(peer(1), port)) == [["host0", "host1"]] * 2
    stranger.close()


def _connected(port: int) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_one_that_ended_while_it_waited_may_come_again() -> None:
    port = free_port()
    first = Coming(peer(0, 3), port)
    with _connected(port) as connection, connection.makefile("rb") as lines:
        assert lines.readline() == rendezvous.GREETING
        rendezvous._send(connection, peer(1, 3, host="before"))
        time.sleep(0.5)
    others = [Coming(peer(n, 3), port) for n in (1, 2)]
    assert told(first, *others) == [["host0", "host1", "host2"]] * 3


def test_a_long_wait_is_said_aloud_with_who_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendezvous, "SILENCE", 1.0)
    port = free_port()
    told(*(Coming(peer(n, 4), port, seconds=4.0) for n in (0, 2)))
    told(Coming(peer(1, 4), port, seconds=2.0))
    said = capsys.readouterr().err
    assert f"process 0 waits at 127.0.0.1:{port} for process 1, 3 (1 s so far)" in said
    assert (
        f"process 1 on host1 cannot reach process 0 at 127.0.0.1:{port} yet: Connection refused"
        in said
    )


def test_the_words_of_a_wait_come_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(rendezvous.time, "monotonic", lambda: now[0])
    announcer = rendezvous._Announcer()
    for now[0] in (1, 14, 15, 30, 74, 75, 76, 136):
        announcer.waiting("waiting")
    assert capsys.readouterr().err.splitlines() == [
        "waiting (15 s so far)",
        "waiting (75 s so far)",
        "waiting (136 s so far)",
    ]
