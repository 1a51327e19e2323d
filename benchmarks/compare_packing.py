# SPDX-License-Identifier: Apache-2.0
"""Not a test: examples a second of SST-2 and MNLI, all padded to 512 tokens as the original does,
in batches by length, and packed, in one process.

python -m benchmarks.compare_packing --task sst2 --data glue/SST-2 --vocab vocab30k --rows 256

Forward passes go through what `evaluate` runs, training steps (AdamW, no dropout) through what
`finetune` runs. In each round all contenders do the same examples, one after the other; compiling
is left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from albert_jax.config.model import MODELS, AlbertConfig
from albert_jax.config.sections import OptimizerConfig
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.batching import batch_tokens
from albert_jax.inference.finetuned import HeadOutputs, head_outputs
from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.tasks import RawExample, find_task
from albert_jax.tasks.batches import Pack, TrainingBatches
from albert_jax.tasks.collate import FeatureRow, collate
from albert_jax.tasks.split_features import features_of
from albert_jax.training.losses import task_objective
from albert_jax.training.optimizer import make_optimizer
from albert_jax.training.step import init_state, make_train_step
from benchmarks.timing import seconds_in_turn

SMALL = (
    AlbertConfig(  # the model of docs/lab/training.md's half hour of Wikipedia, with 512 positions
        vocab_size=30000,
        embedding_size=64,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
    )
)
LONGEST = 512  # table 14's max_seq_length
Contenders = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]  # what compiles, what counts


def examples_of(task: str, data: Path) -> list[RawExample]:
    """The examples of a split's official file (train.tsv), a folder's dev split, or of JSON that is
    an object of {"text_a", "text_b", "label"}."""
    if data.suffix != ".json":
        return find_task(task).examples("train" if (data / "train.tsv").is_file() else "dev", data)
    records = json.loads(data.read_text(encoding="utf-8"))
    return [RawExample(key, (r["text_a"], r["text_b"]), r["label"]) for key, r in records.items()]


def forward(
    model: AlbertForTask, params: Any, rows: list[FeatureRow], packs: list[int]
) -> Contenders:
    """`evaluate` of all rows."""
    apply = jax.jit(lambda params, batch: head_outputs(model, params, batch))
    size = max(1, batch_tokens() // LONGEST)

    def padded(count: int) -> None:
        for start in range(0, count, size):
            batch = collate(rows[start : start + size], LONGEST, targets=False)
            jax.device_get(apply(params, batch))

    found: Contenders = {"padded to 512": (lambda: padded(size), lambda: padded(len(rows)))}
    for pack in (0, *packs):
        outputs = HeadOutputs(model, pack=pack)
        name = f"packed in {pack}" if pack else "by length"
        found[name] = (lambda outputs=outputs: outputs(params, rows),) * 2
    return found


def train(
    model: AlbertForTask, params: Any, rows: list[FeatureRow], packs: list[int], batch_size: int
) -> Contenders:
    """One pass of updates over all rows."""
    steps = len(rows) // batch_size
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-5)
    tx, _ = make_optimizer(optimizer, steps=steps, batch_size=batch_size)
    step = jax.jit(make_train_step(task_objective(model), tx))
    state = init_state(params, tx, seed=0)

    def batches(window: int, pack: int, longest: int = LONGEST) -> TrainingBatches:
        return TrainingBatches(
            rows,
            batch_size=batch_size,
            seed=0,
            window=window,
            longest=longest,
            pack=Pack(pack) if pack else None,
        )

    def run(drawn: Callable[[int], Any], count: int) -> None:
        new = state
        for number in range(count):
            new, metrics = step(new, drawn(number))
        jax.device_get(metrics)

    plain = batches(1, 0)
    contenders: dict[str, Callable[[int], Any]] = {
        "padded to 512": lambda n: collate([rows[i] for i in plain.indices(n)], LONGEST),
        "by length": batches(32, 0).at,
        "to the batch's longest": plain.at,
    }
    contenders |= {f"packed in {pack}": batches(1, pack).at for pack in packs}
    return {  # padded to 512, there is one shape to compile
        name: (
            lambda drawn=drawn, name=name: run(drawn, 1 if name == "padded to 512" else steps),
            lambda drawn=drawn: run(drawn, steps),
        )
        for name, drawn in contenders.items()
    }


def measure(contenders: Contenders, rounds: int) -> dict[str, np.ndarray]:
    """Wall and CPU seconds of a round of each contender."""
    for compile_all, _ in contenders.values():
        compile_all()
    seconds = seconds_in_turn({name: call for name, (_, call) in contenders.items()}, rounds)
    return {name: spent.mean(axis=0) for name, spent in seconds.items()}


def main(
    task: str,
    data: Path,
    vocab: Path,
    model: str = "small",
    rows: int = 256,
    batch_size: int = 32,
    rounds: int = 2,
    packs: tuple[int, ...] = (128, 256, 512),
    phases: tuple[str, ...] = ("forward", "train"),
) -> None:
    """Prints examples a second of every contender, wall and CPU, and as a multiple of the first's.

    Args:
        task: sst2 or mnli.
        data: folder of the task's files, or a .json of examples.
        vocab: SentencePiece model or the folder that has it.
        model: small, or a released model.
        rows: examples, evenly spread over the file.
        batch_size: examples an update.
        rounds: times that all are measured.
        packs: lengths of packed rows.
        phases: forward, train or both.
    """
    config = SMALL if model == "small" else MODELS[model]
    config = dataclasses.replace(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    chosen = find_task(task)
    every = examples_of(task, data)
    examples = [every[i * len(every) // rows] for i in range(rows)]
    tokenizer = Tokenizer.load(vocab)
    split = features_of(chosen, examples, tokenizer, LONGEST)
    lengths = [row.length for row in split.rows]
    print(
        f"{task}, {model}, {rows} of {len(every)} examples: {np.mean(lengths):.1f} tokens in the "
        f"mean, {max(lengths)} at most"
    )
    network = AlbertForTask(config, labels=len(chosen.labels), dropout=0.0)
    params = init_params(network, jax.random.key(0))
    lists: dict[str, Contenders] = {}
    if "forward" in phases:
        lists["forward"] = forward(network, params, split.rows, list(packs))
    if "train" in phases:
        lists["train"] = train(network, params, split.rows, list(packs), batch_size)
    for phase, contenders in lists.items():
        seconds = measure(contenders, rounds)
        first = seconds["padded to 512"]
        for name, (wall, cpu) in seconds.items():
            print(
                f"{phase:8} {name:24} {rows / wall:9.2f} a second ({rows / cpu:8.2f} a CPU second)"
                f"  x {first[0] / wall:6.2f} (x {first[1] / cpu:6.2f})",
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(main)
