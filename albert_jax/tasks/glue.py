# SPDX-License-Identifier: Apache-2.0
"""Define GLUE's ten tasks.

Examples come from the official tsv files, from JSONL or CSV with the same columns or TFDS's, or
from TFDS. Predictions are written as GLUE's server takes them. `GLUE` has all differences between
the tasks; the order of labels is the original's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

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
    Targets,
    Task,
    best_label,
    check_columns,
    gold_labels,
    label_index,
    pair_features,
    unique_ids,
)
from albert_jax.tasks.labels import LabelReader, Pairs
from albert_jax.tasks.tables import (
    Columns,
    Row,
    csv_rows,
    find_file,
    hub_rows,
    irregular_tsv_rows,
    json_rows,
    tfds_rows,
    tsv_rows,
    write_text,
)
from albert_jax.tasks.values import id_of, require_keys, task_advice, text_of
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.text_files import file_lines, kind_of
from albert_jax.utils.wording import setting

NLI = ("contradiction", "entailment", "neutral")
PAIR = ("sentence1", "sentence2")
_DIAGNOSTIC = ("diagnostic-full", "diagnostic")  # names of the file; the first has labels
IDS = ("index", "idx", "id")
NO_GOLD = "-"  # MultiNLI's own files: the annotators did not agree. GLUE's have no such rows


@dataclass(frozen=True, kw_only=True)
class GlueTask(Task):
    """Define one of GLUE's tasks; metrics are fractions, correlations -1 to 1. classifier_utils.py.

    A task without `labels` is a regression.

    Attributes:
        folder: the folder of the official files, and the name of the server's file.
        texts: the columns of the tsv, one or two.
        label: the column of the tsv.
        scores: names in `SCORES`; the first chooses the best step.
        tfds: its name in TFDS's glue; "" if it is not there.
        published: the classes in the order of their numbers in TFDS and on the hub (nyu-mll/glue).
        keys: the names of the texts in TFDS and on the hub, if they differ from the tsv's.
        without_header: the columns of a file whose first row is an example.
        leave_out_short: leave out rows that lack columns, as the original does.
        splits: the splits that it has.
        renamed: pairs of a file's label and the task's.
        official: the texts' columns and the label's by the tsv. They stay when `texts` or `label`
            is replaced, which then takes no other name.
    """

    head: HeadKind = "classification"
    folder: str
    texts: tuple[str, ...]
    label: str
    scores: tuple[str, ...]
    tfds: str = ""
    published: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    without_header: tuple[str, ...] = ()
    leave_out_short: bool = False
    splits: tuple[str, ...] = ("train", "dev", "test")
    renamed: Pairs = ()
    official: tuple[tuple[str, ...], str] = ((), "")

    def __post_init__(self) -> None:
        if not self.official[0]:
            object.__setattr__(self, "official", (self.texts, self.label))
        count = len(self.official[0])
        which = "one column" if count == 1 else "two columns"
        check_columns(self.name, self.texts, (self.label,), (count, count), which)

    @property
    def metric(self) -> str:
        return self.scores[0]

    @property
    def text_columns(self) -> tuple[str, ...]:
        return self.texts

    def data_folders(self, data: str | Path) -> tuple[Path, ...]:
        folder = "diagnostic" if self.name == "ax" else self.folder
        return Path(data) / folder, Path(data)

    def examples(
        self, split: str, data: str | Path, *, needs_labels: bool = True
    ) -> list[RawExample]:
        """Return the examples of train, dev or test (MNLI: dev_matched, dev_mismatched, …).

        `data` holds the official folders, or the task's own files. Dev of MNLI is dev_matched. An
        empty text is allowed, because the official files have some. Raises UserError, with the row
        and the field, if a file is missing, empty or no UTF-8, lacks a column, or has a value that
        is no text or an unknown label.
        """
        split = f"{split}_matched" if f"{split}_matched" in self.splits else split
        if split not in self.splits:
            splits = ", ".join(self.splits)
            raise UserError(f"split {split!r} of {self.name} is unknown; known: {splits}")
        is_test = split.startswith("test")
        place, rows = self._rows(split, data, has_labels=needs_labels and not is_test)
        if needs_labels and NO_GOLD not in dict(self.renamed):
            rows = self._with_gold(rows, place)
        labels = LabelReader(
            self.labels,
            renamed=self.renamed,
            published=self.published,
            source=str(place) if needs_labels and data != TFDS else "",
            is_needed=needs_labels,
        )
        examples = [
            self._example(cells, number, at, labels, is_test=is_test, split=split)
            for number, (at, cells) in enumerate(rows)
        ]
        return unique_ids(examples, place)

    def _rows(
        self, split: str, data: str | Path, *, has_labels: bool
    ) -> tuple[str | Path, Iterable[Row]]:
        if str(data) == TFDS:
            if not self.tfds:
                raise UserError(
                    f"TFDS has no data set for {self.name}; give {setting('data')} a folder"
                )
            name = f"glue/{self.tfds}"
            return f"TFDS {name}", tfds_rows(name, split.replace("dev", "validation"))
        is_ax = self.name == "ax"
        kinds = ("tsv", "jsonl", "csv")
        known = _DIAGNOSTIC if is_ax else self.splits
        own = [f"{stem}.{kind}*" for stem in known for kind in kinds]
        if is_hub_data(data, [*own, *(f"{self.data_folders('')[0]}/{name}" for name in own)]):
            needed, *others = self._columns(has_labels=has_labels)
            return f"{data} {split}", hub_rows(
                data, split, needed, others=others, hint=self._advice
            )
        names = [f"{x}.{kind}" for x in (_DIAGNOSTIC if is_ax else (split,)) for kind in kinds]
        path = find_file(self.data_folders(data), names)
        lines, name = file_lines(path), str(path)
        if kind_of(path) == "jsonl":
            return path, json_rows(lines, name)
        read = csv_rows if kind_of(path) == "csv" else tsv_rows
        if path.name.startswith("diagnostic-full"):  # the file of the diagnostic set with labels
            rows = read(lines, name, ("Premise", "Hypothesis", "Label"))
            return path, ((at, {k.lower(): x for k, x in row.items()}) for at, row in rows)
        needed, *others = self._columns(has_labels=has_labels)
        if read is csv_rows:
            return path, csv_rows(lines, name, needed, others=others, hint=self._advice)
        is_test = split.startswith("test")
        wanted = Columns(
            (needed, *others),
            hint=self._advice,
            without_header=() if is_test else self.without_header,
            leave_out_short=self.leave_out_short and not is_test,
        )
        return path, irregular_tsv_rows(lines, name, wanted)

    def _advice(self, found: Iterable[str]) -> str:
        """Return what an error about columns adds: a run without a task is one of SST-2."""
        return task_advice(self.name)

    def _columns(self, *, has_labels: bool) -> list[tuple[str, ...]]:
        """Return the columns that a file needs, by the names of the tsv, TFDS or the hub."""
        if not has_labels:
            return list(self._texts_names())
        return [(*texts, x) for texts in self._texts_names() for x in self._label_names()]

    def _texts_names(self) -> tuple[tuple[str, ...], ...]:
        """Return the names that the texts may have in a file, the preferred ones first."""
        has_keys = self.keys and self.texts == self.official[0]
        return (self.texts, self.keys) if has_keys else (self.texts,)

    def _label_names(self) -> tuple[str, ...]:
        is_official = self.label == self.official[1]
        return tuple(dict.fromkeys((self.label, *(["label"] if is_official else []))))

    def _with_gold(self, rows: Iterable[Row], place: str | Path) -> Iterator[Row]:
        """Yield the rows, without those on which MultiNLI's annotators did not agree.

        The latter are counted on stderr.
        """
        left_out = 0
        for at, cells in rows:
            if self.labels == NLI and cells.get(self._label_key(cells)) == NO_GOLD:
                left_out += 1
            else:
                yield at, cells
        if left_out:
            say(f"{place}: left out {left_out} rows without a gold label ({NO_GOLD})")

    def from_record(self, record: Mapping[str, Any], number: int, place: str) -> RawExample:
        """Return the example of a record that has the texts by TFDS's names or the tsv's.

        Its label is not read.
        """
        return RawExample(
            id_of(record, IDS, number, place),
            tuple(text_of(record[text], text, place) for text in self._text_keys(record, place)),
            place=place,
        )

    def _example(
        self,
        cells: Mapping[str, Any],
        number: int,
        place: str,
        labels: LabelReader,
        *,
        is_test: bool,
        split: str,
    ) -> RawExample:
        """Return the example in a row; in a test split a label may be missing."""
        key = self._label_key(cells)
        needed = (key,) if labels.is_needed and not is_test else ()
        names = self._text_keys(cells, place, *needed)
        texts = tuple(text_of(cells[name], name, place, may_be_blank=True) for name in names)
        identity = id_of(cells, IDS, None, place) if is_test else str(number)
        label = self._label(cells.get(key), key, place, labels)
        return RawExample(identity, texts, label, {"split": split}, place)

    def _label_key(self, cells: Mapping[str, Any]) -> str:
        names = self._label_names()
        return next((name for name in names if name in cells), names[-1])

    def _text_keys(self, cells: Mapping[str, Any], place: str, *more: str) -> tuple[str, ...]:
        """Return the record's keys of the texts; raises UserError if it lacks one."""
        names = self._texts_names()
        keys = next((texts for texts in names if set(texts) <= cells.keys()), names[-1])
        require_keys(cells, place, (*keys, *more))
        return keys

    def _label(self, value: Any, key: str, place: str, labels: LabelReader) -> str | float | None:
        if self.labels:
            return labels.read(value, key, place)
        score = labels.read_score(value, key, place)
        return None if score == -1 else score  # the published data sets' "none"

    def features(
        self, example: RawExample, index: int, tokenizer: Tokenizer, max_seq_length: int
    ) -> list[Features]:
        """Return one row. classifier_utils.py:506-608."""
        ids, segments = pair_features(tokenizer, example.texts, max_seq_length)
        targets: Targets = {}
        if example.label is not None:
            label = example.label
            targets["labels"] = (
                label_index(self.labels, label, example.place)
                if self.labels
                else cast("float", label)
            )
        return [Features(index, ids, segments, targets)]

    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> Predictions:
        """Return a label, or a number, by id."""
        return {
            examples[row.example].id: best_label(self.labels, output["logits"])
            if self.labels
            else float(np.ravel(output["logits"])[0])
            for row, output in zip(features, outputs, strict=True)
        }

    def metrics(self, examples: Sequence[RawExample], predictions: Predictions) -> dict[str, float]:
        """Return GLUE's metrics of the task, as fractions; F1 is that of label 1."""
        golds = gold_labels(self.name, examples)
        found = [predictions[example.id] for example in examples]
        return {name: SCORES[name](golds, found) for name in self.scores}

    def write_predictions(
        self, path: str | Path, examples: Sequence[RawExample], predictions: Predictions
    ) -> list[Path]:
        """Write the file that GLUE's server takes, index and prediction: CoLA.tsv, MNLI-m.tsv, ….

        Scores of STS-B are clipped to 0 to 5, as the server requires, with three decimals.
        """
        files: dict[str, list[str]] = {}
        for example in examples:
            split = example.extra.get("split", "")
            suffix = {"mismatched": "-mm", "matched": "-m"}.get(split.partition("_")[2], "")
            prediction = predictions[example.id]
            if not self.labels:
                prediction = f"{min(max(prediction, 0.0), 5.0):.3f}"
            rows = files.setdefault(f"{self.folder}{suffix}.tsv", ["index\tprediction"])
            rows.append(f"{example.id}\t{prediction}")
        return [write_text(path, name, "\n".join(rows) + "\n") for name, rows in files.items()]


