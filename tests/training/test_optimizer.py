# SPDX-License-Identifier: Apache-2.0
"""LAMB, AdamW and the schedule against 20 steps of the original program and against NumPy in
float64."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from albert_jax.checkpoint.convert.tf_names import tf_names
from albert_jax.config.sections import OptimizerConfig, TrainConfig
from albert_jax.config.stages import rate_factors
from albert_jax.models.albert import AlbertForPretraining
from albert_jax.training.losses import pretraining_objective
from albert_jax.training.optimizer import (
    MomentsState,
    adamw,
    average_weights,
    averaged_weights,
    divergence_warnings,
    is_adapted,
    lamb,
    learning_rate_preset,
    make_optimizer,
    polynomial_schedule,
    trust_ratios,
    warmup_warnings,
)
from albert_jax.training.step import init_state, make_train_step
from albert_jax.utils.errors import UserError
from tests.helpers import reference
from tests.helpers.golden import (
    CHECKPOINTS,
    FOLDER,
    arrays,
    as_tf,
    batch_of,
    hparams,
    original_model,
)
from tests.helpers.tf_checkpoints import from_tf, read_checkpoint

SCHEDULES = json.loads((FOLDER / "lr_schedule.json").read_text())


@pytest.mark.parametrize(
    "case", SCHEDULES, ids=lambda c: f"{c['init_lr']:g}-{c['num_train_steps']}"
)
def test_schedule_equals_the_original(case):
    schedule = polynomial_schedule(
        case["init_lr"],
        steps=case["num_train_steps"],
        warmup_steps=case["num_warmup_steps"],
        power=case["poly_power"],
        start_warmup_step=case["start_warmup_step"],
    )
    expected = case["lr_at_global_step"]
    got = jax.vmap(schedule)(jnp.arange(len(expected)))
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6 * case["init_lr"])


def resumed_state(model, config):
    """The slots and the step of an original's checkpoint."""
    variables = read_checkpoint(CHECKPOINTS[model])
    moments = (
        from_tf({n: variables[f"{n}/{slot}"] for n in tf_names(config).values()}, config)
        for slot in ("adam_m", "adam_v")
    )
    return MomentsState(*moments), int(variables["global_step"])


@functools.cache
def run_trajectory(model, trajectory):
    """20 steps by the optimizer that pretrain and finetune build, with the golden's
    hyper-parameters; returns (metrics a step, norms a step, final state)."""
    config, params = original_model(model)
    golden, prefix = arrays(f"{model}/trajectories"), f"{trajectory}/"
    h = hparams(golden, prefix)
    optimizer = OptimizerConfig(
        name=h["optimizer"], learning_rate=h["init_lr"], warmup_steps=h["num_warmup_steps"]
    )
    tx, _ = make_optimizer(optimizer, steps=h["num_train_steps"], batch_size=4)
    objective = pretraining_objective(AlbertForPretraining(config))
    step = jax.jit(make_train_step(objective, tx))
    state = init_state(jax.tree.map(jnp.asarray, params), tx, seed=0)
    if h["resume"]:
        slots, start = resumed_state(model, config)
        is_node = lambda x: isinstance(x, MomentsState | optax.ScaleByScheduleState)  # noqa: E731
        resumed = {
            MomentsState: slots,
            optax.ScaleByScheduleState: optax.ScaleByScheduleState(jnp.int32(start)),
        }
        opt_state = jax.tree.map(
            lambda x: resumed.get(type(x), x), state.opt_state, is_leaf=is_node
        )
        state = state.replace(opt_state=opt_state, step=jnp.int32(start))
    history, norms = [], []
    names = list(golden[prefix + "variable_names"])
    for i in range(20):
        state, metrics = step(state, batch_of(golden, "batch/", i))
        history.append(metrics)
        variables = as_tf(state.params, config)
        norms.append([np.linalg.norm(variables[n].astype(np.float64)) for n in names])
    return history, np.array(norms), state


