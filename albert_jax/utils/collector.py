# SPDX-License-Identifier: Apache-2.0
"""Keep Python's garbage collector from objects that stay as long as the process.

Importing JAX makes some 200,000 such objects. The collector examines each several times while
modules are imported, and again when the interpreter ends. That is a fifth of a short command's
time.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_is_own = False


def own_process() -> None:
    """Declare that this process runs one command and ends, so that the collector may be changed."""
    global _is_own
    _is_own = True


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """Collect nothing while entered; objects made by then are not examined later.

    In a process that is not this package's own, such as a notebook, nothing is changed.
    """
    if not _is_own:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
