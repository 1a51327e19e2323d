# SPDX-License-Identifier: Apache-2.0
"""Answer new inputs with a fine-tuned model: `albert-jax predict`.

Input is JSONL or another format, line by line, or a split that gets its official predictions file.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

import numpy as np

from albert_jax.config.heads import HeadKind, Long
from albert_jax.config.model import ComputeConfig, Engine
from albert_jax.inference.answers import Answer, NoAnswer, SpanAnswer
from albert_jax.inference.early_exit import passes_line
from albert_jax.inference.finetuned import AnswerSettings, FineTuned, is_finite, load_fine_tuned
from albert_jax.inference.prediction_files import (
    predictions_folder,
    predictions_of,
    write_files,
)
from albert_jax.tasks import Features, RawExample, Task, metrics
from albert_jax.tasks.base import Predictions
from albert_jax.tasks.collate import as_rows
from albert_jax.tasks.custom import CONLL, CustomTask
from albert_jax.tasks.cuts import Cut
from albert_jax.tasks.guessed_columns import of_records
from albert_jax.tasks.long_texts import fitted, length_lines, pooled, window_count
from albert_jax.tasks.squad import SpanPredictions
from albert_jax.tasks.tables import ROW_READERS, conll_rows, text_rows
from albert_jax.tasks.values import id_of, json_shown, quoted
from albert_jax.utils.arguments import is_list, shown
from albert_jax.utils.atomic import require_apart, result_lines, writing
from albert_jax.utils.errors import UserError
from albert_jax.utils.progress import ProgressMeter, Tick
from albert_jax.utils.remote_fs import require_here
from albert_jax.utils.results import Rows
from albert_jax.utils.streams import json_line, say
from albert_jax.utils.text_files import Stream, file_lines, kind_of, lines_together
from albert_jax.utils.wording import setting

# Inputs answered together: the first at once, then more, for speed.
_CHUNKS = (1, 8, 64)
_FULL_CHUNK = 512
_IDS = ("id", "index", "idx")  # what a record may call its number
_RECORD = 'a mapping of the task\'s texts by their names, as {"sentence": "…"}'

InputFormat = Literal["jsonl", "csv", "tsv", "conll", "text"]
_BY_LINES = ("jsonl", "text")  # formats in which each line is one input
_SEEN_FOR_TAGS = 100  # sentences of a .txt, whose last column may have no tags

# The place of an input, for errors, and its record, or the reason why there is none.
Input = tuple[str, Mapping[str, Any] | UserError]


def predict(
    model: str | Path,
    inputs: Iterable[Any],  # an item that is no mapping is a bad input, which may be skipped
    *,
    task: str | None = None,
    max_seq_length: int | None = None,
    doc_stride: int | None = None,
    compute: ComputeConfig | None = None,
    pack: int = 0,
    skip_bad: bool = False,
    long: Long | None = None,
    stride: int | None = None,
    exit: str | None = None,
    engine: Engine = "jax",
) -> Iterator[Answer | NoAnswer]:
    """Answer inputs one by one, in their order, as the answers become ready.

    Args:
        model: a model directory.
        inputs: mappings with the task's texts by name (docs/reference/tasks.md); "id" is optional.
        task: the task to answer; unset, the one that the model was fine-tuned for.
        max_seq_length: tokens in a row; unset, as in fine-tuning.
        doc_stride: tokens from the start of one SQuAD window to the next; unset, as in fine-tuning.
        compute: how this machine computes; unset, in float32.
        pack: tokens of a row that short inputs share; 0 gives each input its own row.
        skip_bad: give an input that cannot be answered a `NoAnswer`, and continue with the others.
        long: what to do with a text longer than a row: "cut" leaves out its end, "refuse" is an
            error, "windows" takes the mean of its windows' logits; unset, as in fine-tuning.
        stride: tokens from the start of one of these windows to the next; unset, as in fine-tuning,
            or half a window if `long` is given.
        exit: stop after fewer passes, each input alone: "patience=N" when N passes in a row do not
            change the answer, "confidence=P" when the answer has probability P. The answer's
            `passes` is their number.
        engine: "jax", or "onnx" for ONNX Runtime on this machine's CPU in float32, as in `load`.

    Returns:
        An iterator over an `Answer` for each input, a `SpanAnswer` for questions about a context.

    Raises:
        UserError: if the model was not fine-tuned. Without `skip_bad`, also if an input lacks a
            text or the model's output for it is not finite.
    """
    if isinstance(inputs, str | bytes | Mapping):
        raise UserError(
            f"the inputs are {json_shown(inputs)}; give a list of records, each {_RECORD}"
        )
    fine_tuned = load_fine_tuned(
        model,
        task,
        max_seq_length=max_seq_length,
        compute=compute,
        pack=pack,
        doc_stride=doc_stride,
        long=long,
        stride=stride,
        exit=exit,
        engine=engine,
    )
    rows = ((f"input {i}", record) for i, record in enumerate(inputs))
    return _answers(fine_tuned, _in_chunks(rows), _Count(), skip_bad=skip_bad)


Texts = str | Sequence[Any] | Mapping[str, Any]
"""An input of `answers_to`: a text, several by their order or several by their names."""


def answers_to(fine_tuned: FineTuned, inputs: Iterable[Texts]) -> Rows[Answer]:
    """Return the answers to inputs, the same as `predict` gives to records of them.

    An input is a record, or the task's texts in the order of `Task.record_names`. For token
    classification it is a list of words, or a text that white space divides into words. Raises
    UserError, as `predict` does, for an input that has no answer.
    """
    if not is_list(inputs):
        raise UserError(
            f"inputs {shown(inputs)} must be a text, a tuple or mapping of texts, or a list of "
            "these"
        )
    task = fine_tuned.task
    rows = ((f"inputs[{i}]", _record(task, f"inputs[{i}]", x)) for i, x in enumerate(inputs))
    # Nobody sees the first answer before the last.
    found = _answers(fine_tuned, _in_chunks(rows, first=()), _Count(), skip_bad=False)
    return Rows(answer for answer in found if isinstance(answer, Answer))


def _record(task: Task, place: str, given: Texts) -> Mapping[str, Any]:
    """Return texts by their names."""
    if isinstance(given, Mapping):
        return given
    if not isinstance(given, (str, list, tuple)):
        raise UserError(
            f"{place} {shown(given)} must be a string, a tuple of texts or a mapping of them"
        )
    names = task.record_names
    if task.head == "token_classification":
        return {names[0]: given.split() if isinstance(given, str) else list(given)}
    texts = [given] if isinstance(given, str) else list(given)
    if len(texts) != len(names):
        count = f"{len(texts)} text{'' if len(texts) == 1 else 's'}"
        raise UserError(
            f"{place} has {count}, and {task.name} takes {len(names)} "
            f"({', '.join(names)}); give {_SHAPES.get(len(names), 'a tuple of them')}"
        )
    return dict(zip(names, texts, strict=True))


_SHAPES = {1: "a text, or a list of texts", 2: "a tuple of two texts, or a list of such tuples"}


def _in_chunks(
    rows: Iterable[Input],
    first: Sequence[int] = _CHUNKS,
    *,
    must_wait: Callable[[], bool] = lambda: False,
) -> Iterator[list[Input]]:
    """Yield the rows, a few together, and all there are where the next `must_wait` to arrive.

    If reading a row raises an error, the rows before it are yielded first.
    """
    sizes = itertools.chain(first, itertools.repeat(_FULL_CHUNK))
    chunk: list[Input] = []
    size = next(sizes)
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == size or must_wait():
                yield chunk
                chunk, size = [], next(sizes)
    except UserError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


# -------------------------------------------------------------------------------------- answering


@dataclass
class _Count:
    """Count what is reported at the end."""

    inputs: int = 0
    bad: int = 0
    cuts: dict[int, Sequence[Cut]] = field(default_factory=dict)  # by the input's number
    passes: list[int] = field(default_factory=list)  # of each answer, with an early exit
    windows: list[int] = field(default_factory=list)  # of each text that was read in several


@dataclass
class _Asked:
    """Hold an input that waits for its answer, or the error that says why it has none."""

    id: Any
    place: str
    example: RawExample | None = None
    features: Sequence[Features] = ()
    cuts: Sequence[Cut] = ()
    windows: int = 0
    outputs: Sequence[Mapping[str, np.ndarray]] = ()
    error: UserError | None = None


def _answers(
    fine_tuned: FineTuned,
    chunks: Iterable[list[Input]],
    count: _Count,
    *,
    skip_bad: bool,
    tick: Callable[[int], None] | None = None,
    reading: Callable[[], AbstractContextManager[None]] = of_records,
) -> Iterator[Answer | NoAnswer]:
    """Yield the answers to the inputs of each chunk, which are computed together.

    `tick` is called after each batch with the number of finished inputs. `reading` is
    entered for each input: by default it is a record of a Python call.
    """

    def tick_rows(done: int, total: int) -> None:
        if tick is not None:
            tick(count.inputs + len(asked) * done // total)

    for chunk in chunks:
        asked: list[_Asked] = []
        for number, (place, record) in enumerate(chunk, start=count.inputs):
            with reading():
                asked.append(_asked(fine_tuned, number, place, record))
            if asked[-1].error and not skip_bad:
                break  # the inputs before it are still answered
        for each, found in zip(asked, _answered(fine_tuned, asked, tick_rows), strict=True):
            answer: Answer | NoAnswer
            if isinstance(found, UserError):
                if not skip_bad:
                    raise found
                count.bad += 1
                answer = NoAnswer(id=each.id, error=str(found))
            else:
                answer = found
                if answer.passes is not None:
                    count.passes.append(answer.passes)
                if each.cuts:
                    count.cuts[count.inputs] = each.cuts
                if each.windows:
                    count.windows.append(each.windows)
            count.inputs += 1
            yield answer


def _asked(fine_tuned: FineTuned, number: int, place: str, record: Any) -> _Asked:
    """Return a record as the model's input; its id is its own or else its number."""
    task, tokenizer = fine_tuned.task, fine_tuned.tokenizer
    length = fine_tuned.max_seq_length
    asked = _Asked(number, place)
    try:
        if isinstance(record, UserError):
            raise record
        asked.id = _id_of(number, place, record)
        asked.example = _example(task, number, place, record)
        features = _features(fine_tuned, asked.example, place)
        asked.features, asked.cuts = fitted(
            task, asked.example, features, tokenizer, length, fine_tuned.long
        )
        asked.windows = window_count(asked.features)
    except UserError as error:
        asked.error = error
    return asked


