# SPDX-License-Identifier: Apache-2.0
"""What a fine-tuning run starts from: the task's examples as features, and the weights."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.checkpoint.model_dir import ModelDirectory, load_model
from albert_jax.config.manifests import HeadManifest
from albert_jax.config.model import AlbertConfig
from albert_jax.config.recipes import to_dict
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.task_names import label_pairs
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.finetuned import check_pack, configured_task, tokenizer_of
from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.tasks import RawExample, Task
from albert_jax.tasks.collate import FeatureRow
from albert_jax.tasks.cuts import lines_about
from albert_jax.tasks.long_texts import LongTexts, windows_line
from albert_jax.tasks.split_features import SplitFeatures, features_of
from albert_jax.training.first_values import with_positions
from albert_jax.training.run_inputs import require_finetuning_inputs
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import json_sha256
from albert_jax.utils.streams import say

_MAX_SEQ_LENGTH = 512  # the paper's, where the model has so many positions


@dataclass(frozen=True)
class FinetuneSetup:
    """All that runs of several seeds have in common."""

    task: Task
    source: ModelDirectory
    tokenizer: Tokenizer
    model: AlbertForTask
    train: SplitFeatures
    dev: SplitFeatures
    max_seq_length: int

    @property
    def head(self) -> HeadManifest:
        """What the manifest of an exported model says of its head, but for the length of rows."""
        task = self.task
        return HeadManifest(
            kind=task.head, labels=list(task.labels), task=task.name, settings=task.head_settings()
        )


def _row_length(config: FinetuneConfig, longest: int) -> int:
    """Return the tokens of a row, for a model of `longest` positions."""
    length = config.max_seq_length
    if length is None:
        if longest < _MAX_SEQ_LENGTH:
            say(f"rows of {longest} tokens, the model's positions; --max-seq-length gives fewer")
        return min(_MAX_SEQ_LENGTH, longest)
    if length > longest:
        raise UserError(
            f"max_seq_length {length} exceeds the model's {longest} positions; "
            f"give --max-seq-length {longest}, or --positions interpolate or repeat"
        )
    return length


def set_up(config: FinetuneConfig) -> FinetuneSetup:
    """Reads the task's train and dev examples and the model to start from.

    Raises UserError for what is not given, not there, without labels or too long for the model.
    """
    task = configured_task(
        config.task,
        texts=config.texts or None,
        label=config.label,
        renamed=label_pairs(config.labels) or None,
        doc_stride=config.doc_stride,
        max_query_length=config.max_query_length,
    )
    check_pack(task, config.pack)
    require_finetuning_inputs(config, workdir_too=False)
    source = load_model(Path(config.model or ""), as_float32=True)
    length = config.max_seq_length or 0
    source = with_positions(source, f"model {config.model}", length, config.positions)
    longest = source.config.max_position_embeddings
    length = _row_length(config, longest)
    long = LongTexts(config.long, config.stride).check(task, length)
    tokenizer = tokenizer_of(config.model or "", source)
    examples = _labelled(task, "train", config.data or "")
    task = task.learn(examples)
    train, dev = (
        features_of(task, each, tokenizer, length, long)
        for each in (examples, _labelled(task, config.dev_split, config.data or ""))
    )
    for name, split in (("train", train), ("dev", dev)):
        for line in lines_about(
            split.cuts,
            len(split.examples),
            f"{name} examples",
            max_seq_length=length,
            longest=longest,
        ):
            say(line)
        for line in windows_line(split.windows, len(split.examples), f"{name} examples", length):
            say(line)
    train = dataclasses.replace(train, features=[])  # the arrays are enough, and much smaller
    model = AlbertForTask(
        _with_dropout(source.config, config.dropout),
        config.compute,
        kind=task.head,
        labels=max(len(task.labels), 1),
        dropout=config.classifier_dropout,
    )
    return FinetuneSetup(task, source, tokenizer, model, train, dev, length)


def _labelled(task: Task, split: str, data: str) -> list[RawExample]:
    examples = task.examples(split, data)
    if without := [example for example in examples if example.label is None]:
        first = without[0].place or f"example {without[0].id}"
        raise UserError(
            f"{first} has no label, as {len(without)} of {len(examples)} {split} examples of "
            f"{task.name} in {data}; leave them out, or give --data with labels"
        )
    return examples


def _with_dropout(config: AlbertConfig, dropout: float | None) -> AlbertConfig:
    if dropout is None:
        return config
    return dataclasses.replace(
        config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )


def first_params(prepared: FinetuneSetup, *, seed: int, random_weights: bool) -> tuple[Any, str]:
    """Parameters to start from, and a sentence on where they come from.

    The encoder is the source's; the head is new, initialised as the original's, unless the source
    was fine-tuned on this very task with these labels. Raises UserError for a source that lacks
    parts of the encoder.
    """
    params = init_params(prepared.model, jax.random.key(seed))
    if random_weights:
        return params, "random weights, the control that pretraining is held against"
    theirs, head, ours = prepared.source.params, prepared.source.head, prepared.head
    keep = head is not None and (
        (head.kind, head.labels, head.task) == (ours.kind, ours.labels, ours.task)
    )
    taken = [name for name in params if name in theirs and (name != "head" or keep)]
    if missing := {"embeddings", "encoder"} - set(taken):
        raise UserError(f"the model directory has no {' and '.join(sorted(missing))}")
    params |= {name: theirs[name] for name in taken}
    new = [name for name in params if name not in taken]
    left = [name for name in theirs if name not in taken]
    words = [f"{', '.join(taken)} of the model directory"]
    if new:
        words.append(f"new {', '.join(new)}")
    if left:
        of = f" (the head: {head.task or head.kind}'s)" if head and "head" in left else ""
        words.append(f"left behind {', '.join(left)}{of}")
    return params, "; ".join(words)


def finetuning_identity(
    config: FinetuneConfig, prepared: FinetuneSetup, seed: int
) -> dict[str, Any]:
    """What a run must share with the checkpoint it resumes: weights, examples, updates."""
    settings = to_dict(config)
    keys = ("steps", "batch_size", "accumulate")
    kept = ("max_seq_length", "dropout", "classifier_dropout", "length_window", "random_weights")
    return {
        "model": dataclasses.asdict(prepared.source.config),
        "weights": json_sha256(prepared.source.manifest["tensors"]),
        "vocabulary": prepared.tokenizer.sha256,
        "data": _digest_of_rows(prepared.train.rows),
        "head": prepared.head.to_json(),
        "optimizer": settings["optimizer"],
        "train": {key: settings["train"][key] for key in keys} | {"seed": seed},
        # Packed rows are drawn as those of a window of 1, and have the same updates.
        "settings": {key: settings[key] for key in kept}
        | {"length_window": config.window}
        | ({"positions": config.positions} if config.positions != "same" else {}),
    }


def _digest_of_rows(rows: list[FeatureRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for array in (*row.ids, *row.segments, *row.targets.values()):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
