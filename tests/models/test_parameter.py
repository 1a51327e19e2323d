# SPDX-License-Identifier: Apache-2.0
"""Parameters are what flax's `param` gives, and cost no tracing where they exist."""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from albert_jax.models.parameter import parameter


class Row(nn.Module):
    """A row of numbers, drawn by `draw`."""

    size: int
    draw: nn.initializers.Initializer

    @nn.compact
    def __call__(self):
        return parameter(self, "row", self.draw, (self.size,))


def never(key, shape):
    raise AssertionError("an initializer was traced for a parameter that exists")


def test_new_parameters_are_those_of_flax():
    class Own(nn.Module):
        @nn.compact
        def __call__(self):
            return self.param("row", nn.initializers.normal(), (3,))

    ours, flaxs = (
        module.init(jax.random.key(1)) for module in (Row(3, nn.initializers.normal()), Own())
    )
    assert jnp.array_equal(ours["params"]["row"], flaxs["params"]["row"])


def test_the_initializer_of_a_parameter_that_exists_is_not_traced():
    row = jnp.arange(3.0)
    assert jnp.array_equal(Row(3, never).apply({"params": {"row": row}}), row)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(flax.errors.ScopeParamShapeError):
        Row(4, nn.initializers.zeros).apply({"params": {"row": jnp.zeros(3)}})


def test_a_parameter_that_is_missing_is_refused():
    with pytest.raises(flax.errors.ScopeParamNotFoundError):
        Row(3, nn.initializers.zeros).apply({"params": {"other": jnp.zeros(3)}})
