# SPDX-License-Identifier: Apache-2.0
"""Run the command line, `albert-jax <command> …`.

The exit status is 0; 2 with one line on stderr for a user's mistake; 75 for "run me again"; 1 with
a traceback for a bug.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from albert_jax import __version__
from albert_jax.cli.commands import COMMANDS
from albert_jax.cli.parse import parse
from albert_jax.perf.tpu.libtpu import quiet_without_chips
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.streams import mended_standard_streams, say, without_orbax_stacks
from albert_jax.utils.wording import did_you_mean, flag_names

PROGRAM = "albert-jax"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    with flag_names(), mended_standard_streams(), without_orbax_stacks():
        return _status_of(list(sys.argv[1:] if argv is None else argv))


def _status_of(arguments: list[str]) -> int:
    try:
        _run(arguments)
        print(end="", flush=True)  # a closed pipe shows here, not when the interpreter ends
    except (UserError, TryAgain) as error:
        return _fail(str(error), error.exit_status)
    except BrokenPipeError:
        return 141  # as a shell reports SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", UserError.exit_status)
    except KeyboardInterrupt:
        return 130
    return 0


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = arguments
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
        return
    if name not in COMMANDS:
        nearest = did_you_mean(name, COMMANDS, quote="")
        raise UserError(f"unknown command {name!r}{nearest}; see {PROGRAM} --help")
    quiet_without_chips()
    parse(COMMANDS[name], rest, f"{PROGRAM} {name}").run()


def _overview() -> str:
    lines = [f"usage: {PROGRAM} <command> … (see {PROGRAM} <command> --help)", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<16} {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


def _fail(message: str, exit_status: int) -> int:
    say(f"{PROGRAM}: {' '.join(message.splitlines())}")
    return exit_status
