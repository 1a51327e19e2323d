# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning heads: the original's numbers, transformers' numbers, and NumPy in float64."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from albert_jax.checkpoint.convert.hf_names import hf_names
from albert_jax.checkpoint.integrity import named_leaves, nest
from albert_jax.config.heads import BEAM, SCORES
from albert_jax.config.model import AlbertConfig, ComputeConfig
from albert_jax.models.albert import AlbertForPretraining, init_params
from albert_jax.models.heads import HEADS, AlbertForTask, Similarity, SpanV2
from albert_jax.training.losses import TASK_LOSSES, cross_entropy, task_objective
from albert_jax.training.optimizer import adamw
from albert_jax.training.step import init_state, make_train_step
from tests.helpers.golden import TRANSFORMERS, arrays, original_model
from tests.helpers.models import tiny_albert
from tests.helpers.reference import dense, layer_norm, softmax

# Two float32 implementations differ by 6e-6 here (tests/data/README.md); a wrong epsilon shows from
# 2.7e-5 on.
FORWARD = {"atol": 2e-5, "rtol": 0}
GRADIENT = {"atol": 1e-5, "rtol": 1e-4}
LOSS = {"atol": 1e-5, "rtol": 2e-6}

SMALL = tiny_albert()

# Golden group -> our kind, the number of labels, and our path of each of its variables.
SPAN_V2_NAMES = {
    "start_logits/dense/kernel": "start_logits/dense/kernel",
    "start_logits/dense/bias": "start_logits/dense/bias",
    "end_logits/dense_0/kernel": "end_logits/dense_0/kernel",
    "end_logits/dense_0/bias": "end_logits/dense_0/bias",
    "end_logits/LayerNorm/gamma": "end_logits/LayerNorm/scale",
    "end_logits/LayerNorm/beta": "end_logits/LayerNorm/bias",
    "end_logits/dense_1/kernel": "end_logits/dense_1/kernel",
    "end_logits/dense_1/bias": "end_logits/dense_1/bias",
    "answer_class/dense_0/kernel": "answer_class/dense_0/kernel",
    "answer_class/dense_0/bias": "answer_class/dense_0/bias",
    "answer_class/dense_1/kernel": "answer_class/dense_1/kernel",
}
OUTPUT_NAMES = {"output_weights": "output_weights", "output_bias": "output_bias"}
ORIGINAL = {
    "classifier": ("classification", 3, OUTPUT_NAMES),
    "regression": ("regression", 1, OUTPUT_NAMES),
    "squadv1": ("span_v1", 2, {f"cls/squad/{a}": b for a, b in OUTPUT_NAMES.items()}),
    "squadv2": ("span_v2", 2, SPAN_V2_NAMES),
}


# ----------------------------------------------------------------------------- against the original


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return arrays("tiny/finetune_heads")


def model_of(golden, group):
    kind, labels, names = ORIGINAL[group]
    config, params = original_model()
    head = nest({ours: golden[f"var/{group}/{theirs}"] for theirs, ours in names.items()})
    encoder = {name: params[name] for name in ("embeddings", "encoder", "pooler")}
    if not HEADS[kind].pooled:
        del encoder["pooler"]
    return AlbertForTask(config, kind=kind, labels=labels), encoder | {"head": head}


def batch_of(golden, group):
    columns = {
        "classifier": {"labels": "cls_labels"},
        "regression": {"labels": "reg_labels"},
        "squadv1": {n: f"v1_{n}" for n in ("start_positions", "end_positions")},
        "squadv2": {
            n: f"v2_{n}" for n in ("start_positions", "end_positions", "p_mask", "is_impossible")
        },
    }[group]
    texts = {name: golden[name] for name in ("input_ids", "input_mask", "segment_ids")}
    return texts | {ours: golden[theirs] for ours, theirs in columns.items()}


def apply(model, params, batch, **head_inputs):
    texts = (batch[name] for name in ("input_ids", "input_mask", "segment_ids"))
    return jax.jit(model.apply)({"params": params}, *texts, **head_inputs)


def loss_and_gradient(model, params, batch):
    objective = task_objective(model)
    function = jax.value_and_grad(objective.loss, has_aux=True)
    return jax.jit(function, static_argnums=3)(params, batch, objective.normalizers(batch), None)


def expected_outputs(golden, group, output):
    if group == "squadv1":
        return {"start_logits": output.start_BS, "end_logits": output.end_BS}
    if group == "squadv2":
        return {
            "start_log_probs": output.start_BS,
            "end_log_probs": output.end_BS,
            "cls_logits": output.unanswerable_B,
        }
    return {"logits": output}


