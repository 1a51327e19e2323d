# SPDX-License-Identifier: Apache-2.0
"""Fine-tune on RACE by the paper's settings (ALBERT, table 14), or v2's own.

    albert-jax finetune configs/race.py --model base-v2 --data RACE --workdir runs/race

`model=` is the model, as `--model`, which sets it too. Where it has no -v1 in its name, the
learning rate is 1e-5 and the encoder's dropout 0, because table 14's 2e-5 and 0.1 "will cause model
divergence for v2 models" (README of google-research/albert). `v1=True` and `v1=False` insist.
"""

import re

from albert_jax.config import ComputeConfig, Dtype, FinetuneConfig, OptimizerConfig, TrainConfig


def get_config(
    task: str = "race",
    model: str | None = None,
    v1: bool | None = None,
    dtype: Dtype = "float32",
    accumulate: int = 1,
) -> FinetuneConfig:
    is_v1 = bool(re.search(r"[-_]v1($|[-_/@.])", model or "")) if v1 is None else v1
    return FinetuneConfig(
        task=task,
        model=model,
        max_seq_length=512,
        dropout=0.1 if is_v1 else 0.0,
        compute=ComputeConfig(dtype=dtype, remat="full" if "xlarge" in (model or "") else "none"),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=2e-5 if is_v1 else 1e-5, warmup_steps=1000
        ),
        train=TrainConfig(
            steps=12000,
            batch_size=32,
            accumulate=accumulate,
            log_every=50,
            eval_every=1000,
            eval_examples=1_000_000,
            save_every=500,
            keep=2,
        ),
    )
