# SPDX-License-Identifier: Apache-2.0
"""Record which settings of a continued run changed, and when."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import SCHEDULES
from albert_jax.config.stages import Stages
from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.json_values import JsonObject, refuse_newer_format
from albert_jax.utils.results import Result

HISTORY: Final = "history.json"  # in a work directory
HISTORY_KEY: Final = "history"  # of a checkpoint's meta, and of a model's provenance
_FORMAT_VERSION = 1
_AGAIN = "run the command of the run again, which writes it anew"

CONTINUABLE: Final = frozenset(
    {f"train.{name}" for name in ("steps", "batch_size", "accumulate", *SCHEDULES)}
    | {
        f"optimizer.{name}"
        for name in ("learning_rate", "warmup_steps", "schedule", "decay_share", "poly_power")
    }
)
"""Settings of a run's identity that may change during the run. Any other change would make the
state of the model and of the optimizer, or the examples so far, those of another run."""

CONTINUABLE_IN_FINETUNING: Final = frozenset(
    name for name in CONTINUABLE if name.startswith("optimizer.") or name == "train.steps"
)
"""The same of fine-tuning, where a batch follows from its number and the size of all."""

Setting = str | int | float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Continuation(Result):
    """Record a change of a run's settings: after which step, before which batch, and when.

    `before` and `after` have the settings that differ, by name as `train.steps`; None is unset.
    """

    step: int
    batch: int
    date: str
    before: dict[str, Setting]
    after: dict[str, Setting]

    def in_words(self) -> str:
        """Return `train.steps 6 -> 12, …`."""
        return ", ".join(
            f"{name} {_shown(old)} -> {_shown(self.after[name])}"
            for name, old in self.before.items()
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Recorded(Result):
    history: list[Continuation]

    @classmethod
    def from_file(cls, document: Mapping[str, Any], name: str, *, hint: str) -> Self:
        found = super().from_file(document, name, hint=hint)
        for change in found.history:
            if change.before.keys() != change.after.keys():
                raise UserError(
                    f"{name} is damaged (the change after step {change.step} has other settings "
                    f"before than after); {hint}"
                )
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _HistoryFile(_Recorded):
    format_version: int


def write_history(workdir: Path, history: Sequence[Continuation]) -> None:
    """Write a work directory's history; a run that was never continued has none."""
    file = workdir / HISTORY
    if not history:
        file.unlink(missing_ok=True)
        return
    document = _HistoryFile(format_version=_FORMAT_VERSION, history=list(history))
    with appearing_file(file) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_history(workdir: Path) -> list[Continuation]:
    """Return a work directory's history, empty if it has none.

    Raises UserError if it is damaged.
    """
    file = workdir / HISTORY
    try:
        document = read_json(file, JsonObject, hint=_AGAIN)
    except FileNotFoundError:
        return []
    refuse_newer_format(document, _FORMAT_VERSION, str(file))
    return _HistoryFile.from_file(document, str(file), hint=_AGAIN).history


def recorded(history: Sequence[Continuation]) -> JsonObject:
    """Return what a document says of a history: nothing if there were no changes."""
    return {HISTORY_KEY: list(history)} if history else {}


def history_in(document: Mapping[str, Any], name: str, *, hint: str) -> list[Continuation]:
    """Return the history that `recorded` put into a document.

    Raises UserError, which names the document and `hint`, if it holds something else there.
    """
    if HISTORY_KEY not in document:
        return []
    return _Recorded.from_file(document, name, hint=hint).history


def settings_before(config: PretrainConfig, change: Continuation) -> PretrainConfig:
    """Return a run's configuration with the schedules and batches that held before a change."""
    before = {
        k.removeprefix("train."): x for k, x in change.before.items() if k.startswith("train.")
    }
    values: dict[str, Any] = {name: "" if x is None else x for name, x in before.items()}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


def stages_of_history(config: PretrainConfig, history: Sequence[Continuation]) -> Stages:
    """Return a run's stages.

    Up to each continuation they follow from the settings until then, after the last from the
    configuration.
    """
    if not history:
        return config.stages
    *earlier, last = history
    before = stages_of_history(settings_before(config, last), earlier)
    return before.continued(last.batch, config.stages)


def _shown(value: Setting) -> str:
    return "unset" if value is None else str(value)
