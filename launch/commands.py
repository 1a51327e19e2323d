# SPDX-License-Identifier: Apache-2.0
"""What a file's `run` says: which command of albert-jax, with which arguments.

The launcher starts it on one machine or on many, stops it by a signal and starts it again by its
exit status, so it must know what it starts. No shell reads `run`, and what only a shell would
understand is refused.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath


class LaunchError(Exception):
    """A mistake in what was asked: one line on stderr, exit status 2."""


# As albert_jax.cli has them; the launcher runs where the package is not installed.
COMMANDS = (
    "train-tokenizer",
    "prepare",
    "pretrain",
    "finetune",
    "evaluate",
    "predict",
    "fill-mask",
    "encode",
    "score-order",
    "info",
    "export",
    "export-serving",
    "convert",
    "push",
    "verify",
    "benchmark",
    "estimate",
)

# Programs that may stand before it. Each becomes the program that it starts, so that signals and
# the exit status are albert-jax's.
BEFORE = ("env", "nice", "ionice", "chrt", "numactl", "taskset", "stdbuf")
SHELLS = ("bash", "sh", "dash", "zsh", "ksh", "fish")


@dataclass(frozen=True)
class Command:
    """A command of albert-jax."""

    words: tuple[str, ...]  # all that is run, with what stands before it
    name: str  # pretrain
    arguments: tuple[str, ...]  # after the name

    @property
    def multihost(self) -> bool:
        """Whether it is told that it is one of several processes."""
        said = [word for word in self.arguments if word in ("--multihost", "--no-multihost")]
        return said[-1:] == ["--multihost"]

    def option(self, flag: str) -> str | None:
        """Returns the value of `--flag VALUE` or `--flag=VALUE`; None where it is not given."""
        found = None
        for word, after in zip(self.arguments, (*self.arguments[1:], None), strict=True):
            name, equals, value = word.partition("=")
            if name.replace("_", "-") == flag:
                found = value if equals else after
        return found


def parse(run: str) -> Command:
    """Returns the command in `run`. Raises LaunchError where it is none that can be started."""
    _refuse_shell(run)
    words = _split(run)
    start = _program(words)
    if not start:
        raise LaunchError(_not_a_command(words))
    known = f"known: {', '.join(COMMANDS)}"
    if len(words) == start:
        raise LaunchError(f"run {run!r} names no command of albert-jax; {known}")
    if words[start] not in COMMANDS:
        raise LaunchError(f"run has {words[start]!r}, no command of albert-jax; {known}")
    return Command(tuple(words), words[start], tuple(words[start + 1 :]))


def _split(run: str) -> list[str]:
    try:
        words = shlex.split(run)
    except ValueError as error:
        raise LaunchError(f"run {run!r} is no command: {error}") from None
    if not words:
        raise LaunchError("run is empty; give the command, as albert-jax pretrain …")
    return words


def _refuse_shell(run: str) -> None:
    """Raises LaunchError for what a shell would do something about."""
    lexer = shlex.shlex(run, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        operators = [token for token in lexer if token and set(token) <= set(";&|<>")]
    except ValueError:
        return  # no command at all, as `_split` says
    outside_single = re.sub(r"'[^']*'", "''", run)
    outside_quotes = re.sub(r'"[^"]*"', '""', outside_single)
    found = [
        *operators,
        *re.findall(r"(?<!\\)(?:\$\w+|\$[{(]|`)", outside_single),
        *re.findall(r"(?:^|[\s=])(~\S*)", outside_quotes),
        *re.findall(r"\{[^\s{}]*,[^\s{}]*\}", outside_quotes),
    ]
    if found:
        raise LaunchError(
            f"run has {found[0]!r}, which is for a shell, and no shell reads it; write names and "
            "paths out, and put other commands into setup"
        )


def _program(words: list[str]) -> int:
    """Returns where the arguments of albert-jax begin; 0 if it is not what is run."""
    names = [PurePosixPath(word).name for word in words]
    for i, name in enumerate(names):
        python = any(re.fullmatch(r"python[\d.]*", n) for n in names[:i])
        if name == "albert-jax" and not python:
            before, start = names[:i], i + 1
        elif python and words[i : i + 2] == ["-m", "albert_jax"]:
            first = next(k for k, n in enumerate(names) if re.fullmatch(r"python[\d.]*", n))
            before, start = names[:first], i + 2
        else:
            continue
        others = {*SHELLS, "srun", "mpirun", "mpiexec", "sudo", "time", "timeout", "xargs", "nohup"}
        fits = not before or (before[0] in BEFORE and not others.intersection(before))
        return start if fits else 0
    return 0


def _not_a_command(words: list[str]) -> str:
    first = words[0]
    name = PurePosixPath(first).name
    if re.match(r"[A-Za-z_]\w*=", first):
        why = f"run begins with {first!r}, which only a shell would set; write env before it"
    elif name in SHELLS:
        why = f"run begins with {first!r}, and what a shell starts cannot be seen"
    else:
        why = f"run {shlex.join(words)!r} starts something else than albert-jax"
    return (
        f"{why}; give albert-jax COMMAND … or python -m albert_jax COMMAND …, with nothing but "
        f"{', '.join(BEFORE[:-1])} or {BEFORE[-1]} before it"
    )
