# SPDX-License-Identifier: Apache-2.0
"""Measure how long a step takes on this machine, for `albert-jax benchmark`.

The step is that of `pretrain`, of its evaluation or of a classifier, or the drawing of batches.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import numpy as np

from albert_jax.config.perf import BenchmarkConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.data.loader import Draw, make_dataset
from albert_jax.distributed.compilation_cache import cached_programs
from albert_jax.distributed.placement import (
    Placement,
    check_batch_size,
    local_devices,
    make_placement,
)
from albert_jax.models.flops import peak_flops
from albert_jax.perf.results import BenchmarkResult, StepBenchmark, SweepPoint, TimeSpread
from albert_jax.perf.tpu import libtpu
from albert_jax.perf.workload import (
    STEP_NAMES,
    HostBatch,
    Work,
    lower,
    made_up_batch,
    make_work,
    pretrain_config,
    say_of_stages,
    setting_of,
    source_of,
)
from albert_jax.training.memory import (
    OutOfMemory,
    check_fits,
    device_peak_bytes,
    out_of_memory_told,
    peak_bytes,
    resident_peak_bytes,
)
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.malloc import give_back_large_buffers
from albert_jax.utils.provenance import commit, versions
from albert_jax.utils.results import Rows
from albert_jax.utils.streams import say
from albert_jax.utils.wording import renamed, setting

WARM_UP = 3  # steps before any is timed
PROFILED = 5


def benchmark(
    config: BenchmarkConfig = BenchmarkConfig(), *, profile: str | None = None
) -> BenchmarkResult:
    """Measure one configuration of a step, or of its input.

    Args:
        config: what to measure.
        profile: a folder for a trace of a few more steps; unset, none is written.

    Returns:
        Times, rates and memory: a `StepBenchmark`, or of the phase input a `BenchmarkResult`.

    Raises:
        UserError: if the configuration cannot be measured. OutOfMemory, a kind of UserError, if the
            step does not fit into memory.
    """
    settings = _checked(config)
    say_of_stages(config.model)
    if config.phase == "input":
        if profile is not None:
            raise UserError(
                f"{setting('profile')} is of a step on the device; {setting('phase', 'input')} "
                "runs none"
            )
        return _measure_input(config, settings)
    if profile is not None:
        libtpu.check_profiler()  # before JAX loads the library
    devices = local_devices(settings.train.devices)
    placement = make_placement(settings.train.mode, devices)
    with renamed(STEP_NAMES), out_of_memory_told(devices, settings):
        work = make_work(config.phase, settings, placement.lowering)
        timed = _run_steps(config, settings, work, placement, profile)
    return _step_result(config, settings, work, devices, timed)


# Settings that a phase has no use for.
_WITHOUT_USE = {
    "input": ("mode", "remat", "attention", "unroll", "accumulate"),
    "forward": ("accumulate",),
}


def _checked(config: BenchmarkConfig) -> PretrainConfig:
    """Return the settings, after checking them against this machine's devices."""
    for name in _WITHOUT_USE.get(config.phase, ()):
        if getattr(config, name) is not None:
            raise UserError(
                f"{setting('phase', config.phase)} makes no use of {setting(name)}; leave it out"
            )
    settings = pretrain_config(config)
    if config.phase != "input":
        train = settings.train
        with renamed(STEP_NAMES):
            devices = local_devices(train.devices)
            check_batch_size(train.batch_size, train.accumulate, len(devices))
    if config.phase == "finetune" and config.store is not None:
        raise UserError(
            f"{setting('store')} holds no classified texts; leave it out with "
            f"{setting('phase', 'finetune')}"
        )
    return settings


def sweep(config: BenchmarkConfig, points: Sequence[str]) -> Rows[SweepPoint]:
    """Measure every combination of some settings.

    Args:
        config: the settings that do not vary.
        points: the values of those that do, such as ["batch_size=8,16", "remat=none,full"].

    Returns:
        A `SweepPoint` for each combination. One that does not fit into memory has an `error`
        instead of figures.

    Raises:
        UserError: if a setting is wrong, as a rule before anything is measured.
    """
    axes = [_axis(point) for point in points]
    names = [name for name, _ in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{setting('sweep')} has {twice[0]} twice; give all its values at once, as in "
            f"{twice[0]}=8,16"
        )
    changes = [
        dict(zip((name for name, _ in axes), values, strict=True))
        for values in itertools.product(*(values for _, values in axes))
    ]
    configs = [dataclasses.replace(config, **change) for change in changes]
    for each in configs:
        _checked(each)
    results: Rows[SweepPoint] = Rows()
    for change, each in zip(changes, configs, strict=True):
        say(" ".join([*(f"{k}={v}" for k, v in change.items()), "…"]))
        try:
            results.append(SweepPoint(change=change, measured=benchmark(each)))
        except OutOfMemory as error:
            results.append(SweepPoint(change=change, error=str(error)))
        jax.clear_caches()  # a program and its buffers would stay in memory
        gc.collect()
    return results


