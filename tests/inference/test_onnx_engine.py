# SPDX-License-Identifier: Apache-2.0
"""Answers by ONNX Runtime against those by JAX, and what this engine refuses."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main as cli
from albert_jax.config.model import ComputeConfig
from albert_jax.inference.api import Albert
from albert_jax.inference.finetuned import load_fine_tuned
from albert_jax.utils.errors import UserError
from tests.helpers.models import noisy_model
from tests.helpers.task_models import task_model

CLOSE = {"atol": 2e-5, "rtol": 0}  # two float32 implementations of a few layers
# Of several lengths, so that some share a batch; and more than a batch of 1,024 tokens.
TEXTS = ["the list", "", "a file is open and the list of the file is not open", "is it"] * 9


@pytest.fixture(scope="module")
def installed() -> None:
    reason = "needs onnx and onnxruntime, which albert-jax[onnx] installs"
    pytest.importorskip("onnx", reason=reason)
    pytest.importorskip("onnxruntime", reason=reason)


def with_runtime(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.extras(pytest.mark.usefixtures("installed")(test))


@pytest.fixture(scope="module")
def pair(installed: None) -> tuple[Albert, Albert]:
    return albert_jax.load("mini"), albert_jax.load("mini", engine="onnx")


@with_runtime
def test_masked_words_have_the_same_answers(pair: tuple[Albert, Albert]) -> None:
    texts = ["He was born in [MASK] 1912.", "The [MASK] of the [MASK] is long and very old."]
    for settings in ({}, {"top_k": 1}, {"top_k": 12}, {"targets": ["may", "king", "june"]}):
        jax, onnx = (albert.fill_mask(texts, **settings) for albert in pair)
        gaps = [(jax[0], onnx[0]), *zip(jax[1], onnx[1], strict=True)]
        for wanted, found in gaps:
            assert [x["token"] for x in found] == [x["token"] for x in wanted]
            assert [x["sequence"] for x in found] == [x["sequence"] for x in wanted]
            scores = [[x["score"] for x in each] for each in (found, wanted)]
            np.testing.assert_allclose(*scores, **CLOSE)


@with_runtime
@pytest.mark.parametrize("pool", [None, "cls", "mean"])
@pytest.mark.parametrize("layer", [-1, 2])
def test_vectors_are_the_same(pair: tuple[Albert, Albert], pool: str | None, layer: int) -> None:
    jax, onnx = (albert.encode(TEXTS, pool=pool, layer=layer) for albert in pair)
    np.testing.assert_array_equal(onnx.mask, jax.mask)
    for name in ("sequence", "pooled"):
        wanted, found = getattr(jax, name), getattr(onnx, name)
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, **CLOSE)


@with_runtime
def test_windows_and_the_order_of_sentences_are_the_same(pair: tuple[Albert, Albert]) -> None:
    long = "the list of the file is open " * 40
    windows = [a.encode([long, "short"], pool="mean", long="windows").pooled for a in pair]
    np.testing.assert_allclose(*windows, **CLOSE)
    orders = [a.score_order(TEXTS, TEXTS[::-1]) for a in pair]
    np.testing.assert_allclose(*orders, **CLOSE)
    assert orders[1].dtype == np.float32


@with_runtime
def test_the_engine_is_named_and_computes_in_float32(pair: tuple[Albert, Albert]) -> None:
    assert "float32 by ONNX Runtime" in repr(pair[1])
    assert "ONNX" not in repr(pair[0])
    chosen = albert_jax.load("mini", engine="onnx", compute=ComputeConfig(dtype="auto"))
    assert chosen.compute.dtype == "float32"
    shallow = [albert_jax.load("mini", engine=e, depth=1).encode("a list") for e in ("jax", "onnx")]
    np.testing.assert_allclose(shallow[1].sequence, shallow[0].sequence, **CLOSE)


@with_runtime
def test_a_model_without_a_pooler_has_no_pooled_vector(tmp_path: Path) -> None:
    mini = albert_jax.load(noisy_model(tmp_path / "model"))
    params = {name: x for name, x in mini.params.items() if name in ("embeddings", "encoder")}
    found = Albert(mini.config, params, mini.tokenizer, engine="onnx").encode("the list")
    assert found.pooled is None


@with_runtime
def test_an_output_that_is_not_finite_is_an_error(
    pair: tuple[Albert, Albert], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (np.full((1, 1, 8), np.nan, np.float32), np.zeros((1, 1, 8), np.int64))
    monkeypatch.setattr(pair[1]._onnx, "fill_mask", lambda *arrays, **settings: broken)
    with pytest.raises(UserError, match="not finite"):
        pair[1].fill_mask("a [MASK]")


RECORDS = {
    "single": ["the list is open", "a file"],
    "multi-label": ["the list is open", "a file"],
    "stsb": [("the list", "a file is open"), ("a", "b")],
    "similarity": [("the list", "a file is open"), ("a", "b")],
    "race": [
        {"article": "a file", "question": "is it _ ?", "options": ["a", "b list", "c", "d"]},
        {"article": "a list is a file", "question": "_", "options": ["a", "b", "open", "d"]},
    ],
    "token-classification": ["the list is open", "a file"],
    "squad1": [("what is open?", "the list of the file is open")],
}


@with_runtime
@pytest.mark.parametrize("task", RECORDS)
def test_heads_answer_the_same(task: str, tmp_path: Path) -> None:
    model = task_model(tmp_path / "model", task)
    wanted, found = (
        albert_jax.load(model, engine=engine).predict(RECORDS[task]) for engine in ("jax", "onnx")
    )
    for one, other in zip(found, wanted, strict=True):
        if task in ("stsb", "similarity"):
            assert one.prediction == pytest.approx(other.prediction, abs=2e-5)
        else:
            assert one.prediction == other.prediction
        for label, share in (other.probabilities or {}).items():
            assert one.probabilities[label] == pytest.approx(share, abs=2e-5)


@with_runtime
def test_commands_take_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    printed = []
    for engine in ("jax", "onnx"):
        assert cli.main(["fill-mask", "mini", "He [MASK].", "--engine", engine]) == 0
        assert cli.main(["score-order", "mini", "He came.", "He saw.", "--engine", engine]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    model = task_model(tmp_path / "model", "single")
    texts = tmp_path / "texts.txt"
    texts.write_text("the list is open\na file\n")
    for engine in ("jax", "onnx"):
        arguments = ["predict", "--model", str(model), "--input", str(texts), "--engine", engine]
        assert cli.main(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert len(printed[2].splitlines()) == 2
    assert [x[:40] for x in printed[3].splitlines()] == [x[:40] for x in printed[2].splitlines()]


@with_runtime
def test_what_has_no_graph_is_refused(tmp_path: Path) -> None:
    model = task_model(tmp_path / "single", "single")
    with pytest.raises(UserError, match="engine='onnx' has no graph for exit"):
        albert_jax.load(model, engine="onnx").predict("a list", exit="patience=1")
    with pytest.raises(UserError, match="engine='onnx' has no graph for pack"):
        albert_jax.load(model, engine="onnx").predict(["a list"], pack=64)
    span = task_model(tmp_path / "squad2", "squad2")
    with pytest.raises(UserError, match="span_v2 head, which has no ONNX graph; leave out"):
        albert_jax.load(span, engine="onnx").predict(("what?", "the list"))
    with pytest.raises(UserError, match="engine='onnx' computes in float32, not in bfloat16"):
        albert_jax.load("mini", engine="onnx", compute=ComputeConfig(dtype="bfloat16"))


@with_runtime
def test_both_kinds_of_model_compute_in_float32(tmp_path: Path) -> None:
    model = task_model(tmp_path / "single", "single")
    auto = ComputeConfig(dtype="auto")
    assert albert_jax.load(model, engine="onnx", compute=auto).compute.dtype == "float32"
    fine_tuned = load_fine_tuned(model, engine="onnx", compute=auto)
    assert "bfloat16" not in str(fine_tuned.broken("a text"))
    assert fine_tuned.outputs.model.dtype == "float32"


def test_a_missing_library_and_an_unknown_engine_are_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match="engine 'tvm' must be one of jax, onnx"):
        albert_jax.load("mini", engine="tvm")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["fill-mask", "mini", "a [MASK]", "--engine", "onnx"]) == 2
    said = capsys.readouterr().err
    assert "engine onnx needs onnx and onnxruntime; pip install 'albert-jax[onnx]'" in said
