# SPDX-License-Identifier: Apache-2.0
"""Define what `benchmark` and `sweep` return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.results import Result

# The figures that are shown for a measurement, also in a sweep.
_MEASURED = ("step_ms", "ms_per_sequence", "sequences_per_second", "mfu", "peak_bytes")


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedStep(Result):
    """Hold the settings of a step, with what was unset filled in.

    Attributes:
        model: a released model's name, or a directory.
        phase: train, forward, finetune or input.
        batch_size: sequences in one step; of an estimate, on one chip.
        sequence: tokens in a sequence.
        predictions: masked positions in a sequence.
        dtype: of matmuls and activations.
        remat: what the backward pass recomputes.
        attention: the attention kernel.
        unroll: layers that are unrolled in one turn of the scan.
        accumulate: micro-batches in one update.
        mode: jit or pmap.
    """

    model: str
    phase: str
    batch_size: int
    sequence: int
    predictions: int
    dtype: str
    remat: str
    attention: str
    unroll: int
    accumulate: int
    mode: str


@dataclass(frozen=True, kw_only=True, eq=False)
class StepSetting(AskedStep):
    """Add the size of the model to the settings of a step.

    Attributes:
        parameters: the number of parameters.
    """

    parameters: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeSpread(Result):
    """Hold quartiles of the times of single steps, in milliseconds.

    Attributes:
        steps: the number of steps.
        least: the minimum.
        quarter: the first quartile.
        three_quarters: the third quartile.
        most: the maximum.
    """

    steps: int
    least: float
    quarter: float
    three_quarters: float
    most: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkResult(StepSetting):
    """Hold what every phase of `benchmark` measures.

    Attributes:
        store: the token store that gave the batches, or None.
        commit: the commit of this package's code, if it runs from a repository.
        versions: the versions of the libraries.
        device: the kind of the devices.
        devices: the number of devices.
        compile_seconds: the time of compilation; None in the phase input.
        step_ms: the median time of single steps, each waited for; in the phase input the mean time
            of drawing a batch.
        step_ms_of: the quartiles of these times.
        ms_per_sequence: milliseconds for each sequence, over steps in a row.
        sequences_per_second: over steps in a row.
        tokens_per_second: over steps in a row.
        mfu: the model's FLOP/s as a fraction of the peak; None if the device's peak is unknown.
        peak_bytes: the peak of memory.
        peak_bytes_of: who counted it: device, program or process.
    """

    store: str | None
    commit: str | None
    versions: dict[str, str]
    device: str
    devices: int
    compile_seconds: float | None
    step_ms: float
    step_ms_of: TimeSpread
    ms_per_sequence: float
    sequences_per_second: float
    tokens_per_second: float
    mfu: float | None
    peak_bytes: int
    peak_bytes_of: str

    def shown(self) -> Mapping[str, Any]:
        """Return the settings, the device, times, rates and memory."""
        asked = ("model", "phase", "batch_size", "sequence", "dtype", "device", "devices")
        return {name: self[name] for name in (*asked, "compile_seconds", *_MEASURED)}


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBenchmark(BenchmarkResult):
    """Add what `benchmark` measures of a step on the devices.

    Attributes:
        compile_seconds: the time of compilation.
        trace_seconds: the time of tracing and lowering.
        pipelined_step_ms: the mean time of steps in a row.
        input_wait: the fraction of this time that the steps waited for a store's batches; None
            without a store.
        tflop_per_step: the model's arithmetic, in 10^12 FLOPs.
        tflop_per_second: the model's arithmetic in each second.
        peak_flops: the peak FLOP/s in the device's data sheet; None if it is unknown.
        losses: the loss of each step.
    """

    compile_seconds: float
    trace_seconds: float
    pipelined_step_ms: float
    input_wait: float | None
    tflop_per_step: float
    tflop_per_second: float
    peak_flops: float | None
    losses: list[float]


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepPoint(Result):
    """Hold one setting of a sweep; in JSON its three fields are one object.

    Attributes:
        change: the settings that were varied.
        measured: the measurement; None if the step does not fit.
        error: why the step does not fit, or None.
    """

    change: JsonObject
    measured: BenchmarkResult | None = None
    error: str | None = None

    def to_json(self) -> JsonObject:
        found = self.change | (self.measured.to_json() if self.measured else {})
        if self.measured is not None:
            found["varied"] = [*self.change]
        return found | ({"error": self.error} if self.error is not None else {})

    def shown(self) -> Mapping[str, Any]:
        """Return what was varied, and the time, the rates and the memory, or the error."""
        if self.measured is None:
            return {**self.change, "error": self.error}
        return self.change | {name: self.measured[name] for name in _MEASURED}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SweepPoint:
        if "error" in document:
            change = {key: value for key, value in document.items() if key != "error"}
            return cls(change=change, error=document["error"])
        kind = BenchmarkResult if document["phase"] == "input" else StepBenchmark
        measured = kind.from_json(document)
        varied = document.get("varied", [*(document.keys() - measured)])
        return cls(change={k: document[k] for k in varied}, measured=measured)
