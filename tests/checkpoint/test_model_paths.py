# SPDX-License-Identifier: Apache-2.0
"""Whatever is given where a model directory belongs is named, with the command that makes one."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import albert_jax
from albert_jax.checkpoint.model_paths import require_model_directory, what_is
from albert_jax.cli import main as cli
from albert_jax.cli.info import describe_path
from albert_jax.config.model import MODELS
from albert_jax.utils.errors import UserError
from tests.helpers.models import noisy_model, worded_albert
from tests.helpers.paths import VOCABULARY


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return noisy_model(tmp_path_factory.mktemp("paths") / "run" / "model")


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def told(path) -> str:
    with pytest.raises(UserError) as raised:
        require_model_directory(path)
    return str(raised.value)


def test_a_model_directory_is_returned(model: Path) -> None:
    assert require_model_directory(str(model)) == model
    assert what_is(model) is None


def test_mini_is_the_packaged_model_unless_something_here_has_that_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = Path(albert_jax.__file__).parent / "packaged" / "mini"
    monkeypatch.chdir(tmp_path)
    assert require_model_directory("mini") == packaged
    assert describe_path("mini")["path"] == str(packaged)
    assert albert_jax.Tokenizer.load("mini").path == packaged / "spiece.model"
    shutil.copytree(model, "mini")
    assert require_model_directory("mini") == Path("mini")
    assert albert_jax.load("mini").config == worded_albert()
    assert told("./maxi").startswith("./maxi does not exist; give a model directory: ")


def test_an_existing_path_wins_over_a_name(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "base-v2")
    assert require_model_directory("base-v2") == Path("base-v2")
    write(tmp_path / "me" / "albert" / "tokenizer_config.json", b"{}")
    assert told("me/albert").startswith("me/albert is a transformers folder without weights")


def test_what_is_neither_here_nor_a_name_says_the_nearest_and_what_would_be_right() -> None:
    for path in ("runs/base/model", "nowhere", "/a/albert-base-v2", "tests/no-model", "a" * 200):
        assert re.match(f"{path} does not exist; give a model directory: WORKDIR/model", told(path))
    sentence = told("base-v3")
    assert sentence.startswith("base-v3 does not exist (did you mean 'base-v2'?); give ")
    assert all(name in sentence for name in (*MODELS, "mini", "OWNER/NAME"))
    with pytest.raises(UserError, match="'base-v2'"):
        describe_path("base-v3")


def test_a_folder_with_a_models_name_that_is_no_model_says_which_prefix_names_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mini" / "notes.txt")
    write(tmp_path / "base-v2" / "spiece.model")
    assert told("mini").endswith("; the model of that name is released:mini")
    assert told("base-v2").endswith(
        "give a model directory; the model of that name is released:base-v2"
    )
    with pytest.raises(UserError, match="the model of that name is released:mini"):
        describe_path("mini")
    assert require_model_directory("released:mini").parent.name == "packaged"
    assert albert_jax.Tokenizer.load("released:mini").vocab_size == 8000


def test_folders_are_recognised(model: Path, tmp_path: Path) -> None:
    workdir = model.parent
    assert told(workdir) == f"{workdir} is a work directory; give its model, {model}"
    assert f"is a part of the model directory {model}; give that" in told(model / "params")
    kinds = (
        (
            ["checkpoints/20/meta/metadata"],
            "work directory of a pretraining run .*albert-jax export .* DEST",
        ),
        (["seed-12/config.json"], "work directory of a fine-tuning run"),
        (["params/x", "manifest.json"], "is a model directory without its albert_config.json"),
        (["params/x", "albert_config.json"], "is a model directory without its manifest.json"),
        (["serving.json"], "is a serving folder"),
        (["manifest.json", "train/0.tokens"], "is a token store, .* albert-jax pretrain --store"),
        (["progress/0"], "is a token store that albert-jax prepare has not finished"),
        (["model.ckpt-best.index", "albert_config.json"], "is a TensorFlow checkpoint"),
        (["a.index", "a.data-00000-of-00001"], "is a TensorFlow checkpoint"),
        (["model-1000.index", "model-1000.meta"], "is a TensorFlow checkpoint"),
        (["search.index", "tokenizer_config.json"], "is a transformers folder without weights"),
        (["search.index"], r"is no model directory \(no manifest.json or albert_config.json\)"),
        (["saved_model.pb"], "is a TF-Hub module"),
        (["tokenizer_config.json", "spiece.model"], "is a transformers folder without weights"),
        (["spiece.model"], "holds a vocabulary and no model"),
        (["checkpoints/20/weights.pt"], r"is no model directory \(no manifest.json or albert_con"),
        (["readme"], r"is no model directory \(no manifest.json or albert_config.json\)"),
    )
    for number, (names, expected) in enumerate(kinds):
        folder = tmp_path / f"folder {number}"
        for name in names:
            write(folder / name)
        sentence = told(folder)
        assert re.match(f"{re.escape(str(folder))} .*{expected}", sentence), sentence
        if "checkpoint;" in sentence or "module" in sentence:
            assert f"run albert-jax convert '{folder}' DEST, and give DEST" in sentence


def test_the_model_of_an_unfinished_run_and_a_link_to_nothing_are_told(tmp_path: Path) -> None:
    write(tmp_path / "run" / "seed-12" / "config.json")
    assert "is the work directory of a fine-tuning run that has not" in told(tmp_path / "run/model")
    (copied := tmp_path / "model").symlink_to("seed-12/best")
    assert told(copied).startswith(f"{copied} is a link to seed-12/best, which is not there; copy")


def test_files_are_recognised(model: Path, tmp_path: Path) -> None:
    assert f"is a file of the model directory {model}; give that" in told(model / "manifest.json")
    archive = tmp_path / "albert_base_v2.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(VOCABULARY, "30k-clean.model")
    convert = f"run albert-jax convert {archive} DEST, and give DEST"
    assert told(archive) == f"{archive} is an archive; {convert}"
    for name, expected in (
        ("model.safetensors", "is a file of weights; run albert-jax convert"),
        ("model.ckpt-9.index", "is a file of weights"),
        ("en.model", "is a vocabulary"),
        ("recipe.py", "is a recipe"),
        ("notes.txt", "is no model directory"),
    ):
        assert expected in told(write(tmp_path / name))
    prefix = tmp_path / "model.ckpt-9"
    assert told(prefix) == (
        f"{prefix} is a TensorFlow checkpoint; run albert-jax convert {prefix} DEST, and give DEST"
    )
    write(tmp_path / "store" / "train" / "0.tokens")
    manifest = write(tmp_path / "store" / "manifest.json")
    assert f"is a file of the token store {tmp_path / 'store'}, which" in told(manifest)
    with pytest.raises(UserError, match="is a file of the token store"):
        describe_path(manifest)
    assert told("gs://b/x") == (
        "gs://b/x is an address; run albert-jax convert gs://b/x DEST, and give DEST"
    )


def test_every_reader_of_a_model_says_so(tmp_path: Path) -> None:
    expected = "is a TensorFlow checkpoint; run albert-jax convert"
    folder = str(write(tmp_path / "model.ckpt-best.index").parent)
    for call in (
        lambda: albert_jax.load(folder),
        lambda: albert_jax.verify(folder),
        lambda: albert_jax.evaluate("sst2", folder, "data"),
        lambda: albert_jax.predict(folder, []),
    ):
        with pytest.raises(UserError, match=expected):
            call()


COMMANDS = [
    "fill-mask MODEL x[MASK]",
    "encode MODEL x",
    "score-order MODEL x y",
    "verify MODEL",
    "export-serving MODEL served",
    "evaluate --model MODEL --data glue",
    "predict --model MODEL --input texts.jsonl",
    "finetune --model MODEL --data glue --workdir w",
    "pretrain --init-from MODEL --store s --workdir w",
    "info MODEL",
]


def test_every_command_says_so_before_jax_is_imported(tmp_path: Path) -> None:
    code = (  # all in one process: each would take half a second to start
        "import sys; from albert_jax.cli.main import main\n"
        f"for line in {COMMANDS!r}:\n"
        "    print(main(line.split()), 'jax' in sys.modules, file=sys.stderr)"
    )
    write(tmp_path / "MODEL" / "model.ckpt-best.index")
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    told = (
        "albert-jax: MODEL is a TensorFlow checkpoint; "
        "run albert-jax convert MODEL DEST, and give DEST\n2 False\n"
    )
    assert ended.stderr == len(COMMANDS) * told


def test_a_work_directory_is_described_by_its_model(model: Path, capsys) -> None:
    assert cli.main(["info", str(model.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(model)