@pytest.mark.parametrize("group", ORIGINAL)
def test_logits_losses_and_gradients_equal_the_originals(golden, group):
    model, params = model_of(golden, group)
    batch = batch_of(golden, group)
    prefix = "squadv2_train" if group == "squadv2" else group
    inputs = TASK_LOSSES[model.kind].head_inputs
    output = apply(model, params, batch, **{name: batch[key] for name, key in inputs.items()})
    for name, found in expected_outputs(golden, group, output).items():
        wanted = golden[f"{prefix}/{name}"]
        np.testing.assert_allclose(found, wanted, err_msg=name, **FORWARD)
    (loss, _), grads = loss_and_gradient(model, params, batch)
    np.testing.assert_allclose(loss, golden[f"{prefix}/loss"], **LOSS)
    found = named_leaves(grads["head"])
    for theirs, ours in ORIGINAL[group][2].items():
        wanted = golden[f"{prefix}/grad/{theirs}"]
        np.testing.assert_allclose(found.pop(ours), wanted, err_msg=theirs, **GRADIENT)
    assert not found
    # The norm is over the encoder too.
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(norm, golden[f"{prefix}/global_norm_dense"], rtol=1e-5)


def test_span_v2_beam_equals_the_originals(golden):
    model, params = model_of(golden, "squadv2")
    batch = batch_of(golden, "squadv2")
    beam = apply(model, params, batch, p_mask_BS=batch["p_mask"])
    rows = len(batch["input_ids"])
    pairs = {
        "start_top_log_probs": beam.start_log_probs_BK,
        "end_top_log_probs": beam.end_log_probs_BKK.reshape(rows, -1),
        "cls_logits": beam.unanswerable_B,
    }
    for name, found in pairs.items():
        np.testing.assert_allclose(
            found, golden[f"squadv2_predict/{name}"], err_msg=name, **FORWARD
        )
    np.testing.assert_array_equal(beam.start_index_BK, golden["squadv2_predict/start_top_index"])
    np.testing.assert_array_equal(
        beam.end_index_BKK.reshape(rows, -1), golden["squadv2_predict/end_top_index"]
    )


# --------------------------------------------------------------------------- against transformers

HF_FOLDERS = {
    "sequence_classification": ("classification", 5),
    "sequence_regression": ("regression", 1),
    "token_classification": ("token_classification", 7),
    "question_answering": ("span_v1", 2),
    "multiple_choice": ("multiple_choice", 1),
}


def from_hf(name: str, folder: Path):
    """(configuration, our parameters) of a transformers folder."""
    config = AlbertConfig.from_json(folder / "config.json")
    tensors = load_file(folder / "model.safetensors")
    ours = {}
    for path, theirs in hf_names(config, HF_FOLDERS.get(name, (None,))[0]).items():
        if theirs in tensors:
            ours[path] = tensors[theirs].T if path.endswith("kernel") else tensors[theirs]
    return config, nest(ours)


def hf_batch(outputs):
    """The batch under our names; example_weights are 0 where transformers ignores the positions."""
    names = {"attention_mask": "input_mask", "token_type_ids": "segment_ids"}
    batch = {
        names.get(name, name): x.astype(np.int32) if x.dtype.kind == "i" else x
        for name, x in outputs.items()
        if name in ("labels", "start_positions", "end_positions", "input_ids", *names)
    }
    if "start_positions" in batch:
        fits = batch["start_positions"] < batch["input_ids"].shape[1]
        assert not fits.all(), "the golden batch has a row to ignore"
        batch |= {n: batch[n] * fits for n in ("start_positions", "end_positions")}
        batch["example_weights"] = fits.astype(np.float32)
    return batch


@pytest.mark.parametrize("name", HF_FOLDERS)
def test_logits_and_losses_equal_transformers(name):
    outputs = arrays(f"transformers/{name}/outputs")
    config, params = from_hf(name, TRANSFORMERS / name)
    kind, labels = HF_FOLDERS[name]
    model, batch = AlbertForTask(config, kind=kind, labels=labels), hf_batch(outputs)
    assert HEADS[kind].pooled == ("pooler" in params), "the golden models have what is needed"
    found = apply(model, params, batch)
    if kind == "span_v1":
        np.testing.assert_allclose(found.start_BS, outputs["start_logits"], **FORWARD)
        np.testing.assert_allclose(found.end_BS, outputs["end_logits"], **FORWARD)
    else:
        wanted = outputs["logits"]
        np.testing.assert_allclose(
            found, wanted[..., 0] if kind == "regression" else wanted, **FORWARD
        )
    (loss, _), _ = loss_and_gradient(model, params, batch)
    np.testing.assert_allclose(loss, outputs["loss"], **LOSS)


