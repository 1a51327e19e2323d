# SPDX-License-Identifier: Apache-2.0
"""Settings: what they accept, what they say otherwise, and how files and recipes become them."""

import ast
import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import albert_jax.config
from albert_jax.config.model import MODELS, AlbertConfig, ComputeConfig, model_config
from albert_jax.config.recipes import load_recipe, to_dict
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig, GuardConfig, OptimizerConfig, TrainConfig
from albert_jax.utils.errors import UserError
from tests.helpers.paths import REPOSITORY

SECTIONS = {
    "": AlbertConfig,
    "compute": ComputeConfig,
    "examples": ExamplesConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "guard": GuardConfig,
}


def _error_of(call: Callable[[], object]) -> str | None:
    """What a UserError says, None where there is none; anything else raised is a failure."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


# -------------------------------------------------------------------------------------- the models

# The paper's table 1 and the READMEs' of v1 and v2: hidden size, layers, heads, dropout.
PUBLISHED = {
    "base-v1": (768, 12, 12, 0.1),
    "large-v1": (1024, 24, 16, 0.1),
    "xlarge-v1": (2048, 24, 16, 0.1),
    "xxlarge-v1": (4096, 12, 64, 0.0),
    "base-v2": (768, 12, 12, 0.0),
    "large-v2": (1024, 24, 16, 0.0),
    "xlarge-v2": (2048, 24, 16, 0.0),
    "xxlarge-v2": (4096, 12, 64, 0.0),
}


def test_the_released_models_have_the_published_sizes() -> None:
    found = {
        name: (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.hidden_dropout_prob)
        for name, c in MODELS.items()
    }
    assert found == PUBLISHED
    for c in MODELS.values():
        assert (c.vocab_size, c.embedding_size, c.num_hidden_groups) == (30000, 128, 1)
        assert c.intermediate_size == 4 * c.hidden_size
        assert c.attention_probs_dropout_prob == c.hidden_dropout_prob


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'bse-v2' is unknown \(did you mean 'base-v2'\?\)"):
        model_config("bse-v2")


@pytest.mark.parametrize("groups", range(1, 25))
def test_layers_take_the_groups_that_the_original_gives_them(groups: int) -> None:
    for layers in range(groups, 25):
        lengths = AlbertConfig(num_hidden_layers=layers, num_hidden_groups=groups).group_lengths
        assert sum(lengths) == layers
        layer = 0
        for group, length in enumerate(lengths):
            for _ in range(length):
                # modeling.py:1091, in floating point as there
                assert int(layer / layers * groups) == group
                layer += 1


def test_groups_of_very_many_layers_are_found_without_a_walk_through_them() -> None:
    lengths = AlbertConfig(num_hidden_layers=2**31 - 1, num_hidden_groups=1000).group_lengths
    assert (len(lengths), sum(lengths)) == (1000, 2**31 - 1)
    assert max(lengths) - min(lengths) <= 2
    # In floating point a group may get no layer: modeling.py:1091.
    assert AlbertConfig(num_hidden_layers=22, num_hidden_groups=22).group_lengths[14:16] == (2, 0)


# --------------------------------------------------------------------------------------- JSON files


def test_json_round_trip_gives_the_same_configuration(tmp_path: Path) -> None:
    for config in MODELS.values():
        config.to_json(tmp_path / "albert_config.json")
        assert AlbertConfig.from_json(tmp_path / "albert_config.json") == config


def _write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_gelu_means_tanh_in_googles_file_and_erf_in_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # google-research/albert modeling.py:299 against transformers' ACT2FN["gelu"].
    google = {"vocab_size": 30000, "hidden_act": "gelu", "down_scale_factor": 1, "net_structure": 0}
    assert AlbertConfig.from_json(_write(tmp_path / "a.json", google)).hidden_act == "gelu"
    assert capsys.readouterr().err == ""  # nothing to say: the name means the same here
    transformers = google | {"model_type": "albert"}
    assert (
        AlbertConfig.from_json(_write(tmp_path / "b.json", transformers)).hidden_act == "gelu_erf"
    )
    assert capsys.readouterr() == (
        "",
        "b.json: transformers' hidden_act 'gelu' is the erf form of GELU, here 'gelu_erf'\n",
    )
    new = transformers | {"hidden_act": "gelu_new"}
    assert AlbertConfig.from_json(_write(tmp_path / "c.json", new)).hidden_act == "gelu"
    assert "'gelu_new' is the tanh form" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gelu", "gelu_erf"),
        ("gelu_python", "gelu_erf"),
        ("gelu_new", "gelu"),
        ("gelu_accurate", "gelu"),
        ("gelu_fast", "gelu"),
        ("gelu_python_tanh", "gelu"),
        ("gelu_pytorch_tanh", "gelu"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("relu", "relu"),
        ("tanh", "tanh"),
        ("linear", "linear"),
    ],
)
def test_transformers_names_of_activations_are_known(
    tmp_path: Path, theirs: str, ours: str
) -> None:
    """test_convert.py holds their values against transformers'."""
    values = {"vocab_size": 9, "model_type": "albert", "hidden_act": theirs}
    assert AlbertConfig.from_json(_write(tmp_path / "a.json", values)).hidden_act == ours


