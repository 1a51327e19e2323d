# SPDX-License-Identifier: Apache-2.0
"""What the campaigns have in common: a command line, a result, processes that are killed."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from albert_jax.utils.provenance import commit


@dataclass
class Result:
    """What a campaign found; `lost` has a line for each try that went wrong."""

    campaign: str
    tries: int = 0
    lost: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0

    def count(self, name: str, by: int = 1) -> None:
        """Adds to one of the figures."""
        self.figures[name] = self.figures.get(name, 0) + by


Campaign = Callable[..., Result]


def run_from_command_line(campaign: Campaign, *, tries: int, **options: Any) -> None:
    """Runs a campaign with --tries, --seed and its own options; exit status 1 where it lost."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--tries", type=int, default=tries)
    parser.add_argument("--seed", type=int, default=0)
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = vars(parser.parse_args())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        result = campaign(Path(folder), **given)
    result.seed, result.seconds = given["seed"], round(time.monotonic() - began, 1)
    print(json.dumps(asdict(result) | {"lost": result.lost[:20], "commit": commit()}))
    sys.exit(1 if result.lost else 0)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------- killed processes


def fork(work: Callable[[], Any], log: Path) -> int:
    """Starts `work` in a fork of this process, which must not have used JAX; what it prints goes to
    `log`. Its exit status is 0, 75 for TryAgain, 2 for UserError, 1 for any other error."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("ab") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        work()
        status = 0
    except Exception as error:
        status = getattr(error, "exit_status", 1)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(child: int) -> int | None:
    """Its exit status, negative for a signal; None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(child: int, seconds: float = 600.0) -> int:
    """Its exit status; TimeoutError, and it is killed, where it does not end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (status := ended(child)) is not None:
            return status
        time.sleep(0.005)
    kill(child)
    raise TimeoutError(f"process {child} did not end in {seconds:.0f} s")


def kill(child: int) -> bool:
    """Kills it with SIGKILL; False where it had ended."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    return False


@contextlib.contextmanager
def tail_of(log: Path) -> Iterator[None]:
    """While entered, an error gets the end of a log as a note."""
    try:
        yield
    except Exception as error:
        if log.exists():
            error.add_note(log.read_text(errors="replace")[-2000:])
        raise