def test_masked_lm_logits_and_loss_equal_transformers():
    name = "masked_lm"
    outputs = arrays(f"transformers/{name}/outputs")
    config, params = from_hf(name, TRANSFORMERS / name)
    hidden = config.hidden_size
    params |= {  # transformers' model has neither; the masked-LM logits need neither
        "pooler": {"kernel": np.zeros((hidden, hidden), "f4"), "bias": np.zeros(hidden, "f4")},
        "seq_relationship": {
            "output_weights": np.zeros((2, hidden), "f4"),
            "output_bias": np.zeros(2, "f4"),
        },
    }
    logits_BSV = apply(AlbertForPretraining(config), params, hf_batch(outputs)).masked_lm_logits_BPV
    np.testing.assert_allclose(logits_BSV, outputs["logits"], **FORWARD)
    labels_BS = outputs["labels"].astype(np.int32)
    losses_BS = cross_entropy(logits_BSV, jnp.maximum(labels_BS, 0))
    np.testing.assert_allclose(losses_BS[labels_BS >= 0].mean(), outputs["loss"], **LOSS)


# -------------------------------------------------------------------------- against NumPy, float64


def random_span_v2(seed=0, rows=3, length=9):
    rng = np.random.default_rng(seed)
    hidden = SMALL.hidden_size
    sequence_BSH = rng.standard_normal((rows, length, hidden)).astype(np.float32)
    p_mask_BS = (rng.random((rows, length)) < 0.2).astype(np.float32)
    p_mask_BS[:, 0] = 0
    head = SpanV2(SMALL)
    shapes = jax.eval_shape(
        partial(head.init, deterministic=True), jax.random.key(0), sequence_BSH
    )["params"]
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    return head, params, sequence_BSH, p_mask_BS


def original_span_v2(params, sequence_SH, p_mask_S, start):
    """The original's computation for one text, [state; state at start] concatenated, no beam."""
    to_original = {ours: theirs for theirs, ours in SPAN_V2_NAMES.items()}
    v = {to_original[n]: np.asarray(x, np.float64) for n, x in named_leaves(params).items()}
    x = sequence_SH.astype(np.float64)
    start_S = dense(x, v, "start_logits/dense")[:, 0] * (1 - p_mask_S) - 1e30 * p_mask_S
    pairs = np.concatenate([x, np.tile(x[start], (len(x), 1))], -1)
    hidden = layer_norm(np.tanh(dense(pairs, v, "end_logits/dense_0")), v, "end_logits/LayerNorm")
    end_S = dense(hidden, v, "end_logits/dense_1")[:, 0] * (1 - p_mask_S) - 1e30 * p_mask_S
    states = np.concatenate([softmax(start_S) @ x, x[0]])
    answer = np.tanh(dense(states, v, "answer_class/dense_0"))
    unanswerable = (answer @ v["answer_class/dense_1/kernel"])[0]
    return _log_softmax(start_S), _log_softmax(end_S), unanswerable


def _log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def test_span_v2_given_the_start_equals_numpy():
    head, params, sequence_BSH, p_mask_BS = random_span_v2()
    starts_B = np.array([0, 4, 8])
    apply = jax.jit(partial(head.apply, deterministic=True))
    found = apply({"params": params}, sequence_BSH, p_mask_BS, starts_B)
    for b, start in enumerate(starts_B):
        wanted = original_span_v2(params, sequence_BSH[b], p_mask_BS[b], start)
        for x, y in zip((found.start_BS, found.end_BS, found.unanswerable_B), wanted, strict=True):
            np.testing.assert_allclose(x[b], y, atol=2e-5, rtol=2e-6)


