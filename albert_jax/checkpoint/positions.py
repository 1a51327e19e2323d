# SPDX-License-Identifier: Apache-2.0
"""Extend a model to more position embeddings than it was trained with."""

from __future__ import annotations

import dataclasses

import numpy as np

from albert_jax.checkpoint.convert.parameters import check_sizes
from albert_jax.checkpoint.model_dir import ModelDirectory
from albert_jax.config.sections import Positions
from albert_jax.utils.streams import say

_MADE = {"repeat": "repeated from the first on", "interpolate": "interpolated"}


def with_positions(
    source: ModelDirectory, name: str, positions: int, how: Positions
) -> ModelDirectory:
    """Return a model with at least that number of positions.

    If it has fewer, `how` extends them: "repeat" starts again with the first position embedding
    after the last; "interpolate" stretches them linearly, so that the first and the last stay. A
    line on stderr reports it, with the model's `name`. Raises UserError for more positions than a
    model may have.
    """
    theirs = source.config.max_position_embeddings
    if how == "same" or positions <= theirs:
        return source
    config = dataclasses.replace(source.config, max_position_embeddings=positions)
    check_sizes(config, name)
    table_SE = source.params["embeddings"]["position_embeddings"]
    if how == "repeat":
        longer_SE = table_SE[np.arange(positions) % theirs]
    else:
        at = np.linspace(0, theirs - 1, positions)
        columns = [np.interp(at, np.arange(theirs), column) for column in table_SE.T]
        longer_SE = np.stack(columns, axis=1).astype(table_SE.dtype)
    say(f"{name} has {theirs} positions; {positions} are made of them: {_MADE[how]}")
    embeddings = {**source.params["embeddings"], "position_embeddings": longer_SE}
    return source._replace(
        params={**source.params, "embeddings": embeddings},
        config=config,
    )