def _axis(point: str) -> tuple[str, list[Any]]:
    """Return ("batch_size", [8, 16]) for "batch_size=8,16"."""
    name, separator, values = point.partition("=")
    hints = get_type_hints(BenchmarkConfig)
    if not separator or not values:
        raise UserError(
            f"{setting('sweep')} {point!r} must be name=value,value, as in batch_size=8,16,32"
        )
    if name not in hints:
        raise UserError(
            f"{setting('sweep')} {name!r} is no setting of benchmark; there are {', '.join(hints)}"
        )
    hint = hints[name]
    kinds = (hint, *get_args(hint))
    kind = next((kind for kind in (int, float) if kind in kinds), str)
    given: list[str] = []
    for value in values.split(","):
        # A recipe's own comma, configs/pretrain.py:model=base-v2,chips=4, or a mixture's, a:1,b:1.
        of_recipe = "=" in value and given and ":" in given[-1]
        of_mixture = name == "store" and given and re.search(r":[0-9.]+$", given[-1])
        if of_recipe or of_mixture:
            given[-1] += f",{value}"
        else:
            given.append(value)
    try:
        return name, [kind(value) for value in given]
    except ValueError:
        numbers = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{setting('sweep')} {point!r} must give {numbers}") from None


def _described(config: BenchmarkConfig, settings: PretrainConfig) -> JsonObject:
    """Return the fields of a result that describe what was measured, and by which code."""
    made_with = {"store": settings.store, "commit": commit(), "versions": versions()}
    return setting_of(config, settings) | made_with


# ---------------------------------------------------------------------------------------- the step


@dataclass
class _Runner:
    """Hold a compiled step and what it carries from call to call."""

    compiled: Callable[..., Any]
    live: Any
    carries: bool

    def __call__(self, batch: Any) -> Any:
        with jax.transfer_guard("disallow"):  # as in pretrain
            result = self.compiled(self.live, batch)
        if self.carries:
            self.live, result = result
        return result


@dataclass(frozen=True)
class _Row:
    """Hold means over the steps in a row: seconds, tokens, and seconds of waiting for data."""

    seconds: float
    tokens: float
    waited: float


@dataclass(frozen=True)
class _Timed:
    """Hold the measurements of running the steps; seconds, `times` in milliseconds."""

    trace_seconds: float
    compile_seconds: float
    times: list[float]
    row: _Row
    losses: list[float]
    peak_bytes: int
    peak_bytes_of: str


def _run_steps(
    config: BenchmarkConfig,
    settings: PretrainConfig,
    work: Work,
    placement: Placement,
    profile: str | None,
) -> _Timed:
    """Compile the step, warm up, and time steps one by one and in a row."""
    devices = placement.devices
    before = device_peak_bytes(devices)
    with contextlib.ExitStack() as stack:
        started = time.perf_counter()
        lowered = lower(config.phase, settings, work, placement)
        traced = time.perf_counter()
        with cached_programs(config.compilation_cache):
            compiled = lowered.compile()
        done = time.perf_counter()
        # Before a batch is made, because it may be too large.
        check_fits(compiled, devices, settings, when_tight=give_back_large_buffers)
        batches = _placed(config, settings, placement, stack)
        run = _Runner(compiled, placement.put_state(jax.jit(work.state)()), work.carries)
        losses = [_loss(placement.fetch(run(next(batches)[0]))) for _ in range(WARM_UP)]
        times = []
        for _ in _turns(config):
            batch, _ = next(batches)
            jax.block_until_ready(batch)
            since = time.perf_counter()
            metrics = jax.block_until_ready(run(batch))
            times.append(1000 * (time.perf_counter() - since))
            losses.append(_loss(placement.fetch(metrics)))
        row = _in_a_row(config, placement, run, batches)
        if profile is not None:
            _profile(Path(profile), run, batches)
        peak, source = peak_bytes(devices, compiled, before)
    return _Timed(traced - started, done - started, times, row, losses, peak, source)


def _step_result(
    config: BenchmarkConfig,
    settings: PretrainConfig,
    work: Work,
    devices: Sequence[jax.Device],
    timed: _Timed,
) -> StepBenchmark:
    row, batch_size = timed.row, settings.train.batch_size
    rate = batch_size / row.seconds
    flops = work.flops_per_sequence * rate
    top = peak_flops(devices[0].device_kind)
    return StepBenchmark(
        **_described(config, settings),
        device=devices[0].device_kind,
        devices=len(devices),
        compile_seconds=timed.compile_seconds,
        trace_seconds=timed.trace_seconds,
        step_ms=float(np.median(timed.times)),
        step_ms_of=_spread(timed.times),
        pipelined_step_ms=1000 * row.seconds,
        ms_per_sequence=1000 / rate,
        sequences_per_second=rate,
        tokens_per_second=row.tokens / row.seconds,
        input_wait=row.waited / row.seconds if config.store else None,
        tflop_per_step=work.flops_per_sequence * batch_size / 1e12,
        tflop_per_second=flops / 1e12,
        mfu=flops / (top * len(devices)) if top else None,
        peak_flops=top,
        peak_bytes=timed.peak_bytes,
        peak_bytes_of=timed.peak_bytes_of,
        losses=timed.losses,
    )


