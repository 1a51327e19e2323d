# SPDX-License-Identifier: Apache-2.0
"""Define a store's manifest.json: its types, its own checksum, and the files that it names.

Format revision 1 added the checksum. Nothing else changed, so that older readers read newer stores
(`format_version` is the same) and a store of revision 0 still opens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from albert_jax.config.manifests import VOCABULARY, Mode
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import decode_json
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.results import Result

FORMAT_VERSION = 1
FORMAT_REVISION = 1
MAX_VOCAB_SIZE = 65536  # ids are uint16
Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
CHECKSUM = "checksum"  # the SHA-256 of an object's other keys

DTYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<u2"),
    "sentences": np.dtype("<u4"),
    "documents": np.dtype("<u4"),
}

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
ShardCount = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]  # offsets are uint32
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
ShardName = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{5,9}(-[0-9]{3,9})?\Z")]  # becomes a path


@dataclass(frozen=True)
class ShardDigests:
    """Hold the SHA-256 of a shard's three files."""

    tokens: Sha256
    sentences: Sha256
    documents: Sha256


@dataclass(frozen=True)
class ShardRecord:
    """Describe one shard by the contents of its three files."""

    name: ShardName
    tokens: ShardCount
    sentences: ShardCount
    documents: ShardCount
    sha256: ShardDigests
    bytes: Count

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each of the three files."""
        lengths = (self.tokens, self.sentences + 1, self.documents + 1)
        return {
            kind: length * dtype.itemsize
            for (kind, dtype), length in zip(DTYPES.items(), lengths, strict=True)
        }


@dataclass(frozen=True)
class SplitRecord:
    """Describe one split: totals over its shards, the scores of a unigram model, the shards."""

    tokens: Count
    sentences: Count
    documents: Count
    bytes: Count
    unigram_entropy_nats: float | None
    most_frequent_token_id: int | None
    most_frequent_token_rate: float | None
    shards: list[ShardRecord]


@dataclass(frozen=True)
class Splits:
    """Describe the two splits; one without documents has no shards."""

    train: SplitRecord
    heldout: SplitRecord


@dataclass(frozen=True)
class StoreVocabulary:
    """Describe the vocabulary of the tokens, and how it cleans text."""

    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=5, le=MAX_VOCAB_SIZE)]
    mode: Mode
    do_lower_case: bool
    keep_accents: bool | None = None  # not written if it is the mode's default
    file: Literal["tokenizer.json", "vocab.txt"] | None = None  # not written for spiece.model

    def to_json(self) -> JsonObject:
        """Return the JSON object that the manifest has."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Input:
    """Describe a file that was read."""

    path: str
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold all that a store's bytes depend on, besides its inputs; STORE/progress/settings.json."""

    format_version: int
    vocabulary: StoreVocabulary
    reading: JsonObject
    holdout: float
    made_with: dict[str, str]

    def to_json(self) -> JsonObject:
        """Return the JSON object that the file holds."""
        return dataclasses.asdict(self) | {"vocabulary": self.vocabulary.to_json()}


@dataclass(frozen=True, kw_only=True)
class StoreManifest(Settings):
    """Hold the contents of STORE/manifest.json."""

    counts: dict[str, Count]
    splits: Splits
    inputs: list[Input]
    format_revision: int = 0
    checksum: Sha256 | None = None

    def split(self, name: str) -> SplitRecord:
        """Return one split's record."""
        record: SplitRecord = getattr(self.splits, name)
        return record

    def settings(self) -> JsonObject:
        """Return the part that is `Settings`, as JSON."""
        return {key: value for key, value in self.to_json().items() if key in SETTINGS}

    def to_json(self) -> JsonObject:
        values = super().to_json()
        if not self.format_revision:  # as version 0.1 wrote it
            del values["format_revision"]
        if self.checksum is None:
            del values[CHECKSUM]
        return values


SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedStore(Result):
    """Hold what `prepare` made; its JSON object is that of the store's manifest.

    Attributes:
        manifest: the contents of manifest.json.
    """

    manifest: StoreManifest

    def to_json(self) -> JsonObject:
        """Return the manifest's JSON object."""
        return self.manifest.to_json()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PreparedStore:
        """Return the store whose manifest is this JSON object."""
        return cls(manifest=msgspec.convert(document, StoreManifest))

    def shown(self) -> Mapping[str, Any]:
        """Return the vocabulary, and the size of each split."""
        splits: dict[str, JsonObject] = {}
        for name in SPLITS:
            values = dataclasses.asdict(self.manifest.split(name))
            splits[name] = {key: x for key, x in values.items() if key != "shards"}
        return {"vocabulary": dataclasses.asdict(self.manifest.vocabulary), **splits}


