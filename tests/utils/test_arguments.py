# SPDX-License-Identifier: Apache-2.0
"""Arguments of the wrong kind: one sentence that names the argument, wherever they are given."""

import dataclasses
import inspect
import pickle
import pydoc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import pytest

import albert_jax
from albert_jax.config import BenchmarkConfig, EstimateConfig
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.arguments import checked, in_words, path_of, shown, texts_of, whole_number
from albert_jax.utils.errors import UserError
from tests.helpers.models import noisy_params
from tests.helpers.paths import VOCABULARY


@checked
def example(
    number: int = 1,
    share: float = 0.5,
    text: str | None = None,
    flag: bool = False,
    place: str | Path = "x",
    kind: Literal["a", "b"] = "a",
    texts: str | Iterable[str] = (),
    files: Sequence[str | Path] | Iterator[str] = (),
    table: Mapping[str, Any] | None = None,
    function: Callable[..., Any] | None = None,
    *rest: int,
    **settings: Any,
) -> dict[str, Any]:
    return locals()


@pytest.mark.parametrize(
    "given",
    [
        {"number": 3, "share": 2, "text": None, "flag": True, "place": Path("y")},
        {"share": 0.5, "kind": "b", "texts": ["a"], "files": iter(["a"])},
        {"texts": (x for x in "ab"), "files": ["a", Path("b")], "table": {1: 2}, "function": len},
        {"texts": np.array(["a", "b"]), "anything": object()},
    ],
)
def test_what_fits_passes_as_it_is(given: dict[str, Any]) -> None:
    found = example(**given)
    for name, value in given.items():
        assert found.get(name, found["settings"].get(name)) is value


def test_numbers_of_numpys_become_pythons_own() -> None:
    """Else a file of JSON that says what was asked for could not be written."""
    found = example(number=np.int8(3), share=np.float32(0.5), flag=np.True_, text=np.str_("a"))
    assert (found["number"], found["share"], found["flag"], found["text"]) == (3, 0.5, True, "a")
    assert [type(found[name]) for name in ("number", "share", "flag")] == [int, float, bool]
    assert type(example(share=np.int64(3))["share"]) is int


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"number": np.True_}, "number np.True_ must be a whole number"),
        ({"number": np.array([3])}, r"number array\(\[3\]\) must be a whole number"),
        ({"number": "3"}, "number '3' must be a whole number"),
        ({"number": 3.0}, "number 3.0 must be a whole number"),
        ({"number": True}, "number True must be a whole number"),
        ({"number": None}, "number None must be a whole number"),
        ({"share": "half"}, "share 'half' must be a number"),
        ({"share": 1j}, "share 1j must be a number"),
        ({"text": b"a"}, "text b'a' must be a string or None"),
        ({"flag": "no"}, "flag 'no' must be True or False"),
        ({"flag": 1}, "flag 1 must be True or False"),
        ({"place": b"x"}, "place b'x' must be a string or a path"),
        ({"kind": "c"}, "kind 'c' must be one of a, b"),
        ({"kind": ["a"]}, r"kind \['a'\] must be one of a, b"),
        ({"kind": np.zeros(3)}, r"kind array\(\[0., 0., 0.\]\) must be one of a, b"),
        ({"texts": 5}, "texts 5 must be a string or a list of strings"),
        ({"texts": ["a", None]}, r"texts\[1\] None must be a string"),
        ({"files": [5]}, r"files\[0\] 5 must be a string or a path"),
        ({"files": 5}, "files 5 must be a list of strings or paths or an iterator"),
        ({"table": []}, r"table \[\] must be a mapping or None"),
        ({"function": 3}, "function 3 must be a function or None"),
    ],
)
def test_what_does_not_fit_is_named_and_shown(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"^{told}$"):
        example(**given)


class Settings(TypedDict, total=False):
    long: Literal["cut", "refuse"] | None
    pack: int


