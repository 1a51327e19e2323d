# SPDX-License-Identifier: Apache-2.0
"""Packed rows: short examples that share a row have the outputs, losses, gradients and updates of
examples in rows of their own."""

import dataclasses
import json
import random
from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.checkpoint.integrity import named_leaves
from albert_jax.cli import main as cli
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import OptimizerConfig, TrainConfig
from albert_jax.distributed.placement import make_placement
from albert_jax.inference.evaluate import evaluate
from albert_jax.inference.finetuned import HeadOutputs, head_outputs
from albert_jax.inference.predict import predict
from albert_jax.models.albert import init_params
from albert_jax.models.heads import PACKABLE, AlbertForTask
from albert_jax.tasks import Features
from albert_jax.tasks.batches import Pack, TrainingBatches, evaluation_batches
from albert_jax.tasks.collate import as_rows, collate, pack, share_rows
from albert_jax.training.finetune import finetune
from albert_jax.training.losses import task_objective
from albert_jax.training.metrics import read_metrics
from albert_jax.training.optimizer import adamw
from albert_jax.training.step import init_state, make_train_step
from albert_jax.utils.errors import UserError
from tests.helpers.models import tiny_albert
from tests.helpers.pretraining_runs import random_model

# Large weights: what leaks from a neighbour, or a wrong position, changes logits by tenths.
SMALL = tiny_albert(initializer_range=0.3)
# Float32 sums in another order; logits are of the order of 1.
FORWARD = {"atol": 3e-6, "rtol": 0}
GRADIENT = {"atol": 3e-6, "rtol": 3e-6}

# Several labels are packed as one is: the head has the same input.
KINDS = [
    pytest.param(kind, marks=pytest.mark.slow) if kind == "multi_label" else kind
    for kind in PACKABLE
]


def made_up_target(kind, rng):
    if kind == "multi_label":
        return {"label_set": [rng.randrange(2) for _ in range(3)]}
    return {"labels": rng.random() if kind == "regression" else rng.randrange(3)}


