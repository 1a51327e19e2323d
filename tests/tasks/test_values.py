# SPDX-License-Identifier: Apache-2.0
"""What a field of task data may hold: every reader against every kind of value, each of which is a
valid example or one sentence that names the row and the field."""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from albert_jax.inference import predict
from albert_jax.tasks import TASKS, RawExample, glue
from albert_jax.tasks.squad_reader import read_squad
from albert_jax.utils.errors import UserError

VALUES = [
    *(None, True, False, 0, 2, -1, 1.0, 1.5, 10**40, math.nan, math.inf, -math.inf),
    *("", "  ", "x", " x ", "1", "nan", "1e400", "1_0", "\u0301", "1e30"),
    *([], ["a"], ["a", "b", "c"], [None], [""], [3], [["a"]], {}, {"a": 1}),
]


# ------------------------------------------------------------------------- what a value may be
# Said anew, not by the readers' own functions.


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def is_text_or_blank(value: Any) -> bool:
    return isinstance(value, str)


def is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip() == "")


def is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value % 1 == 0


def is_class(value: Any) -> bool:
    return is_none(value) or isinstance(value, str) or is_whole(value)


def is_choice_of_three(value: Any) -> bool:
    return is_none(value) or (not isinstance(value, bool) and value in (0, 1, 2, "1"))


def is_entailment_or_not(value: Any) -> bool:
    """By name or, as the published data sets, 0 or 1; -1 is none there."""
    return is_none(value) or (not isinstance(value, bool) and value in (0, 1, -1, "1"))


def is_score(value: Any) -> bool:
    if is_none(value):
        return True
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return abs(value) <= 1e18
    return value == "1"


def is_id(value: Any) -> bool:
    return value is None or isinstance(value, str) or is_whole(value)


def is_three_options(value: Any) -> bool:
    return value == ["a", "b", "c"]


def is_one_word(value: Any) -> bool:
    return value == ["a"]


def is_one_tag(value: Any) -> bool:
    return value is None or value in (["a"], [3])


def is_anything(value: Any) -> bool:
    return True


# --------------------------------------------------------------------------------- the readers
# A reader makes examples of a task's records, the second of which is the odd one.

Reader = Callable[[str, list[dict[str, Any]], Path], Iterable[RawExample]]


def from_json(task: str, records: list[dict[str, Any]], folder: Path) -> Iterable[RawExample]:
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    return TASKS[task].examples("train", folder)


def from_table(kind: str) -> Reader:
    def read(task: str, records: list[dict[str, Any]], folder: Path) -> Iterable[RawExample]:
        text = io.StringIO()
        rows = [list(records[0]), *([*record.values()] for record in records)]
        if kind == "csv":
            csv.writer(text).writerows(rows)
        else:
            text.write("".join("\t".join(row) + "\n" for row in rows))
        (folder / f"train.{kind}").write_text(text.getvalue())
        return TASKS[task].examples("train", folder)

    return read


