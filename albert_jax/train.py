# SPDX-License-Identifier: Apache-2.0
"""THE training loop. It knows steps, batches, checkpoints and clocks, and nothing of what is being
learnt."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
import orbax.checkpoint

from albert_jax import __version__, processes
from albert_jax.checkpoint import Checkpointer
from albert_jax.config import GuardConfig, TrainConfig
from albert_jax.errors import TryAgain, UserError
from albert_jax.flops import peak_flops
from albert_jax.guards import LossGuard, StopSignals, Watchdog
from albert_jax.metrics_log import MetricsLog
from albert_jax.parallel import Placement
from albert_jax.step import TrainState

HostBatch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Position:
    """Where a run stands: updates made, the next batch to draw, and the ranges of batches left out
    as offending."""

    step: int = 0
    batch: int = 0
    left_out: tuple[tuple[int, int], ...] = ()

    def to_meta(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "batch": self.batch,
            "left_out": [list(r) for r in self.left_out],
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Position:
        return cls(meta["step"], meta["batch"], tuple((a, b) for a, b in meta["left_out"]))


@dataclass(frozen=True)
class Workload:
    """What the loop needs to know of the work for its figures: FLOPs a row, and passes over the
    data at a row."""

    flops_per_row: float
    passes: Callable[[int], float]


def resume(
    checkpointer: Checkpointer, state: TrainState, expect: Mapping[str, Any]
) -> tuple[TrainState, Position] | None:
    """The newest good checkpoint's state, placed as `state` is, and its position; None where there
    is none."""
    restored = checkpointer.restore(state, expect=expect)
    if restored is None:
        return None
    state, meta = restored
    return state, Position.from_meta(meta["position"])


def fit(
    config: TrainConfig,
    guard: GuardConfig,
    *,
    state: TrainState,
    position: Position,
    step: Callable[..., Any],
    schedule: Callable[[int], Any],
    placement: Placement,
    batches: Callable[[int, int | None], Iterator[HostBatch]],
    evaluate: Callable[[Any, int], dict[str, float]] | None,
    checkpointer: Checkpointer,
    expect: Mapping[str, Any],
    workload: Workload,
    log: MetricsLog,
) -> TrainState:
    """Trains from `position` to `config.steps` and returns the final state as plain arrays.

    `step` is a pure training step; `batches(start, stop)` draws host batches by number;
    `evaluate(params, step)` gets parameters as placed. Checkpoints carry `expect`, what a run that
    resumes must have in common. Raises TryAgain when stopped by a signal (a checkpoint is saved
    first), UserError when the guard gives up or a checkpoint cannot be saved.
    """
    run = _Run(config, placement, checkpointer, expect, log)
    losses = LossGuard(guard)
    rollbacks = 0
    if position.step == 0 and not checkpointer.steps():
        run.save(state, position)  # a rollback needs a target, and a full disk should show now
    template = jax.tree.map(_shape_of, state)
    compiled = placement.compile(step)
    live = placement.put_state(state)
    del state
    stream = _stream(batches, position)
    in_flight: collections.deque[tuple[int, int, Any]] = collections.deque()
    meter = Meter(config, placement, workload, schedule)
    stopping = processes.StopTogether() if processes.several() else StopSignals()
    with stopping as signals, Watchdog(guard.step_timeout) as watchdog:
        while position.step < config.steps:
            started = time.perf_counter()
            number, batch = next(stream)
            meter.waited(time.perf_counter() - started, batch)
            on_device = placement.put_batch(batch)
            with jax.transfer_guard("disallow"):  # a stray synchronisation is an error
                live, metrics = compiled(live, on_device)
            position = Position(position.step + 1, number + 1, position.left_out)
            in_flight.append((position.step, number, metrics))
            stop_now = signals.due()
            saving = run.save_due(position.step)
            evaluating = evaluate is not None and _due(
                position.step, config.eval_every, config.steps
            )
            boundary = stop_now or evaluating or saving or position.step == config.steps
            bad = None
            while bad is None and len(in_flight) > (0 if boundary else placement.max_in_flight):
                at, number, metrics = in_flight.popleft()
                values = placement.fetch(metrics)
                watchdog.beat(f"step {at}")
                bad = losses.observe(number, float(values["loss"]), skipped=values["skipped"] > 0)
                if bad is not None:
                    break
                meter.add(values)
                if at % config.log_every == 0 or at == config.steps:
                    meter.report(at, position.batch, log)
                log.progress(at, f"loss {float(values['loss']):.3f}")
            if bad is not None:
                rollbacks += 1
                in_flight.clear()
                stream.close()
                live = None  # its memory is wanted by the restored state
                state, position = run.roll_back(template, position, bad, rollbacks, guard)
                live = placement.put_state(state)
                del state
                losses.reset()
                meter.restart()
                stream = _stream(batches, position)
                continue
            if evaluating:
                run.evaluate(evaluate, live, position.step)
                watchdog.beat(f"the evaluation at step {position.step}")
                meter.restart_clock()
            final = position.step == config.steps
            if stop_now or final or (saving and not losses.spiking):
                run.save(placement.get_state(live), position, wait=stop_now or final)
                rollbacks = 0
                watchdog.beat(f"the checkpoint at step {position.step}")
            if stop_now and not final:
                stream.close()
                raise TryAgain(
                    f"stopped by {signals.requested} after step {position.step}, which is saved in "
                    f"{checkpointer.directory}; run the same command again to go on"
                )
    stream.close()
    return placement.get_state(live)


def log_evaluation(
    log: MetricsLog, step: int, values: Mapping[str, float], of: str = "held out"
) -> None:
    """Records what an evaluation found, and says it: by its own `line`, where it has one."""
    figures = "  ".join(_figure(name, value) for name, value in values.items())
    text = getattr(values, "line", figures)
    log.scalars("eval", step, values, line=f"step {step}  {of}:  {text}")


def _figure(name: str, value: float) -> str:
    """A loss in nats, an accuracy in percent."""
    return f"{name} {value:.2%}" if name.endswith("accuracy") else f"{name} {value:.4f}"


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _stream(
    batches: Callable[[int, int | None], Iterator[HostBatch]], position: Position
) -> Iterator[tuple[int, HostBatch]]:
    """(number, batch) from the position on, without the ranges left out."""
    start = position.batch
    for first, after in [*sorted(position.left_out), (None, None)]:
        if first is not None and after <= start:
            continue
        if first is None or start < first:
            drawn = batches(start, first)
            try:
                yield from enumerate(drawn, start)
            finally:
                getattr(drawn, "close", lambda: None)()
        start = after


@dataclass
class _Run:
    """What saving, evaluating and rolling back have in common."""

    config: TrainConfig
    placement: Placement
    checkpointer: Checkpointer
    expect: Mapping[str, Any]
    log: MetricsLog
    saved_at: float = field(default_factory=time.monotonic)

    def save_due(self, step: int) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60
        late = self.config.save_minutes > 0 and minutes >= self.config.save_minutes
        if processes.several():  # each has its own clock, and asking another costs time
            late = step % self.config.log_every == 0 and processes.gather(late)[0]
        return late or _due(step, self.config.save_every, self.config.steps)

    def save(self, state: TrainState, position: Position, *, wait: bool = False) -> None:
        meta = {**self.expect, "position": position.to_meta(), "versions": versions()}
        self.checkpointer.save(position.step, state, meta, wait=wait)
        self.saved_at = time.monotonic()

    def evaluate(
        self, evaluate: Callable[[Any, int], dict[str, float]], live: TrainState, step: int
    ) -> None:
        log_evaluation(self.log, step, evaluate(live.params, step))

    def roll_back(
        self,
        template: TrainState,
        position: Position,
        bad: tuple[str, int],
        rollbacks: int,
        guard: GuardConfig,
    ) -> tuple[TrainState, Position]:
        """The last good checkpoint with the offending batches left out from now on; gives up when
        too often."""
        reason, first = bad
        if rollbacks > guard.max_rollbacks:
            raise UserError(
                f"{reason} at batch {first}, after {guard.max_rollbacks} rollbacks since the last "
                f"checkpoint "
                f"({self.checkpointer.steps()[-1]}); lower --optimizer.learning-rate, lengthen "
                "--optimizer.warmup-steps, or look at the data"
            )
        left_out = (*position.left_out, (first, position.batch))
        restored = resume(self.checkpointer, template, self.expect)
        if restored is None:
            raise UserError(f"{reason} at batch {first}, and there is no checkpoint to go back to")
        state, back = restored
        self.log.rewind(back.step)
        self.log.event(
            back.step,
            f"{reason}: rolled back from step {position.step} to step {back.step}, "
            f"leaving out batches "
            f"{first} to {position.batch - 1} (rollback {rollbacks} of {guard.max_rollbacks})",
            batches=[first, position.batch],
        )
        return state, Position(back.step, back.batch, left_out)


class Meter:
    """Turns steps into figures: means since the last report, rates, MFU, time left."""

    def __init__(
        self,
        config: TrainConfig,
        placement: Placement,
        workload: Workload,
        schedule: Callable[[int], Any],
    ) -> None:
        self._config, self._workload, self._schedule = config, workload, schedule
        peak = peak_flops(placement.devices[0].device_kind)
        self._peak = peak and peak * len(placement.devices)
        self._first = True
        self.restart()

    def restart(self) -> None:
        """Forgets the steps since the last report."""
        self._values: list[dict[str, Any]] = []
        self._tokens = 0
        self._wait = 0.0
        self._spent = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out what passed since the last step, as an evaluation."""
        self._since = time.perf_counter()

    def waited(self, seconds: float, batch: HostBatch) -> None:
        """The step waited so long for this batch."""
        self._wait += seconds
        if "input_mask" in batch:
            # Of its own rows, taken for those of every process.
            self._tokens += int(batch["input_mask"].sum()) * jax.process_count()

    def add(self, values: dict[str, Any]) -> None:
        """A finished step's metrics."""
        now = time.perf_counter()
        if self._first:  # it compiled
            self._first = False
            self.restart_clock()
            return
        self._spent += now - self._since
        self._since = now
        self._values.append(values)

    def report(self, step: int, batch: int, log: MetricsLog) -> None:
        """Writes the figures since the last report and begins anew."""
        if not self._values:
            return
        count, size = len(self._values), self._config.batch_size
        scalars = {
            name: float(np.mean([v[name] for v in self._values]))
            for name in self._values[0]
            if name not in ("skipped", "trust_ratio")
        }
        scalars["learning_rate"] = float(
            self._schedule(step - 1)
        )  # the rate this step was made with
        ratios = self._values[-1].get("trust_ratio")
        if ratios is not None:
            scalars |= {
                "trust_ratio_min": float(np.min(ratios)),
                "trust_ratio_median": float(np.median(ratios)),
                "trust_ratio_max": float(np.max(ratios)),
            }
        seconds = max(self._spent, 1e-9)
        rate = count * size / seconds
        scalars |= {
            "sequences_per_second": rate,
            "tokens_per_second": self._tokens / seconds,
            "input_wait": min(1.0, self._wait / seconds),
            "passes": self._workload.passes(batch * size),
        }
        if self._peak:
            scalars["mfu"] = rate * self._workload.flops_per_row / self._peak
        left = (self._config.steps - step) * seconds / count
        log.scalars("train", step, scalars, line=_line(step, self._config.steps, scalars, left))
        self.restart()


