# SPDX-License-Identifier: Apache-2.0
"""Fine-tune on a GLUE task by the paper's settings (ALBERT, table 14).

    albert-jax finetune configs/glue.py:task=sst2 --model base-v2 --data glue --workdir runs/sst2

`model=` is the model, as `--model`, which sets it too. The paper starts RTE, STS-B and MRPC from a
model fine-tuned on MNLI (section 4.9): --model runs/mnli/model. Steps times batch are about 10
passes of CoLA and 3.3 of MNLI, which take days on a CPU; fewer steps will do for a trial. Table 14
has no settings for AX, which a model fine-tuned on MNLI answers.
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

# Learning rate, batch size, encoder's dropout, steps, warm-up, and steps between evaluations, which
# are run_glue.sh's between checkpoints.
TABLE_14 = {
    "cola": (1e-5, 16, 0.0, 5336, 320, 100),
    "stsb": (2e-5, 16, 0.0, 3598, 214, 100),
    "sst2": (1e-5, 32, 0.0, 20935, 1256, 100),
    "mnli": (3e-5, 128, 0.0, 10000, 1000, 100),
    "qnli": (1e-5, 32, 0.0, 33112, 1986, 200),
    "qqp": (5e-5, 128, 0.1, 14000, 1000, 100),
    "rte": (3e-5, 32, 0.1, 800, 200, 100),
    "mrpc": (2e-5, 32, 0.0, 800, 200, 100),
    "wnli": (2e-5, 16, 0.1, 2000, 250, 100),
}


def get_config(
    task: str = "mrpc", model: str | None = None, dtype: Dtype = "float32", accumulate: int = 1
) -> FinetuneConfig:
    name = task_name(task)
    if name == "ax":
        raise UserError("task 'ax' has no training data; a model fine-tuned on mnli answers it")
    if name not in TABLE_14:
        raise UserError(
            f"task {name!r} has no settings in this recipe, which are those of "
            f"{', '.join(TABLE_14)}; run albert-jax finetune --task {name} without it"
        )
    rate, batch_size, dropout, steps, warmup, every = TABLE_14[name]
    return FinetuneConfig(
        task=name,
        model=model,
        max_seq_length=512,
        dropout=dropout,
        compute=ComputeConfig(dtype=dtype, remat="full" if "xlarge" in (model or "") else "none"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=rate, warmup_steps=warmup),
        train=TrainConfig(
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            log_every=50,
            eval_every=every,
            eval_examples=1_000_000,
            save_every=500,
            keep=2,
        ),
    )
