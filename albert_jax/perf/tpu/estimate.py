# SPDX-License-Identifier: Apache-2.0
"""Estimate how long a step takes on a TPU slice, and whether it fits, for `albert-jax estimate`.

The TPU's own compiler does it, on any machine; nothing runs.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from albert_jax.config.perf import EstimateConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.distributed.compilation_cache import cached_programs
from albert_jax.distributed.placement import check_batch_size, make_placement
from albert_jax.perf.tpu import hlo, libtpu
from albert_jax.perf.tpu.cost_model import Operation, StepCost, step_cost
from albert_jax.perf.tpu.results import (
    EstimateResult,
    FittingEstimate,
    HbmBytes,
    KernelCost,
    OperationCost,
)
from albert_jax.perf.tpu.topology import Slice, compile_only_devices, parse_slice
from albert_jax.perf.workload import (
    STEP_NAMES,
    Work,
    lower,
    make_work,
    pretrain_config,
    say_of_stages,
    setting_of,
)
from albert_jax.training.memory import OutOfMemory, out_of_memory_told, program_bytes
from albert_jax.utils.atomic import scratch_folder
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.provenance import commit, versions
from albert_jax.utils.results import Rows
from albert_jax.utils.streams import say
from albert_jax.utils.wording import renamed, setting

OPERATIONS = 12  # the most expensive ones, in a result
DEFAULT_BATCH = 32  # a chip
FINENESS = 16  # the largest batch is found to within this fraction of it

# Fractions of the peak from the compiler's own profile of each kernel alone, and the part of it
# that remains with dropout, from the kernels' instructions; by chip, head size and length of a row
# (libtpu 0.0.42.1, `python -m benchmarks.profile_kernels`). docs/lab/tpu.md lists those without a
# profile: all of v4, whose profile aborts and whose fractions are from the instructions and v5p's
# profile; v5e's heads of 128.
_FORWARD, _BACKWARD = "attention_rows_forward", "attention_rows_backward"
_PROFILED = {
    ("v4", 64, 512): {_FORWARD: (0.275, 0.794), _BACKWARD: (0.357, 0.840)},
    ("v4", 64, 128): {_FORWARD: (0.113, 0.837), _BACKWARD: (0.204, 0.952)},
    ("v5e", 64, 512): {_FORWARD: (0.387, 0.800), _BACKWARD: (0.566, 0.834)},
    ("v5e", 64, 128): {_FORWARD: (0.164, 0.837), _BACKWARD: (0.286, 0.952)},
    ("v5e", 128, 512): {_FORWARD: (0.516, 0.845), _BACKWARD: (0.709, 0.919)},
    ("v5p", 64, 512): {_FORWARD: (0.409, 0.794), _BACKWARD: (0.504, 0.840)},
    ("v5p", 64, 128): {_FORWARD: (0.178, 0.837), _BACKWARD: (0.232, 0.952)},
    ("v5p", 128, 512): {_FORWARD: (0.561, 0.871), _BACKWARD: (0.628, 0.895)},
    ("v6e", 64, 512): {_FORWARD: (0.163, 0.636), _BACKWARD: (0.200, 0.699)},
    ("v6e", 64, 128): {_FORWARD: (0.038, 0.880), _BACKWARD: (0.087, 0.960)},
    ("v6e", 128, 512): {_FORWARD: (0.245, 0.770), _BACKWARD: (0.370, 0.819)},
}
# LayerNorm's kernels only move bytes. Fractions of the HBM's rate where the compiler's own profile
# of each alone takes longer than its bytes, by chip and features (`--layer-norm`). On v5e, and on
# v4 by v5p's cycles, the bytes take longer.
_BANDWIDTH = {
    ("v5p", 768): {"layer_norm_backward": 0.916},
    ("v5p", 1024): {"layer_norm_backward": 0.989},
    ("v5p", 2048): {"layer_norm_backward": 0.964},
    ("v5p", 4096): {"layer_norm_backward": 0.906},
    ("v6e", 768): {"layer_norm_forward": 0.879, "layer_norm_backward": 0.872},
    ("v6e", 1024): {"layer_norm_backward": 0.975},
    ("v6e", 4096): {"layer_norm_backward": 0.919},
}


def estimate(config: EstimateConfig = EstimateConfig()) -> EstimateResult:
    """Estimate a step on a TPU slice by compiling it for the slice, without a TPU.

    Args:
        config: the step and the slice.

    Returns:
        Time and memory: a `FittingEstimate` if a chip holds the step, else an `EstimateResult`
            whose `fits` is False.

    Raises:
        UserError: if the step cannot be compiled.
    """
    where = parse_slice(config.topology)
    settings = estimated_config(config, where)
    _check(config, settings, where)
    say_of_stages(config.model)
    return _compiled(config, settings, where, compile_only_devices(where))


def find_batch(config: EstimateConfig = EstimateConfig()) -> Rows[EstimateResult]:
    """Find the largest batch that a chip holds, to within a sixteenth.

    Args:
        config: the step and the slice.

    Returns:
        An estimate for each of the configured remat, "none" and "full". One that cannot hold a
        single sequence has `fits` False.

    Raises:
        UserError: if the step cannot be compiled.
    """
    where = parse_slice(config.topology)
    first = estimated_config(config, where)
    say_of_stages(config.model)
    devices = compile_only_devices(where)
    found: Rows[EstimateResult] = Rows()
    for remat in dict.fromkeys((first.compute.remat, "none", "full")):
        wanted = dataclasses.replace(config, remat=remat)
        found.append(_largest(wanted, where, devices))
    return found


def estimated_config(config: EstimateConfig, where: Slice) -> PretrainConfig:
    """Return the pretraining run to estimate, with the batch of all chips together."""
    is_recipe = config.model.partition(":")[0].endswith(".py")
    default = None if is_recipe else _rounded(DEFAULT_BATCH, config.accumulate or 1)
    batch = config.batch_size or default
    settings = pretrain_config(
        dataclasses.replace(
            config,
            batch_size=batch and batch * where.chips,
            dtype=config.dtype or (None if is_recipe else "bfloat16"),
        )
    )
    if config.steps is not None:
        train = dataclasses.replace(settings.train, steps=config.steps)
        settings = dataclasses.replace(settings, train=train)
    return settings


def _check(config: EstimateConfig, settings: PretrainConfig, where: Slice) -> None:
    train = settings.train
    if config.batch_size is not None and config.batch_size % train.accumulate:
        raise UserError(
            f"{setting('batch_size')} {config.batch_size} a chip does not divide into "
            f"{train.accumulate} micro-batches; use a multiple of {train.accumulate}"
        )
    with renamed(STEP_NAMES):
        check_batch_size(train.batch_size, train.accumulate, where.chips)


def _described(config: EstimateConfig, settings: PretrainConfig, where: Slice) -> JsonObject:
    """Return the fields of a result that describe what was asked, and the compiler."""
    train = settings.train
    return setting_of(config, settings) | {
        "topology": where.name,
        "chips": where.chips,
        "batch_size": train.batch_size // where.chips,
        "global_batch_size": train.batch_size,
        "steps": train.steps,
        "commit": commit(),
        "versions": versions() | {"libtpu": libtpu.version() or "unknown"},
    }


# ------------------------------------------------------------------------------------- one compile


def _compiled(
    config: EstimateConfig,
    settings: PretrainConfig,
    where: Slice,
    devices: Sequence[jax.Device],
) -> EstimateResult:
    """Compile, and add up what was compiled; advice about memory is about a chip's batch."""
    described = _described(config, settings, where)
    placement = make_placement(settings.train.mode, devices)
    a_chips = settings.train.batch_size // where.chips
    train = dataclasses.replace(settings.train, batch_size=a_chips)
    work = make_work(config.phase, settings, placement.lowering)
    started = time.perf_counter()
    with scratch_folder() as dump:
        try:
            with (
                renamed(STEP_NAMES),
                out_of_memory_told(devices, dataclasses.replace(settings, train=train)),
                cached_programs(None),
            ):
                lowered = lower(config.phase, settings, work, placement)
                compiled = lowered.compile({"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True})
        except OutOfMemory as error:
            return _unfit(described, error, where)
        seconds = time.perf_counter() - started
        program = hlo.parse_program(_text_of(compiled, dump, where))
    cost = step_cost(
        program,
        where,
        kernel_efficiency(settings, where, config.phase),
        kernel_bandwidth(settings, where),
    )
    hbm = _hbm_of(compiled)
    return FittingEstimate(
        **described,
        fits=True,
        compile_seconds=seconds,
        # What a step donates is counted once.
        hbm_bytes=(program_bytes(compiled) or 0) + hbm.code,
        hbm_capacity_bytes=where.chip.hbm_bytes,
        hbm_of=hbm,
        **_figures(cost, work, settings, where),
    )


def _text_of(compiled: jax.stages.Compiled, dump: Path, where: Slice) -> str:
    """Return the scheduled program, as libtpu itself wrote it."""
    for written in dump.glob("*.after_codegen.txt"):
        return written.read_text()
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        # libtpu may be newer than jaxlib's idea of a program: the variadic all-reduce of a large
        # step for v5p (libtpu 0.0.52, jaxlib 0.10.2).
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"libtpu compiled the step for {where.name}, but jaxlib cannot read the program "
            f"({reason}); try another slice, or a libtpu of this jaxlib's own age"
        ) from None
    assert text is not None, "a compiled program without text"
    return text


def kernel_efficiency(
    config: PretrainConfig, where: Slice, phase: str = "train"
) -> dict[str, float]:
    """Return the fraction of the peak at which kernels are assumed to run, by name.

    All kernels with matmuls are attention's. "" stands for those without an entry: half of what
    MXUs can do with heads of that size, which fill a part of them.
    """
    head_size, length = config.model.head_size, config.examples.max_seq_length
    others = 0.5 * min(1.0, head_size / where.chip.mxu)
    profiled = _PROFILED.get((where.kind, head_size, length), {})
    dropping = config.model.attention_probs_dropout_prob > 0 and phase != "forward"
    return {"": others} | {
        name: share * (left if dropping else 1.0) for name, (share, left) in profiled.items()
    }


def kernel_bandwidth(config: PretrainConfig, where: Slice) -> dict[str, float]:
    """Return the fraction of the HBM's rate at which LayerNorm's kernels run, by name.

    Kernels without an entry run at all of it.
    """
    return _BANDWIDTH.get((where.kind, config.model.hidden_size), {})


def _unfit(described: Mapping[str, Any], error: OutOfMemory, where: Slice) -> EstimateResult:
    return EstimateResult(
        **described,
        fits=False,
        out_of_memory=str(error),
        hbm_bytes=None if error.needed is None else int(error.needed),
        hbm_capacity_bytes=int(error.capacity or where.chip.hbm_bytes),
    )


def _hbm_of(compiled: jax.stages.Compiled) -> HbmBytes:
    told: Any = compiled.memory_analysis()
    return HbmBytes(
        arguments=told.argument_size_in_bytes,
        outputs=told.output_size_in_bytes,
        aliased=told.alias_size_in_bytes,
        temporaries=told.temp_size_in_bytes,
        code=told.generated_code_size_in_bytes,
    )


def _figures(cost: StepCost, work: Work, settings: PretrainConfig, where: Slice) -> JsonObject:
    """Return the fields of a result that come from the program's costs."""
    sequences = settings.train.batch_size // where.chips
    flops = work.flops_per_sequence * sequences
    dearest = sorted(cost.merged(), key=lambda each: -each.seconds)
    collectives = [each for each in dearest if each.kind == "collective"]
    return {
        "step_ms": 1e3 * cost.seconds,
        "ms_per_sequence_per_chip": 1e3 * cost.seconds / sequences,
        "mfu": flops / (cost.seconds * where.chip.peak_flops),
        "days": cost.seconds * settings.train.steps / 86400,
        "tflop_per_step": flops / 1e12,
        "matmuls_of_model": cost.flops / flops,
        "ms_of": {
            kind: 1e3 * sum(each.seconds for each in cost.of_kind(kind))
            for kind in ("cycles", "kernel", "collective", "copy", "bytes")
        },
        "collective_bytes": int(sum(each.bytes for each in collectives)),
        "collectives": [OperationCost(**_cost(each)) for each in collectives],
        "kernels": [
            KernelCost(
                **_cost(each),
                of_peak=each.flops / (each.seconds * where.chip.peak_flops),
                of_bandwidth=each.bytes / (each.seconds * where.chip.hbm_bandwidth),
            )
            for each in dearest
            if each.kind == "kernel"
        ],
        "unknown_loops": cost.unknown_loops,
        "operations": [OperationCost(**_cost(each)) for each in dearest[:OPERATIONS]],
    }


def _cost(operation: Operation) -> JsonObject:
    values = dataclasses.asdict(operation)
    return {"ms": 1e3 * values.pop("seconds")} | values


# -------------------------------------------------------------------------------- the largest batch


def _largest(config: EstimateConfig, where: Slice, devices: Sequence[jax.Device]) -> EstimateResult:
    """Bisect; the bytes of compiled programs, nearly linear in the batch, show where to look."""
    unit = estimated_config(config, where).train.accumulate
    fits: dict[int, FittingEstimate] = {}
    fails: dict[int, EstimateResult] = {}
    batch: int | None = _rounded(config.batch_size or DEFAULT_BATCH, unit)
    while batch:
        asked = dataclasses.replace(config, batch_size=batch)
        settings = estimated_config(asked, where)
        say(f"remat {settings.compute.remat}, batch {batch} a chip …")
        found = _compiled(asked, settings, where, devices)
        if isinstance(found, FittingEstimate):
            fits[batch] = found
        else:
            fails[batch] = found
        jax.clear_caches()
        gc.collect()
        batch = next_batch(
            {size: fitting.hbm_bytes for size, fitting in fits.items()},
            min(fails, default=None),
            found.hbm_capacity_bytes,
            unit,
        )
    return fits[max(fits)] if fits else fails[min(fails)]


def next_batch(fits: dict[int, int], fails: int | None, capacity: int, unit: int) -> int | None:
    """Return the batch, a multiple of `unit`, to try next.

    It follows from those that fit (with their bytes) and the smallest that fails. None if the
    largest is known to within a sixteenth, or none fits.
    """
    low = max(fits, default=0)
    high = fails if fails is not None else max(4 * low, unit)
    finest = unit * max(1, low // (FINENESS * unit))
    if fails is not None and high - low <= finest:
        return None
    top = high - finest if fails is not None else high
    guess = (low + high) // 2
    if low:
        least = min(fits)
        a_sequence = (fits[low] - fits[least]) / (low - least) if low > least else fits[low] / low
        straight = low + int((capacity - fits[low]) / max(a_sequence, 1.0))
        # The bytes of a failed batch lie below the line: it bends there, and does not help.
        guess = guess if fails is not None and straight > top else straight
    return max(low + finest, min(_rounded(guess, finest), top))


def _rounded(batch: int, unit: int) -> int:
    return max(unit, batch // unit * unit)
