# SPDX-License-Identifier: Apache-2.0
"""Compiling a step: once for each shape of batch, with its memory checked before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import Array
from jax.stages import Compiled

from albert_jax.distributed import multihost

Check = Callable[[Compiled], None]
"""Raises for a program that must not run: `memory.check_fits`."""


class StepPrograms:
    """The programs of a run's steps: called with a batch's number, a state and the batch."""

    def __init__(
        self,
        step_at: Callable[[int], Callable[..., Any]],
        compile_step: Callable[..., Any],
        check: Check | None = None,
    ) -> None:
        """`step_at` is `Run.step_at`, `compile_step` is `Placement.compile`."""
        self._step_at, self._compile, self._check = step_at, compile_step, check
        self._programs: dict[Any, Programs] = {}

    def __call__(self, number: int, state: Any, batch: Mapping[str, Array]) -> Any:
        """Run the step for batch `number` on a state and that batch, both as placed."""
        step = self._step_at(number)
        if step not in self._programs:
            self._programs[step] = Programs(self._compile(step), self._check)
        return self._programs[step](state, batch)


class Programs:
    """A step's programs, called as the step; each is compiled for the first batch of its shape.

    All processes have compiled a program before one of them runs it: a collective waits half a
    minute (gloo) for a process that still compiles, and compiling may take minutes.
    """

    def __init__(self, jitted: Any, check: Check | None = None) -> None:
        """`jitted` is `Placement.compile`'s; its first argument never changes its shapes."""
        self._jitted, self._check = jitted, check
        self._compiled: dict[Any, Compiled] = {}

    def __call__(self, live: Any, batch: Mapping[str, Array]) -> Any:
        """Run the step on a state, or on parameters, and a batch, both as placed."""
        shapes = tuple((name, batch[name].shape) for name in sorted(batch))
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(live, batch)
        return self._compiled[shapes](live, batch)

    def _compile(self, live: Any, batch: Mapping[str, Array]) -> Compiled:
        compiled = self._jitted.lower(live, batch).compile()
        with multihost.together():
            if self._check is not None:
                self._check(compiled)
        return compiled
