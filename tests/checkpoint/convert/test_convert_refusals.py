# SPDX-License-Identifier: Apache-2.0
"""What `convert` refuses, by name and in one short sentence, and what it takes that looks odd.

test_convert.py has the formats, tests/helpers/conversions.py the small models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import albert_jax
from albert_jax.checkpoint.convert import archives, readers, tf_bundle
from albert_jax.checkpoint.convert.sources import open_weights
from albert_jax.checkpoint.convert.tf_bundle import CheckpointReader, write_checkpoint
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.cli import main as cli
from albert_jax.data.hf_tokenizer import read_tokenizer
from albert_jax.utils.errors import UserError
from tests.helpers.conversions import SMALL, forge, made_up, write_original, write_transformers
from tests.helpers.fuzz_formats import write_torch
from tests.helpers.paths import REPOSITORY, VOCABULARY
from tests.helpers.tf_checkpoints import read_checkpoint

convert = albert_jax.convert
WITH_VOCABULARY = dataclasses.replace(SMALL, vocab_size=8000)


def refused(*arguments: Any, **flags: Any) -> str:
    """The one short sentence of a conversion that must change nothing."""
    parent = Path(arguments[1]).absolute().parent
    before = {p: p.is_file() and p.read_bytes() for p in sorted(parent.rglob("*"))}
    with pytest.raises(UserError) as caught:
        convert(*arguments, **flags)
    assert {p: p.is_file() and p.read_bytes() for p in sorted(parent.rglob("*"))} == before
    assert len(str(caught.value)) < 3000
    return str(caught.value)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    write_original(tmp_path / "original", made_up(), slots=True)
    return tmp_path / "original"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_transformers(tmp_path / "hf", made_up())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A transformers folder with a vocabulary, as `convert --to hf` writes it."""
    source = write_original(tmp_path / "tf", made_up(WITH_VOCABULARY), WITH_VOCABULARY).parent
    shutil.copyfile(VOCABULARY, source / "30k-clean.model")
    convert(source, tmp_path / "texts", "hf")
    return tmp_path / "texts"


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | changes))


# --------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("to", ["albert-jax", "hf", "tf"])
def test_weights_that_are_not_finite_are_refused_by_name(
    original: Path, hf: Path, value: float, to: Any
) -> None:
    root = original.parent
    variables = read_checkpoint(original)
    names = sorted(n for n in variables if n.endswith("kernel"))
    for name in names:
        variables[name] = variables[name].copy()
        variables[name][-1, -1] = value
    write_checkpoint(original / "model.ckpt-best", variables)
    told = refused(original, root / "no", to)
    assert f"NaN or infinities in {len(names)} of 32 tensors (" in told
    assert all(name in told for name in names)
    tensors = safetensors.numpy.load_file(hf / "model.safetensors")
    for name in tensors:
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[0] = value
    safetensors.numpy.save_file(tensors, hf / "model.safetensors")
    told = refused(hf, root / "no", to)
    assert "in 32 of 32 tensors" in told
    assert "and 22 more)" in told


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_that_is_not_finite_is_refused(hf: Path, dtype: Any) -> None:
    tensors = safetensors.numpy.load_file(hf / "model.safetensors")
    narrow = {name: array.astype(dtype) for name, array in tensors.items()}
    narrow["albert.pooler.bias"][3] = np.inf
    safetensors.numpy.save_file(narrow, hf / "model.safetensors")
    assert "in 1 of 32 tensors (albert.pooler.bias)" in refused(hf, hf.parent / "no")


def test_an_optimizer_that_is_not_finite_is_refused_where_it_is_asked_for(original: Path) -> None:
    variables = read_checkpoint(original)
    name = "bert/pooler/dense/bias/adam_v"
    variables[name] = np.full(8, np.nan, np.float32)
    write_checkpoint(original / "model.ckpt-best", variables)
    assert f"tensors ({name})" in refused(original, original.parent / "no", with_optimizer=True)
    convert(original, original.parent / "without")


