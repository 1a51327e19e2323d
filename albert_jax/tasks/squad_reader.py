# SPDX-License-Identifier: Apache-2.0
"""Read SQuAD's JSON, v1.1 and v2.0; errors name what is wrong in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from albert_jax.tasks.base import RawExample
from albert_jax.tasks.tables import hub_rows, parse_json, tfds_rows
from albert_jax.tasks.values import json_shown
from albert_jax.utils.errors import UserError
from albert_jax.utils.streams import say
from albert_jax.utils.text_files import read_text

SPLITS = ("train", "dev", "test")
_NAMED = 5  # of many questions, how many a message names


def find_squad_file(data: str | Path, split: str, version: str) -> Path:
    """Return the file of a split in `data`, which may be the file itself.

    In a folder, it is train-v1.1.json (by split and version), or the only file whose name begins
    like this, or one of these with .gz. Raises UserError for no file, for several, and for a file
    of another split.
    """
    if split not in SPLITS:
        raise UserError(f"SQuAD has no split {split!r}; known: {', '.join(SPLITS)}")
    path = Path(data)
    if path.is_file():
        if re.split(r"[-_.]", path.name)[0] in {*SPLITS} - {split}:
            raise UserError(
                f"{path} is not the {split} split by its name; give the folder that holds that, "
                "or name the split"
            )
        return path
    wanted = f"{split}-{version}.json"
    if not path.is_dir():
        raise UserError(
            f"{path} does not exist; give a SQuAD JSON file or the folder that holds {wanted}"
        )
    for named in (path / wanted, path / f"{wanted}.gz"):
        if named.is_file():
            return named
    ends = (".json", ".json.gz")
    found = sorted(x for x in path.glob(f"{split}-{version}*") if x.name.endswith(ends))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{path} holds {names}; name one {wanted}, or give one as the file")
    raise UserError(
        f"{path} holds no {wanted}; it is at https://rajpurkar.github.io/SQuAD-explorer/"
    )


def read_squad(path: Path, *, is_training: bool) -> list[RawExample]:
    """Return the questions of a SQuAD file, in its order.

    `texts` are question and context. `label` is the first answer, "" if there is none, and None
    throughout a file without answers. `extra` has `context`, `answers` (all texts) and `answer`,
    the first that stands in the context where the file says, with its start. If a question has
    answers but none at its place, this is a UserError if `is_training`, else a line on stderr,
    because scores ignore places. Either way these questions are counted and named.
    """
    return _examples(str(path), list(_questions(path)), is_training)


def read_tfds(split: str, version: str, *, is_training: bool) -> list[RawExample]:
    """Return the questions of TFDS's squad/v1.1 or squad/v2.0, as `read_squad` does."""
    name = f"squad/{version}"
    rows = tfds_rows(name, split.replace("dev", "validation"))
    questions = [
        (str(row["context"]), {**row, "answers": _tfds_answers(row["answers"])}, place)
        for place, row in rows
    ]
    return _examples(f"TFDS {name}", questions, is_training)


def read_hub(data: str | Path, split: str, *, is_training: bool) -> list[RawExample]:
    """Return the questions of a data set of the hub, as `read_squad` does.

    Its rows are questions with `context` and `answers`, an object of the lists `text` and
    `answer_start`, or a list of such objects.
    """
    questions = [
        (field(row, "context", str, place), {**row, "answers": _row_answers(row, place)}, place)
        for place, row in hub_rows(data, split, ("context", "question", "id"))
    ]
    return _examples(f"{data} {split}", questions, is_training)


