# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning whole: batches by length, the original's steps, a toy task learnt, resumed, evaluated
and predicted, and misused."""

import dataclasses
import gzip
import io
import json
import math
import random
import shutil
import subprocess
import sys
import types
from collections import Counter

import jax
import numpy as np
import pytest

from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.checkpoint.model_export import export_model
from albert_jax.cli import main as cli
from albert_jax.config.heads import SEVERAL_ROWS
from albert_jax.config.history import read_history
from albert_jax.config.manifests import HeadManifest
from albert_jax.config.sections import OptimizerConfig
from albert_jax.inference import finetuned
from albert_jax.inference.evaluate import evaluate
from albert_jax.inference.finetuned import HeadOutputs
from albert_jax.inference.predict import predict
from albert_jax.models.albert import init_params
from albert_jax.models.heads import HEADS, AlbertForTask
from albert_jax.tasks import Features, RawExample, find_task
from albert_jax.tasks.batches import TrainingBatches, bucket, evaluation_batches
from albert_jax.tasks.collate import as_rows, collate
from albert_jax.training import finetune
from albert_jax.training.finetune_report import is_degenerate, results_table, summary
from albert_jax.training.finetune_results import (
    Baseline,
    FinetuneResults,
    JudgedStep,
    SeedRun,
)
from albert_jax.training.finetune_setup import first_params, set_up
from albert_jax.training.losses import task_objective
from albert_jax.training.memory import OutOfMemory
from albert_jax.training.metrics import read_metrics
from albert_jax.training.optimizer import make_optimizer
from albert_jax.training.step import init_state, make_train_step
from albert_jax.training.watching import StopTraining
from albert_jax.utils.errors import UserError
from tests.helpers.golden import original_model
from tests.helpers.paths import REPOSITORY
from tests.helpers.pretraining_runs import VOCABULARY, random_model
from tests.helpers.reference import optimizer_step
from tests.helpers.task_models import task_model
from tests.helpers.toy_task import TINY, sentences, toy_config

pytestmark = pytest.mark.usefixtures("steps_made_once")

SMALL = dataclasses.replace(TINY, vocab_size=90, num_hidden_layers=2, max_position_embeddings=24)


# ------------------------------------------------------------------------------------------ batches


def rows_of_lengths(lengths):
    return as_rows(Features(i, [5] * n, [0] * n, {"labels": i}) for i, n in enumerate(lengths))


def test_every_row_comes_once_a_pass_and_a_batch_is_its_seeds_and_steps_alone():
    rng = random.Random(0)
    rows = rows_of_lengths([rng.randint(3, 60) for _ in range(96)])
    make = {
        seed: TrainingBatches(rows, batch_size=8, seed=seed, window=4, longest=64)
        for seed in (0, 1)
    }
    for start in (0, 12):  # a pass has 12 batches
        seen = Counter(
            int(i) for step in range(start, start + 12) for i in make[0].at(step)["labels"]
        )
        assert seen == dict.fromkeys(range(96), 1)
    late = TrainingBatches(rows, batch_size=8, seed=0, window=4, longest=64)
    np.testing.assert_array_equal(late.at(17)["labels"], make[0].at(17)["labels"])
    drawn = [batch["labels"].tolist() for batch in make[0].batches(5, 9)]
    assert drawn == [make[0].at(step)["labels"].tolist() for step in range(5, 9)]
    assert make[0].at(3)["labels"].tolist() != make[1].at(3)["labels"].tolist()


def test_batches_are_hardly_longer_than_their_rows():
    rng = random.Random(1)
    rows = rows_of_lengths([min(3 + int(rng.expovariate(0.05)), 128) for _ in range(512)])
    sorted_, plain = (
        TrainingBatches(rows, batch_size=16, seed=0, window=window, longest=128).fill(32)
        for window in (8, 1)
    )
    assert sorted_[1] > 0.6 > 2 * plain[1]
    sizes = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert [bucket(n, 512) for n in (1, 9, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385)] == sizes
    assert bucket(300, 320) == 320


def unpadded(model, params, row):
    """The head's outputs for one row, each of its texts without a pad, in a program of its own."""
    batches = [
        {
            "input_ids": ids[None],
            "input_mask": np.ones_like(ids)[None],
            "segment_ids": segments[None].astype(np.int32),
            **{name: target[None] for name, target in row.targets.items()},
        }
        for ids, segments in zip(row.ids, row.segments, strict=True)
    ]
    if model.kind == "similarity":
        vectors = [
            model.apply({"params": params}, *list(batch.values())[:3], method="sequence").mean(1)
            for batch in batches
        ]
        first, second = (np.asarray(x[0]) / np.linalg.norm(x) for x in vectors)
        return {"logits": first @ second[:, None]}
    if row.has_choices:
        batches = [{name: x[:, None] for name, x in batch.items()} for batch in batches]
    apply = jax.jit(lambda batch: finetuned.head_outputs(model, params, batch))
    outputs = [apply(batch) for batch in batches]
    if row.has_choices:
        return {"logits": np.concatenate([x["logits"][0] for x in outputs])}
    return {name: np.asarray(x[0]) for name, x in outputs[0].items()}


