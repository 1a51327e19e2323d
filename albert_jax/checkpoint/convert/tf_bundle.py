# SPDX-License-Identifier: Apache-2.0
"""Read and write TensorFlow's V2 checkpoints ("tensor bundles") without TensorFlow.

`PREFIX.index` is a sorted string table (`sstable.py`). Its first key is empty and holds
BundleHeaderProto. Each other key is a tensor's name and holds its BundleEntryProto: dtype, shape,
shard, offset, size, masked CRC32C. `PREFIX.data-00000-of-00001` and so on hold the little-endian
values, one tensor after another in the order of their names. Sources: tensor_bundle.{h,cc,proto} of
TensorFlow. Every number is compared with the file's size before memory is allocated for it.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import google_crc32c
import ml_dtypes
import numpy as np

from albert_jax.checkpoint.convert.sstable import (
    Damaged,
    Unsupported,
    encode_table,
    encode_varint,
    mask_crc,
    parse_table,
    parse_varint,
)
from albert_jax.checkpoint.convert.tensors import map_file
from albert_jax.utils.atomic import beside
from albert_jax.utils.errors import UserError
from albert_jax.utils.tf_files import prefix_of, tf_indexes
from albert_jax.utils.tf_protos import BundleEntry, BundleHeader, DecodeError
from albert_jax.utils.wording import first_ten

# DataType of tensorflow/core/framework/types.proto; strings are object arrays of bytes.
DTYPES = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    7: np.dtype(object),
    8: np.dtype(np.complex64),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    14: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(np.uint16),
    18: np.dtype(np.complex128),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
}
_STRING = 7

_MAX_RANK = 32  # NumPy 1's; TensorFlow's own variables have at most 8


@dataclass(frozen=True, slots=True)
class _Entry:
    """Locate a tensor (BundleEntryProto).

    `dtype` is a key of DTYPES or one that is not supported.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_sliced: bool

    @classmethod
    def parse(cls, data: bytes) -> Self:
        message = _parsed(BundleEntry, data)
        if message.shape.unknown_rank:
            raise Damaged("a shape of unknown rank")
        if len(message.shape.dim) > _MAX_RANK:
            raise Damaged(f"a shape of {len(message.shape.dim)} dimensions")
        return cls(
            message.dtype,
            tuple(dim.size for dim in message.shape.dim),
            message.shard_id,
            message.offset,
            message.size,
            message.crc32c,
            bool(message.slices),
        )

    def check(self, num_shards: int) -> None:
        """Raise Damaged unless shape, dtype and size agree."""
        if self.dtype == 0 or not 0 <= self.shard < num_shards:
            raise Damaged(f"dtype {self.dtype}, shard {self.shard} of {num_shards}")
        if min(self.offset, self.size, *self.shape) < 0:
            raise Damaged(f"{self.size} bytes at {self.offset} for the shape {list(self.shape)}")
        if self.is_sliced or self.dtype not in DTYPES:
            return  # said when it is read
        # A string takes at least one byte, for its length.
        itemsize = 1 if self.dtype == _STRING else DTYPES[self.dtype].itemsize
        needed = math.prod(self.shape) * itemsize
        if self.size < needed or (self.size > needed and self.dtype != _STRING):
            raise Damaged(f"{self.size} bytes for the shape {list(self.shape)}")
        # A dimension of 0 hides the others from the check above, but not from NumPy.
        if math.prod(size or 1 for size in self.shape) * DTYPES[self.dtype].itemsize >= 2**63:
            raise Damaged(f"the shape {list(self.shape)}")


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise Damaged("it is no such protobuf message") from None


def _parse_header(data: bytes) -> int:
    """Return BundleHeaderProto's number of shards."""
    message = _parsed(BundleHeader, data)
    if message.endianness:
        raise Unsupported("it was written on a big-endian machine")
    if (needed := message.version.min_consumer) > 1:
        raise Unsupported(f"it needs a reader of version {needed}; this one is of version 1")
    shards: int = message.num_shards
    return shards