def test_a_model_that_is_not_finite_has_no_answers(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each command says so; `verify` has a line for it."""
    tensors = safetensors.numpy.load_file(texts / "model.safetensors")
    tensors["albert.pooler.bias"][0] = np.nan
    safetensors.numpy.save_file(tensors, texts / "model.safetensors")
    monkeypatch.setattr(readers, "_check_finite", lambda *_: None)
    monkeypatch.setattr("albert_jax.checkpoint.model_export.require_finite", lambda *_: None)
    model = texts.parent / "model"
    convert(texts, model)
    monkeypatch.undo()
    told = f"the parameters of {model} hold NaN or infinities in 1 of 32 arrays (pooler/bias)"
    for load in (albert_jax.load, load_model):
        with pytest.raises(UserError, match=re.escape(told)):
            load(model)
    assert told in refused(model, model.parent / "no", "tf")
    capsys.readouterr()
    assert cli.main(["fill-mask", str(model), "a [MASK]"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert cli.main(["verify", str(model)]) == 2
    lines = r"PASS  files .*\nPASS  inventory .*\nFAIL  finite values .*has 1"
    assert re.search(lines, capsys.readouterr().out)


# ------------------------------------------------------------------------------- the configuration


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"num_hidden_layers": 50_000_000}, "num_hidden_layers 50000000 must be at most 1,000"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 must be at least 1"),
        ({"num_attention_heads": 10**9}, "is not a multiple of num_attention_heads 1000000000"),
        ({"num_attention_heads": 3}, "is not a multiple of num_attention_heads 3"),
        ({"hidden_size": 1e308}, "hidden_size 1e+308 must be a whole number"),
        ({"hidden_size": None}, "hidden_size None must be a whole number"),
        ({"vocab_size": 0}, "vocab_size 0 must be at least 1"),
        ({"vocab_size": [50]}, "vocab_size [50] must be a whole number"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps nan must be a finite number"),
        ({"initializer_range": float("inf")}, "initializer_range inf must be a finite number"),
        ({"inner_group_num": 101}, "inner_group_num 101 must be at most 100"),
        (
            {"num_hidden_layers": 99, "num_hidden_groups": 11, "inner_group_num": 91},
            "are 1,001 sets of parameters; at most 1,000",
        ),
        ({"layer_norm_eps": 1e308}, "layer_norm_eps 1e+308 must be at most 1"),
        ({"intermediate_size": 10**12}, "intermediate_size 1000000000000 must be at most"),
        ({"hidden_dropout_prob": 2.0}, "hidden_dropout_prob 2.0 must lie in [0, 1)"),
        ({"classifier_dropout_prob": 2.0}, "classifier_dropout_prob 2.0 must lie in [0, 1)"),
        ({"classifier_dropout_prob": "x"}, "classifier_dropout_prob 'x' must lie in [0, 1)"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is unknown; known: gelu, gelu_python"),
        ({"hidden_act": ["gelu"] * 10_000}, "hidden_act ['gelu', 'gelu', "),
        ({"model_type": ["x"] * 10_000}, "describes a ['x', 'x', "),
        (
            {"position_embedding_type": {"a": 1}},
            "position_embedding_type {'a': 1} is not supported",
        ),
        ({"max_position_embeddings": 1 << 40}, "must be at most"),
        ({"num_hidden_groups": 3}, "num_hidden_groups 3 exceeds num_hidden_layers 2"),
    ],
)
def test_absurd_values_of_config_json_are_one_sentence(
    hf: Path, values: dict[str, Any], told: str
) -> None:
    edit(hf / "config.json", **values)
    start = time.process_time()
    assert told in refused(hf, hf.parent / "no")
    assert time.process_time() - start < 1


@pytest.mark.peers
def test_activations_of_other_names_give_transformers_numbers(tmp_path: Path) -> None:
    activations = pytest.importorskip("transformers.activations")
    import jax.numpy as jnp
    import torch

    from albert_jax.config.model import TRANSFORMERS_ACTS
    from albert_jax.models.layers import ACTIVATIONS

    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    for theirs, ours in TRANSFORMERS_ACTS.items():
        expected = activations.ACT2FN[theirs](torch.tensor(x)).numpy()
        found = np.asarray(ACTIVATIONS[ours](jnp.asarray(x)))
        # Two float32 programs: a unit or two in the last place of 8.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6, err_msg=theirs)


@pytest.mark.peers
@pytest.mark.parametrize("act", ["silu", "gelu_python", "gelu_accurate"])
def test_a_model_of_such_an_activation_answers_as_transformers_does(
    tmp_path: Path, act: str
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = write_transformers(tmp_path / "hf", made_up())
    edit(source / "config.json", hidden_act=act)
    model = transformers.AlbertForPreTraining.from_pretrained(source).eval()
    ids = np.random.default_rng(1).integers(5, 50, (2, 9))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).prediction_logits.numpy()
    convert(source, tmp_path / "ours")
    found = albert_jax.load(tmp_path / "ours").forward(ids).masked_lm_logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    again = transformers.AlbertForPreTraining.from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        found = again(torch.tensor(ids)).prediction_logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


def test_silu_is_what_its_paper_says(tmp_path: Path) -> None:
    """Hendrycks and Gimpel, arXiv 1606.08415: x sigmoid(x); here in NumPy's float64."""
    from albert_jax.models.layers import ACTIVATIONS

    x = np.linspace(-8, 8, 401)
    found = np.asarray(ACTIVATIONS["silu"](x.astype(np.float32)))
    np.testing.assert_allclose(found, x / (1 + np.exp(-x)), rtol=0, atol=1e-6)
    source = write_transformers(tmp_path / "hf", made_up())
    edit(source / "config.json", hidden_act="swish")
    convert(source, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["hidden_act"] == "silu"
    notes = convert(tmp_path / "ours", tmp_path / "tf", "tf")["notes"]
    assert any("knows no 'silu'" in note for note in notes)


# ------------------------------------------------------------------------------------------- heads


def classifier(folder: Path, head: str = "classification", **changes: Any) -> Path:
    """A transformers folder of a fine-tuned model, its config.json changed."""
    labels = ["no", "yes", "maybe"] if head in ("classification", "multi_label") else None
    params = made_up(parts=("pooler",), head=head)
    write_transformers(folder, params, head={"kind": head, "labels": labels})
    edit(folder / "config.json", **changes)
    return folder


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("classification", "something"),
        ("classification", ["regression"]),
        ("regression", "single_label_classification"),
    ],
)
def test_another_kind_of_problem_is_refused_by_name(
    tmp_path: Path, head: str, problem: Any
) -> None:
    source = classifier(tmp_path / "hf", head, problem_type=problem)
    for to in ("albert-jax", "tf"):
        told = refused(source, tmp_path / "no", to)
        assert f"has the problem_type {problem!r}, which is not supported for its head" in told


