# SPDX-License-Identifier: Apache-2.0
"""Flipped bits, cut and deleted files in checkpoints, token stores, model directories and
TensorFlow checkpoints: what is read is what was written, or it is refused.

`python -m tests.endurance.damage --tries 10000`
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.checkpoint.convert.tf_bundle import CheckpointReader
from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.checkpoint.manager import Checkpointer, same_run
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.data.store import TokenStore
from albert_jax.data.store_manifest import SPLITS
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import UserError
from tests.endurance.campaign import Result, run_from_command_line, say
from tests.helpers.conversions import PRETRAINING, SMALL, made_up, write_original
from tests.helpers.pretraining_runs import TINY, make_store, random_model

Prints = dict[str, str]  # what was read, by name, as digests


@dataclass(frozen=True)
class Target:
    """Something on disk, what reading it gives, and what else it may give without being wrong."""

    folder: Path
    read: Callable[[Path], Prints]
    sound: tuple[Prints, ...]


def damage(folder: Path, tries: int, seed: int) -> Result:
    """Damages each kind in turn, one file at a time, in a copy."""
    result, rng = Result("damage", tries), random.Random(seed)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # what is known of stores is this run's
    targets = {
        "checkpoint": _checkpoint(folder / "checkpoint"),
        "store": _store(folder / "store"),
        "model": _model(folder / "model"),
        "tf1": _tensorflow(folder / "tf1"),
    }
    names = list(targets)
    for number in range(tries):
        name = names[number % len(names)]
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(targets[name].folder, copy)
        what = _harm(copy, rng)
        result.count(f"{name}_{_outcome(targets[name], copy, what, result)}")
        if number % 1000 == 999:
            say(f"{number + 1} of {tries}")
    return result


def _outcome(target: Target, copy: Path, what: str, result: Result) -> str:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = target.read(copy)
    except UserError:
        return "refused"
    except Exception as error:
        result.lost.append(f"{what}: {error!r:.300}")
        return "traceback"
    if found == target.sound[0]:
        return "harmless"
    if found in target.sound:
        return "older_one"
    result.lost.append(f"{what}: read, but not as written")
    return "silent"


def _harm(folder: Path, rng: random.Random) -> str:
    """Flips a bit of a file, cuts it or deletes it; what was done."""
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(file.read_bytes())
    name, how = file.relative_to(folder), rng.random()
    if how < 0.1 or not data:
        file.unlink()
        return f"{name} deleted"
    if how < 0.2:
        size = rng.randrange(len(data))
        file.write_bytes(data[:size])
        return f"{name} cut to {size} of {len(data)} bytes"
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    file.write_bytes(data)
    return f"{name} bit {bit} of byte {at}"


def _print(array: Any) -> str:
    array = np.asarray(array)
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype}{array.shape} {digest}"


# ------------------------------------------------------------------------------------------ targets


def _checkpoint(folder: Path) -> Target:
    rng = np.random.default_rng(0)
    states = {
        step: {"params": {"kernel": rng.random((8, 4), np.float32)}, "step": np.int32(step)}
        for step in (2, 4)
    }
    with Checkpointer(folder, keep=3) as checkpointer:
        for step, state in states.items():
            checkpointer.save(step, state, {"run": "damage"}, wait=True)

    def prints(state: Any) -> Prints:
        return {name: _print(leaf) for name, leaf in named_leaves(state).items()}

    def read(copy: Path) -> Prints:
        with Checkpointer(copy, read_only=True) as checkpointer:
            restored = checkpointer.restore(states[4], same_run({"run": "damage"}))
        if restored is None:
            raise UserError("no checkpoint")
        return prints(restored[0])

    return Target(folder, read, (prints(states[4]), prints(states[2])))


def _store(folder: Path) -> Target:
    folder.mkdir()
    store = make_store(folder, documents=20)

    def read(copy: Path) -> Prints:
        found = {}
        for split in SPLITS:
            opened = TokenStore.open(copy, split=split)
            for shard in opened.shards:
                arrays = (shard.tokens, shard.sentence_starts, shard.document_starts)
                for kind, array in zip(("tokens", "sentences", "documents"), arrays, strict=True):
                    found[f"{split}/{shard.name}/{kind}"] = _print(array)
            found["vocabulary"] = Tokenizer.load(opened.vocab_path).sha256
        return found

    return Target(store, read, (read(store),))


def _model(folder: Path) -> Target:
    model = random_model(folder, TINY)

    def read(copy: Path) -> Prints:
        found = load_model(copy)
        prints = {name: _print(leaf) for name, leaf in named_leaves(found.params).items()}
        path = found.tokenizer["path"]
        prints["vocabulary"] = Tokenizer.load(path).sha256 if path else "none"
        return prints | {"config": str(found.config), "tokenizer": str(found.manifest["tokenizer"])}

    return Target(model, read, (read(model),))


def _tensorflow(folder: Path) -> Target:
    prefix = write_original(folder, made_up(SMALL, PRETRAINING), slots=True)
    (folder / "albert_config.json").unlink()  # which nothing protects, as in the original

    def read(copy: Path) -> Prints:
        reader = CheckpointReader.open(copy / prefix.name)
        return {name: _print(reader.read(name)) for name in reader.names()}

    return Target(folder, read, (read(folder),))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    run_from_command_line(damage, tries=200)
