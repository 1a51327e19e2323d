# SPDX-License-Identifier: Apache-2.0
"""Read and write the token store: a tokenised corpus of about 2.2 bytes a token, memory-mapped.

    STORE/manifest.json          written last; its presence says that the store is complete
    STORE/spiece.model           a copy of the vocabulary that the tokens are ids of, or
                                 tokenizer.json or vocab.txt, by its kind
    STORE/SPLIT/NAME.tokens      uint16[T]    ids, one document after another, no special tokens
    STORE/SPLIT/NAME.sentences   uint32[s+1]  where each sentence starts in .tokens; last entry T
    STORE/SPLIT/NAME.documents   uint32[d+1]  where each document starts in .sentences; last entry s

SPLIT is train or heldout. The arrays are raw, little-endian, without headers. No sentence, document
or shard is empty.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from albert_jax.config.manifests import VOCABULARY
from albert_jax.data.store_manifest import (
    DTYPES,
    SPLITS,
    ShardDigests,
    ShardRecord,
    Split,
    StoreFile,
    StoreManifest,
    files_of,
    read_manifest,
)
from albert_jax.data.store_verify import verify_files
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.streams import say

MAX_SHARD_TOKENS = 1 << 28  # 512 MiB of tokens; keeps the offsets well inside uint32


@dataclass(frozen=True)
class Shard:
    """Hold one part of a store as read-only arrays over memory maps."""

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
    """Read a split of a finished store; `TokenStore.open` makes one."""

    def __init__(self, path: Path, split: Split, manifest: StoreManifest, shards: list[Shard]):
        self.path, self.split, self.shards = path, split, shards
        self.record = manifest
        self.vocab_path = path / (manifest.vocabulary.file or VOCABULARY)
        self.vocab_sha256: str = manifest.vocabulary.sha256
        totals = manifest.split(split)
        self.num_tokens: int = totals.tokens
        self.num_sentences: int = totals.sentences
        self.num_documents: int = totals.documents

    @functools.cached_property
    def manifest(self) -> JsonObject:
        """The manifest as JSON values; `record` has it with types."""
        return self.record.to_json()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        split: Split = "train",
        verify: bool = True,
        remedy: str | None = None,
    ) -> TokenStore:
        """Map the shards of one split; a split without documents has no shards.

        The split's files and the vocabulary are read whole and compared with the manifest's
        SHA-256, unless they were found good before and have not changed since. `verify=False` is
        for a process whose parent has verified them. `remedy` is what to do about a damaged store;
        unset, to make it again. Raises UserError if the folder is no finished store or has another
        format version, or a file is damaged, missing or of the wrong size.
        """
        path = Path(path)
        if split not in SPLITS:
            raise UserError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
        remedy = remedy or f"delete {path} and prepare the text again"
        manifest = read_manifest(path, remedy=remedy)
        if manifest is None:
            raise UserError(_no_store(path))
        files = files_of(manifest, [split])
        if verify:
            _say_unsealed(path, manifest)
            verify_files(path, files, remedy=remedy)
        arrays = [_map(path, file, remedy) for file in files if file.kind in DTYPES]
        shards = [
            Shard(record.name, *arrays[3 * i : 3 * i + 3])
            for i, record in enumerate(manifest.split(split).shards)
        ]
        return cls(path, split, manifest, shards)

    def __reduce__(self) -> tuple[Any, ...]:
        # By its path: pickling would copy every mapped array into the message.
        return _reopen, (str(self.path), self.split)

    def check_vocabulary(self, sha256: str) -> None:
        """Raise UserError if the store's ids do not belong to the vocabulary with that SHA-256."""
        if sha256 != self.vocab_sha256:
            raise UserError(
                f"{self.path} was made with another vocabulary (SHA-256 {self.vocab_sha256[:12]}…, "
                f"not {sha256[:12]}…); use {self.vocab_path} or prepare the text again"
            )

    def verify(self) -> None:
        """Read this split and the vocabulary whole, whether or not that was done before.

        Raises UserError, which names the file, if a file is damaged.
        """
        remedy = f"delete {self.path} and prepare the text again"
        files = files_of(self.record, [self.split])
        verify_files(self.path, files, remedy=remedy, remembered=False)


def _reopen(path: str, split: Split) -> TokenStore:
    return TokenStore.open(path, split=split, verify=False)


def _no_store(path: Path) -> str:
    if (path / "progress").is_dir():
        return f"{path} is not complete: prepare was interrupted; run the same command again"
    return f"{path} is no token store (no manifest.json); make one with albert-jax prepare"


_unsealed: set[Path] = set()  # stores of which it has been said


def _say_unsealed(path: Path, manifest: StoreManifest) -> None:
    if manifest.checksum or path in _unsealed:
        return
    _unsealed.add(path)
    say(
        f"{path} was made by an earlier version, whose manifest has no checksum of its own; the "
        "files that it names are verified by theirs"
    )


def _map(store: Path, file: StoreFile, remedy: str) -> np.ndarray:
    try:
        # A plain ndarray over the map: slices of np.memmap itself cost several times as much.
        array = np.asarray(np.memmap(store / file.name, dtype=DTYPES[file.kind], mode="r"))
    except OSError as error:
        raise UserError(
            f"{store / file.name} cannot be read ({error.strerror}); {remedy}"
        ) from None
    except ValueError as error:  # empty, or no multiple of an item
        raise UserError(f"{store / file.name} is damaged ({error}); {remedy}") from None
    if array.nbytes != file.size:
        raise UserError(
            f"{store / file.name} has {array.nbytes:,} bytes where the manifest says "
            f"{file.size:,}; {remedy}"
        )
    return array


class ShardWriter:
    """Append documents to one shard; no file has its final name before `finish`."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.tokens = self.sentences = self.documents = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._digests = {kind: hashlib.sha256() for kind in DTYPES}
        self._streams: dict[str, BinaryIO] = {}
        try:
            for kind in DTYPES:
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
        data = values.astype(DTYPES[kind]).tobytes()
        self._digests[kind].update(data)
        self._streams[kind].write(data)

    def add(
        self, tokens: np.ndarray, sentence_lengths: np.ndarray, document_lengths: np.ndarray
    ) -> None:
        """Append whole documents: ids, tokens a sentence, sentences a document; no length is 0."""
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

    def finish(self) -> ShardRecord:
        """Make the files durable under their final names; return the record for the manifest."""
        for kind, stream in self._streams.items():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            os.replace(self._temporary(kind), self.folder / f"{self.name}.{kind}")
        sync_folder(self.folder)
        digests = {kind: digest.hexdigest() for kind, digest in self._digests.items()}
        counts = (self.tokens, self.sentences, self.documents)
        record = ShardRecord(self.name, *counts, sha256=ShardDigests(**digests), bytes=0)
        return replace(record, bytes=sum(record.sizes().values()))

    def abort(self) -> None:
        """Remove what was written."""
        for kind, stream in self._streams.items():
            with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses
                stream.close()
            self._temporary(kind).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
