# SPDX-License-Identifier: Apache-2.0
"""Define RACE: questions about passages, with four options each.

Examples come from folders as published or from TFDS. The model's input is that of any
multiple-choice task.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.config.heads import HeadKind
from albert_jax.data.hub import is_hub_data
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks import metrics
from albert_jax.tasks.base import (
    TFDS,
    Features,
    Outputs,
    Predictions,
    RawExample,
    Task,
    best_label,
    gold_labels,
    label_index,
    unique_ids,
)
from albert_jax.tasks.labels import LabelReader, Pairs
from albert_jax.tasks.tables import Row, hub_rows, json_object, json_rows, tfds_rows, write_text
from albert_jax.tasks.values import id_of, list_of, require_keys, row_texts, text_of
from albert_jax.utils.errors import UserError
from albert_jax.utils.text_files import file_lines, read_text, unpacked_name
from albert_jax.utils.wording import setting

LEVELS = ("middle", "high")
OPTIONS = ("A", "B", "C", "D")
MAX_QA_LENGTH = 128  # tokens of question and option that are kept, the last; run_race.py
PASSAGE = ("article", "questions", "options")  # keys of a file


def choice_features(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_seq_length: int,
    *,
    gap: re.Pattern[str],
    max_qa_length: int = MAX_QA_LENGTH,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return ids and segments of [CLS] passage [SEP] question option [SEP], for each option.

    `texts` are the passage, the question and the options. An option replaces each `gap` of the
    question, or else follows the question. The passage loses its end, question and option lose
    their beginning. race_utils.py:126-137, 154-232.
    """
    passage, question, *options = (tokenizer.clean(x, parse_special=None) for x in texts)
    parts = gap.split(question)
    asked = [option.join(parts) if parts[1:] else f"{question} {option}" for option in options]
    passage_ids, *asked_ids = tokenizer.encode_ids([passage, *asked], parse_special=None)
    room, special = max_seq_length - 3, tokenizer.special
    rows, segments = [], []
    for ids in asked_ids:
        ids = ids[-min(max_qa_length, room) :]
        first = [special.cls, *passage_ids[: room - len(ids)], special.sep]
        rows.append([*first, *ids, special.sep])
        segments.append([0] * len(first) + [1] * (len(ids) + 1))
    return rows, segments


@dataclass(frozen=True, kw_only=True)
class RaceTask(Task):
    """Define RACE, or the questions of one of its levels."""

    head: HeadKind = "multiple_choice"
    labels: tuple[str, ...] = OPTIONS
    levels: tuple[str, ...] = LEVELS
    renamed: Pairs = ()  # a file's letter, ours

    @property
    def metric(self) -> str:
        return "accuracy"

    def examples(
        self, split: str, data: str | Path, *, needs_labels: bool = True
    ) -> list[RawExample]:
        """Return the examples of train, dev or test, the middle level before the high one.

        `data` has train/middle/1.txt and so on, or is the folder above RACE/. A level's files may
        also be one all.txt, a passage a line, as the original requires. Raises UserError, with the
        file, if one is missing, is no JSON of RACE's form, or has an answer other than A to D.
        """
        if split not in ("train", "dev", "test"):
            raise UserError(f"split {split!r} of {self.name} is unknown; known: train, dev, test")
        labels = LabelReader(OPTIONS, renamed=self.renamed, is_needed=needs_labels)
        examples: list[RawExample] = []
        for level in self.levels:
            for place, passage in _passages(level, split, data):
                examples += _questions(passage, level, place, labels)
        return unique_ids(examples, data)

    @property
    def record_names(self) -> tuple[str, ...]:
        return "article", "question", "options"

    def from_record(self, record: Mapping[str, Any], number: int, place: str) -> RawExample:
        """Return the example of {"article", "question", "options"} and, optionally, "id"."""
        require_keys(record, place, ("article", "question", "options"))
        texts = tuple(text_of(record[name], name, place) for name in ("article", "question"))
        options = row_texts(record["options"], "options", place, of="options", count=len(OPTIONS))
        return RawExample(id_of(record, ("id",), number, place), (*texts, *options), place=place)

    def features(
        self, example: RawExample, index: int, tokenizer: Tokenizer, max_seq_length: int
    ) -> list[Features]:
        """Return one row of four choices. race_utils.py:154-232."""
        ids, segments = choice_features(tokenizer, example.texts, max_seq_length, gap=self.gap)
        known = example.label is not None
        targets = {"labels": label_index(OPTIONS, example.label, example.place)} if known else {}
        return [Features(index, ids, segments, targets)]

    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Predictions:
        """Return a letter by id."""
        return {
            examples[row.example].id: best_label(OPTIONS, output["logits"])
            for row, output in zip(features, outputs, strict=True)
        }

    def metrics(self, examples: Sequence[RawExample], predictions: Predictions) -> dict[str, float]:
        """Return `accuracy`, 0 to 1, and `accuracy_middle` and `accuracy_high` if there are any."""
        golds = gold_labels(self.name, examples)
        found = [predictions[example.id] for example in examples]
        scores = {"accuracy": metrics.accuracy(golds, found)}
        levels = [example.extra.get("level") for example in examples]
        for level in LEVELS:
            if level in levels:
                at = [i for i, own in enumerate(levels) if own == level]
                scores[f"accuracy_{level}"] = metrics.accuracy(
                    [golds[i] for i in at], [found[i] for i in at]
                )
        return scores

    def write_predictions(
        self, path: str | Path, examples: Sequence[RawExample], predictions: Predictions
    ) -> list[Path]:
        """Write race_predictions.json, letters by id; RACE has no official format."""
        found = {example.id: predictions[example.id] for example in examples}
        return [write_text(path, "race_predictions.json", json.dumps(found, indent=1) + "\n")]


