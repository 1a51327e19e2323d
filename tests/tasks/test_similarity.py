# SPDX-License-Identifier: Apache-2.0
"""Scores of two texts that are read independently."""

import dataclasses
import json
import random

import numpy as np
import pytest
from safetensors.numpy import load_file

import albert_jax
from albert_jax.checkpoint.adapter import _peft_names
from albert_jax.checkpoint.convert.convert import convert
from albert_jax.config.sections import OptimizerConfig
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.evaluate import evaluate
from albert_jax.inference.finetuned import load_fine_tuned
from albert_jax.tasks import TASKS, RawExample
from albert_jax.training import finetune
from albert_jax.utils.errors import UserError
from tests.helpers.paths import VOCABULARY
from tests.helpers.task_models import task_model
from tests.helpers.toy_task import BAD, FILLERS, GOOD, toy_config, toy_model

TASK = TASKS["similarity"]


def pairs(count, seed):
    """Yield records of texts with one word of four, which are alike in pairs: score 5, else 0.

    No word is shared but fillers, so that vectors that were not trained say nothing of the score.
    """
    rng = random.Random(seed)
    for _ in range(count):
        score, (alike, other) = rng.choice((0, 5)), rng.sample((GOOD, BAD), 2)
        first, second = rng.sample(alike, 2)
        words = (first, second if score else rng.choice(other))
        texts = (" ".join([word, *rng.choices(FILLERS, k=2)]) for word in words)
        yield dict(zip(("text_a", "text_b"), texts, strict=True)) | {"score": score}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 256), ("dev", 64)):
        lines = [json.dumps(record) for record in pairs(count, split)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    optimizer = OptimizerConfig(name="adamw", learning_rate=0.003, warmup_steps=5)
    base = toy_model(folder / "base")
    config = toy_config(
        base, data, folder / "run", task="similarity", optimizer=optimizer, max_seq_length=24
    )
    (run,) = finetune.finetune(config).runs
    return config, run


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(VOCABULARY)


def test_each_text_has_its_own_row_and_the_scale_is_the_training_files(tokenizer, data):
    task = TASK.learn(TASK.examples("train", data))
    assert task.scale == (0.0, 5.0)
    example = RawExample("7", ("the list", "a file is open"), 2.0)
    (row,) = task.features(example, 0, tokenizer, 5)
    texts = [tokenizer.encode(text).ids for text in example.texts]
    assert row.input_ids == [[2, *texts[0], 3], [2, *texts[1][:3], 3]]
    assert row.segment_ids == [[0] * 4, [0] * 5]
    assert row.targets == {"labels": 0.4}
    assert task.predictions([example], [row], [{"logits": np.array([0.4])}]) == {"7": 2.0}
    with pytest.raises(UserError, match=r"has the one score 2.0"):
        TASK.learn([example])
    with pytest.raises(UserError, match=r"names 1 columns for similarity"):
        dataclasses.replace(TASK, texts=("text",))


def test_a_run_learns_and_its_answers_are_the_cosines_of_encode(tuned, data):
    config, run = tuned
    assert run.last.metrics["pearson"] > run.best.metrics["pearson"] - 0.2
    assert run.best.metrics["pearson"] > 0.5
    model = load_fine_tuned(f"{config.workdir}/model")
    assert model.task.scale == (0.0, 5.0)
    albert = albert_jax.load(f"{config.workdir}/model")
    texts = [("the list is open", "a file"), ("a list", "the list of a value")]
    answers = albert.predict(texts)
    for (first, second), answer in zip(texts, answers, strict=True):
        x, y = albert.encode([first, second], pool="mean").pooled
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert answer.prediction == pytest.approx(5 * cosine, abs=2e-5)
        assert albert.predict((second, first)).prediction == pytest.approx(answer.prediction)
    scores = evaluate(None, f"{config.workdir}/model", data)
    assert scores.metrics["pearson"] == pytest.approx(run.best.metrics["pearson"], abs=1e-6)


def test_a_run_that_is_begun_again_goes_on(tuned):
    config, run = tuned
    (again,) = finetune.finetune(config).runs
    assert again.best.metrics == run.best.metrics


def test_it_comes_back_from_transformers_layout_which_sentence_transformers_reads(tuned, tmp_path):
    config, _ = tuned
    convert(f"{config.workdir}/model", tmp_path / "hf", to="hf")
    modules = json.loads((tmp_path / "hf" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    pooling = json.loads((tmp_path / "hf" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] is True
    assert pooling["word_embedding_dimension"] == 32
    length = json.loads((tmp_path / "hf" / "sentence_bert_config.json").read_text())
    assert length["max_seq_length"] == 24
    convert(f"{config.workdir}/model", tmp_path / "hf", to="hf")  # which is unchanged, and ours
    convert(tmp_path / "hf", tmp_path / "back")
    pair = ("the list is open", "a list")
    models = (tmp_path / "back", f"{config.workdir}/model")
    found, wanted = (albert_jax.load(model).predict(pair) for model in models)
    assert found == wanted
    (tmp_path / "hf" / "1_Pooling" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has other files \(1_Pooling/mine.txt\)"):
        convert(f"{config.workdir}/model", tmp_path / "hf", to="hf")
    for head in ("regression", "foo"):
        with pytest.raises(UserError, match=f"no tensors of a head, and {head} needs them"):
            convert(tmp_path / "hf", tmp_path / "other", head=head)


def test_an_adapter_has_the_names_of_the_class_that_the_model_has_in_transformers(tuned, tmp_path):
    """PEFT wraps that class; a name of another is left at its first values."""
    config, _ = tuned
    convert(f"{config.workdir}/model", tmp_path / "hf", to="hf")
    architecture = load_fine_tuned(f"{config.workdir}/model").directory.config
    names = set(_peft_names(architecture, "similarity").values())
    assert load_file(tmp_path / "hf" / "model.safetensors").keys() <= names


def test_a_head_with_outputs_is_no_similarity(tmp_path):
    convert(task_model(tmp_path / "single", "single"), tmp_path / "hf", to="hf")
    with pytest.raises(UserError, match="head='similarity' does not fit this head of 2 outputs"):
        convert(tmp_path / "hf", tmp_path / "other", head="similarity")


def test_long_texts_are_cut_or_refused_and_not_read_in_windows(tuned):
    config, _ = tuned
    albert = albert_jax.load(f"{config.workdir}/model")
    answer = albert.predict(("the list", "a file is open " * 10))
    assert answer.tokens_left_out > 0
    with pytest.raises(UserError, match="long='windows' is not for similarity; give cut or refuse"):
        albert.predict(("a", "b"), long="windows")
    with pytest.raises(UserError, match="too long for a row of 24"):
        albert.predict(("the list", "a file is open " * 10), long="refuse")