def _parse_index(data: bytes) -> tuple[int, dict[str, _Entry]]:
    """Return the number of shards and the tensors of an index file's bytes."""
    table = parse_table(data)
    key, value = next(table, (b"none", b""))
    if key != b"":
        raise Damaged("it has no header")
    num_shards = _parse_header(value)
    entries = {}
    for key, value in table:
        if key.startswith(b"\0"):
            continue  # a part of a partitioned variable, under a binary key; see _Entry.is_sliced
        try:
            name = key.decode()
            entries[name] = _Entry.parse(value)
            entries[name].check(num_shards)
        except UnicodeDecodeError:
            raise Damaged(f"the name {key[:99]!r} is not UTF-8") from None
        except Damaged as error:
            raise Damaged(f"its entry {key[:99]!r} is not one of a tensor ({error})") from None
    return num_shards, entries


def _find_index(path: Path) -> Path:
    """Return the index file that a prefix, a file of the checkpoint or a folder names."""
    if path.is_dir():
        # TF-Hub modules and SavedModels keep theirs one folder down.
        found = tf_indexes(path) or tf_indexes(path / "variables")
        found = found or sorted(path.glob("*.index")) or sorted(path.glob("variables/*.index"))
        state = path / "checkpoint"
        if len(found) != 1 and state.is_file():
            pattern = rb'^model_checkpoint_path: *"([^"\\]+)"'
            latest = re.search(pattern, state.read_bytes(), re.MULTILINE)
            if latest is None:
                raise UserError(f"{state} names no latest checkpoint; give the checkpoint's prefix")
            # Only the last part: the folder may have been moved since.
            found = [path / (Path(latest[1].decode()).name + ".index")]
        if len(found) != 1:
            names = first_ten([p.name for p in found]) or "none"
            raise UserError(
                f"{path} should hold one *.index file of a TensorFlow checkpoint, but has {names}; "
                "give the checkpoint's prefix, such as FOLDER/model.ckpt-best"
            )
        return found[0]
    return path.with_name(prefix_of(path.name) + ".index")


