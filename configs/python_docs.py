# SPDX-License-Identifier: Apache-2.0
"""A small ALBERT on the English text that every Python carries, from raw text to a filled-in
sentence.

albert-jax pretrain configs/python_docs.py --workdir runs/python_docs
"""

from albert_jax.config import (
    AlbertConfig,
    ExamplesConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)


def get_config(steps: int = 800) -> PretrainConfig:
    return PretrainConfig(
        text=("python-docs",),
        model=AlbertConfig(
            vocab_size=4000,
            embedding_size=64,
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=128,
        ),
        examples=ExamplesConfig(max_seq_length=64, max_predictions_per_seq=10),
        optimizer=OptimizerConfig(name="lamb", learning_rate=0.01, warmup_steps=60),
        train=TrainConfig(
            steps=steps,
            batch_size=32,
            log_every=50,
            eval_every=400,
            eval_examples=512,
            save_every=400,
        ),
    )
