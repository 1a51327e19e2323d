# SPDX-License-Identifier: Apache-2.0
"""Pretrain a small ALBERT on the documentation inside Python and installed packages.

    albert-jax pretrain configs/python_docs.py --workdir runs/python_docs

From raw text to a filled-in sentence this takes about four minutes on two cores. Optimizer,
schedule, first values and the masking of single words are those that small models learn fastest
with (docs/lab/learning.md). The paper's settings are the defaults, as in configs/pretrain.py.
"""

from albert_jax.config import (
    AlbertConfig,
    ComputeConfig,
    ExamplesConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)


def get_config(steps: int = 3600) -> PretrainConfig:
    return PretrainConfig(
        text=("python-docs", "package-docs"),
        model=AlbertConfig(
            vocab_size=4000,
            embedding_size=64,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=128,
        ),
        compute=ComputeConfig(dtype="auto"),
        examples=ExamplesConfig(max_seq_length=64, max_predictions_per_seq=10, ngram=1),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=0.003, warmup_steps=60, schedule="wsd"
        ),
        train=TrainConfig(
            steps=steps,
            batch_size=32,
            log_every=50,
            eval_every=400,
            eval_examples=2400,
            save_every=400,
        ),
        output_bias="unigram",
        kernel_init="fan_in",
        attention_init="local",
    )
