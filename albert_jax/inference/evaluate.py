# SPDX-License-Identifier: Apache-2.0
"""Fine-tuned models held against labelled data, by the official metrics, once: `albert-jax
evaluate`. It never waits for a checkpoint."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.checkpoint.model_dir import load_model
from albert_jax.config.model import MODELS, AlbertConfig, ComputeConfig
from albert_jax.data.prepare.storage import existing_folder
from albert_jax.inference.finetuned import FineTuned, head_of, is_finite, load_fine_tuned
from albert_jax.inference.published import RELEASED
from albert_jax.inference.verify_released import named_by_source
from albert_jax.tasks import RawExample, Task, find_task
from albert_jax.tasks.base import TFDS
from albert_jax.tasks.cuts import lines_about
from albert_jax.tasks.scores import metric_lines
from albert_jax.tasks.split_features import features_of
from albert_jax.utils.atomic import require_apart, writing
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import finite
from albert_jax.utils.progress import ProgressMeter
from albert_jax.utils.streams import say


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
) -> dict[str, Any]:
    """{"task", "split", "metric", "metrics": {name: value}, "examples", "truncated",
    "predictions_file"} of a fine-tuned model on a split with labels.

    Without `task` it is the one the model was fine-tuned for. "metric" is the one of the metrics
    that fine-tuning chooses by, "truncated" the number of examples too long for a row. The official
    predictions file, or the first of several, is written to `output`; unset:
    `predictions/TASK-SPLIT` beside the model. With `pack` short examples share rows of that many
    tokens, with the same results. `labels` says what the data's labels are in the task, as
    "negative=0,positive=1"; those not named: as they are. Raises UserError for a model that was not
    fine-tuned for the task or whose outputs are not finite, and for data without labels.
    """
    fine_tuned = load_fine_tuned(
        model,
        task,
        max_seq_length=max_seq_length,
        compute=compute,
        pack=pack,
        labels=labels,
        doc_stride=doc_stride,
    )
    chosen = fine_tuned.task
    folder = predictions_folder(chosen, model, split, output)
    examples = chosen.examples(split, data)
    if all(example.label is None for example in examples):
        raise UserError(
            f"{chosen.name} {split} has no labels, so that nothing can be scored; "
            f"use albert-jax predict --data {data} --split {split} for its predictions file"
        )
    predictions, truncated = predictions_of(fine_tuned, examples, split)
    files = write_files(chosen, folder, data, examples, predictions)
    return {
        "task": chosen.name,
        "split": split,
        "metric": chosen.metric,
        "metrics": finite(chosen.metrics(examples, predictions)),
        "examples": len(examples),
        "truncated": truncated,
        "predictions_file": str(files[0]),
    }


def predictions_of(
    fine_tuned: FineTuned, examples: list[RawExample], split: str
) -> tuple[dict[str, Any], int]:
    """Returns the predictions for a split by id, and how many of its examples were cut, which is
    said on stderr too. Raises UserError where the model's outputs for one are not finite."""
    task = fine_tuned.task
    found = features_of(task, examples, fine_tuned.tokenizer, fine_tuned.max_seq_length)
    what = "questions" if task.head.startswith(("span", "multiple")) else "examples"
    title = f"{split}, {len(examples):,} {what}"
    with ProgressMeter(title, len(found.rows), unit="row") as meter:
        outputs = fine_tuned(found.rows, meter.tick)
    for feature, output in zip(found.features, outputs, strict=True):
        if not is_finite(output):
            name = examples[feature.example].id
            raise fine_tuned.broken(f"example {name} of {task.name} {split}")
    for line in lines_about(
        found.cuts,
        len(examples),
        f"{split} {what}",
        max_seq_length=fine_tuned.max_seq_length,
        longest=fine_tuned.longest,
    ):
        say(line)
    return task.predictions(examples, found.features, outputs), len(found.cuts)


def predictions_folder(
    task: Task, model: str | Path, split: str, output: str | Path | None
) -> Path:
    """Returns the folder for the official files: `output`, else one beside the model. Raises
    UserError where none can be written there: to be said before the work, not after."""
    beside = Path(model).absolute().parent / "predictions" / f"{task.name}-{split}"
    folder = Path(output) if output is not None else beside
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for --output")
    if not os.access(above := existing_folder(folder), os.W_OK):
        raise UserError(f"{above} cannot be written to; name another folder for --output")
    return folder


def write_files(
    task: Task,
    folder: Path,
    data: str | Path,
    examples: Sequence[RawExample],
    predictions: dict[str, Any],
) -> list[Path]:
    """Writes the task's official files, each of which appears whole, and returns them. Raises
    UserError where one would replace the data, and for a disk that does not take them."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".predictions-", dir=folder) as temporary:
            try:
                files = task.write_predictions(temporary, examples, predictions)
            except UserError as error:  # whose file nobody will find
                raise UserError(str(error).replace(temporary, str(folder))) from None
            for file in files:
                require_apart(folder / file.name, [] if data == TFDS else [data])
            return [file.replace(folder / file.name) for file in files]


def evaluation_table(found: Mapping[str, Any]) -> str:
    """What `evaluate` returns, as lines."""
    task = find_task(found["task"])
    lines = [f"{task.name} {found['split']}, {found['examples']:,} examples"]
    for name, value, note in metric_lines(task, found["metric"], found["metrics"]):
        lines.append(f"  {name:<24} {value}{note and f'  ({note})'}")
    return "\n".join([*lines, f"  {'predictions':<24} {found['predictions_file']}"])


# -------------------------------------------------------------------------------------- the suite


@dataclass(frozen=True)
class Cell:
    """A column of the model card's table: its task, its metrics and the scale they come in."""

    title: str
    task: str
    metrics: tuple[str, ...]
    scale: float  # to percent
    tuned: tuple[str, ...] = ()  # the same at the threshold that is best for these very answers


