# SPDX-License-Identifier: Apache-2.0
"""What a program answers that is run for a measurement, in a process and a time of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

LINES = 20  # that are kept of a stream


def answer_of(
    command: Sequence[str],
    seconds: float,
    env: Mapping[str, str] | None = None,
    *,
    own_session: bool = True,
) -> dict[str, Any]:
    """Run a command and return {"answer"}: the last line of its stdout where that is JSON, else the
    last twenty of what it printed. {"error"}, in a line, where it failed or took longer, and
    {"printed"}, the last lines of both streams. "status" is there too where it ended.

    A command that takes longer is killed, in a session of its own with all that it started, which
    would hold the device. A command that is itself one of these starts others in its own session.
    """
    # Files, as what the command started may hold a pipe open after its end.
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=env,
            start_new_session=own_session,
        ) as started,
    ):
        status = None
        try:
            status = started.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:  # of an interrupt too, which another session does not get
            if status is None:
                started.kill()
                if own_session:
                    os.killpg(started.pid, signal.SIGKILL)
        stdout, stderr = (_lines(file) for file in (out, err))
    printed = {"printed": [*stdout[-LINES:], *stderr[-LINES:]]}
    if status is None:
        return {"error": f"no answer within {seconds:.0f} s"} | printed
    if status:
        error = (stderr or stdout or ["no message"])[-1][:500]
        return {"status": status, "error": error} | printed
    lines = stdout or stderr or [""]
    try:
        answer = json.loads(lines[-1])
    except ValueError:
        answer = lines[-LINES:]
    return {"status": 0, "answer": answer}


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()
