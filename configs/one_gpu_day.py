# SPDX-License-Identifier: Apache-2.0
"""Pretrain base on one GPU of 16 GiB or more, in a day of an A100 or less of a newer one.

    albert-jax pretrain configs/one_gpu_day.py --store STORE --workdir DIR

What trials with small models suggest (docs/lab/learning.md), at the size of base: Muon, first
values by the width and by the pieces' frequencies, heads that begin at the neighbourhood, single
words masked, 20 % of them at first, the shared layer applied 3 and then 12 times, rows of 128 and
in the last fifth of 512 tokens. 150,000 updates of 65,536 tokens: 9.8 billion tokens, 3.4e18 FLOP.
The day is arithmetic, not measured: 3.0 hours of an A100 at its peak, and a day at an eighth of it.
`days=` scales the updates and with them all schedules. Not tried at this size: the learning rate is
that of models of 128 to 384, where 0.002 and 0.003 were alike and 0.005 was worse.
"""

from albert_jax.config import (
    ComputeConfig,
    ExamplesConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
    model_config,
)


def get_config(
    model: str = "base-v2", days: float = 1.0, steps: int = 150_000, length: int = 512
) -> PretrainConfig:
    depth = model_config(model).num_hidden_layers
    short = min(128, length)
    return PretrainConfig(
        model=model_config(model),
        compute=ComputeConfig(dtype="bfloat16", remat="full" if "xlarge" in model else "none"),
        examples=ExamplesConfig(
            max_seq_length=length,
            max_predictions_per_seq=max(1, round(length * 0.15)),
            ngram=1,
        ),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.002, schedule="wsd"),
        train=TrainConfig(
            steps=round(steps * days),
            batch_size=65_536 // length,
            accumulate=8,
            depth=f"{depth // 4}:0.5,all:0.5",
            length=f"{short}:0.8,{length}:0.2",
            masking="0.2:0.7,0.15:0.3",
            batch_ramp=f"{65_536 // short}:0.8,{65_536 // length}:0.2",
            log_every=100,
            eval_every=5000,
            save_every=5000,
            save_minutes=15,
        ),
        output_bias="unigram",
        kernel_init="fan_in",
        attention_init="local",
    )
