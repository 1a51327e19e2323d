# SPDX-License-Identifier: Apache-2.0
"""Exported programs, run by a process without this package, against the model itself."""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from albert_jax.checkpoint.model_export import export_model
from albert_jax.config.model import ComputeConfig
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference import export, serving_check
from albert_jax.inference.api import load
from albert_jax.inference.export import export_serving
from albert_jax.inference.finetuned import load_fine_tuned
from albert_jax.inference.predict import predict
from albert_jax.tasks import find_task
from albert_jax.tasks.collate import as_rows, collate
from albert_jax.utils.errors import UserError
from tests.helpers.compressed import read_compressed
from tests.helpers.models import noisy_model, noisy_params, tiny_albert, worded_albert
from tests.helpers.paths import REPOSITORY
from tests.helpers.task_models import task_model

pytest.importorskip("flatbuffers")


# All that a server needs to know, as the documentation has it: the programs, and text to ids.
LOADER, ENCODER, CLASSIFIER = re.findall(
    r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "serving.md").read_text(), re.M | re.S
)

# Runs both programs on every batch of inputs.npz, in a process that must not see this package.
SERVER = """
import sys

inputs = dict(np.load("inputs.npz"))
encode, fill_mask = load("served", "encode"), load("served", "fill_mask")
outputs = {}
for n in sorted({name.split("/")[0] for name in inputs}):
    ids, mask, segments, positions = (inputs[f"{n}/{k}"] for k in range(4))
    answers = {**encode(ids, mask, segments), **fill_mask(ids, mask, segments, positions)}
    outputs |= {f"{n}/{name}": np.asarray(x) for name, x in answers.items()}
np.savez("outputs.npz", **outputs)
foreign = {"albert_jax", "flax", "orbax", "torch", "sentencepiece"} & sys.modules.keys()
assert not foreign, foreign
"""


# Encodes texts.json for each folder, without this package.
ENCODES = """
import sys

texts = json.load(open("texts.json"))
ids = {}
for folder in sys.argv[1:]:
    encode = load_encode(folder)
    ids[folder] = [[encode(text), encode(text, parse_special=True)] for text in texts]
json.dump(ids, open("ids.json", "w"))
foreign = {"albert_jax", "jax", "numpy"} & sys.modules.keys()
assert not foreign, foreign
"""

# Classifies texts.json, in a process in which this package cannot be imported.
CLASSIFIES = """
import importlib.abc
import sys


class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("albert_jax", "flax", "orbax", "optax", "transformers"):
            raise ImportError(f"{name} is not on this server")


sys.meta_path.insert(0, Blocked())
classify = load_classifier("served")
json.dump([classify(*texts) for texts in json.load(open("texts.json"))], open("out.json", "w"))
"""

TOKENIZER_DATA = REPOSITORY / "tests" / "data" / "tokenizer"


