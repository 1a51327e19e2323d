# SPDX-License-Identifier: Apache-2.0
"""One run by several processes, a host each: how they find each other, agree, and end together.

The processes are JAX's own (`jax.distributed`), and so are the signs of life between them and the
word of a preemption. Here is what a person is told of it, and small values exchanged through the
coordinator's key-value store, which needs no devices.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax

# The key-value store has no public name (orbax uses it so too), nor has the address of CPU devices.
from jax._src import distributed, xla_bridge
from jax.experimental import multihost_utils
from jaxlib import _jax

from albert_jax.digests import unlike_values
from albert_jax.errors import TryAgain, UserError
from albert_jax.streams import say


@dataclass(frozen=True)
class Launch:
    """How a process finds the others; what is not given is the cluster's to know.

    Cloud TPU, GKE, SLURM, Open MPI and Kubernetes tell JAX all three; elsewhere all are needed.
    """

    coordinator: str | None = None  # host:port of process 0
    processes: int | None = None
    process: int | None = None  # 0 to processes - 1
    start_timeout: int = 120  # seconds for all to come
    peer_timeout: int = 30  # seconds without a sign of life after which a process counts as dead

    def __post_init__(self) -> None:
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise UserError(
                f"coordinator {self.coordinator!r} has no port; give HOST:PORT of process 0, "
                "as 10.0.0.1:1234"
            )
        if self.processes == 1:
            raise _alone()
        if self.processes is not None and self.processes < 1:
            raise UserError(f"num-processes {self.processes} must be at least 2")
        if self.process is not None and not 0 <= self.process < (self.processes or sys.maxsize):
            raise UserError(
                f"process-id {self.process} must be 0 to num-processes - 1"
                + (f", which is {self.processes - 1}" if self.processes else "")
            )
        for name in ("start_timeout", "peer_timeout"):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', '-')} must be at least 1 second")


def is_primary() -> bool:
    """Whether this is the process that speaks, logs and exports for all."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether the run has more than one process; starts no devices."""
    state = distributed.global_state
    return state.client is not None and state.num_processes > 1


# ------------------------------------------------------------------------------- coming and leaving

_hosts: list[str] = []  # by process
# What to do should JAX's C++ abort, as it does when another process is gone: (line, status).
_on_abort: Callable[[], tuple[str, int]]
_stderr = 2  # where a last line goes while JAX's own are held back


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[None]:
    """While entered, this process is one of the run's; None: it is the only one.

    Whatever ends one ends all: an error that all meet leaves in order; else this process exits at
    once, with its line and status, and the others learn of it within `peer_timeout`. A process that
    dies without a word ends the others with one line and status 75. Raises UserError where the
    processes do not find each other in time, or only one is found.
    """
    if launch is None:
        yield
        return
    _initialize(launch)
    try:
        yield
    except BaseException as error:
        _leave(error, launch)
        _on_sigabrt(None)
        raise
    jax.distributed.shutdown()
    _on_sigabrt(None)


def _initialize(launch: Launch) -> None:
    global _on_abort, _hosts
    _on_abort = lambda: (_not_found(launch), UserError.exit_status)  # noqa: E731
    _on_sigabrt(_aborted)
    with _held_back() as said:
        try:
            jax.distributed.initialize(
                launch.coordinator,
                launch.processes,
                launch.process,
                initialization_timeout=launch.start_timeout,
                heartbeat_timeout_seconds=launch.peer_timeout,
            )
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            if distributed.global_state.coordinator_address is None:
                raise UserError(
                    "no cluster that JAX knows (Cloud TPU, GKE, SLURM, Open MPI) is here; give "
                    "--coordinator HOST:PORT, --num-processes and --process-id"
                ) from None
            cause = str(error).partition("\n")[0]
            raise UserError(f"{_not_found(launch)} ({cause})") from None
    if said:
        say(said[0].removesuffix("\n"))
    if distributed.global_state.num_processes == 1:
        jax.distributed.shutdown()
        raise _alone()
    _reach_cpus_by_address()
    _on_abort = lambda: (_lost(), TryAgain.exit_status)  # noqa: E731
    _hosts = gather(socket.gethostname())


def _reach_cpus_by_address() -> None:
    """Has this host's CPU devices found at the address that it has towards the coordinator.

    JAX takes what the host's name means to itself, which is 127.0.0.1 or 127.0.1.1 by many an
    /etc/hosts: then other hosts would look for these devices on themselves. TPUs and GPUs find each
    other by themselves.
    """
    host, _, port = (distributed.global_state.coordinator_address or "").rpartition(":")
    if jax.config.jax_cpu_collectives_implementation != "gloo":
        return
    try:
        family, kind, _, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as towards:
            towards.connect(target)  # sends nothing
            own = towards.getsockname()[0]
    except (OSError, ValueError):
        return
    if own.startswith("127.") or own == "::1":
        return

    def make() -> Any:
        collectives = _jax.make_gloo_tcp_collectives(
            distributed_client=distributed.global_state.client, hostname=own
        )
        return xla_bridge.make_cpu_client(collectives)

    xla_bridge.register_backend_factory("cpu", make, priority=0, fail_quietly=False)


def _alone() -> UserError:
    return UserError(
        "--multihost found one process only; start the same command on every host, or leave "
        "--multihost out"
    )


