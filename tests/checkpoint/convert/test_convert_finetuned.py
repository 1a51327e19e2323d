# SPDX-License-Identifier: Apache-2.0
"""Models that `finetune` made, in other formats: transformers' own classes give the predictions of
`predict`, and TF1 checkpoints have the original's names."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.convert.readers import OWN_HEAD
from albert_jax.checkpoint.convert.tf_bundle import CheckpointReader
from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import OptimizerConfig, TrainConfig
from albert_jax.inference.finetuned import load_fine_tuned
from albert_jax.inference.predict import predict
from albert_jax.tasks.collate import as_rows
from albert_jax.training.finetune import finetune
from tests.helpers.golden import CHECKPOINTS
from tests.helpers.models import tiny_albert
from tests.helpers.pretraining_runs import random_model

# Large weights, so that a few steps leave answers that differ.
TINY = tiny_albert(vocab_size=8000, max_position_embeddings=64, initializer_range=0.3)
WORDS = ("the", "list", "of", "open", "file", "string", "value", "is")
PEERS = {  # task -> transformers' class
    "single": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "similarity": "AutoModel",
    "squad1": "AutoModelForQuestionAnswering",
}
# Two float32 programs on logits of up to 10: test_convert.py's 5e-5.
CLOSE = {"atol": 5e-5, "rtol": 0}


def record(task: str, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `predict` is given, and the label."""
    words = rng.choices(WORDS, k=rng.randint(4, 9))
    text = " ".join(words)
    if task == "single":
        return {"text": text}, {"label": "yes" if "open" in words else "no"}
    if task == "token-classification":
        return {"words": words}, {"tags": ["B-X" if w in WORDS[:3] else "O" for w in words]}
    if task == "similarity":
        other = rng.choices(WORDS, k=rng.randint(1, 9))
        shared = len({*words} & {*other})
        return {"text_a": text, "text_b": " ".join(other)}, {"score": shared / 2}
    if task == "multiple-choice":
        options = rng.sample(WORDS, 3)
        given = {"passage": text, "question": "which word", "options": options}
        return given, {"label": str(rng.randrange(3))}
    start = text.index(words[2])
    answer = {"text": words[2], "answer_start": start}
    return {"question": "which word", "context": text}, {"answers": [answer]}


def write_data(folder: Path, task: str) -> list[dict[str, Any]]:
    """Training and dev files; returns dev's records without labels."""
    rng = random.Random(task)
    for split, count in (("train", 32), ("dev", 12)):
        records = [record(task, rng) for _ in range(count)]
        if task == "squad1":
            paragraphs = [
                {"context": r["context"], "qas": [{"id": str(i), "question": r["question"], **a}]}
                for i, (r, a) in enumerate(records)
            ]
            data = {"data": [{"title": "t", "paragraphs": paragraphs}]}
            (folder / f"{split}-v1.1.json").write_text(json.dumps(data))
        else:
            lines = [json.dumps(given | label) + "\n" for given, label in records]
            (folder / f"{split}.jsonl").write_text("".join(lines))
    return [given for given, _ in records]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("models") / "base", TINY)


@pytest.fixture(scope="module", params=PEERS)
def tuned(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[dict[str, Any]]]:
    """A task, a model that was fine-tuned for it, and records to answer."""
    folder = tmp_path_factory.mktemp(request.param)
    records = write_data(folder, request.param)
    config = FinetuneConfig(
        task=request.param,
        model=str(base),
        data=str(folder),
        workdir=str(folder / "run"),
        max_seq_length=48,
        length_window=1,
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
        train=TrainConfig(
            steps=4, batch_size=16, devices=1, log_every=2, eval_every=4, save_every=4, keep=2
        ),
    )
    finetune(config)
    model = folder / "run" / "last"
    started, ended = (named_leaves(load_model(m).params) for m in (base, model))
    kernel = "encoder/group_0/inner_group_0/ffn/kernel"
    assert np.abs(started[kernel] - ended[kernel]).max() > 0.01, "training moved the weights"
    return request.param, model, records


def peer_outputs(model: Any, row: Any) -> dict[str, np.ndarray]:
    """What transformers' model makes of one row of ours, under our names."""
    import torch

    inputs = {}
    for name, arrays in (("input_ids", row.ids), ("token_type_ids", row.segments)):
        padded = np.zeros((len(arrays), row.length), np.int64)
        for c, array in enumerate(arrays):
            padded[c, : len(array)] = array
        inputs[name] = padded
    lengths = np.array([[len(ids)] for ids in row.ids])
    inputs["attention_mask"] = (np.arange(row.length) < lengths).astype(np.int64)
    is_choice = row.has_choices and "MultipleChoice" in type(model).__name__
    with torch.no_grad():
        output = model(**{n: torch.tensor(x[None] if is_choice else x) for n, x in inputs.items()})
    if "last_hidden_state" in output:  # as sentence-transformers compares two texts
        mask = torch.tensor(inputs["attention_mask"])[..., None]
        vectors = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        return {"logits": torch.nn.functional.cosine_similarity(*vectors, dim=0)[None].numpy()}
    names = [n for n in ("logits", "start_logits", "end_logits") if n in output]
    return {name: output[name].numpy()[0] for name in names}


