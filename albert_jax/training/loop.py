# SPDX-License-Identifier: Apache-2.0
"""THE training loop. It knows steps, batches, checkpoints and clocks, and nothing of what is being
learnt."""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from albert_jax.checkpoint.manager import Checkpointer
from albert_jax.config.run import GuardConfig, TrainConfig
from albert_jax.distributed import multihost
from albert_jax.distributed.placement import Placement
from albert_jax.models.flops import peak_flops
from albert_jax.training.guards import LossGuard, StopSignals, Watchdog
from albert_jax.training.metrics import MetricsLog
from albert_jax.training.step import TrainState
from albert_jax.utils import interrupts
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.progress import Tick
from albert_jax.utils.provenance import versions

HostBatch = dict[str, np.ndarray]
Evaluate = Callable[[Any, int, Tick], dict[str, float]]  # (params as placed, step, tick)

# An evaluation of hours must not cost more than this, should it be what a machine is lost in.
UNSAVED_SECONDS = 60.0


@dataclass(frozen=True)
class Tally:
    """Sums over the steps since the last line of the log, so that a line is the same whether the
    run was interrupted before it or not."""

    sums: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0

    def plus(self, values: Mapping[str, Any]) -> Tally:
        """With one more step's metrics."""
        names = [name for name in values if name not in ("skipped", "trust_ratio")]
        sums = {name: self.sums.get(name, 0.0) + float(values[name]) for name in names}
        return Tally(sums, self.steps + 1)

    def means(self) -> dict[str, float]:
        return {name: total / self.steps for name, total in self.sums.items()}


@dataclass(frozen=True)
class Position:
    """Where a run stands: updates made, the next batch to draw, the ranges of batches left out as
    offending, and what of the last steps is not in the log yet."""

    step: int = 0
    batch: int = 0
    left_out: tuple[tuple[int, int], ...] = ()
    tally: Tally = Tally()

    def to_meta(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "batch": self.batch,
            "left_out": [list(r) for r in self.left_out],
            "tally": {"sums": dict(self.tally.sums), "steps": self.tally.steps},
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Position:
        tally = meta.get("tally") or {"sums": {}, "steps": 0}  # 0.1.0 wrote none
        left_out = tuple((a, b) for a, b in meta["left_out"])
        return cls(meta["step"], meta["batch"], left_out, Tally(tally["sums"], tally["steps"]))


@dataclass(frozen=True)
class Run:
    """What a run trains, and by what it is judged."""

    step: Callable[..., Any]
    """A pure training step: (state, batch) -> (state, metrics)."""
    schedule: Callable[[int], Any]
    """The learning rate of a step."""
    batches: Callable[[int, int | None], Iterator[HostBatch]]
    """Host batches by number, from one on and up to another, or without end."""
    evaluate: Evaluate | None
    """Held-out metrics of parameters as placed, None where nothing is held out."""
    identity: Mapping[str, Any]
    """What a run that resumes must have in common with this one."""
    flops_per_row: float
    passes: Callable[[int], float]
    """Passes over the data at a row."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else checkpoints carry, as JSON."""
    after_evaluation: Callable[[], None] = lambda: None


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
    run: Run,
    *,
    state: TrainState,
    position: Position,
    placement: Placement,
    checkpointer: Checkpointer,
    log: MetricsLog,
) -> TrainState:
    """Trains from `position` to `config.steps` and returns the final state as plain arrays.

    Raises TryAgain when stopped by a signal (a checkpoint is saved first), UserError when the guard
    gives up or a checkpoint cannot be saved.
    """
    supervisor = _Supervisor(config, guard, run, placement, checkpointer, log, position)
    if position.step == 0 and not checkpointer.steps():
        supervisor.save(state)  # a rollback needs a target, and a full disk should show now
    template = jax.tree.map(_shape_of, state)
    compiled = placement.compile(run.step)
    pipeline = Pipeline(compiled, run, placement, state, position)
    del state
    try:
        with supervisor.watched():
            if supervisor.owes_evaluation():
                supervisor.evaluate(pipeline.state)
            while pipeline.step < config.steps:
                pipeline.start()
                due = supervisor.due(pipeline.step)
                ahead = placement.max_in_flight if due == NOTHING else 0
                bad = supervisor.observe(pipeline.finished(ahead))
                if bad is not None:
                    upto = pipeline.batch
                    pipeline.close()  # its memory is wanted by the restored state
                    restored = supervisor.roll_back(template, bad, upto)
                    pipeline = Pipeline(compiled, run, placement, restored, supervisor.position)
                    continue
                final = pipeline.step == config.steps
                if due.stop or final or (due.save and not supervisor.losses.spiking):
                    supervisor.save(placement.get_state(pipeline.state), wait=due.stop)
                if due.stop and not final:
                    raise supervisor.stopped()
                if due.evaluate:
                    supervisor.evaluate(pipeline.state)
            checkpointer.wait()
            return placement.get_state(pipeline.state)
    finally:
        pipeline.close()


