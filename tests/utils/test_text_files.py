# SPDX-License-Identifier: Apache-2.0
"""Texts from files, the command line and standard input: any line ends, no text lost or made up."""

import gzip
import io
from pathlib import Path

import pytest

from albert_jax.utils.errors import UserError
from albert_jax.utils.text_files import given_text, read_texts


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\rtwo\r", ["one", "two"]),
        (b"\xef\xbb\xbfone\n", ["one"]),
        (b"\n", [""]),
        (b"one\n\n\ntwo\n\n", ["one", "", "", "two", ""]),  # line n is text n
        (b" one \t\n", [" one \t"]),
        ("é\u2028\x85\x0b\x0c\x1c日".encode(), ["é\u2028\x85\x0b\x0c\x1c日"]),  # no ends of lines
    ],
)
def test_each_line_is_a_text(
    data: bytes, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("texts", data), ("texts.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        assert read_texts(str(tmp_path / name)) == texts
    monkeypatch.setattr("sys.stdin", Stdin(data))
    assert read_texts("-") == texts


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("texts", b"", "texts is empty; give a text a line"),
        ("texts.gz", gzip.compress(b"", mtime=0), "texts.gz is empty"),
        ("texts", b"a\nb\xff\n", r"texts row 2: invalid UTF-8 at byte 3 .0xff.; convert"),
        ("texts", "é".encode("latin-1"), "texts row 1: invalid UTF-8 at byte 0"),
        ("texts", "ab".encode("utf-16"), "texts is UTF-16 text, not UTF-8 text; convert it: iconv"),
        ("texts", "ab\ncd".encode("utf-16-le"), "texts row 1 has a NUL byte at byte 1; remove it"),
        ("texts", b"a\nb\0\n", "texts row 2 has a NUL byte at byte 3"),
        (
            "texts",
            b"\xed\xa0\x80",
            "texts row 1: invalid UTF-8 at byte 0",
        ),  # a lone surrogate's bytes
        ("texts.gz", gzip.compress(b"a" * 99, mtime=0)[:-9], "texts.gz is a damaged gz file"),
    ],
)
def test_what_is_no_text_is_refused(name: str, data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=told):
        read_texts(str(tmp_path / name))


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nothing cannot be read: No such file"):
        read_texts(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_texts(str(tmp_path))
    monkeypatch.setattr("sys.stdin", Stdin(b""))
    with pytest.raises(UserError, match="standard input is empty"):
        read_texts("-")


def test_a_text_of_the_command_line_is_the_utf8_that_was_typed() -> None:
    assert given_text("é日") == "é日"
    # What Python makes of UTF-8 in a locale of ASCII.
    assert given_text("é日".encode().decode("ascii", "surrogateescape")) == "é日"
    for text in ("\udcff", "\ud800"):
        with pytest.raises(UserError, match="is not UTF-8 text"):
            given_text(text)


@pytest.mark.parametrize("name", ["reviews.csv", "reviews.TSV", "reviews.jsonl.gz"])
def test_a_table_is_not_read_as_texts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text,label\ngood,1\n")
    with pytest.raises(UserError, match="file by its name, whose lines are no texts; give a file"):
        read_texts(str(tmp_path / name))
