# SPDX-License-Identifier: Apache-2.0
"""Starts a run on one machine, a TPU pod, a GKE or a SLURM cluster.

    python launch ACTION SETTINGS.toml [--dry-run]

README.md says how. Exit status: that of the script; 2 and one line for a mistake.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from commands import LaunchError
from platforms import ACTIONS, programs, script
from settings import read

_EXAMPLE = "example: python launch create my-run.toml --dry-run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints an action's script, or becomes the bash that runs it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python launch",
        description="Starts a run on one machine, a TPU pod, a GKE or a SLURM cluster.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("action", metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("settings", metavar="SETTINGS.toml", help="see launch/examples")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the bash script instead of running it"
    )
    given = parser.parse_args(arguments)
    try:
        if given.action not in ACTIONS:
            raise LaunchError(f"action {given.action!r} is unknown; known: {', '.join(ACTIONS)}")
        text = script(read(Path(given.settings)), given.action)
        if given.dry_run:
            print(text, end="")
            return 0
        for program in ("bash", *programs(text)):
            if shutil.which(program) is None:
                raise LaunchError(f"{program} is not installed; launch/README.md, Before you begin")
    except LaunchError as error:
        print(f"python launch: {error}", file=sys.stderr)
        return 2
    os.chdir(Path(__file__).resolve().parent.parent)  # the clone, which `install` sends
    os.execvp("bash", ["bash", "-c", text])  # noqa: S606, S607  # Ctrl-C and signals are bash's


if __name__ == "__main__":
    sys.exit(main())