def test_the_usual_problem_types_are_taken(tmp_path: Path) -> None:
    for head, problem in (
        ("classification", None),
        ("classification", "single_label_classification"),
        ("regression", None),
        ("regression", "regression"),
        ("multi_label", "multi_label_classification"),
        ("token_classification", "multi_label_classification"),  # which knows no problem_type
    ):
        shutil.rmtree(tmp_path / "hf", ignore_errors=True)
        source = classifier(tmp_path / "hf", head, problem_type=problem)
        assert convert(source, tmp_path / "ours")["head"]["kind"] == head
        convert(tmp_path / "ours", tmp_path / "back", "hf")
        back = json.loads((tmp_path / "back" / "config.json").read_text())
        assert back["problem_type"] == ("regression" if head == "regression" else problem)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"0": "a", "1": "b"}, "a head of 3 outputs and 2 labels"),
        ({}, "a head of 3 outputs and 0 labels"),
        ({"0": "a", "1": "a", "2": "b"}, "names labels more than once (a)"),
        ({"0": 1, "1": "1", "2": "b"}, "names labels more than once (1)"),
        ({"0": "a", "1": None, "2": "b"}, "id2label has None for a label"),
        ({"0": "a", "1": ["b"], "2": "b"}, "id2label has ['b'] for a label"),
        ({"1": "a", "2": "b", "3": "c"}, "must number the labels from 0"),
        ({"0": "a", "1": "b", "02": "c"}, "must number the labels from 0"),
        ({"0": "a", "1": "b", "9" * 5000: "c"}, "must number the labels from 0"),
        (["a", "b", "c"], "must be an object"),
        ({str(i): "a" * 99 for i in range(20_000)}, "names labels more than once"),
    ],
)
def test_labels_that_would_not_tell_the_outputs_apart_are_refused(
    tmp_path: Path, labels: Any, told: str
) -> None:
    source = classifier(tmp_path / "hf", id2label=labels)
    assert told in refused(source, tmp_path / "no")


def test_numbers_and_a_missing_table_are_labels(tmp_path: Path) -> None:
    source = classifier(tmp_path / "hf", id2label={"0": 1, "1": 2.5, "2": "c"})
    assert convert(source, tmp_path / "one")["head"]["labels"] == ["1", "2.5", "c"]
    edit(source / "config.json", id2label=None)
    assert convert(source, tmp_path / "two")["head"]["labels"] is None