# --------------------------------------------------------------------------------------- checksums


def sealed(document: Mapping[str, Any]) -> JsonObject:
    """Return a JSON object with a checksum of its other keys, whatever their order."""
    values = {key: value for key, value in document.items() if key != CHECKSUM}
    return values | {CHECKSUM: _checksum(values)}


def is_sealed(document: Mapping[str, Any]) -> bool:
    """Return whether a JSON object carries the checksum of its other keys."""
    return document.get(CHECKSUM) == _checksum(document)


def _checksum(document: Mapping[str, Any]) -> str:
    values = {key: value for key, value in document.items() if key != CHECKSUM}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return JSON in the format of a store's files."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


# ----------------------------------------------------------------------------------------- reading


def read_manifest(path: Path, *, remedy: str | None = None) -> StoreManifest | None:
    """Return the manifest of a finished store, or None if there is none.

    Raises UserError if it is bad. `remedy` is what to do then; unset, to make the store again.
    """
    file = path / "manifest.json"
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    remedy = remedy or f"delete {path} and prepare the text again"
    return parse_manifest(data, str(file), remedy=remedy)


def parse_manifest(data: bytes, name: str, *, remedy: str) -> StoreManifest:
    """Return the manifest in a file's bytes.

    Raises UserError, with the file's name and the remedy, if it is no manifest, has another format
    version, does not have the checksum that it carries, or contradicts itself.
    """
    document = decode_json(data, JsonObject, name=name, hint=remedy)
    version = document.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise UserError(
            f"{name} is of store format {version}, not {FORMAT_VERSION}; prepare the text again"
        )
    manifest = decode_json(data, StoreManifest, name=name, hint=remedy)
    if (manifest.format_revision or manifest.checksum) and not is_sealed(document):
        raise UserError(f"{name} is damaged: it does not have the checksum it carries; {remedy}")
    if problem := _contradiction(manifest):
        raise UserError(f"{name} is damaged: {problem}; {remedy}")
    return manifest


def _contradiction(manifest: StoreManifest) -> str:
    for split in SPLITS:
        record = manifest.split(split)
        if len({shard.name for shard in record.shards}) < len(record.shards):
            return f"{split} names a shard twice"
        for key in ("tokens", "sentences", "documents", "bytes"):
            total = sum(getattr(shard, key) for shard in record.shards)
            if total != getattr(record, key):
                return f"the shards of {split} have {total:,} {key}, not {getattr(record, key):,}"
        for shard in record.shards:
            if not shard.tokens >= shard.sentences >= shard.documents:
                return (
                    f"shard {split}/{shard.name} has {shard.documents:,} documents of "
                    f"{shard.sentences:,} sentences of {shard.tokens:,} tokens"
                )
            if shard.bytes != sum(shard.sizes().values()):
                return f"shard {split}/{shard.name} does not have {shard.bytes:,} bytes"
    return ""


# ------------------------------------------------------------------------------ the files it names


@dataclass(frozen=True)
class StoreFile:
    """Describe a file that a manifest names, and its contents."""

    name: str  # relative to the store
    kind: Literal["vocabulary", "tokens", "sentences", "documents"]
    size: int | None  # bytes; None: the manifest does not say
    sha256: str
    end: int = 0  # ids are below it; the last offset is it


def files_of(manifest: StoreManifest, splits: Iterable[str] = SPLITS) -> list[StoreFile]:
    """Return the vocabulary and the files of some splits, from the manifest."""
    files = [
        StoreFile(
            manifest.vocabulary.file or VOCABULARY, "vocabulary", None, manifest.vocabulary.sha256
        )
    ]
    for split in splits:
        for shard in manifest.split(split).shards:
            sizes = shard.sizes()
            prefix = f"{split}/{shard.name}"
            for kind, end in (
                ("tokens", manifest.vocabulary.size),
                ("sentences", shard.tokens),
                ("documents", shard.sentences),
            ):
                digest = getattr(shard.sha256, kind)
                files.append(StoreFile(f"{prefix}.{kind}", kind, sizes[kind], digest, end))  # type: ignore[arg-type]
    return files
