# SPDX-License-Identifier: Apache-2.0
"""Which columns an error proposes for the texts and the label."""

import pytest

from albert_jax.tasks import find_task
from albert_jax.tasks.guessed_columns import advice
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import python_names


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
def test_python_is_told_to_rename_a_key(columns, texts, told) -> None:
    with python_names():
        assert advice(columns, texts=texts, label="label", of_words=False, is_asked=False) == told


def test_reading_names_the_guess_in_its_error(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("review,stars\nthe list,4\n")
    with pytest.raises(UserError, match=r"'label': expected .* as --texts review --label stars$"):
        find_task("single").examples("train", tmp_path)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.jsonl").write_text('{"review": "the list", "stars": 4}\n')
    with pytest.raises(UserError, match=r"--texts review --label stars$"):
        find_task("single").examples("train", tmp_path)
