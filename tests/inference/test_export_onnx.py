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
from albert_jax.inference.api import load
from albert_jax.inference.export_onnx import _description, export_onnx
from albert_jax.inference.finetuned import load_fine_tuned
from albert_jax.inference.serving_folder import INPUTS
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
    given = {name: x.astype(np.int64) for name, x in zip(INPUTS, arrays, strict=True)}
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
    served = export_onnx(model, tmp_path / "served")
    rng = np.random.default_rng(3)
    mask = (np.arange(20) < np.array([[20], [3], [11]])).astype(np.int32)
    arrays = [rng.integers(90, size=(3, 20)) * mask, mask, (np.arange(20) > 8) * mask]
    found = run(runtime, served / "encode.onnx", arrays)
    wanted = load(model).forward(*arrays)
    np.testing.assert_allclose(found["sequence"], wanted.sequence * mask[..., None], **CLOSE)
    np.testing.assert_allclose(found["pooled"], wanted.pooled, **CLOSE)
    # Each weight is there once, however often its layer runs.
    size = sum(x.nbytes for x in _leaves(load(model).params))
    assert (served / "encode.onnx").stat().st_size < size + 60_000


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
    assert cli.main([*arguments, "--top-k", "3"]) == 2
    assert "leave out --top-k and --dtype" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "needs onnx and onnxruntime; pip install 'albert-jax[onnx]'" in said
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="is span_v2, which has no ONNX graph"):
        export_onnx(task_model(tmp_path / "squad2", "squad2"), dest)
    assert not dest.exists()