def _id_of(number: int, place: str, record: Any) -> Any:
    """Return the id of a record's answer: the record's own id, or else its number."""
    if not isinstance(record, Mapping):
        raise UserError(f"{place} is {json_shown(record)}; give {_RECORD}")
    id_of(record, _IDS, number, place)  # refuses what an answer cannot repeat
    own = next((record[name] for name in _IDS if record.get(name) is not None), number)
    return own if isinstance(own, (str, float)) else int(own)  # NumPy's numbers are not JSON


def _example(task: Task, number: int, place: str, record: Mapping[str, Any]) -> RawExample:
    """Return the example with a number for its id, because two records may have the same id."""
    texts = {name: x for name, x in record.items() if name not in _IDS or name in task.text_columns}
    return dataclasses.replace(task.from_record(texts, number, place), id=str(number))


def _features(fine_tuned: FineTuned, example: RawExample, place: str) -> list[Features]:
    try:
        return fine_tuned.task.features(example, 0, fine_tuned.tokenizer, fine_tuned.max_seq_length)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _answered(
    fine_tuned: FineTuned, asked: Sequence[_Asked], tick: Tick
) -> list[Answer | UserError]:
    """Return the answer to each, or the error."""
    good = [each for each in asked if each.error is None]
    rows = as_rows(feature for each in good for feature in each.features)
    outputs = iter(fine_tuned(rows, tick))
    for each in good:
        each.outputs = list(itertools.islice(outputs, len(each.features)))
        if not all(map(is_finite, each.outputs)):
            each.error = fine_tuned.broken(each.place)
        else:
            each.features, each.outputs = pooled(each.features, each.outputs)
    answers = iter(_answers_of(fine_tuned.task, [each for each in good if each.error is None]))
    return [each.error or next(answers) for each in asked]


