# SPDX-License-Identifier: Apache-2.0
"""Reads and writes TensorFlow's V2 checkpoints ("tensor bundles") without TensorFlow.

`PREFIX.index` is an SSTable (LevelDB's table format, uncompressed). From its end: a footer of 48
bytes (varint64 offset and size of the metaindex block and of the index block, zeros, 8 bytes of
magic); the index block, whose values are the offsets and sizes of the data blocks; before these the
blocks. A block is a run of entries (varints: bytes of the key shared with the one before, bytes of
its own, bytes of the value; then both), the offsets of those entries that share nothing (uint32
each) and their number (uint32); behind it stand one byte for the compression and the CRC32C.
The first key is empty and holds BundleHeaderProto; each other key is a tensor's name and holds its
BundleEntryProto: dtype, shape, shard, offset, size, CRC32C. `PREFIX.data-00000-of-00001` and so on
hold the little-endian values, one tensor after the other. CRCs are stored masked. Sources:
tensor_bundle.{h,cc,proto}, table_format.txt and table_builder.cc of TensorFlow and TSL.

Every number is held against the file's size before anything is allocated by it; both levels of CRC
are checked, as a flipped byte in the index would otherwise rename or reshape a tensor unseen.
"""

import math
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import google_crc32c
import ml_dtypes
import numpy as np

from albert_jax.errors import UserError

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

_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # behind each block: compression, CRC
_MAX_RANK = 32  # NumPy 1's; TensorFlow's own variables have at most 8
# Names share prefixes, so a forged index could unfold to the square of its size; TensorFlow writes
# at least every 16th name in full, hence can never unfold beyond 16 times.
_MAX_UNFOLDING = 16


class _Damaged(Exception):
    """What is wrong with bytes; the caller adds which file they are of."""