def from_tfds(task: str, records: list[dict[str, Any]], folder: Path) -> Iterable[RawExample]:
    def rows(name: str, split: str):
        # Places that name a row as a file's do, so that one test is for all.
        return ((f"TFDS {name} {split} row {i}", x) for i, x in enumerate(records, start=1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glue, "tfds_rows", rows)
        return TASKS[task].examples("train", "tfds")


def from_predict(task: str, records: list[dict[str, Any]], folder: Path) -> Iterable[RawExample]:
    path = folder / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    chunks = predict._chunks(str(path), TASKS[task], skip_bad=False)
    return _asked(task, itertools.chain.from_iterable(chunks))


def from_python(task: str, records: list[Any], folder: Path) -> Iterable[RawExample]:
    rows = ((f"row {i}", record) for i, record in enumerate(records, start=1))
    return _asked(task, rows)


def _asked(task: str, rows: Iterable[tuple[str, Any]]) -> list[RawExample]:
    examples = []
    for number, (place, record) in enumerate(rows):
        predict._id_of(number, place, record)
        examples.append(predict._example(TASKS[task], number, place, record))
    return examples


FILES = {"jsonl": from_json}
TABLES = {"csv": from_table("csv"), "tsv": from_table("tsv")}
ASKED = {"predict": from_predict, "python": from_python}
PUBLISHED = {"jsonl": from_json, "tfds": from_tfds}

CHOICES = {"passage": "p", "question": "q", "options": ["a", "b", "c"], "label": 1}
PAIR = {"sentence1": "a", "sentence2": "b"}
RACE = {"article": "a", "question": "q", "options": ["a", "b", "c", "d"], "answer": "A"}
ANSWERED = {"question": "q", "context": "c", "answers": []}

# Task, readers, a good record, and of each field what it may hold.
CASES: list[tuple[str, dict[str, Reader], dict[str, Any], dict[str, Callable[[Any], bool]]]] = [
    ("single", FILES | TABLES, {"text": "a", "label": "1"}, {"text": is_text, "label": is_class}),
    ("single", FILES, {"text": "a", "label": "1", "id": "i"}, {"id": is_id}),
    (
        "pair",
        FILES | TABLES,
        {"text_a": "a", "text_b": "b", "label": "1"},
        {"text_a": is_text, "text_b": is_text, "label": is_class},
    ),
    (
        "regression",
        FILES | TABLES,
        {"text": "a", "label": "1"},
        {"text": is_text, "label": is_score},
    ),
    (
        "multiple-choice",
        FILES,
        CHOICES,
        {
            "passage": is_text_or_blank,
            "question": is_text,
            "options": is_three_options,
            "label": is_choice_of_three,
        },
    ),
    (
        "token-classification",
        FILES,
        {"words": ["w"], "tags": ["O"]},
        {"words": is_one_word, "tags": is_one_tag},
    ),
    (
        "rte",
        PUBLISHED,
        PAIR | {"label": "entailment"},
        {
            "sentence1": is_text_or_blank,
            "sentence2": is_text_or_blank,
            "label": is_entailment_or_not,
        },
    ),
    ("sst2", PUBLISHED, {"sentence": "a", "label": 1}, {"label": is_entailment_or_not}),
    (
        "stsb",
        PUBLISHED,
        PAIR | {"label": 2.5},
        {"sentence1": is_text_or_blank, "label": is_score},
    ),
    (
        "rte",
        ASKED,
        PAIR | {"label": "entailment", "id": "i"},
        {"sentence1": is_text, "sentence2": is_text, "label": is_anything, "id": is_id},
    ),
    ("stsb", ASKED, PAIR | {"score": 1.0}, {"sentence1": is_text, "score": is_anything}),
    ("single", ASKED, {"text": "a", "label": 1}, {"text": is_text, "label": is_anything}),
    ("regression", ASKED, {"text": "a", "label": 1}, {"text": is_text, "label": is_anything}),
    (
        "token-classification",
        ASKED,
        {"words": ["w"], "tags": ["O"]},
        {"words": lambda x: is_one_word(x) or x == ["a", "b", "c"], "tags": is_anything},
    ),
    (
        "multiple-choice",
        ASKED,
        CHOICES,
        {
            "passage": is_text_or_blank,
            "question": is_text,
            "options": is_three_options,
            "label": is_anything,
        },
    ),
    (
        "race",
        ASKED,
        RACE,
        {
            "article": is_text,
            "question": is_text,
            "options": lambda value: False,
            "answer": is_anything,
        },
    ),
    (
        "squad2",
        ASKED,
        ANSWERED,
        {"question": is_text, "context": is_text_or_blank, "answers": is_anything},
    ),
]


def fault_of(read: Callable[[], list[RawExample]], is_valid: bool, *wanted: str) -> str | None:
    """What is wrong with an outcome: a valid value gives examples of texts, another one sentence in
    which all of `wanted` stand."""
    try:
        examples = read()
    except UserError as error:
        if is_valid:
            return f"is refused: {error}"
        said = str(error)
        missing = [word for word in wanted if word not in said]
        return f"is told without {missing}: {said}" if missing or "\n" in said else None
    if not is_valid:
        return f"is taken for {examples}"
    texts = [text for example in examples for text in example.texts]
    return None if all(isinstance(text, str) for text in texts) else f"makes {texts}"


def faults(folder: Path, check: Callable[[Any, Path], str | None], values: list) -> list[str]:
    """The faults of all values, each in a folder of its own."""
    found = []
    for number, value in enumerate(values):
        own = folder / str(number)
        own.mkdir()
        if fault := check(value, own):
            found.append(f"{value!r} {fault}")
    return found


@pytest.mark.parametrize(
    ("task", "reader", "record", "field", "is_valid"),
    [
        pytest.param(task, read, record, field, rule, id=f"{task}-{name}-{field}")
        for task, readers, record, rules in CASES
        for name, read in readers.items()
        for field, rule in rules.items()
    ],
)
def test_a_value_is_an_example_or_a_sentence_with_row_and_field(
    tmp_path, task, reader, record, field, is_valid
):
    is_table = reader in TABLES.values()  # whose cells are strings, and whose row 1 is the header
    values = [x for x in VALUES if isinstance(x, str)] if is_table else VALUES

    def check(value: Any, folder: Path) -> str | None:
        records = [dict(record), record | {field: value}, dict(record)]
        for number, each in enumerate(records):
            if each.get("id") == "i":
                each["id"] = f"i{number}"
        return fault_of(
            lambda: list(reader(task, records, folder)),
            is_valid(value),
            "row 3" if is_table else "row 2",
            field,
        )

    assert not faults(tmp_path, check, values)


@pytest.mark.parametrize(
    ("value", "label"),
    [(" x ", "x"), (2, "2"), (1.0, "1"), (10**40, str(10**40)), ("01", "01"), ("", None)],
)
def test_a_class_is_a_string_without_blanks_or_a_whole_number(tmp_path, value, label):
    (example,) = from_json("single", [{"text": "a", "label": value}], tmp_path)
    assert example.label == label


def test_several_labels_are_refused_by_name(tmp_path):
    records = [{"text": "a", "label": "x"}, {"text": "b", "label": ["x", "y"]}]
    with pytest.raises(UserError, match=r"row 2: 'label' is the list .* task='multi-label'"):
        from_json("single", records, tmp_path)


@pytest.mark.parametrize("literal", ["1e400", "-1e400", "NaN", "Infinity", '"inf"', "1e19"])
@pytest.mark.parametrize("task", ["regression", "stsb"])
def test_a_score_is_finite_and_its_square_too(tmp_path, task, literal):
    good = {"regression": {"text": "a"}, "stsb": PAIR}[task]
    lines = [json.dumps(good | {"label": 1}), json.dumps(good | {"label": 0})[:-2] + literal + "}"]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        UserError, match=r"row 2: 'label' is .*; expected (a finite number|at most)"
    ):
        TASKS[task].examples("train", tmp_path)