def _answers_of(task: Task, asked: Sequence[_Asked]) -> list[Answer]:
    """Return the predictions, and the other fields of an `Answer`."""
    examples = [each.example for each in asked if each.example is not None]
    features = [
        dataclasses.replace(feature, example=i)
        for i, each in enumerate(asked)
        for feature in each.features
    ]
    predictions = task.for_answers().predictions(
        examples, features, [x for each in asked for x in each.outputs]
    )
    return [
        _answer(task, each, predictions, example.id)
        for example, each in zip(examples, asked, strict=True)
    ]


class _Details(TypedDict, total=False):
    """Hold the keys of an answer that are not in every answer."""

    truncated: bool
    tokens_left_out: int
    windows: int
    probabilities: dict[str, float]
    passes: int


def _answer(task: Task, asked: _Asked, predictions: Predictions, name: str) -> Answer:
    found = predictions[name]  # a tuple of words' labels, as a list
    prediction = list(found) if isinstance(found, tuple) else found
    more: _Details = {}
    if asked.cuts:
        more["truncated"] = True
        more["tokens_left_out"] = sum(cut.left_out for cut in asked.cuts)
    if asked.windows:
        more["windows"] = asked.windows
    if probabilities := _PROBABILITIES.get(task.head):
        shares = probabilities(asked.outputs[0]["logits"])
        names = task.labels or tuple(map(str, range(len(shares))))
        pairs = zip(names, shares, strict=False)
        more["probabilities"] = {name: round(float(x), 6) for name, x in pairs}
    if asked.outputs and "passes" in asked.outputs[0]:
        more["passes"] = int(asked.outputs[0]["passes"])
    if isinstance(predictions, SpanPredictions):
        place = _place(predictions, name)
        return SpanAnswer(id=asked.id, prediction=prediction, **more, **place)
    return Answer(id=asked.id, prediction=prediction, **more)


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