def _masked(crc: int) -> int:
    """Returns a CRC as these files store it, so that a CRC over CRCs keeps its strength."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Returns the unsigned LEB128 number at `position` and the position behind it."""
    value = 0
    for shift in range(0, 64, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _Damaged(f"the number before byte {position} does not end")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields tag (8 x field number + wire type) and value of each field of a protobuf message."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position, end)
        if tag & 7 == 0:
            value, position = _varint(data, position, end)
            yield tag, value
            continue
        if tag & 7 == 2:
            size, position = _varint(data, position, end)
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
        else:
            raise _Damaged(f"a field of wire type {tag & 7} in a protobuf message")
        if size > end - position:
            raise _Damaged(f"a field of {size} bytes in {end - position} bytes")
        yield tag, data[position : position + size]
        position += size


@dataclass(frozen=True, slots=True)
class _Entry:
    """BundleEntryProto: where a tensor lies. `dtype` is a key of DTYPES or one not supported."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_sliced: bool

    @classmethod
    def parse(cls, data: bytes) -> Self:
        dtype = shard = offset = size = crc = 0
        shape, is_sliced = (), False
        for tag, value in _fields(data):
            match tag:
                case 0x08:
                    dtype = value
                case 0x12:
                    shape = _parse_shape(value)
                case 0x18:
                    shard = value
                case 0x20:
                    offset = value
                case 0x28:
                    size = value
                case 0x35:
                    crc = int.from_bytes(value, "little")
                case 0x3A:
                    is_sliced = True
        return cls(dtype, shape, shard, offset, size, crc, is_sliced)

    def check(self, num_shards: int) -> None:
        """Raises _Damaged unless shape, dtype and size agree."""
        if self.dtype == 0 or self.shard >= num_shards:
            raise _Damaged(f"dtype {self.dtype}, shard {self.shard} of {num_shards}")
        if self.is_sliced or self.dtype not in DTYPES:
            return  # said when it is read
        # A string takes at least one byte, for its length.
        itemsize = 1 if self.dtype == _STRING else DTYPES[self.dtype].itemsize
        needed = math.prod(self.shape) * itemsize
        if self.size < needed or (self.size > needed and self.dtype != _STRING):
            raise _Damaged(f"{self.size} bytes for the shape {list(self.shape)}")
        # A dimension of 0 hides the others from the check above, but not from NumPy.
        if math.prod(size or 1 for size in self.shape) * DTYPES[self.dtype].itemsize >= 2**63:
            raise _Damaged(f"the shape {list(self.shape)}")


def _parse_shape(data: bytes) -> tuple[int, ...]:
    """Returns TensorShapeProto's sizes."""
    shape: list[int] = []
    for tag, value in _fields(data):
        if tag == 0x12:  # dim { size: 1, name: 2 }
            shape.append(next((v for t, v in _fields(value) if t == 0x08), 0))
        elif tag == 0x18 and value:
            raise _Damaged("a shape of unknown rank")
    if len(shape) > _MAX_RANK:
        raise _Damaged(f"a shape of {len(shape)} dimensions")
    return tuple(shape)


def _parse_header(data: bytes) -> int:
    """Returns BundleHeaderProto's number of shards."""
    num_shards = endianness = min_consumer = 0
    for tag, value in _fields(data):
        match tag:
            case 0x08:
                num_shards = value
            case 0x10:
                endianness = value
            case 0x1A:  # version { producer: 1, min_consumer: 2 }
                min_consumer = next((v for t, v in _fields(value) if t == 0x10), 0)
    if endianness:
        raise _Damaged("it was written on a big-endian machine, which is not supported")
    if min_consumer > 1:
        raise _Damaged(f"it needs a reader of version {min_consumer}; this one is of version 1")
    return num_shards


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of the table's block at `offset`, whose CRC is checked first."""
    end = offset + size
    if size < 4 or end + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise _Damaged(f"a block of {size} bytes at byte {offset} of {len(data)}")
    stored = int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little")
    if _masked(google_crc32c.value(data[offset : end + 1])) != stored:
        raise _Damaged(f"the CRC32C of the block at bytes {offset} to {end} does not match")
    if data[end] != 0:
        raise _Damaged(f"the block at byte {offset} is compressed, which is not supported")
    restarts = int.from_bytes(data[end - 4 : end], "little")
    end -= 4 * (restarts + 1)
    if end < offset:
        raise _Damaged(f"{restarts} restart points in the block at byte {offset}")
    key, position, unfolded = b"", offset, 0
    while position < end:
        shared, position = _varint(data, position, end)
        unshared, position = _varint(data, position, end)
        length, position = _varint(data, position, end)
        if shared > len(key) or unshared + length > end - position:
            raise _Damaged(f"an entry before byte {position} that exceeds its block")
        unfolded += shared + unshared
        if unfolded > _MAX_UNFOLDING * size:
            raise _Damaged(f"names too long for the block at byte {offset}")
        key = key[:shared] + data[position : position + unshared]
        position += unshared
        yield key, data[position : position + length]
        position += length


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys, strictly ascending, and values of an SSTable."""
    if len(data) < _FOOTER_BYTES or not data.endswith(_MAGIC):
        raise _Damaged(f"its {len(data)} bytes do not end as an index of a V2 checkpoint does")
    footer, handles = data[-_FOOTER_BYTES:-8], []
    position = 0
    for _ in range(4):
        number, position = _varint(footer, position, len(footer))
        handles.append(number)
    if any(footer[position:]) or any(True for _ in _block(data, *handles[:2])):
        raise _Damaged("its footer or metaindex is not one of a checkpoint")
    last, reached = None, 0
    for _, handle in _block(data, *handles[2:]):
        offset, position = _varint(handle, 0, len(handle))
        size, position = _varint(handle, position, len(handle))
        if offset != reached:  # the builder leaves no gaps; else a block could be read twice
            raise _Damaged(f"a block at byte {offset} where byte {reached} was due")
        reached = offset + size + _TRAILER_BYTES
        for key, value in _block(data, offset, size):
            if last is not None and key <= last:
                raise _Damaged(f"the names {last!r} and {key!r} are not in order")
            last = key
            yield key, value


def _parse_index(data: bytes) -> tuple[int, dict[str, _Entry]]:
    """Returns the number of shards and the tensors of an index file's bytes."""
    table = _table(data)
    key, value = next(table, (b"none", b""))
    if key != b"":
        raise _Damaged("it has no header")
    num_shards = _parse_header(value)
    entries = {}
    for key, value in table:
        if key.startswith(b"\0"):
            continue  # a part of a partitioned variable, under a binary key; see _Entry.is_sliced
        try:
            name = key.decode()
            entries[name] = _Entry.parse(value)
            entries[name].check(num_shards)
        except (UnicodeDecodeError, _Damaged) as error:
            raise _Damaged(f"its entry {key!r} is not one of a tensor ({error})") from None
    return num_shards, entries


def _find_index(path: Path) -> Path:
    """Returns the index file that a prefix, a file of the checkpoint or a folder names."""
    if path.is_dir():
        # TF-Hub modules and SavedModels keep theirs one folder down.
        found = sorted(path.glob("*.index")) or sorted(path.glob("variables/*.index"))
        state = path / "checkpoint"
        if len(found) != 1 and state.is_file():
            pattern = rb'^model_checkpoint_path: *"([^"\\]+)"'
            latest = re.search(pattern, state.read_bytes(), re.MULTILINE)
            if latest is None:
                raise UserError(f"{state} names no latest checkpoint; give the checkpoint's prefix")
            # Only the last part: the folder may have been moved since.
            found = [path / (Path(latest[1].decode()).name + ".index")]
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise UserError(
                f"{path} should hold one *.index file of a TensorFlow checkpoint, but has {names}; "
                "give the checkpoint's prefix, such as FOLDER/model.ckpt-best"
            )
        return found[0]
    name = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    return path.with_name(name + ".index")


def _map(path: Path) -> np.ndarray:
    """Returns a file's bytes, memory-mapped, read-only, uint8[size]."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return np.frombuffer(b"", np.uint8)  # mmap refuses empty files
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class CheckpointReader:
    """A TensorFlow V2 checkpoint on disk: names, shapes and dtypes at once, values when read."""

    def __init__(self, index: Path, entries: dict[str, _Entry], shards: dict[int, "_Shard"]):
        self.path = index
        self._entries = entries
        self._shards = shards

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens a checkpoint by its prefix, one of its files, or a folder that holds just one.

        Raises UserError, which names the file, where the index is damaged or not one, or a shard is
        missing or shorter than the index says.
        """
        try:
            index = _find_index(Path(path))
            num_shards, entries = _parse_index(index.read_bytes())
        except _Damaged as error:
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
        """Returns the tensors' names, sorted."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape; raises UserError where there is no such tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Returns a tensor's dtype, `object` for strings; raises UserError for exotic ones."""
        number = self._entry(name).dtype
        if number not in DTYPES:
            raise UserError(f"{self.path}: {name} is of TensorFlow's DataType {number}; skip it")
        return DTYPES[number]

    def read(self, name: str, *, verify: bool = True) -> np.ndarray:
        """Returns a tensor: a read-only view of the mapped file, or an object array of bytes.

        `verify` reads all of it once for its CRC32C. Raises UserError, which names file and tensor,
        where that does not match.
        """
        entry, dtype = self._entry(name), self.dtype(name)
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
            if verify and _masked(google_crc32c.value(raw)) != entry.crc:
                raise _Damaged("the CRC32C does not match")
        except _Damaged as error:
            raise UserError(
                f"{shard.path} is damaged in {name} (bytes {entry.offset} to "
                f"{entry.offset + entry.size}: {error}) or of another checkpoint than its index; "
                "copy the checkpoint again"
            ) from None
        values = raw.view(dtype).reshape(entry.shape)
        if not values.flags.aligned:  # behind a tensor of odd size; few libraries take it as it is
            values = values.copy()
            values.flags.writeable = False
        return values

    def read_all(self) -> dict[str, np.ndarray]:
        """Returns all tensors by name, verified."""
        return {name: self.read(name) for name in self.names()}

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise UserError(f"{self.path} has no tensor {name}; it has {len(self._entries)} others")
        return self._entries[name]


@dataclass(frozen=True)
class _Shard:
    """One data file."""

    path: Path
    data: np.ndarray  # uint8[size], memory-mapped

    @classmethod
    def open(cls, path: Path) -> Self:
        try:
            return cls(path, _map(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _parse_strings(raw: bytes, entry: _Entry, *, verify: bool) -> np.ndarray:
    """Returns a string tensor: varint lengths, the CRC of the lengths, then all the bytes."""
    position, lengths = 0, []
    for _ in range(math.prod(entry.shape)):
        length, position = _varint(raw, position, len(raw))
        lengths.append(length)
    stored, position = raw[position : position + 4], position + 4
    if position + sum(lengths) != len(raw):
        raise _Damaged("the strings' lengths do not add up")
    if verify:
        crc = google_crc32c.value(_fixed_lengths(lengths))
        # The tensor's CRC is over the lengths as integers, their CRC, and the bytes.
        whole = google_crc32c.extend(google_crc32c.extend(crc, stored), raw[position:])
        if _masked(crc) != int.from_bytes(stored, "little") or _masked(whole) != entry.crc:
            raise _Damaged("the CRC32C does not match")
    values = np.empty(len(lengths), object)
    for i, length in enumerate(lengths):
        values[i] = raw[position : position + length]
        position += length
    return values.reshape(entry.shape)


def _fixed_lengths(lengths: list[int]) -> bytes:
    """Returns lengths as the checksum sees them: 4 bytes each, 8 for strings of 4 GiB and more."""
    return b"".join(n.to_bytes(4 if n < 2**32 else 8, "little") for n in lengths)