def _not_found(launch: Launch) -> str:
    state = distributed.global_state
    address, seconds = state.coordinator_address, launch.start_timeout
    if state.process_id == 0:
        return (
            f"not all {state.num_processes} processes came to {address} within {seconds} s; start "
            "the same command on the others too, and open that port to them"
        )
    return (
        f"process {state.process_id} could not join the coordinator at {address} within "
        f"{seconds} s; see that process 0 runs there and that the port is open"
    )


def _lost() -> str:
    state = distributed.global_state
    shown = ", ".join(f"{i} {host}" for i, host in enumerate(_hosts[:16]))
    more = ", …" if len(_hosts) > 16 else ""
    return (
        f"process {state.process_id} stops: another process of the run died or cannot be reached "
        f"(the lines above may have its number; they are {shown}{more}); "
        "run the same command again on all to go on from the last checkpoint"
    )


def _last_words(line: str) -> None:
    os.write(_stderr, f"albert-jax: {' '.join(line.splitlines())}\n".encode())


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    line, status = _on_abort()
    if line:
        _last_words(line)
    os._exit(status)


def _on_sigabrt(handler: Any) -> None:
    """Sets C's handler of SIGABRT; None: the default.

    JAX's C++ aborts the process, with a stack of its own, when it hears that another process is
    gone. A handler of Python's would never run: abort() does not return to the interpreter.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), handler)  # None is NULL, which is SIG_DFL


@contextlib.contextmanager
def _held_back() -> Iterator[list[str]]:
    """Keeps what is written to stderr, C++'s too; the list gets it at the end."""
    global _stderr
    said: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        _stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(_stderr, 2)
            os.close(_stderr)
            _stderr = 2
            file.seek(0)
            said += [text] if (text := file.read().decode(errors="replace")) else []


def _leave(error: BaseException, launch: Launch) -> None:
    """Returns where all processes leave; else says why and exits."""
    global _on_abort
    status, seconds = getattr(error, "exit_status", 1), 10
    if isinstance(error, UserError | TryAgain):
        _on_abort = lambda: ("", status)  # noqa: E731
    else:
        # Most likely a collective that another process left in the middle: JAX will say so, and
        # abort.
        seconds = launch.peer_timeout + 5
        cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        say(f"a step failed ({cause}); waiting for word of the others")
    leaving = threading.Thread(target=_part, daemon=True)
    leaving.start()
    leaving.join(seconds)
    if not leaving.is_alive():
        return
    if isinstance(error, UserError | TryAgain):
        _last_words(str(error))
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(status)


def _part() -> None:
    try:
        jax.distributed.shutdown()
    except RuntimeError:  # the others are not there to part from; JAX's abort is on its way
        time.sleep(60)


# ----------------------------------------------------------------------------------------- agreeing

_numbers = itertools.count()  # of exchanges; every process makes the same ones in the same order


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes, by process."""
    if not several():
        return [value]
    state, number = distributed.global_state, next(_numbers)
    state.client.key_value_set(_key(number, state.process_id), json.dumps(value))
    values = [
        json.loads(_wait_for(state.client, _key(number, other)))
        for other in range(state.num_processes)
    ]
    if number:  # all have begun this exchange, so none still reads the one before
        state.client.key_value_delete(_key(number - 1, state.process_id))
    return values


def _key(number: int, process: int) -> str:
    return f"albert_jax/{number}/{process}"


def _wait_for(client: Any, key: str) -> str:
    # Without end: the other may be preparing data. Should it die, JAX ends this process.
    while True:
        try:
            return client.blocking_key_value_get(key, 5000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


@contextlib.contextmanager
def together(*kinds: type[Exception]) -> Iterator[None]:
    """Makes an error of these kinds (UserError) that one process meets the error of all."""
    kinds = kinds or (UserError,)
    found: Exception | None = None
    try:
        yield
    except kinds as error:
        found = error
    told = gather(found and str(found))
    if found:
        raise found
    for process, message in enumerate(told):
        if message is not None:
            raise kinds[0](f"process {process}{_on(process)}: {message}")


def require_same(what: Mapping[str, Any]) -> None:
    """Raises UserError, in all processes, that names the first process whose values are not those
    of process 0, and which they are."""
    everywhere = gather(dict(what))
    for process, values in enumerate(everywhere):
        unlike = unlike_values(values, everywhere[0], "there", "in process 0")
        if unlike:
            more = f"; and {len(unlike) - 5} more" if len(unlike) > 5 else ""
            raise UserError(
                f"process {process}{_on(process)} is not as process 0{_on(0)}: "
                f"{'; '.join(unlike[:5])}{more}; give all the same"
            )


def barrier() -> None:
    """Returns when all processes have come here."""
    gather(None)


def _on(process: int) -> str:
    return f" on {_hosts[process]}" if process < len(_hosts) else ""


# ----------------------------------------------------------------------------------------- stopping


class StopTogether:
    """As `guards.StopSignals`, with a `due` that says the same in all processes: SIGTERM or SIGINT
    to any one stops all after the same step.

    JAX's own handler takes SIGTERM, from `joined` on, and tells the others.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._calls = 0
        self._previous: Any = None

    def due(self) -> bool:
        """Whether to stop after this step; every process must ask once a step."""
        # Not the step's number: where a signal comes before the first call, the answer is at 1.
        self._calls += 1
        if multihost_utils.reached_preemption_sync_point(self._calls):
            self.requested = "SIGTERM to one of the processes"
        return self.requested is not None

    def __enter__(self) -> StopTogether:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one kills
        os.kill(os.getpid(), signal.SIGTERM)
