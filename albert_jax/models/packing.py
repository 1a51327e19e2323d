# SPDX-License-Identifier: Apache-2.0
"""Pack several short examples into one row.

B rows, S tokens, P slots for examples, H hidden_size.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jax import Array


@flax.struct.dataclass
class Packing:
    """Locate the examples in packed rows.

    Attributes:
        starts_BP: each example's first token, S in a slot without an example.
        ids_BS: the number of each token's example, from 1; 0 at padding.
        positions_BS: the token's position in its example; 0 at padding.
    """

    starts_BP: Array
    ids_BS: Array
    positions_BS: Array

    @classmethod
    def of(cls, starts_BP: Array, mask_BS: Array) -> Packing:
        """Return the packing of rows whose examples begin at `starts_BP`."""
        places_S = jnp.arange(mask_BS.shape[1])
        ids_BS = mask_BS * (starts_BP[:, None] <= places_S[:, None]).sum(axis=-1)
        starts_BS = jnp.take_along_axis(starts_BP, jnp.maximum(ids_BS - 1, 0), axis=1)
        return cls(starts_BP, ids_BS, mask_BS * (places_S - starts_BS))

    def first_tokens(self, x_BSH: Array) -> Array:
        """Return the state of each example's first token, [B, P, H]."""
        # Clipped: out of bounds, a slot without an example would be NaN, whatever its weight.
        return jnp.take_along_axis(x_BSH, self.starts_BP[..., None], axis=1, mode="clip")