def _row_answers(row: Mapping[str, Any], place: str) -> list[Any]:
    answers = row.get("answers")
    if answers is None or isinstance(answers, list):
        return answers or []
    texts, starts = (field(answers, name, list, place) for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise UserError(
            f"{place}: 'answers' has {len(texts)} texts and {len(starts)} starts; give as many"
        )
    return [{"text": x, "answer_start": n} for x, n in zip(texts, starts, strict=True)]


def _tfds_answers(answers: Mapping[str, Any]) -> list[dict[str, str | int]]:
    return [
        {"text": t.decode() if isinstance(t, bytes) else t, "answer_start": int(start)}
        for t, start in zip(answers["text"], answers["answer_start"], strict=True)
    ]


Question = tuple[str, Any, str]  # context, question with its answers, and its place


def _examples(name: str, questions: Sequence[Question], is_training: bool) -> list[RawExample]:
    if not questions:
        raise UserError(f"{name} holds no question; give a SQuAD file, train-v1.1.json for one")
    # The test files have "answers": [] throughout, which does not mean that there is no answer.
    is_labelled = any(
        isinstance(qa, Mapping) and (qa.get("answers") or qa.get("is_impossible"))
        for _, qa, _ in questions
    )
    if is_training and not is_labelled:
        raise UserError(f"{name} has no answers to train on; give train-v1.1.json or the like")
    examples: list[RawExample] = []
    seen = set()
    for context, qa, place in questions:
        examples.append(_example(context, qa, place, is_labelled))
        if examples[-1].id in seen:
            raise UserError(
                f"{place}: a question before it has the id {examples[-1].id!r} too; give each its "
                "own"
            )
        seen.add(examples[-1].id)
    misplaced = [e.id for e in examples if e.extra["answers"] and e.extra["answer"] is None]
    if misplaced:
        message = (
            f"{name}: {len(misplaced)} of {len(examples)} questions have no answer at its offset: "
            f"{some(misplaced)}; context[answer_start:] must begin with the answer's text"
        )
        if is_training:
            raise UserError(message)
        say(f"{message} (scores are not concerned)")
    return examples


def some(names: list[str]) -> str:
    """Return the first few of many names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _questions(path: Path) -> Iterator[Question]:
    content = parse_json(read_text(path), str(path))
    for a, article in enumerate(field(content, "data", list, str(path))):
        place = f"{path}: data[{a}]"
        for p, paragraph in enumerate(field(article, "paragraphs", list, place)):
            here = f"{place}.paragraphs[{p}]"
            context = field(paragraph, "context", str, here)
            for q, qa in enumerate(field(paragraph, "qas", list, here)):
                yield context, qa, f"{here}.qas[{q}]"


def field(record: Any, name: str, kind: type, place: str) -> Any:
    """Return `record[name]`; raises UserError if it is missing or of another type."""
    names = {str: "a string", list: "a list", int: "a whole number", bool: "true or false"}
    if not isinstance(record, Mapping):
        raise UserError(f"{place} is not an object with {name!r}, as SQuAD's format has it")
    value = record.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        what = "is missing" if name not in record else f"is {json_shown(value)}"
        raise UserError(f"{place}: {name!r} {what}; SQuAD's format has {names[kind]} there")
    return value


def _example(context: str, qa: Any, place: str, is_labelled: bool) -> RawExample:
    question = field(qa, "question", str, place)
    identity = field(qa, "id", str, place)
    answers = [
        (field(answer, "text", str, place), field(answer, "answer_start", int, place))
        for answer in (field(qa, "answers", list, place) if "answers" in qa else [])
    ]
    has_flag = "is_impossible" in qa  # absent in v1.1
    is_impossible = field(qa, "is_impossible", bool, place) if has_flag else not answers
    if is_labelled and is_impossible == bool(answers):
        has = "answers" if answers else "no answers"
        raise UserError(f"{place}: {identity} has {has} and is_impossible {is_impossible}")
    placed = (x for x in answers if x[1] >= 0 and context.startswith(x[0], x[1]))
    extra = {
        "context": context,
        "answers": tuple(text for text, _ in answers),
        "answer": next(placed, None),
    }
    label = answers[0][0] if answers else "" if is_labelled else None
    return RawExample(identity, (question, context), label, extra, place)
