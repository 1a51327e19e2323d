# SPDX-License-Identifier: Apache-2.0
"""Prepare a fine-tuning run: the task's examples as features, and the first weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.checkpoint.convert.parameters import HEAD_SHAPES
from albert_jax.checkpoint.model_dir import ModelDirectory, load_model
from albert_jax.checkpoint.positions import with_positions
from albert_jax.config.heads import TEACHER_LOGITS
from albert_jax.config.manifests import HeadManifest
from albert_jax.config.model import AlbertConfig
from albert_jax.config.recipes import to_dict
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.task_names import BALANCED, class_weights, label_pairs
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.finetuned import (
    FineTuned,
    check_pack,
    configured_task,
    is_finite,
    load_fine_tuned,
    row_length,
    tokenizer_of,
)
from albert_jax.models.albert import init_params
from albert_jax.models.heads import EXITABLE, HEADS, AlbertForTask
from albert_jax.tasks import RawExample, Task
from albert_jax.tasks.collate import FeatureRow
from albert_jax.tasks.long_texts import LongTexts, length_lines, pooled
from albert_jax.tasks.scores import check_metric
from albert_jax.tasks.split_features import SplitFeatures, features_of, spaced
from albert_jax.tasks.values import Advised, quoted, task_advice
from albert_jax.training.finetune_report import baseline
from albert_jax.training.finetune_results import Baseline
from albert_jax.training.run_inputs import require_finetuning_inputs
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject, json_sha256
from albert_jax.utils.progress import ProgressMeter
from albert_jax.utils.streams import say
from albert_jax.utils.wording import setting

# Settings of FinetuneConfig that later versions added and that change a run.
_RECIPE = (
    *("metric", "thresholds", "class_weights", "label_smoothing", "layer_decay", "freeze"),
    *("exits", "lora", "ema", "distill_weight", "temperature"),
)
# Heads with class weights, with probabilities to learn from a teacher, and with targets to smooth.
WEIGHTED = ("classification", "token_classification")
TAUGHT = ("classification", "multiple_choice")
SMOOTHED = (*WEIGHTED, "multiple_choice")
_MAX_SEQ_LENGTH = 512  # the paper's, if the model has that many positions


@dataclass(frozen=True)
class FinetuneSetup:
    """Hold what the runs of all seeds share."""

    task: Task
    source: ModelDirectory
    tokenizer: Tokenizer
    model: AlbertForTask
    train: SplitFeatures
    dev: SplitFeatures
    max_seq_length: int
    metric: str
    """Chooses the best step."""
    baseline: Baseline
    class_weights: tuple[float, ...] = ()
    """Of the task's labels, in their order; () where all are 1."""
    teacher: str | None = None
    """Digest of a teacher's weights."""

    @property
    def head(self) -> HeadManifest:
        """The manifest's entry on an exported model's head, without the length of rows."""
        task = self.task
        return HeadManifest(
            kind=task.head, labels=list(task.labels), task=task.name, settings=task.head_settings()
        )


