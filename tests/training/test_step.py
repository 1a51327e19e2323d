# SPDX-License-Identifier: Apache-2.0
"""One step however it is spread: one device, four under jit, four under pmap, in micro-batches."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.distributed.placement import check_batch_size, local_devices, make_placement
from albert_jax.models.albert import AlbertForPretraining
from albert_jax.perf.tpu import hlo
from albert_jax.training.losses import pretraining_objective
from albert_jax.training.optimizer import lamb
from albert_jax.training.step import init_state, make_eval_step, make_train_step
from albert_jax.utils.errors import UserError
from tests.helpers.models import assert_trees_close, noisy_params, random_batch, tiny_albert

WAYS = {  # name: mode, devices, micro-batches
    "jit-4": ("jit", 4, 1),
    "pmap-4": ("pmap", 4, 1),
    "pmap-1": ("pmap", 1, 1),
    "jit-1-accumulate-4": ("jit", 1, 4),
    "jit-4-accumulate-2": ("jit", 4, 2),
    "pmap-4-accumulate-2": ("pmap", 4, 2),
}


DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}


@cache
def setup(way, *, dropout=False):
    """Everything for a step of a tiny model, compiled once for each way."""
    return make_setup(way, dropout=dropout)


def make_setup(way, *, dropout=False):
    mode, devices, accumulate = way
    # One layer compiles sooner; that layers of a placed step differ is seen with dropout.
    config = tiny_albert(**(DROPOUT if dropout else {"num_hidden_layers": 1}))
    placement = make_placement(mode, local_devices(devices))
    model = AlbertForPretraining(config, lowering=placement.lowering)
    objective, tx = pretraining_objective(model), lamb(0.01)
    step = make_train_step(objective, tx, accumulate=accumulate)
    state = init_state(noisy_params(config), tx, seed=1)
    return config, objective, placement, placement.compile(step), state


@cache
def trained(way, *, dropout=False):
    """`train`, once for each way."""
    return train(*setup(way, dropout=dropout))


def train(config, objective, placement, step, state, steps=3):
    """Every step's metrics and the final state as host arrays."""
    live, history = placement.put_state(state), []
    for i in range(steps):
        batch = random_batch(config, rows=16, seed=i)
        # Rows differ in how many predictions count, so that means of shards' means would be wrong.
        batch["masked_lm_weights"][:5] = 0
        live, metrics = step(live, placement.put_batch(batch))
        history.append(placement.fetch(metrics))
    return history, jax.device_get(placement.get_state(live).params)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_way_of_spreading_a_step_gives_the_update_of_one_device(way):
    # Sums in another order: 1e-6 relative, which three LAMB steps magnify a little.
    history, params = trained(way)
    expected_history, expected = trained(("jit", 1, 1))
    assert_trees_close(params, expected, rtol=1e-5, atol=3e-6)
    for got, want in zip(history, expected_history, strict=True):
        assert_trees_close(got, want, rtol=1e-5, atol=1e-6)


def test_averaging_shards_own_means_would_be_another_gradient():
    config, objective, _, _, state = setup(("jit", 1, 1))
    batch = random_batch(config, rows=16)
    batch["masked_lm_weights"][:5] = 0
    grad = jax.jit(jax.grad(lambda p, b: objective.loss(p, b, objective.normalizers(b), None)[0]))
    whole = grad(state.params, batch)["pooler"]["kernel"], grad(state.params, batch)["predictions"]
    shards = [
        grad(state.params, jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch))
        for i in range(4)
    ]
    mean = jax.tree.map(lambda *g: sum(g) / 4, *shards)
    worst = np.abs(mean["predictions"]["output_bias"] - whole[1]["output_bias"]).max()
    assert worst > 0.1 * np.abs(whole[1]["output_bias"]).max()


@pytest.mark.parametrize("way", [("jit", 4, 2), ("pmap", 4, 2)], ids=["jit", "pmap"])
def test_steps_with_dropout_are_the_same_bits_each_time_and_differ_by_step(way):
    _, first = trained(way, dropout=True)
    made = make_setup(way, dropout=True)  # compiled anew
    _, second = train(*made)
    assert_trees_close(first, second, rtol=0, atol=0)
    config, _, placement, step, state = made
    batch = random_batch(config, rows=16)
    losses = []
    for at in (0, 1):
        moved = state.replace(step=jnp.int32(at))
        _, metrics = step(placement.put_state(moved), placement.put_batch(batch))
        losses.append(float(placement.fetch(metrics)["loss"]))
    assert losses[0] != losses[1]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_dropout_takes_the_same_on_any_number_of_devices(mode, accumulate):
    history, params = trained((mode, 4, accumulate), dropout=True)
    expected_history, expected = trained(("jit", 1, accumulate), dropout=True)
    assert_trees_close(params, expected, rtol=1e-5, atol=3e-6)
    assert_trees_close(history[0]["loss"], expected_history[0]["loss"], rtol=1e-5, atol=1e-6)


