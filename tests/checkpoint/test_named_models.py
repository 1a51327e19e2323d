# SPDX-License-Identifier: Apache-2.0
"""A model by its name is fetched and converted once, and is from then on a model directory here."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import albert_jax
from albert_jax.checkpoint import named_models
from albert_jax.checkpoint.convert import keep
from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.checkpoint.push import push
from albert_jax.cli.info import describe_path
from albert_jax.config.model_names import ModelName, kept_model, model_path, name_of
from albert_jax.inference.prediction_files import predictions_folder
from albert_jax.utils.errors import UserError
from albert_jax.utils.locks import waited_for
from tests.helpers.models import noisy_model, worded_albert
from tests.helpers.paths import REPOSITORY
from tests.helpers.servers import serving_files


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return noisy_model(tmp_path_factory.mktemp("named") / "model")


@pytest.fixture(scope="module")
def transformers_folder(model: Path) -> Path:
    convert(model, model.parent / "hf", to="hf")
    return model.parent / "hf"


@pytest.fixture(scope="module")
def archives(model: Path) -> Path:
    """A mirror of Google's archives, with a small model under base-v2's name."""
    convert(model, model.parent / "albert_base", to="tf")
    folder = model.parent / "archives"
    folder.mkdir()
    with tarfile.open(folder / "albert_base_v2.tar.gz", "w:gz") as archive:
        archive.add(model.parent / "albert_base", "albert_base")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALBERT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def told(path: str | Path) -> str:
    with pytest.raises(UserError) as raised:
        require_model_directory(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("mini", ModelName("packaged", "mini")),
        ("released:mini", ModelName("packaged", "mini")),
        *[
            (name, ModelName("released", "base-v2"))
            for name in ("base-v2", "albert-base-v2", "albert_base_v2", "released:base-v2")
        ],
        ("xxlarge-v1", ModelName("released", "xxlarge-v1")),
        ("albert/albert-base-v2", ModelName("hub", "albert/albert-base-v2")),
        ("hub:albert-base-v2", ModelName("hub", "albert-base-v2")),
        ("hf://me/it@v1.0", ModelName("hub", "me/it", "v1.0")),
        (Path("hf://me/it"), ModelName("hub", "me/it")),
        ("me/it@refs/pr/1", ModelName("hub", "me/it", "refs/pr/1")),
        ("runs/base/model", None),
        ("./me/it", None),
        ("../me", None),
        ("/me/it", None),
        ("base-v3", None),
        ("a/b/c", None),
        ("gs://bucket/model", None),
    ],
)
def test_a_name_is_one_of_three_kinds(given: str | Path, named: ModelName | None) -> None:
    assert name_of(given) == named


def test_a_path_that_exists_is_no_name_and_neither_is_one_in_a_folder_that_does(
    tmp_path: Path,
) -> None:
    (tmp_path / "me" / "it").mkdir(parents=True)
    (tmp_path / "base-v2").mkdir()
    for given in ("me/it", "me/other", "base-v2"):
        assert name_of(given) is None
    assert name_of("hub:me/it") == ModelName("hub", "me/it")
    assert name_of("released:base-v2") == ModelName("released", "base-v2")


@pytest.mark.parametrize(
    "given", ["hub:", "hub:a/b/c", "hub:a/../b", "hub:a/b@", "hf:///", "hub:-x"]
)
def test_what_is_no_name_of_a_repository_is_refused(given: str) -> None:
    assert f"{given} names no repository of the hub; give hub:OWNER/NAME" in told(given)
    assert "released model 'base-v9' is unknown (did you mean 'base-v" in told("released:base-v9")


def test_a_hub_that_is_not_huggingfaces_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    named = ModelName("hub", "me/it", "feature/x")
    monkeypatch.delenv("HF_ENDPOINT")
    assert named_models.cache_folder(named).parts[-2:] == ("hub", "me--it")
    assert named_models.ref_file(named).parts[-2:] == ("refs", "feature%2Fx")
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:80/")
    assert named_models.cache_folder(named).parts[-2:] == ("hub-localhost-80", "me--it")


def test_a_damaged_note_of_a_revision_names_nothing(cache: Path, model: Path) -> None:
    named = ModelName("released", "base-v2")
    folder = named_models.cache_folder(named)
    shutil.copytree(model, folder / "key1")
    ref = named_models.ref_file(named)
    ref.parent.mkdir()
    for content, kept in ((b"key1\n", folder / "key1"), (b"../key1", None), (b"\xff", None)):
        ref.write_bytes(content)
        assert kept_model(named) == kept


def test_a_cache_that_takes_no_note_of_a_revision_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ModelName("released", "base-v2")
    refs = named_models.cache_folder(named) / "refs"
    refs.parent.mkdir(parents=True)
    refs.write_text("a file where a folder belongs")
    monkeypatch.setattr(keep, "keep_named", lambda *_: "key1")
    with pytest.raises(UserError, match=r"cannot be kept in .*refs.main .*set ALBERT_JAX_CACHE"):
        named_models.named_model(named)


# ------------------------------------------------------------------------- a transformers folder


def test_a_transformers_folder_is_converted_once_for_each_of_its_states(
    transformers_folder: Path, model: Path, cache: Path, capsys, monkeypatch
) -> None:
    shutil.copytree(transformers_folder, "folder")
    first = require_model_directory("folder")
    assert "folder: 0 parameters" not in (said := capsys.readouterr().err)
    assert f"parameters, converted once and kept in {first}" in said
    assert "embeddings/word_embeddings" not in said  # no inventory
    assert cache in first.parents
    assert describe_path("folder")["path"] == str(first)

    def fail(*_: object) -> None:
        raise AssertionError("converted again")

    with monkeypatch.context() as patched:
        patched.setattr(keep, "convert_as_it_is", fail)
        albert = albert_jax.load("folder")
    expected = albert_jax.load(model).forward([[2, 10, 11, 3]]).sequence
    np.testing.assert_array_equal(albert.forward([[2, 10, 11, 3]]).sequence, expected)
    settings = json.loads(Path("folder/tokenizer_config.json").read_text())
    settings["do_lower_case"] = False
    Path("folder/tokenizer_config.json").write_text(json.dumps(settings))
    second = require_model_directory("folder")
    assert second.parent == first.parent
    assert second != first
    assert albert_jax.load("folder").tokenizer.do_lower_case is False


def test_a_folder_that_cannot_be_converted_leaves_nothing(cache: Path) -> None:
    Path("folder").mkdir()
    Path("folder/model.safetensors").write_bytes(b"no weights")
    assert "folder cannot be used as it is: " in told("folder")
    assert not list(cache.rglob("manifest.json"))


def test_a_process_waits_for_another_that_converts_the_same(transformers_folder: Path) -> None:
    dest = named_models._place_of(transformers_folder)
    lock = dest.parent.with_name(f".{dest.parent.name}.lock")
    with waited_for(lock, ""):
        process = subprocess.Popen(
            [sys.executable, "-m", "albert_jax", "info", str(transformers_folder)],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert "waiting for it" in process.stderr.readline()
        keep.keep_folder(transformers_folder, dest)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "converted once" not in stderr
    assert str(dest) in stdout


def test_a_cache_that_cannot_be_written_names_its_variable(
    transformers_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALBERT_JAX_CACHE", str(tmp_path / "file"))
    assert "; set ALBERT_JAX_CACHE to a folder that can be written" in told(transformers_folder)


def test_processes_that_start_together_convert_nothing(transformers_folder: Path) -> None:
    for given in (transformers_folder, "base-v2"):
        with pytest.raises(UserError, match=r"run albert-jax info .* on each host first"):
            require_model_directory(given, fetch=False)
    kept = require_model_directory(transformers_folder)
    assert require_model_directory(transformers_folder, fetch=False) == kept


def test_predictions_of_a_named_model_take_no_folder_of_its_name(tmp_path: Path) -> None:
    task = albert_jax.TASKS["sst2"]
    (tmp_path / "x").mkdir()
    folder = predictions_folder(task, "me/it", "glue", "dev", None)
    assert folder == tmp_path / "predictions" / "me--it" / "sst2-dev"
    for model, folder in (
        ("x/model", "x/predictions"),
        ("x/a", "x/predictions/a"),
        ("me/it@main", "predictions/me--it"),
        ("me/it@v2", "predictions/me--it@v2"),
    ):
        found = predictions_folder(task, model, "glue", "dev", None)
        assert found == tmp_path / folder / "sst2-dev"


# ------------------------------------------------------------------------------ a released model


@pytest.fixture
def small_base_v2(archives: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALBERT_JAX_ARCHIVES", str(archives))
    monkeypatch.setattr(keep, "MODELS", {"base-v2": worded_albert()})
    return archives


def test_a_released_model_is_its_archive_converted_once(
    small_base_v2: Path, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = require_model_directory("base-v2")
    assert kept.parent == cache / "models" / "released" / "base-v2"
    monkeypatch.setenv("ALBERT_JAX_ARCHIVES", "/nowhere")  # it is not asked again
    assert require_model_directory("albert-base-v2") == kept
    assert model_path("released:base-v2") == kept
    assert albert_jax.Tokenizer.load("base-v2").path == kept / "spiece.model"
    ours, theirs = albert_jax.load("base-v2"), albert_jax.load(model)
    np.testing.assert_array_equal(
        ours.forward([[2, 10, 3]]).sequence, theirs.forward([[2, 10, 3]]).sequence
    )
    source = describe_path("base-v2")["provenance"]["source"]
    assert source == f"{small_base_v2}/albert_base_v2.tar.gz"


def test_an_archive_comes_over_http_from_loopback_alone(
    small_base_v2: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving_files(small_base_v2) as mirror:
        monkeypatch.setenv("ALBERT_JAX_ARCHIVES", mirror)
        inventory = convert("base-v2", tmp_path / "dest")
        signed = f"{mirror}/albert_base_v2.tar.gz?Signature=s3cret"
        kept = convert(signed, tmp_path / "signed").source
        with pytest.raises(UserError, match=r"/no.tar.gz cannot be downloaded \(.*404") as refused:
            convert(signed.replace("albert_base_v2", "no"), tmp_path / "none")
    assert kept == f"{mirror}/albert_base_v2.tar.gz"
    assert "s3cret" not in (tmp_path / "signed" / "manifest.json").read_text()
    assert "s3cret" not in str(refused.value)
    assert inventory.source == f"{mirror}/albert_base_v2.tar.gz"
    assert inventory.vocabulary == "30k-clean.model"
    monkeypatch.setenv("ALBERT_JAX_ARCHIVES", "http://example.org")
    assert "is no path and neither gs:// nor https://" in told("base-v2")


def test_an_archive_of_another_model_is_refused_and_not_kept(
    archives: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALBERT_JAX_ARCHIVES", str(archives))
    assert "it is not base-v2: vocab_size is 8000, not 30000; embedding_size is 8" in told(
        "base-v2"
    )
    assert not list(cache.rglob("manifest.json"))


def test_without_huggingface_hub_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    wanted = (
        "me/it is no path here, and a repository of the Hugging Face hub needs huggingface_hub; "
        "pip install 'albert-jax[hub]', or give a folder"
    )
    assert told("me/it") == wanted
    with pytest.raises(UserError, match=r"^writing to \S*me/it needs huggingface_hub; .*\[hub\]'$"):
        push("mini", "hub:me/it")
    with pytest.raises(UserError, match="needs huggingface_hub"):
        convert("hf://me/it", tmp_path / "dest")
    sentence = told("large-v2")
    assert sentence.startswith("large-v2 cannot be fetched: ")
    assert "albert_large_v2.tar.gz does not exist (ALBERT_JAX_ARCHIVES is " in sentence
    assert sentence.endswith("pip install 'albert-jax[hub]', or give a folder")