def _placed(
    config: BenchmarkConfig,
    settings: PretrainConfig,
    placement: Placement,
    stack: contextlib.ExitStack,
) -> Iterator[tuple[Any, int]]:
    """Yield (batch on the devices, its tokens).

    The batches are the store's in pretrain's order, or one made-up batch again and again.
    """
    if settings.store is None:
        batch = made_up_batch(config.phase, settings)
        return itertools.repeat((placement.put_batch(batch), _tokens(batch)))
    drawn = stack.enter_context(contextlib.closing(_dataset(settings)))
    return ((placement.put_batch(batch), _tokens(batch)) for batch in drawn)


def _dataset(settings: PretrainConfig) -> Any:
    train = settings.train
    return make_dataset(
        Draw(source_of(settings), train.batch_size),
        threads=train.data_threads,
        workers=train.data_workers,
    )


def _turns(config: BenchmarkConfig) -> Iterator[int]:
    """Count the steps to time: `steps`, fewer if they take `seconds`, but at least three."""
    since = time.perf_counter()
    for turn in range(config.steps):
        if turn >= 3 and time.perf_counter() - since > config.seconds:
            return
        yield turn


def _in_a_row(
    config: BenchmarkConfig, placement: Placement, run: _Runner, batches: Iterator[tuple[Any, int]]
) -> _Row:
    """Run steps in a row, as `fit` does, and return the means over them."""
    # Untimed: memory for the steps in flight is had once.
    jax.block_until_ready([run(next(batches)[0]) for _ in range(placement.max_in_flight + 1)])
    in_flight: collections.deque[Any] = collections.deque()
    tokens = waited = count = 0.0
    since = time.perf_counter()
    for _ in _turns(config):
        asked = time.perf_counter()
        batch, more = next(batches)
        waited += time.perf_counter() - asked
        in_flight.append(run(batch))
        tokens, count = tokens + more, count + 1
        if len(in_flight) > placement.max_in_flight:
            placement.fetch(in_flight.popleft())
    jax.block_until_ready((list(in_flight), run.live))
    seconds = time.perf_counter() - since
    return _Row(seconds / count, tokens / count, waited / count)


def _profile(folder: Path, run: _Runner, batches: Iterator[tuple[Any, int]]) -> None:
    """Write a trace of a few steps, as xprof and TensorBoard read it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{setting('profile')} {folder} cannot be made: {error.strerror}") from None
    with jax.profiler.trace(str(folder)):
        for number in range(PROFILED):
            with jax.profiler.StepTraceAnnotation("step", step_num=number):
                metrics = run(next(batches)[0])
        jax.block_until_ready((metrics, run.live))


def _loss(metrics: Mapping[str, Any]) -> float:
    """Return the loss that training minimises, in evaluation the masked-LM's."""
    names = ("loss", "masked_lm_loss", "task_loss")
    return float(next(metrics[name] for name in names if name in metrics))


def _tokens(batch: HostBatch) -> int:
    return int(batch["input_mask"].sum())


def _spread(times: list[float]) -> TimeSpread:
    low, first, third, high = np.percentile(times, [0, 25, 75, 100]).tolist()
    return TimeSpread(steps=len(times), least=low, quarter=first, three_quarters=third, most=high)


# --------------------------------------------------------------------------------------- the input


def _measure_input(config: BenchmarkConfig, settings: PretrainConfig) -> BenchmarkResult:
    """Measure how fast pretrain's threads or processes draw batches that nothing uses."""
    train = settings.train
    times, tokens = [], 0
    with contextlib.closing(_dataset(settings)) as batches:
        for _ in range(WARM_UP + train.data_threads + train.data_workers):
            next(batches)  # drawn ahead before the clock starts
        for _ in _turns(config):
            since = time.perf_counter()
            batch = next(batches)
            times.append(time.perf_counter() - since)
            tokens += _tokens(batch)
    peak, source = resident_peak_bytes()
    # The mean: a batch that was ready is waited for no time, and the next one longer.
    seconds = float(np.mean(times))
    drawn_by = (
        f"{train.data_workers} processes" if train.data_workers else f"{train.data_threads} threads"
    )
    return BenchmarkResult(
        **_described(config, settings),
        device=drawn_by,
        devices=1,
        compile_seconds=None,
        step_ms=1000 * seconds,
        step_ms_of=_spread([1000 * t for t in times]),
        ms_per_sequence=1000 * seconds / train.batch_size,
        sequences_per_second=train.batch_size / seconds,
        tokens_per_second=tokens / sum(times),
        mfu=None,
        peak_bytes=peak,
        peak_bytes_of=source,
    )
