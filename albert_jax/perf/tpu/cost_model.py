# SPDX-License-Identifier: Apache-2.0
"""Compute the cost of a compiled program on a TPU chip from the program's text.

The compiler's cycles count, loops included. Operations that it does not estimate count by bytes and
FLOPs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from albert_jax.perf.tpu.hlo import (
    Computation,
    Instruction,
    Program,
    arrays_in,
    matmul_flops,
    trip_count,
)
from albert_jax.perf.tpu.topology import Slice

# Of JAX's splash attention (each of them "splash_mha_…"), matmuls between queries and keys.
_SPLASH_MATMULS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
_FUSED_BACKWARD = re.compile(r'use_fused_bwd_kernel\\*": ?true')

COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}
COLLECTIVES |= {"collective-broadcast", "ragged-all-to-all"}
# Times a chip's share of the data passes its links: an all-reduce scatters sums, then gathers.
_PASSES = {"all-reduce": 2.0}
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id"}
_FREE |= {"replica-id", "after-all", "add-dependency", "opt-barrier", "async-update"}
_KERNEL_COST = re.compile(r'"(flops|bytes_accessed)":"?(\d+)')


@dataclass(frozen=True)
class Operation:
    """Hold the cost of top-level work in the program.

    Seconds, bytes and FLOPs are those of all its `times` runs in a step.
    """

    name: str
    source: str
    kind: str  # cycles | kernel | collective | copy | bytes
    seconds: float
    times: int
    bytes: float = 0.0
    flops: float = 0.0


@dataclass
class StepCost:
    """Hold a step's cost on one chip, with operations in the order of the schedule."""

    operations: list[Operation] = field(default_factory=list)
    flops: float = 0.0  # of matmuls, and what kernels declare
    unknown_loops: list[str] = field(default_factory=list)  # counted once

    @property
    def seconds(self) -> float:
        """The seconds of the whole step."""
        return sum(operation.seconds for operation in self.operations)

    def of_kind(self, kind: str) -> list[Operation]:
        """Return the operations of a kind."""
        return [operation for operation in self.operations if operation.kind == kind]

    def merged(self) -> list[Operation]:
        """Return the operations, merged by kind and source."""
        alike: dict[tuple[str, str], list[Operation]] = {}
        for each in self.operations:
            name = each.name if each.kind == "collective" else ""
            alike.setdefault((each.kind, name or each.source or each.name), []).append(each)
        return [
            dataclasses.replace(
                same[0],
                **{
                    name: sum(getattr(each, name) for each in same)
                    for name in ("seconds", "times", "bytes", "flops")
                },
            )
            for same in alike.values()
        ]


def step_cost(
    program: Program,
    where: Slice,
    kernel_efficiency: Mapping[str, float] | None = None,
    kernel_bandwidth: Mapping[str, float] | None = None,
) -> StepCost:
    """Add up a scheduled program for one chip of a slice.

    The compiler does not estimate kernels. They run at the fraction of the peak that
    `kernel_efficiency` has for a part of their name, or for "" if no name matches; None, all at
    half. They move their bytes at the fraction of the HBM's rate that `kernel_bandwidth` has for a
    part of their name, or at its full rate. The longer of the two times counts.
    """
    cost = StepCost()
    on = _On(program, where, kernel_efficiency or {"": 0.5}, {"": 1.0, **(kernel_bandwidth or {})})
    _run(on, program.entry, 1, cost)
    return cost


@dataclass(frozen=True)
class _On:
    """Hold the program and the slice that it runs on."""

    program: Program
    where: Slice
    kernel_efficiency: Mapping[str, float]
    kernel_bandwidth: Mapping[str, float]


def _run(on: _On, computation: Computation, times: int, cost: StepCost) -> None:
    """Add the cost of `times` runs of a computation.

    Copies between HBM and VMEM, and collectives that have a start and a done, run beside the other
    work, one after another. Their done waits for what is left of them.
    """
    now = 0.0
    free = {"copy": 0.0, "collective": 0.0}
    begun: dict[str, tuple[Operation, float]] = {}  # and when each ends
    for each in computation.instructions.values():
        first = len(cost.operations)
        if each.opcode == "while":
            _loop(on, computation, each, times, cost)
        elif each.opcode == "conditional":
            _conditional(on, each, times, cost)
        elif each.opcode == "call" and (called := on.program.body(each)):
            _run(on, called, times, cost)
        elif each.opcode.endswith("-start"):
            one = _one(on, computation, each)
            lane = "collective" if one.kind == "collective" else "copy"
            cost.flops += times * one.flops
            free[lane] = max(now, free[lane]) + one.seconds
            begun[each.name] = dataclasses.replace(one, kind=lane), free[lane]
        elif each.opcode.endswith("-done"):
            if each.operands[0] in begun:
                one, end = begun[each.operands[0]]
                cost.operations.append(_repeated(one, max(0.0, end - now), times))
        elif each.opcode not in _FREE:
            done = _one(on, computation, each)
            cost.operations.append(_repeated(done, done.seconds, times))
            cost.flops += times * done.flops
        now += sum(operation.seconds for operation in cost.operations[first:]) / max(times, 1)


def _repeated(one: Operation, seconds: float, times: int) -> Operation:
    return dataclasses.replace(
        one,
        seconds=seconds * times,
        times=times,
        bytes=one.bytes * times,
        flops=one.flops * times,
    )