def set_up(config: FinetuneConfig) -> FinetuneSetup:
    """Read the task's train and dev examples and the model to start from.

    Raises UserError before anything is read if a setting does not apply to the task. Also raises
    UserError if data or model are not given or missing, have no labels, or are too long for the
    model.
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
    _check_head(task, config)
    require_finetuning_inputs(config, workdir_too=False)
    source, length = _source(config)
    long = LongTexts(config.long, config.stride).check(task, length)
    tokenizer = tokenizer_of(config.model or "", source)
    examples = _labelled(task, "train", config.data or "")
    task = task.learn(examples)
    dev_examples = _labelled(task, config.dev_split, config.data or "")
    base = baseline(task, examples, dev_examples)
    if config.metric is not None:
        check_metric(task, config.metric, base.metrics)
        few = [dev_examples[i] for i in spaced(len(dev_examples), config.train.eval_examples)]
        some = baseline(task, examples, few) if len(few) < len(dev_examples) else base
        if config.metric in base.metrics.keys() - some.metrics.keys():
            raise UserError(
                f"{setting('metric')} {config.metric} has no value on the {len(few)} dev examples "
                f"of {setting('train.eval_examples')}; evaluate more of them, or choose by another"
            )
    weights = weights_of_classes(task, examples, config.class_weights)
    teacher = teacher_of(config, task)
    train, dev = (
        features_of(task, each, tokenizer, length, long) for each in (examples, dev_examples)
    )
    if config.max_seq_length is None and length < _MAX_SEQ_LENGTH:
        fewer = f"{setting('max_seq_length')} gives fewer"
        say(f"rows of {length} tokens, the model's positions; {fewer}")
    for name, split in (("train", train), ("dev", dev)):
        _say_lengths(f"{name} examples", split, length, source.config.max_position_embeddings)
    if teacher is not None:
        train = taught(train, teacher)
    model = AlbertForTask(
        _with_dropout(source.config, config.dropout),
        config.compute,
        kind=task.head,
        labels=max(len(task.labels), 1),
        dropout=config.classifier_dropout,
    )
    return FinetuneSetup(
        task=task,
        source=source,
        tokenizer=tokenizer,
        model=model,
        train=dataclasses.replace(train, features=[]),  # the arrays are enough, and much smaller
        dev=dev,
        max_seq_length=length,
        metric=config.metric or task.metric,
        baseline=base,
        class_weights=weights,
        teacher=json_sha256(teacher.directory.manifest["tensors"]) if teacher else None,
    )


def _check_head(task: Task, config: FinetuneConfig) -> None:
    """Raise UserError for a setting that does not apply to the task's head."""
    name, head = task.name, task.head
    if config.exits and head not in EXITABLE:
        raise UserError(
            f"{setting('exits')} is for {' and '.join(EXITABLE)}, and not for {name}; leave it out"
        )
    if config.freeze == "encoder" and not (HEAD_SHAPES[head] or HEADS[head].pooled):
        raise UserError(
            f"{name} has nothing to train beside the encoder; leave out "
            f"{setting('freeze', 'encoder')}"
        )
    if config.thresholds != "half" and head != "multi_label":
        raise UserError(
            f"{setting('thresholds', config.thresholds)} is for multi-label, and not for {name}; "
            "leave it out"
        )
    if config.class_weights and head not in WEIGHTED:
        raise UserError(
            f"{name} has no classes to be weighted; leave out {setting('class_weights')}"
        )
    if config.label_smoothing and head not in SMOOTHED:
        raise UserError(
            f"{name} has no classes or choices, so that {setting('label_smoothing')} "
            f"{config.label_smoothing} has no meaning; leave it out"
        )
    if config.teacher is not None and head not in TAUGHT:
        raise UserError(
            f"{name} has no classes or choices, which a teacher has probabilities for; leave out "
            f"{setting('teacher')}"
        )


def _source(config: FinetuneConfig) -> tuple[ModelDirectory, int]:
    """Return the model to start from, and the tokens of a row.

    Raises UserError for settings that do not fit the model.
    """
    source = load_model(Path(config.model or ""), as_float32=True)
    length = config.max_seq_length or 0
    source = with_positions(source, f"model {config.model}", length, config.positions)
    if config.lora > source.config.hidden_size:
        raise UserError(
            f"{setting('lora')} {config.lora} exceeds the model's hidden_size "
            f"{source.config.hidden_size}; ranks of 4 to 64 are usual"
        )
    blocks = max(source.config.num_hidden_groups, source.config.inner_group_num)
    if config.exits and blocks > 1:
        raise UserError(
            f"{setting('exits')} is for a model with one shared layer, and {config.model} has "
            f"{blocks}; leave it out"
        )
    longest = source.config.max_position_embeddings
    if config.max_seq_length is None:
        return source, min(_MAX_SEQ_LENGTH, longest)
    more = f"{setting('positions', 'interpolate')} or {setting('positions', 'repeat')}"
    return source, row_length(config.max_seq_length, longest, more=more)


def _say_lengths(what: str, split: SplitFeatures, length: int, longest: int) -> None:
    """Report which texts were cut or read in windows."""
    count = len(split.examples)
    for line in length_lines(
        split.cuts, split.windows, count, what, max_seq_length=length, longest=longest
    ):
        say(line)


def teacher_of(config: FinetuneConfig, task: Task) -> FineTuned | None:
    """Return the teacher, with logits in the order of the task's labels; None without a teacher.

    Raises UserError for a model of another task or with other labels.
    """
    if config.teacher is None:
        return None
    teacher = load_fine_tuned(config.teacher, task.name, compute=config.compute)
    labels = teacher.task.labels
    if task.head != "classification" or labels == task.labels:
        return teacher
    if sorted(labels) != sorted(task.labels):
        raise UserError(
            f"the teacher {config.teacher} has the labels {quoted(labels)}, and the training file "
            f"{quoted(task.labels)}; give a model fine-tuned on these labels"
        )
    # Only a user's own task learns its labels, and the teacher lists them as its head does.
    return dataclasses.replace(
        teacher,
        task=teacher.task.with_labels(task.labels),
        order=tuple(labels.index(label) for label in task.labels),
    )