# ---------------------------------------------------------------------------------------- the steps


class Done(NamedTuple):
    """A step that has finished."""

    step: int
    batch: int  # the number of the batch that it was made with
    values: dict[str, Any]  # its metrics, on the host
    tokens: int  # in its batch, of every process
    waited: float  # seconds, for the batch


class Pipeline:
    """Steps on their way: a few run on the devices while the host draws the next batches."""

    def __init__(
        self,
        compiled: Callable[..., Any],
        run: Run,
        placement: Placement,
        state: TrainState,
        position: Position,
    ) -> None:
        self._compiled, self._placement = compiled, placement
        self._stream = _stream(run.batches, position)
        self._in_flight: collections.deque[Done] = collections.deque()
        self.state: Any = placement.put_state(state)  # after the last step that was started
        self.step, self.batch = position.step, position.batch  # started; the next to draw

    def start(self) -> None:
        """Starts the next step."""
        began = time.perf_counter()
        number, batch = next(self._stream)
        waited = time.perf_counter() - began
        # Of its own rows, taken for those of every process.
        tokens = int(batch["input_mask"].sum()) if "input_mask" in batch else 0
        on_device = self._placement.put_batch(batch)
        with jax.transfer_guard("disallow"):  # a stray synchronisation is an error
            self.state, metrics = self._compiled(self.state, on_device)
        self.step, self.batch = self.step + 1, number + 1
        tokens *= jax.process_count()
        self._in_flight.append(Done(self.step, number, metrics, tokens, waited))

    def finished(self, ahead: int) -> Iterator[Done]:
        """Yields steps as they finish until only `ahead` are in flight."""
        while len(self._in_flight) > ahead:
            done = self._in_flight.popleft()
            yield done._replace(values=self._placement.fetch(done.values))

    def close(self) -> None:
        """Gives up what is in flight, the state and the batches drawn ahead."""
        self._in_flight.clear()
        self.state = None
        self._stream.close()


def _stream(
    batches: Callable[[int, int | None], Iterator[HostBatch]], position: Position
) -> Generator[tuple[int, HostBatch], None, None]:
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


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


# ------------------------------------------------------------------------------------ between steps


class Due(NamedTuple):
    """What is to be done after a step."""

    stop: bool = False
    save: bool = False
    evaluate: bool = False
    end: bool = False


NOTHING = Due()


class _Cut(Exception):
    """An evaluation is cut short, as the run is to stop."""