# --------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("added_tokens.json", {"<new1>": 8000, "<new2>": 8001}, "<new1> at id 8000, <new2> at"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"8000": {"content": "<new1>", "special": False}}},
            "<new1> at id 8000",
        ),
        ("tokenizer_config.json", {"mask_token": "[MSK]"}, "mask_token [MSK]"),
        ("special_tokens_map.json", {"cls_token": {"content": "<s>"}}, "cls_token <s>"),
        ("special_tokens_map.json", {"pad_token": "[SEP]"}, "pad_token [SEP]"),
        ("special_tokens_map.json", {"bos_token": "<s>"}, "special token <s>"),
        (
            "special_tokens_map.json",
            {"additional_special_tokens": ["[CLS]", {"content": "<a>"}]},
            "special token <a>",
        ),
        ("tokenizer_config.json", {"extra_special_tokens": {"x": "<b>"}}, "special token <b>"),
        ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "class BertTokenizer"),
        (
            "tokenizer_config.json",
            {"sp_model_kwargs": {"enable_sampling": True}},
            "sampling of pieces at random",
        ),
        (
            "tokenizer.json",
            {"added_tokens": [{"id": 4, "content": "[MASK]"}, {"id": 9000, "content": "<f>"}]},
            "<f> at id 9000",
        ),
        ("added_tokens.json", {"(": 5, ")": 7}, ") at id 7"),
        ("added_tokens.json", {"▁the": 14}, "▁the at id 14"),
        (
            "added_tokens.json",
            {f"<{i}>": 8000 + i for i in range(100_000)},
            "and 99,990 more",
        ),
    ],
)
def test_a_tokenizer_that_makes_other_ids_is_refused_by_name(
    texts: Path, file: str, values: dict[str, Any], told: str
) -> None:
    """`--vocab` goes on without such tokens, and says so; `--no-vocab` without text."""
    root = texts.parent
    edit(texts / file, **values)
    for to in ("albert-jax", "tf"):
        said = refused(texts, root / "no", to)
        assert f"its tokenizer has {told}" in said or told in said
        assert "give spiece.model itself with vocab to go without these, or no_vocab=True" in said
    report = convert(texts, root / "with", vocab=texts / "spiece.model")
    assert any("albert_jax goes without" in note for note in report["notes"])
    assert load_model(root / "with").manifest["provenance"]["notes"] == report["notes"]
    assert convert(texts, root / "without", no_vocab=True)["vocabulary"] is None


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("tokenizer_config.json", {"do_lower_case": "false"}, "do_lower_case 'false' must be true"),
        ("tokenizer_config.json", {"do_lower_case": None}, "do_lower_case None must be true"),
    ],
)
def test_a_setting_of_another_type_is_refused(
    texts: Path, file: str, values: dict[str, Any], told: str
) -> None:
    edit(texts / file, **values)
    assert told in refused(texts, texts.parent / "no")


def test_odd_values_of_tokenizer_files_are_no_tracebacks(texts: Path) -> None:
    odd: list[Any] = [None, 3, -1.5, "x", [], ["x"], [[1]], {}, {"a": 1}, {"content": 5}, True]
    for file, keys in (
        ("special_tokens_map.json", ("mask_token", "bos_token", "additional_special_tokens")),
        (
            "tokenizer_config.json",
            ("added_tokens_decoder", "tokenizer_class", "sp_model_kwargs", "extra_special_tokens"),
        ),
        ("tokenizer.json", ("added_tokens",)),
        ("added_tokens.json", ("[MASK]",)),
    ):
        kept = (texts / file).read_bytes() if (texts / file).exists() else b"{}"
        for key in keys:
            for value in odd:
                (texts / file).write_bytes(kept)
                edit(texts / file, **{key: value})
                with contextlib.suppress(UserError):
                    read_tokenizer(texts)
        (texts / file).write_bytes(kept)


def test_a_piece_that_is_no_utf_8_is_damage(texts: Path) -> None:
    content = (texts / "spiece.model").read_bytes()
    (texts / "spiece.model").write_bytes(content.replace("\u2581the".encode(), b"\xff\xfe\xfdthe"))
    assert "spiece.model is damaged: a piece is no UTF-8" in refused(texts, texts.parent / "no")


