# SPDX-License-Identifier: Apache-2.0
"""Read and write the original's TFRecord shards of pretraining examples, without TensorFlow.

A file is a sequence of frames: length uint64, its checksum, the record, its checksum. A record is a
tf.train.Example: a protocol buffer that maps each feature's name to a list of numbers
(create_pretraining_data.py:131-190).
"""

from __future__ import annotations

import glob
import hashlib
import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import cycle
from pathlib import Path

import google_crc32c
import numpy as np

from albert_jax.data import loader
from albert_jax.data.loader import KEYS
from albert_jax.utils.atomic import appearing_file
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import json_sha256
from albert_jax.utils.tf_protos import DecodeError, Example

# Name in the file -> name of the array. The label is the sentence order's in spite of its name.
_FEATURES = {
    "input_ids": "input_ids",
    "input_mask": "input_mask",
    "segment_ids": "segment_ids",
    "token_boundary": "token_boundary",
    "masked_lm_positions": "masked_lm_positions",
    "masked_lm_ids": "masked_lm_ids",
    "masked_lm_weights": "masked_lm_weights",
    "next_sentence_labels": "sentence_order_labels",
}
_NAMES = {key: name for name, key in _FEATURES.items()}
_SAME_LENGTH = (
    ("input_ids", "input_mask", "segment_ids", "token_boundary"),
    ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights"),
)

_NO_NUMBERS = np.empty(0, np.int64)
_LIMITS = {  # the largest number of each feature; ids are compared with the vocabulary too
    "input_ids": 2**31 - 1,
    "input_mask": 1,
    "segment_ids": 1,
    "token_boundary": 1,
    "masked_lm_ids": 2**31 - 1,
    "next_sentence_labels": 1,
}
MAX_RECORD_BYTES = (
    1 << 22
)  # decoding takes some forty times a record's bytes; one of 512 tokens: 5 kB

_HEAD = struct.Struct("<QI")
_CRC = struct.Struct("<I")


# ----------------------------------------------------------------------------------------- protobuf


def encode_example(features: Mapping[str, np.ndarray]) -> bytes:
    """Return a tf.train.Example of int64 and float features, in the given order."""
    message = Example()
    for name, values in features.items():
        entry = message.features.feature.add(key=name.encode())
        if values.dtype.kind == "f":
            entry.value.float_list.value.extend(values.ravel().tolist())
        else:
            entry.value.int64_list.value.extend(values.astype(np.int64).ravel().tolist())
    encoded: bytes = message.SerializeToString()
    return encoded


def decode_example(record: bytes) -> dict[str, np.ndarray]:
    """Return the int64 and float32 features of a tf.train.Example in the file's order.

    Raises ValueError for bytes that are no such message; features of bytes are left out.
    """
    features = {}
    try:
        message = Example.FromString(record)
    except DecodeError:
        raise ValueError("no protobuf message") from None
    for entry in message.features.feature:
        if entry.value.HasField("int64_list"):
            features[entry.key.decode()] = np.array(entry.value.int64_list.value, np.int64)
        elif entry.value.HasField("float_list"):
            features[entry.key.decode()] = np.array(entry.value.float_list.value, np.float32)
    return features


# ------------------------------------------------------------------------------------------- frames


