# SPDX-License-Identifier: Apache-2.0
"""Fetches, converts and verifies every released archive and a dozen repositories of the hub, by
name, and prints a table: for a machine with a network, by hand or by the workflow released.yml.

`python -m benchmarks.released_models [NAME…] [--output FILE.md]`; without names all. Each model is
verified by `albert-jax verify NAME` in a process of its own, with caches of its own, which go when
it ends. HF_ENDPOINT and ALBERT_JAX_ARCHIVES lead it to other servers. Exit status 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.config.model import MODELS
from albert_jax.config.model_names import named_by, repository_of

HUB = (
    *(repository_of(name).name for name in MODELS),
    "textattack/albert-base-v2-SST-2",
    "textattack/albert-base-v2-MRPC",
    "twmkn9/albert-base-v2-squad2",
    "ahotrod/albert_xxlargev1_squad2_512",
)
NAMES = (*(f"released:{name}" for name in MODELS), *HUB)
_COLUMNS = ("model", "verdict", "recognised as", "parameters", "seconds", "what failed")


@dataclass(frozen=True)
class Row:
    """A model's line of the table."""

    model: str
    verdict: str
    recognised: str
    parameters: int | None
    seconds: float
    failed: str


def expected(model: str) -> str | None:
    """The released model that a name says it is; None for another one."""
    named = named_by(model)
    return named.released if named else None


def verify(model: str) -> Row:
    """Runs the command that a user would, from an empty cache."""
    line = [sys.executable, "-m", "albert_jax", "verify", model, "--json"]
    if name := expected(model):
        line += ["--expect", name]
    since = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="released-") as folder:
        own = {"ALBERT_JAX_CACHE": f"{folder}/albert_jax", "HF_HOME": f"{folder}/hf"}
        ended = subprocess.run(line, env=os.environ | own, capture_output=True, text=True)
    return row_of(model, ended.stdout, ended.stderr, time.monotonic() - since)


def row_of(model: str, stdout: str, stderr: str, seconds: float) -> Row:
    """A command's JSON and its last words as a line of the table."""
    if not stdout.strip():
        words = stderr.strip().splitlines() or ["no word"]
        return Row(model, "FAIL", "", None, seconds, words[-1].removeprefix("albert-jax: "))
    found: dict[str, Any] = json.loads(stdout)
    failed = [f"{c['check']}: {c['detail']}" for c in found["checks"] if c["verdict"] == "FAIL"]
    recognised = found["released"] or ""
    return Row(model, found["verdict"], recognised, found["parameters"], seconds, "; ".join(failed))


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS)]
    for row in rows:
        count = "" if row.parameters is None else f"{row.parameters:,}"
        failed = row.failed.replace("|", "/")
        lines.append([row.model, row.verdict, row.recognised, count, f"{row.seconds:.0f}", failed])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    given = parser.parse_args(arguments)
    rows = []
    for model in given.names or NAMES:
        rows.append(verify(model))
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        if given.output:  # after each: the next may be killed
            given.output.write_text(table(rows), encoding="utf-8")
    print(table(rows), end="")
    return int(any(row.verdict != "PASS" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