@pytest.mark.parametrize("kind", HEADS)
def test_outputs_in_batches_equal_those_of_single_unpadded_rows(kind):
    """Where longer and shorter rows share a batch; float32 sums in another order: 1e-5."""
    model = AlbertForTask(SMALL, kind=kind, labels=3)
    params = init_params(model, jax.random.key(1))
    rng = random.Random(2)
    features = []
    for i, length in enumerate((6, 20, 11, 11, 6, 20, 11, 20)):
        ids = [rng.randrange(5, 90) for _ in range(length)]
        segments = [int(at >= 4) for at in range(length)]
        targets = {"p_mask": [0, 1, 1, 1, *[0] * (length - 5), 1]} if kind == "span_v2" else {}
        if kind in SEVERAL_ROWS:
            ids, segments = [ids, ids[::-1][:6]], [segments, segments[:6]]
        features.append(Features(i, ids, segments, targets))
    rows = as_rows(features)
    found = HeadOutputs(model)(params, rows)
    for row, output in list(zip(rows, found, strict=True))[:3]:
        wanted = unpadded(model, params, row)
        assert output.keys() == wanted.keys()
        for name in wanted:
            # Positions where no answer can be tie at -1e30, and only those may be padding.
            score = {"start_index": "start_log_probs", "end_index": "end_log_probs"}.get(name, name)
            real = wanted[score] > -1e29
            np.testing.assert_allclose(output[name][real], wanted[name][real], atol=1e-5, rtol=0)


def test_a_batch_by_length_has_the_gradient_of_one_padded_to_the_longest():
    model = AlbertForTask(SMALL, kind="token_classification", labels=3)
    params = init_params(model, jax.random.key(1))
    rows = as_rows(
        Features(i, list(range(5, 5 + n)), [0] * n, {"labels": [-100, *[i % 3] * (n - 1)]})
        for i, n in enumerate((4, 9, 6))
    )
    objective = task_objective(model)

    def gradient_at(length):
        batch = collate(rows, length)
        loss = lambda p: objective.loss(p, batch, objective.normalizers(batch), None)[0]  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    short, long = gradient_at(9), gradient_at(24)
    for name, gradient in named_leaves(short).items():
        np.testing.assert_allclose(gradient, named_leaves(long)[name], atol=2e-6, err_msg=name)


def test_evaluation_has_every_row_once_whatever_its_number_of_choices():
    rows = as_rows(
        Features(i, [[5] * (4 + i)] * n, [[0] * (4 + i)] * n) for i, n in enumerate((2, 3, 2, 4))
    )
    seen = Counter(
        i for chosen, _ in evaluation_batches(rows, longest=24, tokens=64) for i in chosen
    )
    assert seen == dict.fromkeys(range(4), 1)
    with pytest.raises(UserError, match="2 to 4 choices"):
        collate(rows, 16)


# ----------------------------------------------------------------------------- the original's steps


def test_steps_from_golden_weights_are_those_of_the_originals_adamw():
    """Ten steps at Table 14's schedule against NumPy's float64 AdamW with the same gradients."""
    config, params = original_model()
    config = dataclasses.replace(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = AlbertForTask(config, kind="classification", labels=3, dropout=0.0)
    params = init_params(model, jax.random.key(0)) | {
        name: params[name] for name in ("embeddings", "encoder", "pooler")
    }
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=3)
    tx, schedule = make_optimizer(optimizer, steps=10, batch_size=4)
    objective = task_objective(model)
    step = jax.jit(make_train_step(objective, tx))
    gradient = jax.jit(
        jax.value_and_grad(lambda p, b: objective.loss(p, b, objective.normalizers(b), None)[0])
    )
    rng = np.random.default_rng(0)
    state = init_state(params, tx, seed=0)
    weights = {n: np.asarray(x, np.float64) for n, x in named_leaves(params).items()}
    moments = {n: (np.zeros_like(x), np.zeros_like(x)) for n, x in weights.items()}
    tree = jax.tree.structure(params)
    for number in range(10):
        batch = {
            "input_ids": rng.integers(5, config.vocab_size, (4, 32)).astype(np.int32),
            "input_mask": np.ones((4, 32), np.int32),
            "segment_ids": np.zeros((4, 32), np.int32),
            "labels": rng.integers(0, 3, 4).astype(np.int32),
        }
        ours = jax.tree.unflatten(tree, [x.astype(np.float32) for x in weights.values()])
        loss, grads = gradient(ours, batch)
        grads = {n: np.asarray(g, np.float64) for n, g in named_leaves(grads).items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            g = g / max(norm, 1.0)
            m, v = moments[name]
            rate = float(schedule(number))
            weights[name], *moments[name] = optimizer_step(
                weights[name], m, v, g, name, rate, adapt=False
            )
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss, atol=2e-5)
    for name, leaf in named_leaves(state.params).items():
        # A key's bias has no gradient but rounding's, which m / sqrt(v) makes large.
        tolerance = 5e-4 if "key/bias" in name else 5e-5
        np.testing.assert_allclose(leaf, weights[name], atol=tolerance, err_msg=name)