def test_settings_by_name_are_checked_where_they_are_those_of_a_typed_dict() -> None:
    @checked
    def answer(**settings: Unpack[Settings]) -> dict[str, Any]:
        return {**settings}

    assert type(answer(pack=np.int64(3), long=None)["pack"]) is int
    with pytest.raises(UserError, match=r"^pack '3' must be a whole number$"):
        answer(pack="3")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^long 'x' must be one of cut, refuse or None$"):
        answer(long="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"answer\(\) got an unexpected keyword argument 'lonng'"):
        answer(lonng="cut")  # type: ignore[call-arg]


def test_what_may_hold_anything_is_a_list() -> None:
    @checked
    def answer(inputs: str | Sequence[Any] | Iterable[str | Sequence[Any]]) -> None: ...

    with pytest.raises(
        UserError, match=r"^inputs 5 must be a string or a list, or a list of these$"
    ):
        answer(5)  # type: ignore[arg-type]


def test_more_than_two_types_are_listed_with_commas() -> None:
    def said(hint: object) -> str:
        return in_words(hint)

    assert said(str | list[str] | None) == "a string, a list of strings or None"
    assert said(str | Path) == "a string or a path"
    assert said(Sequence[str | Path] | str | Path) == "a string or a path, or a list of these"
    one = str | Sequence[Any] | Mapping[str, Any]
    assert said(one | Iterable[one]) == "a string, a list or a mapping, or a list of these"


def test_calls_that_python_itself_refuses_are_left_to_it() -> None:
    @checked
    def two(a: int, b: int) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        two(1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        two(1, 2, c=3)


def test_a_long_value_is_shown_short_and_on_one_line() -> None:
    assert len(shown("x" * 10_000)) < 100
    assert "\n" not in shown(np.zeros((50, 50)))


@pytest.mark.parametrize(
    "value", [["a", "b"], ("a", "b"), np.array(["a", "b"]), {"a": 1, "b": 2}.keys()]
)
def test_texts_may_come_in_any_order_keeping_kind(value: Any) -> None:
    if isinstance(value, type({}.keys())):
        value = iter(value)
    assert texts_of(value, "texts") == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (5, "texts 5 must be a string or a list of strings"),
        (b"ab", "texts b'ab' must be"),
        ({"a": 1}, "texts {'a': 1} must be"),  # of whose keys and values none is meant for sure
        ({"a"}, "texts {'a'} must be"),  # it has no order
        (np.array("a"), "must be a string or a list"),
        (np.array([["a", "b"]]), "must be a string or a list"),
        (["a", ["b"]], r"texts\[1\] \['b'\] must be a string"),
        (["a", float("nan")], r"texts\[1\] nan must be a string"),  # a table's empty cell
    ],
)
def test_what_holds_no_texts_is_refused(value: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        texts_of(value, "texts")


def test_numbers_and_paths_out_of_range_are_refused(tmp_path: Path) -> None:
    assert whole_number(np.int64(3), "n", 1, 3) == 3
    with pytest.raises(UserError, match="n '3' must be a whole number, 1 to 3"):
        whole_number("3", "n", 1, 3)
    with pytest.raises(UserError, match="n 4 must be between 1 and 3"):
        whole_number(4, "n", 1, 3)
    assert path_of(str(tmp_path), "p") == path_of(tmp_path, "p") == tmp_path
    for value, told in (
        (5, "p 5 must be a string or a path"),
        (b"x", "p b'x' must be"),
        ("", "p '' is no path"),
        ("a\0b", "is no path"),
        ("x" * 5000, "cannot be read .File name too long"),
        ("\ud800", "cannot be read .*surrogates not allowed"),
    ):
        with pytest.raises(UserError, match=told):
            path_of(value, "p")


# ---------------------------------------------------------------------------- the public functions


def _public() -> dict[str, Any]:
    """Name -> function or method, of everything that `albert_jax.__all__` offers."""
    found = {}
    for name in albert_jax.__all__:
        value = getattr(albert_jax, name)
        if inspect.isfunction(value):
            found[name] = value
        elif name in ("Albert", "Tokenizer"):
            for method, function in vars(value).items():
                if isinstance(function, classmethod):
                    function = function.__func__
                if inspect.isfunction(function) and not method.startswith("_"):
                    found[f"{name}.{method}"] = function
    return found


PUBLIC = _public()
# What has no declared kind is checked by value: arrays of ids, tested in test_id_arrays.
FREE = {"self", "cls", "input_ids", "input_mask", "segment_ids", "masked_lm_positions"}
PARAMETERS = [
    (name, parameter)
    for name, function in PUBLIC.items()
    for parameter, declared in inspect.signature(function).parameters.items()
    if parameter not in FREE and declared.kind != declared.VAR_KEYWORD
]


@pytest.fixture(scope="module")
def selves() -> dict[str, Any]:
    config = albert_jax.AlbertConfig(
        vocab_size=8000,
        embedding_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    tokenizer = Tokenizer.load(VOCABULARY)
    return {
        "Albert": albert_jax.Albert(config, noisy_params(config), tokenizer),
        "Tokenizer": tokenizer,
    }


def test_all_of_the_public_functions_are_looked_at() -> None:
    assert {"load", "convert", "evaluate", "predict", "prepare", "verify"} <= PUBLIC.keys()
    assert {"Albert.fill_mask", "Albert.forward", "Tokenizer.load", "load_recipe"} <= PUBLIC.keys()
    assert len(PARAMETERS) > 60


@pytest.mark.parametrize("value", [object(), 1j])
@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_every_argument_of_the_wrong_kind_is_one_sentence(
    name: str, parameter: str, value: Any, selves: dict[str, Any]
) -> None:
    function = PUBLIC[name]
    owner, _, method = name.rpartition(".")
    if owner:
        function = getattr(Tokenizer if method == "load" else selves[owner], method)
    settings = {
        "benchmark": BenchmarkConfig(),
        "describe_plan": albert_jax.PretrainConfig(),
        "estimate": EstimateConfig(),
        "find_batch": EstimateConfig(),
        "sweep": BenchmarkConfig(),
        "finetune": albert_jax.FinetuneConfig(),
        "pretrain": albert_jax.PretrainConfig(),
    }
    required = {
        other: settings.get(name, "x")
        for other, declared in inspect.signature(function).parameters.items()
        if declared.default is declared.empty and declared.kind != declared.VAR_KEYWORD
    }
    with pytest.raises(UserError, match=rf"^{parameter} .* must be "):
        function(**(required | {parameter: value}))


@pytest.mark.parametrize(
    "kind",
    [x for x in map(albert_jax.__dict__.get, albert_jax.__all__) if dataclasses.is_dataclass(x)],
)
def test_every_setting_of_the_wrong_kind_is_one_sentence(kind: Any) -> None:
    for field in dataclasses.fields(kind):
        for value in (object(), 1j, [object()]):
            with pytest.raises(UserError, match=rf"{field.name} .* must be "):
                kind(**{field.name: value})


@pytest.mark.parametrize("name", [n for n in albert_jax.__all__ if n not in ("MODELS", "TASKS")])
def test_help_of_every_public_name_is_readable(name: str) -> None:
    """A default that is a table would be printed whole; many settings take 40 characters each."""
    value = getattr(albert_jax, name)
    page = pydoc.render_doc(value, renderer=pydoc.plaintext)
    settings = len(dataclasses.fields(value)) if dataclasses.is_dataclass(value) else 0
    assert max(map(len, page.splitlines())) < max(1000, 40 * settings)


def test_public_functions_can_be_sent_to_another_process() -> None:
    for name in ("convert", "load", "prepare", "load_recipe", "verify"):
        assert pickle.loads(pickle.dumps(getattr(albert_jax, name))) is getattr(albert_jax, name)
