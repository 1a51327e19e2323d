# SPDX-License-Identifier: Apache-2.0
"""ALBERT in JAX/Flax: pretraining, fine-tuning and inference on TPU and GPU.

The names below are the public interface. Those that need JAX or SentencePiece are imported when
first used, so that `import albert_jax` and `albert-jax --help` are instant. The functions check the
kinds of their arguments: UserError for a wrong one.
"""

__version__ = "0.1.0"  # before the imports: any module may import it

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from albert_jax.config import (
    MODELS,
    AlbertConfig,
    ComputeConfig,
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
    from albert_jax import optimizer
    from albert_jax.checkpoint.convert.convert import convert
    from albert_jax.data.prepare.build import prepare
    from albert_jax.data.tokenizer import Tokenizer
    from albert_jax.data.vocabulary import train_tokenizer
    from albert_jax.inference.api import Albert, load
    from albert_jax.inference.evaluate import evaluate
    from albert_jax.inference.predict import predict
    from albert_jax.inference.verify import verify
    from albert_jax.perf.benchmark import benchmark
    from albert_jax.perf.tpu.estimate import estimate
    from albert_jax.tasks import TASKS
    from albert_jax.training.finetune import finetune
    from albert_jax.training.pretrain import pretrain

__all__ = [
    "MODELS",
    "TASKS",
    "Albert",
    "AlbertConfig",
    "ComputeConfig",
    "ExamplesConfig",
    "FinetuneConfig",
    "GuardConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "Tokenizer",
    "TrainConfig",
    "TryAgain",
    "UserError",
    "benchmark",
    "convert",
    "estimate",
    "evaluate",
    "finetune",
    "load",
    "load_recipe",
    "optimizer",
    "predict",
    "prepare",
    "pretrain",
    "train_tokenizer",
    "verify",
]

# Where each name that is imported late comes from; None: it is a module of ours.
_LATE = {
    "TASKS": "tasks",
    "Albert": "inference.api",
    "Tokenizer": "data.tokenizer",
    "benchmark": "perf.benchmark",
    "convert": "checkpoint.convert.convert",
    "estimate": "perf.tpu.estimate",
    "evaluate": "inference.evaluate",
    "finetune": "training.finetune",
    "load": "inference.api",
    "optimizer": None,
    "predict": "inference.predict",
    "prepare": "data.prepare.build",
    "pretrain": "training.pretrain",
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
