# SPDX-License-Identifier: Apache-2.0
"""Keep secrets out of what other libraries log.

huggingface_hub, for example, logs the address of a request that it repeats.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from albert_jax.utils.wording import without_secrets


@contextlib.contextmanager
def secrets_hidden(*libraries: str) -> Iterator[None]:
    """Remove user, password, query and fragment from addresses in the libraries' log lines.

    Afterwards the loggers are as they were.
    """
    known = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in libraries]
    loggers = [logging.getLogger(name) for name in {*libraries, *known}]
    # A filter of a logger does not see what is logged below it, but that of a handler does; of a
    # logger that is made meanwhile it is the only one.
    handlers = [handler for name in libraries for handler in logging.getLogger(name).handlers]
    filtered: list[logging.Filterer] = [*loggers, *handlers]
    for each in filtered:
        each.addFilter(_hide)
    try:
        yield
    finally:
        for each in filtered:
            each.removeFilter(_hide)


def _hide(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), None
    return True