def make_model(folder, config, params, mode="google", do_lower_case=True, vocab=True):
    return export_model(
        folder,
        params=params,
        config=config,
        vocab=TOKENIZER_DATA / "en8k.model" if vocab else None,
        tokenizer={"mode": mode, "do_lower_case": do_lower_case},
        provenance={},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return noisy_model(tmp_path_factory.mktemp("serving") / "model")


@pytest.fixture(scope="module")
def served(model):
    return export_serving(model, model.parent / "served", top_k=7)


def test_a_process_with_jax_and_numpy_alone_answers_as_forward_does(model, served):
    rng = np.random.default_rng(1)
    inputs, batches = {}, ((1, 9, 1), (4, 33, 2), (2, 128, 5))
    for n, (rows, length, masked) in enumerate(batches):
        mask = (np.arange(length) < rng.integers(2, length + 1, (rows, 1))).astype(np.int32)
        inputs |= {
            f"{n}/0": rng.integers(8000, size=(rows, length), dtype=np.int32) * mask,
            f"{n}/1": mask,
            f"{n}/2": (np.arange(length) > length // 2).astype(np.int32) * mask,
            f"{n}/3": rng.integers(length, size=(rows, masked), dtype=np.int32),
        }
    np.savez(served.parent / "inputs.npz", **inputs)
    # -P leaves the folder we are in out of the path, in which the package is.
    command = [sys.executable, "-P", "-c", LOADER + SERVER]
    subprocess.run(command, check=True, cwd=served.parent, timeout=200)
    found = np.load(served.parent / "outputs.npz")
    albert = load(model)
    for n in range(len(batches)):
        arrays = [inputs[f"{n}/{k}"] for k in range(4)]
        wanted = albert.forward(*arrays)
        close = {"atol": 1e-5, "rtol": 0}
        np.testing.assert_allclose(found[f"{n}/pooled"], wanted.pooled, **close)
        np.testing.assert_allclose(
            found[f"{n}/sequence"], wanted.sequence * arrays[1][..., None], **close
        )
        odds = np.exp(wanted.masked_lm_logits.astype(np.float64))
        probs = odds / odds.sum(-1, keepdims=True)
        best = np.argsort(-probs)[..., :7]
        np.testing.assert_array_equal(found[f"{n}/tokens"], best)
        np.testing.assert_allclose(
            found[f"{n}/scores"], np.take_along_axis(probs, best, -1), **close
        )


@pytest.mark.parametrize("mode", ["google", "hf"])
@pytest.mark.parametrize("do_lower_case", [True, False])
def test_text_becomes_the_models_own_ids_without_this_package(
    served, tmp_path, mode, do_lower_case
):
    # The settings are all that differs between the exports of two models.
    folder = shutil.copytree(served, tmp_path / "served")
    description = json.loads((folder / "serving.json").read_text())
    description["tokenizer"] = {"mode": mode, "do_lower_case": do_lower_case}
    (folder / "serving.json").write_text(json.dumps(description))
    golden = json.loads(read_compressed(TOKENIZER_DATA / "tokenizer_en8k.json"))
    texts = [row["text"] for row in golden["strings"]]
    texts += ["", "The [MASK] of [SEP]", "1,234,567 and 9,", "\ud800 x", "``ΣΑΣ'' É", "\0 a\x07"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    command = [sys.executable, "-P", "-c", ENCODER + ENCODES, "served"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=60)
    found = json.loads((tmp_path / "ids.json").read_text())["served"]
    own = Tokenizer.load(TOKENIZER_DATA / "en8k.model", mode=mode, do_lower_case=do_lower_case)
    wanted = [[own.encode(text).ids, own.encode(text, parse_special=True).ids] for text in texts]
    assert found == wanted
    assert Tokenizer.load(folder).encode("``Hello'' É").ids == own.encode("``Hello'' É").ids


def test_the_export_says_how_the_models_text_is_cleaned(tmp_path):
    params = {name: x for name, x in noisy_params(worded_albert()).items() if name.startswith("e")}
    model = make_model(
        tmp_path / "model",
        worded_albert(),
        params,
        mode="hf",
        do_lower_case=False,
    )
    served = export_serving(model, tmp_path / "served")
    description = json.loads((served / "serving.json").read_text())
    assert description["tokenizer"] == {"mode": "hf", "do_lower_case": False}
    model = make_model(
        tmp_path / "without",
        worded_albert(),
        params,
        vocab=False,
    )
    served = export_serving(model, tmp_path / "served without")
    assert json.loads((served / "serving.json").read_text())["tokenizer"] is None
    assert not (served / "spiece.model").exists()


def test_the_folder_is_as_documented(served):
    names = {path.name for path in served.iterdir()}
    assert names == {
        "encode.jax_export",
        "fill_mask.jax_export",
        "params.npz",
        "serving.json",
        "spiece.model",
    }
    description = json.loads((served / "serving.json").read_text())
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    program = description["programs"]["fill_mask"]
    assert program["inputs"]["masked_lm_positions"] == "int32[B,P]"
    assert program["outputs"] == {"scores": "float32[B,P,7]", "tokens": "int32[B,P,7]"}
    # The weights are in none of the programs.
    assert max(path.stat().st_size for path in served.glob("*.jax_export")) < 100_000


def test_a_model_without_heads_has_its_encoder_exported(tmp_path):
    params = {name: x for name, x in noisy_params(worded_albert()).items() if name.startswith("e")}
    served = export_serving(
        make_model(
            tmp_path / "model",
            worded_albert(),
            params,
        ),
        tmp_path / "served",
    )
    description = json.loads((served / "serving.json").read_text())
    assert [*description["programs"]] == ["encode"]
    assert [*description["programs"]["encode"]["outputs"]] == ["sequence"]


@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-4), ("bfloat16", 0.25)])
def test_a_program_that_answers_otherwise_is_not_written(model, tmp_path, monkeypatch, dtype, off):
    def wrong(*arguments, **settings):
        sequence, pooled = encode(*arguments, **settings)
        return sequence + off, pooled

    encode = export.functions.encode
    monkeypatch.setattr(export.functions, "encode", wrong)
    with pytest.raises(UserError, match=r"output is .* off the model's, and rounding explains"):
        export_serving(model, tmp_path / "served", compute=ComputeConfig(dtype=dtype))
    assert [*tmp_path.iterdir()] == []