def test_whole_numbers_written_as_floats_are_whole_numbers(tmp_path: Path) -> None:
    values = {"vocab_size": 100.0, "hidden_size": 64.0, "num_attention_heads": 4}
    config = AlbertConfig.from_json(_write(tmp_path / "a.json", values))
    assert (config.vocab_size, type(config.hidden_size)) == (100, int)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "holds a list"),
        ({}, "has no vocab_size"),
        ({"vocab_size": "many"}, "vocab_size 'many' must be a whole number"),
        ({"vocab_size": 10.5}, "vocab_size 10.5 must be a whole number"),
        ({"vocab_size": True}, "vocab_size True must be a whole number"),
        ({"vocab_size": 0}, "vocab_size 0 must be at least 1"),
        ({"vocab_size": 9, "hidden_act": "swish"}, "hidden_act 'swish' is unknown"),
        ({"vocab_size": 9, "hidden_size": 100}, "hidden_size 100 is not a multiple"),
        ({"vocab_size": 9, "num_hidden_groups": 13}, "num_hidden_groups 13 exceeds"),
        ({"vocab_size": 9, "hidden_dropout_prob": 1}, "hidden_dropout_prob 1 must lie in"),
        ({"vocab_size": 2**31}, "vocab_size 2147483648 must be at most 2147483647"),
        ({"vocab_size": 9, "num_hidden_layers": 10**300}, "num_hidden_layers 1.* must be at most"),
        (
            {"vocab_size": 9, "num_hidden_layers": 2000, "num_hidden_groups": 1001},
            "num_hidden_groups 1001 must be at most 1000",
        ),
        ({"vocab_size": 9, "layer_norm_eps": float("inf")}, "layer_norm_eps inf must be a finite"),
        ({"vocab_size": 9, "model_type": "bert"}, "describes a bert model"),
        ({"vocab_size": 9, "model_type": "albert", "hidden_act": "mish"}, "'mish' is unknown"),
        ({"vocab_size": 9, "model_type": None}, "describes a None model"),
        ({"vocab_size": 9, "hidden_act": None}, "hidden_act None must be a string"),
        ({"vocab_size": 1e308}, "vocab_size 1e.308 must be a whole number"),
        ({"vocab_size": 9, "hidden_size": -768}, "hidden_size -768 must be at least 1"),
        ({"vocab_size": 9, "num_attention_heads": 0}, "num_attention_heads 0 must be at least 1"),
        ({"vocab_size": 9, "layer_norm_eps": float("nan")}, "layer_norm_eps nan must be"),
        ({"vocab_size": 9, "initializer_range": float("inf")}, "initializer_range inf must be"),
        ({"vocab_size": 9, "attention_probs_dropout_prob": 2.0}, "2.0 must lie in"),
        ({"vocab_size": 9, "hidden_dropout_prob": float("nan")}, "nan must be a finite number"),
        ({"vocab_size": [9] * 100_000}, "vocab_size .9, 9, .* must be a whole number"),
    ],
)
def test_a_file_that_is_no_albert_configuration_is_refused(
    tmp_path: Path, values: Any, says: str
) -> None:
    file = _write(tmp_path / "albert_config.json", values)
    with pytest.raises(UserError, match=says) as caught:
        AlbertConfig.from_json(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.json is not readable JSON"):
        AlbertConfig.from_json(tmp_path / "c.json")
    with pytest.raises(UserError, match="does not exist"):
        AlbertConfig.from_json(tmp_path / "d.json")


def test_a_file_far_too_large_for_a_configuration_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no room
    with pytest.raises(UserError, match=r"not readable JSON \(1,099,511,627,776 bytes, over"):
        AlbertConfig.from_json(tmp_path / "c.json")


_NAMES = [f.name for f in dataclasses.fields(AlbertConfig)] + ["model_type", "architectures"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON | st.integers(1, 64)))
def test_any_json_object_is_a_configuration_or_one_clear_error(values: dict[str, Any]) -> None:
    values = {"vocab_size": 8, **values}
    says = _error_of(lambda: AlbertConfig.from_dict(values, Path("c.json")))
    assert says is None or says.startswith("c.json")