def test_a_step_sums_over_the_devices_after_its_micro_batches():
    config, _, placement, step, state = setup(("jit", 4, 2))
    batch = placement.put_batch(random_batch(config, rows=16))
    program = hlo.parse_program(step.lower(placement.put_state(state), batch).compile().as_text())
    loops = [i for i in program.entry.instructions.values() if i.opcode == "while"]
    bodies = [body for loop in loops if (body := program.body(loop))]
    assert bodies
    opcodes = {i.opcode for body in bodies for i in body.instructions.values()}
    assert "all-reduce" not in opcodes


@pytest.mark.parametrize("way", [("jit", 4, 1), ("pmap", 4, 1)], ids=["jit", "pmap"])
def test_a_step_compiles_once(way, caplog):
    config, _, placement, step, state = make_setup(way)
    live = placement.put_state(state)
    with jax.log_compiles():
        for i in range(4):
            live, _ = step(live, placement.put_batch(random_batch(config, rows=16, seed=i)))
    # pmap is a jit of a function `_fun` from JAX 0.10 on.
    name = re.compile(r"XLA compilation of .*(train_step|_fun)\b")
    compiled = [message for message in caplog.messages if name.search(message)]
    # Before it was a jit, pmap compiled once more for its own outputs as inputs.
    own_pmap = way[0] == "pmap" and jax.__version_info__ < (0, 8)
    assert len(compiled) == (2 if own_pmap else 1)


@pytest.mark.parametrize("way", [("jit", 1, 1), ("pmap", 4, 2)], ids=["jit", "pmap"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(way):
    config, _, placement, step, state = setup(way)
    batch = random_batch(config, rows=16)
    batch["masked_lm_weights"][3, 0] = np.nan
    live, metrics = step(placement.put_state(state), placement.put_batch(batch))
    assert placement.fetch(metrics)["skipped"] == 1
    after = placement.get_state(live)
    assert int(after.step) == 1
    assert_trees_close(after.params, state.params, rtol=0, atol=0)
    assert_trees_close(after.opt_state, state.opt_state, rtol=0, atol=0)


def test_put_state_copies_so_that_donation_leaves_the_original_alive():
    config, _, placement, step, state = setup(("jit", 1, 1))
    step(placement.put_state(state), placement.put_batch(random_batch(config, rows=16)))
    assert np.isfinite(jax.device_get(state.params)["pooler"]["bias"]).all()


def test_put_state_compiles_one_program_and_not_one_for_each_shape(caplog):
    _, _, placement, _, _ = setup(("jit", 1, 1))
    shapes = [(3, 17), (5, 19), (7, 23)]  # which nothing else has
    with jax.log_compiles():
        placement.put_state([np.zeros(shape, np.float32) for shape in shapes])
    compiled = [r for r in caplog.records if r.getMessage().startswith("Compiling ")]
    assert len(compiled) == 1, compiled


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_evaluation_sums_ignore_rows_that_weigh_nothing(mode):
    config, objective, placement, _, state = setup((mode, 4, 1))
    step = placement.compile(make_eval_step(objective), donate=False)
    batch = random_batch(config, rows=16) | {"example_weights": np.ones(16, np.float32)}
    batch["example_weights"][10:] = 0
    batch["masked_lm_weights"][10:] = 0
    params = placement.put_state(state).params
    result = placement.fetch(step(params, placement.put_batch(batch)))
    ten = {name: x[:10] for name, x in batch.items()}
    ones = {"masked_lm": 1 - 1e-5, "sentence_order": 1.0}  # the loss adds 1e-5 to the first
    loss = jax.jit(setup(("jit", 1, 1))[1].loss, static_argnums=3)
    _, expected = loss(state.params, ten, ones, None)
    assert result["weights"]["sentence_order"] == 10
    assert_trees_close(result["sums"], expected, rtol=1e-6, atol=1e-6)


def test_a_batch_that_does_not_divide_is_refused_with_what_would():
    with pytest.raises(
        UserError, match="batch_size 100 does not divide over 8 devices; use a multiple of 8"
    ):
        check_batch_size(100, 1, 8)
    with pytest.raises(UserError, match="multiple of 16"):
        check_batch_size(40, 4, 4)
    with pytest.raises(UserError, match=r"devices 9 is not possible; give 1 to 4, the devices of"):
        local_devices(9)
