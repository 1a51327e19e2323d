# SPDX-License-Identifier: Apache-2.0
"""Another language, or a mixture, with a vocabulary of one's own: the paper's settings but for the
batch, 512 sequences (see docs/how-to/language.md).

    albert-jax train-tokenizer corpus/*.txt --vocab-size 30000 --output vocab
    albert-jax prepare corpus --vocab vocab --language de --output store
    albert-jax pretrain configs/language.py:vocab_size=30000 --store store --workdir runs/de

`vocab_size=` is the vocabulary's number of pieces. The original's rule of which pieces begin a word
is made for English: it takes every accented or non-Latin letter for a beginning, so that words are
masked in pieces. Here the marker alone begins a word (`word_start`). Lower-casing and dropping
accents is the vocabulary's and the store's matter: give --no-do-lower-case where capitals mean
something, and --keep-accents where accents do. docs/how-to/language.md has the rest, also for
languages without spaces.
"""

from dataclasses import replace

from albert_jax.config import (
    ComputeConfig,
    ExamplesConfig,
    PretrainConfig,
    TrainConfig,
    model_config,
)


def get_config(
    vocab_size: int = 30_000,
    model: str = "base-v2",
    batch_size: int = 512,
    steps: int = 250_000,
    accumulate: int = 1,
) -> PretrainConfig:
    return PretrainConfig(
        model=replace(model_config(model), vocab_size=vocab_size),
        compute=ComputeConfig(dtype="bfloat16", remat="full" if "xlarge" in model else "none"),
        examples=ExamplesConfig(max_seq_length=512, word_start="marker"),
        train=TrainConfig(steps=steps, batch_size=batch_size, accumulate=accumulate),
    )
