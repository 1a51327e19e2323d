# SPDX-License-Identifier: Apache-2.0
"""Describe the devices that a program is lowered for, and operations that differ between them.

The devices need not be this machine's: `estimate` lowers for a TPU on a machine without one.
Therefore the choice is an argument, `Lowering`, by which `attention.py` chooses attention's kernels
and `albert.py` the unrolling of layers. Which devices are here decides only its default and a dtype
that is "auto".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

_CPU_INFO = Path("/proc/cpuinfo")  # on Linux; elsewhere the abilities of a CPU are unknown
_IN_ROWS = Layout(major_to_minor=(0, 1))
_MOST_COLUMNS = 128  # more rows are multiplied as fast untransposed


@dataclass(frozen=True)
class Lowering:
    """Describe what a program is lowered for; `Placement.lowering` is a training step's.

    Attributes:
        backend: "cpu", "gpu" or "tpu"; None is the default backend of this process.
        axis_name: the axis of devices that share a batch; None if one device has all of it.
        unroll: whether all layers are unrolled if `ComputeConfig.scan_unroll` is 0. Compilers then
            optimise across layers and copy no residuals, but compile longer.
        by_columns: for answers on a CPU, whether the kernels of dense layers are held transposed,
            [F, D], for `product_by_columns`.
        writes_activations: whether what a narrowing dense layer reads is written out first. On
            chips whose matrix units outrun their vector units XLA would else compute GELU anew in
            each matmul that reads it.
    """

    backend: str | None = None
    axis_name: str | None = None
    unroll: bool = False
    by_columns: bool = False
    writes_activations: bool = False

    @property
    def platform(self) -> str:
        """The platform: "cpu", "gpu" or "tpu"."""
        return self.backend or jax.default_backend()


def matmul_dtype(dtype: str, platform: str) -> str:
    """Return `dtype`, or for "auto" the faster of "float32" and "bfloat16" on `platform`."""
    if dtype != "auto":
        return dtype
    has_bfloat16 = {"tpu": lambda: True, "gpu": _gpus_have_bfloat16, "cpu": _cpu_has_bfloat16}
    return "bfloat16" if has_bfloat16[platform]() else "float32"


def _gpus_have_bfloat16() -> bool:
    """Return whether this machine's GPUs are Ampere or later; also True without a GPU."""
    return not _gpus_begin_with("5.", "6.", "7.")


def gpus_have_attention() -> bool:
    """Return whether cuDNN has attention for this machine's GPUs; also True without a GPU.

    It has for Ampere and later, of NVIDIA.
    """
    return not _gpus_begin_with("5.", "6.", "7.", "gfx")


def _gpus_begin_with(*versions: str) -> bool:
    """Return whether a GPU of this machine has such a compute capability; False without a GPU."""
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:  # the program is for GPUs elsewhere
        return False
    found = (str(getattr(device, "compute_capability", "")) for device in devices)
    return any(version.startswith(versions) for version in found)


def _cpu_has_bfloat16() -> bool:
    """Return whether this machine's cores have an instruction for bfloat16 matmuls."""
    return not _words(_CPU_INFO).isdisjoint({"avx512_bf16", "amx_bf16"})


@functools.cache
def _words(path: Path) -> set[str]:
    return set(path.read_text(encoding="utf-8").split()) if path.exists() else set()


def matmul(subscripts: str, a: Array, b: Array, platform: str) -> Array:
    """Return `jnp.einsum(subscripts, a, b)` in the dtype of `a`, accumulated in float32.

    XLA's CPU compiler has a fast matmul for bfloat16 operands, but uses it for float32 results
    only; they are rounded afterwards.
    """
    if platform != "cpu":
        return jnp.einsum(subscripts, a, b)
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32).astype(a.dtype)


def product_by_columns(x: Array, kernel_FD: Array) -> Array:
    """Return the product of x and a transposed kernel, [..., D] -> [..., F], on a CPU.

    XLA's matmul packs its right operand at each call. If that is the kernel and the rows are few,
    packing takes up to as long as multiplying. So few rows are the right operand, as columns.
    """
    *rows, depth = x.shape
    x_ND = x.reshape(-1, depth)
    if len(x_ND) > _MOST_COLUMNS:
        return matmul("...D,FD->...F", x, kernel_FD, "cpu")
    # With layouts, as XLA would exchange the operands again to save the transpositions.
    x_DN = with_layout_constraint(x_ND.T, _IN_ROWS)
    y_FN = matmul("FD,DN->FN", kernel_FD, x_DN, "cpu")
    return with_layout_constraint(y_FN, _IN_ROWS).T.reshape(*rows, len(kernel_FD))


def product_over_rows(a_ND: Array, b_NF: Array, platform: str) -> Array:
    """Return a^T b, [N, D] and [N, F] -> [D, F], in the dtype of `a`, accumulated in float32."""
    if platform != "cpu" or a_ND.dtype != jnp.bfloat16:
        return matmul("ND,NF->DF", a_ND, b_NF, platform)
    # The fast matmul also wants the rows last. XLA would take the transposition into the matmul,
    # did the layout not ask for it to be done.
    a_DN = with_layout_constraint(a_ND.T, _IN_ROWS)
    return matmul("DN,NF->DF", a_DN, b_NF, platform)


def sum_of_rows(x: Array, platform: str) -> Array:
    """Return the sum over all dimensions but the last, accumulated in float32: [..., F] -> [F].

    On a TPU it is a matmul with ones, because the matrix unit adds rows faster than the vector
    unit.
    """
    leading = tuple(range(x.ndim - 1))
    if platform != "tpu":
        return x.sum(axis=leading)
    ones = jnp.ones((8, *x.shape[:-1]), x.dtype)  # 8: the rows of a tile
    contracted = tuple(1 + axis for axis in leading), leading
    sums_RF = jax.lax.dot_general(
        ones, x, (contracted, ((), ())), preferred_element_type=jnp.float32
    )
    return sums_RF[0].astype(x.dtype)


def label_logits(logits_NC: Array, labels_N: Array, platform: str) -> Array:
    """Return each row's logit of its label, f32[...], for logits [..., C] and labels [...]."""
    if platform == "cpu":
        return jnp.take_along_axis(logits_NC, labels_N[..., None], axis=-1)[..., 0]
    # Fused into a pass over the logits, where a gather is slow or its gradient is a scatter.
    is_label_NC = jnp.arange(logits_NC.shape[-1]) == labels_N[..., None]
    return jnp.where(is_label_NC, logits_NC, 0.0).sum(axis=-1)
