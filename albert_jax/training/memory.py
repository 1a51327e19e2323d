# SPDX-License-Identifier: Apache-2.0
"""Compare the memory that a compiled step takes with the memory there is, and advise."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.utils.errors import UserError
from albert_jax.utils.numbers import rounded
from albert_jax.utils.wording import setting

GIB = 1 << 30

# The copies of a program's memory in a CPU process that keeps what is freed. Each of three steps in
# flight has one, while otherwise only the running step has; one more is a reserve.
KEPT_BUFFERS = 4

# "Used 19.30G of 15.75G hbm", and "allocate 21.4GiB" or "allocating 22978494464 bytes".
_USED_OF = re.compile(r"Used ([\d.]+[KMGT]?)(?:i?B)? of ([\d.]+[KMGT]?)")
# "the total memory required for HLO temporaries (41.34G) exceeds available HBM (15.75G)".
_EXCEEDS = re.compile(r"\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)")
# A kernel that asks for too much of a chip's own memory, which a smaller batch does not change: "in
# memory space vmem", and for scalars "would exceed memory (size=1048576) :: … space=smem".
_NOT_HBM = re.compile(r"in memory space (?!hbm)\w+|would exceed memory .*space=(?!hbm)\w+")
_ASKED = re.compile(r"allocat(?:e|ing) ([\d.]+ ?[KMGT]?)i?(?:B|bytes)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": GIB, "T": 1 << 40}


class OutOfMemory(UserError):
    """Report that a step does not fit: by how much, and what to change.

    `needed` and `capacity` are bytes on a device, None if they are unknown.
    """

    needed: float | None = None
    capacity: float | None = None


def program_bytes(compiled: Any) -> int | None:
    """Return the bytes of a compiled program on each device: arguments, results and temporaries.

    None if the backend does not report them.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def capacity_bytes(device: jax.Device) -> int | None:
    """Return the bytes that programs may take on a device.

    On a CPU, the machine's or the container's.
    """
    if device.platform == "cpu":
        return _host_bytes()
    return (device.memory_stats() or {}).get("bytes_limit")


def peak_bytes(devices: Sequence[jax.Device], compiled: Any, before: int | None) -> tuple[int, str]:
    """Return the peak bytes on the fullest device, and who counted them.

    A device counts the peak of the whole process. It is this program's only if it rose above
    `before`, an earlier `device_peak_bytes`. Otherwise the compiled program is counted, or, if that
    is unknown, the process's resident memory.
    """
    peak = device_peak_bytes(devices)
    if peak is not None and (before is None or peak > before):
        return peak, "device"
    counted = program_bytes(compiled)
    return (counted, "program") if counted else resident_peak_bytes()


def device_peak_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Return the peak of the devices' allocators, None if they do not count."""
    stats = [device.memory_stats() or {} for device in devices]
    return max((s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s), default=None)


def resident_peak_bytes() -> tuple[int, str]:
    """Return the peak of this process's resident memory, and "process"."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), "process"


def check_fits(
    compiled: Any,
    devices: Sequence[jax.Device],
    config: PretrainConfig | FinetuneConfig,
    *,
    when_tight: Callable[[], object],
) -> None:
    """Raise OutOfMemory for a program that takes more memory than there is.

    On a CPU this must be found before it runs, because the kernel would kill the process without a
    message. `when_tight` is called if the program leaves a CPU too little memory for its steps in
    flight while all freed memory is kept: `malloc.give_back_large_buffers`.
    """
    needed, capacity = program_bytes(compiled), capacity_bytes(devices[0])
    if needed is None or capacity is None:
        return
    on_cpu = devices[0].platform == "cpu"
    if on_cpu:
        needed *= len(devices)
    if needed > capacity:
        raise _out_of_memory(needed, capacity, config)
    if on_cpu and KEPT_BUFFERS * needed > capacity:
        when_tight()


@contextlib.contextmanager
def out_of_memory_told(
    devices: Sequence[jax.Device], config: PretrainConfig | FinetuneConfig
) -> Iterator[None]:
    """Turn a failed allocation, while compiling or running, into OutOfMemory."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        told = str(error)
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in told:
            raise
        if _NOT_HBM.search(told):
            raise
        if found := _USED_OF.search(told) or _EXCEEDS.search(told):
            needed, capacity = map(_bytes_of, found.groups())
            raise _out_of_memory(needed, capacity, config) from None
        stats = devices[0].memory_stats() or {}
        asked = _ASKED.search(told)
        if asked and {"bytes_limit", "bytes_in_use"} <= stats.keys():
            needed = _bytes_of(asked[1]) + stats["bytes_in_use"]
            raise _out_of_memory(needed, stats["bytes_limit"], config) from None
        size = f" of {rounded(_bytes_of(asked[1]) / GIB, 3)} GiB" if asked else ""
        raise OutOfMemory(
            f"out of memory: an allocation{size} failed; {out_of_memory_advice(config)}"
        ) from None


def _out_of_memory(
    needed: float, capacity: float, config: PretrainConfig | FinetuneConfig
) -> OutOfMemory:
    # If memory is fragmented, less than the free memory in total may fail.
    over = f", {rounded((needed - capacity) / GIB, 3)} GiB too many" if needed > capacity else ""
    error = OutOfMemory(
        f"out of memory: the step takes {rounded(needed / GIB, 3)} GiB of "
        f"{rounded(capacity / GIB, 3)} GiB{over}; {out_of_memory_advice(config)}"
    )
    error.needed, error.capacity = needed, capacity
    return error


def out_of_memory_advice(config: PretrainConfig | FinetuneConfig) -> str:
    """Return what to change so that a step takes less memory, as part of a sentence."""
    train, remat = config.train, config.compute.remat
    batches, rows = "train.batch_size", str(train.batch_size)
    if isinstance(config, PretrainConfig) and config.train.batch_ramp:
        batches, rows = "train.batch_ramp", config.train.batch_ramp
    advice = [f"lower {setting(batches)} ({rows})"]
    advice += [f"raise {setting('train.accumulate')} ({train.accumulate})"]
    if remat != "full":
        advice += [f"recompute with {setting('compute.remat', 'full')} (now {remat})"]
    return ", ".join(advice[:-1]) + f" or {advice[-1]}"


def _bytes_of(text: str) -> float:
    text = text.replace(" ", "")
    unit = text[-1] if text[-1] in _UNITS else ""
    return float(text.removesuffix(unit)) * _UNITS[unit]


def _host_bytes() -> int | None:
    sizes = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            sizes.append(int(Path(limit).read_text()))
    return min(sizes, default=None)