def steep_model(folder):
    """Write a model whose layers amplify a rounding, and return it."""
    config = tiny_albert(vocab_size=8000, hidden_size=64, num_hidden_layers=24)
    params = jax.tree.map(lambda x: 3 * x, noisy_params(config))
    return make_model(folder, config, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_amplifies_rounding_is_exported(tmp_path, dtype):
    model = steep_model(tmp_path / "model")
    albert = load(model)
    arrays = next(iter(serving_check.trial_inputs(albert.config)))
    found = serving_check.encoder_tolerances(albert, *arrays)
    assert found["sequence"] > 3 * serving_check.TOLERANCE["float32"]
    compute = ComputeConfig(dtype=dtype)
    assert export_serving(model, tmp_path / "served", compute=compute).is_dir()


def test_mistakes_are_said(model, served, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="exists; give a new path"):
        export_serving(model, served)
    with pytest.raises(UserError, match="top_k 0"):
        export_serving(model, tmp_path / "served", top_k=0)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install flatbuffers"):
        export_serving(model, tmp_path / "served")


# -------------------------------------------------------------------------------- fine-tuned models


def test_a_client_without_this_package_gives_predicts_probabilities(tmp_path):
    served = export_serving(task_model(tmp_path / "model", "pair"), tmp_path / "served")
    texts = [["the list", "a file is open"], ["return " * 40, "the value"], ["it", "of " * 50]]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    client = LOADER + ENCODER + CLASSIFIER + CLASSIFIES
    subprocess.run([sys.executable, "-P", "-c", client], check=True, cwd=tmp_path, timeout=300)
    records = [{"text_a": a, "text_b": b} for a, b in texts]
    wanted = predict(tmp_path / "model", records)
    for found, answer in zip(json.loads((tmp_path / "out.json").read_text()), wanted, strict=True):
        assert found == pytest.approx(answer["probabilities"], abs=2e-6)  # rounded to six places
    description = json.loads((served / "serving.json").read_text())
    assert description["head"] == {
        "kind": "classification",
        "labels": ["no", "yes"],
        "task": "pair",
    }
    assert [*description["programs"]] == ["encode", "predict"]


OF_TASKS = {
    "stsb": {"sentence1": "the list", "sentence2": "a file is open"},
    "similarity": {"text_a": "the list", "text_b": "a file is open"},
    "race": {"article": "a file", "question": "is it _ ?", "options": ["a", "b", "c", "d"]},
    "token-classification": {"words": ["the", "list", "is", "open"]},
    "squad1": {"question": "what is open?", "context": "the list of the file is open"},
    "squad2": {"question": "what is open?", "context": "the list of the file is open"},
}


@pytest.mark.slow
@pytest.mark.parametrize("task", OF_TASKS)
def test_every_heads_program_gives_what_its_answers_are_made_of(task, tmp_path):
    model = task_model(tmp_path / "model", task)
    served = export_serving(model, tmp_path / "served")
    fine_tuned = load_fine_tuned(model)
    example = find_task(task).from_record(OF_TASKS[task], 0, "here")
    features = fine_tuned.task.features(example, 0, fine_tuned.tokenizer, 32)
    (row,) = as_rows(features)
    wanted = fine_tuned([row])[0]
    names = {}
    exec(LOADER, names)
    batch = collate([row], row.length, targets=False)
    arrays = [batch[name] for name in ("input_ids", "input_mask", "segment_ids")]
    if task == "squad2":
        arrays.append(row.targets["p_mask"][None])
    found = names["load"](str(served), "predict")(*arrays)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(np.asarray(found[name])[0], array, atol=1e-5, rtol=0)
