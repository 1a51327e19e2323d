# SPDX-License-Identifier: Apache-2.0
"""The token store on disk: what is written comes back, damage is named, nothing is half-written."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from albert_jax.data import store as module
from albert_jax.data.store import ShardWriter, TokenStore
from albert_jax.data.store_manifest import json_bytes, sealed
from albert_jax.utils.errors import UserError
from tests.helpers.fuzz_store import batches_digest, harm_and_open, sha256_of, write_store
from tests.helpers.paths import DATA

DOCUMENTS = [[[5, 6, 7], [8]], [[9, 65535]], [[1], [2], [3, 4]]]


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


def test_a_pickled_store_carries_its_path_and_not_its_tokens(tmp_path, monkeypatch):
    write_store(tmp_path / "store", [[[7] * 50_000]])
    opened = TokenStore.open(tmp_path / "store")
    message = pickle.dumps(opened)
    assert len(message) < 1000
    monkeypatch.setattr(module, "verify_files", None)  # what the parent did is not done again
    assert documents_of(pickle.loads(message)) == [[[7] * 50_000]]


FILES = ["train/00000.tokens", "train/00000.sentences", "train/00000.documents", "spiece.model"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found_on_opening_and_the_file_named(store, name):
    file = store / name
    whole = file.read_bytes()
    opened = TokenStore.open(store)
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=f"{name} is damaged: its SHA-256 .*; delete "):
                TokenStore.open(store)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        opened.verify()
    file.write_bytes(whole)
    TokenStore.open(store).verify()


@pytest.mark.parametrize("name", FILES[:3])
def test_a_cut_or_missing_file_is_named_on_opening(store, name):
    file = store / name
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{name} has .* bytes where the manifest says"):
        TokenStore.open(store)
    file.unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read .*; delete .*store and prepare"):
        TokenStore.open(store)
    with pytest.raises(UserError, match=r"cannot be read .*; fetch it"):
        TokenStore.open(store, remedy="fetch it")


def test_several_damaged_files_are_counted(store):
    for name in FILES:
        file = store / name
        file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    with pytest.raises(UserError, match=r"model is damaged: .* \(and 3 more of its files\);"):
        TokenStore.open(store)


def test_another_vocabulary_is_refused(store):
    opened = TokenStore.open(store)
    opened.check_vocabulary(sha256_of(store / "spiece.model"))
    with pytest.raises(UserError, match="made with another vocabulary"):
        opened.check_vocabulary("0" * 64)


def test_what_is_no_finished_store_is_refused(tmp_path, store):
    with pytest.raises(UserError, match="no token store"):
        TokenStore.open(tmp_path / "absent")
    with pytest.raises(UserError, match="split 'test' is unknown"):
        TokenStore.open(store, split="test")
    (tmp_path / "begun" / "progress").mkdir(parents=True)
    with pytest.raises(UserError, match="prepare was interrupted"):
        TokenStore.open(tmp_path / "begun")


# ------------------------------------------------------------------------------------ the manifest


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "{}", '{"format_version": 1}', "\x00"])
def test_a_bad_manifest_is_one_error(store, text):
    (store / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is damaged or of another kind .*; delete"):
        TokenStore.open(store)


def test_another_format_version_is_refused(store):
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(UserError, match="store format 2, not 1"):
        TokenStore.open(store)


def test_keys_and_the_order_of_the_manifest_are_as_they_were_and_the_checksum_last(store):
    before = json.loads((DATA / "store_0.1" / "manifest.json").read_text())
    written = json.loads((store / "manifest.json").read_text())
    assert list(written) == [*before, "format_revision", "checksum"]
    assert TokenStore.open(store).manifest == written

    def keys(value: object) -> object:
        if isinstance(value, dict):
            return [(key, keys(x)) for key, x in value.items()]
        return [keys(x) for x in value] if isinstance(value, list) else None

    assert keys(written["splits"]["train"]) == keys(before["splits"]["train"])
    assert keys(written["vocabulary"]) == keys(before["vocabulary"])


def _set(*path_and_value: object):
    *path, last, value = path_and_value

    def change(manifest: dict) -> None:
        for key in path:
            manifest = manifest[key]
        manifest[last] = value

    return change


SHARD = ("splits", "train", "shards", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("holdout", "much"), r"Expected `float`, got `str` - at `\$\.holdout`"),
        (
            _set("vocabulary", "size", None),
            r"got `null` - at `\$\.vocabulary.size`",
        ),
        (_set("vocabulary", "mode", "bert"), r"Invalid enum value 'bert' - at"),
        (
            _set("splits", "heldout", {}),
            r"missing required field `tokens` - at .*heldout`",
        ),
        (
            _set(*SHARD, "name", "../x"),
            r"matching regex .* at `\$\.splits.*\.name`",
        ),
        (_set(*SHARD, "sha256", "0" * 64), r"Expected `object`, got `str`"),
        (_set(*SHARD, "tokens", 0), "Expected `int` >= 1"),
        (_set(*SHARD, "tokens", -3), "Expected `int` >= 1"),
        (_set(*SHARD, "documents", 4), "the shards of train have 4 documents, not 3"),
        (_set("splits", "train", "bytes", 1), "the shards of train have 64 bytes, not 1"),
        (lambda m: m["splits"]["train"]["shards"].append(SHARD), "Expected `object`, got `array`"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_line_whether_or_not_its_checksum_is_right(
    store, change, message
):
    file = store / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_bytes(json_bytes(sealed(manifest)))
    with pytest.raises(UserError, match=message) as raised:
        TokenStore.open(store)
    assert "manifest.json" in str(raised.value)
    assert "\n" not in str(raised.value)
    file.write_bytes(json_bytes(manifest))
    with pytest.raises(UserError, match=f"{message}|it does not have the checksum it carries"):
        TokenStore.open(store)


def test_a_value_that_changed_and_fits_is_found_by_the_manifests_checksum(store):
    file = store / "manifest.json"
    manifest = json.loads(file.read_text())
    for change in (
        _set("counts", "files_lines", 7),
        _set("inputs", [{"path": "other.txt", "bytes": 1}]),
        _set("splits", "train", "unigram_entropy_nats", 1.5),
        _set("note", "not by prepare"),
        lambda m: m.pop("checksum"),
        lambda m: m.pop("format_revision"),
    ):
        changed = json.loads(json.dumps(manifest))
        change(changed)
        file.write_bytes(json_bytes(changed))
        with pytest.raises(UserError, match="it does not have the checksum it carries"):
            TokenStore.open(store)
    file.write_text(json.dumps(dict(reversed(manifest.items()))))  # the same object
    TokenStore.open(store)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("sentences", [0, 3, 4, 6, 7, 8, 11], "its offsets do not rise from 0 to 10"),
        ("sentences", [1, 3, 4, 6, 7, 8, 10], "its offsets do not rise from 0 to 10"),
        ("sentences", [0, 3, 3, 6, 7, 8, 10], "its offsets do not rise from 0 to 10"),
        ("documents", [0, 2, 5, 3], "its offsets do not rise from 0 to 6"),
        ("documents", [0, 2, 3, 2**32 - 1], "its offsets do not rise from 0 to 6"),
    ],
)
def test_offsets_that_cannot_be_used_are_found_though_the_checksums_are_right(
    store, kind, values, message
):
    file = store / "train" / f"00000.{kind}"
    file.write_bytes(np.array(values, "<u4").tobytes())
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"][kind] = sha256_of(file)
    (store / "manifest.json").write_bytes(json_bytes(sealed(manifest)))
    with pytest.raises(UserError, match=f"00000.{kind} is damaged: {message}"):
        TokenStore.open(store)


def test_ids_outside_the_vocabulary_are_found(store):
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["vocabulary"]["size"] = 65535
    (store / "manifest.json").write_bytes(json_bytes(sealed(manifest)))
    with pytest.raises(UserError, match="it has the id 65535, and the vocabulary 65535 pieces"):
        TokenStore.open(store)


# ------------------------------------------------------------------------- stores of version 0.1


# Of the code that wrote tests/data/store_0.1.
BATCHES_0_1 = {
    "train": "876e5a0a668b06c9eb6633b8d5c376ffeb9bc4b55369d0bacad804633f304a05",
    "heldout": "e6d2f0698415bd63c0a869d68c48bc17d759570e08a97a47de9071b9d8e08f66",
}


def test_a_store_of_version_0_1_opens_says_so_once_and_gives_the_same_batches(
    tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(module, "_unsealed", set())
    old = shutil.copytree(DATA / "store_0.1", tmp_path / "old")
    digests = {split: batches_digest(TokenStore.open(old, split=split)) for split in BATCHES_0_1}
    assert digests == BATCHES_0_1
    assert capfd.readouterr().err == (
        f"{old} was made by an earlier version, whose manifest has no checksum of its own; the "
        "files that it names are verified by theirs\n"
    )
    assert TokenStore.open(old).manifest == json.loads((old / "manifest.json").read_text())


def test_damage_to_a_store_of_version_0_1_is_found(tmp_path):
    old = shutil.copytree(DATA / "store_0.1", tmp_path / "old")
    for name in FILES:
        whole = (old / name).read_bytes()
        (old / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(UserError, match=f"{name} is damaged"):
            TokenStore.open(old)
        (old / name).write_bytes(whole)
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["documents"] -= 1
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="the shards of train have 20 documents, not 21"):
        TokenStore.open(old)


# -------------------------------------------------------------------------------------- any damage


def test_no_harm_to_a_store_goes_unseen_or_ends_in_a_traceback(tmp_path):
    found = harm_and_open(tmp_path, times=300, seed=1)
    assert found["refused"] + found["the same"] + found["forged"] == 300
    assert found["refused"] > 250


# ------------------------------------------------------------------------------------- the writer


def test_nothing_has_its_final_name_before_finish(tmp_path):
    writer = ShardWriter(tmp_path, "00000")
    writer.add(np.array([1, 2, 3]), np.array([3]), np.array([1]))
    assert all(file.suffix == ".tmp" for file in tmp_path.iterdir())
    writer.abort()
    assert list(tmp_path.iterdir()) == []
