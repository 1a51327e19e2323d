# SPDX-License-Identifier: Apache-2.0
r"""Pretrain `mini`, the packaged model, on English Wikipedia and novels, on two cores.

    albert-jax train-tokenizer 'enwiki/text/AA/wiki_?[05].gz' --format wiki --vocab-size 8000 \
        --output vocab
    albert-jax prepare 'enwiki/text/AA/*.gz' --vocab vocab --output wiki --format wiki
    albert-jax prepare 'books/*.gz' --vocab vocab --output books
    albert-jax pretrain configs/mini.py --store wiki:0.8,books:0.2 --workdir runs/mini

At first rows are short and the shared layer is applied once. Longer rows and more passes come when
the loss has fallen. docs/lab/learning.md says which of these stages did not pay, and what was found
later (attention_init=local). The model reads 128 tokens, since no row was longer.
`--heldout ad`, with a store of other articles, evaluates on text that is not trained on.
"""

from albert_jax.config import (
    AlbertConfig,
    ComputeConfig,
    ExamplesConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)


def get_config(steps: int = 10_000) -> PretrainConfig:
    return PretrainConfig(
        model=AlbertConfig(
            vocab_size=8000,
            embedding_size=128,
            hidden_size=384,
            num_hidden_layers=4,
            num_attention_heads=6,
            intermediate_size=1536,
            max_position_embeddings=128,
        ),
        compute=ComputeConfig(dtype="auto"),
        examples=ExamplesConfig(max_seq_length=128, max_predictions_per_seq=20, ngram=1),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=0.003, warmup_steps=100, schedule="wsd", decay_share=0.3
        ),
        train=TrainConfig(
            steps=steps,
            batch_size=64,
            depth="1:0.45,2:0.25,all:0.3",
            length="64:0.7,128:0.3",
            masking="0.2:0.7,0.15:0.3",
            batch_ramp="64:0.7,32:0.3",
            log_every=50,
            eval_every=500,
            eval_examples=1024,
            save_every=3500,
            save_minutes=5.0,
            keep=3,
        ),
        output_bias="unigram",
        kernel_init="fan_in",
    )
