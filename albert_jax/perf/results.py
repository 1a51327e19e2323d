# SPDX-License-Identifier: Apache-2.0
"""What `benchmark` and a sweep of it return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.results import Result

# What is shown of a measurement, also of each in a sweep.
_MEASURED = ("step_ms", "ms_per_sequence", "sequences_per_second", "mfu", "peak_bytes")


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedStep(Result):
    """The step that was asked about, with what was unset filled in."""

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
    """The step that figures are of, and how large its model is."""

    parameters: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeSpread(Result):
    """Milliseconds of the steps that were each waited for, and how many there were."""

    steps: int
    least: float
    quarter: float
    three_quarters: float
    most: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkResult(StepSetting):
    """What every `benchmark` measures; `benchmark --phase input` measures nothing else.

    `step_ms` is the median of steps each waited for, in the phase input the mean time of drawing a
    batch. Rates are of steps in a row. `mfu` is None where the device's peak is not known.
    `peak_bytes_of` is device, program or process: whose count `peak_bytes` is.
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
        """Return what was asked, where it ran, times, rates and memory."""
        asked = ("model", "phase", "batch_size", "sequence", "dtype", "device", "devices")
        return {name: self[name] for name in (*asked, "compile_seconds", *_MEASURED)}


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBenchmark(BenchmarkResult):
    """What `benchmark` measures of a step on the devices.

    `pipelined_step_ms` is the mean of steps in a row, `input_wait` the share of their time that
    went by waiting for a store's batches, `peak_flops` the FLOP/s of the data sheet.
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
    """One setting of a sweep: `change` is what was varied, and either it was measured or `error`
    says why it does not fit. In JSON the three are one object."""

    change: JsonObject
    measured: BenchmarkResult | None = None
    error: str | None = None

    def to_json(self) -> JsonObject:
        found = self.change | (self.measured.to_json() if self.measured else {})
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
        return cls(change={k: document[k] for k in document.keys() - measured}, measured=measured)
