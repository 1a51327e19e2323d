# SPDX-License-Identifier: Apache-2.0
"""Export the optimizers by their public names, as `albert_jax.optimizer.lamb(schedule, …)`."""

from albert_jax.training.optimizer import (
    adamw,
    lamb,
    learning_rate_preset,
    make_optimizer,
    polynomial_schedule,
    scale_by_trust_ratio,
    scale_by_uncorrected_adam,
)

__all__ = [
    "adamw",
    "lamb",
    "learning_rate_preset",
    "make_optimizer",
    "polynomial_schedule",
    "scale_by_trust_ratio",
    "scale_by_uncorrected_adam",
]
