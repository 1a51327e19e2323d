# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs of models and heads, run by onnxruntime, against the models themselves."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from albert_jax.cli import main as cli
from albert_jax.config.model import ComputeConfig
from albert_jax.inference.api import load
from albert_jax.inference.export import export_serving
from albert_jax.inference.export_onnx import _description, export_onnx
from albert_jax.inference.finetuned import load_fine_tuned
from albert_jax.inference.id_arrays import INPUTS
from albert_jax.tasks import find_task
from albert_jax.tasks.collate import as_rows, collate
from albert_jax.utils.errors import UserError
from tests.helpers.models import noisy_model, tiny_albert
from tests.helpers.task_models import task_model

# Two float32 implementations of a few layers; `export` allows 1e-5 of the largest value.
CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture
def runtime() -> ModuleType:
    reason = "needs onnx and onnxruntime, which albert-jax[onnx] installs"
    pytest.importorskip("onnx", reason=reason)
    return pytest.importorskip("onnxruntime", reason=reason)


def run(runtime: ModuleType, path: Path, arrays: list[np.ndarray]) -> dict[str, Any]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = [value.name for value in session.get_inputs()]
    assert inputs[:3] == list(INPUTS)
    given = {name: x.astype(np.int64) for name, x in zip(inputs, arrays, strict=True)}
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.extras
@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param({"hidden_act": "gelu_erf", "embedding_size": 16}, marks=pytest.mark.slow),
        pytest.param({"hidden_act": "silu"}, marks=pytest.mark.slow),
    ],
    ids=["shared", "groups", "gelu_erf", "silu"],
)
def test_a_graph_of_random_weights_gives_forwards_numbers(runtime, tmp_path, changes) -> None:
    model = noisy_model(tmp_path / "model", tiny_albert(**changes), vocab=None)
    served = export_onnx(model, tmp_path / "served", top_k=3)
    rng = np.random.default_rng(3)
    mask = (np.arange(20) < np.array([[20], [3], [11]])).astype(np.int32)
    arrays = [rng.integers(90, size=(3, 20)) * mask, mask, (np.arange(20) > 8) * mask]
    found = run(runtime, served / "encode.onnx", arrays)
    positions = np.array([[1, 19, 7, 7], [0, 2, 1, 1], [10, 3, 0, 5]])
    wanted = load(model).forward(*arrays, positions)
    np.testing.assert_allclose(found["sequence"], wanted.sequence * mask[..., None], **CLOSE)
    np.testing.assert_allclose(found["pooled"], wanted.pooled, **CLOSE)
    found = run(runtime, served / "fill_mask.onnx", [*arrays, positions])
    exps = np.exp(wanted.masked_lm_logits.astype(np.float64))
    probs = exps / exps.sum(axis=-1, keepdims=True)
    likeliest = np.argsort(-probs, axis=-1)[..., :3]
    assert found["tokens"].tolist() == likeliest.tolist()
    np.testing.assert_allclose(
        found["scores"], np.take_along_axis(probs, likeliest, axis=-1), **CLOSE
    )
    # Each weight is there once, however often its layer runs.
    size = sum(x.nbytes for x in _leaves(load(model).params))
    for graph in ("encode", "fill_mask"):
        assert (served / f"{graph}.onnx").stat().st_size < size + 60_000


@pytest.mark.extras
@pytest.mark.slow
def test_a_graph_fills_in_a_mask_as_the_model_does(runtime, tmp_path) -> None:
    albert = load("mini")
    served = export_serving("mini", tmp_path / "served", to="onnx")
    text = "the input array must have the same [MASK] as the output."
    ids = albert.tokenizer.encode(text, add_special_tokens=True, parse_special=True).ids
    arrays = [np.array([x]) for x in (ids, [1] * len(ids), [0] * len(ids))]
    place = [[ids.index(albert.tokenizer.special.mask)]]
    found = run(runtime, served / "fill_mask.onnx", [*arrays, np.array(place)])
    answers = albert.fill_mask(text, top_k=5)
    assert found["tokens"][0, 0].tolist() == [answer["token"] for answer in answers]
    scores = [answer["score"] for answer in answers]
    np.testing.assert_allclose(found["scores"][0, 0], scores, **CLOSE)
    served_as = json.loads((served / "serving.json").read_text())["programs"]["fill_mask"]
    assert served_as["inputs"]["masked_lm_positions"] == "B,P"
    assert served_as["outputs"] == {"scores": "B,P,5", "tokens": "B,P,5"}


def _leaves(tree: Any) -> list[np.ndarray]:
    return [y for x in tree.values() for y in (_leaves(x) if isinstance(x, dict) else [x])]


RECORDS = {
    "single": {"text": "the list is open"},
    "stsb": {"sentence1": "the list", "sentence2": "a file is open"},
    "race": {"article": "a file", "question": "is it _ ?", "options": ["a", "b list", "c", "d"]},
    "token-classification": {"words": ["the", "list", "is", "open"]},
    "squad1": {"question": "what is open?", "context": "the list of the file is open"},
}


@pytest.mark.extras
@pytest.mark.slow
@pytest.mark.parametrize("task", RECORDS)
def test_a_graph_of_a_head_gives_what_its_answers_are_made_of(runtime, task, tmp_path) -> None:
    model = task_model(tmp_path / "model", task)
    served = export_onnx(model, tmp_path / "served")
    fine_tuned = load_fine_tuned(model)
    example = find_task(task).from_record(RECORDS[task], 0, "here")
    (row,) = as_rows(fine_tuned.task.features(example, 0, fine_tuned.tokenizer, 32))
    wanted = fine_tuned([row])[0]
    batch = collate([row], row.length, targets=False)
    found = run(runtime, served / "predict.onnx", [batch[name] for name in INPUTS])
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name][0], array, **CLOSE)
    description = json.loads((served / "serving.json").read_text())
    assert description["head"]["task"] == task
    assert description["tokenizer"] == {"mode": "google", "do_lower_case": True}
    assert (served / "spiece.model").is_file()


def test_the_description_says_how_text_is_cleaned(tmp_path: Path) -> None:
    settings = {"mode": "hf", "do_lower_case": True, "keep_accents": True}
    model = noisy_model(tmp_path / "model", tokenizer=settings)
    albert = load(model)
    assert _description(albert, {})["tokenizer"] == albert.tokenizer.settings
    assert albert.tokenizer.settings["keep_accents"] is True


def test_what_cannot_be_exported_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    dest = tmp_path / "served"
    arguments = ["export-serving", "mini", str(dest), "--to", "onnx"]
    assert cli.main([*arguments, "--dtype", "bfloat16"]) == 2
    assert "--to onnx exports only float32; leave out --dtype" in capsys.readouterr().err
    with pytest.raises(UserError, match="to='onnx' exports only float32; leave out compute"):
        export_serving("mini", dest, to="onnx", compute=ComputeConfig(dtype="bfloat16"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "needs onnx and onnxruntime; pip install 'albert-jax[onnx]'" in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="span_v2 head, which has no ONNX graph; export its"):
        export_onnx(task_model(tmp_path / "squad2", "squad2"), dest)
    assert not dest.exists()
