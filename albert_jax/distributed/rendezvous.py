# SPDX-License-Identifier: Apache-2.0
"""Let the processes of a run find each other, and compare their settings, before JAX joins them.

JAX waits without end for a process that another one does not count, and does not notice that two
have the same number. Therefore process 0 first listens at the coordinator's port. Every process,
including process 0, connects there and introduces itself. Process 0 answers all of them at once:
with the hosts when all have arrived, with one sentence when one does not match. Then JAX uses the
port.

The protocol is one line of JSON each way, after a greeting. Nothing is authenticated, as in JAX's
own coordinator: keep the port inside the cluster's network.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.streams import say
from albert_jax.utils.wording import current_naming, name_as, setting

T = TypeVar("T")

GREETING = b"albert_jax rendezvous 1\n"
MOST_BYTES = 1 << 20  # of a line
PATIENCE = 5.0  # seconds in which a process that has connected must introduce itself
PAUSE = 0.3  # seconds between two attempts to connect
SILENCE = 15.0  # seconds of waiting before a line says for what; then every minute
LINGER = 10.0  # seconds in which processes that come after a refusal get it too


@dataclass(frozen=True)
class Peer:
    """Hold what a process says about itself."""

    process: int  # its number, from 0
    processes: int  # the number of processes that it expects
    host: str
    pid: int
    versions: dict[str, str]

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@dataclass(frozen=True)
class _Answer:
    """Hold process 0's answer to all: the hosts by process, or an error."""

    hosts: list[str]
    error: str = ""
    late: bool = False  # `error` is that some have not come


def meet(
    me: Peer, address: str, *, bind: str, seconds: float, late: type[UserError] | type[TryAgain]
) -> list[str]:
    """Return the hosts of all processes, by process, when all have come to `address`, HOST:PORT.

    Process 0 listens at `bind`, HOST:PORT. Raises UserError in all processes if two have the same
    number, or one has other versions or another number of processes than process 0. Raises `late`
    if not all come within `seconds`.
    """
    server = _Server(me, address, bind, seconds) if me.process == 0 else None
    if server:
        server.start()
    try:
        answer = _ask(me, address, seconds, late)
    finally:
        if server:
            server.end()
    if answer.late:
        raise late(answer.error)
    if answer.error:
        raise UserError(answer.error)
    return answer.hosts


def host_and_port(address: str) -> tuple[str, int]:
    """Return the two parts of HOST:PORT; an IPv6 HOST may be in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class _Announcer:
    """Print what a process waits for, if that takes long."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next = SILENCE

    def waiting(self, what: str) -> None:
        waited = time.monotonic() - self._began
        if waited >= self._next:
            self._next = waited + 60
            say(f"{what} ({waited:.0f} s so far)")


# --------------------------------------------------------------------------------- every process's


def _ask(me: Peer, address: str, seconds: float, late: type[Exception]) -> _Answer:
    """Return process 0's answer, after as many attempts as needed."""
    deadline, announcer = time.monotonic() + seconds, _Announcer()
    while True:
        try:
            return _try_to_ask(me, address, deadline)
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or str(error)
        announcer.waiting(f"{me} cannot reach process 0 at {address} yet: {cause}")
        if time.monotonic() + PAUSE > deadline:
            raise late(_unreached(me, address, seconds, cause))
        time.sleep(PAUSE)


def _try_to_ask(me: Peer, address: str, deadline: float) -> _Answer:
    """Return process 0's answer.

    Raises OSError or ValueError if none comes, or not from process 0.
    """
    left = max(0.1, deadline - time.monotonic())
    with (
        socket.create_connection(host_and_port(address), timeout=min(PATIENCE, left)) as connection,
        connection.makefile("rb") as lines,
    ):
        try:
            greeting = lines.readline(len(GREETING))
        except TimeoutError:
            greeting = b""
        if greeting != GREETING:
            raise ValueError("what listens there is not a process 0 that waits for others")
        _send(connection, me)
        # A little longer than process 0 waits, because process 0 knows which one is missing.
        connection.settimeout(max(0.1, deadline - time.monotonic()) + 2)
        try:
            line = lines.readline(MOST_BYTES)
        except TimeoutError:
            raise ValueError("process 0 answers, but other processes are missing") from None
        answer = _decoded(line, _Answer)
        if answer is None:
            raise ValueError("process 0 has ended")
        return answer


def _unreached(me: Peer, address: str, seconds: float, cause: str) -> str:
    if me.process == 0:
        return (
            f"process 0 on {me.host} does not reach itself at {address} within {seconds:.0f} s "
            f"({cause}); start process 0 on the host of {setting('coordinator')}, at a port that "
            "is free"
        )
    return (
        f"process {me.process} could not join the coordinator at {address} within {seconds:.0f} s "
        f"({cause}); see that process 0 runs there and that the port is open"
    )


# -------------------------------------------------------------------------------------- process 0's


