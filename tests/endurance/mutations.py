# SPDX-License-Identifier: Apache-2.0
"""Mutated files given to every reader, in worker processes with a limit of memory and an alarm for
each input: each is read, or refused by UserError, in proportion to its size.

`python -m tests.endurance.mutations --tries 100000`
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.endurance.campaign import Result, run_from_command_line, say

SECONDS = 20  # of an input: then it hangs
CPU_SECONDS = 3.0
MOST_BYTES = 128 << 20  # above what the process holds before
LIMIT = 8 << 30  # of address space, of which JAX's threads reserve much


@dataclass
class Share:
    """What one worker found."""

    read: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")
    tried: Counter[str] = field(default_factory=Counter)


def mutations(folder: Path, tries: int, seed: int, workers: int = 2) -> Result:
    """Divides the tries among processes."""
    result = Result("mutations", tries)
    context = multiprocessing.get_context("spawn")
    shares = [range(seed + w, seed + tries, workers) for w in range(workers)]
    with context.Pool(workers, initializer=_limited) as pool:
        found = pool.map(_tried, shares, chunksize=1)
    result.lost = [line for share in found for line in share.lost]
    slowest = max(share.slowest for share in found)
    largest = max(share.largest for share in found)
    result.figures = {
        "readers": len(found[0].tried),
        "read": sum(share.read for share in found),
        "refused": sum(share.refused for share in found),
        "most_cpu_seconds": [round(slowest[0], 2), slowest[1]],
        "most_mib": [round(largest[0] / 2**20, 1), largest[1]],
    }
    return result


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    os.environ["JAX_PLATFORMS"] = "cpu"


class _Hung(BaseException):
    pass


def _alarm(number: int, frame: FrameType | None) -> None:
    raise _Hung


def _tried(seeds: range) -> Share:
    from tests.endurance.readers import kinds
    from tests.helpers.fuzz_formats import attempt

    share = Share()
    signal.signal(signal.SIGALRM, _alarm)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - what readers say of harmless damage
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        found = kinds(Path(name))
        names = list(found)
        for number, seed in enumerate(seeds):
            kind = names[number % len(names)]
            what = f"{kind}, seed {seed}"
            share.tried[kind] += 1
            signal.alarm(SECONDS)
            try:
                outcome = attempt(found[kind], seed)
            except _Hung:
                share.lost.append(f"{what}: hung for {SECONDS} s")
                continue
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                share.lost.append(f"{what}: {error!r:.200} in {where.filename}:{where.lineno}")
                continue
            finally:
                signal.alarm(0)
            share.read += not outcome.told
            share.refused += bool(outcome.told)
            share.slowest = max(share.slowest, (outcome.seconds, what))
            share.largest = max(share.largest, (outcome.bytes, what))
            if outcome.seconds > CPU_SECONDS:
                share.lost.append(f"{what}: {outcome.seconds:.1f} s of CPU")
            if outcome.bytes > MOST_BYTES:
                share.lost.append(f"{what}: {outcome.bytes / 2**20:.0f} MiB")
            if number % 5000 == 4999:
                print(f"{number + 1} inputs", file=sys.__stderr__, flush=True)
    return share


if __name__ == "__main__":
    say("every input is read or refused, or it is counted as lost")
    run_from_command_line(mutations, tries=500, workers=2)
