# SPDX-License-Identifier: Apache-2.0
"""Show the results of `estimate` to people: a card, and a table of the largest batches."""

from __future__ import annotations

import re
from collections.abc import Sequence

from albert_jax.perf.tpu.results import EstimateResult, FittingEstimate, KernelCost, OperationCost
from albert_jax.training.memory import GIB
from albert_jax.utils.columns import aligned
from albert_jax.utils.numbers import rounded

_PHASES = {
    "train": "training step",
    "forward": "evaluation's step",
    "finetune": "classifier's training step",
}
_KINDS = {
    "cycles": "the compiler's own cycles",
    "kernel": "kernels, by FLOPs and bytes",
    "collective": "collectives, by bytes over the links",
    "copy": "waiting for copies from and to HBM",
    "bytes": "what has no estimate, by bytes",
}
# Parts of nearly every operation's source, which do not distinguish operations, are left out.
_OUR_MODULES = re.compile(
    r"\b(AlbertForPretraining|AlbertForTask|while/body|closed_call|shard_map|encoder"
    r"|(inner_)?group_\d+)/"
)
_SOURCE = 76  # characters of where an operation comes from


def estimate_lines(result: EstimateResult) -> str:
    """Return the figures of one `estimate`, a line each, and the most expensive operations."""
    lines = [
        f"estimated   {_PHASES[result.phase]} of {result.model}, {result.parameters:,} parameters, "
        f"by the TPU's compiler: nothing was run",
        f"slice       {result.topology}: {result.chips:,} chip{'s' if result.chips > 1 else ''}, "
        f"under {result.mode}; libtpu {result.versions['libtpu']}, jax {result.versions['jax']}",
        f"batch       {result.batch_size:,} x {result.sequence} tokens a chip, "
        f"{result.global_batch_size:,} in all"
        + (f", {result.predictions} predictions" if result.phase != "finetune" else ""),
        f"compute     {result.dtype}, remat {result.remat}, attention {result.attention}, "
        f"unroll {result.unroll}, accumulate {result.accumulate}",
    ]
    if not isinstance(result, FittingEstimate):
        return "\n".join([*lines, f"does not fit: {result.out_of_memory}"])
    lines += [*_figures(result), _collectives(result), *_kernels(result), *_operations(result)]
    return "\n".join(lines)


def _figures(result: FittingEstimate) -> list[str]:
    free, hbm = result.hbm_capacity_bytes - result.hbm_bytes, result.hbm_of
    held = ", ".join(
        f"{name} {_size(getattr(hbm, name))}"
        for name in ("arguments", "outputs", "temporaries", "code")
    )
    shares = [
        f"{_KINDS[kind]} {rounded(ms)} ms" for kind, ms in result.ms_of.items() if ms >= 0.0005
    ]
    sequences = 1000 * result.global_batch_size / result.step_ms
    lines = [
        f"compiled    in {result.compile_seconds:.1f} s",
        f"memory      fits: {_size(result.hbm_bytes)} of {_size(result.hbm_capacity_bytes)}, "
        f"{_size(free)} free",
        f"            {held}; {_size(hbm.aliased)} of the outputs take their arguments' place",
        f"step        {rounded(result.step_ms)} ms, {rounded(result.ms_per_sequence_per_chip)} ms "
        "a sequence a chip, as the compiler estimates",
        f"            {'; '.join(shares)}",
        f"rate        {rounded(sequences)} sequences/s, MFU {result.mfu:.1%}",
        f"arithmetic  {rounded(result.tflop_per_step)} TFLOP a step and chip; the program's "
        f"matmuls are {result.matmuls_of_model:.3f} of that",
    ]
    if result.phase == "train":
        lines.append(
            f"run         {_days(result.days)} for {result.steps:,} steps of "
            f"{result.global_batch_size:,} sequences"
        )
    if result.unknown_loops:
        lines.append(
            f"loops       counted once, of unknown length: {', '.join(result.unknown_loops)}"
        )
    return lines


def _collectives(result: FittingEstimate) -> str:
    told = [
        f"{each.times} {each.name}, {_size(each.bytes)}, {rounded(each.ms, 3)} ms"
        for each in result.collectives
    ]
    return f"links       {'; '.join(told) or 'no collectives'} a step and chip"


def _kernels(result: FittingEstimate) -> list[str]:
    if not result.kernels:
        return []
    told = "have no estimate and are counted by FLOPs, or the HBM's rate where that is slower"
    rows = [
        f"            {rounded(each.ms, 3)} ms, {_rate(each)}, "
        f"{each.times} x {_where(each)}: {rounded(each.flops / 1e9)} GFLOP, "
        f"{_size(each.bytes)}"
        for each in result.kernels
    ]
    return [f"kernels     {told}", *rows]


def _rate(kernel: KernelCost) -> str:
    if kernel.flops or kernel.of_bandwidth is None:
        return f"{kernel.of_peak:.2f} of peak"
    return f"{kernel.of_bandwidth:.2f} of the HBM's rate"


def _operations(result: FittingEstimate) -> list[str]:
    rows = [("ms", "share", "times", "by", "operation")]
    rows += [
        (
            f"{each.ms:.3f}",
            f"{each.ms / result.step_ms:.1%}",
            f"{each.times}",
            each.kind,
            _where(each),
        )
        for each in result.operations
    ]
    return ["", aligned(rows, "rrr")]


def batches(results: Sequence[EstimateResult]) -> str:
    """Return the largest batches of `find_batch`, a line each."""
    rows: list[tuple[str, ...]] = [("remat", "batch a chip", "HBM", "ms a sequence", "MFU")]
    for result in results:
        if isinstance(result, FittingEstimate):
            rows.append(
                (
                    result.remat,
                    f"{result.batch_size:,}",
                    _size(result.hbm_bytes),
                    rounded(result.ms_per_sequence_per_chip),
                    f"{result.mfu:.1%}",
                )
            )
        else:
            why = f"not even {result.batch_size}: {result.out_of_memory}"
            rows.append((result.remat, why))
    return aligned(rows, "lrrrr")


def _where(each: OperationCost) -> str:
    """Return the module and primitive that an operation comes from, in short."""
    if each.kind == "collective":  # many gradients in one: the source is only one's
        return each.name
    source = each.source or each.name
    backward = "transpose(" in source
    source = _OUR_MODULES.sub("", source)
    parts = [p for p in source.split("/") if not p.endswith(")") or p.startswith("jit(take")]
    told, direction = "/".join(parts or [each.name]), "backward " if backward else ""
    room = _SOURCE - len(direction)
    return direction + (told if len(told) <= room else f"…{told[1 - room :]}")


def _size(n: float) -> str:
    units = ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
    unit, name = next(((u, name) for u, name in units if n >= u / 10), (1, "bytes"))
    return f"{rounded(n / unit)} {name}"


def _days(days: float) -> str:
    return f"{rounded(days, 3)} days" if days >= 1 else f"{rounded(24 * days, 3)} hours"
