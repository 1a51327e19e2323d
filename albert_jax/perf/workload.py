# SPDX-License-Identifier: Apache-2.0
"""Define what each phase of `benchmark` runs, and on what: steps, their first state, batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.manifests import holds_transformers_weights
from albert_jax.config.model import AlbertConfig, model_config
from albert_jax.config.model_names import name_of
from albert_jax.config.perf import BenchmarkConfig, StepConfig
from albert_jax.config.recipes import load_recipe
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import OptimizerConfig, TrainConfig
from albert_jax.data.examples import PretrainingSource
from albert_jax.data.loader import ExampleSource
from albert_jax.data.mixture import split_stores
from albert_jax.data.pretraining import open_data
from albert_jax.data.store_manifest import read_manifest
from albert_jax.data.store_remote import local_store
from albert_jax.distributed.placement import Placement
from albert_jax.models.albert import init_params
from albert_jax.models.flops import (
    forward_flops_per_sequence,
    parameter_count,
    parameter_counts,
)
from albert_jax.models.heads import AlbertForTask
from albert_jax.models.lowering import Lowering, matmul_dtype
from albert_jax.perf.results import StepSetting
from albert_jax.training.losses import task_objective
from albert_jax.training.optimizer import make_optimizer
from albert_jax.training.step import (
    init_state,
    make_eval_step,
    make_pretrain_step,
    make_train_step,
)
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.wording import renamed

HostBatch = dict[str, np.ndarray]

# How users know the settings of the run that is measured: by the names of a `StepConfig`.
STEP_NAMES = {
    "compute.dtype": "dtype",
    "compute.remat": "remat",
    "compute.attention": "attention",
    "compute.scan_unroll": "unroll",
    "examples.max_seq_length": "sequence",
    "examples.max_predictions_per_seq": "predictions",
    "train.batch_size": "batch_size",
    "train.accumulate": "accumulate",
    "train.mode": "mode",
    "train.devices": "devices",
    "train.steps": "steps",
    "model.max_position_embeddings": "the model's max_position_embeddings",
}


@dataclass(frozen=True)
class Work:
    """Define what a placement compiles and how it is fed.

    A step that `carries` takes a state and returns (state, metrics), its state donated. One that
    does not takes parameters and returns metrics. `state` is traceable.
    """

    step: Callable[..., Any]
    state: Callable[[], Any]
    carries: bool
    flops_per_sequence: float


def pretrain_config(config: StepConfig) -> PretrainConfig:
    """Return the pretraining run to measure.

    It is the recipe's, or the original's settings, with the changes of the flags. The vocabulary's
    size is the store's, if there is a store.
    """
    base = _base(config.model)
    with renamed(STEP_NAMES):
        return _with_flags(config, base)


def _with_flags(config: StepConfig, base: PretrainConfig) -> PretrainConfig:
    model = base.model
    store, devices, platform = None, None, "tpu"  # an estimate's
    if isinstance(config, BenchmarkConfig):
        store, devices, platform = config.store, config.devices, jax.default_backend()
    if store is not None:
        first = split_stores(store)[0][0]  # a mixture's have one vocabulary
        manifest = read_manifest(local_store(first))
        if manifest is None:
            raise UserError(f"store {first} is no token store; make one with albert-jax prepare")
        model = dataclasses.replace(model, vocab_size=manifest.vocabulary.size)
    return dataclasses.replace(
        base,
        model=model,
        store=store,
        compute=_changed(
            base.compute,
            dtype=matmul_dtype(config.dtype or base.compute.dtype, platform),
            remat=config.remat,
            attention=config.attention,
            scan_unroll=config.unroll,
        ),
        examples=_changed(
            base.examples,
            max_seq_length=min(base.examples.max_seq_length, model.max_position_embeddings)
            if config.sequence is None
            else config.sequence,
            max_predictions_per_seq=config.predictions,
        ),
        train=_changed(
            base.train,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            mode=config.mode,
            devices=devices,
        ),
    )


def _base(name: str) -> PretrainConfig:
    path = Path(name)
    if name.partition(":")[0].endswith(".py"):
        config = load_recipe(name)
        if not isinstance(config, PretrainConfig):
            raise UserError(
                f"the recipe {name} makes a {type(config).__name__}; benchmark needs a "
                "PretrainConfig, as configs/pretrain.py makes"
            )
        return config.as_one_stage(config.stages[-1])
    named = name_of(name)
    if (named and named.kind == "hub") or holds_transformers_weights(path):
        path = require_model_directory(name)
    if path.suffix == ".json" or path.is_dir():
        model = AlbertConfig.from_json(path / "albert_config.json" if path.is_dir() else path)
    elif named or not ("/" in name or path.exists()):
        model = model_config(named.name if named else name)
    else:
        raise UserError(
            f"model {name} is no released model, .json file, model directory or .py recipe"
        )
    return PretrainConfig(
        model=model,
        examples=_changed(
            PretrainConfig().examples, max_seq_length=min(512, model.max_position_embeddings)
        ),
        train=TrainConfig(batch_size=32),
    )


@functools.cache  # a sweep says it once
def say_of_stages(model: str) -> None:
    """Report that of a recipe with several stages the last one's step is measured."""
    if not model.partition(":")[0].endswith(".py"):
        return
    config = load_recipe(model)
    if isinstance(config, PretrainConfig) and len(config.stages) > 1:
        last = config.stages[-1]
        say(
            f"the recipe has {len(config.stages)} stages; without other settings this is the step "
            f"of the last: {last.batch_size} rows of {last.examples.max_seq_length} tokens, "
            f"{last.depths[1]} passes; the time of a run is as if all its steps were such"
        )