@pytest.mark.parametrize("record", ["a text", None, 3, ["text"], b"x"])
def test_a_record_that_is_no_mapping_is_named_with_what_one_is(tmp_path, record):
    with pytest.raises(UserError, match=r"row 2 is .*; give a mapping of the task's texts"):
        from_python("single", [{"text": "a"}, record], tmp_path)


# ------------------------------------------------------------------------------ RACE and SQuAD

RACE_FILE = {
    "id": "middle4.txt",
    "article": "a",
    "questions": ["q", "r"],
    "options": [["a", "b", "c", "d"]] * 2,
    "answers": ["A", "B"],
}
RACE_RULES: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: is_id(value),
    "article": is_text_or_blank,
    "questions": lambda value: False,
    "options": lambda value: False,
    "answers": lambda value: value in (None, []),
}


def race_examples(folder: Path, **changes: Any) -> list[RawExample]:
    file = folder / "dev" / "middle" / "4.txt"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(RACE_FILE | changes))
    return TASKS["race-middle"].examples("dev", folder)


@pytest.mark.parametrize("key", RACE_RULES)
def test_a_key_of_race_holds_what_it_should_or_is_named(tmp_path, key):
    def check(value: Any, folder: Path) -> str | None:
        is_valid = RACE_RULES[key](value)
        return fault_of(lambda: race_examples(folder, **{key: value}), is_valid, "4.txt", key)

    assert not faults(tmp_path, check, VALUES)


@pytest.mark.parametrize("key", ["questions", "options", "answers"])
def test_what_a_list_of_race_holds_is_looked_at_too(tmp_path, key):
    def check(value: Any, folder: Path) -> str | None:
        values = [RACE_FILE[key][0], value]
        is_valid = {
            "questions": is_text_or_blank,
            "options": lambda x: False,
            "answers": is_none,
        }[key](value)
        read = lambda: race_examples(folder, **{key: values})  # noqa: E731
        return fault_of(read, is_valid, "question 2" if key != "questions" else "", f"{key}[1]")

    assert not faults(tmp_path, check, VALUES)


def squad_file(**changes: Any) -> dict[str, Any]:
    """A file of one question, in which a key, wherever it stands, holds something else."""

    def changed(record: dict[str, Any]) -> dict[str, Any]:
        return {key: changes.get(key, value) for key, value in record.items()}

    answer = changed({"text": "Alps", "answer_start": 7})
    question = {"id": "q", "question": "Where?", "answers": [answer], "is_impossible": False}
    paragraph = {"context": "In the Alps.", "qas": [changed(question)]}
    return changed({"data": [changed({"title": "t", "paragraphs": [changed(paragraph)]})]})


SQUAD_RULES: dict[str, Callable[[Any], bool]] = {
    "data": lambda value: False,
    "paragraphs": lambda value: False,
    "context": is_text_or_blank,
    "qas": lambda value: False,
    "id": is_text_or_blank,
    "question": is_text_or_blank,
    "answers": lambda value: value == [],  # throughout: a file for prediction
    "text": is_text_or_blank,
    "answer_start": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "is_impossible": lambda value: value is False,
}


@pytest.mark.parametrize("key", SQUAD_RULES)
def test_a_key_of_squad_holds_what_it_should_or_is_named(tmp_path, key):
    # An item that is no object is named by the key that it lacks; an empty list has no item.
    lacking = {"data": "paragraphs", "paragraphs": "context", "qas": "question", "answers": "text"}

    def check(value: Any, folder: Path) -> str | None:
        path = folder / "dev-v2.0.json"
        path.write_text(json.dumps(squad_file(**{key: value})))
        word = key
        if key in lacking and isinstance(value, list):
            word = lacking[key] if value else "no question"
        return fault_of(
            lambda: read_squad(path, is_training=False), SQUAD_RULES[key](value), str(path), word
        )

    assert not faults(tmp_path, check, VALUES)
