# SPDX-License-Identifier: Apache-2.0
"""Define how the parts of the network read their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax import Array


def parameter(
    module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...]
) -> Array:
    """Return `module.param(name, init, shape)`.

    Flax traces `init` for every parameter at every application, to compare its shape with that of
    the weights. Tracing a random initializer takes longer than tracing the layer. Therefore the
    shapes are compared here, and flax is called only if there is no such parameter yet or its shape
    differs.
    """
    if module.has_variable("params", name):
        found: Any = module.get_variable("params", name)
        if found.shape == shape:
            return found
    return module.param(name, init, shape)
