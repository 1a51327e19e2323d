# SPDX-License-Identifier: Apache-2.0
"""Handle JSON values: their digest and format, differences, and values that JSON lacks."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import google_crc32c

from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import shortened

JsonObject = dict[str, Any]
"""A JSON object as `json.loads` returns it: its values are JSON values of any kind."""


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys.

    It is part of a run's identity.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def refuse_newer_format(document: Mapping[str, Any], known: int, name: str) -> None:
    """Raise UserError for a document of a later format version than `known`.

    A document without a version has the first, which 0.1 wrote.
    """
    version = document.get("format_version", 1)
    if isinstance(version, int) and version > known:
        raise UserError(
            f"{name} has format {shortened(str(version))}, newer than {known}; update albert_jax"
        )


def json_crc32c(document: Mapping[str, Any]) -> str:
    """Return the CRC-32C of a JSON object as eight hexadecimal digits.

    Its key crc32c, which holds the result, is left out.
    """
    values = {key: document[key] for key in document if key != "crc32c"}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return f"{google_crc32c.value(canonical):08x}"


def unlike_values(
    there: Mapping[str, Any], here: Mapping[str, Any], where: str = "there", whose: str = "here"
) -> list[str]:
    """Return a phrase for every value in which two JSON documents differ, named to the last key."""
    return [
        f"{key} is {theirs!r} {where} and {ours!r} {whose}"
        for key, (theirs, ours) in differing_values(there, here).items()
    ]


UNSET = "unset"  # in place of a value that one of two documents lacks


def differing_values(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the values in which two JSON documents differ, both by the name of the last key."""
    theirs, ours = flat(there), flat(json.loads(json.dumps(dict(here))))
    pairs = {key: (theirs.get(key, UNSET), ours.get(key, UNSET)) for key in {*theirs, *ours}}
    return {key: pairs[key] for key in sorted(pairs) if pairs[key][0] != pairs[key][1]}


def flat(tree: Mapping[str, Any], prefix: str = "") -> JsonObject:
    """Return `{"a": {"b": 1}}` as `{"a.b": 1}`; an empty mapping is a value."""
    found: JsonObject = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def finite(value: Any) -> Any:
    """Return a JSON value with None for numbers that are not finite, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
