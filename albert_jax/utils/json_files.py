# SPDX-License-Identifier: Apache-2.0
"""The one reader of JSON files of this package's own: bytes to typed values, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from albert_jax.utils.errors import UserError

T = TypeVar("T")
MOST_BYTES = 1 << 26


def read_json(path: str | Path, kind: type[T], *, hint: str) -> T:
    """Returns the value in a JSON file as `kind`: a dataclass, a TypedDict or a plain type.

    Keys that `kind` does not name are passed over, so that a later version may add some.
    FileNotFoundError goes through: only the caller knows what it means. Raises UserError, which
    names the file, the key and `hint`, for what cannot be read, is no JSON, or lacks or mistypes a
    key.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_BYTES else None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {hint}") from None
    if data is None:
        raise UserError(f"{path} has {size:,} bytes, over {MOST_BYTES:,}; {hint}")
    return decode_json(data, kind, name=str(path), hint=hint)


def decode_json(data: bytes, kind: type[T], *, name: str, hint: str) -> T:
    """Returns `read_json` of bytes that were read elsewhere, from `name`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{name} is damaged or of another kind ({error}); {hint}") from None
