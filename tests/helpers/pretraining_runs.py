# SPDX-License-Identifier: Apache-2.0
"""A small token store, a tiny run on it, and the same run killed again and again.

`python -m tests.helpers.pretraining_runs STORE FOLDER KILLS STEPS` lets one run finish in
FOLDER/alone. It kills the same run in FOLDER/killed KILLS times at random moments, lets the last
one finish and prints how many kills found it running.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax

from albert_jax.checkpoint.model_export import export_model
from albert_jax.config.model import AlbertConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig, OptimizerConfig, TrainConfig
from albert_jax.data.prepare.build import prepare
from albert_jax.models.albert import AlbertForPretraining, init_params
from albert_jax.training.pretrain import pretrain
from tests.helpers.models import tiny_albert
from tests.helpers.paths import REPOSITORY, VOCABULARY

TINY = tiny_albert(
    vocab_size=8000,
    num_hidden_layers=1,  # each of a step's layers takes half a second to compile
    max_position_embeddings=32,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)


def random_model(folder: Path, config: AlbertConfig) -> Path:
    """A model directory of random weights with both pretraining heads, as pretrain leaves it."""
    return export_model(
        folder,
        params=jax.device_get(init_params(AlbertForPretraining(config), jax.random.key(0))),
        config=config,
        vocab=VOCABULARY,
        tokenizer={"mode": "google", "do_lower_case": True},
        provenance={"made_by": "a test"},
    )


def write_corpus(path: Path, documents: int = 60) -> Path:
    """Documents of made-up sentences, one a line."""
    rng = random.Random(0)
    words = [
        "the",
        "list",
        "of",
        "a",
        "string",
        "returns",
        "value",
        "when",
        "file",
        "is",
        "not",
        "open",
        "read",
        "and",
        "write",
        "data",
    ]
    text = [
        "\n".join(
            " ".join(rng.choices(words, k=rng.randint(4, 12))) + "."
            for _ in range(rng.randint(3, 20))
        )
        for _ in range(documents)
    ]
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return path


def make_store(folder: Path, documents: int = 60) -> Path:
    store = folder / "store"
    corpus = write_corpus(folder / "corpus.txt", documents)
    prepare([corpus], vocab=VOCABULARY, output=store, holdout=0.2, workers=1, progress=False)
    return store


def tiny_config(store: Path, workdir: Path, **train: object) -> PretrainConfig:
    settings = {
        "steps": 6,
        "batch_size": 8,
        "devices": 1,
        "log_every": 1,
        "eval_every": 0,
        "eval_examples": 16,
        "save_every": 2,
        "data_threads": 1,
        "compilation_cache": "",
    }
    return PretrainConfig(
        model=TINY,
        examples=ExamplesConfig(max_seq_length=32, max_predictions_per_seq=4),
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2),
        train=TrainConfig(**(settings | train)),
        store=str(store),
        workdir=str(workdir),
    )


def last_checkpoint(workdir: Path) -> dict:
    """The newest checkpoint's document: every leaf's digest, and the position of the run."""
    newest = max(
        (p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()),
        key=lambda p: int(p.name),
    )
    (document,) = newest.rglob("meta/metadata")
    return json.loads(document.read_bytes())


def fork_run(config: PretrainConfig) -> int:
    """Starts a run as a fork of this process, which has imported everything but used nothing of
    JAX."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            pretrain(config)
            status = 0
        finally:
            os._exit(status)
    return child


def lines_of(workdir: Path) -> int:
    try:
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def kill_at_random(config: PretrainConfig, kills: int, seed: int) -> int:
    """How many of `kills` SIGKILLs struck a run that was going on."""
    rng, struck = random.Random(seed), 0
    workdir = Path(config.workdir)
    for _ in range(kills):
        child = fork_run(config)
        before, wanted = lines_of(workdir), rng.randint(0, 6)
        deadline = time.monotonic() + 120
        ended = 0
        # Until it has logged so many steps more (0: while it starts), then a moment within a step.
        while not ended and lines_of(workdir) < before + wanted and time.monotonic() < deadline:
            time.sleep(0.002)
            ended, _ = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(rng.uniform(0, 0.05 if wanted else 2.0))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            struck += os.WIFSIGNALED(status)
    return struck


def main() -> None:
    store, folder, kills, steps = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
    struck = 0
    for name, times in (("alone", 0), ("killed", kills)):
        config = tiny_config(
            store,
            folder / name,
            steps=steps,
            accumulate=2,
            compilation_cache=str(folder / "xla"),
        )
        struck += kill_at_random(config, times, seed=steps)
        _, status = os.waitpid(fork_run(config), 0)
        if code := os.waitstatus_to_exitcode(status):
            sys.exit(code)
    print(struck)


def run_with_kills(store: Path, folder: Path, *, kills: int, steps: int, timeout: float) -> int:
    """Runs `main` in a fresh process without fake devices; returns how many kills struck."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.helpers.pretraining_runs",
            store,
            folder,
            str(kills),
            str(steps),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
