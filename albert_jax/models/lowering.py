# SPDX-License-Identifier: Apache-2.0
"""Which devices a program is being traced for: kernels are chosen by them, and they need not be
this machine's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Target:
    """`axis_name` is the axis of devices that share a batch, None where one has all of it."""

    platform: str
    axis_name: str | None = None


_target: ContextVar[Target | None] = ContextVar("target", default=None)


def named_target() -> Target | None:
    """What the program at hand was said to be for, by `traced_for`."""
    return _target.get()


def platform() -> str:
    """The platform that the program at hand is for: `cpu`, `gpu` or `tpu`."""
    target = _target.get()
    return target.platform if target else jax.default_backend()


def axis_name() -> str | None:
    """The axis of devices that share the batch of the program at hand."""
    target = _target.get()
    return target.axis_name if target else None


def traced_for(target: Target, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which says so to all that it calls."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        token = _target.set(target)
        try:
            return function(*args, **kwargs)
        finally:
            _target.reset(token)

    return traced
