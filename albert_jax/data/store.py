# SPDX-License-Identifier: Apache-2.0
"""The token store on disk: a tokenised corpus at about 2.2 bytes a token, read through memory maps.

    STORE/manifest.json          written last; its presence says that the store is complete
    STORE/spiece.model           a copy of the vocabulary that the tokens are ids of
    STORE/SPLIT/NAME.tokens      uint16[T]    ids, one document after another, no special tokens
    STORE/SPLIT/NAME.sentences   uint32[s+1]  where each sentence starts in .tokens; last entry T
    STORE/SPLIT/NAME.documents   uint32[d+1]  where each document starts in .sentences; last entry s

SPLIT is train or heldout. The arrays are raw, little-endian, without headers. No sentence, document
or shard is empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from albert_jax.errors import UserError

FORMAT_VERSION = 1
MAX_VOCAB_SIZE = 65536  # ids are uint16
MAX_SHARD_TOKENS = 1 << 28  # 512 MiB of tokens; keeps the offsets well inside uint32
SPLITS = ("train", "heldout")
Split = Literal["train", "heldout"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<u2"),
    "sentences": np.dtype("<u4"),
    "documents": np.dtype("<u4"),
}


@dataclass(frozen=True)
class Shard:
    """One part of a store as read-only arrays over memory maps, which page in when touched."""

    name: str
    tokens: np.ndarray  # uint16[T]
    sentence_starts: np.ndarray  # uint32[s+1], offsets into tokens
    document_starts: np.ndarray  # uint32[d+1], indices into sentence_starts

    @property
    def num_documents(self) -> int:
        return len(self.document_starts) - 1

    @property
    def num_sentences(self) -> int:
        return len(self.sentence_starts) - 1


class TokenStore:
    """A split of a finished store; make one with `TokenStore.open`."""

    def __init__(self, path: Path, split: Split, manifest: dict[str, Any], shards: list[Shard]):
        self.path, self.split, self.manifest, self.shards = path, split, manifest, shards
        self.vocab_path = path / "spiece.model"
        self.vocab_sha256: str = manifest["vocabulary"]["sha256"]
        totals = manifest["splits"][split]
        self.num_tokens: int = totals["tokens"]
        self.num_sentences: int = totals["sentences"]
        self.num_documents: int = totals["documents"]

    @classmethod
    def open(cls, path: str | Path, *, split: Split = "train") -> TokenStore:
        """Maps the shards of one split; a split without documents has no shards.

        Raises UserError for a folder that is no finished store, for another format version and for
        a file of the wrong size.
        """
        path = Path(path)
        if split not in SPLITS:
            raise UserError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
        manifest = read_manifest(path)
        if manifest is None:
            if (path / "progress").is_dir():
                raise UserError(
                    f"{path} is not complete: prepare was interrupted; run the same command again"
                )
            raise UserError(
                f"{path} is no token store (no manifest.json); make one with albert-jax prepare"
            )
        shards = []
        for record in manifest["splits"][split]["shards"]:
            arrays = [
                _map(path / split / f"{record['name']}.{kind}", kind, size)
                for kind, size in shard_sizes(record).items()
            ]
            shards.append(Shard(record["name"], *arrays))
        return cls(path, split, manifest, shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (
            str(self.path),
            self.split,
        )  # else pickling would copy every mapped array into the message

    def check_vocabulary(self, sha256: str) -> None:
        """Raises UserError where the store's ids are not of the vocabulary with that SHA-256."""
        if sha256 != self.vocab_sha256:
            raise UserError(
                f"{self.path} was made with another vocabulary (SHA-256 {self.vocab_sha256[:12]}…, "
                f"not {sha256[:12]}…); use {self.vocab_path} or prepare the text again"
            )

    def verify(self) -> None:
        """Reads this split and the vocabulary whole; UserError names a file that is damaged."""
        expected = {self.vocab_path: self.vocab_sha256}
        for record in self.manifest["splits"][self.split]["shards"]:
            for kind in _DTYPES:
                expected[self.path / self.split / f"{record['name']}.{kind}"] = record["sha256"][
                    kind
                ]
        for file, sha256 in expected.items():
            if sha256_of(file) != sha256:
                raise UserError(
                    f"{file} is damaged: its SHA-256 is not the manifest's; prepare the store again"
                )


