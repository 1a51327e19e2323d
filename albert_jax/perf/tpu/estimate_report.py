# SPDX-License-Identifier: Apache-2.0
"""What `estimate` found, as a person reads it: a card, and a table of the largest batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from albert_jax.training.memory import GIB
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
# Of nearly every operation's source: what tells none from another is left out.
_OUR_MODULES = re.compile(
    r"\b(AlbertForPretraining|AlbertForTask|while/body|closed_call|shard_map|encoder"
    r"|(inner_)?group_\d+)/"
)
_SOURCE = 76  # characters of where an operation comes from


def estimate_lines(r: dict[str, Any]) -> str:
    """The figures of one `estimate`, a line each, and the dearest operations."""
    versions = r["versions"]
    lines = [
        f"estimated   {_PHASES[r['phase']]} of {r['model']}, {r['parameters']:,} parameters, by "
        f"the TPU's compiler: nothing was run",
        f"slice       {r['topology']}: {r['chips']:,} chip{'s' if r['chips'] > 1 else ''}, "
        f"under {r['mode']}; libtpu {versions['libtpu']}, jax {versions['jax']}",
        f"batch       {r['batch_size']:,} x {r['sequence']} tokens a chip, "
        f"{r['global_batch_size']:,} in all"
        + (f", {r['predictions']} predictions" if r["phase"] != "finetune" else ""),
        f"compute     {r['dtype']}, remat {r['remat']}, attention {r['attention']}, "
        f"unroll {r['unroll']}, accumulate {r['accumulate']}",
    ]
    if not r["fits"]:
        return "\n".join([*lines, f"does not fit: {r['out_of_memory']}"])
    return "\n".join([*lines, *_figures(r), *_collectives(r), *_kernels(r), *_operations(r)])


def _figures(r: dict[str, Any]) -> list[str]:
    free = r["hbm_capacity_bytes"] - r["hbm_bytes"]
    held = ", ".join(f"{name} {_size(n)}" for name, n in r["hbm_of"].items() if name != "aliased")
    shares = [f"{_KINDS[kind]} {rounded(ms)} ms" for kind, ms in r["ms_of"].items() if ms >= 0.0005]
    lines = [
        f"compiled    in {r['compile_seconds']:.1f} s",
        f"memory      fits: {_size(r['hbm_bytes'])} of {_size(r['hbm_capacity_bytes'])}, "
        f"{_size(free)} free",
        f"            {held}; {_size(r['hbm_of']['aliased'])} of the outputs take their "
        "arguments' place",
        f"step        {rounded(r['step_ms'])} ms, {rounded(r['ms_per_sequence_per_chip'])} ms "
        "a sequence a chip, as the compiler estimates",
        f"            {'; '.join(shares)}",
        f"rate        {rounded(1000 * r['global_batch_size'] / r['step_ms'])} sequences/s, "
        f"MFU {r['mfu']:.1%}",
        f"arithmetic  {rounded(r['tflop_per_step'])} TFLOP a step and chip; the program's "
        f"matmuls are {r['matmuls_of_model']:.3f} of that",
    ]
    if r["phase"] == "train":
        lines.append(
            f"run         {_days(r['days'])} for {r['steps']:,} steps of "
            f"{r['global_batch_size']:,} sequences"
        )
    if r["unknown_loops"]:
        lines.append(
            f"loops       counted once, of unknown length: {', '.join(r['unknown_loops'])}"
        )
    return lines


def _collectives(r: dict[str, Any]) -> list[str]:
    told = [
        f"{e['times']} {e['name']}, {_size(e['bytes'])}, {rounded(e['ms'], 3)} ms"
        for e in r["collectives"]
    ]
    return [f"links       {'; '.join(told) or 'no collectives'} a step and chip"]


def _kernels(r: dict[str, Any]) -> list[str]:
    if not r["kernels"]:
        return []
    told = "have no estimate and are counted by FLOPs, or the HBM's rate where that is slower"
    rows = [
        f"            {rounded(each['ms'], 3)} ms, {each['of_peak']:.2f} of peak, "
        f"{each['times']} x {_where(each)}: {rounded(each['flops'] / 1e9)} GFLOP, "
        f"{_size(each['bytes'])}"
        for each in r["kernels"]
    ]
    return [f"kernels     {told}", *rows]


def _operations(r: dict[str, Any]) -> list[str]:
    rows = [
        f"{each['ms']:8.3f}  {each['ms'] / r['step_ms']:6.1%}  {each['times']:5}  "
        f"{each['kind']:<10}  {_where(each)}"
        for each in r["operations"]
    ]
    return ["", f"{'ms':>8}  {'share':>6}  {'times':>5}  {'by':<10}  operation", *rows]


def batches(results: Sequence[dict[str, Any]]) -> str:
    """The largest batches of `find_batch`, a line each."""
    lines = [f"{'remat':<6}  {'batch a chip':>12}  {'HBM':>9}  {'ms a sequence':>13}  {'MFU':>6}"]
    for r in results:
        if r["fits"]:
            lines.append(
                f"{r['remat']:<6}  {r['batch_size']:12,}  {_size(r['hbm_bytes']):>9}  "
                f"{rounded(r['ms_per_sequence_per_chip']):>13}  {r['mfu']:6.1%}"
            )
        else:
            lines.append(f"{r['remat']:<6}  not even {r['batch_size']}: {r['out_of_memory']}")
    return "\n".join(lines)


def _where(each: dict[str, Any]) -> str:
    """The module and primitive that an operation comes from, in short."""
    if each["kind"] == "collective":  # many gradients in one: the source is only one's
        return each["name"]
    source = each["source"] or each["name"]
    backward = "transpose(" in source
    source = _OUR_MODULES.sub("", source)
    parts = [p for p in source.split("/") if not p.endswith(")") or p.startswith("jit(take")]
    told, direction = "/".join(parts or [each["name"]]), "backward " if backward else ""
    room = _SOURCE - len(direction)
    return direction + (told if len(told) <= room else f"…{told[1 - room :]}")


def _size(n: float) -> str:
    units = ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
    unit, name = next(((u, name) for u, name in units if n >= u / 10), (1, "bytes"))
    return f"{rounded(n / unit)} {name}"


def _days(days: float) -> str:
    return f"{rounded(days, 3)} days" if days >= 1 else f"{rounded(24 * days, 3)} hours"
