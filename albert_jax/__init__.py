# SPDX-License-Identifier: Apache-2.0
"""Pretrain, fine-tune and run ALBERT in JAX/Flax on TPU, GPU and CPU.

The names in `__all__` are the public interface. Those that need JAX or SentencePiece are imported
when they are first used, so that `import albert_jax` and `albert-jax --help` are instant. If an
argument of a function has a wrong type, the function raises UserError.
"""

__version__ = "0.2.0"  # before the imports: any module may import it

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from albert_jax.config import (
    MODELS,
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
)
from albert_jax.utils.arguments import checked as _checked
from albert_jax.utils.errors import TryAgain, UserError

if TYPE_CHECKING:
    from albert_jax import optimizer, plots
    from albert_jax.checkpoint.convert.convert import Inventory, convert
    from albert_jax.checkpoint.push import Pushed, push
    from albert_jax.cli.descriptions import Description
    from albert_jax.cli.recipe_plan import info
    from albert_jax.data.prepare.build import prepare
    from albert_jax.data.store_manifest import PreparedStore
    from albert_jax.data.tokenizer import Tokenizer
    from albert_jax.data.vocabulary import train_tokenizer
    from albert_jax.distributed.multihost import Launch
    from albert_jax.inference.answers import Answer, NoAnswer, SpanAnswer
    from albert_jax.inference.api import Albert, load
    from albert_jax.inference.evaluate import Evaluation, evaluate
    from albert_jax.inference.export import export_serving
    from albert_jax.inference.model_card import ModelCard, evaluate_card
    from albert_jax.inference.predict import predict, predict_file, predict_split
    from albert_jax.inference.verify import Verification, verify
    from albert_jax.perf.benchmark import benchmark, sweep
    from albert_jax.perf.dry_run import describe_plan
    from albert_jax.perf.results import BenchmarkResult, StepBenchmark
    from albert_jax.perf.tpu.estimate import estimate, find_batch
    from albert_jax.perf.tpu.results import EstimateResult, FittingEstimate
    from albert_jax.tasks import TASKS
    from albert_jax.training.finetune import finetune
    from albert_jax.training.finetune_results import FinetuneResults
    from albert_jax.training.heldout import StoreEvaluation, evaluate_on_store
    from albert_jax.training.metrics import read_metrics
    from albert_jax.training.pretrain import export, pretrain
    from albert_jax.training.pretrain_results import PretrainResult
    from albert_jax.training.watching import StopTraining

__all__ = [
    "MODELS",
    "TASKS",
    "Albert",
    "AlbertConfig",
    "Answer",
    "BenchmarkConfig",
    "BenchmarkResult",
    "ComputeConfig",
    "Description",
    "EstimateConfig",
    "EstimateResult",
    "Evaluation",
    "ExamplesConfig",
    "FinetuneConfig",
    "FinetuneResults",
    "FittingEstimate",
    "GuardConfig",
    "Inventory",
    "Launch",
    "ModelCard",
    "NoAnswer",
    "OptimizerConfig",
    "PreparedStore",
    "PretrainConfig",
    "PretrainResult",
    "Pushed",
    "SpanAnswer",
    "StepBenchmark",
    "StopTraining",
    "StoreEvaluation",
    "Tokenizer",
    "TrainConfig",
    "TryAgain",
    "UserError",
    "Verification",
    "benchmark",
    "convert",
    "describe_plan",
    "estimate",
    "evaluate",
    "evaluate_card",
    "evaluate_on_store",
    "export",
    "export_serving",
    "find_batch",
    "finetune",
    "info",
    "load",
    "load_recipe",
    "optimizer",
    "plots",
    "predict",
    "predict_file",
    "predict_split",
    "prepare",
    "pretrain",
    "push",
    "read_metrics",
    "sweep",
    "train_tokenizer",
    "verify",
]

# The module of each name that is imported on first use; None for a module of the package.
_LATE = {
    "TASKS": "tasks",
    "Albert": "inference.api",
    "Answer": "inference.answers",
    "BenchmarkResult": "perf.results",
    "Description": "cli.descriptions",
    "EstimateResult": "perf.tpu.results",
    "Evaluation": "inference.evaluate",
    "FinetuneResults": "training.finetune_results",
    "FittingEstimate": "perf.tpu.results",
    "Inventory": "checkpoint.convert.convert",
    "Launch": "distributed.multihost",
    "ModelCard": "inference.model_card",
    "NoAnswer": "inference.answers",
    "PreparedStore": "data.store_manifest",
    "PretrainResult": "training.pretrain_results",
    "Pushed": "checkpoint.push",
    "SpanAnswer": "inference.answers",
    "StepBenchmark": "perf.results",
    "StopTraining": "training.watching",
    "StoreEvaluation": "training.heldout",
    "Tokenizer": "data.tokenizer",
    "Verification": "inference.verify",
    "benchmark": "perf.benchmark",
    "convert": "checkpoint.convert.convert",
    "describe_plan": "perf.dry_run",
    "estimate": "perf.tpu.estimate",
    "evaluate": "inference.evaluate",
    "evaluate_card": "inference.model_card",
    "evaluate_on_store": "training.heldout",
    "export": "training.pretrain",
    "export_serving": "inference.export",
    "find_batch": "perf.tpu.estimate",
    "finetune": "training.finetune",
    "info": "cli.recipe_plan",
    "load": "inference.api",
    "optimizer": None,
    "plots": None,
    "predict": "inference.predict",
    "predict_file": "inference.predict",
    "predict_split": "inference.predict",
    "prepare": "data.prepare.build",
    "pretrain": "training.pretrain",
    "push": "checkpoint.push",
    "read_metrics": "training.metrics",
    "sweep": "perf.benchmark",
    "train_tokenizer": "data.vocabulary",
    "verify": "inference.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _LATE[name]
    if home is None:
        return importlib.import_module(f"{__name__}.{name}")
    found = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    if inspect.isfunction(found) and not hasattr(found, "__wrapped__"):
        found = _checked(found)
        found.__module__ = __name__  # where pickle finds this very function
        globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