class _Supervisor:
    """What happens between steps: observe, log, save, evaluate, roll back, stop."""

    def __init__(
        self,
        config: TrainConfig,
        guard: GuardConfig,
        run: Run,
        placement: Placement,
        checkpointer: Checkpointer,
        log: MetricsLog,
        position: Position,
    ) -> None:
        self._config, self._guard, self._run = config, guard, run
        self._placement, self._checkpointer, self._log = placement, checkpointer, log
        self.position = position  # of the last step that has finished
        self.losses = LossGuard(guard)
        self._meter = StepMeter(config, placement, run)
        self._rollbacks = 0
        self._saved_at = time.monotonic()
        self._began_at = position.step
        stop = multihost.StopTogether if multihost.several() else StopSignals
        self._signals = stop(self._nothing_to_lose)
        self._watchdog = Watchdog(guard.step_timeout)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While entered, signals are noted and a run in which nothing finishes is ended."""
        with self._signals, self._watchdog:
            yield

    def _nothing_to_lose(self) -> bool:
        return self.position.step in (self._began_at, *self._checkpointer.steps())

    def due(self, step: int) -> Due:
        """What is to be done after a step; every process must ask once a step."""
        config = self._config
        evaluate = self._run.evaluate is not None and _is_due(step, config.eval_every, config.steps)
        save = _is_due(step, config.save_every, config.steps) or self._is_late(step, evaluate)
        return Due(self._signals.due(), save, evaluate, step == config.steps)

    def _is_late(self, step: int, evaluating: bool) -> bool:
        limit = 60 * self._config.save_minutes or math.inf
        if evaluating:
            limit = limit if limit == math.inf else min(limit, UNSAVED_SECONDS)
        late = time.monotonic() - self._saved_at >= limit
        if multihost.several():  # each has its own clock, and asking another costs time
            asked = evaluating or step % self._config.log_every == 0
            late = asked and multihost.gather(late)[0]
        return late

    def observe(self, finished: Iterable[Done]) -> tuple[str, int] | None:
        """Judges and logs steps that have finished; (what is wrong, the first offending batch) as
        soon as something is."""
        for step, batch, values, tokens, waited in finished:
            self._watchdog.beat(f"step {step}")
            loss = float(values["loss"])
            bad = self.losses.observe(batch, loss, skipped=values["skipped"] > 0)
            if bad is not None:
                return bad
            self._meter.stepped(tokens, waited)
            tally = self.position.tally.plus(values)
            if step == 1 or _is_due(step, self._config.log_every, self._config.steps):
                self._meter.report(step, batch + 1, tally, values, self._log)
                tally = Tally()
            self.position = replace(self.position, step=step, batch=batch + 1, tally=tally)
            self._log.progress(step, f"loss {loss:.3f}")
        return None

    def save(self, state: TrainState, *, wait: bool = False) -> None:
        position = self.position
        meta = {
            **self._run.identity,
            **self._run.extra,
            "position": position.to_meta(),
            "versions": versions(),
        }
        self._checkpointer.save(position.step, state, meta, wait=wait)
        self._saved_at = time.monotonic()
        self._rollbacks = 0
        self._watchdog.alive(f"the checkpoint at step {position.step}")

    def owes_evaluation(self) -> bool:
        """Whether the run was interrupted before or in the evaluation at where it stands."""
        step = self.position.step
        if not step or self._run.evaluate is None:
            return False
        owed = _is_due(step, self._config.eval_every, self._config.steps)
        return owed and not multihost.gather(self._log.has_evaluation(step))[0]

    def evaluate(self, live: TrainState) -> None:
        assert self._run.evaluate is not None
        step = self.position.step
        try:
            values = self._run.evaluate(live.params, step, self._tick)
        except _Cut:
            self.save(self._placement.get_state(live), wait=True)
            raise self.stopped() from None
        log_evaluation(self._log, step, values)
        self._run.after_evaluation()
        self._watchdog.alive(f"the evaluation at step {step}")
        self._meter.restart_clock()

    def _tick(self, done: int, total: int) -> None:
        step = self.position.step
        self._watchdog.alive(f"{done} of {total} examples of the evaluation at step {step}")
        self._log.working(step, f"evaluating {done:,} of {total:,}")
        if self._signals.due():
            raise _Cut

    def stopped(self) -> TryAgain:
        """The error that ends a run whose last step is saved."""
        interrupts.acting()
        return TryAgain(
            f"stopped by {self._signals.requested} after step {self.position.step}, which is saved "
            f"in {self._checkpointer.directory}; run the same command again to go on"
        )

    def roll_back(self, template: TrainState, bad: tuple[str, int], upto: int) -> TrainState:
        """The last good checkpoint's state; from now on the batches from the offending one up to
        `upto` are left out. Gives up when too often."""
        reason, first = bad
        limit, at = self._guard.max_rollbacks, self.position
        self._rollbacks += 1
        if self._rollbacks > limit:
            raise UserError(
                f"{reason} at batch {first}, after {limit} rollbacks since the last checkpoint "
                f"({self._checkpointer.steps()[-1]}); lower --optimizer.learning-rate, lengthen "
                "--optimizer.warmup-steps, or look at the data"
            )
        restored = resume(self._checkpointer, template, self._run.identity)
        if restored is None:
            raise UserError(f"{reason} at batch {first}, and there is no checkpoint to go back to")
        state, back = restored
        self.position = replace(back, left_out=(*at.left_out, (first, upto)))
        self._log.rewind(back.step)
        self._log.event(
            back.step,
            f"{reason}: rolled back from step {at.step} to step {back.step}, leaving out batches "
            f"{first} to {upto - 1} (rollback {self._rollbacks} of {limit})",
            batches=[first, upto],
        )
        self.losses.reset()
        self._meter = StepMeter(self._config, self._placement, self._run)
        return state


def _is_due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


# -------------------------------------------------------------------------------------- the figures


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


# What a line shows in a form of its own.
_FIGURES = {"grad_norm", "learning_rate", "sequences_per_second", "tokens_per_second"}
_FIGURES |= {"input_wait", "passes", "mfu"}


class StepMeter:
    """Turns steps into figures: means since the last line, rates, MFU, time left."""

    def __init__(self, config: TrainConfig, placement: Placement, run: Run) -> None:
        self._config, self._run = config, run
        peak = peak_flops(placement.devices[0].device_kind)
        self._peak = peak and peak * len(placement.devices)
        self._since: float | None = None  # when the last step finished; the first one compiles
        self._forget()

    def _forget(self) -> None:
        self._steps = self._tokens = 0
        self._waited = self._spent = 0.0

    def restart_clock(self) -> None:
        """Leaves out what passed since the last step, as an evaluation."""
        self._since = time.perf_counter()

    def stepped(self, tokens: int, waited: float) -> None:
        """A step of so many tokens has finished, which waited so long for its batch."""
        now = time.perf_counter()
        if self._since is not None:
            self._spent += now - self._since
            self._steps += 1
            self._tokens += tokens
            self._waited += waited
        self._since = now

    def report(
        self, step: int, batch: int, tally: Tally, last: Mapping[str, Any], log: MetricsLog
    ) -> None:
        """Writes a line: the tally's means, the last step's trust ratios, and rates."""
        scalars = tally.means()
        # The rate that this step was made with.
        scalars["learning_rate"] = float(self._run.schedule(step - 1))
        if (ratios := last.get("trust_ratio")) is not None:
            scalars |= {
                "trust_ratio_min": float(np.min(ratios)),
                "trust_ratio_median": float(np.median(ratios)),
                "trust_ratio_max": float(np.max(ratios)),
            }
        scalars |= self._rates()
        scalars["passes"] = self._run.passes(batch * self._config.batch_size)
        log.scalars("train", step, scalars, line=self._line(step, scalars))
        self._forget()

    def _rates(self) -> dict[str, float]:
        """Nothing before a step was timed: the first one's time is the compiler's."""
        if not self._steps:
            return {}
        seconds = max(self._spent, 1e-9)
        rate = self._steps * self._config.batch_size / seconds
        rates = {
            "sequences_per_second": rate,
            "tokens_per_second": self._tokens / seconds,
            "input_wait": min(1.0, self._waited / seconds),
        }
        if self._peak:
            rates["mfu"] = rate * self._run.flops_per_row / self._peak
        return rates

    def _line(self, step: int, s: Mapping[str, float]) -> str:
        learnt = [
            _figure(n, v) for n, v in s.items() if n not in _FIGURES and not n.startswith("trust_")
        ]
        parts = [f"step {step}/{self._config.steps}", *learnt]
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
            left = math.ceil((self._config.steps - step) * self._spent / self._steps)
            hours, rest = divmod(left, 3600)
            parts.append(f"left {hours}:{rest // 60:02}:{rest % 60:02}")
        return "  ".join(parts)
