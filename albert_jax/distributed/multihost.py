# SPDX-License-Identifier: Apache-2.0
"""Run several processes as one run, one on each host: join, agree, and end together.

JAX (`jax.distributed`) provides the processes, the signs of life between them and the notice of a
preemption. This module reports them to people, and exchanges small values through the coordinator's
key-value store, which needs no devices. `rendezvous` is how the processes find each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
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
from typing import Any, NamedTuple

import jax
import jaxlib
from jax.experimental import multihost_utils

from albert_jax import __version__
from albert_jax.distributed.jax_private import coordination, detect_cluster, reach_cpus_at
from albert_jax.distributed.rendezvous import Peer, host_and_port, meet
from albert_jax.utils import interrupts
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.json_values import unlike_values
from albert_jax.utils.streams import say
from albert_jax.utils.wording import first_line, setting

JOIN_SECONDS = 60  # for JAX to join processes that have all come
POLL = 1.0  # seconds between two checks whether a process that is waited for has ended
SILENCE = 60.0  # seconds of waiting for another process before a line says which
LIMIT = 3600.0  # seconds of waiting before a process counts as stuck
ORDERLY = 10.0  # seconds for a signal to end all after the same step
SAME_SIGNAL = 1.0  # seconds in which a second signal counts as the first one


@dataclass(frozen=True)
class Launch:
    """Set how a process finds the other processes of a run.

    Cloud TPU, GKE, SLURM, Open MPI and Kubernetes provide `coordinator`, `processes` and `process`.
    Elsewhere all three are needed.

    Attributes:
        coordinator: HOST:PORT of process 0.
        processes: the number of processes, at least 2.
        process: the number of this process, from 0.
        start_timeout: seconds in which all processes must start.
        peer_timeout: seconds without a sign of life after which a process counts as dead.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    start_timeout: int = 120
    peer_timeout: int = 30

    def __post_init__(self) -> None:
        if self.coordinator is not None:
            _check_address(self.coordinator)
        if self.processes == 1:
            raise _alone()
        if self.processes is not None and self.processes < 1:
            raise UserError(f"{_processes()} {self.processes} must be at least 2")
        if self.process is not None and not 0 <= self.process < (self.processes or sys.maxsize):
            raise UserError(
                f"{_process()} {self.process} must be 0 to {_processes()} - 1"
                + (f", which is {self.processes - 1}" if self.processes else "")
            )
        for name in ("start_timeout", "peer_timeout"):
            if getattr(self, name) < 1:
                raise UserError(f"{setting(name)} {getattr(self, name)} must be at least 1 second")


def _processes() -> str:
    return setting("processes", flag="num-processes")


def _process() -> str:
    return setting("process", flag="process-id")


def _where() -> str:
    """Return the settings that say where the processes are."""
    return f"{setting('coordinator')} HOST:PORT, {_processes()} and {_process()}"


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        wrong = "has no port from 1 to 65535"
    elif not host or "/" in host or any(c.isspace() for c in host):
        wrong = "has no host"
    elif ":" in host and not (host.startswith("[") and host.endswith("]")):
        wrong = "has an IPv6 address without brackets"
    else:
        return
    raise UserError(
        f"{setting('coordinator')} {coordinator!r} {wrong}; give HOST:PORT of process 0, as "
        "10.0.0.1:1234 or [fd00::1]:1234"
    )


def is_primary() -> bool:
    """Return whether this is the process that prints, logs and exports for all."""
    return jax.process_index() == 0


def several() -> bool:
    """Return whether the run has more than one process; starts no devices."""
    state = coordination()
    return state.client is not None and state.num_processes > 1


# ------------------------------------------------------------------------------- coming and leaving

