# SPDX-License-Identifier: Apache-2.0
"""Prepare one unit: some pieces of the inputs become its shards and a record, durable or absent.

A unit's bytes depend only on its pieces and the job, not on the process or on other units.
Therefore any number of processes, and any number of kills, give the same store.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from albert_jax.config.manifests import TextSettings
from albert_jax.data.prepare.storage import open_place
from albert_jax.data.store import MAX_SHARD_TOKENS, ShardWriter
from albert_jax.data.store_manifest import (
    SPLITS,
    Count,
    ShardRecord,
    Split,
    is_sealed,
    json_bytes,
    sealed,
)
from albert_jax.data.text.documents import cut_piece, read_piece
from albert_jax.data.text.lines import Piece, Reading
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import decode_json
from albert_jax.utils.json_values import JsonObject

BATCH_CHARS, BATCH_SENTENCES = 1 << 19, 1 << 14  # gathered, and tokenised at once
MIN_UNIT_BYTES = 1 << 20
GZ_RATIO = 3  # the compression of English text by gzip, roughly; only balances the sizes of units


@dataclass(frozen=True)
class Job:
    """Hold what all units share."""

    store: str
    reading: Reading
    vocabulary: str  # its file's name in the store
    # A Beam worker caches a job's tokenizer by the job's hash, which leaves out a dict.
    cleaning: TextSettings = field(hash=False)
    holdout: float
    fixed: tuple[int, int] | None  # hashes of one document that is held out and one that is not
    settings: str  # all that a finished unit depends on beside its pieces and `fixed`, as JSON

    def load_tokenizer(self) -> Tokenizer:
        with open_place(self.store).fetched(self.vocabulary) as file:
            return Tokenizer.load(file, **self.cleaning)


@dataclass(frozen=True)
class Unit:
    """Hold the pieces that become one shard of each split (several if a gz file is huge)."""

    index: int
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        return f"{self.index:05d}"

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)

    def key(self, job: Job) -> str:
        """Return a digest of all that the unit's bytes depend on, and of files' time stamps."""
        pieces = [asdict(piece) for piece in self.pieces]
        content = json.dumps([job.settings, job.fixed, pieces])
        return hashlib.sha256(content.encode()).hexdigest()


def plan_units(pieces: Sequence[Piece], reading: Reading) -> list[Unit]:
    """Cut large inputs and group small ones; depends on the inputs, not on the machine."""

    def weight(piece: Piece) -> int:
        return piece.bytes * (GZ_RATIO if piece.kind == "gzip" else 1)

    total = sum(map(weight, pieces))
    # 256 units keep many processes busy. A kill loses 64 MiB, which is half a minute. Above half a
    # terabyte the number of files is limited instead.
    target = max(MIN_UNIT_BYTES, min(total // 256, 1 << 26), total // 8192)
    units: list[Unit] = []
    gathered: list[Piece] = []
    for piece in itertools.chain.from_iterable(cut_piece(p, target, reading) for p in pieces):
        if gathered and sum(map(weight, gathered)) + weight(piece) // 2 > target:
            units.append(Unit(len(units), tuple(gathered)))
            gathered = []
        gathered.append(piece)
    return [*units, Unit(len(units), tuple(gathered))]


@dataclass(frozen=True)
class UnitSplit:
    """Hold what a unit has in one split."""

    shards: list[ShardRecord]
    token_counts: str  # int64[vocabulary], zlib in base64

    def counts(self) -> np.ndarray:
        """Return the number of times that each token occurs, int64[vocabulary]."""
        return np.frombuffer(zlib.decompress(base64.b64decode(self.token_counts)), "<i8")


@dataclass(frozen=True)
class UnitSplits:
    """Hold what a unit has in the two splits."""

    train: UnitSplit
    heldout: UnitSplit


@dataclass(frozen=True)
class UnitRecord:
    """Describe a finished unit; STORE/progress/UNIT.json."""

    key: str
    splits: UnitSplits
    counts: dict[str, Count]

    def split(self, name: str) -> UnitSplit:
        """Return what the unit has in one split."""
        part: UnitSplit = getattr(self.splits, name)
        return part

    def files(self) -> dict[str, int]:
        """Return the unit's files, with their bytes."""
        return {
            f"{split}/{shard.name}.{kind}": size
            for split in SPLITS
            for shard in self.split(split).shards
            for kind, size in shard.sizes().items()
        }


# -------------------------------------------------------------------------------------- the split


def document_hash(document: Sequence[str]) -> int:
    """Return 64 bits of the document's text, so that copies of a document get the same split."""
    text = "\n".join(document).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=b"held out").digest(), "little")


def split_of(document: Sequence[str], holdout: float, fixed: tuple[int, int] | None) -> Split:
    """Return the split of a document, from its text alone."""
    if fixed is None:
        return "train"
    value = document_hash(document)
    if value in fixed:
        return "heldout" if value == fixed[0] else "train"
    return "heldout" if value < holdout * 2**64 else "train"


# --------------------------------------------------------------------------------------- the work


