# SPDX-License-Identifier: Apache-2.0
"""Run `prepare`'s units in several processes.

They end when the parent dies, and the parent reports when one of them dies.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from albert_jax.data.prepare.units import Job, Unit, prepare_unit
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.wording import Naming, current_naming, name_as


def run_units(units: Sequence[Unit], job: Job, workers: int, tick: Callable[[int], None]) -> None:
    """Prepare every unit, in this process if `workers` is 1; `tick` is called with bytes read.

    Raises the exception of the first unit that fails, or TryAgain if a process died; the others are
    then killed.
    """
    if not units:
        return
    if min(workers, len(units)) == 1:
        tokenizer = job.load_tokenizer()
        for unit in units:
            prepare_unit(unit, job, tokenizer, tick)
        return
    context = multiprocessing.get_context("spawn")  # fork copies threads' locks, held or not
    waiting = deque(units)
    crew: dict[Connection, Any] = {}
    try:
        for _ in range(min(workers, len(units))):
            ours, theirs = context.Pipe()
            arguments = (theirs, job, current_naming())
            process = context.Process(target=_work, args=arguments, daemon=True)
            crew[ours] = process  # before it starts: a signal may end this at any moment
            process.start()
            theirs.close()  # so that `ours` reads end-of-file when the process dies
        for connection in crew:
            _send(connection, crew, waiting.popleft())
        busy = set(crew)
        while busy:
            for connection in busy.intersection(multiprocessing.connection.wait(busy)):
                kind, value = _receive(connection, crew)
                if kind == "tick":
                    tick(value)
                elif kind == "error":
                    raise value
                elif waiting:
                    _send(connection, crew, waiting.popleft())
                else:
                    busy.discard(connection)
    finally:
        for connection, process in crew.items():
            connection.close()
            if process.pid is not None:
                process.kill()
                process.join()


def _send(connection: Connection, crew: dict[Connection, Any], unit: Unit) -> None:
    try:
        connection.send(unit)
    except OSError:
        raise _death(crew[connection]) from None


def _receive(connection: Connection, crew: dict[Connection, Any]) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, OSError):
        raise _death(crew[connection]) from None


def _death(process: Any) -> TryAgain:
    process.join(10)
    code = process.exitcode
    cause = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
    if code == -signal.SIGKILL:
        cause += ", perhaps for want of memory"
    return TryAgain(
        f"a worker process of prepare died ({cause}); run the same command again, with fewer "
        "workers if memory was short: what is finished is kept"
    )


def _work(connection: Connection, job: Job, naming: Naming) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C, for all
    try:
        name_as(naming)
        tokenizer = job.load_tokenizer()
        while True:
            unit = connection.recv()
            prepare_unit(unit, job, tokenizer, lambda size: connection.send(("tick", size)))
            connection.send(("done", unit.index))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone, and the message pipe with it
    except Exception as error:
        if not isinstance(error, UserError | OSError):
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        connection.send(("error", error))
