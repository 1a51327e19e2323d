# SPDX-License-Identifier: Apache-2.0
"""Set how much inference computes together, and overlap computing with fetching results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

import jax

Started = TypeVar("Started")
Arrays = TypeVar("Arrays")

# Tokens in a full batch. A CPU slows down once the activations outgrow its caches.
BATCH_TOKENS = {"cpu": 1024, "gpu": 16384, "tpu": 16384}


def batch_tokens(platform: str | None = None) -> int:
    """Return the tokens of a full batch, padding included, on a platform; None: JAX's own."""
    return BATCH_TOKENS.get(platform or jax.default_backend(), BATCH_TOKENS["gpu"])


def most_padding(platform: str | None = None) -> float:
    """Return how many times the tokens of rows one by one a batch of them may add as padding.

    A CPU computes the rows of a batch no faster than one by one.
    """
    return 0.1 if (platform or jax.default_backend()) == "cpu" else math.inf


def one_ahead(started: Iterator[tuple[Started, Arrays]]) -> Iterator[tuple[Started, Arrays]]:
    """Yield each (batch, arrays), with the arrays in NumPy, while the next batch computes."""
    current = next(started, None)
    while current is not None:
        following = next(started, None)
        batch, output = current
        yield batch, jax.device_get(output)
        current = following
