# SPDX-License-Identifier: Apache-2.0
"""Export the errors that a recipe or a caller meets, by their public names."""

from albert_jax.utils.errors import TryAgain, UserError

__all__ = ["TryAgain", "UserError"]
