# SPDX-License-Identifier: Apache-2.0
"""Compare names, shapes, dtypes and checksums of a tree's arrays, which storage does not check.

Plain orbax restores 24 of 25 flipped bits without an error and casts a wrong dtype silently.
Therefore every array that is written has its CRC-32C beside it, in a JSON document that has its
own.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import google_crc32c
import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from albert_jax.utils.json_values import JsonObject, json_crc32c
from albert_jax.utils.wording import first_ten

Table = Mapping[str, Mapping[str, Any]]
"""name -> {"shape", "dtype", "crc32c"}, and "impl" for a typed PRNG key; JSON values only."""

Leaves = dict[str, Any]
"""The leaves of a tree by their path: arrays, on a device or not, or their shapes and dtypes."""

ArrayTree = dict[str, Any]
"""Arrays in nested dicts, as a model's parameters are: a value is an array or another such dict."""

_MOST_DOCUMENT = 1 << 24  # bytes of a sealed document; parsed they take some 30 times as many
_BLOCK = 1 << 18  # numbers looked at together, so that the look needs no memory
# Weights hardly compress, and the zeros of a new optimizer take no bytes at all.
_MOST_UNPACKED = 32  # bytes of arrays for each byte of files
_FREE = 1 << 26  # bytes of arrays that any files may have
_BYTES_A_CHUNK = 32  # of files, at least: its name and its place


class Damaged(Exception):
    """Report that what was read is not what was written; the message names the array or file."""


def named_leaves(tree: Any) -> Leaves:
    """Return the leaves of any tree by path, as `params/encoder/kernel` or `opt_state/0/mu/…`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    assert len(names) == len(leaves), "two leaves have the same name"
    return names


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is a typed PRNG key, which has no bytes but those of its `key_data`."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data_of(leaves: Mapping[str, Any]) -> Leaves:
    """Return the leaves as arrays of numbers: keys as their uint32 data."""
    with jax.transfer_guard("allow"):
        return {name: jax.random.key_data(x) if is_key(x) else x for name, x in leaves.items()}


def on_host(data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the values as NumPy arrays; on a CPU, views of the same memory."""
    with jax.transfer_guard("allow"):  # one call, so that the copies of all leaves overlap
        return {name: np.asarray(x) for name, x in jax.device_get(dict(data)).items()}


def crc32c(array: np.ndarray) -> str:
    """Return the CRC-32C of the bytes in C order, as eight hexadecimal digits."""
    return f"{google_crc32c.value(np.ascontiguousarray(array).reshape(-1).view(np.uint8)):08x}"