def _checksum(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _damaged(path: Path, number: int, offset: int, what: str) -> UserError:
    return UserError(
        f"{path} is damaged at record {number}, byte {offset}: {what}; fetch or make the file again"
    )


class _RecordFile:
    """Read a TFRecord file as a sequence of examples."""

    def __init__(self, path: Path):
        """Find the frames; raises UserError if they are damaged or there are none."""
        self.path = path
        try:
            size = path.stat().st_size
            if not size:
                raise UserError(f"{path} is empty; leave it out or make it again")
            data = _mapped(self)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        offsets: list[int] = []
        content, at = hashlib.sha256(), 0
        while at < size:
            if at + _HEAD.size > size:
                raise _damaged(path, len(offsets), at, "the file ends within it")
            length, crc = _HEAD.unpack_from(data, at)
            if crc != _checksum(data[at : at + 8]):
                if not at and data[:2] == b"\x1f\x8b":
                    raise UserError(
                        f"{path} is compressed, which bars random access; run gunzip on it"
                    )
                raise _damaged(path, len(offsets), at, "the checksum of its length is wrong")
            if length > MAX_RECORD_BYTES:
                what = f"it claims {length:,} bytes, and an example has some thousand"
                raise _damaged(path, len(offsets), at, what)
            offsets.append(at)
            at += _HEAD.size + length + _CRC.size
            content.update(data[at - _CRC.size : at])
        if at != size:
            raise _damaged(path, len(offsets) - 1, offsets[-1], "the file ends within it")
        self.offsets = np.array(offsets, np.int64)
        self.sha256 = content.hexdigest()  # of the records' checksums, which the scan passes by

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> loader.Example:
        """Return one example in the file's order of features.

        Raises UserError if it is damaged.
        """
        at = int(self.offsets[number])
        data = _mapped(self)
        start = at + _HEAD.size
        stop = start + _HEAD.unpack_from(data, at)[0]
        record = data[start:stop]
        if _CRC.unpack_from(data, stop)[0] != _checksum(record):
            raise _damaged(self.path, number, at, "its checksum is wrong")
        try:
            features = decode_example(record)
        except ValueError as error:
            what = f"it is no tf.train.Example ({error})"
            raise _damaged(self.path, number, at, what) from None
        return _as_example(features, f"{self.path}, record {number},")


@lru_cache(256)  # a map holds a file descriptor, and a corpus may have thousands of files
def _mapped(file: _RecordFile) -> mmap.mmap:
    with open(file.path, "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _as_example(features: dict[str, np.ndarray], where: str) -> loader.Example:
    """Return a record's features under a batch's names.

    Raises UserError for another kind of record.
    """
    if problem := _problem(features):
        raise UserError(
            f"{where} is no pretraining example: {problem}; give files that "
            "create_pretraining_data.py wrote"
        )
    example = {
        _FEATURES[name]: values if values.dtype.kind == "f" else values.astype(np.int32)
        for name, values in features.items()
        if name in _FEATURES
    }
    example["sentence_order_labels"] = example["sentence_order_labels"].reshape(())
    return example


def _problem(features: dict[str, np.ndarray]) -> str:
    """Return why a record's features are no example, or ""."""
    if lacking := [_NAMES[key] for key in KEYS if _NAMES[key] not in features]:
        return f"it lacks {', '.join(lacking)}"
    for name in features.keys() & _FEATURES.keys():
        kind = "f" if name == "masked_lm_weights" else "i"
        if features[name].dtype.kind != kind:
            return f"its {name} are {'floats' if kind == 'i' else 'whole numbers'}"
    for names in _SAME_LENGTH:
        lengths = {name: len(features[name]) for name in names if name in features}
        if len(set(lengths.values())) > 1:
            return f"it has features of unlike lengths ({lengths})"
        if 0 in lengths.values():
            return f"its {names[0]} are empty"
    if len(features["next_sentence_labels"]) != 1:
        return "it has no single label"
    limits = _LIMITS | {"masked_lm_positions": len(features["input_ids"]) - 1}
    for name, most in limits.items():
        values = features.get(name, _NO_NUMBERS)
        if len(values) and not 0 <= values.min() <= values.max() <= most:
            wrong = values[(values < 0) | (values > most)][0]
            return f"it has {wrong} among its {name}, which lie from 0 to {most}"
    if not np.all(np.isfinite(features["masked_lm_weights"])):
        return "it has masked_lm_weights that are no numbers"
    return ""


def record_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the files that paths, folders and patterns such as `shards/*.tfrecord` name.

    They are sorted within each. Raises UserError for one that names nothing.
    """
    files: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_file():
            files.append(path)
            continue
        found = sorted(path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path))))
        found = [file for file in found if file.is_file() and not file.name.startswith((".", "_"))]
        if not found:
            raise UserError(f"{path} names no TFRecord file")
        files += found
    return files


def read_examples(paths: str | Path | Iterable[str | Path]) -> Iterator[loader.Example]:
    """Yield the examples in the files' order.

    Their arrays are int32[S], int32[P], float32[P] and a scalar label, and token_boundary if the
    file has it. Raises UserError as RecordSource does.
    """
    for path in record_files(paths):
        file = _RecordFile(path)
        for number in range(len(file)):
            yield file[number]


def write_records(
    paths: str | Path | Sequence[str | Path], examples: Iterable[loader.Example]
) -> int:
    """Write examples to the files in turn, as the original does; returns their number.

    Of an example (`PretrainingSource.draw`), the arrays that the original writes are written, in
    the example's order. Therefore examples of `read_examples` are written back byte for byte. The
    files appear whole, so that the examples may come from them, and an error changes none.
    """
    count = 0
    with ExitStack() as stack:
        temporary = [
            stack.enter_context(appearing_file(Path(path)))
            for path in ([paths] if isinstance(paths, str | Path) else paths)
        ]
        if not temporary:
            raise UserError("paths is empty; give a file to write")
        # Closed before they appear, as the innermost.
        files = [stack.enter_context(open(path, "wb")) for path in temporary]
        for file, example in zip(cycle(files), examples, strict=False):
            names = ((_NAMES[key], values) for key, values in example.items() if key in _NAMES)
            record = encode_example(dict(names))
            length = struct.pack("<Q", len(record))
            file.write(length + _CRC.pack(_checksum(length)))
            file.write(record + _CRC.pack(_checksum(record)))
            count += 1
    return count


# ------------------------------------------------------------------------------------------- source


class RecordSource:
    """Give the examples of TFRecord files, masked as they were written: `source[i]` for any i."""

    def __init__(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        seed: int,
        shuffle: bool = True,
        vocab_size: int | None = None,
    ):
        """Find where every record starts, in every file.

        Raises UserError for a damaged file and for files with different lengths. Reading a record
        with ids that are not below `vocab_size` raises UserError too.
        """
        self.files = [_RecordFile(path) for path in record_files(paths)]
        self.seed, self.shuffle, self.vocab_size = seed, shuffle, vocab_size
        self._first_record = np.cumsum([0, *map(len, self.files)])
        self._order: tuple[int, np.ndarray] | None = None
        first = self.files[0][0]
        self.max_seq_length = len(first["input_ids"])
        self.max_predictions_per_seq = len(first["masked_lm_positions"])
        for file in self.files:
            self._check(file, 0, file[0])

    def _check(self, file: _RecordFile, number: int, example: loader.Example) -> None:
        lengths = len(example["input_ids"]), len(example["masked_lm_positions"])
        expected = self.max_seq_length, self.max_predictions_per_seq
        if lengths != expected:
            raise UserError(
                f"{file.path}, record {number}, has {lengths[0]} tokens and {lengths[1]} "
                f"predictions, {self.files[0].path} {expected[0]} and {expected[1]} in a row; use "
                "files of one kind"
            )
        if self.vocab_size is not None:
            largest = max(int(example[key].max()) for key in ("input_ids", "masked_lm_ids"))
            if largest >= self.vocab_size:
                raise UserError(
                    f"{file.path}, record {number}, has the id {largest}, but the vocabulary has "
                    f"{self.vocab_size} pieces; use the vocabulary that the file was made with"
                )

    @property
    def sha256(self) -> str:
        """Return a digest of the records in their order, wherever their files lie."""
        return json_sha256([file.sha256 for file in self.files])

    def __len__(self) -> int:
        """Return the number of records in all files, which is every epoch's size."""
        return int(self._first_record[-1])

    def epoch_size(self, epoch: int) -> int:
        """Return the number of examples in an epoch."""
        return len(self)

    def ended_epochs(self, index: int) -> list[int]:
        """Return nothing, because all epochs have the same size."""
        return []

    def remember_epochs(self, sizes: list[int]) -> None:
        """Do nothing."""

    def epoch_of(self, index: int) -> tuple[int, int]:
        """Return an example's epoch, and its index in the epoch."""
        if index < 0:
            raise IndexError(index)
        return divmod(index, len(self))

    def __getitem__(self, index: int) -> loader.Example:
        """Return the arrays of one example: [S], [P] and a scalar label."""
        example = self.draw(index)
        return {key: example[key] for key in KEYS}

    def draw(self, index: int) -> loader.Example:
        """Return `self[index]` with token_boundary int32[S], if the file has it."""
        epoch, number = self.epoch_of(index)
        if self.shuffle:
            number = int(self._permutation(epoch)[number])
        at = int(np.searchsorted(self._first_record, number, side="right")) - 1
        file, number = self.files[at], number - int(self._first_record[at])
        example = file[number]
        self._check(file, number, example)
        return example

    def _permutation(self, epoch: int) -> np.ndarray:
        kept = self._order  # one reference, so that threads never see half of another epoch
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            kept = self._order = epoch, rng.permutation(len(self))
        return kept[1]
