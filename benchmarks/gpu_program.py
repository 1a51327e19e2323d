# SPDX-License-Identifier: Apache-2.0
"""Not a test: the training step as XLA compiles it for an H100, on a machine that has no GPU.

    pip install 'jax[cuda12]'
    python -m benchmarks.gpu_program --model base-v2 --batch-size 64 [--unroll 1] [--top 20]

Prints how many kernels of each kind there are, their FLOPs and the bytes they read and write, and
a time by assumed shares of the GPU's rates: good for comparing two versions of a step, not a
measurement. Matmuls are taken to be cuBLAS's, as there is no GPU to choose between those and
XLA's own by timing.
"""

from __future__ import annotations

import collections
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported; the plugin is loaded all the same
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"

import tyro
from jax.experimental import topologies

from albert_jax.config.perf import BenchmarkConfig
from albert_jax.distributed.placement import make_placement
from albert_jax.models.flops import PEAK_FLOPS
from albert_jax.perf.tpu import hlo
from albert_jax.perf.workload import lower, make_work, pretrain_config
from albert_jax.training.memory import GIB

# As XLA's own gpu_specs/h100_sxm.txtpb, with CUDA 12.9 and cuDNN 9.8.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
PEAK, BANDWIDTH = PEAK_FLOPS["H100"], 3.35e12  # FLOP/s, bytes/s; Nvidia's data sheet
# Assumed: shares of them that matmuls, attention and everything else reach, and seconds to launch.
MATMULS, ATTENTION, MEMORY, LAUNCH = 0.70, 0.45, 0.85, 2e-6