def _loop(
    on: _On,
    computation: Computation,
    loop: Instruction,
    times: int,
    cost: StepCost,
) -> None:
    count = trip_count(on.program, computation, loop)
    if count is None:
        cost.unknown_loops.append(loop.op_name or loop.name)
    body = on.program.body(loop)
    if body is not None and count != 0:
        _run(on, body, times * (1 if count is None else count), cost)


def _conditional(on: _On, choice: Instruction, times: int, cost: StepCost) -> None:
    """Add the most expensive branch."""
    branches = []
    for branch in on.program.branches(choice):
        branches.append(StepCost())
        _run(on, branch, times, branches[-1])
    if branches:
        dearest = max(branches, key=lambda branch: branch.seconds)
        cost.operations += dearest.operations
        cost.flops += dearest.flops
        cost.unknown_loops += dearest.unknown_loops


def _one(on: _On, computation: Computation, each: Instruction) -> Operation:
    """Return one run of an instruction; its time is by cycles, links, a kernel's cost, or HBM.

    The first of these that is known counts.
    """
    chip = on.where.chip
    base = each.opcode.removesuffix("-start")
    inner = on.program.body(each) if base == "async" else None
    base = inner.root.opcode if inner else base
    moved = _bytes(computation, each)
    flops = sum(_flops(on.program, computation, each))
    kind, seconds = "bytes", moved / chip.hbm_bandwidth
    if each.cycles is not None:
        kind, seconds = "cycles", each.cycles / chip.clock
    elif base in COLLECTIVES:
        kind, moved = "collective", _sent(computation, each)
        seconds = collective_seconds(base, moved, on.where)
    elif each.opcode == "custom-call":
        kind, flops, moved, seconds = _custom_call(on, computation, each)
    elif each.opcode.endswith("-start") or base == "copy":
        kind, seconds = "copy", _largest_written(each) / chip.hbm_bandwidth
    name = base if kind == "collective" else each.name
    return Operation(name, each.op_name, kind, seconds, 1, moved, flops)


def collective_seconds(opcode: str, moved: float, where: Slice) -> float:
    """Return the seconds of a collective over the links, over all chips of the slice.

    `moved` is its bytes on each chip.
    """
    if where.chips == 1:
        return 0.0
    share = (where.chips - 1) / where.chips
    return _PASSES.get(opcode, 1.0) * share * moved / where.ring_bandwidth


def _custom_call(
    on: _On, computation: Computation, each: Instruction
) -> tuple[str, float, float, float]:
    """Return (kind, FLOPs, bytes, seconds) of a custom call.

    A kernel declares its cost; an attention kernel's is from its shapes. The compiler's own calls,
    which allocate and rename, take no time.
    """
    if each.target != "tpu_custom_call":
        return "bytes", 0.0, 0.0, 0.0
    told = {name: float(n) for name, n in _KERNEL_COST.findall(each.rest)}
    flops = told.get("flops") or _attention_flops(computation, each)
    moved = told.get("bytes_accessed") or _bytes(computation, each)
    chip = on.where.chip
    by_flops = flops / (_share(on.kernel_efficiency, each) * chip.peak_flops)
    by_bytes = moved / (_share(on.kernel_bandwidth, each) * chip.hbm_bandwidth)
    return "kernel", flops, moved, max(by_flops, by_bytes)


def _share(shares: Mapping[str, float], each: Instruction) -> float:
    """Return the share of the longest name that is a part of a kernel's."""
    return shares[max((part for part in shares if part in each.op_name), key=len)]


def _attention_flops(computation: Computation, each: Instruction) -> float:
    """Return the matmul FLOPs of one of JAX's splash-attention kernels, 0 for others."""
    name = f"{each.op_name} {each.name}"
    matmuls = next((n for part, n in _SPLASH_MATMULS.items() if part in name), 0)
    if _FUSED_BACKWARD.search(each.rest) and "splash_mha_dkv" in name:
        matmuls = 5
    shapes = [next(arrays_in(computation.instructions[n].shape))[0] for n in each.operands]
    queries_and_keys = [shape for shape in shapes if len(shape) == 4][:2]
    if not matmuls or len(queries_and_keys) < 2:
        return 0.0
    queries, keys = queries_and_keys
    return 2.0 * matmuls * math.prod(queries) * keys[2]


def _flops(program: Program, computation: Computation, each: Instruction) -> Iterator[float]:
    yield matmul_flops(computation, each)
    if each.opcode in ("fusion", "async-start") and (body := program.body(each)):
        for inner in body.instructions.values():
            yield from _flops(program, body, inner)


def _bytes(computation: Computation, each: Instruction) -> float:
    """Return the bytes read and written, each operand once."""
    read = {name: computation.instructions[name].bytes for name in each.operands}
    return each.bytes + sum(read.values())


def _sent(computation: Computation, each: Instruction) -> float:
    """Return the bytes of a collective on each chip: the maximum of its input and its output."""
    entered = float(sum(computation.instructions[name].bytes for name in each.operands))
    return entered if each.opcode.endswith("-start") else max(entered, each.bytes)


def _largest_written(each: Instruction) -> float:
    """Return the bytes that a copy moves.

    Its start has (destination, source, context); the destination counts.
    """
    sizes = [elements * width for _, elements, width in arrays_in(each.shape)]
    # The start of a slice has its input first.
    return min(sizes[:2]) if len(sizes) > 1 else sum(sizes)
