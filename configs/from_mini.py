# SPDX-License-Identifier: Apache-2.0
"""Continue the pretraining of `mini`, the packaged model, on your own text.

    albert-jax pretrain configs/from_mini.py --text 'own/*.txt' --workdir runs/own

The vocabulary is mini's, and a few megabytes of text are enough. 500 updates of 4,096 tokens take
about ten minutes on two cores.
"""

from albert_jax.config import (
    ComputeConfig,
    ExamplesConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
    model_config,
)


def get_config(steps: int = 500) -> PretrainConfig:
    return PretrainConfig(
        model=model_config("mini"),
        init_from="mini",
        compute=ComputeConfig(dtype="auto"),
        examples=ExamplesConfig(max_seq_length=128, max_predictions_per_seq=20, ngram=1),
        optimizer=OptimizerConfig(name="muon", learning_rate=0.001, schedule="wsd"),
        train=TrainConfig(
            steps=steps,
            batch_size=32,
            log_every=25,
            eval_every=100,
            eval_examples=1024,
            save_every=500,
            save_minutes=5.0,
        ),
    )