class CheckpointReader:
    """Read a TensorFlow V2 checkpoint: names, shapes and dtypes at once, values on demand."""

    def __init__(self, index: Path, entries: dict[str, _Entry], shards: dict[int, "_Shard"]):
        self.path = index
        self._entries = entries
        self._shards = shards

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a checkpoint by its prefix, one of its files, or a folder that holds just one.

        Raises UserError, which names the file, if the index is damaged or none, or a shard is
        missing or shorter than the index says.
        """
        try:
            index = _find_index(Path(path))
            num_shards, entries = _parse_index(index.read_bytes())
        except Unsupported as error:
            raise UserError(f"{index} is not supported: {error}; save it again elsewhere") from None
        except Damaged as error:
            raise UserError(f"{index} cannot be used: {error}; copy the checkpoint again") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a TensorFlow checkpoint: {error}") from None
        prefix = index.name.removesuffix(".index")
        shards: dict[int, _Shard] = {}
        ends: dict[int, tuple[int, str]] = {}
        for name, entry in sorted(entries.items(), key=lambda e: (e[1].shard, e[1].offset)):
            if entry.is_sliced:
                continue
            if entry.shard not in shards:
                file = index.with_name(f"{prefix}.data-{entry.shard:05d}-of-{num_shards:05d}")
                shards[entry.shard] = _Shard.open(file)
            shard = shards[entry.shard]
            start, before = ends.get(entry.shard, (0, ""))
            end = entry.offset + entry.size
            if entry.size and entry.offset < start:
                raise UserError(f"{index} cannot be used: it lays {name} over {before}")
            if end > len(shard.data):
                raise UserError(
                    f"{shard.path} has {len(shard.data)} bytes, but {name} ends at byte {end}; "
                    "it is cut short or of another checkpoint: copy the checkpoint again"
                )
            ends[entry.shard] = max((end, name), (start, before))
        return cls(index, entries, shards)

    def names(self) -> list[str]:
        """Return the tensors' names, sorted."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; raises UserError if there is no such tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Return a tensor's dtype: `object` for strings, and for one that `read` refuses."""
        return DTYPES.get(self._entry(name).dtype, np.dtype(object))

    def read(self, name: str, *, verify: bool = True) -> np.ndarray:
        """Return a tensor: a read-only view of the mapped file, or an object array of bytes.

        `verify` reads all of it once for its CRC32C. Raises UserError, which names file and tensor,
        if that does not match, or the tensor's dtype is not supported.
        """
        entry, dtype = self._entry(name), self.dtype(name)
        if entry.dtype not in DTYPES:
            raise UserError(
                f"{self.path}: {name} is of TensorFlow's DataType {entry.dtype}, which is not "
                "supported; save the checkpoint again without it"
            )
        if entry.is_sliced:
            raise UserError(
                f"{self.path}: {name} is a partitioned variable, which is not supported; "
                "save the checkpoint again from TensorFlow without a partitioner"
            )
        shard = self._shards[entry.shard]
        raw = shard.data[entry.offset : entry.offset + entry.size]
        try:
            if entry.dtype == _STRING:
                return _parse_strings(raw.tobytes(), entry, verify=verify)
            if verify and mask_crc(google_crc32c.value(raw)) != entry.crc:
                raise Damaged("the CRC32C does not match")
        except Damaged as error:
            raise UserError(
                f"{shard.path} is damaged in {name} (bytes {entry.offset} to "
                f"{entry.offset + entry.size}: {error}) or of another checkpoint than its index; "
                "copy the checkpoint again"
            ) from None
        values = raw.view(dtype).reshape(entry.shape)
        if not values.flags.aligned:  # after a tensor of odd size; few libraries accept this
            values = values.copy()
            values.flags.writeable = False
        return values

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise UserError(f"{self.path} has no tensor {name}; it has {len(self._entries)} others")
        return self._entries[name]


@dataclass(frozen=True)
class _Shard:
    """Hold one data file."""

    path: Path
    data: np.ndarray  # uint8[size], memory-mapped

    @classmethod
    def open(cls, path: Path) -> Self:
        try:
            return cls(path, map_file(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _parse_strings(raw: bytes, entry: _Entry, *, verify: bool) -> np.ndarray:
    """Return a string tensor: varint lengths, the CRC of the lengths, then all the bytes."""
    position, lengths = 0, []
    for _ in range(math.prod(entry.shape)):
        length, position = parse_varint(raw, position, len(raw))
        lengths.append(length)
    stored, position = raw[position : position + 4], position + 4
    if position + sum(lengths) != len(raw):
        raise Damaged("the strings' lengths do not add up")
    if verify:
        crc = google_crc32c.value(_fixed_lengths(lengths))
        # The tensor's CRC is over the lengths as integers, their CRC, and the bytes.
        whole = google_crc32c.extend(google_crc32c.extend(crc, stored), raw[position:])
        if mask_crc(crc) != int.from_bytes(stored, "little") or mask_crc(whole) != entry.crc:
            raise Damaged("the CRC32C does not match")
    values = np.empty(len(lengths), object)
    for i, length in enumerate(lengths):
        values[i] = raw[position : position + length]
        position += length
    return values.reshape(entry.shape)


def _fixed_lengths(lengths: list[int]) -> bytes:
    """Return lengths as the checksum sees them: 4 bytes each, 8 for strings of 4 GiB and more."""
    return b"".join(n.to_bytes(4 if n < 2**32 else 8, "little") for n in lengths)


def write_checkpoint(
    prefix: str | Path, tensors: Mapping[str, np.ndarray], *, shards: int = 1
) -> None:
    """Write a checkpoint in TensorFlow's own bytes: `PREFIX.index` and `shards` data files.

    Strings are object arrays of bytes. Complete files appear under their names, the index last. An
    older checkpoint of that prefix loses its index first, so that no kill leaves a mixture. Raises
    UserError for a dtype or a name that TensorFlow lacks, and if the files cannot be written.
    """
    prefix = Path(prefix)
    if not 1 <= shards <= 99999:
        raise UserError(f"shards {shards} should be from 1 to 99999")
    index = prefix.with_name(prefix.name + ".index")
    entries: list[tuple[bytes, bytes]] = []
    staged: list[tuple[Path, Path]] = []
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        for shard, part in enumerate(_split(tensors, shards)):
            final = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
            staged.append((_stage(final, _encode_shard(part, shard, entries)), final))
        header = BundleHeader(num_shards=shards, version={"producer": 1}).SerializeToString()
        staged.append((_stage(index, [encode_table([(b"", header), *entries])]), index))
        index.unlink(missing_ok=True)
        for temporary, final in staged:
            temporary.replace(final)
    except OSError as error:
        raise UserError(f"{prefix} cannot be written: {error}") from None
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _split(tensors: Mapping[str, np.ndarray], shards: int) -> list[dict[str, np.ndarray]]:
    """Return the tensors in the order of their names, cut into `shards` runs of similar size."""
    arrays = {name: np.asarray(tensors[name]) for name in sorted(tensors, key=str.encode)}
    total, reached = max(sum(array.nbytes for array in arrays.values()), 1), 0
    parts: list[dict[str, np.ndarray]] = [{} for _ in range(shards)]
    for name, array in arrays.items():
        middle = reached + array.nbytes / 2  # decides, or a large last one would leave shards empty
        parts[min(int(middle * shards / total), shards - 1)][name] = array
        reached += array.nbytes
    return parts


def _stage(path: Path, chunks: Iterable[bytes | np.ndarray]) -> Path:
    """Write a file beside its final place, down to the disk; return its temporary path."""
    temporary = beside(path, "tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk if isinstance(chunk, bytes) else chunk.data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _encode_shard(
    tensors: dict[str, np.ndarray], shard: int, entries: list[tuple[bytes, bytes]]
) -> Iterator[bytes | np.ndarray]:
    """Yield each tensor's bytes and append its name and BundleEntryProto to `entries`."""
    offset = 0
    for name, array in tensors.items():
        if not name or name.startswith("\0"):
            raise UserError(f"a tensor cannot be named {name!r} in a TensorFlow checkpoint")
        raw: bytes | np.ndarray
        if array.dtype.kind in "OSU":
            dtype = _STRING
            raw, crc = _encode_strings(name, array)
        else:
            dtype = next((n for n, d in DTYPES.items() if d == array.dtype.newbyteorder("=")), 0)
            if not dtype:
                known = ", ".join(map(str, DTYPES.values()))
                raise UserError(f"{name} has dtype {array.dtype}; a checkpoint can hold {known}")
            native = np.ascontiguousarray(array, dtype=DTYPES[dtype])
            raw = native.reshape(-1).view(np.uint8)
            crc = google_crc32c.value(raw)
        entry = BundleEntry(
            dtype=dtype,
            shape={"dim": [{"size": size} for size in array.shape]},
            shard_id=shard,
            offset=offset,
            size=len(raw),
            crc32c=mask_crc(crc),
        )
        entries.append((name.encode(), entry.SerializeToString()))
        offset += len(raw)
        yield raw


def _encode_strings(name: str, array: np.ndarray) -> tuple[bytes, int]:
    """Return a string tensor's bytes and their CRC; see _parse_strings."""
    values = [s.encode() if isinstance(s, str) else s for s in array.reshape(-1).tolist()]
    if not all(isinstance(s, bytes) for s in values):
        raise UserError(f"{name} has dtype {array.dtype} but holds other things than bytes or str")
    lengths = [len(s) for s in values]
    crc = google_crc32c.value(_fixed_lengths(lengths))
    tail = mask_crc(crc).to_bytes(4, "little") + b"".join(values)
    return b"".join(map(encode_varint, lengths)) + tail, google_crc32c.extend(crc, tail)
