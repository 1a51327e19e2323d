# SPDX-License-Identifier: Apache-2.0
"""Compute and write the official prediction files of a split."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from albert_jax.config.model_names import name_of
from albert_jax.data.prepare.storage import existing_folder
from albert_jax.inference.early_exit import passes_line
from albert_jax.inference.finetuned import FineTuned, is_finite
from albert_jax.tasks import RawExample, Task
from albert_jax.tasks.base import TFDS, Predictions
from albert_jax.tasks.long_texts import length_lines, pooled
from albert_jax.tasks.split_features import features_of
from albert_jax.utils.atomic import require_apart, writing
from albert_jax.utils.errors import UserError
from albert_jax.utils.progress import ProgressMeter
from albert_jax.utils.remote_fs import require_here
from albert_jax.utils.streams import say
from albert_jax.utils.text_files import unpacked_name
from albert_jax.utils.wording import setting

_MODEL = "model"  # the folder's name in a work directory


def predictions_of(
    fine_tuned: FineTuned, examples: list[RawExample], split: str
) -> tuple[Predictions, int]:
    """Return the predictions for a split by id, and how many of its examples were cut.

    That number is printed to stderr too. Raises UserError if the model's outputs are not finite.
    """
    task = fine_tuned.task
    length = fine_tuned.max_seq_length
    found = features_of(task, examples, fine_tuned.tokenizer, length, fine_tuned.long)
    what = "questions" if task.head.startswith(("span", "multiple")) else "examples"
    title = f"{split}, {len(examples):,} {what}"
    with ProgressMeter(title, len(found.rows), unit="row") as meter:
        outputs = fine_tuned(found.rows, meter.tick)
    for feature, output in zip(found.features, outputs, strict=True):
        if not is_finite(output):
            name = examples[feature.example].id
            raise fine_tuned.broken(f"example {name} of {task.name} {split}")
    passes = [int(output["passes"]) for output in outputs if "passes" in output]
    for line in [
        *passes_line(passes, fine_tuned.directory.config.num_hidden_layers),
        *length_lines(
            found.cuts,
            found.windows,
            len(examples),
            f"{split} {what}",
            max_seq_length=length,
            longest=fine_tuned.longest,
        ),
    ]:
        say(line)
    return task.predictions(examples, *pooled(found.features, outputs)), len(found.cuts)


def predictions_folder(
    task: Task, model: str | Path, data: str | Path, split: str, output: str | Path | None
) -> Path:
    """Return the folder for the official files; call this before the work.

    It is `output`, or a folder beside the model, with the model's name if that is not the usual
    one; for a model's name, predictions/ in the current folder. A file of data adds its name.
    Raises UserError if the folder cannot be written, or is that of the data.
    """
    if output is not None:
        require_here(output)
    if str(output) == "-":
        raise UserError(
            f"the predictions of a split are files; name a folder for {setting('output')}, not -"
        )
    own = Path(os.path.abspath(model))  # without .., whose parent is another folder
    above = own.parent / "predictions"
    if named := name_of(model):
        revision = "" if named.revision in (None, "main") else f"@{named.revision}"
        above = Path("predictions").absolute() / f"{named.name}{revision}".replace("/", "--")
    elif own.name != _MODEL:  # another model may stand beside it
        above /= own.name
    name = f"{task.name}-{split}"
    if Path(data).is_file() and (stem := _stem(data)) != split:
        name += f"-{stem}"  # another file of the split may be answered too
    folder = Path(output) if output is not None else above / name
    for place in () if str(data) == TFDS else task.data_folders(data):
        place = place.parent if place.is_file() else place
        if folder.exists() and place.exists() and folder.samefile(place):
            raise UserError(
                f"{folder} is the folder of the data; name another one for {setting('output')}"
            )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for {setting('output')}")
    if not os.access(above := existing_folder(folder), os.W_OK):
        raise UserError(
            f"{above} cannot be written to; name another folder for {setting('output')}"
        )
    return folder


def _stem(data: str | Path) -> str:
    """Return a file's name without the ending of its kind: reviews.2024 of reviews.2024.csv.gz."""
    return Path(unpacked_name(data)).stem


def write_files(
    task: Task,
    folder: Path,
    data: str | Path,
    examples: Sequence[RawExample],
    predictions: Predictions,
) -> list[Path]:
    """Write the task's official files, each of which appears complete, and return their paths.

    Raises UserError if a file would replace the data, or the disk refuses it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".predictions-", dir=folder) as temporary:
            try:
                files = task.write_predictions(temporary, examples, predictions)
            except UserError as error:  # whose file nobody will find
                raise UserError(str(error).replace(temporary, str(folder))) from None
            for file in files:
                require_apart(folder / file.name, [] if str(data) == TFDS else [data])
            return [file.replace(folder / file.name) for file in files]
