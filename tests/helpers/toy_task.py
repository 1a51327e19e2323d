# SPDX-License-Identifier: Apache-2.0
"""A toy task that a tiny model learns within seconds: one word among fillers decides the label."""

import dataclasses
import json
import random

from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import OptimizerConfig, TrainConfig
from tests.helpers.models import tiny_albert
from tests.helpers.pretraining_runs import random_model

TINY = tiny_albert(
    vocab_size=8000,
    hidden_size=32,
    num_hidden_layers=1,
    intermediate_size=64,
    max_position_embeddings=32,
    initializer_range=0.1,
)
GOOD, BAD = ("open", "list"), ("file", "string")
FILLERS = ("the", "value", "is", "of")


def sentences(count, seed):
    """Yield (text, label): one of four words among fillers says which."""
    rng = random.Random(seed)
    for _ in range(count):
        label = rng.choice(("no", "yes"))
        words = rng.choices(FILLERS, k=rng.randint(2, 6))
        words.insert(rng.randrange(len(words)), rng.choice(GOOD if label == "yes" else BAD))
        yield " ".join(words), label


def toy_data(folder):
    """Write train, dev and test of the toy task to a new folder, and return it."""
    folder.mkdir()
    for split, count in (("train", 256), ("dev", 64), ("test", 8)):
        lines = [
            json.dumps({"text": text} | ({"label": label} if split != "test" else {}))
            for text, label in sentences(count, split)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def toy_model(path):
    """Write a model directory with both pretraining heads, as pretrain leaves it."""
    return random_model(path, TINY)


def toy_config(base, data, workdir, *, steps=60, **changes):
    """Return the settings of a run that learns the toy task."""
    config = FinetuneConfig(
        task="single",
        model=str(base),
        data=str(data),
        workdir=str(workdir),
        max_seq_length=16,
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.005, warmup_steps=5),
        train=TrainConfig(
            steps=steps,
            batch_size=32,
            seed=3,
            devices=1,
            log_every=10,
            eval_every=20,
            eval_examples=1_000_000,
            save_every=20,
            keep=2,
        ),
    )
    return dataclasses.replace(config, **changes)