@pytest.mark.peers
def test_the_tokenizer_files_of_transformers_itself_are_taken(texts: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for kind in ("AlbertTokenizer", "AlbertTokenizerFast"):
        folder = shutil.copytree(texts, tmp_path / kind)
        tokenizer = getattr(transformers, kind).from_pretrained(texts)
        tokenizer.save_pretrained(folder)
        assert convert(folder, tmp_path / "taken")["vocabulary"] == "spiece.model"
        tokenizer.add_tokens(["<new1>"])
        tokenizer.add_special_tokens({"mask_token": "[MSK]"})
        tokenizer.save_pretrained(folder)
        told = refused(folder, tmp_path / "no")
        assert "mask_token [MSK]" in told
        assert "<new1> at id" in told


# ------------------------------------------------------------------------- what is no checkpoint


def test_what_is_no_checkpoint_is_said_to_be_none(original: Path, hf: Path, tmp_path: Path) -> None:
    root = original.parent

    def told(path: Path | str) -> str:
        return refused(path, root / "no")

    (root / "notes.md").write_text("text")
    assert "notes.md is no checkpoint in a known format" in told(root / "notes.md")
    (root / "tf_model.h5").write_bytes(b"\x89HDF")
    assert "is no checkpoint in a known format" in told(root / "tf_model.h5")
    assert "is no checkpoint in a known format" in told("/dev/null")
    assert "does not exist" in told(root / "nowhere")
    assert "has no name" in told("")
    (root / "empty").mkdir()
    assert "holds no model that can be read" in told(root / "empty")
    (root / "some").mkdir()
    for name in ("a.safetensors", "b.bin"):
        (root / "some" / name).write_bytes(b"")
    assert "other files is the model, give it: a.safetensors, b.bin" in told(root / "some")
    (hf / "search.index").write_bytes(b"another program's")
    assert open_weights(hf).kind == "hf"
    both = shutil.copytree(original, root / "both")
    shutil.copyfile(hf / "model.safetensors", both / "model.safetensors")
    assert "holds two models, model.safetensors and model.ckpt-best.index" in told(both)
    shutil.copyfile(original / "model.ckpt-best.index", original / "another.index")
    assert "another.index, model.ckpt-best.index" in told(original)
    (root / "store" / "train").mkdir(parents=True)
    (root / "store" / "manifest.json").write_text('{"format_version": 1, "splits": {}}')
    assert "store is a token store, which holds text and no model" in told(root / "store")


def test_of_several_configurations_one_must_be_chosen(original: Path) -> None:
    root = original.parent
    (original / "albert_config.json").rename(original / "albert_config_a.json")
    convert(original, root / "one")
    other = shutil.copyfile(original / "albert_config_a.json", original / "albert_config_b.json")
    told = refused(original, root / "no")
    assert "(albert_config_a.json, albert_config_b.json); say which with config" in told
    convert(original, root / "two", config=other)


def test_what_runs_leave_is_said_to_be_theirs(original: Path) -> None:
    root = original.parent
    convert(original / "model.ckpt-best", root / "run" / "model")
    told = refused(root / "run", root / "no")
    assert f"run is a work directory; give the model in it, {root / 'run' / 'model'}" in told
    (root / "run" / "checkpoints").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (root / "run" / name).write_text("{}")
    assert "give the model in it" in refused(root / "run", root / "no")
    (root / "run" / "model" / "manifest.json").unlink()
    told = refused(root / "run" / "model", root / "no")
    assert "is a model directory that lacks manifest.json" in told
    shutil.rmtree(root / "run" / "model")
    told = refused(root / "run", root / "no")
    assert "is a work directory of a run that has not ended" in told
    assert f"with albert-jax export {root / 'run'} DEST" in told
    step = root / "run" / "checkpoints" / "3"
    for name in ("state", "meta"):
        (step / name).mkdir(parents=True)
    for path in (step, step.parent):
        assert f"{path} holds checkpoints of a training run" in refused(path, root / "no")
    (root / "models" / "a").mkdir(parents=True)
    convert(original / "model.ckpt-best", root / "models" / "b")
    shutil.copytree(original, root / "models" / "c")
    told = refused(root / "models", root / "no")
    assert "models holds no model itself; give one of its folders: b, c" in told


def test_a_model_directory_needs_no_configuration_and_no_head(original: Path) -> None:
    root = original.parent
    convert(original, root / "ours")
    assert "leave head out" in refused(root / "ours", root / "no", head="regression")
    config = original / "albert_config.json"
    assert "leave config out" in refused(root / "ours", root / "no", config=config)
    assert "exclude each other" in refused(root / "ours", root / "no", vocab="x", no_vocab=True)


def test_an_archive_may_hold_a_model_directory(original: Path) -> None:
    root = original.parent
    convert(original, root / "ours")
    with tarfile.open(root / "ours.tar.gz", "w:gz") as archive:
        archive.add(root / "ours", "ours")
    convert(root / "ours.tar.gz", root / "again")
    assert load_model(root / "again").config == SMALL
    with tarfile.open(root / "two.tar", "w") as archive:
        archive.add(root / "ours", "a/ours")
        archive.add(original, "b")
    assert "should hold one model, but holds 2 (a/ours, b)" in refused(
        root / "two.tar", root / "no"
    )


def test_a_manifest_with_forged_provenance_is_one_sentence(original: Path) -> None:
    root = original.parent
    convert(original, root / "ours")
    kept = (root / "ours" / "manifest.json").read_bytes()
    for changes, told in (
        ({"dtype": "float128"}, "$.dtype"),
        ({"dtype": 5}, "$.dtype"),
        ({"global_step": 1e308}, "$.global_step"),
        ({"global_step": 2**64}, "$.global_step"),
        ({"transformers": []}, "$.transformers"),
    ):
        (root / "ours" / "manifest.json").write_bytes(kept)
        forge(root / "ours", lambda m, c=changes: m["provenance"].update(c))
        for to in ("albert-jax", "hf", "tf"):
            assert told in refused(root / "ours", root / "no", to)


def test_words_of_transformers_config_cannot_change_the_architecture(original: Path) -> None:
    root = original.parent
    convert(original, root / "ours")
    forged = {"hidden_size": 9, "architectures": ["X"], "model_type": "bert", "own": 3}
    forge(root / "ours", lambda m: m["provenance"].update(transformers=forged))
    convert(root / "ours", root / "hf", "hf")
    values = json.loads((root / "hf" / "config.json").read_text())
    assert (values["hidden_size"], values["model_type"], values["own"]) == (8, "albert", 3)
    assert values["architectures"] == ["AlbertForPreTraining"]


def test_a_narrow_type_that_does_not_hold_the_weights_is_not_written(original: Path) -> None:
    root = original.parent
    convert(original, root / "ours")
    for dtype in ("float16", "bfloat16"):
        forge(root / "ours", lambda m, d=dtype: m["provenance"].update(dtype=d))
        notes = convert(root / "ours", root / "hf", "hf")["notes"]
        assert any(f"as {dtype} does not hold these weights exactly" in note for note in notes)
        assert "dtype" not in json.loads((root / "hf" / "config.json").read_text())
        convert(root / "hf", root / "back")
        tensors = [load_model(root / name).manifest["tensors"] for name in ("ours", "back")]
        assert tensors[0] == tensors[1]


# ---------------------------------------------------------------------------- many names, odd sizes


def test_of_many_foreign_names_ten_are_said_and_at_once(original: Path, hf: Path) -> None:
    root, count = original.parent, 20_000
    scope = "bert/foreign/layer_normalization_{}/gamma"
    one = np.zeros(1, np.float32)
    variables = {scope.format(i): one for i in range(count)}
    write_checkpoint(original / "model.ckpt-best", variables)
    start = time.process_time()
    told = refused(original, root / "no")
    assert time.process_time() - start < 5
    assert f"{count} not known: bert/foreign/layer_normalization_0/gamma [1], " in told
    assert f"and {count - 10:,} more" in told
    safetensors.numpy.save_file({f"x{i}": one for i in range(count)}, hf / "model.safetensors")
    start = time.process_time()
    assert f"and {count - 10:,} more" in refused(hf, root / "no")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (np.zeros(2, np.int64), "global_step int64[2], not a number"),
        (np.array(3.5, np.float32), "global_step float32[], not a number"),
        (np.array(b"x", object), "global_step object[], not a number"),
    ],
)
def test_an_odd_global_step_is_said(original: Path, step: np.ndarray, told: str) -> None:
    variables = read_checkpoint(original)
    write_checkpoint(original / "model.ckpt-best", variables | {"global_step": step})
    assert told in refused(original, original.parent / "no")


