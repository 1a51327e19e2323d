# SPDX-License-Identifier: Apache-2.0
"""Pretrain on English Wikipedia for half an hour of two cores.

    albert-jax pretrain configs/enwiki_cpu.py --store STORE --workdir DIR

STORE has a vocabulary of 8,000 pieces. With XLA_FLAGS=--xla_force_host_platform_device_count=2
before the command, two cores are two devices, and steps are faster. docs/lab/training.md has the
curve and the figures.
"""

from albert_jax.config import (
    AlbertConfig,
    ComputeConfig,
    ExamplesConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)


def get_config(steps: int = 7000, length: int = 64) -> PretrainConfig:
    return PretrainConfig(
        model=AlbertConfig(
            vocab_size=8000,
            embedding_size=64,
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=128,
        ),
        compute=ComputeConfig(scan_unroll=3),
        examples=ExamplesConfig(max_seq_length=length, max_predictions_per_seq=length * 10 // 64),
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=100),
        train=TrainConfig(
            steps=steps,
            batch_size=32,
            log_every=100,
            eval_every=1000,
            eval_examples=4096,
            save_every=1000,
        ),
    )