def test_span_v2_beam_is_the_best_starts_and_for_each_the_best_ends():
    head, params, sequence_BSH, p_mask_BS = random_span_v2(seed=1)
    apply = jax.jit(partial(head.apply, deterministic=True))
    beam = apply({"params": params}, sequence_BSH, p_mask_BS)
    for b, sequence_SH in enumerate(sequence_BSH):
        start_S, _, unanswerable = original_span_v2(params, sequence_SH, p_mask_BS[b], 0)
        starts = np.argsort(-start_S, kind="stable")[:BEAM]
        np.testing.assert_array_equal(beam.start_index_BK[b], starts)
        np.testing.assert_allclose(beam.unanswerable_B[b], unanswerable, atol=2e-5)
        for k, start in enumerate(starts):
            _, end_S, _ = original_span_v2(params, sequence_SH, p_mask_BS[b], start)
            ends = np.argsort(-end_S, kind="stable")[:BEAM]
            np.testing.assert_array_equal(beam.end_index_BKK[b, k], ends)
            np.testing.assert_allclose(
                beam.end_log_probs_BKK[b, k], end_S[ends], atol=2e-5, rtol=2e-6
            )


def test_similarity_is_the_cosine_of_the_means_of_each_texts_tokens():
    rng = np.random.default_rng(4)
    sequence_BCSH = rng.standard_normal((3, 2, 7, SMALL.hidden_size)).astype(np.float32)
    lengths_BC = np.array([[7, 3], [2, 5], [4, 4]])
    mask_BCS = (np.arange(7) < lengths_BC[..., None]).astype(np.int32)
    sequence_BCSH[2, 1, :4] = 2 * sequence_BCSH[2, 0, :4]  # the same but for its length
    found = Similarity(SMALL).apply({}, sequence_BCSH, mask_BCS, deterministic=True)
    for b, (first, second) in enumerate(lengths_BC):
        x, y = (sequence_BCSH[b, c, :n].mean(0) for c, n in enumerate((first, second)))
        wanted = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        np.testing.assert_allclose(found[b], wanted, atol=1e-6)
    assert found[2] == pytest.approx(1, abs=1e-6)


# ------------------------------------------------------------------------------------- properties