# Heads whose answers give a probability for each label.
_PROBABILITIES: dict[HeadKind, Callable[[np.ndarray], np.ndarray]] = {
    "classification": _softmax,
    "multiple_choice": _softmax,
    "multi_label": metrics.sigmoid,
}


class _Place(TypedDict, total=False):
    """Hold the fields that a `SpanAnswer` adds."""

    start: int | None
    probability: float | None
    null_odds: float


def _place(predictions: SpanPredictions, name: str) -> _Place:
    """Return where the answer stands in the context, and its probability.

    If the head knows them, also return the odds that there is no answer.
    """
    start, probability = predictions.starts[name], predictions.probabilities[name]
    if not predictions[name]:
        start = probability = None
    found: _Place = {
        "start": start,
        "probability": None if probability is None else round(probability, 6),
    }
    if predictions.null_odds is not None:
        found["null_odds"] = predictions.null_odds[name]
    return found


# ------------------------------------------------------------------------------- files and splits


def predict_file(
    model: str | Path,
    source: str,
    dest: str,
    *,
    task: str | None = None,
    input_format: InputFormat | None = None,
    skip_bad: bool = False,
    **settings: Unpack[AnswerSettings],
) -> int:
    """Answer each row of a file in a line of JSON.

    `dest` appears when all rows are answered. The number of inputs that were cut is printed to
    stderr and, with `skip_bad`, the number of inputs without an answer.

    Args:
        model: a model directory.
        source: a file of JSONL, CSV, TSV, CoNLL or, with one text in each line, .txt. "-" is
            standard input. The first row of CSV and TSV names the columns.
        dest: the file to write; "-" is standard output.
        task: the task to answer; unset, the one that the model was fine-tuned for.
        input_format: the format of `source`; unset, by the end of its name, and JSONL for "-".
        skip_bad: give a row that cannot be answered a `NoAnswer`, and continue with the others.
        **settings: the other keyword arguments of `predict`.

    Returns:
        The number of rows that were read.

    Raises:
        UserError: if a row is not of the format (the error names it, and the answers so far are in
            DEST.partial), or `dest` is the source.
    """
    _require_another(source, dest)
    fine_tuned = load_fine_tuned(model, task, **settings)
    count = _Count()
    chunks = _chunks(source, fine_tuned.task, input_format, skip_bad=skip_bad)
    # Progress is shown if the user waits for input or reads answers on the screen.
    is_seen = dest == "-" and (source == "-" or sys.stdout.isatty())
    with writing(dest), result_lines(dest) as out:
        with ProgressMeter("predict", None, unit="input", show=not is_seen) as meter:
            for found in _answers(
                fine_tuned, chunks, count, skip_bad=skip_bad, tick=meter.reach, reading=nullcontext
            ):
                out.write(json_line(found, out))
                out.flush()
        if not count.inputs:
            raise UserError(f"{_name(source)} has no example; give one a line")
    _say_counts(fine_tuned, count)
    return count.inputs


