# SPDX-License-Identifier: Apache-2.0
"""Read `flax_model.msgpack`, which transformers wrote for Flax until version 4.

It is MessagePack of nested dicts. An array is extension type 1, itself a MessagePack of (shape,
dtype's name, bytes). Source: flax/serialization.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from albert_jax.checkpoint.convert.tensors import Tensor, map_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import shortened

_NDARRAY = 1
_DTYPES = {
    name: np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_DEEPEST = 32  # dicts in dicts; ALBERT has 8
_MOST_KEYS = 1 << 16  # in all dicts together; each takes many times its bytes in the file
_TO_TORCH = {"kernel": "weight", "embedding": "weight", "scale": "weight"}


class _Damaged(Exception):
    """Report bytes that Flax does not write."""


def read_flax(path: Path) -> dict[str, Tensor]:
    """Return the arrays by transformers' PyTorch names and in PyTorch's orientation.

    Raises UserError for a file that is damaged or none of Flax's.
    """
    try:
        # A file claims its own lengths, and lists are allocated by them.
        tree = msgpack.unpackb(
            map_file(path),
            ext_hook=_array,
            object_pairs_hook=_Dicts(),
            max_array_len=32,
            max_map_len=_MOST_KEYS,
        )
        if isinstance(tree, dict) and isinstance(tree.get("params"), dict):
            tree = tree["params"]
        if not isinstance(tree, dict):
            raise _Damaged("it holds no dict")
        return dict(_leaves(tree, ()))
    except (_Damaged, msgpack.UnpackException, ValueError, OSError, RecursionError) as error:
        told = shortened(str(error)) or type(error).__name__
        raise UserError(f"{path} cannot be read as a Flax file ({told}); copy it again") from None


class _Dicts:
    """Make dicts of their pairs, up to a total number of keys."""

    def __init__(self) -> None:
        self._keys = 0

    def __call__(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._keys += len(pairs)
        if self._keys > _MOST_KEYS:
            raise _Damaged(f"it has more than {_MOST_KEYS:,} names")
        return dict(pairs)


def _array(code: int, data: bytes) -> np.ndarray:
    """Decode Flax's extension of MessagePack for arrays."""
    if code != _NDARRAY:
        raise _Damaged(f"it has an extension of type {code}")
    parts = msgpack.unpackb(data, max_array_len=32, max_map_len=0, max_ext_len=0)
    if not isinstance(parts, list) or len(parts) != 3:
        raise _Damaged("one of its arrays does not have three parts")
    shape, name, raw = parts
    if not isinstance(name, str) or name not in _DTYPES:
        raise _Damaged(f"it has an array of dtype {str(name)[:99]}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise _Damaged("it has an array of an impossible shape")
    if not isinstance(raw, bytes) or math.prod(shape) * _DTYPES[name].itemsize != len(raw):
        raise _Damaged(f"it has an array {shape} of another number of bytes")
    return np.frombuffer(raw, _DTYPES[name]).reshape(shape)


def _leaves(tree: dict[Any, Any], parents: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if len(parents) > _DEEPEST:
        raise _Damaged(f"it has more than {_DEEPEST} dicts in each other")
    for key, value in tree.items():
        path = (*parents, str(key))
        if isinstance(value, dict):
            yield from _leaves(value, path)
        elif isinstance(value, np.ndarray):
            name = ".".join((*parents, _TO_TORCH.get(path[-1], path[-1])))
            yield name, Tensor.of(value.T if path[-1] == "kernel" else value)
        else:
            raise _Damaged(f"{'.'.join(path)[:99]} is a {type(value).__name__}, not an array")
