# SPDX-License-Identifier: Apache-2.0
"""Show what bounds a step: the peak rates of a device, and the bytes that a step moves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config.perf import BenchmarkConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.distributed.placement import local_devices, make_placement
from albert_jax.models.lowering import matmul
from albert_jax.perf.workload import lower, make_work, pretrain_config
from albert_jax.utils.numbers import rounded
from albert_jax.utils.plots import legend_below, line_style, new_figure, reference_line

_LIMIT = {"color": "0.35", "marker": "", "linestyle": "-", "linewidth": 1.5}


# Bytes of arrays that fit a cache, a core's own or the shared one.
_CACHED = (1 << 22, 1 << 24)
# Small ones end before other programs take the cores of a shared machine; many cores need large.
_CPU_SIDES = (512, 1024, 2048)


def device_rates(dtype: str = "float32", *, seconds: float = 0.5) -> dict[str, float]:
    """Measure the peak rates that the first device reaches.

    Args:
        dtype: the type of the arrays.
        seconds: how long each rate is measured; the fastest call counts.

    Returns:
        "flop_per_second" is the rate of one matmul of square matrices, on a CPU the best of several
        sizes. "bytes_per_second" is the rate of reading and writing an array that no cache holds,
        in place. "cache_bytes_per_second" is the same for an array in a cache, and at least the
        former.
    """
    on_cpu = jax.default_backend() == "cpu"
    sides, large = (_CPU_SIDES, 1 << 28) if on_cpu else ((8192,), 1 << 30)
    memory, *cached = (_copied_per_second(size, dtype, seconds) for size in (large, *_CACHED))
    return {
        "flop_per_second": max(_multiplied_per_second(side, dtype, seconds) for side in sides),
        "bytes_per_second": memory,
        "cache_bytes_per_second": max(memory, *cached),
    }


def best_rates(*measured: dict[str, float]) -> dict[str, float]:
    """Return the maximum of each rate over several measurements.

    On a shared machine other programs may slow down any single measurement.

    Args:
        *measured: results of `device_rates`.

    Returns:
        Rates by name, as in `device_rates`.
    """
    return {name: max(rates[name] for rates in measured) for name in measured[0]}


def _multiplied_per_second(side: int, dtype: str, seconds: float) -> float:
    square, platform = jnp.ones((side, side), dtype), jax.default_backend()

    def multiply(x: Array) -> Array:  # as the model does
        return matmul("NM,MK->NK", x, x, platform)

    return 2 * side**3 / _least_time(multiply, square, seconds)


def _copied_per_second(size: int, dtype: str, seconds: float) -> float:
    array = jnp.ones(size // jnp.dtype(dtype).itemsize, dtype)
    return 2 * size / _least_time(lambda x: x + 1, array, seconds, donate=True)


def _least_time(
    function: Callable[[Any], Any], argument: Any, seconds: float, *, donate: bool = False
) -> float:
    """Return the seconds of the fastest call.

    With `donate`, each call's result takes its argument's place and is the next call's argument.
    """
    jitted = jax.jit(function, donate_argnums=(0,) if donate else ())
    compiled = jitted.lower(argument).compile()
    result = jax.block_until_ready(compiled(argument))
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        argument = result if donate else argument
        since = time.perf_counter()
        result = jax.block_until_ready(compiled(argument))
        times.append(time.perf_counter() - since)
    return min(times)


def bound(rates: dict[str, float], flops_per_byte: float) -> float:
    """Return the FLOP/s that no step exceeds, even if a cache holds all its data."""
    return min(rates["flop_per_second"], flops_per_byte * rates["cache_bytes_per_second"])


class RooflinePoint(TypedDict):
    """Place a step in a roofline.

    Attributes:
        name: the model's name.
        phase: the benchmark's phase.
        flops_per_byte: model FLOPs for each byte that kernels read and write.
        flop_per_second: model FLOPs in each second.
    """

    name: str
    phase: str
    flops_per_byte: float
    flop_per_second: float


def roofline_figure(
    title: str,
    points: Sequence[RooflinePoint],
    rates: dict[str, float],
    *,
    peak: float | None = None,
) -> Any:
    """Return a figure of steps below the lines that bound them.

    If a step is faster than the bound, the title says that the rates are too low.

    Args:
        title: the device, and the type it computes in.
        points: the steps.
        rates: `device_rates` of the device that ran them.
        peak: the FLOP/s of the device's data sheet, if it is known.

    Returns:
        The Matplotlib figure.
    """
    if any(p["flop_per_second"] > bound(rates, p["flops_per_byte"]) for p in points):
        title += "\nPoints above the lines: the device was busy while its own rates were measured"
    figure, [[axis]] = new_figure(title, height=4.6)
    least = min([rates["flop_per_second"], *(p["flop_per_second"] for p in points)])
    unit, flops = ("TFLOP/s", 1e12) if least >= 1e12 else ("GFLOP/s", 1e9)
    axis.set(xlabel="model FLOPs for each byte that kernels read and write", ylabel=unit)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:,g}")
    _draw_steps(axis, points, flops)
    _draw_limits(axis, [p["flops_per_byte"] for p in points], rates, flops, unit)
    axis.set_ylim(bottom=least / flops / 2)
    if peak is not None:
        reference_line(axis, peak / flops, f"data sheet's peak: {rounded(peak / flops, 3)} {unit}")
    legend_below(figure, [axis])
    return figure


def _draw_steps(axis: Any, points: Sequence[RooflinePoint], flops: float) -> None:
    """Draw a marker for each step, in units of so many FLOP/s: filled where it trains."""
    names = list(dict.fromkeys(point["name"] for point in points))
    for point in points:
        style = line_style(names.index(point["name"]))
        axis.plot(
            point["flops_per_byte"],
            point["flop_per_second"] / flops,
            **style | {"linestyle": "", "markersize": 8, "zorder": 3},
            fillstyle="full" if point["phase"] == "train" else "none",
            label=f"{point['name']}, {point['phase']}",
        )


def _draw_limits(
    axis: Any, places: Sequence[float], rates: dict[str, float], flops: float, unit: str
) -> None:
    """Draw the slopes of memory and cache, and the flat line of arithmetic, around `places`."""
    slopes = {"memory": ("--", rates["bytes_per_second"])}
    if rates["cache_bytes_per_second"] > 1.2 * rates["bytes_per_second"]:
        slopes["a cache"] = (":", rates["cache_bytes_per_second"])
    ridges = [rates["flop_per_second"] / rate for _, rate in slopes.values()]
    low, high = min([*ridges, *places]) / 2, max([*ridges, *places]) * 2
    for ridge, (name, (linestyle, rate)) in zip(ridges, slopes.items(), strict=True):
        axis.plot(
            [low, ridge],
            [low * rate / flops, ridge * rate / flops],
            **_LIMIT | {"linestyle": linestyle},
            label=f"data in {name}: {rounded(rate / 1e9, 3)} GB/s, measured",
        )
    top = rates["flop_per_second"] / flops
    label = f"a large matmul: {rounded(top, 3)} {unit}, measured"
    axis.plot([min(ridges), high], [top, top], **_LIMIT, label=label)
    axis.set_xlim(low, high)


def step_traffic(config: BenchmarkConfig) -> dict[str, float]:
    """Return the FLOPs and bytes of one step of `benchmark`, as XLA counts them.

    XLA counts a loop once, however often it runs. Therefore models with one and with two layers are
    counted, and each further layer adds the difference. Bytes are those that each kernel reads and
    writes, cached or not. The step is counted on one device, without accumulation.

    Args:
        config: the step.

    Returns:
        "flops" and "bytes".
    """
    settings = pretrain_config(config)
    one, two = (_counted(config.phase, _shallow(settings, layers)) for layers in (1, 2))
    more = settings.model.num_hidden_layers - 1
    return {name: one[name] + more * (two[name] - one[name]) for name in one}


def _shallow(settings: PretrainConfig, layers: int) -> PretrainConfig:
    return dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, num_hidden_layers=layers, num_hidden_groups=1),
        compute=dataclasses.replace(settings.compute, scan_unroll=layers),
        train=dataclasses.replace(settings.train, accumulate=1),
    )


def _counted(phase: str, settings: PretrainConfig) -> dict[str, float]:
    placement = make_placement("jit", local_devices(1))
    work = make_work(phase, settings, placement.lowering)
    found = lower(phase, settings, work, placement).compile().cost_analysis()
    return {"flops": float(found["flops"]), "bytes": float(found["bytes accessed"])}