def _require_another(source: str, dest: str) -> None:
    """Raise UserError if the answers would replace the inputs, by whatever name.

    An address is no file either.
    """
    # Files that the shell opened count too: cat >> FILE would never end.
    require_here(dest)
    path = Path("/dev/stdin" if source == "-" else source)
    if not path.is_file() or Path(dest).is_dir():  # a terminal may be both; a folder is no place
        return
    where = setting("dest", flag="output")
    require_apart("/dev/stdout" if dest == "-" else dest, [path], where)
    require_apart(f"{dest}.partial", [path], where)


def _say_counts(fine_tuned: FineTuned, count: _Count) -> None:
    """Say how many inputs have an error for an answer, and how many were cut."""
    if count.bad:
        say(f"predict: {count.bad:,} of {count.inputs:,} inputs have an error instead of an answer")
    for line in [
        *length_lines(
            count.cuts,
            count.windows,
            count.inputs,
            "inputs",
            max_seq_length=fine_tuned.max_seq_length,
            longest=fine_tuned.longest,
        ),
        *passes_line(count.passes, fine_tuned.directory.config.num_hidden_layers),
    ]:
        say(f"predict: {line}")


def predict_split(
    model: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    output: str | Path | None = None,
    task: str | None = None,
    **settings: Unpack[AnswerSettings],
) -> list[Path]:
    """Write the official predictions files of a split, which needs no labels.

    Args:
        model: a model directory.
        data: the folder of the task's files, the file of the split, "hf:NAME" or "tfds".
        split: the split's name.
        output: the folder to write to; unset, `predictions/TASK-SPLIT` beside the model, or
            `predictions/NAME/TASK-SPLIT` if the model's folder is not called "model";
            TASK-SPLIT-FILE for a file of data that is not called like the split.
        task: the task to answer; unset, the one that the model was fine-tuned for.
        **settings: the other keyword arguments of `evaluate` that set how the model answers.

    Returns:
        The paths of the files.

    Raises:
        UserError: if `output` is the folder of the data, or the model's outputs are not finite.
    """
    fine_tuned = load_fine_tuned(model, task, **settings)
    chosen = fine_tuned.task
    folder = predictions_folder(chosen, model, data, split, output)
    examples = chosen.examples(split, data, needs_labels=False)
    predictions, _ = predictions_of(fine_tuned, examples, split)
    return write_files(chosen, folder, data, examples, predictions)


# ---------------------------------------------------------------------------------------- reading


def _name(source: str) -> str:
    return "standard input" if source == "-" else source


def _chunks(
    source: str, task: Task, kind: InputFormat | None = None, *, skip_bad: bool
) -> Iterator[list[Input]]:
    """Yield the inputs, grouped as they are answered.

    With `skip_bad`, a row that cannot be read becomes its error, and the next rows follow.
    """
    is_guessed = kind is None and kind_of(source) == "txt"
    kind = kind or _kind(source, task)
    name = _name(source)
    if source != "-":
        keep_errors = skip_bad and kind in _BY_LINES
        lines = file_lines(source, keep_errors=keep_errors)
        rows = _rows(lines, name, task, kind, skip_bad=skip_bad)
        if is_guessed and kind == "conll":
            rows = _with_known_tags(rows, task)
        yield from _in_chunks(rows)
        return
    together = lines_together(
        cast(Stream, sys.stdin.buffer), name, keep_errors=skip_bad and kind in _BY_LINES
    )
    # Lines that arrive together are answered together. None waits for the next line, which the
    # sender may write only after the answer.
    if kind not in _BY_LINES:  # a row may need the lines before it
        arriving = _Arriving(together)
        rows = _rows(iter(arriving), name, task, kind, skip_bad=skip_bad)
        yield from _in_chunks(rows, must_wait=lambda: arriving.must_wait)
        return
    for lines in together:
        yield from _in_chunks(_rows(lines, name, task, kind, skip_bad=skip_bad), first=())


