# SPDX-License-Identifier: Apache-2.0
"""The token store on disk: what is written comes back, damage is named, nothing is half-written."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from albert_jax.data.store import ShardWriter, TokenStore, json_bytes, sha256_of
from albert_jax.errors import UserError

DOCUMENTS = [[[5, 6, 7], [8]], [[9, 65535]], [[1], [2], [3, 4]]]


def write_store(path: Path, documents: list[list[list[int]]]) -> None:
    """A store of one shard, all of it for training; the documents come in two batches."""
    writer = ShardWriter(path / "train", "00000")
    for batch in (documents[:1], documents[1:]):
        sentences = [sentence for document in batch for sentence in document]
        writer.add(
            np.array([token for sentence in sentences for token in sentence]),
            np.array([len(sentence) for sentence in sentences]),
            np.array([len(document) for document in batch]),
        )
    shard = writer.finish()
    (path / "spiece.model").write_bytes(b"a vocabulary")
    totals = {key: shard[key] for key in ("tokens", "sentences", "documents", "bytes")}
    manifest = {
        "format_version": 1,
        "vocabulary": {"sha256": sha256_of(path / "spiece.model")},
        "splits": {
            "train": totals | {"shards": [shard]},
            "heldout": dict.fromkeys(totals, 0) | {"shards": []},
        },
    }
    (path / "manifest.json").write_bytes(json_bytes(manifest))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", DOCUMENTS)
    return tmp_path / "store"


def documents_of(store: TokenStore) -> list[list[list[int]]]:
    """By the documented layout, slice by slice."""
    found = []
    for shard in store.shards:
        for d in range(shard.num_documents):
            first, last = shard.document_starts[d], shard.document_starts[d + 1]
            found.append(
                [
                    shard.tokens[shard.sentence_starts[s] : shard.sentence_starts[s + 1]].tolist()
                    for s in range(first, last)
                ]
            )
    return found


def test_documents_come_back_and_counts_agree(store):
    opened = TokenStore.open(store)
    opened.verify()
    assert documents_of(opened) == DOCUMENTS
    assert (opened.num_tokens, opened.num_sentences, opened.num_documents) == (10, 6, 3)
    assert opened.shards[0].tokens.dtype == np.uint16
    assert not opened.shards[0].tokens.flags.writeable
    assert TokenStore.open(store, split="heldout").shards == []


def test_two_bytes_a_token_and_four_an_offset(store):
    size = sum(file.stat().st_size for file in (store / "train").iterdir())
    assert size == 2 * 10 + 4 * (6 + 1) + 4 * (3 + 1)


def test_a_pickled_store_carries_its_path_and_not_its_tokens(tmp_path):
    write_store(tmp_path / "store", [[[7] * 50_000]])
    opened = TokenStore.open(tmp_path / "store")
    message = pickle.dumps(opened)
    assert len(message) < 1000
    assert documents_of(pickle.loads(message)) == [[[7] * 50_000]]


@pytest.mark.parametrize("name", ["00000.tokens", "00000.sentences", "00000.documents"])
def test_every_flipped_bit_is_found_and_the_file_named(store, name):
    file = store / "train" / name
    whole = file.read_bytes()
    opened = TokenStore.open(store)
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=f"{name} is damaged"):
                opened.verify()
    file.write_bytes(whole)
    opened.verify()


@pytest.mark.parametrize("name", ["00000.tokens", "00000.sentences", "00000.documents"])
def test_a_cut_or_missing_file_is_named_on_opening(store, name):
    file = store / "train" / name
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{name} has .* bytes where the manifest says"):
        TokenStore.open(store)
    file.unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        TokenStore.open(store)


def test_another_vocabulary_is_refused(store):
    opened = TokenStore.open(store)
    opened.check_vocabulary(sha256_of(store / "spiece.model"))
    with pytest.raises(UserError, match="made with another vocabulary"):
        opened.check_vocabulary("0" * 64)
    (store / "spiece.model").write_bytes(b"another one")
    with pytest.raises(UserError, match=r"spiece\.model is damaged"):
        opened.verify()


def test_what_is_no_finished_store_is_refused(tmp_path, store):
    with pytest.raises(UserError, match="no token store"):
        TokenStore.open(tmp_path / "absent")
    with pytest.raises(UserError, match="split 'test' is unknown"):
        TokenStore.open(store, split="test")
    (tmp_path / "begun" / "progress").mkdir(parents=True)
    with pytest.raises(UserError, match="prepare was interrupted"):
        TokenStore.open(tmp_path / "begun")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "{}", '{"format_version": 1}', "\x00"])
def test_a_bad_manifest_is_one_error(store, text):
    (store / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is not a token store's manifest"):
        TokenStore.open(store)


def test_another_format_version_is_refused(store):
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(UserError, match="store format 2, not 1"):
        TokenStore.open(store)


def test_nothing_has_its_final_name_before_finish(tmp_path):
    writer = ShardWriter(tmp_path, "00000")
    writer.add(np.array([1, 2, 3]), np.array([3]), np.array([1]))
    assert all(file.suffix == ".tmp" for file in tmp_path.iterdir())
    writer.abort()
    assert list(tmp_path.iterdir()) == []