_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\["(\d+)"')


@dataclass(frozen=True)
class Kernel:
    """One kernel and how often a step runs it; bytes and FLOPs are of one run."""

    kind: str
    source: str
    times: int
    bytes: float
    flops: float

    @property
    def seconds(self) -> float:
        """Of all its runs."""
        reached = ATTENTION if "fmha" in self.kind else MATMULS
        by_rates = max(self.flops / (reached * PEAK), self.bytes / (MEMORY * BANDWIDTH))
        return self.times * (by_rates + LAUNCH)


def kernels(program: hlo.Program, within: hlo.Computation, times: int = 1) -> Iterator[Kernel]:
    """What a computation launches, loops and all."""
    for each in within.instructions.values():
        if each.opcode in _FREE or each.opcode.endswith("-done"):
            continue
        body = program.body(each)
        if each.opcode in ("while", "call"):
            assert body is not None
            turns = 1 if each.opcode == "call" else hlo.trip_count(program, within, each) or 1
            yield from kernels(program, body, times * turns)
            continue
        kind, flops = each.opcode, 0.0
        moved = each.bytes + sum(within.instructions[name].bytes for name in each.operands)
        if each.opcode == "custom-call":
            kind = each.target or kind
            flops = _flops(kind, within, each)
        elif each.opcode == "fusion":
            assert body is not None
            moved = _fusion_bytes(body, within, each)
        yield Kernel(kind, re.sub(r"\d+", "#", each.op_name), times, float(moved), flops)


def _flops(kind: str, within: hlo.Computation, call: hlo.Instruction) -> float:
    shapes = [next(hlo.arrays_in(within.instructions[name].shape))[0] for name in call.operands]
    if "fmha" in kind:  # queries come first, [B, S, N, D]
        rows, length, heads, head_size = shapes[0]
        matmuls = 5 if "Backward" in kind else 2
        return 2.0 * matmuls * rows * heads * length * length * head_size
    contracted = _CONTRACTED.search(call.rest)
    if not contracted:
        return 0.0
    out = next(hlo.arrays_in(call.shape))[0]
    return 2.0 * math.prod(out) * shapes[0][int(contracted[1])]


def _fusion_bytes(body: hlo.Computation, within: hlo.Computation, call: hlo.Instruction) -> float:
    """What a fusion reads and writes: of an array that it slices or updates, that part alone."""
    users = collections.defaultdict(list)
    for each in body.instructions.values():
        for name in each.operands:
            users[name].append(each)

    def read(name: str, whole: int) -> int:
        using = users[name]
        if using and all(u.opcode == "bitcast" for u in using):
            return sum(read(u.name, whole) for u in using)
        if using and all(u.opcode == "dynamic-slice" for u in using):
            return sum(u.bytes for u in using)
        updated = [u.opcode == "dynamic-update-slice" and u.operands[0] == name for u in using]
        return 0 if updated and all(updated) else whole

    def written(root: hlo.Instruction) -> int:
        if root.opcode == "tuple":
            return sum(written(body.instructions[name]) for name in root.operands)
        if root.opcode == "bitcast":
            return written(body.instructions[root.operands[0]])
        if root.opcode == "dynamic-update-slice":
            return body.instructions[root.operands[1]].bytes
        return root.bytes

    inputs = [each for each in body.instructions.values() if each.opcode == "parameter"]
    whole = [within.instructions[name].bytes for name in call.operands]
    return written(body.root) + sum(read(i.name, whole[int(i.arguments)]) for i in inputs)


def main(
    model: str = "base-v2",
    batch_size: int = 64,
    sequence: int = 512,
    predictions: int = 77,
    unroll: int = 0,
    accumulate: int = 1,
    attention: Literal["auto", "xla", "cudnn"] = "auto",
    remat: Literal["none", "dots", "full"] = "none",
    phase: Literal["train", "forward", "finetune"] = "train",
    top: int = 0,
) -> None:
    """Compiles and adds up.

    Args:
        model: released model.
        batch_size: rows.
        sequence: tokens in a row.
        predictions: positions predicted in a row.
        unroll: layers in each turn of the scan; 0: all.
        accumulate: micro-batches.
        attention: kernel.
        remat: what is computed again.
        phase: as of `benchmark`.
        top: so many of the dearest operations are listed.
    """
    config = pretrain_config(
        BenchmarkConfig(
            model=model,
            phase=phase,
            batch_size=batch_size,
            sequence=sequence,
            predictions=predictions,
            dtype="bfloat16",
            unroll=unroll,
            accumulate=accumulate,
            attention=attention,
            remat=remat,
        )
    )
    gpu = topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1")
    placement = make_placement("jit", gpu.devices)
    work = make_work(phase, config, placement.lowering)
    compiled = lower(phase, config, work, placement).compile()
    text = compiled.as_text()
    assert text is not None
    program = hlo.parse_program(text)
    found = list(kernels(program, program.entry))
    seconds = sum(each.seconds for each in found)
    flops = work.flops_per_sequence * batch_size
    print(
        f"{gpu.devices[0].device_kind}: {1e3 * seconds:.1f} ms by assumed rates, "
        f"{1e3 * seconds / batch_size:.3f} a sequence, MFU {flops / seconds / PEAK:.1%}; "
        f"temporaries {compiled.memory_analysis().temp_size_in_bytes / GIB:.2f} GiB"
    )
    _table(found, lambda each: each.kind, len(found))
    _table(found, lambda each: f"{each.kind}  {each.source[-90:]}", top)


def _table(found: list[Kernel], name_of, most: int) -> None:
    groups = collections.defaultdict(list)
    for each in found:
        groups[name_of(each)].append(each)
    dearest = sorted(groups.items(), key=lambda item: -sum(k.seconds for k in item[1]))
    for name, same in dearest[:most]:
        ms, gigabytes, teraflops = (
            1e3 * sum(k.seconds for k in same),
            sum(k.times * k.bytes for k in same) / 1e9,
            sum(k.times * k.flops for k in same) / 1e12,
        )
        times = sum(k.times for k in same)
        print(f"{ms:9.3f} ms {gigabytes:8.2f} GB {teraflops:7.2f} TFLOP {times:5} x  {name}")


if __name__ == "__main__":
    tyro.cli(main)
