# SPDX-License-Identifier: Apache-2.0
"""Compare a fine-tuned model with labelled data, by the official metrics: `albert-jax evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from albert_jax.config.heads import Long
from albert_jax.config.model import ComputeConfig, Engine
from albert_jax.inference.finetuned import load_fine_tuned
from albert_jax.inference.prediction_files import (
    predictions_folder,
    predictions_of,
    write_files,
)
from albert_jax.tasks import find_task
from albert_jax.tasks.base import gold_labels
from albert_jax.tasks.scores import Metrics, metric_lines
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import finite
from albert_jax.utils.results import Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(Result):
    """Hold a model's metrics on a split.

    Attributes:
        task: the task's name.
        split: the split's name.
        metric: the metric by which fine-tuning chooses the best step.
        metrics: all metrics by name.
        examples: the number of examples.
        truncated: the number of examples that were too long for a row.
        predictions_file: the official predictions file, or the first of several.
    """

    task: str
    split: str
    metric: str
    metrics: Metrics
    examples: int
    truncated: int
    predictions_file: str


def evaluate(
    task: str | None,
    model: str | Path,
    data: str | Path,
    *,
    split: str = "dev",
    output: str | Path | None = None,
    max_seq_length: int | None = None,
    doc_stride: int | None = None,
    compute: ComputeConfig | None = None,
    pack: int = 0,
    labels: str | Sequence[str] = (),
    long: Long | None = None,
    stride: int | None = None,
    texts: Sequence[str] | None = None,
    label: str | None = None,
    exit: str | None = None,
    engine: Engine = "jax",
) -> Evaluation:
    """Return the official metrics of a fine-tuned model on a split with labels.

    Args:
        task: the task's name; None for the one that the model was fine-tuned for.
        model: a model directory.
        data: the folder of the task's files, the file of the split, "hf:NAME" or "tfds".
        split: dev, or another split that has labels.
        output: the folder for the official predictions files; unset, `predictions/TASK-SPLIT`
            beside the model, or `predictions/NAME/TASK-SPLIT` if the model's folder is not called
            "model"; TASK-SPLIT-FILE for a file of data that is not called like the split.
        max_seq_length: tokens in a row; unset, as in fine-tuning.
        doc_stride: tokens from the start of one SQuAD window to the next; unset, as in fine-tuning.
        compute: how this machine computes; unset, in float32.
        pack: tokens of a row that short examples share; 0 gives each example its own row. The
            results are the same.
        labels: the task's label for each label of the data, as "negative=0,positive=1"; labels that
            are not named keep their name.
        long: what to do with a text longer than a row: "cut" leaves out its end, "refuse" is an
            error, "windows" takes the mean of its windows' logits; unset, as in fine-tuning.
        stride: tokens from the start of one of these windows to the next; unset, as in fine-tuning,
            or half a window if `long` is given.
        texts: the columns that hold the texts; unset, as in fine-tuning.
        label: the column that holds the label; unset, as in fine-tuning.
        exit: "patience=N" or "confidence=P": fewer passes for a text whose answer is settled, as in
            `predict`. Their mean is printed to stderr.
        engine: "jax", or "onnx" for ONNX Runtime on this machine's CPU in float32, as in `load`.

    Returns:
        The metrics, and what they were computed on.

    Raises:
        UserError: if the model was not fine-tuned for the task, its outputs are not finite,
            the data have no labels, or `output` is their folder.
    """
    fine_tuned = load_fine_tuned(
        model,
        task,
        max_seq_length=max_seq_length,
        compute=compute,
        pack=pack,
        labels=labels,
        doc_stride=doc_stride,
        long=long,
        stride=stride,
        texts=texts,
        label=label,
        exit=exit,
        engine=engine,
    )
    chosen = fine_tuned.task
    folder = predictions_folder(chosen, model, data, split, output)
    examples = chosen.examples(split, data)
    if all(example.label is None for example in examples):
        raise UserError(
            f"{chosen.name} {split} has no labels, so that nothing can be scored; "
            f"use albert-jax predict --data {data} --split {split} for its predictions file"
        )
    gold_labels(chosen.name, examples)  # a missing one is an error before the computation
    predictions, truncated = predictions_of(fine_tuned, examples, split)
    files = write_files(chosen, folder, data, examples, predictions)
    return Evaluation(
        task=chosen.name,
        split=split,
        metric=chosen.metric,
        metrics=finite(chosen.metrics(examples, predictions)),
        examples=len(examples),
        truncated=truncated,
        predictions_file=str(files[0]),
    )


def evaluation_table(found: Evaluation) -> str:
    """Return what `evaluate` found, as lines."""
    task = find_task(found.task)
    lines = [f"{task.name} {found.split}, {found.examples:,} examples"]
    for name, value, note in metric_lines(task, found.metric, found.metrics):
        lines.append(f"  {name:<24} {value}{note and f'  ({note})'}")
    return "\n".join([*lines, f"  {'predictions':<24} {found.predictions_file}"])
