# SPDX-License-Identifier: Apache-2.0
"""Plan a pretraining recipe: updates, rates, passes over a store and chip-hours.

Chip-hours are given at the chip's peak rate and by the compiler's estimate.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TypedDict

from albert_jax.cli.descriptions import Description, PretrainDescription, PretrainPlan
from albert_jax.cli.info import describe_path
from albert_jax.config.recipes import load_recipe
from albert_jax.config.run import PretrainConfig
from albert_jax.data.mixture import Mixture, StorePasses
from albert_jax.data.pretraining import open_data
from albert_jax.models import flops
from albert_jax.perf.tpu import estimate_table
from albert_jax.perf.tpu.topology import CHIPS, parse_slice
from albert_jax.training.optimizer import peak_learning_rate, warmup_steps
from albert_jax.utils.errors import UserError

# The devices whose chip-hours are shown; one of these devices is one chip.
PLANNED_FOR = ("TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "A100", "H100")
FEW_TOKENS = 16 * 512  # at a time keep a chip busy, docs/estimates.md


def info(path: str | Path, *, store: str | None = None) -> Description:
    """Describe a model, a work directory, a token store, a configuration file or a recipe.

    Args:
        path: a directory, a file, a model's name, or a recipe as FILE.py:key=value,….
        store: for a pretraining recipe, the token store whose passes are counted.

    Returns:
        What `albert-jax info` prints, with a field for each figure.

    Raises:
        UserError: if the path is damaged or is nothing of these, or `store` is given beside
            anything but a pretraining recipe.

    Examples:
        >>> import albert_jax
        >>> albert_jax.info("mini").parameters
        3071042
    """
    return with_plan(describe_path(path), store)


def with_plan(description: Description, store: str | None = None) -> Description:
    """Return a description of `info.describe_path`; one of a pretraining recipe gets its plan.

    `store`, or else the recipe's own, gives the passes. Raises UserError if a store is given beside
    anything but a pretraining recipe.
    """
    if isinstance(description, PretrainDescription):
        config = load_recipe(description.path)
        plan = _plan(config, store or config.store, description.path)
        return dataclasses.replace(description, plan=plan)
    if store is not None:
        raise UserError(f"{description.path} is no recipe for pretraining; leave out --store")
    return description


def _plan(config: PretrainConfig, store: str | None, spec: str) -> PretrainPlan:
    train, stages = config.train, config.stages
    sequences, total = stages.sequences(train.steps), flops.run_flops(config)
    passes = _passes(config, store, sequences) if store is not None else {}
    estimated = None  # the table's steps are of one depth and length
    if len(stages) == 1 and len({*stages[0].depths}) == 1:
        estimated = estimate_table.chip_hours(config.as_one_stage(stages[0]), sequences)
    return PretrainPlan(
        steps=train.steps,
        sequences_a_step=stages.most_rows,
        micro_batches=train.accumulate,
        sequences=sequences,
        tokens_with_padding=stages.tokens(train.steps),
        peak_learning_rate=peak_learning_rate(config.optimizer, stages.most_rows),
        warmup_steps=warmup_steps(config.optimizer, train.steps),
        **passes,
        # A bound at the peak rate of every chip; the compiler estimates the time on a slice.
        chip_hours_at_peak={k: total / flops.PEAK_FLOPS[k] / 3600 for k in PLANNED_FOR},
        chip_hours_by_the_compilers_estimate=estimated or None,
        to_compile_this_step=(
            f"albert-jax estimate --model {spec} --topology {_slice_for(config, spec)}"
        ),
    )


class _Passes(TypedDict, total=False):
    store: str
    sequences_a_pass: int
    passes: float
    stores: dict[str, StorePasses] | None


def _passes(config: PretrainConfig, store: str, sequences: int) -> _Passes:
    """Return the plan's fields about the store; its `passes` go by tokens, as lengths vary."""
    source = open_data(dataclasses.replace(config, store=store), None).train
    tokens_a_pass = len(source) * config.examples.max_seq_length
    return {
        "store": store,
        "sequences_a_pass": len(source),
        "passes": config.stages.tokens(config.train.steps) / tokens_a_pass,
        "stores": source.passes(sequences) if isinstance(source, Mixture) else None,
    }


def _slice_for(config: PretrainConfig, spec: str) -> str:
    """Return the v5e slice to plan for.

    It has as many chips as a recipe's `chips=` says. Without that, it is the smallest slice whose
    chips have at most `FEW_TOKENS` tokens each, or the largest slice. There are fewer chips if the
    batch does not divide over so many.
    """
    told = re.search(r"\bchips=(\d+)", spec)
    last, accumulate = config.stages[-1], config.train.accumulate
    tokens = last.batch_size // accumulate * last.examples.max_seq_length
    wanted = int(told[1]) if told else math.ceil(tokens / FEW_TOKENS)
    slices = [parse_slice(f"v5e:{shape}") for shape in CHIPS["v5e"].shapes]
    slices = [s for s in slices if last.batch_size % (s.chips * accumulate) == 0]
    return next((s.name for s in slices if s.chips >= wanted), slices[-1].name)
