# SPDX-License-Identifier: Apache-2.0
"""Pairs of processes that convert two models to one destination within half a second: each says
that it wrote the whole, or that another is writing; the destination is whole, and a written one.

`python -m tests.endurance.writers --tries 200`
"""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.utils.errors import UserError
from tests.endurance.campaign import Result, fork, run_from_command_line, say, wait
from tests.endurance.kills import leftovers
from tests.helpers.conversions import PRETRAINING, SMALL, made_up, write_original

DONE, REFUSED = 0, UserError.exit_status


def writers(folder: Path, tries: int, seed: int) -> Result:
    """Starts so many pairs, at offsets from none to half a second."""
    result, rng = Result("writers", tries), random.Random(seed)
    sources = []
    for layers in (2, 3):
        config = dataclasses.replace(SMALL, num_hidden_layers=layers)
        params = made_up(config, PRETRAINING)
        sources.append(write_original(folder / f"source-{layers}", params, config))
    written: list[tuple[int, list[int], Path]] = []
    for number in range(tries):
        dest = folder / str(number) / "model"
        dest.parent.mkdir()
        children = []
        for source in sources:
            log = folder / f"{number}-{source.parent.name}.log"
            children.append(fork(lambda s=source, d=dest: convert(s, d, no_vocab=True), log))
            time.sleep(rng.uniform(0, 0.5) if rng.random() < 0.8 else 0)
        statuses = [wait(child) for child in children]
        written.append((number, statuses, dest))
        if number % 50 == 49:
            say(f"{number + 1} pairs")
    for number, statuses, dest in written:  # only now, as this process must not use JAX before
        for status in statuses:
            result.count({DONE: "written", REFUSED: "refused"}.get(status, f"status_{status}"))
        if not set(statuses) <= {DONE, REFUSED} or DONE not in statuses:
            result.lost.append(f"pair {number} ended with {statuses}")
        try:
            layers = load_model(dest).config.num_hidden_layers
        except UserError as error:
            result.lost.append(f"pair {number}: {error}")
            continue
        if statuses[layers - 2] != DONE:
            result.lost.append(f"pair {number} has what was refused: {statuses}, {layers} layers")
        if left := leftovers(dest.parent):
            result.lost.append(f"pair {number} left {left}")
    return result


if __name__ == "__main__":
    run_from_command_line(writers, tries=20)
