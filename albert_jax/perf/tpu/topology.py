# SPDX-License-Identifier: Apache-2.0
"""Describe TPU chips and slices, and get libtpu's compiler for a slice on any machine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from albert_jax.models.flops import PEAK_FLOPS
from albert_jax.perf.tpu import libtpu
from albert_jax.training.memory import GIB
from albert_jax.utils.errors import UserError


@dataclass(frozen=True)
class Chip:
    """Describe one TPU chip; bandwidths in bytes a second.

    `hbm_bytes` is what the compiler lets programs take. `clock` is the rate of its cycles: the peak
    over the FLOPs of all MXUs in a cycle, which fits its estimate for one large matmul. `link` is
    one direction of one link to a neighbour, as in "How to Scale Your Model" (2025), chapter 2.
    """

    peak_flops: float  # dense bfloat16
    clock: float
    hbm_bytes: int
    hbm_bandwidth: float
    link: float
    shapes: tuple[str, ...]
    largest: int  # chips in one slice
    ring: int  # an axis closes to a ring if it is a multiple of this number of chips
    mxu: int = 128  # rows and columns that one MXU multiplies by
    options: tuple[tuple[str, str], ...] = ()


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# HBM rates: Google Cloud's pages on each version. The two cores of a v4 chip run as one
# device ("megacore"), as Cloud TPU has them; a v5p's do by default.
CHIPS: dict[str, Chip] = {
    "v4": Chip(
        peak_flops=PEAK_FLOPS["TPU v4"],
        clock=1.05e9,
        hbm_bytes=int(30.75 * GIB),
        hbm_bandwidth=1.2e12,
        link=45e9,
        shapes=(*_DEEP, "8x16x16", "12x16x16"),
        largest=4096,
        ring=4,
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        peak_flops=PEAK_FLOPS["TPU v5e"],
        clock=1.5e9,
        hbm_bytes=int(15.75 * GIB),
        hbm_bandwidth=819e9,
        link=45e9,
        shapes=_FLAT,
        largest=256,
        ring=16,
    ),
    "v5p": Chip(
        peak_flops=PEAK_FLOPS["TPU v5p"],
        clock=1.75e9,
        hbm_bytes=int(95.73 * GIB),
        hbm_bandwidth=2.765e12,
        link=90e9,
        shapes=(*_DEEP, "8x16x16", "16x16x24"),
        largest=8960,
        ring=4,
    ),
    "v6e": Chip(
        peak_flops=PEAK_FLOPS["TPU v6e"],
        clock=1.75e9,
        hbm_bytes=int(31.24 * GIB),
        hbm_bandwidth=1.64e12,
        link=90e9,
        shapes=_FLAT,
        largest=256,
        ring=16,
        mxu=256,
    ),
}

_TOPOLOGY = re.compile(r"(v\w+):(\d+(?:x\d+){1,2})")


@dataclass(frozen=True)
class Slice:
    """Describe chips that are rented together, as "v5e:2x2" names them."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The chips' version, "v5e"."""
        return self.name.partition(":")[0]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def ring_bandwidth(self) -> float:
        """The bytes a second that a chip sends in an all-reduce over all chips.

        It uses one link along each axis, two if the axis closes to a ring.
        """
        ring = self.chip.ring
        return sum(self.chip.link * (1 if n % ring else 2) for n in self.shape if n > 1)


def parse_slice(name: str) -> Slice:
    """Return the slice of that name; raises UserError, which lists the known ones."""
    found = _TOPOLOGY.fullmatch(name)
    if not found or found[1] not in CHIPS:
        raise UserError(f"topology {name!r} is unknown; known: {_known()}")
    chip, shape = CHIPS[found[1]], tuple(int(n) for n in found[2].split("x"))
    axes = chip.shapes[0].count("x") + 1
    if len(shape) != axes:
        raise UserError(
            f"topology {name!r} has {len(shape)} numbers, and a slice of {found[1]} has {axes}; "
            f"known: {', '.join(chip.shapes)}"
        )
    if not 0 < math.prod(shape) <= chip.largest:
        raise UserError(
            f"topology {name!r} is no slice of {found[1]}, of up to {chip.largest} chips; "
            f"known: {', '.join(chip.shapes)}"
        )
    return Slice(name, chip, shape)


def _known() -> str:
    return "; ".join(
        f"{chip}:{CHIPS[chip].shapes[0]} ({', '.join(CHIPS[chip].shapes[1:])})" for chip in CHIPS
    )


def compile_only_devices(wanted: Slice) -> tuple[jax.Device, ...]:
    """Return the slice's devices, one for each chip, to compile programs that are never run.

    Raises UserError if libtpu is not installed, or knows no such slice.
    """
    if not libtpu.is_installed():
        raise UserError(
            "estimate needs the TPU compiler, libtpu, which is not installed here; "
            "pip install 'albert-jax[tpu]'"
        )
    libtpu.use_without_chips()  # a training run on this machine is left alone
    # By default a host has a square of four chips, and libtpu 0.0.42 refuses a slice of fewer ("not
    # divisible by the given (or default) chips_per_host_bounds").
    host = [min(chips, most) for chips, most in zip((*wanted.shape, 1), (2, 2, 1), strict=False)]
    try:
        found = topologies.get_topology_desc(
            wanted.name, "tpu", chips_per_host_bounds=host, **dict(wanted.chip.options)
        ).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"libtpu makes no topology {wanted.name!r}: {reason}; known: {_known()}"
        ) from None
    return tuple(found)
