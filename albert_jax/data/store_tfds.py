# SPDX-License-Identifier: Apache-2.0
"""Convert a token store to a TFDS data set, with an example for each document, in order.

Its files are ArrayRecord, made and read without TensorFlow. The module imports tensorflow-datasets,
which takes seconds; nothing else in the package imports this module.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.sequential_writer import SequentialWriter

from albert_jax.data.store import TokenStore
from albert_jax.data.store_manifest import SPLITS

SHARD_EXAMPLES = 1 << 16
BATCH_EXAMPLES = 256  # written at once


class AlbertTokenStore(FileReaderBuilder):  # type: ignore[misc]
    """Build the data set `albert_token_store/DIGEST`, where DIGEST is the store's.

    An example has `tokens` uint16[T], ids without special tokens, and `sentence_lengths` uint32[s],
    tokens of each sentence. The splits are the store's, train and heldout, if they have documents.
    Raises UserError for a folder that is no finished store.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, store: str | Path, **kwargs: Any):
        """Open the folder `store`; `data_dir` and the others are TFDS's arguments."""
        self._stores: dict[str, TokenStore] = {
            split: TokenStore.open(store, split=split) for split in SPLITS
        }
        manifest = json.dumps(self._stores["train"].manifest["splits"], sort_keys=True)
        # Of two stores in one data_dir none is taken for the other.
        digest = hashlib.sha256(manifest.encode()).hexdigest()[:12]
        config = tfds.core.BuilderConfig(name=digest)
        kwargs = {"config": config, "file_format": "array_record"} | kwargs
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.uint16),
            "sentence_lengths": tfds.features.Tensor(shape=(None,), dtype=np.uint32),
        }
        vocabulary = self._stores["train"].manifest["vocabulary"]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Documents of a token store made by albert-jax prepare.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(vocabulary=vocabulary),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        # Not TFDS's own writer, which sorts a split of more than 1 GB in files with TensorFlow.
        info = self._info()  # of the temporary folder that data_dir is until all is written
        writer = SequentialWriter(info, SHARD_EXAMPLES, file_format="array_record")
        for split, store in self._stores.items():
            if not store.num_documents:
                continue  # TFDS has no split without examples
            writer.initialize_splits([split])
            documents = _documents(store)
            while batch := list(itertools.islice(documents, BATCH_EXAMPLES)):
                writer.add_examples({split: batch})
            writer.close_splits([split])
        self.info.set_splits(info.splits)


def _documents(store: TokenStore) -> Iterator[dict[str, np.ndarray]]:
    for shard in store.shards:
        for document in range(shard.num_documents):
            first, last = shard.document_starts[document : document + 2].tolist()
            starts = shard.sentence_starts[first : last + 1]
            tokens = np.asarray(shard.tokens[starts[0] : starts[-1]])
            yield {"tokens": tokens, "sentence_lengths": np.diff(starts)}