def small_batch(kind, rows=4, length=12, labels=3, seed=0):
    rng = np.random.default_rng(seed)
    texts = {"multiple_choice": labels, "similarity": 2}.get(kind)
    shape = (rows, texts, length) if texts else (rows, length)
    batch = {
        "input_ids": rng.integers(5, SMALL.vocab_size, shape).astype(np.int32),
        "input_mask": np.ones(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
    }
    if kind.startswith("span"):
        ends = np.sort(rng.integers(0, length, (2, rows)).astype(np.int32), axis=0)
        batch |= {"start_positions": ends[0], "end_positions": ends[1]}
        batch |= {"p_mask": np.zeros(shape, np.float32), "is_impossible": np.arange(rows) % 2}
    elif kind == "token_classification":
        batch["labels"] = rng.integers(-1, labels, shape).astype(np.int32)
    elif kind == "multi_label":
        batch["label_set"] = rng.integers(0, 2, (rows, labels)).astype(np.float32)
    elif kind in SCORES:
        batch["labels"] = rng.random(rows).astype(np.float32)
    else:
        batch["labels"] = rng.integers(0, labels, rows).astype(np.int32)
    return batch


@pytest.mark.parametrize("kind", HEADS)
def test_parameters_are_the_agreed_ones_and_the_pooler_only_where_it_is_used(kind):
    model = AlbertForTask(SMALL, kind=kind, labels=3)
    params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    own = ["pooler"] * HEADS[kind].pooled + ["head"] * (kind != "similarity")
    assert set(params) == {"embeddings", "encoder", *own}
    shapes = {name: x.shape for name, x in named_leaves(params.get("head", {})).items()}
    h = SMALL.hidden_size
    if kind == "span_v2":
        sizes = {"start_logits": (h, 1), "dense_0": (2 * h, h), "dense_1": (h, 1)}
        assert set(shapes) == set(SPAN_V2_NAMES.values())
        for name, shape in shapes.items():
            if name.endswith("kernel"):
                assert shape == next(size for part, size in sizes.items() if part in name)
    elif kind != "similarity":
        classes = dict.fromkeys(("classification", "multi_label", "token_classification"), 3)
        n = (classes | {"span_v1": 2}).get(kind, 1)
        assert shapes == {"output_weights": (n, h), "output_bias": (n,)}


# The other kinds' gradients are held against the original's above.
@pytest.mark.parametrize(
    "kind", ["multi_label", "multiple_choice", "token_classification", "span_v2"]
)
def test_a_few_steps_lower_the_loss(kind):
    model = AlbertForTask(SMALL, kind=kind, labels=3)
    batch = small_batch(kind)
    tx = adamw(lambda _: 1e-2)
    state = init_state(init_params(model, jax.random.key(0)), tx, seed=0)
    step = jax.jit(make_train_step(task_objective(model), tx))
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", HEADS)
def test_every_metric_has_its_normalizer(kind):
    model, batch = AlbertForTask(SMALL, kind=kind, labels=3), small_batch(kind)
    objective = task_objective(model)
    loss = partial(objective.loss, batch=batch, normalizers=objective.normalizers(batch), key=None)
    params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    assert set(objective.normalizer_of) == set(jax.eval_shape(loss, params)[1])


@pytest.mark.parametrize(
    "kind", ["similarity", "multiple_choice", "token_classification", "span_v2"]
)
def test_filling_rows_and_the_number_of_shards_change_nothing(kind):
    model = AlbertForTask(SMALL, kind=kind, labels=3)
    params = init_params(model, jax.random.key(0))
    objective, batch = task_objective(model), small_batch(kind)
    loss = jax.jit(partial(objective.loss, key=None))
    whole = loss(params, batch | {"example_weights": jnp.ones(4)}, objective.normalizers(batch))[0]
    other = small_batch(kind, seed=1)
    filled = {name: np.concatenate([x[:2], other[name], x[2:]]) for name, x in batch.items()}
    filled["example_weights"] = np.array([1, 1, 0, 0, 0, 0, 1, 1], np.float32)
    normalizers = objective.normalizers(filled)
    shards = [{name: x[rows] for name, x in filled.items()} for rows in (range(4), range(4, 8))]
    parts = sum(loss(params, shard, normalizers)[0] for shard in shards)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_a_batch_without_labels_has_loss_zero():
    model = AlbertForTask(SMALL, kind="token_classification")
    batch = small_batch("token_classification")
    batch["labels"][:] = -100
    objective, params = task_objective(model), init_params(model, jax.random.key(0))
    loss = jax.jit(partial(objective.loss, key=None))
    assert loss(params, batch, objective.normalizers(batch))[0] == 0


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "similarity"])
def test_heads_drop_out_as_the_originals(kind):
    """A tenth, also where the model itself has no dropout; SQuAD 1.1's head has none."""
    size = 400
    config = AlbertConfig(hidden_size=size, num_attention_heads=1, hidden_dropout_prob=0.5)
    head = HEADS[kind](config, labels=size)
    hidden = np.ones((1, 5, size) if kind.startswith("span") else (1, size), np.float32)
    shapes = jax.eval_shape(partial(head.init, deterministic=True), jax.random.key(0), hidden)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes["params"])
    # Parameters by which the output shows what was kept of a state of ones: each of its numbers,
    # or their mean.
    if kind == "span_v2":
        zeros["answer_class"]["dense_0"]["bias"][:] = 10  # whose tanh is 1
        zeros["answer_class"]["dense_1"]["kernel"][:] = 1 / size
    elif len(zeros["output_weights"]) == size:
        zeros["output_weights"] = np.eye(size, dtype=np.float32)
    else:
        zeros["output_weights"][:] = 1 / size
    apply = jax.jit(partial(head.apply, deterministic=False))
    output = apply({"params": zeros}, hidden, rngs={"dropout": jax.random.key(2)})
    if kind == "span_v1":
        np.testing.assert_allclose(output.start_BS, 1, rtol=1e-6)
        return
    kept = output.unanswerable_B if kind == "span_v2" else output
    # Of 400, 40 +- 6 are dropped and the others multiplied by 1 / 0.9; nothing dropped and another
    # rate would give 360 or, but for chance, no whole number.
    count = 0.9 * size * np.asarray(kept, np.float64).mean()
    assert 330 < count < 390
    assert abs(count - 360) > 0.5
    np.testing.assert_allclose(count, round(count), atol=0.01)


def test_bfloat16_returns_float32_near_float32s():
    head, params, sequence_BSH, p_mask_BS = random_span_v2()
    params = jax.tree.map(lambda x: 0.1 * x, params)
    half = head.clone(compute=ComputeConfig(dtype="bfloat16"))
    inputs = (sequence_BSH, p_mask_BS, np.array([0, 4, 8]))
    full = jax.jit(partial(head.apply, deterministic=True))({"params": params}, *inputs)
    narrow = inputs[0].astype(jnp.bfloat16)
    short = jax.jit(partial(half.apply, deterministic=True))(
        {"params": params}, narrow, *inputs[1:]
    )
    for x, y in zip(jax.tree.leaves(short), jax.tree.leaves(full), strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, atol=0.02, rtol=1e-6)
