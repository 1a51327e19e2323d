# SPDX-License-Identifier: Apache-2.0
"""The model card's table: models fine-tuned on its five tasks, beside the published row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.checkpoint.model_dir import load_model
from albert_jax.config.run import MODELS, AlbertConfig, ComputeConfig
from albert_jax.inference.evaluate import evaluate
from albert_jax.inference.finetuned import head_of
from albert_jax.inference.published import RELEASED
from albert_jax.inference.verify_released import named_by_source
from albert_jax.utils.errors import UserError


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