def _reopen(path: str, split: Split) -> TokenStore:
    return TokenStore.open(path, split=split)


def shard_sizes(record: dict[str, Any]) -> dict[str, int]:
    """Bytes of a shard's three files, by its record in the manifest."""
    lengths = (record["tokens"], record["sentences"] + 1, record["documents"] + 1)
    return {
        kind: length * dtype.itemsize
        for (kind, dtype), length in zip(_DTYPES.items(), lengths, strict=True)
    }


def _map(file: Path, kind: str, expected: int) -> np.ndarray:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}); prepare the store again"
        ) from None
    if size != expected:
        raise UserError(
            f"{file} has {size} bytes where the manifest says {expected}; prepare the store again"
        )
    # A plain ndarray over the map: slices of np.memmap itself cost several times as much.
    return np.asarray(np.memmap(file, dtype=_DTYPES[kind], mode="r"))


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a finished store, None where there is none; UserError where it is bad."""
    file = path / "manifest.json"
    try:
        return parse_manifest(file.read_bytes(), str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None


def parse_manifest(data: bytes, name: str) -> dict[str, Any]:
    """The manifest in a file's bytes; UserError, with the file's name, where it is bad."""
    try:
        manifest = json.loads(data)
        version = manifest["format_version"]
        if version == FORMAT_VERSION:
            (
                manifest["vocabulary"]["sha256"],
                *(manifest["splits"][split]["shards"] for split in SPLITS),
            )
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{name} is not a token store's manifest ({error!r}); prepare the store again"
        ) from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{name} is of store format {version}, not {FORMAT_VERSION}; prepare the text again"
        )
    return manifest


def sha256_of(file: Path) -> str:
    """Hex SHA-256 of a file, read in pieces; raises UserError where it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None


class ShardWriter:
    """Appends documents to one shard; nothing carries its final name before `finish`."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.tokens = self.sentences = self.documents = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._digests = {kind: hashlib.sha256() for kind in _DTYPES}
        self._streams: dict[str, BinaryIO] = {}
        try:
            for kind in _DTYPES:
                self._streams[kind] = open(self._temporary(kind), "wb")  # noqa: SIM115 - closed by finish or abort
            self._write("sentences", np.zeros(1))
            self._write("documents", np.zeros(1))
        except OSError:
            self.abort()
            raise

    def _temporary(self, kind: str) -> Path:
        # The process id keeps a worker that outlived a killed run out of the files of the next one.
        return self.folder / f"{self.name}.{kind}.{os.getpid()}.tmp"

    def _write(self, kind: str, values: np.ndarray) -> None:
        data = values.astype(_DTYPES[kind]).tobytes()
        self._digests[kind].update(data)
        self._streams[kind].write(data)

    def add(
        self, tokens: np.ndarray, sentence_lengths: np.ndarray, document_lengths: np.ndarray
    ) -> None:
        """Appends whole documents: ids, tokens a sentence, sentences a document; no length is 0."""
        assert len(tokens) == sentence_lengths.sum(), "sentences do not cover the tokens"
        assert len(sentence_lengths) == document_lengths.sum(), (
            "documents do not cover the sentences"
        )
        self._write("tokens", tokens)
        self._write("sentences", self.tokens + np.cumsum(sentence_lengths, dtype=np.int64))
        self._write("documents", self.sentences + np.cumsum(document_lengths, dtype=np.int64))
        self.tokens += len(tokens)
        self.sentences += len(sentence_lengths)
        self.documents += len(document_lengths)

    def finish(self) -> dict[str, Any]:
        """Makes the files durable under their final names; returns the record for the manifest."""
        for kind, stream in self._streams.items():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            os.replace(self._temporary(kind), self.folder / f"{self.name}.{kind}")
        sync_folder(self.folder)
        record = {
            "name": self.name,
            "tokens": self.tokens,
            "sentences": self.sentences,
            "documents": self.documents,
            "sha256": {kind: digest.hexdigest() for kind, digest in self._digests.items()},
        }
        return record | {"bytes": sum(shard_sizes(record).values())}

    def abort(self) -> None:
        """Removes what was written."""
        for kind, stream in self._streams.items():
            with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses
                stream.close()
            self._temporary(kind).unlink(missing_ok=True)


def json_bytes(value: dict[str, Any]) -> bytes:
    """JSON as a store's files have it."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
