# SPDX-License-Identifier: Apache-2.0
"""The packaged model: it has learnt something, and its card says of it what is so."""

import json
from pathlib import Path

import numpy as np
import pytest

import albert_jax
from albert_jax.cli.main import main
from albert_jax.config.recipes import load_recipe
from tests.helpers.paths import REPOSITORY

PACKAGED = Path(albert_jax.__file__).parent / "packaged" / "mini"


@pytest.fixture(scope="module")
def mini() -> albert_jax.Albert:
    return albert_jax.load("mini")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("He was born in [MASK] 1912.", "august"),
        ("The city is the [MASK] of the country.", "capital"),
        ("She was the [MASK] of the king.", "daughter"),
        ("The war between France and [MASK] began in 1870.", "germany"),
    ],
)
def test_it_knows_what_a_gap_may_hold(mini: albert_jax.Albert, text: str, word: str) -> None:
    answers = mini.fill_mask(text, top_k=20)
    assert word in [answer["token_str"] for answer in answers]


def test_texts_on_one_subject_are_nearer_than_others(mini: albert_jax.Albert) -> None:
    texts = [
        "The river flows through the valley into the sea.",
        "The lake is fed by several rivers from the mountains.",
        "The band released their second album in the spring.",
        "The singer recorded a new song for the record company.",
    ]
    vectors = mini.encode(texts, pool="mean").pooled
    assert vectors is not None
    unit = (vectors - vectors.mean(0)) / np.linalg.norm(vectors - vectors.mean(0), axis=1)[:, None]
    near = unit @ unit.T
    assert min(near[0, 1], near[2, 3]) > max(near[0, 2], near[0, 3], near[1, 2], near[1, 3])


def test_it_is_what_its_recipe_makes_and_names_no_path_of_the_machine() -> None:
    manifest = json.loads((PACKAGED / "manifest.json").read_text())
    made = manifest["provenance"]
    recipe = load_recipe(str(REPOSITORY / "configs" / "mini.py"))
    assert load_recipe(str(REPOSITORY / "configs" / "from_mini.py")).model == recipe.model
    assert made["step"] == recipe.train.steps
    assert made["config"]["optimizer"]["name"] == recipe.optimizer.name
    assert made["config"]["train"]["depth"] == recipe.train.depth
    assert {entry["dtype"] for entry in manifest["tensors"].values()} == {"bfloat16"}
    assert not any("/" in str(made["config"][key] or "") for key in ("store", "heldout", "workdir"))
    texts = [path.read_bytes() for path in PACKAGED.rglob("*") if path.is_file()]
    assert not any(PACKAGED.as_posix().encode() in text for text in texts)
    marker = (PACKAGED / "params" / "commit_success.txt").read_text()
    assert marker == "Checkpoint commit was successful\n"


def test_its_card_says_what_its_manifest_does() -> None:
    card = (PACKAGED / "README.md").read_text(encoding="utf-8")
    held_out = json.loads((PACKAGED / "manifest.json").read_text())["provenance"]["held_out"]
    assert f"{held_out['masked_lm_accuracy']:.1%}".replace("%", " %") in card
    for word in ("CC BY-SA 4.0", "Wikipedia", "ELTeC", "configs/mini.py", "Limits"):
        assert word in card


@pytest.mark.parametrize("command", [["info", "mini"], ["verify", "mini"]])
def test_commands_take_it_by_its_name(command: list[str], capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    assert "3,071,042" in capsys.readouterr().out


def test_it_is_converted_by_its_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "mini", "there", "--to", "hf"]) == 0
    assert main(["convert", "there", "back"]) == 0
    for name, array in (("pooler", "kernel"), ("predictions", "output_bias")):
        ours, theirs = (albert_jax.load(d).params[name][array] for d in ("mini", "back"))
        np.testing.assert_array_equal(ours, theirs)
