# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments of pretrain, finetune, prepare, convert and export: started again until
they are done, they leave the bytes of a run that nothing interrupted.

`python -m tests.endurance.kills --tries 1000 --what all`
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.manager import Checkpointer
from albert_jax.checkpoint.model_dir import MANIFEST
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import OptimizerConfig, TrainConfig
from albert_jax.data.prepare.build import prepare
from albert_jax.training.finetune import finetune
from albert_jax.training.metrics import read_metrics
from albert_jax.training.pretrain import export, pretrain
from tests.endurance.campaign import Result, fork, kill, run_from_command_line, say, wait
from tests.helpers.conversions import PRETRAINING, SMALL, made_up, write_original
from tests.helpers.multihost_runs import count_lines
from tests.helpers.pretraining_runs import (
    TINY,
    VOCABULARY,
    make_store,
    random_model,
    tiny_config,
    write_corpus,
)

# What a clock says.
TIMES = {"sequences_per_second", "tokens_per_second", "input_wait", "mfu", "seconds"}


@dataclass(frozen=True)
class Work:
    """Something that can be killed: `run` in a folder, begun or not, and what is compared after."""

    run: Callable[[Path], Any]
    outcome: Callable[[Path], Any]
    lines: Callable[[Path], int] = lambda folder: 0  # of a log that grows as it works
    writes_lines: bool = False


def kills(folder: Path, tries: int, seed: int, what: str = "all") -> Result:
    """Kills the works so often in all; each that is then finished must be as if left alone."""
    result = Result("kills", tries=0)
    works = WORKS if what == "all" else {what: WORKS[what]}
    for name, make in works.items():
        work = make(folder / name)
        share = max(1, round(tries * SHARES[name] / sum(SHARES[n] for n in works)))
        _kill(work, folder / name, share, random.Random(f"{seed}/{name}"), result, name)
    return result


def _kill(
    work: Work, folder: Path, tries: int, rng: random.Random, result: Result, name: str
) -> None:
    log = folder / "log"
    for _ in range(2):  # the first fills the cache of compiled programs
        shutil.rmtree(folder / "alone", ignore_errors=True)
        began = time.monotonic()
        child = fork(lambda: work.run(folder / "alone"), log)
        start = _time_to_first_line(work, folder / "alone", began)
        assert wait(child) == 0, log.read_text()[-3000:]
        lasts = time.monotonic() - began
    expected = work.outcome(folder / "alone")
    at = folder / "killed"
    struck = 0
    while struck < tries:
        log.unlink(missing_ok=True)
        child = fork(lambda: work.run(at), log)
        _wait_for_a_moment(work, at, rng, start, lasts)
        if kill(child):
            struck += 1
            if struck % 25 == 0:
                say(f"{name}: {struck} kills")
        else:
            _compare(work, at, expected, log, result, name)
    assert wait(fork(lambda: work.run(at), log)) == 0, log.read_text()[-3000:]
    _compare(work, at, expected, log, result, name)
    result.tries += struck
    result.count(f"{name}_kills", struck)


def _time_to_first_line(work: Work, at: Path, began: float) -> float:
    while work.writes_lines and not work.lines(at):
        time.sleep(0.002)
    return time.monotonic() - began


def _wait_for_a_moment(
    work: Work, at: Path, rng: random.Random, start: float, lasts: float
) -> None:
    """A moment of its start, or some lines of its log later; else one of the time that it takes."""
    if not work.writes_lines or rng.random() < 0.25:
        time.sleep(rng.uniform(0, start if work.writes_lines else lasts))
        return
    wanted = work.lines(at) + rng.randint(1, 6)
    deadline = time.monotonic() + 2 * lasts + 5
    while work.lines(at) < wanted and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))


def _compare(work: Work, at: Path, expected: Any, log: Path, result: Result, name: str) -> None:
    result.count(f"{name}_finished")
    try:
        found = work.outcome(at)
    except Exception as error:
        result.lost.append(f"{name}: {error!r}")
    else:
        if found != expected:
            result.lost.append(f"{name}: {_first_difference(expected, found)}")
    shutil.rmtree(at)
    log.unlink(missing_ok=True)


def _first_difference(expected: Any, found: Any, where: str = "") -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}, key=str):
            if expected.get(key) != found.get(key):
                return _first_difference(expected.get(key), found.get(key), f"{where}/{key}")
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            if a != b:
                return _first_difference(a, b, f"{where}/{i}")
    return f"{where}: {str(expected)[:200]} alone, {str(found)[:200]} killed"


# ----------------------------------------------------------------------------------------- outcomes


def files_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, and nothing may be half-written beside them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def model_of(folder: Path) -> dict[str, Any]:
    """What a model directory holds, by its manifest's digests."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    return {key: manifest[key] for key in ("tensors", "sha256", "head", "tokenizer")}


def log_of(workdir: Path) -> list[dict[str, Any]]:
    """A log without what a clock says and what is only of a resumed run."""
    entries = [e for e in read_metrics(workdir / "metrics.jsonl") if e["kind"] != "event"]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in entries]


def checkpoint_of(workdir: Path) -> dict[str, Any]:
    """The newest checkpoint's digests and position."""
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpointer:
        newest = workdir / "checkpoints" / str(checkpointer.steps()[-1])
    document = json.loads((newest / "meta" / "metadata").read_bytes())
    return {"leaves": document["leaves"], "position": document["meta"]["position"]}


