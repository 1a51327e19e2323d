# SPDX-License-Identifier: Apache-2.0
"""Access files at gs:// and fsspec's other addresses, with limited waits and errors of one line."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import current_naming, name_as

WAIT_SECONDS = 60.0  # for a first answer, and beside SLOWEST for each file
SLOWEST = 100_000  # bytes a second


def is_address(text: str) -> bool:
    """Return whether a text names something on a network.

    Any scheme counts, so that its error can name it.
    """
    return "://" in text


COPY, MOUNT = "give a path here, and copy it there then", "mount the bucket, and give its path"


def require_here(dest: object, advice: str = COPY) -> None:
    """Raise UserError if what is to be written here is named by an address, with the advice.

    As a path, gs://bucket/run would be a folder gs: of the current one, and "" that one itself.
    """
    if not str(dest):
        raise UserError("'' is no path; give one")
    if is_address(str(dest)):
        raise UserError(f"{dest} is an address; {advice}")


def connect(address: str) -> tuple[Any, str]:
    """Return the file system for an address, and the address's path there, by fsspec.

    The path has no slash at its end. Raises UserError for an unknown scheme and for one whose
    library is missing.
    """

    def make() -> tuple[Any, str]:
        try:
            import fsspec

            for client in ("gcsfs", "google.auth"):  # their failures are raised as well as logged
                logging.getLogger(client).setLevel(logging.CRITICAL)
            here = {"auto_mkdir": True} if address.startswith(("file:", "local:")) else {}
            return fsspec.core.url_to_fs(address.rstrip("/"), **here)
        except ImportError:
            raise UserError(
                f"{address} needs gcsfs; pip install 'albert-jax[gcs]', or copy it here first"
            ) from None
        except ValueError as error:
            raise UserError(
                f"{address} cannot be read ({error}); give a folder or gs://…"
            ) from None

    return within(address, make)  # the client may look for credentials first


def within(address: str, call: Callable[[], Any], size: int = 0) -> Any:
    """Return the result of `call`, which moves `size` bytes.

    Raises UserError if it fails, for example without credentials, or does not end in a minute and
    10 s for each MB. FileNotFoundError is raised unchanged, because only the caller knows what it
    means.
    """
    naming = current_naming()
    seconds = WAIT_SECONDS + size / SLOWEST
    outcome: list[Any] = []
    failure: list[Exception] = []

    def run() -> None:
        name_as(naming)
        try:
            outcome.append(call())
        except Exception as error:  # a client's own kinds, as google.auth's
            failure.append(error)

    # A client that hangs must not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if outcome:
        return outcome[0]
    if failure and isinstance(failure[0], UserError | FileNotFoundError):
        raise failure[0]
    raise refusal(address, failure[0] if failure else f"no answer in {seconds:.0f} s")


def refusal(address: str, reason: Exception | str) -> UserError:
    """Return the error for an address that cannot be reached, with the client's words."""
    said = " ".join(str(reason).split())[:200] or type(reason).__name__
    return UserError(
        f"{address} cannot be reached ({said}); check the address and the credentials "
        "(gcloud auth application-default login)"
    )