def check_trajectory(golden, prefix, history, norms):
    # The norm of so steep a trajectory's gradient magnifies the rounding of the steps before it.
    for ours, theirs, rtol in (("loss", "loss", 1e-5), ("grad_norm", "global_norm", 5e-5)):
        got = [h[ours] for h in history]
        np.testing.assert_allclose(got, golden[prefix + theirs], rtol=rtol, atol=2e-5, err_msg=ours)
    names = golden[prefix + "variable_names"]
    key_bias = np.array([n.endswith("key/bias") for n in names])  # true gradient 0: rounding noise
    expected = golden[prefix + "per_step_variable_l2"]
    np.testing.assert_allclose(norms[:, ~key_bias], expected[:, ~key_bias], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norms[:, key_bias], expected[:, key_bias], atol=1e-3)


TRAJECTORIES = [
    ("tiny", "lamb_trajectory"),
    ("tiny", "lamb_trajectory_resume"),
    ("tiny", "adamw_trajectory"),
    ("tiny_inner2", "lamb_trajectory"),
]


@pytest.mark.parametrize(("model", "trajectory"), TRAJECTORIES)
def test_twenty_steps_have_the_originals_losses_and_norms(model, trajectory):
    golden, prefix = arrays(f"{model}/trajectories"), f"{trajectory}/"
    history, norms, _ = run_trajectory(model, trajectory)
    check_trajectory(golden, prefix, history, norms)


@pytest.mark.parametrize(("model", "trajectory"), TRAJECTORIES)
def test_twenty_steps_end_at_the_originals_variables_and_slots(shared, model, trajectory):
    golden = dict(np.load(shared / "golden" / model / f"{trajectory}.npz"))
    config, _ = original_model(model)
    _, _, state = run_trajectory(model, trajectory)
    final = as_tf(state.params, config)
    for name, value in final.items():
        atol = 1e-4 if name.endswith("key/bias") else 5e-5
        np.testing.assert_allclose(value, golden["final/" + name], atol=atol, rtol=0, err_msg=name)
    is_moments = lambda x: isinstance(x, MomentsState)  # noqa: E731
    moments = next(filter(is_moments, jax.tree.leaves(state.opt_state, is_leaf=is_moments)))
    for slot, tree in (("adam_m", moments.mu), ("adam_v", moments.nu)):
        for name, value in as_tf(tree, config).items():
            if f"final_slot/{name}/{slot}" in golden:
                want = golden[f"final_slot/{name}/{slot}"]
                np.testing.assert_allclose(
                    value, want, atol=1e-5, rtol=1e-3, err_msg=f"{name}/{slot}"
                )


