# SPDX-License-Identifier: Apache-2.0
"""Texts in, arrays out: any line ends, no text lost or made up, nothing half written."""

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest

from albert_jax.inference import text_files
from albert_jax.inference.text_files import check_arrays_file, given_text, read_texts, write_arrays
from albert_jax.utils.errors import UserError


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


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
        ("texts", b"a\nb\xff\n", "texts line 2 is not UTF-8 text .invalid start byte.; convert"),
        ("texts", "é".encode("latin-1"), "texts line 1 is not UTF-8 text"),
        ("texts", "ab".encode("utf-16"), "texts line 1 is not UTF-8 text"),
        ("texts", "ab\ncd".encode("utf-16-le"), "texts line 1 has a NUL character, as UTF-16"),
        ("texts", b"a\nb\0\n", "texts line 2 has a NUL character"),
        ("texts", b"\xed\xa0\x80", "texts line 1 is not UTF-8 text"),  # a lone surrogate's bytes
        ("texts.gz", b"plain", "texts.gz is a damaged gz file .Not a gzipped file"),
        ("texts.gz", gzip.compress(b"a" * 99, mtime=0)[:-9], "texts.gz is a damaged gz file"),
    ],
)
def test_what_is_no_text_is_refused(name: str, data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=told):
        read_texts(str(tmp_path / name))


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nothing cannot be read .No such file"):
        read_texts(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"cannot be read .Is a directory"):
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


# ----------------------------------------------------------------------------------------- arrays

ARRAYS = {"mask": np.arange(6).reshape(2, 3), "pooled": np.ones((2, 4), np.float32)}


def test_arrays_appear_whole_and_a_link_stays_one(tmp_path: Path) -> None:
    dest = tmp_path / "deep" / "out.npz"
    write_arrays(str(dest), ARRAYS)
    link = tmp_path / "link.npz"
    link.symlink_to(dest)
    write_arrays(str(link), {"mask": np.zeros(1)})
    assert link.is_symlink()
    with np.load(dest) as found:
        assert [*found] == ["mask"]
    assert [path.name for path in dest.parent.iterdir()] == ["out.npz"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "out.npz"
    write_arrays(str(dest), ARRAYS)
    before = dest.read_bytes()

    def full(stream, **arrays) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_files.np, "savez", full)
    with pytest.raises(UserError, match=r"out\.npz NOT written: No space left on device"):
        write_arrays(str(dest), ARRAYS)
    assert dest.read_bytes() == before
    assert [*tmp_path.iterdir()] == [dest]


def test_a_device_that_is_full_is_told(tmp_path: Path) -> None:
    (tmp_path / "full.npz").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"full\.npz NOT written: No space left"):
        write_arrays(str(tmp_path / "full.npz"), ARRAYS)


def test_a_place_that_arrays_must_not_go_to_is_refused_before_the_work(tmp_path: Path) -> None:
    source, folder = tmp_path / "texts.npz", tmp_path / "folder.npz"
    source.write_text("text")
    folder.mkdir()
    (tmp_path / "link.npz").symlink_to(source)
    os.link(source, tmp_path / "hard.npz")
    for other in ("texts.npz", "link.npz", "hard.npz", "folder.npz/../texts.npz"):
        with pytest.raises(UserError, match="is the input itself; name another place for --output"):
            check_arrays_file(str(tmp_path / other), [str(source)])
    with pytest.raises(UserError, match="is a folder; name a file"):
        check_arrays_file(str(folder), [str(source)])
    with pytest.raises(UserError, match=r"output vectors must end in \.npz"):
        check_arrays_file("vectors", [])
    check_arrays_file(str(tmp_path / "new.npz"), [str(source)])
