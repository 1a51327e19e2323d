# SPDX-License-Identifier: Apache-2.0
"""Which columns an error proposes for the texts and the label."""

import pytest

from albert_jax.tasks import find_task
from albert_jax.tasks.guessed_columns import advice, of_records
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import flag_names


@pytest.mark.parametrize(
    ("columns", "task", "proposed"),
    [
        (["review", "stars"], "single", "--texts review --label stars"),
        (["Review Text", "raw", "★ rating"], "single", "--texts 'Review Text' --label '★ rating'"),
        (["id", "abstract", "label"], "single", "--texts abstract"),
        (["sentence", "answer"], "single", "--texts sentence --label answer"),
        (["premise", "hypothesis", "label"], "pair", "--texts premise hypothesis"),
        (["Question", "Answer", "class"], "pair", "--texts Question Answer --label class"),
        (["tokens", "ner_tags"], "token-classification", "--texts tokens --label ner_tags"),
        (["text_a", "text_b", "score"], "pair-regression", "--texts text_a text_b --label score"),
        # Two that may be meant, and none: nothing is proposed.
        (["review", "comment", "label"], "single", None),
        (["a", "b", "c"], "single", None),
        (["\x1b[31mtext", "label"], "single", None),
        (["--text", "label"], "single", None),
        (["a", "b", "c", "d"], "pair", None),
        (["passage", "question", "options"], "multiple-choice", None),
    ],
)
def test_columns_are_proposed_where_only_some_can_be_meant(columns, task, proposed) -> None:
    chosen = find_task(task)
    with flag_names():
        said = advice(
            columns,
            texts=chosen.texts,
            label=chosen.label,
            of_words=chosen.head == "token_classification",
            is_asked=True,
        )
    assert said == "; name its columns with --texts and --label" + (
        f", as {proposed}" if proposed else ""
    )


@pytest.mark.parametrize(
    ("columns", "texts", "told"),
    [
        (["review"], ["text"], "; rename 'review' to 'text'"),
        (["text_a", "text_b"], ["text_a", "b"], "; rename 'text_b' to 'b'"),
        (
            ["premise", "hypothesis"],
            ["text_a", "text_b"],
            "; rename 'premise' to 'text_a' and 'hypothesis' to 'text_b'",
        ),
        (["a", "b", "c"], ["text"], ""),
    ],
)
def test_a_record_of_python_is_told_to_rename_a_key(columns, texts, told) -> None:
    with of_records():
        assert advice(columns, texts=texts, label="label", of_words=False, is_asked=False) == told


def test_reading_names_the_guess_in_its_error(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("review,stars\nthe list,4\n")
    told = r"'label': expected .* as texts=\('review',\), label='stars'$"
    with pytest.raises(UserError, match=told):
        find_task("single").examples("train", tmp_path)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.jsonl").write_text('{"review": "the list", "stars": 4}\n')
    with flag_names(), pytest.raises(UserError, match=r"--texts review --label stars$"):
        find_task("single").examples("train", tmp_path)


def test_a_file_without_a_header_or_with_another_divider_is_said_to_be_one(tmp_path) -> None:
    task = find_task("single")
    for name, content, told in (
        (
            "dev.csv",
            "a good car\na bad car\n",
            "no header, write one above it, as text,label; else",
        ),
        ("train.csv", "text;label\na car;good\n", "columns seem to be divided by ';'"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=told) as error:
            task.examples(name[:-4], tmp_path)
        assert ", as texts" not in str(error.value)
    # predict reads any columns, and asks for them row by row.
    with pytest.raises(UserError, match="no header, write one above it, as text; else"):
        task.from_record({"a good car": "a bad car"}, 0, "row 2")
    with pytest.raises(UserError, match="columns seem to be divided by ';'"):
        task.from_record({"text;label": "a car;good"}, 0, "row 2")


def test_other_columns_are_not_proposed_when_rows_before_have_the_tasks(tmp_path) -> None:
    (tmp_path / "train.jsonl").write_text(
        '{"text": "the list", "label": 4}\n{"txt": "a", "label": 1}'
    )
    told = r"row 2 lacks 'text': expected 'text', 'label'; found 'txt', 'label'$"
    with pytest.raises(UserError, match=told):
        find_task("single").examples("train", tmp_path)
    with pytest.raises(UserError, match=r"row 2 lacks 'text': expected 'text'; found 'txt'$"):
        find_task("single").from_record({"txt": "a"}, 1, "row 2")
    with of_records(), pytest.raises(UserError, match=r"found 'txt'; rename 'txt' to 'text'$"):
        find_task("single").from_record({"txt": "a"}, 1, "row 2")
