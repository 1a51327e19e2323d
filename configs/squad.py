# SPDX-License-Identifier: Apache-2.0
"""Fine-tune on SQuAD 1.1 or 2.0 by the paper's settings (ALBERT, table 14).

    albert-jax finetune configs/squad.py:task=squad2 --model base-v2 --data squad --workdir squad2

`model=` is the model, as `--model`, which sets it too. The README of google-research/albert has
other settings for 2.0, which score less: rate 5e-5, 384 tokens and 2 passes, where table 14 has
3e-5, 512 and 8,144 steps, about 3 passes.
"""

from albert_jax.config import (
    ComputeConfig,
    Dtype,
    FinetuneConfig,
    OptimizerConfig,
    TrainConfig,
    task_name,
)
from albert_jax.errors import UserError

# Learning rate, steps, warm-up, tokens.
TABLE_14 = {"squad1": (5e-5, 3649, 365, 384), "squad2": (3e-5, 8144, 814, 512)}


def get_config(
    task: str = "squad2", model: str | None = None, dtype: Dtype = "float32", accumulate: int = 1
) -> FinetuneConfig:
    name = task_name(task)
    if name not in TABLE_14:
        raise UserError(f"task {task!r} has no settings here; known: {', '.join(TABLE_14)}")
    rate, steps, warmup, length = TABLE_14[name]
    return FinetuneConfig(
        task=name,
        model=model,
        max_seq_length=length,
        doc_stride=128,
        max_query_length=64,
        dropout=0.0,
        compute=ComputeConfig(dtype=dtype, remat="full" if "xlarge" in (model or "") else "none"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=rate, warmup_steps=warmup),
        train=TrainConfig(
            steps=steps,
            batch_size=48,
            accumulate=accumulate,
            log_every=50,
            eval_every=1000,
            eval_examples=1_000_000,
            save_every=500,
            keep=2,
        ),
    )
