# SPDX-License-Identifier: Apache-2.0
"""What a fine-tuned model answers to new inputs: `albert-jax predict`, JSONL in and out as it
comes, or a split's official predictions file."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from albert_jax.config import ComputeConfig
from albert_jax.errors import UserError
from albert_jax.evaluation import write_files
from albert_jax.finetune_data import features_of
from albert_jax.task_model import FineTuned, load_fine_tuned
from albert_jax.tasks import RawExample
from albert_jax.tasks.squad import SpanPredictions
from albert_jax.tasks.tables import Row, json_object

# Inputs answered together: the first at once, then more, for speed.
_CHUNKS = (1, 8, 64)
_FULL_CHUNK = 512
_IDS = ("id", "index", "idx")  # what a record may call its number


def predict(
    model: str | Path,
    inputs: Iterable[Mapping[str, Any]],
    *,
    task: str | None = None,
    max_seq_length: int | None = None,
    doc_stride: int | None = None,
    compute: ComputeConfig | None = None,
    pack: int = 0,
) -> Iterator[dict[str, Any]]:
    """Answers to `inputs`, one by one as they come, in their order.

    An input has the task's texts by their names (README), and may have an "id". An answer is
    {"id", "prediction"}, and of classes and choices "probabilities" by label; of questions on a
    context "start", the character of it where the answer begins (None where there is none),
    "probability", the likeliest text's among the likely ones (None where there is none, as in a
    context without a word), and for squad2 "null_odds". With
    `pack` short inputs share rows of that many tokens. Raises UserError for a model that was not
    fine-tuned and for an input that lacks a text.
    """
    fine_tuned = load_fine_tuned(
        model,
        task,
        max_seq_length=max_seq_length,
        compute=compute,
        pack=pack,
        doc_stride=doc_stride,
    )
    rows = ((f"input {i}", record) for i, record in enumerate(inputs))
    return _answers(fine_tuned, _in_chunks(rows))


def _in_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    sizes = itertools.chain(_CHUNKS, itertools.repeat(_FULL_CHUNK))
    while chunk := list(itertools.islice(rows, next(sizes))):
        yield chunk


def _answers(fine_tuned: FineTuned, chunks: Iterable[list[Row]]) -> Iterator[dict[str, Any]]:
    """Answers to (place, record)s, a chunk at a time."""
    done = 0
    for chunk in filter(None, chunks):
        examples = []
        for number, (place, record) in enumerate(chunk, start=done):
            # Numbered here: two records of one id would be one answer.
            texts = {name: value for name, value in record.items() if name not in _IDS}
            examples.append(fine_tuned.task.from_record(texts, number, place))
        predictions, details = answer(fine_tuned, examples)
        for (_, record), example in zip(chunk, examples, strict=True):
            yield {
                "id": next((record[name] for name in _IDS if name in record), int(example.id)),
                "prediction": predictions[example.id],
                **details.get(example.id, {}),
            }
        done += len(chunk)


def answer(
    fine_tuned: FineTuned, examples: list[RawExample]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Predictions by id, and by id what else `predict` says of them."""
    task = fine_tuned.task
    split = features_of(task, examples, fine_tuned.tokenizer, fine_tuned.max_seq_length)
    outputs = fine_tuned(split.rows)
    predictions = task.predictions(examples, split.features, outputs)
    details: dict[str, dict[str, Any]] = {}
    if task.head in ("classification", "multiple_choice"):
        for feature, output in zip(split.features, outputs, strict=True):
            shares = _probabilities(task.labels, output["logits"])
            details[examples[feature.example].id] = {"probabilities": shares}
    if isinstance(predictions, SpanPredictions):
        details = {name: _place(predictions, name) for name in predictions}
    return predictions, details


def _probabilities(labels: Sequence[str], logits: np.ndarray) -> dict[str, float]:
    logits = logits.astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    names = labels or tuple(map(str, range(len(shares))))
    return {name: round(float(x), 6) for name, x in zip(names, shares, strict=False)}