# -------------------------------------------------------------------------------------------- whole


def test_a_tiny_model_learns_a_toy_task_and_tells_what_came_of_it(finished):
    workdir, results = finished
    (run,) = results["runs"]
    assert (
        run["best"]["metrics"]["accuracy"] > 0.9 > 0.7 > results["baseline"]["metrics"]["accuracy"]
    )
    assert run["last"]["step"] == 60
    assert not run["degenerate"]
    assert results["summary"]["best"]["median"] == run["best"]["metrics"]["accuracy"]
    saved = json.loads((workdir / "results.json").read_text())
    assert FinetuneResults.from_json(saved) == saved == results
    assert saved.pop("format_version") == 1
    assert FinetuneResults.from_json(saved) == results  # as 0.1 wrote it, without its format
    assert saved["hardware"]["devices"] == 1  # of four
    wanted = {"command", "commit", "versions", "hardware", "baseline", "seconds", "config"}
    assert wanted <= saved.keys()
    for name in ("last", "best", "model"):
        head = load_model(workdir / name).manifest["head"]
        assert (head["kind"], head["labels"], head["task"]) == (
            "classification",
            ["no", "yes"],
            "single",
        )
    evals = [e for e in read_metrics(workdir / "seed-3" / "metrics.jsonl") if e["kind"] == "eval"]
    assert [e["step"] for e in evals] == [20, 40, 60]
    assert max(e["accuracy"] for e in evals) == run["best"]["metrics"]["accuracy"]


def test_a_callback_stops_a_run_whose_model_is_that_of_the_step(base, data, tmp_path):
    heard = {}

    def on_evaluation(step, metrics):
        heard[step] = metrics["accuracy"]
        if step == 40:
            raise StopTraining

    results = finetune.finetune(toy_config(base, data, tmp_path), on_evaluation=on_evaluation)
    (run,) = results.runs
    assert list(heard) == [20, 40]
    assert (run.ended, run.last.step) == ("callback", 40)
    assert run.best.metrics["accuracy"] == max(heard.values())
    assert load_model(tmp_path / "model").manifest["provenance"]["step"] == run.best.step
    assert repr(results).splitlines()[5].split()[:2] == ["runs", "seed"]


def test_a_fine_tuned_model_answers_the_same_after_transformers_format_and_back(
    finished, data, tmp_path
):
    workdir, results = finished
    convert(workdir / "model", tmp_path / "hf", to="hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"}
    convert(tmp_path / "hf", tmp_path / "back")
    found = evaluate("single", tmp_path / "back", data, output=tmp_path)
    assert found["metrics"] == results["runs"][0]["best"]["metrics"]


def test_a_run_that_resumes_ends_with_the_same_bits(finished, base, data, tmp_path):
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "run", symlinks=True)
    newest = max((tmp_path / "run/seed-3/checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    assert newest.name == "60"
    shutil.rmtree(newest)
    shutil.rmtree(tmp_path / "run" / "seed-3" / "last")
    again = finetune.finetune(toy_config(base, data, tmp_path / "run"))
    assert again["runs"] == results["runs"]
    ours, theirs = (
        named_leaves(load_model(d / "last").params) for d in (workdir, tmp_path / "run")
    )
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    log = [e for e in read_metrics(tmp_path / "run/seed-3/metrics.jsonl") if e["kind"] == "event"]
    assert log[-1]["message"].startswith("seed 3: resumed at step 40")


@pytest.mark.parametrize(
    ("flag", "change", "says"),
    [
        (False, {"steps": 80}, "directory, or continue_with=True to continue it with these"),
        (True, {"steps": 40}, "has made 60 steps, as many as train.steps=40 or more"),
        (
            True,
            {"steps": 80, "batch_size": 16},
            "changes the length and the learning rate of a run",
        ),
    ],
)
def test_a_change_of_settings_is_asked_for_and_of_others_refused(
    finished, base, data, flag, change, says
):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    config = toy_config(base, data, workdir)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **change))
    with pytest.raises(UserError, match=says):
        finetune.finetune(config, continue_with=flag)
    assert (workdir / "config.json").read_text() == before
    missing = dataclasses.replace(config, workdir=str(workdir / "nothing"))
    with pytest.raises(UserError, match="has no checkpoint to continue from"):
        finetune.finetune(missing, continue_with=True)


