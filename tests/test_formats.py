# SPDX-License-Identifier: Apache-2.0
"""What version 0.1 wrote is still read: a checkpoint, a model directory, fine-tuning's results.

tests/data has them: a run of four steps on store_0.1 stopped after two, a model fine-tuned from its
last step, and what `finetune` said of it. The store itself is read in tests/data/test_store.py, a
table of estimates in tests/perf/tpu/test_estimate_table.py.
"""

import json
import shutil

import pytest

from albert_jax.checkpoint.model_dir import load_model
from albert_jax.config import (
    AlbertConfig,
    ExamplesConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)
from albert_jax.inference.evaluate import evaluate
from albert_jax.inference.predict import predict
from albert_jax.inference.verify import verify
from albert_jax.training.finetune_results import FinetuneResults
from albert_jax.training.metrics import read_metrics
from albert_jax.training.pretrain import pretrain
from tests.helpers.paths import DATA

MODEL = AlbertConfig(
    vocab_size=38,
    embedding_size=4,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=32,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)
LOSSES = {
    3: 4.272647857666016,
    4: 4.238144397735596,
}  # of the steps after the checkpoint, as 0.1 went on


def test_a_run_of_0_1_goes_on_from_its_checkpoint(tmp_path, capsys):
    workdir = shutil.copytree(DATA / "checkpoint_0.1", tmp_path / "run")
    pretrain(
        PretrainConfig(
            model=MODEL,
            examples=ExamplesConfig(max_seq_length=16, max_predictions_per_seq=2),
            optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2),
            train=TrainConfig(
                steps=4,
                batch_size=4,
                devices=1,
                log_every=1,
                eval_every=0,
                eval_examples=4,
                save_every=2,
                data_threads=1,
            ),
            store=str(DATA / "store_0.1"),
            workdir=str(workdir),
        )
    )
    assert "resumed at step 2, next batch 2" in capsys.readouterr().err
    entries = [e for e in read_metrics(workdir / "metrics.jsonl") if e["kind"] == "train"]
    losses = {e["step"]: e["loss"] for e in entries if e["step"] > 2}
    # Another version of JAX may sum in another order.
    assert losses == pytest.approx(LOSSES, rel=1e-5)


def test_a_model_directory_of_0_1_answers_as_it_did(tmp_path):
    directory = DATA / "model_0.1"
    assert verify(directory)["verdict"] == "PASS"
    model = load_model(directory)
    assert model.head == {
        "kind": "classification",
        "labels": ["no", "yes"],
        "task": "single",
        "settings": {"texts": ["text"], "label": "label"},
        "max_seq_length": 8,
    }
    answers = list(predict(directory, [{"text": "aaa"}, {"text": "the year"}]))
    assert [answer["prediction"] for answer in answers] == ["yes", "yes"]
    assert [answer["probabilities"]["yes"] for answer in answers] == pytest.approx(
        [0.500667, 0.500667], abs=2e-6
    )
    rows = [{"text": "aaa", "label": "no"}, {"text": "bbb", "label": "yes"}]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = evaluate(None, directory, tmp_path, output=tmp_path / "predictions")
    assert (found["task"], found["examples"]) == ("single", 2)


def test_results_of_0_1_which_name_no_format_are_read():
    document = json.loads((DATA / "results_0.1.json").read_text())
    assert "format_version" not in document
    found = FinetuneResults.from_json(document)
    assert found == document | {"format_version": 1}
    assert found.runs[0].best.metrics["accuracy"] == 0.375