def _place(predictions: SpanPredictions, name: str) -> dict[str, Any]:
    """Where the answer stands in the context and how likely it is; and the odds of there being
    none, where the head knows them."""
    probability = predictions.probabilities[name]
    found: dict[str, Any] = {
        "start": predictions.starts[name] if predictions[name] else None,
        "probability": None if probability is None else round(probability, 6),
    }
    if predictions.null_odds is not None:
        found["null_odds"] = predictions.null_odds[name]
    return found


def predict_file(
    model: str | Path, source: str, dest: str, *, task: str | None = None, **settings: Any
) -> int:
    """Answers each row of `source` (JSONL, CSV or TSV by its name; - is standard input, JSONL) in a
    line of JSON of `dest` (- is standard output), as they come; returns how many.

    The columns of CSV and TSV are named by their first row. Raises UserError, with the row, for
    what is not such a file; the answers before it stand in `dest`.
    """
    chunks = _typed() if source == "-" else _in_chunks(_records(source))
    answers = _answers(load_fine_tuned(model, task, **settings), chunks)
    count = 0
    with contextlib.ExitStack() as stack:
        out: TextIO = sys.stdout
        if dest != "-":
            Path(dest).parent.mkdir(parents=True, exist_ok=True)
            out = stack.enter_context(Path(dest).open("w", encoding="utf-8"))
        for found in answers:
            out.write(json.dumps(found, ensure_ascii=False) + "\n")
            out.flush()
            count += 1
    if not count:
        raise UserError(f"{_name(source)} is empty; give an example a line")
    return count


def predict_split(
    model: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    output: str | Path | None = None,
    task: str | None = None,
    **settings: Any,
) -> list[Path]:
    """Writes the official predictions file or files of a split, labels or none, and returns them.

    They go to `output`; unset: `predictions/TASK-SPLIT` beside the model.
    """
    fine_tuned = load_fine_tuned(model, task, **settings)
    examples = fine_tuned.task.examples(split, data)
    predictions, _ = answer(fine_tuned, examples)
    return write_files(fine_tuned.task, model, split, output, examples, predictions)


def _name(source: str) -> str:
    return "standard input" if source == "-" else source


def _typed() -> Iterator[list[Row]]:
    """The rows of standard input, together those that came together: none waits for the next, which
    may come from one who waits for the answer."""
    rest, done = b"", 0
    while data := sys.stdin.buffer.read1(1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield list(_json_rows(_lines(lines, _name("-"), done + 1), _name("-"), done + 1))
        done += len(lines)
    yield list(_json_rows(_lines([rest], _name("-"), done + 1), _name("-"), done + 1))


def _records(source: str) -> Iterator[Row]:
    """The rows of a file with their places, read as they are asked for."""
    with Path(source).open("rb") as file:
        lines = _lines(file, source)
        is_table = source.endswith((".csv", ".tsv"))
        yield from _table(lines, source) if is_table else _json_rows(lines, source)


def _json_rows(lines: Iterable[str], name: str, first: int = 1) -> Iterator[Row]:
    for number, line in enumerate(lines, start=first):
        if line.strip():
            place = f"{name} row {number}"
            yield place, json_object(line, place)


def _lines(file: Iterable[bytes], name: str, first: int = 1) -> Iterator[str]:
    for number, line in enumerate(file, start=first):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} row {number}: invalid UTF-8 at byte {error.start} of the row; "
                "convert the file to UTF-8"
            ) from None


def _table(lines: Iterator[str], name: str) -> Iterator[Row]:
    # As the tasks read them: cells of CSV may be quoted, quotes in TSV are plain text.
    tsv = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if name.endswith(".tsv") else {}
    rows: Iterator[Sequence[str]] = csv.reader(lines, **tsv)  # type: ignore[arg-type]
    columns = next(rows, None)
    if columns is None:
        return
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(columns):
            raise UserError(
                f"{name} row {number} has {len(cells)} columns; expected {len(columns)}: "
                f"{', '.join(columns)}"
            )
        yield f"{name} row {number}", dict(zip(columns, cells, strict=True))
