# SPDX-License-Identifier: Apache-2.0
"""What a program answers that is run for a measurement, in a process and a time of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


def answer_of(
    command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a command and return {"answer"}: the last line of its stdout where that is JSON, else the
    last twenty of what it printed. {"error"}, in a line, where it failed or took longer. "status"
    is there too where it ended."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env=env,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {seconds:.0f} s"}
    stdout, stderr = (said.strip().splitlines() for said in (done.stdout, done.stderr))
    if done.returncode:
        error = (stderr or stdout or ["no message"])[-1][:500]
        return {"status": done.returncode, "error": error}
    lines = stdout or stderr or [""]
    try:
        answer = json.loads(lines[-1])
    except ValueError:
        answer = lines[-20:]
    return {"status": 0, "answer": answer}