def _with_known_tags(rows: Iterator[Any], task: Task) -> Iterator[Any]:
    """Return the sentences of a .txt, which is read as CoNLL.

    Raises UserError if its last of several columns has no label of the task in the first sentences:
    then the lines are sentences.
    """
    assert isinstance(task, CustomTask)
    known = {*task.labels, *dict(task.renamed)}
    first = list(itertools.islice(rows, _SEEN_FOR_TAGS))
    tags = [tag for _, row in first for tag in row.get(task.label, ())]
    is_named = not all(label.startswith("LABEL_") for label in task.labels)
    if tags and is_named and known.isdisjoint(tags):
        raise UserError(
            f"{first[0][0]}: the last column has no label of the model ({quoted(tags[:3])}), and a "
            f".txt file is read as CoNLL, a word a line; give {setting('input_format', 'text')} "
            f"for a sentence a line, or {setting('input_format', 'conll')} to ignore the column"
        )
    return itertools.chain(first, rows)


class _Arriving:
    """Iterate over lines in groups that arrived together.

    `must_wait` says that the lines which have not been taken yet are empty, or still to arrive.
    """

    def __init__(self, together: Iterator[Iterator[Any]]) -> None:
        self._lines = self._one_by_one(together)
        self.must_wait = True

    def __iter__(self) -> Iterator[Any]:
        return self._lines

    def _one_by_one(self, together: Iterator[Iterator[Any]]) -> Iterator[Any]:
        for group in together:
            held: list[Any] = []  # the newest line with text, and empty ones after it
            try:
                for number, line in group:
                    if line.strip():
                        self.must_wait = False
                        yield from held
                        held = []
                    held.append((number, line))
            except UserError:
                yield from held  # which come before the damaged line
                raise
            self.must_wait = True
            yield from held


def _kind(source: str, task: Task) -> InputFormat:
    """Return the format of an input by its name; standard input is JSONL."""
    kind = "jsonl" if source == "-" else kind_of(source)
    if kind in CONLL and task.head == "token_classification":
        return "conll"
    if kind == "conll":
        raise UserError(
            f"{source} has a word a line, by its name, which {task.name} does not read; give "
            "JSONL, CSV or TSV"
        )
    kinds: dict[str, InputFormat] = {"txt": "text", "csv": "csv", "tsv": "tsv"}
    return kinds.get(kind, "jsonl")


def _rows(
    lines: Iterator[Any], name: str, task: Task, kind: InputFormat, *, skip_bad: bool
) -> Iterator[Any]:
    """Yield the rows of an input with their places, reading on demand."""
    is_words = isinstance(task, CustomTask) and task.head == "token_classification"
    columns = [column for column in task.text_columns if column]
    if kind == "conll":
        if not isinstance(task, CustomTask) or not is_words:
            raise UserError(f"{task.name} does not read CoNLL; give JSONL, CSV or TSV")
        return conll_rows(lines, name, task.texts[0], task.label)
    if kind != "text":
        return ROW_READERS[kind](lines, name, (), keep_errors=skip_bad)
    if len(columns) != 1:
        raise UserError(
            f"{name} has a text a line, and {task.name} takes {_several(columns)}; give JSONL, CSV "
            "or TSV"
        )
    rows = text_rows(lines, name, columns[0])
    return ((at, _divided(row, columns[0])) for at, row in rows) if is_words else rows


def _several(columns: Sequence[str]) -> str:
    return " and ".join(columns) or "several"


def _divided(row: Mapping[str, Any] | UserError, name: str) -> Mapping[str, Any] | UserError:
    """Return the words of a row's text, which white space divides."""
    return row if isinstance(row, UserError) else {name: row[name].split()}