class _Server(threading.Thread):
    """Collect the processes at process 0, check them and answer."""

    def __init__(self, me: Peer, address: str, bind: str, seconds: float) -> None:
        super().__init__(name="rendezvous", daemon=True)
        self._me, self._address, self._bind, self._seconds = me, address, bind, seconds
        self._deadline = time.monotonic() + seconds
        self._here: dict[int, tuple[Peer, socket.socket]] = {}
        self._refused: list[tuple[Peer, socket.socket]] = []
        self._stopped = threading.Event()
        self._naming = current_naming()

    def end(self) -> None:
        """Wait until all have their answers and the port is free."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        name_as(self._naming)
        listener = self._listener()
        if listener is None:
            return
        with listener, contextlib.closing(self):
            answer = self._collect(listener)
            if self._refused:
                self._refuse(listener, answer)
                return
            listener.close()  # first: they will look for JAX's coordinator at the port
            for _, connection in self._here.values():
                _send(connection, answer)

    def _listener(self) -> socket.socket | None:
        """Return a socket at the port when it is free; None if it does not become free in time."""
        host, port = host_and_port(self._bind)
        either = host in ("", "::") and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if either or ":" in host else socket.AF_INET
        while not self._stopped.is_set() and time.monotonic() < self._deadline:
            with contextlib.suppress(OSError):
                listener = socket.create_server(
                    ("" if host == "::" else host, port),
                    family=family,
                    backlog=1024,
                    dualstack_ipv6=either,
                )
                listener.settimeout(PAUSE)
                return listener
            self._stopped.wait(PAUSE)
        return None

    def _collect(self, listener: socket.socket) -> _Answer:
        """Wait for all processes; return the answer to them."""
        announcer = _Announcer()
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while time.monotonic() < self._deadline and not self._stopped.is_set():
                ready = [key for key, _ in selector.select(PAUSE)]
                for key in ready:
                    if key.fileobj is not listener:  # it should only wait, so it has ended
                        self._dismiss(selector, key.data)
                # After those that ended: it may be one of them, started again.
                comes = any(key.fileobj is listener for key in ready)
                if comes and (error := self._admit(selector, listener)):
                    return _Answer([], error)
                if len(self._here) == self._me.processes:
                    return _Answer([self._here[n][0].host for n in range(self._me.processes)])
                announcer.waiting(f"process 0 waits at {self._address} for {self._absent()}")
        return _Answer(
            [],
            f"not all {self._me.processes} processes came to {self._address} within "
            f"{self._seconds:.0f} s: {self._absent()} did not; start the same command on the "
            "others too, and open that port to them",
            late=True,
        )

    def _admit(self, selector: selectors.BaseSelector, listener: socket.socket) -> str:
        """Accept one process; return what is wrong with it, or ""."""
        found = _introduced(listener)
        if found is None:
            return ""
        peer, connection = found
        error = self._misfit(peer)
        if error:
            self._refused.append(found)
        else:
            self._here[peer.process] = found
            selector.register(connection, selectors.EVENT_READ, peer.process)
        return error

    def _dismiss(self, selector: selectors.BaseSelector, process: int) -> None:
        _, connection = self._here.pop(process)
        selector.unregister(connection)
        connection.close()

    def _absent(self) -> str:
        """Return which processes are missing, for people."""
        absent = [str(n) for n in range(self._me.processes) if n not in self._here]
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        return f"process {', '.join(absent[:10])}{more}"

    def _misfit(self, peer: Peer) -> str:
        """Return what is wrong with a process, or ""."""
        me = self._me
        if peer.processes != me.processes:
            return (
                f"{peer} was started for {peer.processes} processes and process 0 on {me.host} "
                f"for {me.processes}; give all the same number of "
                f"them ({setting('processes', flag='num-processes')})"
            )
        if other := self._here.get(peer.process):
            return (
                f"two processes have {setting('process', peer.process, flag='process-id')}: pid "
                f"{other[0].pid} on {other[0].host} and pid {peer.pid} on {peer.host}; give each "
                f"its own, 0 to {me.processes - 1}"
            )
        unlike = _unlike(peer.versions, me.versions)
        if unlike:
            return (
                f"{peer} has {unlike}; install the same versions everywhere (process 0 is on "
                f"{me.host})"
            )
        return ""

    def _refuse(self, listener: socket.socket, answer: _Answer) -> None:
        """Send the refusal to the processes that are here and, for a while, to those that come."""
        until = time.monotonic() + LINGER
        told: list[Peer] = []
        waiting = [*self._here.values(), *self._refused]
        while True:
            for peer, connection in waiting:
                _send(connection, answer)
                told.append(peer)
            most = max(peer.processes for peer in [self._me, *told])
            if (len(told) >= most and self._me in told) or time.monotonic() > until:
                return
            found = _introduced(listener)
            waiting = [found] if found else []
            self._refused += waiting

    def close(self) -> None:
        for _, connection in [*self._here.values(), *self._refused]:
            connection.close()


def _introduced(listener: socket.socket) -> tuple[Peer, socket.socket] | None:
    """Return a process that connects and introduces itself; None for other connections."""
    try:
        connection, _ = listener.accept()
    except OSError:  # it is gone again, or nobody came
        return None
    peer = None
    with contextlib.suppress(OSError):
        connection.settimeout(PATIENCE)
        connection.sendall(GREETING)
        with connection.makefile("rb") as lines:
            peer = _decoded(lines.readline(MOST_BYTES), Peer)
    if peer is None or not 0 <= peer.process < peer.processes or not peer.host.isprintable():
        connection.close()
        return None
    return peer, connection


def _unlike(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Return which versions differ from process 0's, for people."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return ", ".join(
        f"{name} {theirs.get(name, 'missing')} and process 0 {ours.get(name, 'none')}"
        for name in names
    )


# ---------------------------------------------------------------------------------------- the lines


def _send(connection: socket.socket, value: Any) -> None:
    """Send a line; a process that is gone does not get it."""
    with contextlib.suppress(OSError):
        connection.sendall(msgspec.json.encode(value) + b"\n")


def _decoded(line: bytes, kind: type[T]) -> T | None:
    """Return a line's value; None if it is no complete line of that kind."""
    if not line.endswith(b"\n"):
        return None
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(line, type=kind)
    return None