def leftovers(folder: Path) -> list[str]:
    """Temporary files and locks that a finished run must not leave."""
    kinds = (".tmp", ".new", ".old", ".lock", ".orbax-checkpoint-tmp", ".damaged", ".replaced")
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(kinds))


# -------------------------------------------------------------------------------------------- works


def _pretraining(folder: Path) -> Work:
    folder.mkdir()
    store = make_store(folder)

    def run(at: Path) -> None:
        config = tiny_config(
            store, at, steps=60, accumulate=2, log_every=1, eval_every=20, save_every=3
        )
        cache = dataclasses.replace(config.train, compilation_cache=str(folder / "xla"))
        pretrain(dataclasses.replace(config, train=cache))

    def outcome(at: Path) -> dict[str, Any]:
        return {
            "checkpoint": checkpoint_of(at),
            "log": log_of(at),
            "model": model_of(at / "model"),
            "leftovers": leftovers(at),
        }

    return Work(run, outcome, lambda at: count_lines(at / "metrics.jsonl"), writes_lines=True)


def _fine_tuning(folder: Path) -> Work:
    folder.mkdir()
    rng = random.Random(0)
    rows = [(" ".join(rng.choices(["good", "bad", "a", "film"], k=6)), i % 2) for i in range(64)]
    for split, part in (("train", rows[:48]), ("dev", rows[48:])):
        lines = [json.dumps({"text": text, "label": str(label)}) for text, label in part]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    model = folder / "model"
    # In a process of its own: this one must not use JAX.
    assert wait(fork(lambda: random_model(model, TINY), folder / "made.log")) == 0

    def run(at: Path) -> None:
        finetune(
            FinetuneConfig(
                task="single",
                model=str(model),
                data=str(folder),
                workdir=str(at),
                max_seq_length=32,
                length_window=1,
                seeds=2,
                optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3),
                train=TrainConfig(
                    steps=24,
                    batch_size=8,
                    devices=1,
                    log_every=1,
                    eval_every=8,
                    save_every=3,
                    keep=2,
                    compilation_cache=str(folder / "xla"),
                ),
            )
        )

    def outcome(at: Path) -> dict[str, Any]:
        results = json.loads((at / "results.json").read_bytes())
        found: dict[str, Any] = {"runs": results["runs"], "summary": results["summary"]}
        for seed in sorted(at.glob("seed-*")):
            found[seed.name] = {
                "checkpoint": checkpoint_of(seed),
                "log": log_of(seed),
                "best": model_of(seed / "best"),
                "last": model_of(seed / "last"),
            }
        return found | {"leftovers": leftovers(at), "link": str((at / "model").readlink())}

    def lines(at: Path) -> int:
        return sum(count_lines(seed / "metrics.jsonl") for seed in at.glob("seed-*"))

    return Work(run, outcome, lines, writes_lines=True)


def _preparing(folder: Path) -> Work:
    folder.mkdir()
    texts = folder / "texts"
    texts.mkdir()
    for i in range(8):
        write_corpus(texts / f"{i}.txt", documents=400)

    def run(at: Path) -> None:
        prepare([texts], vocab=VOCABULARY, output=at, holdout=0.1, workers=1, progress=False)

    return Work(run, files_of)


def _converting(folder: Path) -> Work:
    folder.mkdir()
    sources = {}
    for name, layers in (("first", 2), ("second", 3)):
        config = dataclasses.replace(SMALL, num_hidden_layers=layers)
        params = made_up(config, PRETRAINING)
        sources[name] = write_original(folder / name, params, config)

    def run(at: Path) -> None:
        for source in sources.values():
            convert(source, at / "model", no_vocab=True)

    def outcome(at: Path) -> dict[str, Any]:
        return model_of(at / "model") | {"leftovers": leftovers(at)}

    return Work(run, outcome)


def _exporting(folder: Path) -> Work:
    folder.mkdir()
    store = make_store(folder)
    workdir = folder / "run"
    config = tiny_config(store, workdir, steps=2)
    assert wait(fork(lambda: pretrain(config), folder / "made.log")) == 0

    def run(at: Path) -> None:
        at.mkdir(exist_ok=True)
        for _ in range(2):  # the second replaces the first
            export(workdir, at / "model")

    def outcome(at: Path) -> dict[str, Any]:
        return model_of(at / "model") | {"leftovers": leftovers(at)}

    return Work(run, outcome)


WORKS: dict[str, Callable[[Path], Work]] = {
    "pretrain": _pretraining,
    "finetune": _fine_tuning,
    "prepare": _preparing,
    "convert": _converting,
    "export": _exporting,
}
# Of the tries: the runs of hours are the ones that are interrupted.
SHARES = {"pretrain": 4, "finetune": 2, "prepare": 2, "convert": 1, "export": 1}

if __name__ == "__main__":
    run_from_command_line(kills, tries=20, what="all")
