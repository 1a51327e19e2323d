# SPDX-License-Identifier: Apache-2.0
"""A step is compiled once for each shape of batch, and checked before it runs."""

import jax
import jax.numpy as jnp
import pytest

from albert_jax.training.programs import Programs


def batch_of(length):
    return {"ids": jnp.arange(length), "mask": jnp.ones(length)}


def test_a_step_is_compiled_once_for_each_shape_of_batch():
    traced, checked = [], []

    @jax.jit
    def step(total, batch):
        traced.append(batch["ids"].shape)
        return total + (batch["ids"] * batch["mask"]).sum(), {}

    programs = Programs(step, checked.append)
    total = jnp.zeros(())
    for length in (4, 4, 6, 4, 6):
        total, _ = programs(total, batch_of(length))
    assert float(total) == 3 * 6 + 2 * 15
    assert traced == [(4,), (6,)]
    assert [type(program) for program in checked] == [jax.stages.Compiled] * 2


def test_a_program_that_is_refused_never_runs():
    ran = []

    def refuse(compiled):
        raise MemoryError

    @jax.jit
    def step(total, batch):
        jax.debug.callback(lambda: ran.append(True))
        return total, {}

    programs = Programs(step, refuse)
    for _ in range(2):  # nor the second time
        with pytest.raises(MemoryError):
            programs(jnp.zeros(()), batch_of(4))
    jax.effects_barrier()
    assert ran == []