@pytest.mark.peers
def test_transformers_own_classes_give_our_predictions(tuned: Any, tmp_path: Path) -> None:
    """Their logits through the task's own reading of logits, and ours through `predict`."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    task, model, records = tuned
    convert(model, tmp_path / "hf", to="hf")
    peer = getattr(transformers, PEERS[task]).from_pretrained(tmp_path / "hf").eval()
    fine_tuned = load_fine_tuned(model)
    reader = fine_tuned.task
    examples = [reader.from_record(r, i, "here") for i, r in enumerate(records)]
    features = [
        feature
        for i, example in enumerate(examples)
        for feature in reader.features(example, i, fine_tuned.tokenizer, 48)
    ]
    rows = as_rows(features)
    theirs = [peer_outputs(peer, row) for row in rows]
    for found, wanted in zip(fine_tuned(rows), theirs, strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, err_msg=name, **CLOSE)
    answers = list(predict(model, records))
    wanted = reader.predictions(examples, features, theirs)
    labels = (wanted[example.id] for example in examples)
    wanted = [list(x) if isinstance(x, tuple) else x for x in labels]  # as JSON has words'
    found = [answer["prediction"] for answer in answers]
    assert found == (pytest.approx(wanted, abs=2e-5) if task == "similarity" else wanted)
    told = {str((a["prediction"], a.get("probabilities"))) for a in answers}
    assert len(told) > 1, "the answers differ"


@pytest.mark.peers
def test_transformers_pipeline_answers_a_text_as_predict_does(tuned: Any, tmp_path: Path) -> None:
    """From text to named probabilities, the tokenizer theirs too."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    task, model, records = tuned
    if task != "single":
        return
    convert(model, tmp_path / "hf", to="hf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SWIG's, from inside sentencepiece
        answer = transformers.pipeline(
            "text-classification", model=str(tmp_path / "hf"), device="cpu", top_k=None
        )
        theirs = answer([r["text"] for r in records])
    for ours, found in zip(predict(model, records), theirs, strict=True):
        assert ours["probabilities"] == pytest.approx(
            {x["label"]: x["score"] for x in found}, abs=2e-6
        )


def test_a_model_that_went_through_transformers_still_knows_its_task(
    tuned: Any, tmp_path: Path
) -> None:
    _, model, records = tuned
    convert(model, tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "back")
    assert load_model(tmp_path / "back").head == load_model(model).head
    assert list(predict(tmp_path / "back", records)) == list(predict(model, records))


@pytest.mark.parametrize(
    "change",
    [
        {"id2label": {"0": "other", "1": "labels"}},  # fine-tuned again, elsewhere
        {OWN_HEAD: {"kind": "classification", "labels": ["no", "yes"], "task": 5}},
        {OWN_HEAD: "single"},
    ],
)
def test_a_task_that_is_not_the_heads_is_left_out(
    tuned: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    task, model, _ = tuned
    if task != "single":
        return
    convert(model, tmp_path / "hf", to="hf")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    convert(tmp_path / "hf", tmp_path / "back")
    head = load_model(tmp_path / "back").head
    assert head is not None
    assert (head.kind, head.task) == ("classification", None)


def test_a_tf1_checkpoint_has_the_originals_names(tuned: Any, tmp_path: Path) -> None:
    """The encoder's are those of a checkpoint that the original wrote; the heads' those of
    run_classifier, run_race and run_squad_v1."""
    task, model, _ = tuned
    convert(model, tmp_path / "tf", to="tf")
    reader = CheckpointReader.open(tmp_path / "tf")
    written = CheckpointReader.open(CHECKPOINTS["tiny"]).names()
    names = {n for n in written if n.startswith("bert/") and not n.endswith(("/adam_m", "/adam_v"))}
    scope = ""
    if task in ("squad1", "token-classification", "similarity"):  # which have no use for the pooler
        names -= {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"}
    if task == "squad1":
        scope = "cls/squad/"
    if task == "similarity":
        assert set(reader.names()) == names
        return
    head = {f"{scope}output_weights", f"{scope}output_bias"}
    assert set(reader.names()) == names | head
    outputs = {"single": 2, "token-classification": 2, "multiple-choice": 1, "squad1": 2}[task]
    weights = reader.read(f"{scope}output_weights")
    assert weights.shape == (outputs, TINY.hidden_size)
    np.testing.assert_array_equal(weights, load_model(model).params["head"]["output_weights"])