SCORES = {
    "accuracy": metrics.accuracy,
    "f1": lambda golds, predictions: metrics.f1(golds, predictions, "1"),
    "matthews": metrics.matthews,
    "pearson": metrics.pearson,
    "spearman": metrics.spearman,
}

GLUE = (
    GlueTask(
        name="cola",
        folder="CoLA",
        texts=("sentence",),
        label="label",
        labels=("0", "1"),
        published=("unacceptable", "acceptable"),
        scores=("matthews", "accuracy"),
        tfds="cola",
        without_header=("source", "label", "star", "sentence"),
    ),
    GlueTask(
        name="sst2",
        folder="SST-2",
        texts=("sentence",),
        label="label",
        labels=("0", "1"),
        published=("negative", "positive"),
        scores=("accuracy",),
        tfds="sst2",
    ),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        texts=("#1 String", "#2 String"),
        keys=PAIR,
        label="Quality",
        labels=("0", "1"),
        published=("not_equivalent", "equivalent"),
        scores=("accuracy", "f1"),
        tfds="mrpc",
    ),
    GlueTask(
        name="stsb",
        head="regression",
        folder="STS-B",
        texts=PAIR,
        label="score",
        scores=("pearson", "spearman"),
        tfds="stsb",
    ),
    GlueTask(
        name="qqp",
        folder="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        labels=("0", "1"),
        published=("not_duplicate", "duplicate"),
        scores=("accuracy", "f1"),
        tfds="qqp",
        without_header=("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        leave_out_short=True,
    ),
    GlueTask(
        name="mnli",
        folder="MNLI",
        texts=PAIR,
        keys=("premise", "hypothesis"),
        label="gold_label",
        labels=NLI,
        published=("entailment", "neutral", "contradiction"),
        scores=("accuracy",),
        tfds="mnli",
        splits=("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"),
    ),
    GlueTask(
        name="qnli",
        folder="QNLI",
        texts=("question", "sentence"),
        label="label",
        labels=("entailment", "not_entailment"),
        published=("entailment", "not_entailment"),
        scores=("accuracy",),
        tfds="qnli",
    ),
    GlueTask(
        name="rte",
        folder="RTE",
        texts=PAIR,
        label="label",
        labels=("entailment", "not_entailment"),
        published=("entailment", "not_entailment"),
        scores=("accuracy",),
        tfds="rte",
    ),
    GlueTask(
        name="wnli",
        folder="WNLI",
        texts=PAIR,
        label="label",
        labels=("0", "1"),
        published=("not_entailment", "entailment"),
        scores=("accuracy",),
        tfds="wnli",
    ),
    GlueTask(
        name="ax",
        folder="AX",
        texts=PAIR,
        keys=("premise", "hypothesis"),
        label="label",
        labels=NLI,
        published=("entailment", "neutral", "contradiction"),
        scores=("matthews",),
        tfds="ax",
        splits=("test",),
    ),
)
