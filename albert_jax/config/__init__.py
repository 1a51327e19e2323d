# SPDX-License-Identifier: Apache-2.0
"""Every setting there is, as frozen dataclasses: what recipes are made of."""

from albert_jax.config.run import (
    HIDDEN_ACTS,
    MODELS,
    TASK_NAMES,
    AlbertConfig,
    BenchmarkConfig,
    ComputeConfig,
    EstimateConfig,
    ExamplesConfig,
    FinetuneConfig,
    GuardConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
    load_recipe,
    model_config,
    task_name,
    to_dict,
)

__all__ = [
    "HIDDEN_ACTS",
    "MODELS",
    "TASK_NAMES",
    "AlbertConfig",
    "BenchmarkConfig",
    "ComputeConfig",
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