def array_table(leaves: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Table:
    """Return shape and dtype of each leaf, which may be abstract.

    Checksums if `arrays` has values.
    """
    table: dict[str, JsonObject] = {}
    for name, leaf in leaves.items():
        table[name] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if arrays is not None:
            table[name]["crc32c"] = crc32c(arrays[name])
            if is_key(leaf):
                table[name]["impl"] = str(jax.random.key_impl(leaf))
    return table


def differences(there: Table, here: Table) -> list[str]:
    """Return a phrase for every name that only one side has or that has another shape or dtype."""

    def say(table: Table, name: str) -> str:
        if name not in table:
            return "nothing"
        return f"{table[name]['dtype']}{table[name]['shape']}"

    pairs = ((name, say(there, name), say(here, name)) for name in sorted({*there, *here}))
    return [f"{name}: {old} there, {new} here" for name, old, new in pairs if old != new]


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of the arrays that hold NaN or an infinity."""
    return [name for name, array in arrays.items() if not _is_finite(array)]


def _is_finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    blocks = (flat[at : at + _BLOCK] for at in range(0, flat.size, _BLOCK))
    return all(np.isfinite(block).all() for block in blocks)


def verify_arrays(arrays: Mapping[str, np.ndarray], table: Table) -> None:
    """Raise Damaged unless the arrays are, bit for bit, those that the table describes."""
    wrong = []
    for name, entry in table.items():
        array = arrays[name]
        found, written = f"{array.dtype}{list(array.shape)}", f"{entry['dtype']}{entry['shape']}"
        if found == written or "impl" in entry:  # a key's own shape and dtype are not its data's
            found, written = f"crc32c {crc32c(array)}", f"crc32c {entry['crc32c']}"
        if found != written:
            wrong.append(f"{name}: {found} where {written} was written")
    if wrong:
        raise Damaged(first_ten(wrong, "; "))


def nest(arrays: Mapping[str, Any]) -> ArrayTree:
    """Return `{"a/b": x}` as `{"a": {"b": x}}`, plain dicts that any reader can restore.

    Raises Damaged for a name that is also the beginning of another.
    """
    tree: ArrayTree = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise Damaged(f"{parent} is an array and holds {name}")
        if last in node:
            raise Damaged(f"{name} is an array and holds others")
        node[last] = array
    return tree


def seal(document: Mapping[str, Any]) -> JsonObject:
    """Return the document as plain JSON values with a checksum of itself."""
    plain = json.loads(json.dumps(document))
    return {**plain, "crc32c": json_crc32c(plain)}


def unseal(text: bytes) -> JsonObject:
    """Return the document that `seal` made, its checksum included; raises Damaged."""
    try:
        document = json.loads(text)
        if not isinstance(document, dict) or "crc32c" not in document:
            raise ValueError("no object with a crc32c")
        found, written = json_crc32c(document), document["crc32c"]
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not the JSON that was written: {error!r:.200}") from None
    if found != written:
        raise Damaged(f"crc32c {found} where {written!s:.20} was written")
    return document


def read_document(path: Path) -> JsonObject:
    """Return the sealed JSON document in a file; raises Damaged."""
    try:
        if (size := path.stat().st_size) > _MOST_DOCUMENT:
            raise Damaged(f"{size:,} bytes, over {_MOST_DOCUMENT:,}")
        return unseal(path.read_bytes())
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from None
    except Damaged as error:
        raise Damaged(f"{path.name}: {error}") from None


def read_arrays(path: Path, table: Table, *, beside: Sequence[Path] = ()) -> dict[str, np.ndarray]:
    """Return the arrays in an orbax directory, by name, each verified against the table.

    Raises Damaged. The sizes in the files are compared with the table, with the files' own size and
    with that of the folders `beside`, before any array is made. Orbax's format (zarr in OCDBT) is
    read without orbax: if one of its reads fails, the others print stacks from their threads, and
    its error does not name the array.
    """
    stores = dict(_opened(path, table))
    wrong = [
        f"{name}: {found} where {written} was written"
        for name, store in stores.items()
        for found, written in [_claims(store, table[name])]
        if found != written
    ]
    if wrong:
        raise Damaged(first_ten(wrong, "; "))
    _check_size(stores, sum(map(_bytes_in, (path, *beside))))
    arrays = {}
    for name, store in stores.items():
        try:
            arrays[name] = store.read().result()
        except ValueError as error:
            raise Damaged(f"{name}: {_first_line(error)}") from None
    verify_arrays(arrays, table)
    return arrays


def _opened(path: Path, table: Table) -> Iterator[tuple[str, ts.TensorStore]]:
    """Yield each array by its name, with only its metadata read; raises Damaged."""
    # Not a file:// address: it would read a relative path as a host and "%20" as a space.
    base, context = {"driver": "file", "path": f"{path.resolve()}/"}, ts.Context()
    opened = {}
    for name in table:
        kvstore = {"driver": "ocdbt", "base": base, "path": name.replace("/", ".") + "/"}
        try:
            opened[name] = ts.open({"driver": "zarr", "kvstore": kvstore}, context=context)
        except RuntimeError:  # of the path, or of the name
            raise Damaged(f"{path / name!r:.300} is not UTF-8, as tensorstore needs it") from None
    for name, future in opened.items():
        try:
            yield name, future.result()
        except ValueError as error:  # all that tensorstore raises
            raise Damaged(f"{name}: {_first_line(error)}") from None


def _claims(store: ts.TensorStore, entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return an array's description in its metadata, and the one that was written.

    They are equal if all is well.
    """
    shape, dtype = list(store.shape), str(store.dtype.numpy_dtype)
    written = f"{entry['dtype']}{entry['shape']}"
    if "impl" in entry:  # the table has a key's own shape, its data have the key's words behind it
        written = f"uint32{[*entry['shape'], *shape[-1:]]}"
    assert store.codec is not None  # zarr names it
    codec = store.codec.to_json()
    chunk = _chunk(store)
    if (codec.get("compressor") or {"id": "zstd"})["id"] != "zstd" or codec.get("filters"):
        return f"the codec {codec!s:.99}", "zstd"
    if any(n > max(size, 1) for n, size in zip(chunk, shape, strict=True)):
        return f"{dtype}{shape} in chunks of {list(chunk)}", written
    return f"{dtype}{shape}", written


def _check_size(stores: Mapping[str, ts.TensorStore], size: int) -> None:
    """Raise Damaged if arrays, or their numbers of chunks, are too large for `size` bytes of files.

    Missing chunks are zeros, so that small files may claim large arrays.
    """
    claimed = sum(
        math.prod(store.shape) * store.dtype.numpy_dtype.itemsize for store in stores.values()
    )
    if claimed > _MOST_UNPACKED * size + _FREE:
        raise Damaged(f"{claimed:,} bytes of arrays in {size:,} bytes of files")
    chunks = sum(
        math.prod(-(-n // part) for n, part in zip(store.shape, _chunk(store), strict=True))
        for store in stores.values()
    )
    if chunks > len(stores) + size // _BYTES_A_CHUNK:
        raise Damaged(f"{chunks:,} chunks of arrays in {size:,} bytes of files")


def _chunk(store: ts.TensorStore) -> tuple[int, ...]:
    """Return the shape of a chunk, which is stored and read as one."""
    shape = store.chunk_layout.read_chunk.shape or ()  # None: of a number by itself
    return cast(tuple[int, ...], shape)  # zarr knows every dimension


def _bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    files = (Path(at, name) for at, _, names in os.walk(folder.resolve()) for name in names)
    return sum(file.stat().st_size for file in files if file.is_file())


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