def rows_of(lengths, kind="classification", seed=0):
    """Pairs of those lengths with made-up labels."""
    rng = random.Random(seed)
    return as_rows(
        Features(
            i,
            [rng.randrange(5, 90) for _ in range(length)],
            [int(at >= length // 2) for at in range(length)],
            made_up_target(kind, rng),
        )
        for i, length in enumerate(lengths)
    )


def model_and_params(kind):
    model = AlbertForTask(SMALL, kind=kind, labels=3, dropout=0.0)
    params = init_params(model, jax.random.key(1))
    noise = np.random.default_rng(2)  # no bias is zero
    return model, jax.tree.map(lambda x: x + noise.normal(0, 0.1, x.shape).astype("f4"), params)


def loss_and_gradient(model, params, batch):
    objective = task_objective(model)
    function = jax.value_and_grad(
        lambda p: objective.loss(p, batch, objective.normalizers(batch), None), has_aux=True
    )
    return jax.jit(function)(params)


# ------------------------------------------------------------------------------------ sharing rows


@given(st.lists(st.integers(2, 40), max_size=60), st.integers(40, 64))
def test_sharing_keeps_every_example_and_leaves_no_two_rows_that_one_could_hold(lengths, length):
    shared = share_rows(lengths, length)
    assert Counter(i for row in shared for i in row) == dict.fromkeys(range(len(lengths)), 1)
    filled = sorted(sum(lengths[i] for i in row) for row in shared)
    assert not filled or filled[-1] <= length
    assert len(filled) < 2 or filled[0] + filled[1] > length


def test_a_packed_batch_holds_the_examples_one_after_another():
    rows = rows_of([5, 3, 4])
    found = pack(rows, [[0, 1], [2]], 3, 9)
    first, second, third = (row.ids[0].tolist() for row in rows)
    np.testing.assert_array_equal(
        found["input_ids"], [[*first, *second, 0], [*third, *[0] * 5], [0] * 9]
    )
    np.testing.assert_array_equal(found["input_mask"].sum(axis=1), [8, 4, 0])
    np.testing.assert_array_equal(found["segment_ids"][0], [0, 0, 1, 1, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(found["starts"], [[0, 5, 9, 9], [0, 9, 9, 9], [9] * 4])
    np.testing.assert_array_equal(found["example_weights"].sum(axis=1), [2, 1, 0])
    labels = [int(row.targets["labels"]) for row in rows]
    assert [*found["labels"][0, :2].tolist(), found["labels"][1, 0]] == labels


# ------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_equal_those_of_single_unpadded_examples(kind):
    """In rows shorter than some of them, and in rows longer than the model has positions, as each
    example counts its own."""
    model, params = model_and_params(kind)
    rows = rows_of([11, 24, 2, 11, 24, 2, 24, 11, 2, 24, 11], kind)  # a program for each length
    single = jax.jit(partial(head_outputs, model))
    alone = [single(params, collate([row], row.length, targets=False)) for row in rows]
    wanted = np.concatenate([x["logits"] for x in alone])
    assert np.ptp(wanted, axis=0).min() > 0.3, "they differ"
    for length in (16, 64):
        found = np.stack([x["logits"] for x in HeadOutputs(model, pack=length)(params, rows)])
        np.testing.assert_allclose(found, wanted, err_msg=str(length), **FORWARD)


def test_an_example_sees_nothing_of_its_neighbours():
    model, params = model_and_params("classification")
    outputs = jax.jit(partial(head_outputs, model, params))
    rows, others = rows_of([7, 9, 8]), rows_of([7, 9, 8], seed=1)
    shared = [[0, 1, 2]]
    here = outputs(pack(rows, shared, 1, 32, targets=False))["logits"]
    there = outputs(pack([others[0], rows[1], others[2]], shared, 1, 32, targets=False))["logits"]
    np.testing.assert_array_equal(here[1], there[1])
    assert np.abs(here[2] - there[2]).max() > 0.1, "the neighbours changed"


def test_every_example_is_answered_once_in_batches_of_few_shapes():
    rng = random.Random(0)
    rows = rows_of([rng.randint(2, 24) for _ in range(300)])
    batches = list(evaluation_batches(rows, longest=24, tokens=512, pack=64))
    answered = Counter(i for chosen, _ in batches for i in chosen if i >= 0)
    assert answered == dict.fromkeys(range(300), 1)
    assert {arrays["input_ids"].shape for _, arrays in batches} <= {(8, 64), (1, 64)}
    ((chosen, alone),) = evaluation_batches(rows[:1], longest=24, tokens=512, pack=64)
    assert (chosen[0], alone["input_ids"].shape) == (0, (1, 16)), "one example takes no whole row"


# ----------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", KINDS)
def test_packed_loss_metrics_and_gradients_equal_unpacked_ones(kind):
    model, params = model_and_params(kind)
    rows = rows_of([6, 20, 11, 3, 6, 24, 11, 20, 2, 17, 5], kind)
    shared = share_rows([row.length for row in rows], 32)
    (loss, metrics), packed = loss_and_gradient(model, params, pack(rows, shared, 6, 32))
    (wanted, each), unpacked = loss_and_gradient(model, params, collate(rows, 24))
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert metrics.keys() == each.keys()
    for name, value in each.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    packed = named_leaves(packed)
    for name, gradient in named_leaves(unpacked).items():
        np.testing.assert_allclose(packed[name], gradient, err_msg=name, **GRADIENT)


def batches_of(rows, **changes):
    settings = {"batch_size": 16, "seed": 4, "window": 1, "longest": 24, **changes}
    return TrainingBatches(rows, **settings)


def test_packed_batches_hold_the_examples_of_unpacked_ones_in_few_shapes():
    rng = random.Random(1)
    rows = rows_of([rng.randint(2, 24) for _ in range(128)])
    for i, row in enumerate(rows):
        row.targets["labels"] = np.int32(i)
    packed, plain = batches_of(rows, pack=Pack(64, unit=2)), batches_of(rows)
    for step in range(24):
        batch = packed.at(step)
        count, length = batch["input_ids"].shape
        assert (length, count % 2) == (64, 0)
        held = batch["labels"][batch["example_weights"] > 0]
        assert Counter(held.tolist()) == Counter(plain.at(step)["labels"].tolist())
    assert len(set(packed.shapes(24))) <= 2
    (tokens, share), (padded, less) = packed.fill(24), plain.fill(24)
    assert padded == 24
    assert share > 0.75 > less
    assert tokens * share == pytest.approx(padded * less)  # the text's


def train(batches, mode, accumulate, devices):
    """Losses and parameters of three updates."""
    model, params = model_and_params("classification")
    tx = adamw(lambda _: 1e-2)
    placement = make_placement(mode, jax.devices()[:devices])
    objective = task_objective(model.clone(lowering=placement.lowering))
    step = make_train_step(objective, tx, accumulate=accumulate)
    compiled = placement.compile(step)
    state = placement.put_state(init_state(params, tx, seed=0))
    losses = []
    for number in range(3):
        state, metrics = compiled(state, placement.put_batch(batches.at(number)))
        losses.append(float(placement.fetch(metrics)["loss"]))
    return losses, named_leaves(jax.device_get(placement.get_state(state).params))


def test_updates_over_devices_and_micro_batches_equal_unpacked_ones_on_one_device():
    rng = random.Random(3)
    rows = rows_of([rng.randint(3, 24) for _ in range(48)])
    wanted, unpacked = train(batches_of(rows), "jit", 1, 1)
    for mode in ("jit", "pmap"):
        losses, packed = train(batches_of(rows, pack=Pack(32, unit=4)), mode, 2, 2)
        np.testing.assert_allclose(losses, wanted, rtol=1e-5, err_msg=mode)
        for name, leaf in unpacked.items():
            # A key's bias has no gradient but rounding's, which m / sqrt(v) makes large.
            if "key/bias" not in name:
                np.testing.assert_allclose(packed[name], leaf, atol=1e-4, err_msg=name)


# -------------------------------------------------------------------------------------------- whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model directory `base`, and the files of a task of one's own."""
    folder = tmp_path_factory.mktemp("packing")
    config = dataclasses.replace(SMALL, vocab_size=8000)
    random_model(folder / "base", config)
    rng = random.Random(5)
    for split in ("train", "dev"):
        lines = []
        for _ in range(64):
            words = rng.choices(("the", "list", "of", "open", "file"), k=rng.randint(1, 12))
            label = "yes" if "open" in words else "no"
            lines.append(json.dumps({"text": " ".join(words), "label": label}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def run(folder, name, **changes):
    config = FinetuneConfig(
        task="single",
        model=str(folder / "base"),
        data=str(folder),
        workdir=str(folder / name),
        max_seq_length=24,
        length_window=1,
        classifier_dropout=0.0,
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.003),
        train=TrainConfig(
            steps=8, batch_size=16, devices=1, log_every=1, eval_every=4, save_every=4, keep=2
        ),
        **changes,
    )
    return finetune(config)


@pytest.mark.slow
def test_a_packed_run_is_an_unpacked_one(folder, capsys):
    """The same losses and dev metrics, without dropout and without sorting by length; and its model
    answers the same either way."""
    plain, packed = run(folder, "plain"), run(folder, "packed", pack=48)
    assert "packed to" in capsys.readouterr().err
    losses = {}
    for name in ("plain", "packed"):
        log = read_metrics(folder / name / "seed-12345" / "metrics.jsonl")
        losses[name] = [e["loss"] for e in log if e["kind"] == "train"]
    assert len(losses["plain"]) > 4
    np.testing.assert_allclose(losses["packed"], losses["plain"], rtol=1e-4)
    assert packed["runs"][0]["last"] == plain["runs"][0]["last"]
    model, output = folder / "packed" / "model", folder / "official"
    found = [evaluate("single", model, folder, output=output, pack=length) for length in (0, 48)]
    assert found[0] == found[1]
    texts = [{"text": "open the list"}] * 3
    one, other = (list(predict(folder / "packed" / "model", texts, pack=n)) for n in (0, 48))
    assert [a["prediction"] for a in one] == [a["prediction"] for a in other]
    for a, b in zip(one, other, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=2e-6)
    with pytest.raises(UserError, match="pack -8 must be a row's tokens"):
        evaluate("single", folder / "packed" / "model", folder, pack=-8)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "finetune --task squad1 --model {base} --data {base} --workdir {new} --pack 64",
            "span_v1",
        ),
        ("finetune --task race --model {base} --data {base} --workdir {new} --pack 64", "choice"),
        (
            "finetune --task single --model {base} --data {base} --workdir {new} --pack -1",
            "pack -1",
        ),
        (
            "finetune --task single --model {base} --data {base} --workdir {new} --pack 300000000",
            "at most 8192",
        ),
    ],
)
def test_packing_what_cannot_be_packed_is_one_line_and_exit_status_2(line, told, folder, capsys):
    places = {"base": folder / "base", "new": folder / "new"}
    assert cli.main([word.format(**places) for word in line.split()]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert told in error
