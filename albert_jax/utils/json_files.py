# SPDX-License-Identifier: Apache-2.0
"""Read JSON files: this package's own into typed values, others' into an object.

A bad file is an error of one sentence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import msgspec

from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import python_names, shortened

T = TypeVar("T")
MOST_BYTES = 1 << 26
_MOST_FOREIGN = 1 << 22  # bytes; parsed into any values they take some 30 times as many


def read_json(path: str | Path, kind: type[T], *, hint: str) -> T:
    """Return the value in a JSON file as `kind`: a dataclass, a TypedDict or a plain type.

    Keys that `kind` does not name are ignored, so that a later version may add some.
    FileNotFoundError is raised unchanged, because only the caller knows what it means. Raises
    UserError, which names the file, the key and `hint`, for a file that cannot be read, is no JSON,
    or lacks or mistypes a key.
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
    """Return the value of bytes that were read elsewhere, from `name`, as `read_json` does."""
    try:
        with python_names():  # the file's keys have these names too
            return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{name} is damaged or of another kind ({error}); {hint}") from None
    except UserError as error:  # of a configuration
        raise UserError(f"{name}: {error}") from None


def read_foreign_json(path: Path) -> dict[str, object]:
    """Return the JSON object in a file of another program; raises UserError."""
    try:
        if (size := path.stat().st_size) > _MOST_FOREIGN:
            raise ValueError(f"{size:,} bytes, over {_MOST_FOREIGN:,}")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        told = shortened(str(error))
        raise UserError(f"{path} is not readable JSON ({told}); copy it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; copy it again")
    return values
