# SPDX-License-Identifier: Apache-2.0
"""Read and write sorted string tables (LevelDB's format, uncompressed): TensorFlow's index files.

From its end, a table has a footer of 48 bytes (varint64 offset and size of the metaindex block and
of the index block, zeros, 8 bytes of magic). Before it are the index block, whose values are the
data blocks' offsets and sizes, and the data blocks. A block is a sequence of entries, then the
offsets of those entries that share nothing (uint32 each) and their number (uint32). An entry has
three varints (bytes of the key shared with the one before, bytes of its own, bytes of the value),
the key's own bytes and the value. After a block come one byte for the compression and the masked
CRC32C. Sources: table_format.txt, table_builder.cc and block_builder.cc of TSL.

Every number is compared with the file's size before memory is allocated for it. Every block's CRC
is checked, because a flipped byte could rename or reshape a tensor unnoticed.
"""

from collections.abc import Iterator

import google_crc32c

from albert_jax.utils.tf_files import TABLE_END

_FOOTER_BYTES = 48
_BLOCK_BYTES = 262144  # a data block ends at the first entry that reaches this; table_options.h
_RESTART_INTERVAL = 16
_TRAILER_BYTES = 5  # behind each block: compression, CRC
# Names share prefixes, so a forged index could unfold to the square of its size; TensorFlow writes
# every 16th name in full, hence can never unfold beyond 16 times.
_MAX_UNFOLDING = _RESTART_INTERVAL


class Damaged(Exception):
    """Report what is wrong with bytes; the caller adds the file's name."""


class Unsupported(Damaged):
    """Report an intact variant of the format that TensorFlow does not write for such models."""


def mask_crc(crc: int) -> int:
    """Return a CRC as these files store it, so that a CRC over CRCs keeps its strength."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def encode_varint(number: int) -> bytes:
    """Return a number below 2**64 in 7 bits a byte, the lowest first (LEB128)."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def parse_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the number that `encode_varint` wrote at `position`, and the position after it."""
    value = 0
    for shift in range(0, 64, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Damaged(f"the number before byte {position} does not end")


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of the table's block at `offset`, after checking its CRC."""
    end = offset + size
    if size < 4 or end + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise Damaged(f"a block of {size} bytes at byte {offset} of {len(data)}")
    stored = int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little")
    if mask_crc(google_crc32c.value(data[offset : end + 1])) != stored:
        raise Damaged(f"the CRC32C of the block at bytes {offset} to {end} does not match")
    if data[end] != 0:
        raise Unsupported(f"the block at byte {offset} is compressed (type {data[end]})")
    restarts = int.from_bytes(data[end - 4 : end], "little")
    end -= 4 * (restarts + 1)
    if end < offset:
        raise Damaged(f"{restarts} restart points in the block at byte {offset}")
    key, position, unfolded = b"", offset, 0
    while position < end:
        shared, position = parse_varint(data, position, end)
        unshared, position = parse_varint(data, position, end)
        length, position = parse_varint(data, position, end)
        if shared > len(key) or unshared + length > end - position:
            raise Damaged(f"an entry before byte {position} that exceeds its block")
        unfolded += shared + unshared
        if unfolded > _MAX_UNFOLDING * size:
            raise Damaged(f"names too long for the block at byte {offset}")
        key = key[:shared] + data[position : position + unshared]
        position += unshared
        yield key, data[position : position + length]
        position += length


def parse_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys, strictly ascending, and values of a table; raises Damaged."""
    if len(data) < _FOOTER_BYTES or not data.endswith(TABLE_END):
        raise Damaged(f"its {len(data)} bytes do not end as an index of a V2 checkpoint does")
    footer, handles = data[-_FOOTER_BYTES:-8], []
    position = 0
    for _ in range(4):
        number, position = parse_varint(footer, position, len(footer))
        handles.append(number)
    if any(footer[position:]) or any(True for _ in _block(data, *handles[:2])):
        raise Damaged("its footer or metaindex is not one of a checkpoint")
    last, reached = None, 0
    for _, handle in _block(data, *handles[2:]):
        offset, position = parse_varint(handle, 0, len(handle))
        size, position = parse_varint(handle, position, len(handle))
        if offset != reached:  # the builder leaves no gaps; else a block could be read twice
            raise Damaged(f"a block at byte {offset} where byte {reached} was due")
        reached = offset + size + _TRAILER_BYTES
        for key, value in _block(data, offset, size):
            if last is not None and key <= last:
                raise Damaged(f"the names {last[:99]!r} and {key[:99]!r} are not in order")
            last = key
            yield key, value


class _BlockBuilder:
    """Build a table's block."""

    def __init__(self, restart_interval: int):
        self._interval = restart_interval
        self._data = bytearray()
        self._restarts = [0]
        self._count = 0
        self.last = b""

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count and self._count % self._interval == 0:
            self._restarts.append(len(self._data))
        else:
            shared = _shared(self.last, key)
        for number in (shared, len(key) - shared, len(value)):
            self._data += encode_varint(number)
        self._data += key[shared:] + value
        self.last = key
        self._count += 1

    def finish(self) -> bytes:
        words = [*self._restarts, len(self._restarts)]
        return bytes(self._data) + b"".join(n.to_bytes(4, "little") for n in words)

    def __len__(self) -> int:
        return len(self._data) + 4 * (len(self._restarts) + 1)


def encode_table(items: list[tuple[bytes, bytes]]) -> bytes:
    """Return a table of ascending keys and their values, in TensorFlow's own bytes."""
    table = bytearray()

    def flush(block: _BlockBuilder) -> bytes:
        """Append a block and return its handle."""
        content = block.finish() + b"\0"  # not compressed
        handle = encode_varint(len(table)) + encode_varint(len(content) - 1)
        table.extend(content + mask_crc(google_crc32c.value(content)).to_bytes(4, "little"))
        return handle

    index, block = _BlockBuilder(1), _BlockBuilder(_RESTART_INTERVAL)
    for i, (key, value) in enumerate(items):
        following = items[i + 1][0] if i + 1 < len(items) else None
        block.add(key, value)
        if len(block) >= _BLOCK_BYTES or following is None:
            handle, block = flush(block), _BlockBuilder(_RESTART_INTERVAL)
            index.add(_separator(key, following), handle)
    footer = flush(_BlockBuilder(_RESTART_INTERVAL)) + flush(index)
    return bytes(table) + footer.ljust(_FOOTER_BYTES - len(TABLE_END), b"\0") + TABLE_END


def _separator(key: bytes, following: bytes | None) -> bytes:
    """Return LevelDB's short key that is >= `key` and < `following`, its BytewiseComparator's."""
    if following is None:
        same = len(key) - len(key.lstrip(b"\xff"))
        limit = 256
    else:
        same = _shared(key, following)
        limit = following[same]  # there: `following` is greater
    if same < len(key) and key[same] + 1 < limit:
        return key[:same] + bytes([key[same] + 1])
    return key


def _shared(one: bytes, other: bytes) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
