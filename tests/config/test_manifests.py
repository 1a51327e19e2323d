# SPDX-License-Identifier: Apache-2.0
"""How text is cleaned is read from the files beside a vocabulary, and damaged files are named."""

import json
import shutil
from pathlib import Path

import pytest

import albert_jax
from albert_jax.checkpoint import integrity
from albert_jax.config.manifests import read_model_manifest
from albert_jax.data.prepare.build import prepare
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import UserError
from tests.helpers.models import noisy_model
from tests.helpers.paths import VOCABULARY

CASED_HF = {"mode": "hf", "do_lower_case": False}
TEXT = "``ΣΑΣ'' É Hello [MASK], 9,"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return noisy_model(tmp_path_factory.mktemp("manifests") / "model", tokenizer=CASED_HF)


def settings(path: Path, **given) -> tuple[str, bool]:
    tokenizer = Tokenizer.load(path, **given)
    return tokenizer.mode, tokenizer.do_lower_case


def test_a_model_directorys_tokenizer_is_the_models_own(model: Path) -> None:
    own = albert_jax.load(model).tokenizer
    for path in (model, model / "spiece.model"):
        assert Tokenizer.load(path).encode(TEXT) == own.encode(TEXT)
    assert Tokenizer.load(VOCABULARY).encode(TEXT) != own.encode(TEXT)
    assert settings(model) == ("hf", False)


def test_explicit_arguments_win_one_by_one(model: Path) -> None:
    assert settings(model, mode="google") == ("google", False)
    assert settings(model, do_lower_case=True) == ("hf", True)
    assert settings(VOCABULARY, mode="hf") == ("hf", True)
    assert settings(VOCABULARY) == ("google", True)


def test_a_stores_tokenizer_is_what_made_it(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The list.\n\nA string.\n\nIt was given.\n")
    prepare(
        [str(tmp_path / "text.txt")],
        vocab=VOCABULARY,
        output=tmp_path / "store",
        workers=1,
        **CASED_HF,
    )
    assert settings(tmp_path / "store") == ("hf", False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model.safetensors": ""}, ("hf", True)),
        ({"pytorch_model.bin": "", "tokenizer_config.json": "{}"}, ("hf", True)),
        ({"tokenizer_config.json": '{"do_lower_case": false}'}, ("hf", False)),
        (
            {"flax_model.msgpack": "", "tokenizer_config.json": '{"do_lower_case": false}'},
            ("hf", False),
        ),
        # The original's checkpoint, whatever tokenizer files lie beside it, is read by its rules.
        ({"model.ckpt-best.index": "", "tokenizer_config.json": "{}"}, ("google", True)),
        ({"albert_config.json": "{}"}, ("google", True)),
        ({"manifest.json": '{"name": "of a web page"}'}, ("google", True)),
    ],
)
def test_other_folders_are_read_as_conversion_reads_them(
    files: dict[str, str], expected: tuple[str, bool], tmp_path: Path
) -> None:
    shutil.copyfile(VOCABULARY, tmp_path / "spiece.model")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert settings(tmp_path) == expected


def test_a_transformers_folder_and_what_conversion_makes_of_it_give_the_same_ids(
    model: Path, tmp_path: Path
) -> None:
    albert_jax.convert(model, tmp_path / "hf", "hf")
    albert_jax.convert(tmp_path / "hf", tmp_path / "back")
    own = albert_jax.load(model).tokenizer.encode(TEXT)
    assert Tokenizer.load(tmp_path / "hf").encode(TEXT) == own
    assert Tokenizer.load(tmp_path / "back").encode(TEXT) == own


def test_accents_are_kept_where_a_transformers_folder_says_so(tmp_path: Path) -> None:
    shutil.copyfile(VOCABULARY, tmp_path / "spiece.model")
    assert not Tokenizer.load(tmp_path).keep_accents
    (tmp_path / "tokenizer_config.json").write_text('{"keep_accents": true}')
    assert Tokenizer.load(tmp_path).keep_accents
    (tmp_path / "tokenizer_config.json").write_text('{"keep_accents": 3}')
    with pytest.raises(UserError, match="keep_accents 3 must be true or false"):
        Tokenizer.load(tmp_path)


def test_a_transformers_tokenizer_with_further_tokens_is_refused_as_conversion_refuses_it(
    tmp_path: Path, capsys
) -> None:
    shutil.copyfile(VOCABULARY, tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (tmp_path / "added_tokens.json").write_text('{"<new1>": 8000}')
    with pytest.raises(UserError, match="its tokenizer has <new1> at id 8000, which albert_jax's"):
        Tokenizer.load(tmp_path)
    assert Tokenizer.load(tmp_path / "spiece.model").do_lower_case is False
    assert "its tokenizer has <new1> at id 8000" in capsys.readouterr().err
    assert Tokenizer.load(tmp_path, mode="hf", do_lower_case=True).do_lower_case
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": "false"}')
    with pytest.raises(UserError, match="do_lower_case 'false' must be true or false"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda m: m["tokenizer"].update(mode="google"),
            "a checksum that does not match its content",
        ),
        (lambda m: m.pop("crc32c"), "a checksum that does not match its content"),
        (lambda m: m.clear(), "a checksum that does not match its content"),
    ],
)
def test_an_edited_manifest_is_refused(model: Path, tmp_path: Path, change, told) -> None:
    copy = shutil.copytree(model, tmp_path / "model")
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for read in (read_model_manifest, Tokenizer.load):
        with pytest.raises(
            UserError, match=f"model directory .* is damaged or was edited .*{told}"
        ):
            read(copy)


@pytest.mark.parametrize("content", ["[]", "null", "5", '"x"', "{", "", "\xff"])
def test_a_manifest_that_is_no_object_is_refused(model: Path, tmp_path: Path, content) -> None:
    copy = shutil.copytree(model, tmp_path / "model")
    (copy / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest\.json is damaged or of another kind"):
        read_model_manifest(copy)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("tokenizer", None, "tokenizer"),
        ("tokenizer", {"mode": "hf"}, "do_lower_case"),
        ("tensors", [], "tensors"),
        ("tensors", {"a": {"shape": ["x"], "dtype": "float32"}}, "shape"),
        ("sha256", {"albert_config.json": 5}, "sha256"),
        ("head", 5, "head"),
        ("provenance", "here", "provenance"),
    ],
)
def test_a_sealed_manifest_of_another_shape_names_the_key(
    model: Path, tmp_path: Path, key, value, told
) -> None:
    copy = shutil.copytree(model, tmp_path / "model")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["crc32c"]
    sealed = integrity.seal(manifest | {key: value})
    (copy / "manifest.json").write_text(json.dumps(sealed))
    with pytest.raises(UserError, match=told):
        read_model_manifest(copy)


def test_an_edited_configuration_and_a_newer_format_are_refused(
    model: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(model, tmp_path / "model")
    config = (copy / "albert_config.json").read_text()
    (copy / "albert_config.json").write_text(config.replace('"gelu"', '"relu"'))
    with pytest.raises(UserError, match=r"damaged or was edited .albert_config.json: SHA-256"):
        read_model_manifest(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["crc32c"]
    sealed = integrity.seal(manifest | {"format_version": 9})
    (copy / "manifest.json").write_text(json.dumps(sealed))
    with pytest.raises(UserError, match="has format 9, newer than 2; update albert_jax"):
        read_model_manifest(copy)
