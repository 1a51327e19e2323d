# SPDX-License-Identifier: Apache-2.0
"""Build the model card's table: models fine-tuned on its five tasks, beside the published row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from albert_jax.checkpoint.model_dir import ModelDirectory, load_model
from albert_jax.config.model import MODELS, AlbertConfig, ComputeConfig
from albert_jax.inference.evaluate import Evaluation, evaluate
from albert_jax.inference.finetuned import head_of
from albert_jax.inference.published import RELEASED
from albert_jax.inference.verify_released import named_by_source
from albert_jax.utils.columns import aligned
from albert_jax.utils.errors import UserError
from albert_jax.utils.results import Result


@dataclass(frozen=True)
class Cell:
    """Describe a column of the model card's table: its task, its metrics and their scale."""

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
    """Return the mean over the tasks, SQuAD's F1 and EM averaged first.

    It is the table's last column. None if a task is missing.
    """
    if any(cell is None for cell in row):
        return None
    return sum(sum(cell) / len(cell) for cell in row if cell) / len(row)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelCard(Result):
    """Hold a row of the model card's table, beside the published row.

    Scores are in percent. A cell is None if no model was fine-tuned for its task.

    Attributes:
        suite: "card".
        columns: the names of the tasks.
        row: the scores of each task, in the order of `columns`.
        average: the mean over the tasks, SQuAD's F1 and EM averaged first; None if a task is
            missing.
        row_dev_tuned: the same scores, with SQuAD 2.0 at the threshold that is best on dev, as in
            the published row.
        average_dev_tuned: the mean of `row_dev_tuned`.
        released: the released model of the published row.
        published: the published scores.
        published_average: the mean of the published scores.
        results: the `Evaluation` of each task, by name.
    """

    suite: Literal["card"] = "card"
    columns: list[str]
    row: list[tuple[float, ...] | None]
    average: float | None
    row_dev_tuned: list[tuple[float, ...] | None]
    average_dev_tuned: float | None
    released: str
    published: tuple[tuple[float, ...], ...]
    published_average: float | None
    results: dict[str, Evaluation]


def evaluate_card(
    models: Sequence[str | Path],
    data: str | Path,
    *,
    released: str | None = None,
    compute: ComputeConfig | None = None,
) -> ModelCard:
    """Evaluate models on the model card's tasks and return their row of its table.

    Args:
        models: model directories, at most one for each task.
        data: the folder of the tasks' folders, or "tfds".
        released: the published row to compare with; unset, that of the released model whose weights
            were fine-tuned, else of one of the same size, else of base-v2.
        compute: how this machine computes; unset, in float32.

    Returns:
        The row, beside the published one.

    Raises:
        UserError: if there is no model, a model's task is not in the table, or two models have the
            same task.
    """
    if released is not None and released not in PUBLISHED:
        raise UserError(f"released model {released!r} is unknown; known: {', '.join(PUBLISHED)}")
    if isinstance(models, str) or not models:
        raise UserError(f"models {models!r} must be a list of models, one for each task")
    chosen = _by_task(models)
    released = released or _released_name(load_model(models[0]))
    results = {
        cell.task: evaluate(cell.task, chosen[cell.task], _folder(data, cell.task), compute=compute)
        for cell in CARD
        if cell.task in chosen
    }
    row, tuned = (_row(results, tuned=tuned) for tuned in (False, True))
    return ModelCard(
        columns=[cell.title for cell in CARD],
        row=row,
        average=average(row),
        row_dev_tuned=tuned,
        average_dev_tuned=average(tuned),
        released=released,
        published=PUBLISHED[released],
        published_average=average(PUBLISHED[released]),
        results=results,
    )


def _by_task(models: Sequence[str | Path]) -> dict[str, str | Path]:
    chosen: dict[str, str | Path] = {}
    for model in models:
        name = head_of(model, load_model(model)).task
        if name is None or name not in [cell.task for cell in CARD]:
            known = ", ".join(cell.task for cell in CARD)
            raise UserError(f"{model} is of {name}, which is not in the card; it has {known}")
        if name in chosen:
            raise UserError(f"{model} and {chosen[name]} are both of {name}; give one")
        chosen[name] = model
    return chosen


def _row(results: Mapping[str, Evaluation], *, tuned: bool) -> list[tuple[float, ...] | None]:
    row: list[tuple[float, ...] | None] = []
    for cell in CARD:
        names = (cell.tuned if tuned else ()) or cell.metrics
        found = results.get(cell.task)
        values = [found.metrics[name] for name in names] if found else []
        row.append(tuple(x * cell.scale for x in values if x is not None) or None)
    return row


def card_table(card: ModelCard) -> str:
    """Return the two rows as text; SQuAD as F1/EM."""

    def cells(name: str, average: float | None, row: Sequence[Sequence[float] | None]) -> list[str]:
        told = ["-" if cell is None else "/".join(f"{x:.1f}" for x in cell) for cell in row]
        return [name, "-" if average is None else f"{average:.1f}", *told]

    return aligned(
        [
            ["", "Average", *card.columns],
            cells("here", card.average, card.row),
            cells("  threshold tuned on dev", card.average_dev_tuned, card.row_dev_tuned),
            cells(f"{card.released}, published (tuned)", card.published_average, card.published),
        ]
    )


def _folder(data: str | Path, task: str) -> str | Path:
    """Return `data`, or its subfolder for a task that is not GLUE's."""
    of = {"squad1": "squad", "squad2": "squad", "race": "race"}.get(task, "")
    places = [Path(data) / name for name in (task, of, of.upper()) if name]
    return data if data == "tfds" else next((place for place in places if place.is_dir()), data)


def _released_name(model: ModelDirectory) -> str:
    manifest = model.manifest
    origin = {"provenance": manifest["provenance"].get("started_from") or manifest["provenance"]}
    named = named_by_source(origin, RELEASED)
    sized = [name for name, config in MODELS.items() if _sizes(config) == _sizes(model.config)]
    return named or next((name for name in sized if name.endswith("-v2")), "base-v2")


def _sizes(config: AlbertConfig) -> tuple[int, ...]:
    return config.hidden_size, config.num_hidden_layers, config.embedding_size
