# SPDX-License-Identifier: Apache-2.0
"""Define a user's own task, from CSV, TSV, JSONL or CoNLL files.

It has classes or a score of a text or a pair, multiple choice, or classes of words.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from albert_jax.config.heads import IGNORED_LABEL, SCORES
from albert_jax.config.manifests import TaskSettings
from albert_jax.data.hub import is_hub_data
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks import metrics
from albert_jax.tasks.base import (
    Features,
    Outputs,
    Predictions,
    RawExample,
    Targets,
    Task,
    best_label,
    check_columns,
    gold_labels,
    label_index,
    pair_features,
    unique_ids,
)
from albert_jax.tasks.guessed_columns import advice, is_of_records
from albert_jax.tasks.labels import LabelReader, Pairs
from albert_jax.tasks.race import choice_features
from albert_jax.tasks.tables import Row, conll_rows, file_rows, find_file, hub_rows, write_text
from albert_jax.tasks.values import (
    Hint,
    id_of,
    no_hint,
    require_keys,
    row_texts,
    text_of,
    wrong_value,
)
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.text_files import file_lines, kind_of
from albert_jax.utils.wording import setting

OUTSIDE = "O"
CONLL = ("conll", "txt")
_TABLES = ("csv", "tsv", "jsonl")
# The number of columns that `texts` may name, by the task's head, and their meaning.
_TEXTS = {
    "token_classification": (1, 1, "the column of words"),
    "multiple_choice": (3, None, "passage, question and options"),
    "similarity": (2, 2, "two columns"),
}


@dataclass(frozen=True, kw_only=True)
class CustomTask(Task):
    """Define a task of a user's own; metrics are fractions.

    `texts` and `label` name columns, or JSON's keys. Of multiple choice, `texts` are the passage,
    the question and either a list of options or a column for each option; without a passage, its
    name is "". Of words, they are a list (JSONL), or the files are CoNLL's. `labels` are those of
    the training file (see `learn`). `renamed` has pairs of a file's label and the task's.
    """

    # A word of the question may have a "_"; scripts without spaces have words up to a gap.
    gap: ClassVar[re.Pattern[str]] = re.compile(r"(?<!\w)_+(?!\w)", re.ASCII)

    texts: tuple[str, ...]
    label: str = "label"
    renamed: Pairs = ()

    def __post_init__(self) -> None:
        least, most, which = _TEXTS.get(self.head, (1, 2, "one column or two"))
        check_columns(
            self.name,
            self.texts,
            self.label_columns,
            (least, most),
            which,
            may_be_nameless=self.head == "multiple_choice",
        )

    @property
    def metric(self) -> str:
        """The metric: f1 of whole chunks if words' labels are B-TYPE; pearson for scores."""
        if self.head == "token_classification":
            return "f1" if _are_chunks(self.labels) else "accuracy"
        return "pearson" if self.head in SCORES else "accuracy"

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns from which labels are read."""
        return (self.label,)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return self.texts

    def head_settings(self) -> TaskSettings:
        return TaskSettings(texts=list(self.texts), label=self.label)

    def with_labels(self, labels: Iterable[str]) -> Self:
        """Return the task with the labels of a model that was fine-tuned for it."""
        return dataclasses.replace(self, labels=tuple(labels))

    def learn(self, train: Sequence[RawExample]) -> Self:
        """Return the task with the labels of its training examples, sorted; numbers as numbers.

        Of multiple choice, the labels are numbers from 0, or letters from A, as in the file. Raises
        UserError if there is no label or score, or only one.
        """
        golds = gold_labels(self.name, train)
        if self.head in SCORES:
            if len(set(golds)) < 2:
                raise UserError(
                    f"the training file of {self.name} has the one score {golds[0]}; give it "
                    "examples of different scores"
                )
            return self
        if self.head == "multiple_choice":
            return self.with_labels(_one_kind_of_choices(train))
        if self.head == "token_classification":
            golds = [tag for tags in golds for tag in tags]
        found = set(golds)
        if len(found) < 2:
            raise UserError(
                f"the training file of {self.name} has the one label {found.pop()!r}; give it "
                "examples of at least two labels"
            )
        say_of_case(self.name, found)
        return self.with_labels(in_order(found))

    # ---------------------------------------------------------------------------------- reading

    def examples(
        self, split: str, data: str | Path, *, needs_labels: bool = True
    ) -> list[RawExample]:
        """Return the examples of a split in a folder, in a file or in a data set of the hub.

        In a folder, the file is SPLIT.csv, .tsv, .jsonl or, for words, .conll or .txt; or one of
        these with .gz. CSV cells may be quoted; quotes in TSV are plain text; row 1 names the
        columns. A test split may lack the label. Raises UserError, with the row and the field, for
        a missing column, a value that is no text or no number, a label that the training file does
        not have, an empty file and invalid UTF-8.
        """
        is_test = split == "test"
        labels = LabelReader(
            self.labels,
            renamed=self.renamed,
            is_needed=needs_labels,
            is_test=is_test,
        )
        place, rows = self._rows(split, data, has_labels=needs_labels and not is_test)
        examples = [self._example(record, None, at, labels) for at, record in rows]
        found = unique_ids(examples, place)  # and not empty
        if self.head == "multiple_choice":
            _require_as_many(found)
            if needs_labels and not self.labels:
                _one_kind_of_choices(found)
        return found

    def _rows(
        self, split: str, data: str | Path, *, has_labels: bool
    ) -> tuple[str | Path, Iterator[Row]]:
        needed = [text for text in self.texts if text]
        if has_labels:
            needed += self.label_columns
        hint = partial(self._advice, is_asked=has_labels)
        if is_hub_data(data):
            return f"{data} {split}", hub_rows(data, split, needed, hint=hint)
        kinds = _TABLES if self.head != "token_classification" else (*CONLL, "jsonl")
        path = find_file([Path(data)], [f"{split}.{kind}" for kind in kinds])
        if kind_of(path) in CONLL:
            rows = conll_rows(file_lines(path), str(path), self.texts[0], self.label)
            return path, rows
        return path, file_rows(path, needed, hint=hint)

    def _advice(self, found: Iterable[str], *, is_asked: bool = False) -> str:
        """Return what to do about a file or a record with other columns.

        With `is_asked`, a label is needed too.
        """
        return advice(
            found,
            texts=self.texts,
            label=self.label,
            of_words=self.head == "token_classification",
            is_asked=is_asked,
        )

    def from_record(self, record: Mapping[str, Any], number: int, place: str) -> RawExample:
        """Return the example of a record without its label; its id is its "id" or its number."""
        return self._example(record, number, place, None)

    def _example(
        self, record: Mapping[str, Any], number: int | None, place: str, labels: LabelReader | None
    ) -> RawExample:
        # The rows before have these columns, so that others would be wrong for them.
        is_late = bool(number) and not is_of_records()
        texts = self._texts(record, place, no_hint if is_late else self._advice)
        label = self._label(record, texts, place, labels) if labels else None
        return RawExample(id_of(record, ("id",), number, place), texts, label, place=place)

    def _texts(self, record: Mapping[str, Any], place: str, hint: Hint) -> tuple[str, ...]:
        require_keys(record, place, [text for text in self.texts if text], hint=hint)
        if self.head == "token_classification":
            name = self.texts[0]
            # A word of U+00A0 alone is one: it stands in real CoNLL files, with a tag.
            words = row_texts(record[name], name, place, of="words", blanks=" \t\r\n")
            if not words:
                raise wrong_value(place, name, [], "a list of words")
            return words
        if self.head == "multiple_choice":
            return self._choice_texts(record, place)
        return tuple(text_of(record[name], name, place) for name in self.texts)

    def _choice_texts(self, record: Mapping[str, Any], place: str) -> tuple[str, ...]:
        passage, question, *options = self.texts
        # A passage may be left out, of all questions by its column's name or of one by its cell.
        asked = [
            text_of(record[name], name, place, may_be_blank=name == passage) if name else ""
            for name in (passage, question)
        ]
        if len(options) > 1:
            return (*asked, *(text_of(record[name], name, place) for name in options))
        (name,) = options
        if isinstance(record[name], str):
            expected = "a list of options"
            if not is_of_records():
                expected += f"; in CSV and TSV each has a column ({setting('texts')})"
            raise wrong_value(place, name, record[name], expected)
        found = row_texts(record[name], name, place, of="options", count=len(self.labels) or None)
        if len(found) < 2:
            raise wrong_value(place, name, list(found), "two options or more")
        return (*asked, *found)

    def _label(
        self,
        record: Mapping[str, Any],
        texts: Sequence[str],
        place: str,
        labels: LabelReader,
    ) -> str | float | tuple[str, ...] | None:
        value = record.get(self.label)
        if self.head in SCORES:
            return labels.read_score(value, self.label, place)
        if self.head == "token_classification":
            return labels.read_each(value, len(texts), self.label, place)
        if self.head == "multiple_choice" and not self.labels:
            # `learn` finds out which of the two the file has.
            known = (*_numbers(len(texts) - 2), *_letters(len(texts) - 2))
            return labels.read(value, self.label, place, known)
        return labels.read(value, self.label, place)

    # ------------------------------------------------------------------------- the model's side

    def features(
        self, example: RawExample, index: int, tokenizer: Tokenizer, max_seq_length: int
    ) -> list[Features]:
        """Return one row, as GLUE and RACE do; for words, as many rows as they need."""
        if self.head == "token_classification":
            return self._word_features(example, index, tokenizer, max_seq_length)
        ids, segments = self._input(tokenizer, example.texts, max_seq_length)
        label = example.label
        targets = {} if label is None else self._targets(label, example)
        return [Features(index, ids, segments, targets)]

    def _input(
        self, tokenizer: Tokenizer, texts: Sequence[str], max_seq_length: int
    ) -> tuple[list[Any], list[Any]]:
        """Return ids and segments of texts, of multiple choice for each choice."""
        if self.head == "multiple_choice":
            return choice_features(tokenizer, texts, max_seq_length, gap=self.gap)
        return pair_features(tokenizer, texts, max_seq_length)

    def _targets(self, label: Any, example: RawExample) -> Targets:
        """Return what the loss reads of a text, a pair or choices with that label."""
        return {"labels": self._target(label, example)}

    def _target(self, label: Any, example: RawExample) -> Any:
        if self.head in SCORES:
            return label
        # A converted multiple choice has no names for its choices.
        names = self.labels or _choice_names([example])
        return label_index(names, label, f"example {example.id} of {self.name}")

    def _word_features(
        self, example: RawExample, index: int, tokenizer: Tokenizer, max_seq_length: int
    ) -> list[Features]:
        # A word that is cleaned away, a lone accent, still has a label to predict.
        special = tokenizer.special
        encoded = tokenizer.encode_ids(example.texts, parse_special=None)
        words = [ids or [special.unk] for ids in encoded]
        rows = []
        first = 0
        while first < len(words):
            ids, starts = [special.cls], []
            room = max_seq_length - 1
            last = first
            while last < len(words) and (last == first or len(ids) + len(words[last]) <= room):
                starts.append(len(ids))
                ids += words[last]
                last += 1
            ids = [*ids[:room], special.sep]
            targets = {}
            if isinstance(example.label, tuple):
                tags = [IGNORED_LABEL] * len(ids)
                for start, tag in zip(starts, example.label[first:last], strict=True):
                    tags[start] = self._target(tag, example)
                targets = {"labels": tags}
            extra = {"first_word": first, "starts": starts}
            rows.append(Features(index, ids, [0] * len(ids), targets, extra))
            first = last
        return rows

    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Predictions:
        """Return a label, a number, or a tuple of one label for each word, by id."""
        found: Predictions = {}
        for row, output in zip(features, outputs, strict=True):
            example, logits = examples[row.example], output["logits"]
            name, labels = example.id, self.labels
            if self.head == "multiple_choice" and not labels:
                labels = _choice_names([example])  # the next may have more options
            if self.head == "token_classification":
                tags = tuple(best_label(labels, logits[at]) for at in row.extra["starts"])
                found[name] = found.get(name, ()) + tags
            elif self.head in SCORES:
                found[name] = float(np.ravel(logits)[0])
            else:
                found[name] = best_label(labels, logits)
        return found

    def metrics(self, examples: Sequence[RawExample], predictions: Predictions) -> dict[str, float]:
        """Return accuracy and macro F1 of classes, or accuracy of choices, as fractions.

        Of scores: pearson, spearman and mean squared error. Of words: accuracy, and conlleval's for
        chunks.
        """
        golds = gold_labels(self.name, examples)
        found = [predictions[example.id] for example in examples]
        if self.head == "token_classification":
            scores = metrics.chunk_scores(golds, found)
            return scores if self.metric == "f1" else {"accuracy": scores["accuracy"]}
        if self.head in SCORES:
            return {
                "pearson": metrics.pearson(golds, found),
                "spearman": metrics.spearman(golds, found),
                "mean_squared_error": metrics.mean_squared_error(golds, found),
            }
        scores = {"accuracy": metrics.accuracy(golds, found)}
        if self.head == "classification":
            scores["macro_f1"] = metrics.macro_f1(golds, found)
        return scores

    def write_predictions(
        self, path: str | Path, examples: Sequence[RawExample], predictions: Predictions
    ) -> list[Path]:
        """Write predictions.jsonl, {"id", "prediction"} a line.

        For words, also write predictions.conll, as conlleval reads it: a word a line, its label if
        all are known, and its prediction.
        """
        found = [(example, predictions[example.id]) for example in examples]
        rows = [json.dumps({"id": e.id, "prediction": p}, ensure_ascii=False) for e, p in found]
        paths = [write_text(path, "predictions.jsonl", "\n".join(rows) + "\n")]
        if self.head == "token_classification":
            blocks = []
            has_labels = all(example.label for example in examples)  # as many columns everywhere
            for example, tags in found:
                columns = [example.texts, *([example.label] if has_labels else []), tags]
                blocks.append("".join(map(_conll_line, zip(*columns, strict=True))))
            paths.append(write_text(path, "predictions.conll", "\n".join(blocks)))
        return paths


def _conll_line(cells: Sequence[str]) -> str:
    # A word's own white space would begin another column. U+00A0 is none to conlleval and to
    # `conll_rows`, and a space to the tokenizer.
    return " ".join(re.sub(r"\s", "\u00a0", cell) for cell in cells) + "\n"


def _require_as_many(examples: Sequence[RawExample]) -> None:
    first, *others = ((len(example.texts) - 2, example.place) for example in examples)
    for options, place in others:
        if options != first[0]:
            raise UserError(
                f"{place} has {options} options and {first[1]} has {first[0]}; give all as many"
            )


def in_order(labels: Collection[str]) -> list[str]:
    """Return labels sorted, numbers as numbers."""
    # Thousands of digits are a name: Python refuses to make a number of them.
    numeric = all(label.isdecimal() and len(label) < 20 for label in labels)
    return sorted(labels, key=lambda label: (int(label) if numeric else 0, label))


def say_of_case(task: str, labels: Iterable[str]) -> None:
    """Report which labels differ in case alone."""
    by_case: dict[str, list[str]] = {}
    for label in sorted(labels):
        by_case.setdefault(label.casefold(), []).append(label)
    for same in by_case.values():
        if len(same) > 1:
            say(
                f"{task}: the labels {', '.join(same)} differ in case alone and are taken for "
                f"different ones; {setting('labels', f'{same[1]}={same[0]}')} makes them one"
            )


def _are_chunks(labels: Sequence[str]) -> bool:
    prefixes = {label.partition("-")[0] for label in labels if "-" in label}
    return bool(prefixes) and prefixes <= set("BIES") and {*labels} >= {OUTSIDE}


def _choice_names(examples: Sequence[RawExample]) -> tuple[str, ...]:
    """Return the choices' numbers, or their letters if a label is a letter."""
    choices = len(examples[0].texts) - 2
    golds = [example.label for example in examples if example.label is not None]
    are_numbers = all(str(label).isdecimal() for label in golds)
    return _numbers(choices) if are_numbers else _letters(choices)


def _one_kind_of_choices(examples: Sequence[RawExample]) -> tuple[str, ...]:
    """Return the choices' names; raises UserError if some labels are numbers and some letters."""
    names = _choice_names(examples)
    for example in examples:
        if example.label is not None:
            label_index(names, example.label, example.place)
    return names


def _numbers(choices: int) -> tuple[str, ...]:
    return tuple(map(str, range(choices)))


def _letters(choices: int) -> tuple[str, ...]:
    return tuple(map(chr, range(ord("A"), ord("A") + choices)))


CUSTOM = (
    CustomTask(name="single", head="classification", texts=("text",)),
    CustomTask(name="pair", head="classification", texts=("text_a", "text_b")),
    CustomTask(name="regression", head="regression", texts=("text",)),
    CustomTask(name="pair-regression", head="regression", texts=("text_a", "text_b")),
    CustomTask(
        name="multiple-choice", head="multiple_choice", texts=("passage", "question", "options")
    ),
    CustomTask(
        name="token-classification", head="token_classification", texts=("words",), label="tags"
    ),
)