@pytest.mark.parametrize("make", [lamb, adamw])
def test_updates_equal_float64_numpy(make):
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": rng.standard_normal((5, 3)), "bias": rng.standard_normal(3)},
        "LayerNorm": {"scale": np.ones(3), "bias": np.zeros(3)},
        "zero": {"kernel": np.zeros((2, 2))},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    tx = make(0.01, clip_norm=0.0)
    state = tx.init(params)
    peer = {
        jax.tree_util.keystr(path): [np.asarray(leaf, np.float64), 0.0, 0.0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for _ in range(5):
        grads = jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params
        )
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for path, g in jax.tree_util.tree_leaves_with_path(grads):
            name = jax.tree_util.keystr(path)
            peer[name] = list(
                reference.optimizer_step(*peer[name], np.asarray(g), name, 0.01, adapt=make is lamb)
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_allclose(leaf, peer[jax.tree_util.keystr(path)][0], rtol=2e-6, atol=1e-7)


def test_layernorm_and_every_bias_are_exempt_and_nothing_else():
    config, params = original_model()
    adapted = as_tf(is_adapted(params), config)
    assert {n for n, a in adapted.items() if not a} == {
        n for n in adapted if n.endswith(("bias", "gamma", "beta"))
    }


def test_trust_ratios_are_reported_by_name_for_adapted_parameters_only():
    _, params = original_model()
    _, _, state = run_trajectory("tiny", "lamb_trajectory")
    ratios = trust_ratios(state.opt_state)
    assert len(ratios) == sum(jax.tree.leaves(is_adapted(params)))
    assert "embeddings/word_embeddings" in ratios
    assert all(math.isfinite(r) and r > 0 for r in ratios.values())
    assert trust_ratios(adamw(0.1).init(params)) == {}


def test_optax_lamb_is_selectable_and_is_another_algorithm():
    config, params = original_model()
    objective = pretraining_objective(AlbertForPretraining(config))
    batch = batch_of(arrays("tiny/trajectories"), "batch/", 0)

    def after_two(name):
        tx, _ = make_optimizer(
            OptimizerConfig(name=name, learning_rate=0.01, warmup_steps=0), steps=10, batch_size=4
        )
        state = init_state(jax.tree.map(jnp.asarray, params), tx, seed=0)
        step = jax.jit(make_train_step(objective, tx))
        for _ in range(2):
            state, metrics = step(state, batch)
        return state.params["pooler"]["bias"], metrics["loss"]

    (a, loss_a), (b, loss_b) = after_two("lamb"), after_two("optax_lamb")
    assert np.isfinite([loss_a, loss_b]).all()
    assert np.abs(a - b).max() > 1e-3


def test_optax_adamw_is_optax_s_behind_the_clip():
    config = OptimizerConfig(name="optax_adamw", learning_rate=0.1, warmup_steps=0)
    ours, schedule = make_optimizer(config, steps=10, batch_size=8)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.999, eps=1e-6, weight_decay=0.01, mask=is_adapted),
    )
    params = {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[30.0, 1.0]]), "bias": jnp.array([-0.1])}
    got, expected = (tx.update(gradient, tx.init(params), params)[0] for tx in (ours, theirs))
    for name in params:
        np.testing.assert_array_equal(got[name], expected[name])
    # Bias-corrected: the first step is as long as the rate, whatever the gradient.
    assert float(got["bias"][0]) == pytest.approx(0.1, rel=1e-3)


def test_muon_turns_kernels_and_leaves_tables_and_vectors_to_adam():
    config = OptimizerConfig(
        name="muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=0.0
    )
    tx, _ = make_optimizer(config, steps=10, batch_size=8)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (6, 4), "word_embeddings": (9, 4), "output_weights": (2, 4), "bias": (4,)}
    gradient = {name: jnp.array(rng.normal(size=of), jnp.float32) for name, of in shapes.items()}
    params = jax.tree.map(jnp.ones_like, gradient)
    update = tx.update(gradient, tx.init(params), params)[0]
    # Newton and Schulz bring all singular values near 1; times 0.2 sqrt(largest side) times rate.
    singular = np.linalg.svd(update["kernel"], compute_uv=False)
    assert (np.abs(singular / (0.1 * 0.2 * math.sqrt(6)) - 1) < 0.4).all()
    rest = {name: value for name, value in gradient.items() if name != "kernel"}
    adam = optax.adamw(0.1, b2=0.999, eps=1e-6, weight_decay=0.0)
    alone = adam.update(rest, adam.init(rest), rest)[0]
    for name, value in alone.items():
        np.testing.assert_allclose(update[name], value, rtol=1e-4)


def test_schedules_rise_to_the_peak_and_fall_as_they_are_named():
    def rates(**settings):
        config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, **settings)
        _, schedule = make_optimizer(config, steps=100, batch_size=8)
        return [float(schedule(jnp.int32(step))) for step in (0, 5, 10, 55, 80, 90, 100)]

    expected = {
        "constant": [0, 0.5, 1, 1, 1, 1, 1],
        "wsd": [0, 0.5, 1, 1, 1, 0.5, 0],
        # transformers' get_linear_schedule_with_warmup: (steps - step) / (steps - warm-up).
        "linear": [0, 0.5, 1, 45 / 90, 20 / 90, 10 / 90, 0],
        "cosine": [0, 0.5, 1, 0.5, *(0.5 + 0.5 * math.cos(math.pi * x / 90) for x in (70, 80)), 0],
        "polynomial": [0, 0.5, 0.9, 0.45, 0.2, 0.1, 0],  # the original's falls from step 0 on
    }
    for name, values in expected.items():
        np.testing.assert_allclose(rates(schedule=name), values, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        rates(schedule="wsd", decay_share=0.45), [0, 0.5, 1, 1, 4 / 9, 2 / 9, 0], atol=1e-6
    )


