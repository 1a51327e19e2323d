# SPDX-License-Identifier: Apache-2.0
"""Pretrain on another language, or on several, with a vocabulary of their own.

The settings are the paper's, except for 250,000 steps of 512 sequences, where it has 125,000 of
4,096.

    albert-jax train-tokenizer corpus/*.txt --vocab-size 30000 --output vocab
    albert-jax prepare corpus --vocab vocab --language de --output store
    albert-jax pretrain configs/language.py:vocab_size=30000 --store store --workdir runs/de

`vocab_size=` is the vocabulary's number of pieces. The original's rule of which pieces begin a word
is made for English. It takes every accented or non-Latin letter for a beginning, so that words are
masked in pieces. Here only the marker begins a word (`word_start`). Whether text is lower-cased and
loses its accents is decided with the vocabulary and the store: give --no-do-lower-case if capitals
mean something, and --keep-accents if accents do. docs/how-to/language.md has the rest, also for
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