def test_another_dev_split_is_refused_as_it_chose_the_best_step(finished, base, data, tmp_path):
    workdir, _ = finished
    shutil.copytree(data, tmp_path / "data")
    rows = (tmp_path / "data" / "dev.jsonl").read_text().splitlines()
    (tmp_path / "data" / "dev.jsonl").write_text("\n".join(rows[1:]))
    with pytest.raises(UserError, match="dev_data is"):
        finetune.finetune(toy_config(base, tmp_path / "data", workdir))


@pytest.mark.slow
def test_a_finished_run_that_is_continued_has_the_bits_of_a_longer_one(base, data, tmp_path):
    def config(folder, steps):
        optimizer = OptimizerConfig(
            name="adamw", learning_rate=0.005, warmup_steps=5, schedule="constant"
        )
        return toy_config(base, data, tmp_path / folder, steps=steps, optimizer=optimizer)

    finetune.finetune(config("run", 20))
    results = finetune.finetune(config("run", 40), continue_with=True)
    whole = finetune.finetune(config("whole", 40))
    assert results["runs"] == whole["runs"]
    ours, theirs = (
        named_leaves(load_model(tmp_path / d / "last").params) for d in ("run", "whole")
    )
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    [change] = read_history(tmp_path / "run" / "seed-3")
    assert (change.step, change.after) == (20, {"train.steps": 40})
    assert load_model(tmp_path / "run" / "last").manifest["provenance"]["history"] == [change]
    assert finetune.finetune(config("run", 40))["runs"] == whole["runs"]  # without the flag


def test_evaluate_gives_the_runs_own_figures_and_predict_the_same_answers(finished, data, tmp_path):
    workdir, results = finished
    found = evaluate("single", workdir / "model", data, output=tmp_path)
    assert found["metrics"] == results["runs"][0]["best"]["metrics"]
    assert (found["task"], found["examples"]) == ("single", 64)
    with open(found["predictions_file"]) as file:
        written = [json.loads(line)["prediction"] for line in file]
    inputs = [json.loads(line) for line in (data / "dev.jsonl").read_text().splitlines()]
    answers = list(predict(workdir / "model", inputs))
    assert [a["prediction"] for a in answers] == written
    for answer in answers:
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-6)
        assert max(answer["probabilities"], key=answer["probabilities"].get) == answer["prediction"]