def _line(step: int, steps: int, s: Mapping[str, float], seconds_left: float) -> str:
    fixed = {
        "grad_norm",
        "learning_rate",
        "sequences_per_second",
        "tokens_per_second",
        "input_wait",
        "passes",
        "mfu",
    }
    learnt = [
        _figure(n, v) for n, v in s.items() if n not in fixed and not n.startswith("trust_ratio")
    ]
    parts = [
        f"step {step}/{steps}",
        *learnt,
        f"|g| {s['grad_norm']:.3g}",
        f"lr {s['learning_rate']:.3g}",
    ]
    if "trust_ratio_median" in s:
        low, middle, high = (s[f"trust_ratio_{n}"] for n in ("min", "median", "max"))
        parts.append(f"trust {low:.2g}/{middle:.2g}/{high:.2g}")
    parts.append(f"{s['sequences_per_second']:.1f} seq/s  {s['tokens_per_second']:,.0f} tok/s")
    if "mfu" in s:
        parts.append(f"MFU {s['mfu']:.1%}")
    if s["input_wait"] > 0.05:
        parts.append(f"input wait {s['input_wait']:.0%}")
    hours, rest = divmod(math.ceil(seconds_left), 3600)
    parts.append(f"pass {s['passes']:.2f}  left {hours}:{rest // 60:02}:{rest % 60:02}")
    return "  ".join(parts)


def versions() -> dict[str, str]:
    """Of what decides a run's bits."""
    modules = (jax, jaxlib, flax, optax, orbax.checkpoint, np)
    found = {module.__name__: module.__version__ for module in modules}
    return {**found, "albert_jax": __version__}
