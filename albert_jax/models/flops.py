# SPDX-License-Identifier: Apache-2.0
"""Count parameters and matmul FLOPs from a configuration; list the peak rates of devices."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from albert_jax.config.model import AlbertConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.config.stages import Stage

# Dense bfloat16 FLOP/s of one device, by the words that jax.Device.device_kind contains, longer
# names first; vendors' data sheets. A TPU v2/v3 device is one core of a chip.
PEAK_FLOPS: dict[str, float] = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "L40S": 362.05e12,
    "L40": 181.05e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Return the peak bfloat16 FLOP/s of a device kind.

    It is None if it is unknown, as of a CPU or of a part of a GPU (MIG).
    """
    if re.search(r"\bMIG\b", device_kind):
        return None
    named = (p for name, p in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_kind))
    return next(named, None)


def parameter_counts(config: AlbertConfig) -> dict[str, int]:
    """Return the number of parameters by part.

    Each group's layer counts once, however often it is applied.
    """
    c = config
    h, e, i = c.hidden_size, c.embedding_size, c.intermediate_size
    block = 4 * (h * h + h) + (h * i + i) + (i * h + h) + 4 * h
    groups = sum(length > 0 for length in c.group_lengths)
    return {
        "embeddings": (c.vocab_size + c.type_vocab_size + c.max_position_embeddings + 2) * e,
        "embedding projection": 0 if e == h else e * h + h,
        "shared layers": groups * c.inner_group_num * block,
        "pooler": h * h + h,
        "masked-LM head": h * e + 3 * e + c.vocab_size,
        "sentence-order head": 2 * h + 2,
    }


def parameter_count(config: AlbertConfig) -> int:
    """Return the number of parameters of the pretraining model, both heads included."""
    return sum(parameter_counts(config).values())


def forward_flops_per_sequence(config: AlbertConfig, seq: int, predictions: int) -> float:
    """Return the matmul FLOPs of one sequence's forward pass.

    The masked-LM head runs on `predictions` positions. A multiplication and an addition count as
    two; lookups, softmax, LayerNorm and activations do not count.
    """
    c = config
    h, e, i = c.hidden_size, c.embedding_size, c.intermediate_size
    block = 2 * seq * (4 * h * h + 2 * h * i) + 4 * seq * seq * h
    layers = c.num_hidden_layers * c.inner_group_num * block
    projection = 0 if e == h else 2 * seq * e * h
    heads = predictions * 2 * (h * e + e * c.vocab_size) + 2 * h * (h + 2)
    return layers + projection + heads


def train_flops_per_sequence(config: AlbertConfig, seq: int, predictions: int) -> float:
    """Return the matmul FLOPs of one sequence's forward and backward pass.

    What is recomputed does not count.
    """
    return 3 * forward_flops_per_sequence(config, seq, predictions)


def stage_flops(config: AlbertConfig, stage: Stage) -> float:
    """Return the matmul FLOPs of one of a stage's updates; for a random depth, the mean."""
    examples, (least, most) = stage.examples, stage.depths
    length, predictions = examples.max_seq_length, examples.max_predictions_per_seq
    of_each = [
        train_flops_per_sequence(replace(config, num_hidden_layers=depth), length, predictions)
        for depth in range(least, most + 1)
    ]
    return stage.batch_size * sum(of_each) / len(of_each)


def run_flops(config: PretrainConfig) -> float:
    """Return the matmul FLOPs of a pretraining run, at each stage's depth and length."""
    return config.stages.total(config.train.steps, partial(stage_flops, config.model))
