# SPDX-License-Identifier: Apache-2.0
"""Define the settings of `benchmark` and `estimate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from albert_jax.config.model import LARGEST
from albert_jax.config.validation import check_least, check_most, check_types


@dataclass(frozen=True)
class StepConfig:
    """Describe a step to measure or to estimate; what is unset comes from the recipe."""

    model: str = "base-v2"
    """Released model, albert_config.json, model directory, or recipe with arguments after a
    colon."""
    phase: Literal["train", "forward", "finetune", "input"] = "train"
    """The step of pretrain (train), of its evaluation (forward) or of a classifier (finetune), or
    the drawing of batches (input)."""
    batch_size: int | None = None
    """Sequences a step, over all devices; without a recipe 32."""
    sequence: int | None = None
    """Tokens in a row; without a recipe 512, or as many as the model has positions for."""
    predictions: int | None = None
    """Masked tokens in a row; without a recipe 20, as published; 77 is 15 % of 512."""
    mode: str | None = None
    """How the step is spread over the devices: jit or pmap."""
    dtype: str | None = None
    """Type of matmuls and activations: float32, bfloat16 or auto."""
    remat: str | None = None
    """What the backward pass recomputes: none, dots or full."""
    attention: str | None = None
    """Attention kernel; auto: cudnn on GPU, rows or splash on TPU if they can do what is asked,
    else xla."""
    unroll: int | None = None
    """Layers unrolled in each turn of the scan; 0: all."""
    accumulate: int | None = None
    """Micro-batches that make up one update."""

    def __post_init__(self) -> None:
        check_types(self, "")
        sizes = ("batch_size", "sequence", "predictions", "accumulate")
        check_least(self, "", 1, *sizes)
        check_most(self, "", LARGEST, *sizes)
        check_least(self, "", 0, "unroll")


@dataclass(frozen=True)
class BenchmarkConfig(StepConfig):
    """Set what `albert-jax benchmark` measures."""

    devices: int | None = None
    """Local devices to use; unset: all."""
    store: str | None = None
    """Token store, or several, to draw batches from. Unset: one made-up batch, again and again;
    with --phase input a made-up store."""
    steps: int = 20
    """Steps to time one by one, and then in a row."""
    seconds: float = 60.0
    """Either timing ends after this time, but not before three steps."""
    compilation_cache: str | None = None
    """Folder of compiled programs, to measure a second start; unset: compile anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, "", 1, "devices")
        check_least(self, "", 3, "steps")
        check_least(self, "", 0, "seconds")


@dataclass(frozen=True)
class EstimateConfig(StepConfig):
    """Set what `albert-jax estimate` compiles; some fields differ from `StepConfig`'s."""

    phase: Literal["train", "forward", "finetune"] = "train"
    """The step of pretrain (train), of its evaluation (forward) or of a classifier (finetune)."""
    batch_size: int | None = None
    """Sequences a step on each chip; without a recipe 32."""
    mode: str | None = None
    """How the step is spread over the chips: jit or pmap."""
    dtype: str | None = None
    """Type of matmuls and activations: float32, bfloat16 or auto; without a recipe bfloat16."""
    attention: str | None = None
    """Attention kernel: auto, xla, rows or splash."""
    topology: str = "v5e:2x2"
    """Slice: v4, v5e, v5p or v6e and its shape in chips, from v5e:1x1 to v5p:16x16x24."""
    steps: int | None = None
    """Steps of the run whose days are estimated; without a recipe 125,000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, "", 1, "steps")
