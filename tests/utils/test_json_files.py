# SPDX-License-Identifier: Apache-2.0
"""The one reader of our JSON files: typed values, or one sentence that names file and key."""

from dataclasses import dataclass

import pytest

from albert_jax.config.model import AlbertConfig
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import decode_json, read_json
from albert_jax.utils.json_values import finite
from albert_jax.utils.wording import flag_names


@dataclass(frozen=True)
class Inner:
    number: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    share: float = 0.5


def decode(text: str | bytes) -> Outer:
    data = text.encode() if isinstance(text, str) else text
    return decode_json(data, Outer, name="f.json", hint="copy it again")


def test_values_become_what_they_are_said_to_be():
    expected = Outer(Inner(3, ("a", "b")), 1.0)
    assert (
        decode('{"inner": {"number": 3, "names": ["a", "b"]}, "share": 1, "new": {}}') == expected
    )
    assert decode('{"inner": {"number": 3}}').share == 0.5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `inner`"),
        ('{"inner": {"number": "3"}}', r"Expected `int`, got `str` - at `\$.inner.number`"),
        ('{"inner": {"number": 1e308}}', r"got `float` - at `\$.inner.number`"),
        ('{"inner": {"number": true}}', r"got `bool` - at `\$.inner.number`"),
        ('{"inner": {"number": 3, "names": [1]}}', r"at `\$.inner.names\[0\]`"),
        ('{"inner": {"number": 3}, "share": NaN}', "malformed"),
        ('{"inner": {"number": 3}, "share": 1e400}', "out of range"),
        (b'{"inner": {"number": 3, "names": ["\xff"]}}', "utf-8"),
        ('{"new":' * 100_000, "recursion"),
        ('{"inner": {"number": 3}} x', "malformed"),
    ],
)
def test_anything_else_is_one_sentence(text, told):
    with pytest.raises(
        UserError, match=f"^f.json is damaged or of another kind .*{told}"
    ) as raised:
        decode(text)
    assert str(raised.value).endswith("; copy it again")


def test_a_file_that_cannot_be_read_is_one_sentence_and_one_that_is_not_there_the_callers(
    tmp_path, monkeypatch
):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); copy it again"):
        read_json(tmp_path, Outer, hint="copy it again")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "x", Outer, hint="")
    (tmp_path / "x").write_text(" " * 20)
    monkeypatch.setattr("albert_jax.utils.json_files.MOST_BYTES", 19)
    with pytest.raises(UserError, match="x has 20 bytes, over 19; copy it again"):
        read_json(tmp_path / "x", Outer, hint="copy it again")


def test_what_is_no_number_is_none():
    value = {"a": [float("nan"), 1.0, {"b": float("-inf")}], "c": "x"}
    assert finite(value) == {"a": [None, 1.0, {"b": None}], "c": "x"}


def test_a_wrong_setting_in_a_file_has_the_files_name_and_that_of_its_key():
    with flag_names(), pytest.raises(UserError, match=r"^f.json: hidden_size 0 must be at least 1"):
        decode_json(b'{"hidden_size": 0}', AlbertConfig, name="f.json", hint="copy it again")
