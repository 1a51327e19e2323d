# SPDX-License-Identifier: Apache-2.0
"""What a fine-tuned model answers to new inputs: `albert-jax predict`, JSONL in and out as it
comes, or a split's official predictions file."""

from __future__ import annotations

import contextlib
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
from albert_jax.tasks import RawExample, Task
from albert_jax.tasks.custom import CONLL
from albert_jax.tasks.squad import SpanPredictions
from albert_jax.tasks.tables import Row, conll_rows, file_rows, json_rows
from albert_jax.tasks.text_files import file_lines, kind_of, lines_together
from albert_jax.tasks.values import id_of, shown

# Inputs answered together: the first at once, then more, for speed.
_CHUNKS = (1, 8, 64)
_FULL_CHUNK = 512
_IDS = ("id", "index", "idx")  # what a record may call its number
_RECORD = 'a mapping of the task\'s texts by their names, as {"sentence": "…"}'


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
    "probability", the likeliest text's among the likely ones, and for squad2 "null_odds". With
    `pack` short inputs share rows of that many tokens. Raises UserError for a model that was not
    fine-tuned and for an input that lacks a text.
    """
    if isinstance(inputs, (str, bytes, Mapping)):
        raise UserError(f"the inputs are {shown(inputs)}; give a list of records, each {_RECORD}")
    fine_tuned = load_fine_tuned(
        model,
        task,
        max_seq_length=max_seq_length,
        compute=compute,
        pack=pack,
        doc_stride=doc_stride,
    )
    rows = ((f"input {i}", record) for i, record in enumerate(inputs))
    return _answers(fine_tuned, _in_chunks(_checked(rows)))


def _checked(rows: Iterable[tuple[str, Any]]) -> Iterator[Row]:
    """The rows, as mappings whose ids can be repeated in an answer; an id of null is none."""
    for place, record in rows:
        if not isinstance(record, Mapping):
            raise UserError(f"{place} is {shown(record)}; give {_RECORD}")
        id_of(record, _IDS, 0, place)
        empty = [name for name in _IDS if name in record and record[name] is None]
        yield place, {k: x for k, x in record.items() if k not in empty} if empty else record


def _in_chunks(rows: Iterator[Row], first: Sequence[int] = _CHUNKS) -> Iterator[list[Row]]:
    """The rows in chunks; before an error those that came before it, so that they are answered."""
    for size in itertools.chain(first, itertools.repeat(_FULL_CHUNK)):
        chunk: list[Row] = []
        try:
            for row in itertools.islice(rows, size):
                chunk.append(row)
        except UserError:
            yield chunk
            raise
        if not chunk:
            return
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
    found: dict[str, Any] = {
        "start": predictions.starts[name] if predictions[name] else None,
        "probability": round(predictions.nbest[name][0]["probability"], 6),
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
    fine_tuned = load_fine_tuned(model, task, **settings)
    answers = _answers(fine_tuned, _chunks(source, fine_tuned.task))
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
    examples = fine_tuned.task.examples(split, data, needs_labels=False)
    predictions, _ = answer(fine_tuned, examples)
    return write_files(fine_tuned.task, model, split, output, examples, predictions)


def _name(source: str) -> str:
    return "standard input" if source == "-" else source


def _chunks(source: str, task: Task) -> Iterator[list[Row]]:
    if source != "-":
        yield from _in_chunks(_checked(_rows(source, task)))
        return
    # Together those that came together: none waits for the next, which may come from one who waits
    # for the answer.
    for lines in lines_together(sys.stdin.buffer, _name(source)):
        yield from _in_chunks(_checked(json_rows(lines, _name(source))), first=())


def _rows(source: str, task: Any) -> Iterator[Row]:
    """The rows of a file with their places, read as they are asked for."""
    kind, has_words = kind_of(source), task.head == "token_classification"
    if kind in CONLL and has_words:
        return conll_rows(file_lines(source), source, task.texts[0], task.label)
    if kind == "conll":
        raise UserError(
            f"{source} has a word a line, by its name, which {task.name} does not read; give "
            "JSONL, CSV or TSV"
        )
    return file_rows(Path(source), ())