_hosts: list[str] = []  # by process
# What to do if JAX's C++ aborts because another process is gone: (words, status).
_on_abort: Callable[[], tuple[str, int]]
_jax_sigterm: Any = None  # JAX's own handler of SIGTERM, a function of C


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[None]:
    """Make this process one of the run's while entered; None, it is the only one.

    An error that ends one process ends all. If all have the error, they leave in order. Otherwise
    this process exits at once, with its line and status, and the others detect it within
    `peer_timeout` seconds. If a process exits without notice, the others end with one line and
    status 75; if it fails with an error, with status 2. Raises UserError if the processes do not
    match, or only one is found. If not all processes start in time, raises TryAgain if a cluster
    named them, and UserError if the user did, who may be wrong.
    """
    if launch is None:
        yield
        return
    _initialize(launch)
    try:
        with interrupts.undone_on_exit(_stopped):
            yield
    except BaseException as error:
        _leave(error, launch)
        _on_sigabrt(None)
        raise
    jax.distributed.shutdown()
    _on_sigabrt(None)


class _Place(NamedTuple):
    """Hold where a process stands among the others."""

    coordinator: str
    processes: int
    process: int
    devices: list[int] | None  # of this host, those that are its own; None: all


def _initialize(launch: Launch) -> None:
    global _on_abort, _hosts
    place = _place(launch)
    if place.processes == 1:
        raise _alone()
    by_user = None not in (launch.coordinator, launch.processes, launch.process)
    versions = {m.__name__: m.__version__ for m in (jax, jaxlib)} | {"albert_jax": __version__}
    me = Peer(place.process, place.processes, socket.gethostname(), os.getpid(), versions)
    any_address = f"[::]:{host_and_port(place.coordinator)[1]}"
    _hosts = meet(
        me,
        place.coordinator,
        bind=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", any_address),
        seconds=launch.start_timeout,
        late=UserError if by_user else TryAgain,
    )
    _on_abort = lambda: (_line(_not_joined(place)), TryAgain.exit_status)  # noqa: E731
    _on_sigabrt(_aborted)
    _join(place, launch)
    _reach_cpus_by_address()
    _on_abort = lambda: (_line(_lost()), TryAgain.exit_status)  # noqa: E731


def _place(launch: Launch) -> _Place:
    """Return what the user gives, and what the cluster knows of the rest."""
    own = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    try:
        coordinator, processes, process, devices = detect_cluster(
            launch.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
            launch.processes,
            launch.process,
            [int(n) for n in own.split(",")] if own else None,
            launch.start_timeout,
        )
    except (RuntimeError, OSError) as error:  # no answer from its metadata; no address yet
        raise TryAgain(
            f"the cluster does not report yet where the processes are ({first_line(error)}); run "
            "the same command again"
        ) from None
    except (ValueError, KeyError) as error:
        raise UserError(
            f"the cluster does not report where the processes are ({first_line(error)}); give "
            f"{_where()}"
        ) from None
    if coordinator is None or processes is None or process is None:
        raise UserError(
            f"no cluster that JAX knows (Cloud TPU, GKE, SLURM, Open MPI) is here; give {_where()}"
        )
    if not 0 <= process < processes:
        raise UserError(
            f"{_process()} {process} must be 0 to {_processes()} - 1, which is {processes - 1}"
        )
    _check_address(coordinator)
    return _Place(coordinator, processes, process, devices and list(devices))