def taught(train: SplitFeatures, teacher: FineTuned) -> SplitFeatures:
    """Return the training rows with the teacher's logits for their examples among the targets.

    They are computed once, because a teacher has no dropout. Texts are divided by the teacher's own
    vocabulary.
    """
    own = features_of(
        teacher.task, train.examples, teacher.tokenizer, teacher.max_seq_length, teacher.long
    )
    if own.cuts:
        say(
            f"{len(own.cuts):,} of {len(train.examples):,} training examples were cut to "
            f"{teacher.max_seq_length} tokens for the teacher, whose rows have no more"
        )
    with ProgressMeter("teacher", len(own.rows), unit="row") as meter:
        found = teacher(own.rows, meter.tick)
    for feature, output in zip(own.features, found, strict=True):
        if not is_finite(output):
            raise teacher.broken(f"training example {train.examples[feature.example].id}")
    features, outputs = pooled(own.features, found)
    logits = {
        feature.example: np.asarray(output["logits"], np.float32)
        for feature, output in zip(features, outputs, strict=True)
    }
    rows = [
        row._replace(targets={**row.targets, TEACHER_LOGITS: logits[feature.example]})
        for feature, row in zip(train.features, train.rows, strict=True)
    ]
    return dataclasses.replace(train, rows=rows)


def weights_of_classes(
    task: Task, train: Sequence[RawExample], asked: Sequence[str]
) -> tuple[float, ...]:
    """Return the weights of the task's labels in `class_weights`; () if there are none.

    Balanced weights are scikit-learn's, over the training examples or their words. Raises UserError
    for an unknown label. Also raises it for a label without training examples, if the weights are
    to be balanced.
    """
    weights = class_weights(asked)
    if not weights:
        return ()
    if weights != BALANCED:
        if unknown := [label for label in weights if label not in task.labels]:
            raise UserError(
                f"{setting('class_weights')} names {quoted(unknown)}; {task.name} has "
                f"{quoted(task.labels)}"
            )
        return tuple(weights.get(label, 1.0) for label in task.labels)
    golds = [example.label for example in train]
    if task.head == "token_classification":
        golds = [tag for tags in golds for tag in tags]  # type: ignore[union-attr]
    counts = Counter(golds)
    if absent := [label for label in task.labels if not counts[label]]:
        raise UserError(
            f"no training example of {task.name} has the label {quoted(absent)}, so that "
            f"{setting('class_weights')} cannot be balanced; give the weights as LABEL=WEIGHT,…"
        )
    return tuple(len(golds) / (len(task.labels) * counts[label]) for label in task.labels)


def _labelled(task: Task, split: str, data: str) -> list[RawExample]:
    try:
        examples = task.examples(split, data)
    except Advised:
        raise
    except UserError as error:
        # A run that was given no task is of this one, perhaps without its user's knowledge.
        if task.name != FinetuneConfig.task:
            raise
        raise UserError(f"{error}{task_advice(task.name)}") from None
    if without := [example for example in examples if example.label is None]:
        first = without[0].place or f"example {without[0].id}"
        raise UserError(
            f"{first} has no label, as {len(without)} of {len(examples)} {split} examples of "
            f"{task.name} in {data}; leave them out, or give {setting('data')} with labels"
        )
    return examples


def _with_dropout(config: AlbertConfig, dropout: float | None) -> AlbertConfig:
    if dropout is None:
        return config
    return dataclasses.replace(
        config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )


def first_params(prepared: FinetuneSetup, *, seed: int, random_weights: bool) -> tuple[Any, str]:
    """Return the parameters to start from, and a sentence on where they come from.

    The encoder is the source's. The head is new, initialised as the original's, unless the source
    was fine-tuned on the same task with the same labels. Raises UserError for a source that lacks
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


def finetuning_identity(config: FinetuneConfig, prepared: FinetuneSetup, seed: int) -> JsonObject:
    """Return what a run must share with the checkpoint that it resumes.

    These are the weights, the examples and the updates.
    """
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
        # Each a key of its own: a checkpoint that is older than a setting does not have its key,
        # and is resumed.
        **{key: settings[key] for key in _RECIPE},
        "teacher": prepared.teacher,
        "dev_data": _digest_of_rows(prepared.dev.rows),  # which chose the best step
    }


def _digest_of_rows(rows: list[FeatureRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        # Another device computes a teacher's logits with other last bits.
        targets = [array for name, array in row.targets.items() if name != TEACHER_LOGITS]
        for array in (*row.ids, *row.segments, *targets):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