def test_presets_scale_by_the_square_root_of_the_batch():
    assert learning_rate_preset("lamb", 4096) == 0.00176
    assert math.isclose(learning_rate_preset("lamb", 512), 0.00176 / math.sqrt(8))
    _, schedule = make_optimizer(OptimizerConfig(), steps=125_000, batch_size=4096)
    assert math.isclose(schedule(3124), 0.00176 * 3124 / 3125, rel_tol=1e-6)
    assert math.isclose(schedule(3125), 0.00176 * (1 - 3125 / 125_000), rel_tol=1e-6)


def test_settings_known_to_diverge_are_warned_of():
    def warn(config, hidden_size=768):
        return divergence_warnings(config, batch_size=512, hidden_size=hidden_size)

    assert "known to diverge" in warn(OptimizerConfig(name="adamw", learning_rate=0.00176))[0]
    assert "preset 0.000622" in warn(OptimizerConfig(learning_rate=0.00176))[0]
    assert warn(OptimizerConfig(learning_rate=0.0006)) == warn(OptimizerConfig()) == []
    assert warn(OptimizerConfig(learning_rate=0.01), hidden_size=128) == []


def test_a_rate_schedule_multiplies_the_rate_of_each_step():
    config = OptimizerConfig(name="muon", learning_rate=0.5, warmup_steps=2, schedule="constant")
    train = TrainConfig(steps=10, batch_size=8, rate="1:0.4,0.25:0.5,3:0.1")
    _, schedule = make_optimizer(config, steps=10, batch_size=8, factors=rate_factors(train))
    wanted = [0, 0.25, 0.5, 0.5, *[0.125] * 5, 1.5]
    np.testing.assert_allclose([float(schedule(step)) for step in range(10)], wanted, rtol=1e-6)
    with pytest.raises(UserError, match=r"train\.rate 'fast' is no schedule"):
        rate_factors(TrainConfig(rate="fast"))


def test_a_warmup_longer_than_the_run_is_warned_of():
    told = warmup_warnings(OptimizerConfig(warmup_steps=500), 100)
    assert told == [
        "the run ends in its warm-up: optimizer.warmup_steps 500 exceeds train.steps 100, so the "
        "learning rate comes to 20% of its peak; lower optimizer.warmup_steps"
    ]
    assert warmup_warnings(OptimizerConfig(warmup_steps=100), 100) == []
    assert warmup_warnings(OptimizerConfig(), 1) == []


def test_the_average_of_weights_is_a_loops_and_leaves_the_updates_as_they_are():
    """Each step's weights by NumPy; those before the first step are no part of the average."""
    params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    plain, averaging = optax.adam(0.1), average_weights(optax.adam(0.1), 0.8)
    states = [plain.init(params), averaging.init(params)]
    after = []
    both = [params, params]
    rng = np.random.default_rng(0)
    for _ in range(5):
        grads = {
            name: rng.standard_normal(x.shape).astype(np.float32) for name, x in params.items()
        }
        for i, tx in enumerate((plain, averaging)):
            updates, states[i] = tx.update(grads, states[i], both[i])
            both[i] = optax.apply_updates(both[i], updates)
        after.append(both[0])
    for name in params:
        np.testing.assert_array_equal(both[0][name], both[1][name])
        values = np.stack([np.asarray(each[name], np.float64) for each in after])
        mean = np.average(values, axis=0, weights=[0.8**4, 0.8**3, 0.8**2, 0.8, 1])
        np.testing.assert_allclose(averaged_weights(states[1])[name], mean, rtol=1e-6)
    assert averaged_weights(states[0]) is None


@pytest.mark.parametrize("decay", [0.999999, 1 - 1e-9])
def test_an_average_of_a_decay_near_one_leaves_out_the_first_weights(decay):
    tx = average_weights(optax.sgd(1.0), decay)
    params = {"x": np.zeros(1, np.float32)}
    state = tx.init(params)
    for _ in range(3):  # to 1, 2, 3
        updates, state = tx.update({"x": -np.ones(1, np.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(averaged_weights(state)["x"], [2.0], rtol=1e-5)
