# SPDX-License-Identifier: Apache-2.0
"""What `estimate` returns, and what a table keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from albert_jax.perf.results import AskedStep, StepSetting
from albert_jax.utils.results import Result

TABLE_FORMAT = 1  # of a table's rows; 0.1 wrote rows of this format without its number


@dataclass(frozen=True, kw_only=True, eq=False)
class OperationCost(Result):
    """Work of the compiled program; time, bytes and FLOPs are of all its `times` runs in a step."""

    ms: float
    name: str
    source: str
    kind: str  # cycles | kernel | collective | copy | bytes
    times: int
    bytes: float
    flops: float


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelCost(OperationCost):
    """A kernel, and at which share of the chip's peak it is taken to run."""

    of_peak: float


@dataclass(frozen=True, kw_only=True, eq=False)
class HbmBytes(Result):
    """Bytes of a chip's HBM by kind; `aliased` are outputs in their arguments' place."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int


@dataclass(frozen=True, kw_only=True, eq=False)
class EstimateResult(StepSetting):
    """A step on a TPU slice by the TPU's own compiler; `batch_size` is a chip's.

    Where a chip does not hold the step, `fits` is False, `out_of_memory` says by how much, and
    times are None. `days` are of `steps` steps.
    """

    topology: str
    chips: int
    global_batch_size: int
    steps: int
    commit: str | None
    versions: dict[str, str]
    fits: bool
    out_of_memory: str | None = None
    hbm_bytes: int | None
    hbm_capacity_bytes: int
    step_ms: float | None = None
    ms_per_sequence_per_chip: float | None = None
    mfu: float | None = None
    days: float | None = None
    collective_bytes: int | None = None

    def shown(self) -> Mapping[str, Any]:
        """Return what was asked, whether it fits, and the step's time."""
        asked = ("model", "topology", "chips", "batch_size", "global_batch_size", "remat", "fits")
        memory = ("hbm_bytes", "hbm_capacity_bytes")
        times = ("step_ms", "ms_per_sequence_per_chip", "mfu", "days") if self.fits else ()
        return {name: self[name] for name in (*asked, *memory, *times)}


@dataclass(frozen=True, kw_only=True, eq=False)
class FittingEstimate(EstimateResult):
    """A step that a chip holds.

    `ms_of` divides `step_ms` by who tells: the compiler's cycles, and for what it does not estimate
    kernels' FLOPs, links and bytes. `matmuls_of_model` is the share of the program's matmuls in the
    model's FLOPs. `operations` are the most expensive ones.
    """

    hbm_bytes: int
    step_ms: float
    ms_per_sequence_per_chip: float
    mfu: float
    days: float
    collective_bytes: int
    compile_seconds: float
    hbm_of: HbmBytes
    tflop_per_step: float
    matmuls_of_model: float
    ms_of: dict[str, float]
    collectives: list[OperationCost]
    kernels: list[KernelCost]
    unknown_loops: list[str]
    operations: list[OperationCost]


@dataclass(frozen=True, kw_only=True, eq=False)
class EstimateRow(AskedStep):
    """A row of a table of estimates; `date` is the day in UTC, `versions` those of jax and
    libtpu."""

    format_version: int = TABLE_FORMAT
    topology: str
    chips: int
    global_batch_size: int
    fits: bool
    ms_per_sequence_per_chip: float | None
    step_ms: float | None
    ms_of: dict[str, float] | None
    mfu: float | None
    hbm_bytes: int | None
    hbm_capacity_bytes: int
    collective_bytes: int | None
    compile_seconds: float | None
    commit: str | None
    versions: dict[str, str]
    date: str

    @property
    def chip(self) -> str:
        """The kind of chip, as v5e."""
        return self.topology.partition(":")[0]
