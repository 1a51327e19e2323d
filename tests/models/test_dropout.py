# SPDX-License-Identifier: Apache-2.0
"""Dropout's choices: as if drawn, and a row's own however many devices share the batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from albert_jax.models.dropout import Dropout, drop, row_seeds
from tests.helpers.draws import RATE, assert_as_if_drawn, neighbours


def dropped(shape, seed=0, rate=RATE):
    """1 where dropout takes, else 0, float32."""
    seeds = row_seeds(jax.random.key(seed), shape[0])
    return np.asarray(
        jax.jit(drop, static_argnums=2)(jnp.ones(shape), seeds, rate) == 0, np.float32
    )


def test_choices_are_as_if_drawn():
    taken = dropped((24, 512, 768))
    rows, tokens, features = (neighbours(axis) for axis in (-3, -2, -1))
    assert_as_if_drawn(taken, [rows, tokens, features, neighbours(-1, 128)], axes=(1, 2))
    of_two_keys = np.stack([taken, dropped(taken.shape, seed=1)])
    assert_as_if_drawn(of_two_keys, [neighbours(-4)], axes=())


@pytest.mark.parametrize("shape", [(64, 33), (64, 3, 5, 7)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_what_is_left_is_scaled_up(shape, rate):
    x = jax.random.normal(jax.random.key(0), shape)
    layer = Dropout(rate)
    assert layer.apply({}, x, deterministic=True) is x
    out = layer.apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(1)})
    assert out.dtype == x.dtype
    kept = np.asarray(out != 0)
    np.testing.assert_allclose(out, np.where(kept, x / (1 - rate), 0), rtol=1e-6)
    assert 1 - kept.mean() == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / x.size))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_rows_lose_the_same_on_any_number_of_devices(devices):
    mesh, rows = Mesh(np.asarray(jax.devices()[:devices]), ("data",)), PartitionSpec("data")

    def drop_here(x, key, axis_name=None):
        return drop(x, row_seeds(key, len(x), axis_name), 0.5)

    x, key = jnp.ones((8, 4, 16)), jax.random.key(0)
    step = partial(drop_here, axis_name="data")
    shared = jax.shard_map(step, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    np.testing.assert_array_equal(jax.jit(shared)(x, key), drop_here(x, key))
