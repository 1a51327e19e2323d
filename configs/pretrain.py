# SPDX-License-Identifier: Apache-2.0
"""Pretrain a released size by the paper's settings.

Batches have 4,096 rows of 512 tokens. LAMB's rate is 0.00176, with a warm-up of 3,125 of 125,000
steps.

    albert-jax pretrain configs/pretrain.py:model=base-v1,chips=64 --store STORE --workdir DIR

The paper ran this on 64 to 512 TPU v3 chips (section 4.1). `chips=` is how many there are in all,
and `rows=` how many sequences one of them takes at a time: the batch is divided into so many
micro-batches that no chip gets more (4096 on 64 chips at 16 rows: 4). The rows in the table are for
16 GiB, a v5e's; more fit on others. Without `chips=` nothing is divided.

A smaller batch gets its learning rate by the square root: model=base-v2,batch_size=256. v1 has
dropout 0.1 and 125,000 steps; v2 none (nor has xxlarge-v1), and ran 10 M (base) or 3 M steps on
text that was never published: `steps=` sets that, the text is yours (README of
google-research/albert).
"""

from albert_jax.config import (
    ComputeConfig,
    ExamplesConfig,
    PretrainConfig,
    TrainConfig,
    model_config,
)
from albert_jax.errors import UserError

# Sequences of 512 tokens that 16 GiB take at a time without remat; a few already keep a chip busy.
# By the compiler for v5e (libtpu 0.0.42.1, 2026-11-30): base 2.8 GiB, large 6.8, xlarge 4.2,
# xxlarge 8.6; with dropout no more.
FITS = {"base": 16, "large": 16, "xlarge": 4, "xxlarge": 4}


def get_config(
    model: str = "base-v2",
    batch_size: int = 4096,
    steps: int = 125_000,
    predictions: int = 20,
    chips: int | None = None,
    rows: int | None = None,
    accumulate: int | None = None,
) -> PretrainConfig:
    config = model_config(model)
    if accumulate is None:
        accumulate = 1 if chips is None else micro_batches(batch_size, chips, rows or _rows(model))
    return PretrainConfig(
        model=config,
        compute=ComputeConfig(dtype="bfloat16"),
        examples=ExamplesConfig(max_seq_length=512, max_predictions_per_seq=predictions),
        train=TrainConfig(steps=steps, batch_size=batch_size, accumulate=accumulate),
    )


def _rows(model: str) -> int:
    size = model.partition("-")[0]
    if size not in FITS:
        raise UserError(f"how many rows of {model} fit a chip is not known; give rows=")
    return FITS[size]


def micro_batches(batch_size: int, chips: int, rows: int) -> int:
    """The fewest micro-batches that give each chip the same number of sequences, at most `rows`."""
    if min(chips, rows) < 1:
        raise UserError(f"chips {chips} and rows {rows} must be at least 1")
    if batch_size % chips:
        raise UserError(
            f"batch_size {batch_size} does not divide over {chips} chips; choose a number that does"
        )
    each = batch_size // chips
    return next(n for n in range(1, each + 1) if each % n == 0 and each // n <= rows)