def test_predict_reads_jsonl_csv_tsv_and_standard_input(
    finished, data, tmp_path, capsys, monkeypatch
):
    workdir, _ = finished
    texts = [text for text, _ in sentences(9, "more")]
    files = {
        "in.jsonl": "".join(
            json.dumps({"text": t, "id": f"x{i}"}) + "\n" for i, t in enumerate(texts)
        ),
        "in.csv": "text\n" + "".join(f'"{t}"\n' for t in texts),
        "in.tsv": "text\n" + "".join(f"{t}\n" for t in texts),
        # A blank beside the header's comma, blank lines, another end of lines, compressed.
        "odd.csv.gz": "label, text\r\r" + "".join(f"unknown,{t}\r\r" for t in texts),
    }
    found = {}
    for name, content in files.items():
        data = content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        out = tmp_path / f"{name}.out"
        line = ["predict", "--model", str(workdir / "model"), "--input", str(tmp_path / name)]
        assert cli.main([*line, "--output", str(out)]) == 0
        found[name] = [json.loads(row) for row in out.read_text().splitlines()]
    assert [row["id"] for row in found["in.jsonl"]] == [f"x{i}" for i in range(9)]
    predictions = [[row["prediction"] for row in rows] for rows in found.values()]
    assert predictions[0] == predictions[1] == predictions[2] == predictions[3]
    stdin = types.SimpleNamespace(buffer=io.BytesIO(files["in.jsonl"].encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    capsys.readouterr()
    assert cli.main(["predict", "--model", str(workdir / "model"), "--input", "-"]) == 0
    typed = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    for one, other in zip(typed, found["in.jsonl"], strict=True):  # in other batches
        assert {**one, "probabilities": 0} == {**other, "probabilities": 0}
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=3e-6)


def test_evaluate_takes_other_labels_for_the_tasks_where_that_is_said(finished, data, tmp_path):
    workdir, results = finished
    labels = {"no": "Ablehnung", "yes": "YES"}
    rows = [json.loads(line) for line in (data / "dev.jsonl").read_text().splitlines()]
    rows = [json.dumps(row | {"label": labels[row["label"]]}) for row in rows]
    (tmp_path / "dev.jsonl").write_text("\n".join(rows))
    line = ["evaluate", "--model", str(workdir / "model"), "--data", str(tmp_path), "--json"]
    assert cli.main(line) == 2
    assert cli.main([*line, "--labels", "Ablehnung=no"]) == 0
    found = evaluate("single", workdir / "model", tmp_path, labels="Ablehnung=no")
    assert found["metrics"] == results["runs"][0]["best"]["metrics"]


def test_who_waits_for_an_answer_before_the_next_question_gets_it(finished):
    workdir, _ = finished
    line = [sys.executable, "-m", "albert_jax", "predict", "--model", workdir / "model"]
    pipe, here = subprocess.PIPE, REPOSITORY
    with subprocess.Popen(
        [*line, "--input", "-"], stdin=pipe, stdout=pipe, text=True, cwd=here
    ) as process:
        for number, (text, _) in enumerate(sentences(4, "asked")):
            process.stdin.write(json.dumps({"text": text}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == number
        process.stdin.write("no JSON")  # a last line need not end
        process.stdin.close()
        process.stdout.close()
    assert process.returncode == 2


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_who_waits_for_the_answer_to_a_tables_row_gets_it(finished, kind):
    workdir, _ = finished
    line = [sys.executable, "-m", "albert_jax", "predict", "--model", workdir / "model"]
    line += ["--input", "-", "--input-format", kind]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        process.stdin.write("text\n")
        for number, (text, _) in enumerate(sentences(4, "asked")):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == number
        process.stdin.close()
        process.stdout.close()
    assert process.returncode == 0


@pytest.mark.parametrize("task", ["squad1", "squad2"])
def test_an_answer_to_a_question_says_where_it_stands(tmp_path, task):
    model = task_model(tmp_path / task, task, settings={"doc_stride": 9})
    context = "The value of the list is open; the value of the file is a string. " * 2
    asked = [{"question": f"What is it, {n}?", "context": context} for n in range(6)]
    for found in predict(model, asked):
        if found["prediction"]:
            assert context[found["start"] :].startswith(found["prediction"])
            assert 0 < found["probability"] <= 1
        else:
            assert (found["start"], found["probability"]) == (None, None)
        assert ("null_odds" in found) is (task == "squad2")
        assert (found["prediction"] == "") is (found.get("null_odds", -1) > 0)


def test_a_step_that_cannot_fit_is_refused_before_it_runs(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr("albert_jax.training.memory.capacity_bytes", lambda device: 1 << 20)
    with pytest.raises(
        OutOfMemory, match=r"^out of memory: .* too many; lower train.batch_size \("
    ):
        finetune.finetune(toy_config(base, data, tmp_path))
    assert not (tmp_path / "seed-3" / "best").exists()


def test_a_split_without_labels_has_a_predictions_file(finished, data, tmp_path, capsys):
    workdir, _ = finished
    line = [
        "predict",
        "--model",
        str(workdir / "model"),
        "--data",
        str(data),
        "--output",
        str(tmp_path),
    ]
    assert cli.main(line) == 0
    (file,) = capsys.readouterr().out.splitlines()
    with open(file) as lines:
        assert len(list(lines)) == 8


def test_rows_are_as_long_as_the_model_can_read_where_no_length_is_given(base, data, capsys):
    config = toy_config(base, data, "unused", max_seq_length=None)
    assert set_up(config).max_seq_length == 32
    told = "rows of 32 tokens, the model's positions; max_seq_length gives fewer"
    assert told in capsys.readouterr().err.splitlines()
    with pytest.raises(UserError):
        set_up(toy_config(base, data / "absent", "unused", max_seq_length=None))
    assert capsys.readouterr().err == ""  # an error is told alone


def test_another_tasks_head_is_left_behind_and_ones_own_is_kept(finished, base, data):
    workdir, _ = finished
    own = set_up(toy_config(workdir / "model", data, "unused"))
    params, told = first_params(own, seed=0, random_weights=False)
    np.testing.assert_array_equal(
        params["head"]["output_weights"], own.source.params["head"]["output_weights"]
    )
    assert told == "embeddings, encoder, head, pooler of the model directory"
    other = dataclasses.replace(own, task=dataclasses.replace(own.task, name="pair"))
    params, told = first_params(other, seed=0, random_weights=False)
    assert told.endswith("new head; left behind head (the head: single's)")
    assert not np.array_equal(
        params["head"]["output_weights"], own.source.params["head"]["output_weights"]
    )
    np.testing.assert_array_equal(params["pooler"]["kernel"], own.source.params["pooler"]["kernel"])
    # The head's start is the original's: a normal cut at two deviations of 0.02, and no bias.
    weights = np.asarray(params["head"]["output_weights"])
    assert np.abs(weights).max() <= 0.04 + 1e-6
    assert not np.any(params["head"]["output_bias"])


def seed_run(seed, *, last=0.51234, best=0.51234, degenerate=False, restarted=False):
    last, best = (JudgedStep(step=9, metrics={"f1": value}) for value in (last, best))
    return SeedRun(
        seed=seed,
        directory=f"seed-{seed}",
        last=last,
        best=best,
        degenerate=degenerate,
        collapsed_at_the_end=False,
        restarted=restarted,
    )


def test_a_degenerate_run_begins_anew_with_a_seed_not_asked_for(
    base, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(finetune, "is_degenerate", lambda task, dev, found: True)
    monkeypatch.setattr(finetune, "carry_out", lambda seed: seed_run(seed, degenerate=seed == 3))
    config = toy_config(base, data, tmp_path, seeds=2, restarts=2)
    runs = finetune._runs(config, lambda seed: seed)
    assert [(run.seed, run.restarted) for run in runs] == [(3, True), (5, False), (4, False)]
    assert (
        "seed 3 is degenerate: it answers all dev examples alike; beginning anew with seed 5"
        in (capsys.readouterr().err)
    )


def test_constant_answers_are_degenerate_where_labels_differ():
    classes, scores, span = find_task("sst2"), find_task("stsb"), find_task("squad1")
    dev = [RawExample(str(i), ("a",), label) for i, label in enumerate("0110")]
    assert is_degenerate(classes, dev, dict.fromkeys("0123", "1"))
    assert not is_degenerate(classes, dev, {"0": "0", "1": "1", "2": "1", "3": "1"})
    dev = [RawExample(str(i), ("a",), float(i)) for i in range(5)]
    assert is_degenerate(scores, dev, {str(i): 2 + i / 100 for i in range(5)})
    assert not is_degenerate(scores, dev, {str(i): 2 + i / 10 for i in range(5)})
    assert is_degenerate(span, dev, dict.fromkeys("01234", ""))
    unanswerable = [dataclasses.replace(example, label="") for example in dev]
    assert not is_degenerate(span, unanswerable, dict.fromkeys("01234", ""))


def test_a_label_far_from_the_others_makes_no_run_degenerate():
    labels = [*np.linspace(0, 1, 50).tolist(), 100.0]
    dev = [RawExample(str(i), ("a",), label) for i, label in enumerate(labels)]
    found = {example.id: min(example.label, 1.0) for example in dev}
    assert not is_degenerate(find_task("stsb"), dev, found)
    assert is_degenerate(find_task("stsb"), dev, {name: x / 30 for name, x in found.items()})


def test_degenerate_answers_are_judged_by_the_part_of_the_labels_that_differs():
    task, rng = find_task("stsb"), np.random.default_rng(0)
    dev = [RawExample(str(i), ("a",), 5.0 * (i >= 95)) for i in range(100)]  # most are the same
    noise = rng.uniform(-0.05, 0.05, len(dev))
    found = {x.id: x.label + n for x, n in zip(dev, noise, strict=True)}
    assert not is_degenerate(task, dev, found)
    assert is_degenerate(task, dev, {x.id: n for x, n in zip(dev, noise, strict=True)})
    dev = [RawExample(str(i), ("a",), i / 99) for i in range(100)]
    assert is_degenerate(task, dev, {x.id: 0.9 if x.id == "7" else 0.5 for x in dev})


def test_several_seeds_have_a_median_and_a_spread():
    pairs = ((0.5, 0.9), (0.7, 0.8), (0.1, 0.7))
    runs = [seed_run(1, last=last, best=best) for last, best in pairs]
    assert summary(runs, "f1") == {
        "last": {"median": 0.5, "min": 0.1, "max": 0.7},
        "best": {"median": 0.8, "min": 0.7, "max": 0.9},
    }
    # NaN would make the order of the seeds decide.
    none = {"median": None, "min": None, "max": None}
    for values in ((0.5, math.nan, 0.7), (math.nan, 0.5, 0.7)):
        runs = [seed_run(1, last=value, best=0.5) for value in values]
        assert summary(runs, "f1")["last"] == none


def test_the_spread_is_told_of_the_runs_that_count():
    runs = [seed_run(seed, degenerate=seed == 1, restarted=seed == 1) for seed in (1, 4, 2, 3)]
    task = dataclasses.replace(find_task("mrpc"), scores=("f1",))
    base = Baseline(what="one answer", metrics={"f1": 0.0})
    told = results_table(task, runs, summary(runs[1:], "f1"), base)
    assert "last steps' f1 of 3 seeds: median 51.23%, 51.23% to 51.23%" in told
    assert "  last step      9  f1 51.23%" in told
    assert told.endswith("baseline: one answer  f1 0.00%")


def test_labels_in_another_order_are_put_in_the_tasks():
    names = ["entailment", "neutral", "contradiction"]
    head = HeadManifest(kind="classification", labels=names)
    assert finetuned._label_order("m", head, find_task("mnli")) == (2, 0, 1)
    of_mnli = dataclasses.replace(head, task="mnli")
    assert finetuned._label_order("m", of_mnli, find_task("ax")) == (2, 0, 1)
    with pytest.raises(UserError, match="fine-tuned for sst2"):
        finetuned._label_order("m", dataclasses.replace(head, task="sst2"), find_task("mnli"))
    with pytest.raises(
        UserError, match="has the labels entailment, neutral, contradiction, and rte"
    ):
        finetuned._label_order("m", head, find_task("rte"))


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "finetune --task single --workdir {new}",
            "no model directory to start from; give --model",
        ),
        ("finetune --task single --model {base} --workdir {new}", "no data; give --data DIR"),
        ("finetune --task single --model {base} --data {data}", "no work directory"),
        (
            "finetune --task singel --model {base} --data {data} --workdir {new}",
            "'singel' is unknown",
        ),
        (
            "finetune --task single --model {base} --data {data} --workdir {new} "
            "--max-seq-length 64",
            "--max-seq-length 64 must be 8 to 32, the model's positions; give --max-seq-length 32, "
            "or --positions interpolate or --positions repeat",
        ),
        (
            "finetune --task single --model {base} --data {data} --workdir {new} --doc-stride 9",
            "no use for --doc-stride",
        ),
        (
            "finetune --task sst2 --model {base} --data {data} --workdir {new} --max-seq-length 16",
            "row 1 lacks 'sentence': expected 'sentence', 'label'; found 'text', 'label'",
        ),
        (
            "evaluate --task single --model {base} --data {data}",
            "is not fine-tuned (it has no head)",
        ),
        ("evaluate --task sst2 --model {tuned} --data {data}", "was fine-tuned for single"),
        ("evaluate --model {tuned} --data {data} --split test", "use albert-jax predict"),
        ("evaluate --model {tuned} {tuned} --data {data}", "2 models; give one, or --suite card"),
        ("evaluate --suite card --model {tuned} --data {data}", "is of single, which is not in"),
        ("evaluate --suite card --pack 64 --model {tuned} --data {data}", "--pack and --engine"),
        ("predict --model {tuned}", "give --input FILE, or --data DIR"),
        ("predict --model {tuned} --input {new}", "No such file"),
        (
            "predict --model {tuned} --input {wrong}",
            "row 2 lacks 'text': expected 'text'; found 'txt'",
        ),
        ("predict --model {tuned} --input {bytes}", "row 1: invalid UTF-8 at byte 10"),
        ("predict --model {tuned} --input {none}", "row 2: 'text' is null; expected a text"),
        (
            "predict --model {tuned} --input {none} --labels x",
            "--labels 'x' must be a label of the",
        ),
        (
            "predict --model {tuned} --input {empty} --labels 0=maybe",
            "--labels 0=maybe names the label 'maybe', which is unknown; expected no, yes",
        ),
        (
            "evaluate --model {tuned} --data {data} --labels no=yess",
            "--labels no=yess names the label 'yess', which is unknown; expected no, yes",
        ),
        (
            "evaluate --suite card --labels a=b --model {tuned} --data {data}",
            "--labels, --pack and --engine",
        ),
        ("predict --model {tuned} --input {empty}", "is empty"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    line, told, finished, base, data, tmp_path, capsys
):
    files = {
        "wrong": b'{"text": "a"}\n{"txt": "b"}\n',
        "bytes": b'{"text": "\xff"}\n',
        "none": b'{"text": "a"}\n{"text": null}\n',
        "empty": b"",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    places = {name: tmp_path / f"{name}.jsonl" for name in files}
    places |= {"base": base, "data": data, "new": tmp_path / "new", "tuned": finished[0] / "model"}
    arguments = [word.format(**places) for word in line.split()]
    assert cli.main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert told in errors[0]


def test_a_model_that_no_checkpoint_could_hold_is_refused_before_it_is_trained(data, tmp_path):
    """transformers has a projection of the embeddings though they are as wide as the layer."""
    config = dataclasses.replace(TINY, embedding_size=TINY.hidden_size)
    plain = random_model(tmp_path / "plain", config)
    given = load_model(plain)
    projection = {"kernel": np.eye(TINY.hidden_size, dtype=np.float32)[::-1].copy()}
    projection["bias"] = np.zeros(TINY.hidden_size, np.float32)
    encoder = {**given.params["encoder"], "embedding_hidden_mapping_in": projection}
    model = export_model(
        tmp_path / "model",
        params={**given.params, "encoder": encoder},
        config=config,
        vocab=VOCABULARY,
        tokenizer={"mode": "google", "do_lower_case": True},
        provenance={},
    )
    with pytest.raises(UserError, match="projects its embeddings, though embedding_size equals"):
        finetune.finetune(toy_config(model, data, tmp_path / "run"))
    finetune.require_finetuning_inputs(toy_config(plain, data, tmp_path / "run"))


def test_a_folder_in_the_way_of_a_link_is_named_before_anything_is_trained(base, data, tmp_path):
    (tmp_path / "model").mkdir()  # as a pretraining run's
    with pytest.raises(UserError, match="model is in the way of a link; give another workdir"):
        finetune.finetune(toy_config(base, data, tmp_path))
    assert not (tmp_path / "seed-3").exists()


def test_a_folder_in_the_way_of_a_later_seeds_model_is_named_before_the_first(
    base, data, tmp_path, monkeypatch
):
    (tmp_path / "seed-4" / "best").mkdir(parents=True)
    (tmp_path / "seed-4" / "best" / "notes.txt").write_text("mine")
    monkeypatch.setattr(finetune, "set_up", None)  # which reads the data
    with pytest.raises(UserError, match="best exists and is no model directory; give another work"):
        finetune.finetune(dataclasses.replace(toy_config(base, data, tmp_path), seeds=2))


def test_the_work_directory_of_a_pretraining_run_is_refused(base, data, tmp_path):
    (tmp_path / "checkpoints" / "2" / "meta").mkdir(parents=True)  # it has no model yet
    (tmp_path / "config.json").write_text("the pretraining run's")
    with pytest.raises(UserError, match="of a pretraining run; give another workdir"):
        finetune.finetune(toy_config(base, data, tmp_path))
    assert (tmp_path / "config.json").read_text() == "the pretraining run's"
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    (tmp_path / "checkpoints" / "20.pt").write_text("a project's")
    finetune.require_finetuning_inputs(toy_config(base, data, tmp_path))


RTE = b"index\tsentence1\tsentence2\tlabel\n"
SQUAD = {"title": "t", "paragraphs": [{"context": "In the Alps.", "qas": []}]}
ASKED = {"question": "Where?", "answers": [{"text": "Alps", "answer_start": 3}]}
SQUAD["paragraphs"][0]["qas"] = [ASKED | {"id": f"q{i}"} for i in range(2)]


@pytest.mark.parametrize(
    ("task", "file", "content", "told"),
    [
        (
            "rte",
            "train.tsv",
            RTE + b"0\ta\tb\tentailment\n1\ta\tentailment\n",
            "row 3 has 3 columns; expected 4 ('index', 'sentence1', 'sentence2', 'label'); found ",
        ),
        (
            "rte",
            "train.tsv",
            b"index\tsentence1\tlabel\n0\ta\tentailment\n",
            "row 1 lacks the column 'sentence2': expected 'sentence1', 'sentence2', 'label'; ",
        ),
        (
            "rte",
            "train.tsv",
            RTE + b"0\ta\tb\tneutral\n",
            "label 'neutral' is unknown; expected ent",
        ),
        ("rte", "train.tsv", b"", "train.tsv is empty"),
        (
            "rte",
            "train.tsv",
            RTE + b"0\ta\tb\xe9\tentailment\n",
            "row 2: invalid UTF-8 at byte 37 (0xe9)",
        ),
        (
            "squad1",
            "train-v1.1.json",
            json.dumps({"data": [SQUAD]}).encode(),
            "2 of 2 questions have no answer at its offset: q0, q1; ",
        ),
    ],
)
def test_bad_data_is_one_line_and_exit_status_2(task, file, content, told, base, tmp_path, capsys):
    (tmp_path / file).write_bytes(content)
    places = ["--model", str(base), "--data", str(tmp_path), "--workdir", str(tmp_path / "run")]
    line = ["finetune", "--task", task, *places, "--max-seq-length", "32"]
    assert cli.main(line) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert told in error
    assert str(tmp_path / file) in error


def test_a_test_split_without_labels_cannot_be_evaluated(finished, tmp_path, capsys):
    """Of GLUE's own file too; `predict` is named instead."""
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\topen it\n")
    params = load_model(finished[0] / "model").params
    labels = {"kind": "classification", "labels": ["0", "1"], "task": "sst2"}
    export_model(
        tmp_path / "sst2",
        params=params,
        config=TINY,
        vocab=VOCABULARY,
        tokenizer={"mode": "google", "do_lower_case": True},
        head=labels,
        provenance={"made_by": "a test"},
    )
    line = ["evaluate", "--model", str(tmp_path / "sst2"), "--data", str(tmp_path)]
    assert cli.main([*line, "--split", "test"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "sst2 test has no labels" in error
    assert "use albert-jax predict" in error
