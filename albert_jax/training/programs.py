# SPDX-License-Identifier: Apache-2.0
"""Compile a step once for each shape of batch, and check its memory before it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array
from jax.stages import Compiled

from albert_jax.distributed import multihost

Check = Callable[[Compiled], None]
"""Raises for a program that must not run: `memory.check_fits`."""


_COMPILING = threading.Lock()


def is_compiling() -> bool:
    """Return whether a step is being compiled here or in a process that is waited for.

    That may take minutes and has no limit.
    """
    return _COMPILING.locked()


class StepPrograms:
    """Run the programs of a run's steps, called with a batch's number, a state and the batch."""

    def __init__(
        self,
        step_at: Callable[[int], Callable[..., Any]],
        compile_step: Callable[..., Any],
        check: Check | None = None,
    ) -> None:
        """Prepare to compile; `step_at` is `Run.step_at`, `compile_step` is `Placement.compile`."""
        self._step_at, self._compile, self._check = step_at, compile_step, check
        self._programs: dict[Any, Programs] = {}

    def __call__(self, number: int, state: Any, batch: Mapping[str, Array]) -> Any:
        """Run the step for batch `number` on a state and that batch, both placed."""
        step = self._step_at(number)
        if step not in self._programs:
            self._programs[step] = Programs(self._compile(step), self._check)
        return self._programs[step](state, batch)


class Programs:
    """Run a step's programs; each is compiled for the first batch of its shape.

    All processes compile a program before one of them runs it. A collective waits only half a
    minute (gloo) for a process that still compiles, and compiling may take minutes.
    """

    def __init__(self, jitted: Any, check: Check | None = None) -> None:
        """Prepare to compile `jitted`, a result of `Placement.compile`.

        The shapes of its first argument never change.
        """
        self._jitted, self._check = jitted, check
        self._compiled: dict[Any, Compiled] = {}

    def __call__(self, live: Any, batch: Mapping[str, Array]) -> Any:
        """Run the step on a state, or on parameters, and a batch, both placed."""
        shapes = tuple((name, batch[name].shape) for name in sorted(batch))
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(live, batch)
        return self._compiled[shapes](live, batch)

    def _compile(self, live: Any, batch: Mapping[str, Array]) -> Compiled:
        with _COMPILING:  # until all have compiled: the watchdog leaves those alone that wait
            compiled = self._jitted.lower(live, batch).compile()
            with multihost.together():
                if self._check is not None:
                    self._check(compiled)
        return compiled