CARD = (
    Cell("SQuAD1.1", "squad1", ("f1", "exact"), 1.0),
    Cell("SQuAD2.0", "squad2", ("f1", "exact"), 1.0, ("best_f1", "best_exact")),
    Cell("MNLI", "mnli", ("accuracy",), 100.0),
    Cell("SST-2", "sst2", ("accuracy",), 100.0),
    Cell("RACE", "race", ("accuracy",), 100.0),
)

# google-research/albert, README: dev, one model, the best checkpoint; SQuAD as F1/EM.
PUBLISHED: dict[str, tuple[tuple[float, ...], ...]] = {
    "base-v2": ((90.2, 83.2), (82.1, 79.3), (84.6,), (92.9,), (66.8,)),
    "large-v2": ((91.8, 85.2), (84.9, 81.8), (86.5,), (94.9,), (75.2,)),
    "xlarge-v2": ((92.9, 86.4), (87.9, 84.1), (87.9,), (95.4,), (80.7,)),
    "xxlarge-v2": ((94.6, 89.1), (89.8, 86.9), (90.6,), (96.8,), (86.8,)),
    "base-v1": ((89.3, 82.3), (80.0, 77.1), (81.6,), (90.3,), (64.0,)),
    "large-v1": ((90.6, 83.9), (82.3, 79.4), (83.5,), (91.7,), (68.5,)),
    "xlarge-v1": ((92.5, 86.1), (86.1, 83.1), (86.4,), (92.4,), (74.8,)),
    "xxlarge-v1": ((94.8, 89.3), (90.2, 87.4), (90.8,), (96.9,), (86.5,)),
}


def average(row: Sequence[Sequence[float] | None]) -> float | None:
    """The table's last column: the mean over the tasks, SQuAD's F1 and EM averaged first; None
    where a task is missing."""
    if any(cell is None for cell in row):
        return None
    return sum(sum(cell) / len(cell) for cell in row if cell) / len(row)


def evaluate_card(
    models: Sequence[str | Path],
    data: str | Path,
    *,
    released: str | None = None,
    compute: ComputeConfig | None = None,
) -> dict[str, Any]:
    """The card's row of models fine-tuned on its tasks, beside the published one.

    `data` holds the tasks' folders, or is tfds. `released` names the published row; unset: the
    model that the weights came from, else one of the same size, else base-v2. Raises UserError for
    a model of a task that is not in the table and for two of one task.
    """
    if released is not None and released not in PUBLISHED:
        raise UserError(f"released model {released!r} is unknown; known: {', '.join(PUBLISHED)}")
    chosen: dict[str, str | Path] = {}
    for model in models:
        name = head_of(model, load_model(model)).get("task")
        if name not in [cell.task for cell in CARD]:
            known = ", ".join(cell.task for cell in CARD)
            raise UserError(f"{model} is of {name}, which is not in the card; it has {known}")
        if name in chosen:
            raise UserError(f"{model} and {chosen[name]} are both of {name}; give one")
        chosen[name] = model
    released = released or _released_name(load_model(models[0]))
    results = {
        cell.task: evaluate(cell.task, chosen[cell.task], _folder(data, cell.task), compute=compute)
        for cell in CARD
        if cell.task in chosen
    }

    def row(tuned: bool) -> list[tuple[float, ...] | None]:
        names = [(cell.tuned if tuned else ()) or cell.metrics for cell in CARD]
        found = [results.get(cell.task, {}).get("metrics") for cell in CARD]
        return [
            each and tuple(each[name] * cell.scale for name in wanted)
            for cell, wanted, each in zip(CARD, names, found, strict=True)
        ]

    return {
        "suite": "card",
        "columns": [cell.title for cell in CARD],
        "row": row(False),
        "average": average(row(False)),
        "row_dev_tuned": row(True),
        "average_dev_tuned": average(row(True)),
        "released": released,
        "published": PUBLISHED[released],
        "published_average": average(PUBLISHED[released]),
        "results": results,
    }


def card_table(card: Mapping[str, Any]) -> str:
    """The two rows as text; SQuAD as F1/EM."""

    def cells(name: str, average: float | None, row: Sequence[Sequence[float] | None]) -> list[str]:
        told = ["-" if cell is None else "/".join(f"{x:.1f}" for x in cell) for cell in row]
        return [name, "-" if average is None else f"{average:.1f}", *told]

    rows = [
        ["", "Average", *card["columns"]],
        cells("here", card["average"], card["row"]),
        cells("  threshold tuned on dev", card["average_dev_tuned"], card["row_dev_tuned"]),
        cells(
            f"{card['released']}, published (tuned)", card["published_average"], card["published"]
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _folder(data: str | Path, task: str) -> str | Path:
    """`data` itself, or the folder in it of the tasks that are not GLUE's."""
    of = {"squad1": "squad", "squad2": "squad", "race": "race"}.get(task, "")
    places = [Path(data) / name for name in (task, of, of.upper()) if name]
    return data if data == "tfds" else next((place for place in places if place.is_dir()), data)


def _released_name(model: Any) -> str:
    manifest = model.manifest
    origin = {"provenance": manifest["provenance"].get("started_from") or manifest["provenance"]}
    named = named_by_source(origin, RELEASED)
    sized = [name for name, config in MODELS.items() if _sizes(config) == _sizes(model.config)]
    return named or next((name for name in sized if name.endswith("-v2")), "base-v2")


def _sizes(config: AlbertConfig) -> tuple[int, ...]:
    return config.hidden_size, config.num_hidden_layers, config.embedding_size
