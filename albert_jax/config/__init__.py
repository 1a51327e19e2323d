# SPDX-License-Identifier: Apache-2.0
"""Define every setting as a frozen dataclass; recipes are made of these.

Three kinds never mix: what the weights mean (`AlbertConfig`, the only kind that a checkpoint
stores), how this machine computes them (`ComputeConfig`), and how a model is trained
(`PretrainConfig`, `FinetuneConfig`). Only the standard library is imported, so that `--help` is
instant.
"""

from albert_jax.config.model import (
    HIDDEN_ACTS,
    MODELS,
    AlbertConfig,
    ComputeConfig,
    Dtype,
    model_config,
)
from albert_jax.config.perf import BenchmarkConfig, EstimateConfig
from albert_jax.config.recipes import load_recipe, to_dict
from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.config.sections import ExamplesConfig, GuardConfig, OptimizerConfig, TrainConfig
from albert_jax.config.task_names import TASK_NAMES, task_name

__all__ = [
    "HIDDEN_ACTS",
    "MODELS",
    "TASK_NAMES",
    "AlbertConfig",
    "BenchmarkConfig",
    "ComputeConfig",
    "Dtype",
    "EstimateConfig",
    "ExamplesConfig",
    "FinetuneConfig",
    "GuardConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "TrainConfig",
    "load_recipe",
    "model_config",
    "task_name",
    "to_dict",
]
