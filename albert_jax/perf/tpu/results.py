# SPDX-License-Identifier: Apache-2.0
"""Define what `estimate` returns, and the rows of a table of estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from albert_jax.perf.results import AskedStep, StepSetting
from albert_jax.utils.results import Result

TABLE_FORMAT = 1  # of a table's rows; 0.1 wrote rows of this format without its number


@dataclass(frozen=True, kw_only=True, eq=False)
class OperationCost(Result):
    """Hold the estimated cost of an operation in the compiled program.

    Attributes:
        ms: milliseconds of all its runs in one step.
        name: the operation's name.
        source: the line of code that it comes from.
        kind: how the time is known: cycles, kernel, collective, copy or bytes.
        times: the number of its runs in one step.
        bytes: the bytes of all its runs in one step.
        flops: the FLOPs of all its runs in one step.
    """

    ms: float
    name: str
    source: str
    kind: str  # cycles | kernel | collective | copy | bytes
    times: int
    bytes: float
    flops: float


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelCost(OperationCost):
    """Add the assumed speed of a kernel.

    Attributes:
        of_peak: the fraction of the chip's peak at which the kernel is assumed to run.
        of_bandwidth: the fraction of the HBM's rate at which the kernel is estimated to move the
            bytes that it declares; None in a result of an older version.
    """

    of_peak: float
    of_bandwidth: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class HbmBytes(Result):
    """Hold the bytes of a chip's HBM by kind.

    Attributes:
        arguments: parameters, optimizer state and batch.
        outputs: the step's results.
        aliased: outputs that take the place of arguments.
        temporaries: activations and other intermediate values.
        code: the program.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int


@dataclass(frozen=True, kw_only=True, eq=False)
class EstimateResult(StepSetting):
    """Hold an estimate of a step on a TPU slice, compiled by the TPU's own compiler.

    If a chip cannot hold the step, `fits` is False and the times are None. `batch_size` is a
    chip's.

    Attributes:
        topology: the slice, as v5e:2x2.
        chips: the number of chips.
        global_batch_size: sequences in one step over all chips.
        steps: the steps of the run.
        commit: the commit of this package's code, if it runs from a repository.
        versions: the versions of the libraries.
        fits: whether a chip holds the step.
        out_of_memory: the error, with the memory that is missing; None if the step fits.
        hbm_bytes: the memory that the step needs on a chip.
        hbm_capacity_bytes: the memory of a chip.
        step_ms: the estimated time of a step.
        ms_per_sequence_per_chip: the same for each sequence of a chip.
        mfu: the model's FLOP/s as a fraction of the peak.
        days: the estimated time of `steps` steps.
        collective_bytes: bytes that a chip sends in one step.
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
        """Return the settings, whether the step fits, and its time."""
        asked = ("model", "topology", "chips", "batch_size", "global_batch_size", "remat", "fits")
        memory = ("hbm_bytes", "hbm_capacity_bytes")
        times = ("step_ms", "ms_per_sequence_per_chip", "mfu", "days") if self.fits else ()
        return {name: self[name] for name in (*asked, *memory, *times)}


@dataclass(frozen=True, kw_only=True, eq=False)
class FittingEstimate(EstimateResult):
    """Add the details of a step that a chip holds.

    Attributes:
        hbm_bytes: the memory that the step needs on a chip.
        step_ms: the estimated time of a step.
        ms_per_sequence_per_chip: the same for each sequence of a chip.
        mfu: the model's FLOP/s as a fraction of the peak.
        days: the estimated time of `steps` steps.
        collective_bytes: bytes that a chip sends in one step.
        compile_seconds: the time of compilation.
        hbm_of: the memory by kind.
        tflop_per_step: the model's arithmetic on one chip, in 10^12 FLOPs.
        matmuls_of_model: the program's FLOPs in matmuls, as a fraction of the model's FLOPs.
        ms_of: `step_ms` by the source of the estimate: the compiler's cycles and, for operations
            without, kernels' FLOPs, links and bytes.
        collectives: the operations between chips.
        kernels: the operations that are kernels of this package.
        unknown_loops: loops whose number of turns is unknown; they are counted once.
        operations: the most expensive operations.
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
    """Hold a row of a table of estimates.

    Attributes:
        versions: the versions of jax and libtpu.
        date: the day, in UTC.
    """

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