# ------------------------------------------------------------------------------- types and ranges


@pytest.mark.parametrize(
    ("section", "field", "value", "says"),
    [
        ("", "hidden_size", "768", "hidden_size '768' must be a whole number"),
        ("", "initializer_range", float("nan"), "initializer_range nan must be a finite number"),
        ("compute", "dtype", "float16", "compute.dtype 'float16' must be one of float32, bfloat16"),
        ("compute", "scan_unroll", -1, "compute.scan_unroll -1 must be at least 0"),
        ("examples", "ngram", 0, "examples.ngram 0 must be at least 1"),
        ("examples", "masked_lm_prob", 1.0, "examples.masked_lm_prob 1.0 must lie in"),
        ("examples", "max_seq_length", 7, "examples.max_seq_length 7 is too short"),
        ("examples", "do_whole_word_mask", 1, "do_whole_word_mask 1 must be True or False"),
        ("optimizer", "learning_rate", "fast", "learning_rate 'fast' must be a finite number or"),
        ("optimizer", "learning_rate", float("inf"), "learning_rate inf must be a finite number"),
        ("optimizer", "weight_decay", 10**400, "must be a finite number"),
        ("train", "save_minutes", float("-inf"), "train.save_minutes -inf must be a finite number"),
        ("optimizer", "learning_rate", -1e-3, "optimizer.learning_rate -0.001 must be at least 0"),
        ("optimizer", "beta2", 1.0, "optimizer.beta2 1.0 must lie in"),
        ("optimizer", "name", "sgd", "optimizer.name 'sgd' must be one of lamb"),
        ("train", "steps", 1e3, "train.steps 1000.0 must be a whole number"),
        ("train", "steps", True, "train.steps True must be a whole number"),
        ("train", "devices", 0, "train.devices 0 must be at least 1"),
        ("train", "keep", 1, "train.keep 1 must be at least 2"),
        ("train", "batch_size", 0, "train.batch_size 0 must be at least 1"),
        ("guard", "patience", 0, "guard.patience 0 must be at least 1"),
        ("guard", "spike", None, "guard.spike None must be a finite number"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(
    section: str, field: str, value: Any, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        SECTIONS[section](**{field: value})
    assert says in str(caught.value)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match=r"sop_weight '0.5:1' weighs the second objective, and ex"):
        PretrainConfig(
            examples=ExamplesConfig(objective="none"), train=TrainConfig(sop_weight="0.5:1")
        )
    with pytest.raises(UserError, match=r"max_seq_length 512 exceeds model\.max_position_embed"):
        PretrainConfig(model=AlbertConfig(max_position_embeddings=128))
    with pytest.raises(UserError, match=r"batch_size 10 does not divide into train\.accumulate 3"):
        TrainConfig(batch_size=10, accumulate=3)
    with pytest.raises(UserError, match=r"text 'a\.txt' must be a tuple of strings"):
        PretrainConfig(text="a.txt")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model \{\} must be of type AlbertConfig"):
        PretrainConfig(model={})  # type: ignore[arg-type]


_ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)


@pytest.mark.parametrize("section", SECTIONS)
@given(data=st.data())
def test_any_value_in_any_field_is_accepted_or_one_clear_error(
    section: str, data: st.DataObject
) -> None:
    kind = SECTIONS[section]
    field = data.draw(st.sampled_from([f.name for f in dataclasses.fields(kind)]))
    value = data.draw(_ANY)
    says = _error_of(lambda: kind(**{field: value}))
    assert says is None or field in says


def test_a_configuration_survives_json() -> None:
    config = PretrainConfig(text=("a", "b"), train=TrainConfig(steps=3))
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)
    assert to_dict(config)["train"]["steps"] == 3


@pytest.mark.parametrize("kind", [*SECTIONS.values(), PretrainConfig])
def test_every_setting_has_a_comment_for_its_help(kind: type) -> None:
    source = inspect.getsource(kind)
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    bare = []
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            line = source.splitlines()[statement.end_lineno - 1]  # type: ignore[operator]
            documented = isinstance(following, ast.Expr) and isinstance(
                following.value, ast.Constant
            )
            nested = dataclasses.is_dataclass(
                getattr(albert_jax.config, ast.unparse(statement.annotation), None)
            )
            if not (documented or nested or "  # " in line):
                bare.append(ast.unparse(statement.target))
    assert bare == []


# ------------------------------------------------------------------------------------------ recipes

RECIPE = """
from albert_jax.config import PretrainConfig, TrainConfig, model_config

def get_config(model="base-v2", steps=100, rate=None, fail=False):
    if fail:
        raise KeyError("here")
    return PretrainConfig(model=model_config(model), train=TrainConfig(steps=steps))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def test_recipe_arguments_are_literals_or_else_strings(recipe: Path) -> None:
    assert load_recipe(str(recipe)).train.steps == 100
    config = load_recipe(f"{recipe}:model=large-v1,steps=7,rate=1e-4")
    assert (config.model, config.train.steps) == (MODELS["large-v1"], 7)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (":modle=base-v2", "takes no 'modle' (did you mean 'model'?)"),
        (":steps", "'steps' must be key=value"),
        (":model=bse-v1", "did you mean 'base-v1'"),
        (":steps=many", "train.steps 'many' must be a whole number"),
        (":fail=True", "recipe.py fails in line 6: KeyError: 'here'"),
    ],
)
def test_a_recipe_argument_that_is_wrong_is_named(recipe: Path, arguments: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(f"{recipe}{arguments}")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = (", "SyntaxError"),
        ("import nothing_of_that_name", "in line 1: ModuleNotFoundError"),
        ("", "defines no get_config"),
        ("get_config = 3", "defines no get_config"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "r.py").write_text(source, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        load_recipe(str(tmp_path / "r.py"))


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(str(tmp_path / "none.py:model=base-v2"))
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(str(tmp_path))


@given(st.text(max_size=30))
def test_any_recipe_arguments_give_a_configuration_or_one_clear_error(text: str) -> None:
    # Not the function-scoped fixture: hypothesis would share it between examples.
    file = REPOSITORY / "configs" / "python_docs.py"
    says = _error_of(lambda: load_recipe(f"{file}:{text}"))
    assert says is None or "recipe" in says or "steps" in says
