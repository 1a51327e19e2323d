# SPDX-License-Identifier: Apache-2.0
"""What an error quotes of a file is short, whatever the file holds."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from albert_jax.utils.wording import (
    current_naming,
    first_ten,
    flag_names,
    in_short,
    name_as,
    positional,
    python_names,
    renamed,
    setting,
    shortened,
    without_secrets,
)


def test_of_many_names_ten_are_said_and_the_number_of_the_others():
    names = [f"n{i}" for i in range(200_000)]
    assert first_ten(names) == ", ".join(names[:10]) + ", and 199,990 more"
    assert first_ten(names[:10], "; ") == "; ".join(names[:10])
    assert first_ten(dict.fromkeys(names[:11])) == ", ".join(names[:10]) + ", and 1 more"
    assert first_ten([]) == ""


def test_a_name_is_cut_and_moves_no_cursor():
    assert shortened("n" * 200) == "n" * 200
    assert shortened("n" * 1_000_000) == "n" * 199 + "…"
    assert shortened("a\x1b[2J\nb\u202e") == "a\\x1b[2J\\nb\\u202e"
    assert shortened("encoder/größe ▁x") == "encoder/größe ▁x"
    assert len(first_ten(["\x1b" * 10_000] * 99)) < 10_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at https://me:a@b@host/x, and so on", "at https://host/x, and so on"),
        ("url: 'https://cdn/a?Signature=1&Key=2' (403)", "url: 'https://cdn/a' (403)"),
        ("is it @home? no: //", "is it @home? no: //"),
        ("(https://cdn/a?b=1), then", "(https://cdn/a), then"),
        ("https://cdn/a(1)?Key=2(x)y z", "https://cdn/a(1) z"),
        ("see https://cdn/a#token=1: no", "see https://cdn/a: no"),
    ],
)
def test_addresses_lose_their_secrets(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_a_setting_is_named_as_who_reads_it_writes_it() -> None:
    with flag_names():
        assert setting("max_seq_length", 512) == "--max-seq-length 512"
        assert setting("train.batch_size", 8) == "--train.batch-size 8"
        assert setting("task", "my task") == "--task 'my task'"
        assert setting("pack") == "--pack"
        assert setting("truncate", True) == "--truncate"
        assert setting("do_lower_case", False) == "--no-do-lower-case"
        assert setting("processes", 2, flag="num-processes") == "--num-processes 2"
        assert positional("dest") == "DEST"
        with python_names():  # a recipe of the command
            assert setting("pack") == "pack"
        assert setting("pack") == "--pack"
    assert setting("max_seq_length", 512) == "max_seq_length=512"
    assert setting("task", "single") == "task='single'"
    assert setting("out", Path("a")) == "out='a'"
    assert setting("pack") == "pack"
    assert setting("do_lower_case", False) == "do_lower_case=False"
    assert setting("processes", 2, flag="num-processes") == "processes=2"
    assert positional("dest") == "dest"


def test_a_thread_names_settings_as_the_one_that_hands_on_its_naming() -> None:
    with flag_names(), renamed({"text": "input"}):
        naming = current_naming()
        with ThreadPoolExecutor(1, initializer=name_as, initargs=(naming,)) as pool:
            assert pool.submit(setting, "text", 1).result() == "--input 1"
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(setting, "text", 1).result() == "text=1"


def test_two_threads_name_settings_each_its_own_way() -> None:
    """The first leaves while the second is inside, so that one value for both would stay behind."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        one, two = flag_names(), flag_names()
        first.submit(one.__enter__).result()
        assert second.submit(setting, "pack").result() == "pack"
        second.submit(two.__enter__).result()
        first.submit(one.__exit__, None, None, None).result()
        assert first.submit(setting, "pack").result() == "pack"
        assert second.submit(setting, "pack").result() == "--pack"
        assert setting("pack") == "pack"
        second.submit(two.__exit__, None, None, None).result()
        assert second.submit(setting, "pack").result() == "pack"
        assert setting("pack") == "pack"


def test_a_setting_that_is_made_of_another_has_its_name() -> None:
    with renamed({"examples.max_seq_length": "sequence", "model.vocab_size": "the model's size"}):
        assert setting("model.vocab_size") == "the model's size"
        assert setting("examples.max_seq_length", 4) == "sequence=4"
        assert setting("train.steps") == "train.steps"
        with flag_names():
            assert setting("examples.max_seq_length", 4, flag="other") == "--sequence 4"
    assert setting("examples.max_seq_length") == "examples.max_seq_length"


def test_a_digest_is_told_by_its_first_digits() -> None:
    digest = "0123456789abcdef" * 4
    assert in_short(digest) == "0123456789ab…"
    assert in_short(digest[:-1]) == repr(digest[:-1])
    assert in_short(None) == "None"
    assert in_short({"a": 1}) == "{'a': 1}"