def test_a_tensor_of_an_unsupported_dtype_is_refused_only_if_the_model_needs_it(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = read_checkpoint(original)
    slot = {"bert/pooler/dense/bias/Adam": np.zeros(3, np.uint16)}
    write_checkpoint(original / "model.ckpt-best", variables | slot)
    monkeypatch.delitem(tf_bundle.DTYPES, 17)  # uint16
    convert(original, original.parent / "converted")
    reader = CheckpointReader.open(original)
    with pytest.raises(UserError, match="bias/Adam is of TensorFlow's DataType 17, which is not"):
        reader.read("bert/pooler/dense/bias/Adam")
    needed = {"bert/pooler/dense/bias": variables["bert/pooler/dense/bias"].astype(np.uint16)}
    monkeypatch.setitem(tf_bundle.DTYPES, 17, np.dtype(np.uint16))
    write_checkpoint(original / "model.ckpt-best", variables | needed)
    monkeypatch.delitem(tf_bundle.DTYPES, 17)
    told = "neither float32, float16 nor bfloat16: bert/pooler/dense/bias is object"
    assert told in refused(original, original.parent / "no")


def test_small_files_that_would_take_much_memory_are_refused(hf: Path) -> None:
    root = hf.parent
    kept = (hf / "config.json").read_text()
    (hf / "config.json").write_text(kept[:-2] + ',"x":[' + "[]," * 1_500_000 + "0]}")
    assert "is not readable JSON (4,5" in refused(hf, root / "no")
    (hf / "config.json").write_text(kept)
    (hf / "model.safetensors").unlink()
    write_torch(hf / "pytorch_model.bin", {}, b"\x80\x02" + b"}" * (1 << 21) + b".")
    assert "data.pkl has 2097155 bytes" in refused(hf, root / "no")
    (hf / "pytorch_model.bin").unlink()
    names = b"".join(b"\xa4%04x\x80" % i for i in range(1 << 15))
    half = b"\xdf" + (1 << 15).to_bytes(4, "big") + names
    (hf / "flax_model.msgpack").write_bytes(b"\x83\xa1a" + half + b"\xa1b" + half + b"\xa1c\x80")
    assert "it has more than 65,536 names" in refused(hf, root / "no")


def test_a_file_that_may_not_be_read_is_said(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("albert_jax.checkpoint.convert.sources.is_archive", forbidden)
    index = original / "model.ckpt-best.index"
    assert f"{index} cannot be read: Permission denied" in refused(index, original.parent / "no")


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "a/b", "../x"])
def test_an_index_of_parts_names_files_of_its_folder_only(hf: Path, name: str) -> None:
    (hf / "model.safetensors").unlink()
    index = {"weight_map": {"a": name, "b": "model.safetensors.index.json"}}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names files outside its folder" in refused(hf, hf.parent / "no")
    index = {"weight_map": {"b": "model.safetensors.index.json"}}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "cannot be read as a safetensors file" in refused(hf, hf.parent / "no")