def _join(place: _Place, launch: Launch) -> None:
    """Let JAX join the processes, which have all arrived."""
    with _held_back() as said:
        try:
            jax.distributed.initialize(
                place.coordinator,
                place.processes,
                place.process,
                local_device_ids=place.devices,
                cluster_detection_method="deactivate",
                initialization_timeout=JOIN_SECONDS,
                heartbeat_timeout_seconds=launch.peer_timeout,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise TryAgain(f"{_not_joined(place)} ({first_line(error)})") from None
        finally:
            _take_sigterm()
    if said:
        say(said[0].removesuffix("\n"))


def _take_sigterm() -> None:
    """Give SIGTERM back to the handler before JAX's, and keep JAX's for `StopTogether`.

    JAX's would only note the signal, for a loop that does not run yet.
    """
    global _jax_sigterm
    if threading.current_thread() is not threading.main_thread():
        return  # if this Python has no signals, JAX keeps it
    old = ctypes.create_string_buffer(1024)  # struct sigaction, which begins with the handler
    ctypes.CDLL(None).sigaction(int(signal.SIGTERM), None, old)
    _jax_sigterm = ctypes.CFUNCTYPE(None, ctypes.c_int)(ctypes.c_void_p.from_buffer(old).value or 0)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def _reach_cpus_by_address() -> None:
    """Bind this host's CPU devices to the interface that reaches the coordinator.

    JAX uses the address that the host name resolves to, which many /etc/hosts set to 127.0.0.1 or
    127.0.1.1. Other hosts would then look for these devices on themselves. TPUs and GPUs find each
    other without this.
    """
    if jax.config.jax_cpu_collectives_implementation != "gloo":
        return
    try:
        family, kind, _, _, target = socket.getaddrinfo(
            *host_and_port(coordination().coordinator_address or ""),
            type=socket.SOCK_DGRAM,
        )[0]
        with socket.socket(family, kind) as towards:
            towards.connect(target)  # sends nothing
            own = towards.getsockname()[0]
    except (OSError, ValueError):
        return
    if not own.startswith("127.") and own != "::1":
        reach_cpus_at(own)


def _alone() -> UserError:
    launch = setting("launch", flag="multihost")
    return UserError(
        f"{launch} found one process only; start the same command on every host, or leave "
        f"{launch} out"
    )


def _not_joined(place: _Place) -> str:
    return (
        f"process {place.process} came to {place.coordinator} with all others, and JAX did not "
        f"join them within {JOIN_SECONDS} s; run the same command again"
    )


def _lost() -> str:
    state = coordination()
    shown = ", ".join(f"{i} {host}" for i, host in enumerate(_hosts[:16]))
    more = ", …" if len(_hosts) > 16 else ""
    return (
        f"process {state.process_id} stops: another process of the run died or cannot be reached "
        f"(the lines above may have its number; they are {shown}{more}); "
        "run the same command again on all to continue from the last checkpoint"
    )


def _exit_at_abort(number: int) -> None:
    _exit(*_on_abort())


_aborted = ctypes.CFUNCTYPE(None, ctypes.c_int)(_exit_at_abort)


def _on_sigabrt(handler: Any) -> None:
    """Set C's handler of SIGABRT; None is the default.

    JAX's C++ code aborts the process, with its own stack trace, when it learns that another process
    is gone. A handler of Python's would never run, because abort() does not return to the
    interpreter.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), handler)  # None is NULL, which is SIG_DFL


_covered: int | None = None  # a copy of stderr, while output to it is held back


@contextlib.contextmanager
def _held_back() -> Iterator[list[str]]:
    """Keep what is written to stderr, C++'s too; the list gets it at the end.

    The last words of a process that ends meanwhile are not kept.
    """
    global _covered
    said: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, interrupts.undone_on_exit(_uncover):
        _covered = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            _uncover()
            os.close(_covered)
            _covered = None
            file.seek(0)
            said += [text] if (text := file.read().decode(errors="replace")) else []


def _uncover() -> None:
    if _covered is not None:
        os.dup2(_covered, 2)


def _leave(error: BaseException, launch: Launch) -> None:
    """Return if all processes leave; otherwise print why and exit."""
    global _on_abort
    status, seconds = getattr(error, "exit_status", 1), 10
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Most likely another process left during a collective. JAX will report it, and abort.
        seconds = launch.peer_timeout + 5
        cause = f"{type(error).__name__}: {first_line(error)[:200]}"
        say(f"a step failed ({cause}); waiting for the other processes")
    else:
        _on_abort = lambda: (_words(error), status)  # noqa: E731
        if isinstance(error, _PeerStopped | _PeerFailed):
            seconds = 3
            if error.gone:  # there is nobody to leave with
                _exit(_words(error), status)
        else:
            _tell_end(f"ended: {first_line(error)[:300]}", status=status)
    leaving = threading.Thread(target=_part, daemon=True)
    leaving.start()
    leaving.join(seconds)
    if leaving.is_alive():
        _exit(_words(error), status)


def _words(error: BaseException) -> str:
    """Return the line that a process prints for the error that ends it."""
    if isinstance(error, UserError | TryAgain):
        return _line(str(error))
    return "".join(traceback.format_exception(error))


def _line(text: str) -> str:
    return f"albert-jax: {' '.join(text.splitlines())}\n"


def _exit(words: str, status: int) -> None:
    """End the process immediately, wherever its other threads are."""
    _uncover()
    with contextlib.suppress(OSError):
        os.write(2, words.encode())
    os._exit(status)


def _part() -> None:
    try:
        jax.distributed.shutdown()
    except RuntimeError:  # the others are not there to part from; JAX's abort is on its way
        time.sleep(60)


def _tell_end(how: str, *, gone: bool = False, status: int = TryAgain.exit_status) -> None:
    """Tell the processes that wait for this one that it ends, how, and with which exit status.

    `gone` means that it leaves without them. JAX would tell them later, with a stack trace.
    """
    state = coordination()
    note = (f"{_ENDED}{state.process_id}", json.dumps([how, gone, status]))
    telling = threading.Thread(target=state.client.key_value_set, args=note, daemon=True)
    telling.start()
    telling.join(2 * POLL)  # no longer: the coordinator may be gone


def _stopped() -> None:
    """Do what a signal that ends this process requires first."""
    _tell_end("was stopped by a signal", gone=True)
    if coordination().service is not None:  # what was told ends with the coordinator
        time.sleep(1.5 * POLL)


# ----------------------------------------------------------------------------------------- agreeing

_ENDED = "albert_jax/ended/"


class _PeerStopped(TryAgain):
    """Report that a process that is waited for has ended, and may be started again.

    It is `gone`, or about to leave with the others.
    """

    gone = False


class _PeerFailed(UserError):
    """Report that a process that is waited for has failed, as it would again.

    A launcher that started the others again would wait for it for ever.
    """

    gone = False


def _peer_ended(
    process: int, how: str, gone: bool, status: int = TryAgain.exit_status
) -> _PeerStopped | _PeerFailed:
    """Return the error that a process's note calls for."""
    who = f"process {process}{_on(process)} {how}"
    error: _PeerStopped | _PeerFailed
    if status == TryAgain.exit_status:
        error = _PeerStopped(f"{who}; run the same command again on all")
    else:
        error = _PeerFailed(f"{who}; mend that, and run the same command again on all")
    error.gone = gone
    return error


_numbers = itertools.count()  # of exchanges; every process makes the same ones in the same order


def gather(value: Any, *, limit: float = LIMIT) -> list[Any]:
    """Return the JSON values of all processes, by process.

    Waiting for others is reported. Raises TryAgain after `limit` seconds of waiting: the others are
    then alive, because JAX would have ended this process, but make no progress.
    """
    if not several():
        return [value]
    state, number = coordination(), next(_numbers)
    state.client.key_value_set(_key(number, state.process_id), json.dumps(value))
    waiting = _Waiting(number, limit)
    values = [
        json.loads(_wait_for(_key(number, other), waiting)) for other in range(state.num_processes)
    ]
    if number:  # all have begun this exchange, so none still reads the one before
        state.client.key_value_delete(_key(number - 1, state.process_id))
    return values


def _key(number: int, process: int | str) -> str:
    return f"albert_jax/{number}/{process}"


def _wait_for(key: str, waiting: _Waiting) -> str:
    while True:
        try:
            return coordination().client.blocking_key_value_get(key, int(1000 * POLL))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        waiting.goes_on()


class _Waiting:
    """Measure how long an exchange has waited for the others."""

    def __init__(self, number: int, limit: float) -> None:
        self._number, self._limit = number, limit
        self._began = time.monotonic()
        self._next = SILENCE

    def goes_on(self) -> None:
        """Report the waiting when it is time to.

        Raises TryAgain if it is too long, or in vain, and UserError if a process failed.
        """
        for key, note in coordination().client.key_value_dir_get(_ENDED):
            raise _peer_ended(int(key.rpartition("/")[2]), *json.loads(note))
        waited = time.monotonic() - self._began
        if waited < min(self._next, self._limit):
            return
        here = self._here()
        absent = [n for n in range(coordination().num_processes) if n not in here]
        whom = ", ".join(f"{n}{_on(n)}" for n in absent[:10])
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        if waited >= self._limit:
            raise TryAgain(
                f"waited {waited / 60:.0f} minutes for process {whom}{more}, which is alive but "
                "stuck; see its log and its file systems, and run the same command again on all"
            )
        self._next = 2 * waited
        if coordination().process_id == min(here):  # one speaks for all that wait
            say(f"waiting for process {whom}{more} ({waited:.0f} s so far)")

    def _here(self) -> list[int]:
        prefix = _key(self._number, "")
        entries = coordination().client.key_value_dir_get(prefix)
        own = coordination().process_id
        return [own, *(int(key.rpartition("/")[2]) for key, _ in entries)]


@contextlib.contextmanager
def together(*kinds: type[Exception], limit: float = LIMIT) -> Iterator[None]:
    """Raise an error of these kinds (UserError) in all processes if one process meets it.

    `limit` is that of `gather`; math.inf is for work that may take one of them hours.
    """
    kinds = kinds or (UserError,)
    found: Exception | None = None
    try:
        yield
    except kinds as error:
        found = error
    told = gather(found and str(found), limit=limit)
    if found:
        raise found
    for process, message in enumerate(told):
        if message is not None:
            raise kinds[0](f"process {process}{_on(process)}: {message}")


def require_same(what: Mapping[str, Any]) -> None:
    """Raise UserError in all processes if one has other values than process 0.

    The error names the first such process and the values.
    """
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
    """Return when all processes have called this."""
    gather(None)


def _on(process: int) -> str:
    return f" on {_hosts[process]}" if process < len(_hosts) else ""


# ----------------------------------------------------------------------------------------- stopping


class StopTogether:
    """Stop all processes after the same step when one gets a signal, as `guards.StopSignals` does.

    A process may not reach the step in time, for example during a compilation. It then ends by
    itself if it has `nothing_to_lose`, and the others detect that as for a dead process. A second
    signal ends a process at once. In all cases the status is 75: the run can be started again.
    """

    def __init__(self, nothing_to_lose: Callable[[], bool] = lambda: False) -> None:
        self.requested: str | None = None
        self._nothing_to_lose = nothing_to_lose
        self._calls = 0
        self._told_at = math.inf
        self._entered = contextlib.ExitStack()

    def due(self) -> bool:
        """Return whether to stop after this step; every process must call it once a step."""
        # Not the step's number: if a signal comes before the first call, the answer is at 1.
        self._calls += 1
        if multihost_utils.reached_preemption_sync_point(self._calls):
            self.requested = "SIGTERM to one of the processes"
        return self.requested is not None

    def __enter__(self) -> StopTogether:
        self._entered.enter_context(interrupts.holding(self._may_leave))
        self._entered.enter_context(interrupts.handled(self._noted, again=self._noted_again))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def _noted(self, number: int) -> None:
        self._tell_all()
        name, process = signal.Signals(number).name, coordination().process_id
        interrupts.last_words(
            f"{name} to process {process}: all save a checkpoint after this step; "
            "once more to stop at once"
        )

    def _noted_again(self, number: int) -> None:
        # A scheduler may signal the process and its group, and srun forwards the signal again.
        if time.monotonic() > self._told_at + SAME_SIGNAL:
            interrupts.last_words(
                f"stopped by a second {signal.Signals(number).name}; run the same command again to "
                "go on from the last checkpoint"
            )
            os._exit(TryAgain.exit_status)

    def _may_leave(self) -> bool:
        """Return whether the process may end; a second thread calls it after a signal."""
        self._tell_all()  # the first thread cannot do it while it is in a library
        return time.monotonic() > self._told_at + ORDERLY and self._nothing_to_lose()

    def _tell_all(self) -> None:
        if self._told_at == math.inf:
            self._told_at = time.monotonic()
            _jax_sigterm(int(signal.SIGTERM))
