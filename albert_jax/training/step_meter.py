# SPDX-License-Identifier: Apache-2.0
"""Report on training steps in the log: means, learning rate, speed, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from albert_jax.models.flops import peak_flops
from albert_jax.training.metrics import MetricsLog
from albert_jax.training.pipeline import StepResult
from albert_jax.training.position import Tally

# Figures that a line shows in their own form.
_SHOWN_APART = {"grad_norm", "learning_rate", "sequences_per_second", "tokens_per_second"}
_SHOWN_APART |= {"input_wait", "passes", "mfu", "flops"}


@dataclass(frozen=True)
class Workload:
    """Hold what a run's figures are computed from."""

    steps: int
    """Updates of the whole run."""
    rows: Callable[[int], int]
    """Rows in the batch of a number, of all processes."""
    flops: Callable[[int], float]
    """Of the first so many batches, forward and backward, as `models.flops` counts them."""
    schedule: Callable[[int], Any]
    """The learning rate of an update, counted from 0."""
    passes: Callable[[int], float]
    """Passes over the data in the first so many batches."""


class StepMeter:
    """Turn steps into the log's figures: means since its last line, rates, MFU, time left."""

    def __init__(self, workload: Workload, devices: Sequence[jax.Device]) -> None:
        self._workload = workload
        peak = peak_flops(devices[0].device_kind)
        self._peak = peak and peak * len(devices)
        self._since: float | None = None  # when the last step finished; the first one compiles
        self._forget()

    def _forget(self) -> None:
        self._steps = self._tokens = self._rows = 0
        self._waited = self._spent = self._flops = 0.0

    def restart_clock(self) -> None:
        """Leave out the time since the last step, for example an evaluation's."""
        self._since = time.perf_counter()

    def stepped(self, step: StepResult) -> None:
        """Count a step that has just finished."""
        now = time.perf_counter()
        if self._since is not None:
            self._spent += now - self._since
            self._steps += 1
            self._tokens += step.tokens
            self._rows += self._workload.rows(step.batch)
            if self._peak:
                flops = self._workload.flops
                self._flops += flops(step.batch + 1) - flops(step.batch)
            self._waited += step.waited
        self._since = now

    def report(self, step: StepResult, tally: Tally, log: MetricsLog) -> dict[str, float]:
        """Write a line and return its figures.

        They are the tally's means, this step's learning rate and trust ratios, and rates.
        """
        scalars = tally.means()
        scalars["learning_rate"] = float(self._workload.schedule(step.number - 1))
        if (ratios := step.metrics.get("trust_ratio")) is not None:
            scalars |= {
                "trust_ratio_min": float(np.min(ratios)),
                "trust_ratio_median": float(np.median(ratios)),
                "trust_ratio_max": float(np.max(ratios)),
            }
        scalars |= self._rates()
        scalars["passes"] = self._workload.passes(step.batch + 1)
        scalars["flops"] = self._workload.flops(step.batch + 1)
        log.scalars("train", step.number, scalars, line=self._line(step.number, scalars))
        self._forget()
        return scalars

    def _rates(self) -> dict[str, float]:
        """Return the rates.

        None before a step was timed, because the first includes compilation.
        """
        if not self._steps:
            return {}
        seconds = max(self._spent, 1e-9)
        rates = {
            "sequences_per_second": self._rows / seconds,
            "tokens_per_second": self._tokens / seconds,
            "input_wait": min(1.0, self._waited / seconds),
        }
        if self._peak:
            rates["mfu"] = self._flops / seconds / self._peak
        return rates

    def _line(self, step: int, s: Mapping[str, float]) -> str:
        learnt = [
            figure(n, v)
            for n, v in s.items()
            if n not in _SHOWN_APART and not n.startswith("trust_")
        ]
        parts = [f"step {step}/{self._workload.steps}", *learnt]
        parts += [f"|g| {s['grad_norm']:.3g}", f"lr {s['learning_rate']:.3g}"]
        if "trust_ratio_median" in s:
            low, middle, high = (s[f"trust_ratio_{n}"] for n in ("min", "median", "max"))
            parts.append(f"trust {low:.2g}/{middle:.2g}/{high:.2g}")
        if self._steps:
            parts.append(
                f"{s['sequences_per_second']:.1f} seq/s  {s['tokens_per_second']:,.0f} tok/s"
            )
        if "mfu" in s:
            parts.append(f"MFU {s['mfu']:.1%}")
        if s.get("input_wait", 0.0) > 0.05:
            parts.append(f"input wait {s['input_wait']:.0%}")
        parts.append(f"pass {s['passes']:.2f}")
        if self._steps:
            parts.append(f"left {self._time_left(step)}")
        return "  ".join(parts)

    def _time_left(self, step: int) -> str:
        left = math.ceil((self._workload.steps - step) * self._spent / self._steps)
        hours, rest = divmod(left, 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def figure(name: str, value: float) -> str:
    """Return "NAME VALUE" for people: a loss in nats, an accuracy in percent."""
    return f"{name} {value:.2%}" if name.endswith("accuracy") else f"{name} {value:.4f}"
