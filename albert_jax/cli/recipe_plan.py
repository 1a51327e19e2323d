# SPDX-License-Identifier: Apache-2.0
"""What a pretraining recipe comes to: updates, rates, passes over a store, chip-hours at best and
by the compiler's estimate."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.cli.info import describe_path
from albert_jax.config.recipes import load_recipe
from albert_jax.config.run import PretrainConfig
from albert_jax.data.mixture import Mixture
from albert_jax.data.pretraining import open_data
from albert_jax.models import flops
from albert_jax.perf.tpu import estimate_table
from albert_jax.perf.tpu.topology import CHIPS, parse_slice
from albert_jax.training.optimizer import peak_learning_rate, warmup_steps
from albert_jax.utils.errors import UserError
from albert_jax.utils.results import Result

# Whose chip-hours are told; of these a device is a chip.
PLANNED_FOR = ("TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "A100", "H100")
FEW_TOKENS = 16 * 512  # at a time keep a chip busy, docs/tpu.md


@dataclass(frozen=True, kw_only=True, eq=False)
class Description(Result):
    """What `info` tells of a path: its kind and, of each kind, other facts.

    `kind` is model, configuration, token store or recipe. In JSON the three are one object.
    """

    kind: str
    path: str
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, **self.facts}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Description:
        facts = {key: x for key, x in document.items() if key not in ("kind", "path")}
        return cls(kind=document["kind"], path=document["path"], facts=facts)


def info(path: str | Path, *, store: str | None = None) -> Description:
    """Describe a model, work directory, token store, configuration file or recipe, as the command.

    Args:
        path: a directory or file, or for a recipe FILE.py:key=value,….
        store: of a recipe for pretraining, the token store whose passes are counted.

    Raises:
        UserError: for what is damaged, for anything else, and for a `store` beside anything else.
    """
    return Description.from_json(with_plan(describe_path(path), store))


def with_plan(description: dict[str, Any], store: str | None = None) -> dict[str, Any]:
    """A description by `info.describe`, with "plan" where it is of a recipe for pretraining.

    `store`, else the recipe's own, gives the passes. Raises UserError for a store beside anything
    else.
    """
    config = load_recipe(description["path"]) if description["kind"] == "recipe" else None
    if isinstance(config, PretrainConfig):
        settings = description["settings"]
        rest = {key: value for key, value in description.items() if key != "settings"}
        return rest | {
            "plan": _plan(config, store or config.store, description["path"]),
            "settings": settings,
        }
    if store is not None:
        raise UserError(f"{description['path']} is no recipe for pretraining; leave out --store")
    return description


def _plan(config: PretrainConfig, store: str | None, spec: str) -> dict[str, Any]:
    train, stages = config.train, config.stages
    sequences, total = stages.sequences(train.steps), flops.run_flops(config)
    plan: dict[str, Any] = {
        "steps": train.steps,
        "sequences_a_step": train.batch_size,
        "micro_batches": train.accumulate,
        "sequences": sequences,
        "tokens_with_padding": stages.tokens(train.steps),
        "peak_learning_rate": peak_learning_rate(config.optimizer, train.batch_size),
        "warmup_steps": warmup_steps(config.optimizer, train.steps),
    }
    if store is not None:
        source = open_data(dataclasses.replace(config, store=store), None).train
        size = len(source)
        passes = stages.tokens(train.steps) / (size * config.examples.max_seq_length)
        plan |= {"store": store, "sequences_a_pass": size, "passes": passes}
        if isinstance(source, Mixture):
            plan["stores"] = source.passes(sequences)
    # A bound, at every chip's full rate; what a slice takes is the compiler's to say.
    hours = {kind: total / flops.PEAK_FLOPS[kind] / 3600 for kind in PLANNED_FOR}
    plan |= {"chip_hours_at_peak": hours}
    # The table's steps are of one depth and length.
    if len(stages) == 1 and (estimated := estimate_table.chip_hours(config, sequences)):
        told = {chip: hours.to_json() for chip, hours in estimated.items()}
        plan["chip_hours_by_the_compilers_estimate"] = told
    asked = f"albert-jax estimate --model {spec} --topology {_slice_for(config, spec)}"
    return plan | {"to_compile_this_step": asked}


def _slice_for(config: PretrainConfig, spec: str) -> str:
    """The v5e slice of as many chips as a recipe's `chips=` says, else the smallest on which a chip
    has `FEW_TOKENS` at a time, or the largest."""
    told = re.search(r"\bchips=(\d+)", spec)
    tokens = config.train.batch_size // config.train.accumulate * config.examples.max_seq_length
    wanted = int(told[1]) if told else math.ceil(tokens / FEW_TOKENS)
    slices = [parse_slice(f"v5e:{shape}") for shape in CHIPS["v5e"].shapes]
    return next((s.name for s in slices if s.chips >= wanted), slices[-1].name)
