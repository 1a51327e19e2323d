# SPDX-License-Identifier: Apache-2.0
"""What a program answers that is run for a measurement, in a process and a time of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

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
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=own_session,
    ) as started:
        try:
            streams, is_late = started.communicate(timeout=seconds), False
        except subprocess.TimeoutExpired:
            started.kill()
            if own_session:
                os.killpg(started.pid, signal.SIGKILL)
            streams, is_late = started.communicate(), True
    stdout, stderr = (said.strip().splitlines() for said in streams)
    printed = {"printed": [*stdout[-LINES:], *stderr[-LINES:]]}
    if is_late:
        return {"error": f"no answer within {seconds:.0f} s"} | printed
    if started.returncode:
        error = (stderr or stdout or ["no message"])[-1][:500]
        return {"status": started.returncode, "error": error} | printed
    lines = stdout or stderr or [""]
    try:
        answer = json.loads(lines[-1])
    except ValueError:
        answer = lines[-LINES:]
    return {"status": 0, "answer": answer}
