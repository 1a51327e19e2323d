# SPDX-License-Identifier: Apache-2.0
"""Parse a command line into a command with tyro; tyro's complaints become one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from albert_jax.cli.commands import Command, Finetune, Pretrain
from albert_jax.config.recipes import recipe_with
from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import did_you_mean

C = TypeVar("C", bound=Command)

# Commands that take a recipe first, and the configuration that it must return.
RECIPES: dict[type[Command], type] = {Pretrain: PretrainConfig, Finetune: FinetuneConfig}

_HELP = ("-h", "--help")

# Words of tyro and Python, and the project's.
_SAID = (
    (r"^Error parsing ", ""),
    (r"no type matching \{None\}\|.* - <class '\w+'>: (.*)", r"\1"),  # a flag that may be unset
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number"),
    (r"could not convert string to float: (.*)", r"\1 is no number"),
)


def parse(command: type[C], arguments: list[str], program: str) -> C:
    """Return a command with the values of its arguments.

    `program` is what the user typed before them. Raises UserError for arguments that do not parse,
    and SystemExit after --help.
    """
    if command not in RECIPES:
        return _parse(command, arguments, program)
    kind = RECIPES[command]
    config = kind()
    if arguments and not arguments[0].startswith("-"):
        flags = dict(_recipe_flags(arguments)) if command is Finetune else {}
        config = recipe_with(arguments[0], flags)
        arguments = arguments[1:]
    if not isinstance(config, kind):
        raise UserError(
            f"the recipe makes a {type(config).__name__}, but {program} needs a {kind.__name__}; "
            "see configs/"
        )
    default = command(config=config)  # type: ignore[call-arg]
    return _parse(command, arguments, f"{program} RECIPE", default)


def _parse(
    command: type[C], arguments: list[str], program: str, default: Any = tyro.MISSING_NONPROP
) -> C:
    page = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # as a file's: boxes, but no colours
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stderr(page))
            if not set(_HELP) & set(arguments):
                # tyro looks at stdout for how to draw, wherever it prints.
                stack.enter_context(contextlib.redirect_stdout(page))
            return tyro.cli(command, args=arguments, prog=program, default=default)
    except SystemExit as exit:
        page.seek(0)
        text = page.read()
        if not exit.code:
            print(text, end="")  # a shell's completions; help is on stdout already
            raise
    known = [*_HELP, *flags_of(command)]
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            nearest = did_you_mean(flag, known, quote="")
            raise UserError(f"unknown flag {flag}{nearest}; see {program} --help")
    raise UserError(f"{_without_box(text)}; see {program} --help")


def _recipe_flags(arguments: list[str]) -> Iterator[tuple[str, object]]:
    """Yield the values of --model and --task by name: recipes choose settings that fit them."""
    for flag, following in itertools.zip_longest(arguments, arguments[1:]):
        name, equals, value = flag.partition("=")
        if name in ("--model", "--task") and (equals or following is not None):
            yield name.removeprefix("--"), value if equals else following


def flags_of(kind: type, prefix: str = "--") -> Iterator[str]:
    """Yield the flags that tyro makes of a command's fields.

    The fields of a configuration get its name as a prefix, as in --train.steps.
    """
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, *markers = _parts_of(hints[field.name])
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            own = issubclass(kind, Command)  # its configuration's flags have no prefix
            yield from flags_of(hint, prefix if own else f"{prefix}{name}.")
        elif tyro.conf.Positional not in markers:
            yield f"{prefix}{name}"
            if hint is bool and tyro.conf.FlagCreatePairsOff not in markers:
                yield f"{prefix}no-{name}"


def _parts_of(hint: Any) -> tuple[Any, ...]:
    """Return an annotation without `Annotated`, and what `Annotated` adds to it."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _without_box(text: str) -> str:
    """Return the text of a box above its first ruler, without the help of flags, in one line."""
    lines = [line for line in text.splitlines()[1:] if not line.startswith("│" + " " * 9)]
    lines = [line.strip("│ ") for line in lines]
    ruler = next((i for i, line in enumerate(lines) if line.startswith(("─", "╰"))), len(lines))
    said = " ".join(filter(None, lines[:ruler])).rstrip(".")
    for pattern, told in _SAID:
        said = re.sub(pattern, told, said)
    return said
