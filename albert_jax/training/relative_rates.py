# SPDX-License-Identifier: Apache-2.0
"""Scale the learning rates of a model's parts: lower from the head down, or zero.

ALBERT has one shared layer, so there is no rate for each layer, but one for each group of
parameters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax
import optax

from albert_jax.training.losses import Objective
from albert_jax.training.optimizer import path_name

_GROUP = re.compile(r"encoder/group_(\d+)/")
_EMBEDDINGS = re.compile(r"embeddings/|encoder/embedding_hidden_mapping_in/")


@dataclass(frozen=True)
class RelativeRates:
    """Set how fast each part of a model with `groups` groups of layers learns.

    The head and the pooler learn at the optimizer's rate. The last group of layers (ALBERT has one)
    learns at that rate times `decay`. Each earlier group has another factor `decay`, and so have,
    below the first group, the embeddings with their projection to the hidden size. `freeze` keeps
    values: "embeddings" those of the embeddings, "encoder" those of the groups too.
    """

    groups: int
    decay: float = 1.0
    freeze: str = "none"

    def of(self, name: str) -> float:
        """Return the factor for the parameter with that name, `encoder/group_0/…/kernel`."""
        if _EMBEDDINGS.match(name):
            return 0.0 if self.freeze != "none" else self.decay ** (self.groups + 1)
        if group := _GROUP.match(name):
            below = self.groups - int(group[1])
            return 0.0 if self.freeze == "encoder" else self.decay**below
        return 1.0

    def applied(
        self, objective: Objective, tx: optax.GradientTransformation
    ) -> tuple[Objective, optax.GradientTransformation]:
        """Return the objective and the optimizer with these rates.

        The gradient of frozen parts is neither computed nor included in the norm that is clipped.
        """
        if self.freeze != "none":
            objective = objective.of_changed(self._held)
        if self.freeze != "none" or self.decay != 1:
            tx = optax.chain(tx, optax.stateless(lambda updates, _: self._scaled(updates)))
        return objective, tx

    def _scaled(self, updates: Any) -> Any:
        # The updates include weight decay by now, so that frozen parameters do not decay either.
        return jax.tree_util.tree_map_with_path(
            lambda path, update: self.of(path_name(path)) * update, updates
        )

    def _held(self, params: Any) -> Any:
        """Return the parameters, with no gradient for the frozen ones."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if self.of(path_name(path)) else jax.lax.stop_gradient(leaf),
            params,
        )