def _parameters(phase: str, model: AlbertConfig) -> int:
    """Return the number of a step's parameters.

    A classifier of two labels is as large as the sentence-order head, and has no masked-LM head.
    """
    without = parameter_counts(model)["masked-LM head"] if phase == "finetune" else 0
    return parameter_count(model) - without


def setting_of(config: StepConfig, settings: PretrainConfig) -> StepSetting:
    """Return the settings that were asked for, with what was unset filled in."""
    compute, examples, train = settings.compute, settings.examples, settings.train
    return StepSetting(
        model=config.model,
        phase=config.phase,
        parameters=_parameters(config.phase, settings.model),
        batch_size=train.batch_size,
        sequence=examples.max_seq_length,
        predictions=examples.max_predictions_per_seq,
        dtype=compute.dtype,
        remat=compute.remat,
        attention=compute.attention,
        unroll=compute.scan_unroll,
        accumulate=train.accumulate,
        mode=train.mode,
    )


def _changed(section: Any, **values: Any) -> Any:
    return dataclasses.replace(section, **{k: v for k, v in values.items() if v is not None})


# ------------------------------------------------------------------------------------------ phases


def make_work(phase: str, config: PretrainConfig, lowering: Lowering) -> Work:
    """Return the work of `phase`: train, forward or finetune; `lowering` is its placement's."""
    return {"train": _train, "forward": _forward, "finetune": _finetune}[phase](config, lowering)


def lower(phase: str, config: PretrainConfig, work: Work, placement: Placement) -> Any:
    """Return the work of `phase` traced for a placement, ready to be compiled."""
    program: Any = placement.compile(work.step, donate=work.carries)
    state = jax.eval_shape(placement.put_state, jax.eval_shape(work.state))
    return program.lower(state, jax.eval_shape(placement.put_batch, batch_shapes_of(phase, config)))


def _train(config: PretrainConfig, lowering: Lowering) -> Work:
    made = make_pretrain_step(config, lowering)
    seed = config.train.seed
    return Work(made.step, lambda: made.random_state(seed), True, 3 * _forward_flops(config))