class _SplitWriter:
    """Collect the documents of one split of a unit into batches, tokenise and write them."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer):
        self.folder, self.name, self.tokenizer = folder, name, tokenizer
        self.records: list[ShardRecord] = []
        self.counts = np.zeros(tokenizer.vocab_size, np.int64)
        self.writer: ShardWriter | None = None
        self.batch: list[list[str]] = []
        self.chars = self.sentences = 0

    def add(self, document: list[str]) -> None:
        self.batch.append(document)
        self.chars += sum(map(len, document))
        self.sentences += len(document)
        if self.chars >= BATCH_CHARS or self.sentences >= BATCH_SENTENCES:
            self.flush()

    def flush(self) -> None:
        tokens, sentence_lengths, document_lengths = tokenize(self.batch, self.tokenizer)
        self.batch, self.chars, self.sentences = [], 0, 0
        if not len(tokens):
            return
        self.counts += np.bincount(tokens, minlength=len(self.counts))
        if self.writer and self.writer.tokens + len(tokens) > MAX_SHARD_TOKENS:
            self._end_shard()
        if self.writer is None:
            part = f"-{len(self.records):03d}" if self.records else ""
            self.writer = ShardWriter(self.folder, self.name + part)
        self.writer.add(tokens, sentence_lengths, document_lengths)

    def _end_shard(self) -> None:
        if self.writer:
            self.records.append(self.writer.finish())
            self.writer = None

    def finish(self) -> UnitSplit:
        self.flush()
        self._end_shard()
        counts = zlib.compress(self.counts.astype("<i8").tobytes(), 1)
        return UnitSplit(self.records, base64.b64encode(counts).decode())

    def abort(self) -> None:
        if self.writer:
            self.writer.abort()


def tokenize(
    documents: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids uint16, tokens a sentence, sentences a document; empty ones are left out."""
    parts = [np.empty(0, np.uint16)]
    lengths = [np.empty(0, np.int64)]
    for some in _batches(itertools.chain.from_iterable(documents)):
        ids = tokenizer.encode_ids(some)
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        total = int(lengths[-1].sum())
        parts.append(np.fromiter(itertools.chain.from_iterable(ids), np.uint16, total))
    tokens, sentence_lengths = np.concatenate(parts), np.concatenate(lengths)
    document_of = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    document_lengths = np.bincount(document_of[sentence_lengths > 0], minlength=len(documents))
    return tokens, sentence_lengths[sentence_lengths > 0], document_lengths[document_lengths > 0]


def _batches(sentences: Iterable[str]) -> Iterator[list[str]]:
    """Yield sentences in batches, to limit the memory of their ids, 36 bytes each in Python."""
    batch: list[str] = []
    chars = 0
    for sentence in sentences:
        batch.append(sentence)
        chars += len(sentence)
        if chars >= BATCH_CHARS or len(batch) >= BATCH_SENTENCES:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def prepare_unit(unit: Unit, job: Job, tokenizer: Tokenizer, tick: Callable[[int], None]) -> None:
    """Write the unit's shards and then its record; if it fails, nothing of them remains.

    `tick` is called with input bytes read. Raises UserError for bad input and OSError for a full
    disk.
    """
    place = open_place(job.store)
    counts: Counter[str] = Counter()
    with place.workspace() as folder:
        writers = {split: _SplitWriter(folder / split, unit.name, tokenizer) for split in SPLITS}
        try:
            for piece in unit.pieces:
                for document in read_piece(piece, job.reading, counts=counts, tick=tick):
                    writers[split_of(document, job.holdout, job.fixed)].add(document)
            splits = UnitSplits(**{split: writer.finish() for split, writer in writers.items()})
            record = UnitRecord(unit.key(job), splits, dict(sorted(counts.items())))
            place.keep(folder, record.files())
            place.write(record_file(unit), json_bytes(sealed(asdict(record))))
        except BaseException:
            for writer in writers.values():
                writer.abort()
            raise


def record_file(unit: Unit) -> str:
    """Return the name of a unit's record in the store."""
    return f"progress/{unit.name}.json"


def read_unit_records(units: Sequence[Unit], job: Job) -> list[UnitRecord | None]:
    """Return the records of finished units of these settings and inputs, with all their files.

    None stands for the other units.
    """
    place = open_place(job.store)
    texts = place.read(record_file(unit) for unit in units)
    sizes = {
        f"{split}/{name}": size for split in SPLITS for name, size in place.entries(split).items()
    }

    def read(unit: Unit) -> UnitRecord | None:
        record = _parse_record(texts.get(record_file(unit), b""))
        if record and record.key == unit.key(job) and record.files().items() <= sizes.items():
            return record
        return None

    return [read(unit) for unit in units]


def _parse_record(data: bytes) -> UnitRecord | None:
    """Return a record, or None if it is damaged; then the unit is made again."""
    with contextlib.suppress(UserError):
        if is_sealed(decode_json(data, JsonObject, name="", hint="")):
            return decode_json(data, UnitRecord, name="", hint="")
    return None