def _passages(level: str, split: str, data: str | Path) -> Iterator[Row]:
    if str(data) == TFDS:
        for place, passage in tfds_rows(f"race/{level}", split):
            yield place, {**passage, "id": passage["example_id"]}
        return
    own = [f"{top}{part}/{level}" for top in ("RACE/", "") for part in ("train", "dev", "test")]
    if is_hub_data(data, own):
        yield from _hub_passages(level, split, data)
        return
    folders = [Path(data) / "RACE" / split / level, Path(data) / split / level]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise UserError(
            f"no folder {folders[0]} or {folders[1]}; {setting('data')} is RACE's folder"
        )
    found = [*folder.glob("*.txt"), *folder.glob("*.txt.gz")]
    files = [file for file in found if not file.name.startswith(".")]
    single = [file for file in files if unpacked_name(file) != "all.txt"]
    if not files:
        raise UserError(f"{folder} holds no .txt file; RACE's archive has one a passage there")
    if not single:  # if there are other files, all.txt repeats them
        yield from json_rows(file_lines(files[0]), str(files[0]), PASSAGE)
    for file in sorted(single, key=lambda file: (_number(file.stem), file.name)):
        passage = json_object(read_text(file), str(file), PASSAGE)
        yield str(file), {"id": f"{level}{unpacked_name(file)}"} | passage


def _hub_passages(level: str, split: str, data: str | Path) -> Iterator[Row]:
    """Yield the hub's rows as passages of that level.

    A row is a question; consecutive rows with the same passage belong together.
    """
    needed = ("example_id", "article", "question", "options")
    rows = hub_rows(data, split, needed)
    for (name, article), found in itertools.groupby(
        rows, key=lambda row: (row[1]["example_id"], row[1]["article"])
    ):
        own = list(found)
        if str(name).startswith(level):
            yield (
                own[0][0],
                {
                    "id": name,
                    "article": article,
                    "questions": [row["question"] for _, row in own],
                    "options": [row["options"] for _, row in own],
                    "answers": [row.get("answer") or None for _, row in own],
                },
            )


def _number(stem: str) -> int:
    digits = re.search(r"\d+", stem)
    return int(digits[0]) if digits else 0


def _questions(
    passage: Mapping[str, Any], level: str, place: str, labels: LabelReader
) -> Iterator[RawExample]:
    """Yield the questions of a published passage, whose texts may be empty."""
    require_keys(passage, place, (*PASSAGE, "id"))
    article = text_of(passage["article"], "article", place, may_be_blank=True)
    questions = row_texts(passage["questions"], "questions", place, of="texts", may_be_blank=True)
    options = list_of(passage["options"], "options", place, of="lists of options")
    answers = passage.get("answers")
    if answers in (None, []):  # a split without them
        answers = [None] * len(questions)
    answers = list_of(answers, "answers", place, of="letters")
    if not len(questions) == len(options) == len(answers):
        raise UserError(
            f"{place} has {len(questions)} questions, {len(options)} lists of options and "
            f"{len(answers)} answers; expected as many of each"
        )
    name = id_of(passage, ("id",), 0, place)
    for i, (question, own, answer) in enumerate(zip(questions, options, answers, strict=True)):
        at = f"{place} question {i + 1}"
        texts = row_texts(
            own, f"options[{i}]", at, of="options", count=len(OPTIONS), may_be_blank=True
        )
        yield RawExample(
            f"{name}-{i}",
            (article, question, *texts),
            labels.read(answer, f"answers[{i}]", at),
            {"level": level},
            at,
        )