def test_links_are_followed_and_loops_are_not_there(original: Path) -> None:
    """The hub's cache is made of links."""
    root = original.parent
    folder = root / "links"
    folder.mkdir()
    for path in original.iterdir():
        (folder / path.name).symlink_to(path)
    convert(folder, root / "ours")
    (root / "loop").symlink_to(root / "loop")
    assert "does not exist" in refused(root / "loop", root / "no")


# -------------------------------------------------------------------------------------- destination


@pytest.mark.parametrize("to", ["albert-jax", "hf", "tf"])
def test_the_source_is_never_the_destination(original: Path, to: Any) -> None:
    root = original.parent
    source = root / "source"
    convert(original, source, to)
    (root / "link").symlink_to(source)
    for dest in (source, root / "link", source / ".." / "source"):
        told = refused(source, dest, to)
        assert "is the input itself; name another place for dest" in told, dest
    assert "is the input itself" in refused(root / "link", source, to)
    inside = root / "outer" / "inner"
    convert(original, inside, to)
    assert "holds the input" in refused(inside, root / "outer", to)
    if to == "tf":
        assert "holds the input" in refused(source / "model.ckpt-best", source, to)
    if to == "hf":
        assert "holds the input" in refused(source / "model.safetensors", source, to)
    config = source / ("config.json" if to == "hf" else "albert_config.json")
    assert "holds the input" in refused(original, source, to, config=config)


def test_the_destination_is_a_folder_here(original: Path) -> None:
    for to in ("albert-jax", "hf", "tf"):
        assert "is an address" in refused(original, "gs://bucket/model", to)


def test_export_does_not_write_over_its_work_directory(tmp_path: Path, capsys: Any) -> None:
    work = tmp_path / "runs" / "base"
    (work / "checkpoints").mkdir(parents=True)
    (work / "config.json").write_text("{}")
    for dest, told in (
        (work, "is the input itself; name another place for DEST"),
        (tmp_path / "runs", "holds the input"),
        ("gs://bucket/model", "is an address"),
    ):
        assert cli.main(["export", str(work), str(dest)]) == 2
        assert told in capsys.readouterr().err
    assert (work / "config.json").read_text() == "{}"


