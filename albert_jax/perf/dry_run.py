# SPDX-License-Identifier: Apache-2.0
"""Describe what a pretraining run would do, without training.

The description has the plan, the examples as they are drawn, the memory of the compiled step and
the minimum time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from albert_jax.config.run import PretrainConfig
from albert_jax.config.stages import Stage
from albert_jax.data.loader import describe_examples
from albert_jax.data.pretraining import open_data
from albert_jax.distributed.compilation_cache import compilation_cache
from albert_jax.distributed.placement import make_placement, run_devices
from albert_jax.models.flops import peak_flops, run_flops
from albert_jax.models.lowering import matmul_dtype
from albert_jax.perf.workload import lower, make_work
from albert_jax.training.memory import (
    GIB,
    capacity_bytes,
    out_of_memory_advice,
    out_of_memory_told,
    program_bytes,
)
from albert_jax.training.pretrain_report import run_plan
from albert_jax.training.session import check_batch_sizes
from albert_jax.utils.numbers import rounded
from albert_jax.utils.streams import say
from albert_jax.utils.wording import setting

_LONG_DAYS = 30  # of one machine: more than most people mean
_MATMUL = 2048  # rows and columns of the matmul that measures a CPU's rate


def describe_plan(config: PretrainConfig) -> str:
    """Return what `pretrain` would do, as text: sizes, schedule, examples, memory and time.

    It compiles the step and trains nothing. With `config.text` it prepares nothing, so the lengths
    and shares of the text are unknown.

    Args:
        config: the run.

    Returns:
        The lines that `pretrain --dry-run` prints.

    Raises:
        UserError: if the settings or the data do not fit.
    """
    check_batch_sizes(config)
    workdir = Path(config.workdir) if config.workdir else None
    made = workdir is not None and (workdir / "store" / "manifest.json").is_file()
    data = open_data(config, workdir) if made or config.store or not config.text else None
    lines = [run_plan(config, data)]
    if data is not None:
        lines.append(_examples(describe_examples(data.train, 200, data.mask_id)))
    return "\n".join([*lines, *_costs(config)])


def _examples(drawn: Mapping[str, Any]) -> str:
    """Return what the first examples are like, in words."""
    slots = drawn["tokens_per_example"] / (1 - drawn["padding_share"])
    replaced = drawn["replaced_by"]
    text = (
        f"examples   {drawn['tokens_per_example']:.0f} tokens of {slots:.0f} in the mean of the "
        f"first {drawn['examples']} ({drawn['padding_share']:.0%} padding); "
        f"{drawn['masked_share']:.1%} to predict, of them {replaced['mask']:.0%} [MASK], "
        f"{replaced['itself']:.0%} as they were, {replaced['random']:.0%} random"
    )
    if drawn["ngrams"]:
        shares = (f"{n}: {share:.0%}" for n, share in drawn["ngrams"].items())
        text += f"; words in a row {', '.join(shares)}"
    return f"{text}; {drawn['label_1_share']:.0%} swapped"


def _costs(config: PretrainConfig) -> list[str]:
    """Return lines on the memory of the step compiled for these devices, and the minimum time."""
    train, devices = config.train, run_devices(config.train.devices)
    placement = make_placement(train.mode, devices)
    say("compiling the step, for its memory …")
    with out_of_memory_told(devices, config), compilation_cache(train.compilation_cache):
        largest = _largest(config)
        work = make_work("train", largest, placement.lowering)
        compiled = lower("train", largest, work, placement).compile()
    needed, capacity = program_bytes(compiled), capacity_bytes(devices[0])
    lines, warnings = [], []
    if needed is not None and capacity is not None:
        on_cpu = devices[0].platform == "cpu"
        where = "in all" if on_cpu else "on each device"
        needed *= len(devices) if on_cpu else 1
        lines.append(
            f"memory     {rounded(needed / GIB, 3)} GiB of {rounded(capacity / GIB, 3)} GiB {where}"
        )
        if needed > capacity:
            warnings.append(f"the step does not fit; {out_of_memory_advice(config)}")
    rate, whose = _rate(devices, matmul_dtype(config.compute.dtype, devices[0].platform))
    days = run_flops(config) / rate / 86400
    lines.append(f"time       {_days(days)} at least: {rate / 1e12:,.3g} TFLOP/s, {whose}")
    if days > _LONG_DAYS:
        warnings.append(
            f"{_days(days)} is long; lower {setting('train.steps')}, or take more devices"
        )
    return [*lines, *(f"warning: {warning}" for warning in warnings)]


def _largest(config: PretrainConfig) -> PretrainConfig:
    """Return the run as if all of it were the stage with the most tokens and passes a batch.

    Of several it is the one with the longest rows, whose attention may take more memory.
    """

    def size(stage: Stage) -> tuple[int, int]:
        length = stage.examples.max_seq_length
        return stage.batch_size * length * stage.depths[1], length

    return config.as_one_stage(max(config.stages, key=size))


def _rate(devices: Sequence[jax.Device], dtype: str) -> tuple[float, str]:
    """Return the FLOP/s that no step in `dtype` on these devices exceeds, and their source."""
    peak = peak_flops(devices[0].device_kind)
    if peak is not None:
        return peak * len(devices), "the devices' peak"
    x = jax.device_put(jnp.ones((_MATMUL, _MATMUL), dtype), devices[0])
    matmul = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    matmul(x, x).block_until_ready()
    since = time.perf_counter()
    for _ in range(3):
        matmul(x, x).block_until_ready()
    seconds = (time.perf_counter() - since) / 3
    return 2 * _MATMUL**3 / seconds, f"as large matmuls in {dtype} make here now"


def _days(days: float) -> str:
    if days >= 2:
        return f"{days:,.0f} days"
    hours = 24 * days
    return f"{hours:.0f} hours" if hours >= 2 else f"{60 * hours:.0f} minutes"