def _forward(config: PretrainConfig, lowering: Lowering) -> Work:
    made = make_pretrain_step(config, lowering)
    step = make_eval_step(made.objective)

    def means(params: Any, batch: Any) -> Any:
        result = step(params, batch)
        of = made.objective.normalizer_of
        return {name: x / result["weights"][of[name]] for name, x in result["sums"].items()}

    key = jax.random.key(config.train.seed)
    return Work(means, lambda: init_params(made.model, key), False, _forward_flops(config))


def _finetune(config: PretrainConfig, lowering: Lowering) -> Work:
    model = AlbertForTask(config.model, config.compute, lowering, kind="classification", labels=2)
    train = config.train
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-5)
    tx, _ = make_optimizer(optimizer, steps=train.steps, batch_size=train.batch_size)
    step = make_train_step(task_objective(model), tx, accumulate=train.accumulate)
    key = jax.random.key(train.seed)
    # Two labels cost the same as the sentence-order head, and no token is predicted.
    flops = 3 * forward_flops_per_sequence(config.model, config.examples.max_seq_length, 0)
    return Work(step, lambda: init_state(init_params(model, key), tx, seed=train.seed), True, flops)


def _forward_flops(config: PretrainConfig) -> float:
    examples = config.examples
    return forward_flops_per_sequence(
        config.model, examples.max_seq_length, examples.max_predictions_per_seq
    )


# -------------------------------------------------------------------------------------------- data


def batch_shapes_of(phase: str, config: PretrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch for the step of `phase`, by name."""
    rows, length = config.train.batch_size, config.examples.max_seq_length
    tokens = jax.ShapeDtypeStruct((rows, length), np.int32)
    labels = jax.ShapeDtypeStruct((rows,), np.int32)
    shapes = {"input_ids": tokens, "input_mask": tokens, "segment_ids": tokens}
    if phase == "finetune":
        return shapes | {"labels": labels}
    predicted = jax.ShapeDtypeStruct((rows, config.examples.max_predictions_per_seq), np.int32)
    return shapes | {
        "masked_lm_positions": predicted,
        "masked_lm_ids": predicted,
        "masked_lm_weights": predicted.update(dtype=np.float32),
        "sentence_order_labels": labels,
    }


def made_up_batch(phase: str, config: PretrainConfig) -> HostBatch:
    """Return a batch of random ids without padding, for the step of `phase`."""
    rng = np.random.default_rng(config.train.seed)
    length, vocab = config.examples.max_seq_length, config.model.vocab_size
    least_and_end = {
        "input_ids": (min(5, vocab - 1), vocab),
        "segment_ids": (0, 2),
        "masked_lm_positions": (1, length),
        "masked_lm_ids": (min(5, vocab - 1), vocab),
    }
    batch = {}
    for name, like in batch_shapes_of(phase, config).items():
        if name in ("input_mask", "masked_lm_weights"):
            batch[name] = np.ones(like.shape, like.dtype)
        else:
            low, end = least_and_end.get(name, (0, 2))
            batch[name] = rng.integers(low, end, like.shape, like.dtype)
    return batch


def source_of(config: PretrainConfig) -> ExampleSource:
    """Return examples of the configured store, or of a made-up one of two million tokens."""
    if config.store is not None:
        return open_data(config, None).train
    rng = np.random.default_rng(config.train.seed)
    # English sentences have about 25 pieces, articles some 30 sentences.
    sentence_starts = np.concatenate([[0], np.cumsum(rng.integers(5, 46, 80_000))])
    documents = np.cumsum(rng.integers(10, 51, 3_000))
    document_starts = np.concatenate([[0], documents[documents < 80_000], [80_000]])
    vocab = config.model.vocab_size
    shard = SimpleNamespace(
        tokens=rng.integers(min(5, vocab - 1), vocab, sentence_starts[-1]).astype(np.uint16),
        sentence_starts=sentence_starts.astype(np.uint32),
        document_starts=document_starts.astype(np.uint32),
    )
    return PretrainingSource(
        SimpleNamespace(shards=[shard]),
        config.examples,
        seed=config.train.seed,
        starts_word=rng.random(vocab) < 0.7,  # of the pieces of English text
    )