# ------------------------------------------------------------------------- room and temporary files


def temporary_folders(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_an_archive_that_needs_more_room_than_there_is_says_how_much(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = original.parent
    with tarfile.open(root / "model.tar.gz", "w:gz") as archive:
        archive.add(original, "albert")
    size = sum(path.stat().st_size for path in original.iterdir())
    (root / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(root / "temporary"))
    monkeypatch.setattr(
        archives.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000, 0, 9_000)
    )
    told = refused(root / "model.tar.gz", root / "no")
    assert f"needs {size:,} bytes in the temporary folder {root / 'temporary'}" in told
    assert "which has 9,000 free; set TMPDIR" in told
    assert temporary_folders(root / "temporary") == []


def test_no_temporary_folder_is_needed_for_a_folder_and_said_for_an_archive(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = original.parent
    with tarfile.open(root / "model.tar.gz", "w:gz") as archive:
        archive.add(original, "albert")
    monkeypatch.setattr("tempfile.tempdir", str(root / "nowhere"))
    convert(original, root / "ours")
    assert "no temporary folder can be made" in refused(root / "model.tar.gz", root / "no")


SLOW = """
import sys, time
from albert_jax import __main__
from albert_jax.checkpoint import model_export
from albert_jax.checkpoint.convert import archives, convert, writers
def wait(*_, **__):
    print("waiting", flush=True)
    time.sleep(60)
source, dest, where, to = sys.argv[1:]
module, name = where.rsplit(".", 1)
modules = {"archives": archives, "writers": writers, "model_export": model_export}
setattr(modules[module], name, wait)
sys.argv[1:] = ["convert", source, dest, "--to", to]
sys.exit(__main__.main())
"""


@pytest.mark.parametrize(
    ("where", "to"),
    [
        ("archives._read_on", "hf"),
        ("writers.write_checkpoint", "tf"),
        ("model_export.array_table", "albert-jax"),
    ],
)
def test_sigterm_leaves_nothing(original: Path, where: str, to: str) -> None:
    """Neither in the temporary folder nor beside the destination, wherever it finds `convert`."""
    root = original.parent
    with tarfile.open(root / "model.tar.gz", "w:gz") as archive:
        archive.add(original, "albert")
    shutil.rmtree(original)
    for name in ("temporary", "out"):
        (root / name).mkdir()
    command = [sys.executable, "-c", SLOW, root / "model.tar.gz", root / "out" / "model", where, to]
    process = subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(root / "temporary")},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "waiting\n", process.communicate()
        assert temporary_folders(root / "temporary") != []
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert temporary_folders(root / "temporary") == []
    assert temporary_folders(root / "out") == []


# -------------------------------------------------------------------------------------- two writers

RACE = """
import sys, time
from pathlib import Path
from albert_jax.cli import main as cli
go, *arguments = sys.argv[1:]
import albert_jax.checkpoint.convert.convert
print("ready", flush=True)
while not Path(go).exists():
    time.sleep(0.001)
sys.exit(cli.main(["convert", *arguments]))
"""


@pytest.mark.parametrize(("first", "second"), [("albert-jax", "albert-jax"), ("hf", "tf")])
def test_of_two_processes_that_write_one_destination_each_is_whole_or_refused(
    original: Path, hf: Path, tmp_path: Path, first: str, second: str
) -> None:
    go, dest = tmp_path / "go", tmp_path / "out" / "model"
    command = [sys.executable, "-c", RACE, go]
    processes = [
        subprocess.Popen(
            [*command, source, dest, "--to", to],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for source, to in ((original, first), (hf, second))
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    ended = [(process.communicate(timeout=120), process.returncode) for process in processes]
    written = [to for (_, rc), to in zip(ended, (first, second), strict=True) if rc == 0]
    for (out, err), rc in ended:
        assert rc in (0, 2), err
        assert out == ("" if rc else f"{dest}\n")
        if rc:
            (line,) = [x for x in err.splitlines() if x.startswith("albert-jax: ")]
            assert re.search("is being written by (pid|another process)|exists and", line)
    assert written
    if first != second:
        assert len(written) == 1, "the other must not replace it"
    convert(dest, tmp_path / "read")  # whole, and of the kind that was written
    expected = "albert_config.json" if written[0] != "hf" else "config.json"
    assert (dest / expected).exists()
    assert temporary_folders(dest.parent) == ["model"]
