# SPDX-License-Identifier: Apache-2.0
"""The kernels' time on a TPU by its compiler's own profile of each alone, without a TPU.

    python -m benchmarks.profile_kernels --topology v5e:1x1 --heads 12 --head-size 64
    python -m benchmarks.profile_kernels --instructions --dropout 0.1
    python -m benchmarks.profile_kernels --topology v5p:1x1x1 --layer-norm --features 768

Prints each kernel's cycles and the share of the chip's peak that its matmuls reach (LayerNorm's: of
the HBM's rate, which may be more than 1, as the profile does not know it), or how many instructions
one step of its grid takes (LayerNorm's: with one turn of its loop, 128 rows);
`albert_jax/perf/tpu/estimate.py` keeps the shares.
Needs libtpu, whose profile aborts on v4 and, by 0.0.52, on v5p and with dropout.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

# Before JAX is imported, which reads it once: so what is to be written is asked for up here.
_FOLDER = tempfile.TemporaryDirectory()
os.environ["LIBTPU_INIT_ARGS"] = (
    f"--xla_jf_dump_to={_FOLDER.name} --xla_jf_dump_llo_text=true"
    if "--instructions" in sys.argv
    else f"--xla_jf_dump_static_llo_profile_to={_FOLDER.name}"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from albert_jax.models import attention_pallas, layer_norm_pallas  # noqa: E402
from albert_jax.models.attention_plain import Heads  # noqa: E402
from albert_jax.models.dropout import RowDropout, row_seeds  # noqa: E402
from albert_jax.perf.tpu.topology import Slice, compile_only_devices, parse_slice  # noqa: E402

TOKENS = 2048  # of the rows of a call of attention
NORMALISED = 8192  # rows of a call of LayerNorm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--layer-norm", action="store_true")
    parser.add_argument("--features", type=int, default=768)
    given = parser.parse_args()
    where = parse_slice(given.topology)
    if given.layer_norm:
        layer_norm(where, given.features, given.instructions)
    else:
        attention(where, given)


def layer_norm(where: Slice, features: int, counts_instructions: bool) -> None:
    def both(x_NF, grad_NF, parameter_F):
        y_NF = layer_norm_pallas.forward(x_NF, parameter_F, parameter_F, 1e-12)
        return y_NF, layer_norm_pallas.backward(x_NF, grad_NF, parameter_F, 1e-12)

    one = jax.sharding.SingleDeviceSharding(compile_only_devices(where)[0])
    x_NF = jax.ShapeDtypeStruct((NORMALISED, features), jnp.bfloat16, sharding=one)
    parameter_F = jax.ShapeDtypeStruct((features,), jnp.float32, sharding=one)
    jax.jit(both).lower(x_NF, x_NF, parameter_F).compile()
    for name, arrays in (("layer_norm_forward", 2), ("layer_norm_backward", 3)):
        if counts_instructions:
            print(f"{name}: {instructions(name):,} instructions")
        else:
            cycles, moved = profiled_cycles(name), arrays * 2 * NORMALISED * features
            share = moved * where.chip.clock / (cycles * where.chip.hbm_bandwidth)
            print(f"{name}: {cycles:,} cycles, {share:.3f} of the HBM's rate")


def attention(where: Slice, given: argparse.Namespace) -> None:
    rows = TOKENS // given.length
    shape = rows, given.length, given.heads * given.head_size

    def loss(query_BSND, key_BSND, value_BSND, mask_BS):
        drawn = RowDropout(given.dropout, row_seeds(jax.random.key(0), rows))
        heads = Heads(query_BSND, key_BSND, value_BSND)
        out = attention_pallas.rows(heads, mask_BS, dropout=drawn if given.dropout else None)
        return out.astype(jnp.float32).sum()

    def gradients(x_BSH, mask_BS):
        x_BSND = x_BSH.reshape(*x_BSH.shape[:2], given.heads, given.head_size)
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(x_BSND, x_BSND, x_BSND, mask_BS)

    one = jax.sharding.SingleDeviceSharding(compile_only_devices(where)[0])
    x_BSH = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=one)
    mask_BS = jax.ShapeDtypeStruct(shape[:2], jnp.float32, sharding=one)
    jax.jit(gradients).lower(x_BSH, mask_BS).compile()
    for name, matmuls in (("attention_rows_forward", 2), ("attention_rows_backward", 5)):
        if given.instructions:
            print(f"{name}: {instructions(name):,} instructions")
        else:
            cycles = profiled_cycles(name)
            flops = 2 * matmuls * rows * given.length**2 * given.heads * given.head_size
            share = flops * where.chip.clock / (cycles * where.chip.peak_flops)
            print(f"{name}: {cycles:,} cycles, {share:.3f} of peak")


def instructions(kernel: str) -> int:
    """Of one step of the grid, with loops counted once; a TPU issues one a cycle."""
    (analysis,) = Path(_FOLDER.name).glob(f"*{kernel}*-schedule-analysis_final_bundles.txt")
    (count,) = re.findall(r"total scheduled bundles:\s*(\d+)", analysis.read_text())
    return int(count)


def profiled_cycles(kernel: str) -> int:
    """Of the whole call, with its transfers."""
    (profile,) = Path(_FOLDER.name).glob(f"*{kernel}*")
    return int(re.findall(rb"estimated_cycles: (\d+)", profile.read_bytes())[0])


if __name__ == "__main__":
    main()
