# SPDX-License-Identifier: Apache-2.0
"""A store at an address: the same examples, fetched once; what is missing or damaged is named."""

import errno
import json
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from albert_jax.data import store_remote, store_verify
from albert_jax.data.pretraining import open_data, pretraining_identity
from albert_jax.data.store_manifest import json_bytes, sealed
from albert_jax.data.store_remote import local_store
from albert_jax.utils import remote_fs
from albert_jax.utils.errors import UserError
from tests.helpers.pretraining_runs import make_store, tiny_config
from tests.helpers.texts import contents

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (the extra `gcs` has it)")
ADDRESS = "memory://bucket/store"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"))


@pytest.fixture
def bucket(store, tmp_path, monkeypatch):
    """The store at ADDRESS, as fsspec's file system in memory."""
    monkeypatch.setenv("ALBERT_JAX_STORES", str(tmp_path / "fetched"))
    files = fsspec.filesystem("memory")
    for name, value in contents(store).items():
        files.pipe_file(f"/bucket/store/{name}", value)
    yield files
    files.rm("/bucket", recursive=True)


def test_a_store_at_an_address_gives_the_examples_of_the_same_store_here(bucket, store, tmp_path):
    ours, theirs = tiny_config(store, tmp_path), tiny_config(ADDRESS, tmp_path)
    here, there = open_data(ours, None), open_data(theirs, None)
    assert pretraining_identity(ours, here) == pretraining_identity(theirs, there)
    for index in (0, 77):
        for key, value in here.train[index].items():
            np.testing.assert_array_equal(value, there.train[index][key])
    assert contents(local_store(ADDRESS)) == contents(store)
    mixed = open_data(tiny_config(f"{store}:1,{ADDRESS}:3", tmp_path), None).train
    assert mixed.passes(1)[ADDRESS]["share"] == 0.75


def test_what_was_fetched_is_not_fetched_again(bucket, store, monkeypatch, capfd):
    folder = local_store(ADDRESS)
    assert "fetching" in capfd.readouterr().err
    assert local_store(f"{ADDRESS}/") == folder
    assert capfd.readouterr().err == ""
    # Cut off half-way: the manifest is not there yet and a file is not whole.
    (folder / "manifest.json").unlink()
    shard = next((folder / "train").glob("*.tokens"))
    shard.write_bytes(shard.read_bytes()[:-2])
    fetched, get_file = [], bucket.get_file
    monkeypatch.setattr(
        type(bucket), "get_file", lambda self, path, to: fetched.append(path) or get_file(path, to)
    )
    local_store(ADDRESS)
    assert sorted(fetched) == ["/bucket/store/spiece.model", f"/bucket/store/train/{shard.name}"]
    assert contents(folder) == contents(store)


@pytest.mark.parametrize("name", ["manifest.json", "spiece.model", "train/00000.sentences"])
def test_a_missing_file_is_named_and_nothing_passes_for_a_store(bucket, tmp_path, name):
    bucket.rm(f"/bucket/store/{name}")
    with pytest.raises(UserError, match=f"{ADDRESS}/{name} is missing"):
        open_data(tiny_config(ADDRESS, tmp_path), None)
    assert not list((tmp_path / "fetched").glob("*/manifest.json"))
    assert not list((tmp_path / "fetched").glob("**/*.tmp"))


def test_a_damaged_file_is_named(bucket, tmp_path):
    whole = bucket.cat_file("/bucket/store/train/00000.tokens")
    bucket.pipe_file("/bucket/store/train/00000.tokens", bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=r"train/00000\.tokens is damaged"):
        local_store(ADDRESS)


def test_a_damaged_copy_says_to_fetch_it_again(bucket, store, tmp_path):
    folder = local_store(ADDRESS)
    file = folder / "train" / "00000.tokens"
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=rf"is damaged.*; delete {folder} and it is fetched again"):
        open_data(tiny_config(ADDRESS, tmp_path), None)
    with pytest.raises(UserError, match=r"is damaged.*and it is fetched again"):
        open_data(tiny_config(f"{store}:1,{ADDRESS}:2", tmp_path), None)
    shutil.rmtree(folder)  # as it says
    open_data(tiny_config(ADDRESS, tmp_path), None)


def test_of_several_processes_one_fetches_for_all(bucket, monkeypatch):
    fetched, fetch = [], store_remote._fetch

    def slowly(*arguments):
        fetched.append(arguments)
        time.sleep(0.3)
        fetch(*arguments)

    monkeypatch.setattr(store_remote, "_fetch", slowly)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(local_store, [ADDRESS] * 4))
    assert (len(folders), len(fetched)) == (1, 1)


def test_a_small_store_leaves_nothing_in_the_users_cache(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_data(tiny_config(ADDRESS, tmp_path), None)
    assert not (tmp_path / "cache").exists()


def test_what_was_verified_when_it_was_fetched_is_not_read_again(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store_verify, "MIN_REMEMBERED", 0)
    monkeypatch.setattr(store_verify, "SETTLED_NANOSECONDS", -(10**9))
    folder = local_store(ADDRESS)
    monkeypatch.setattr(store_verify, "check_file", None)
    open_data(tiny_config(ADDRESS, tmp_path), None)
    monkeypatch.undo()
    assert folder.is_dir()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fills_up_is_named_and_the_next_start_goes_on(
    bucket, store, tmp_path, monkeypatch, code
):
    get_file = bucket.get_file

    def fill(self, path, to):
        if "sentences" in path:
            raise OSError(code, os.strerror(code), to)
        get_file(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "get_file", fill)
        with pytest.raises(UserError, match=rf"NOT written: {os.strerror(code)}; make room there"):
            local_store(ADDRESS)
    assert list((tmp_path / "fetched").rglob("*.tokens"))
    assert not list((tmp_path / "fetched").rglob("*.tmp"))
    assert contents(local_store(ADDRESS)) == contents(store)


def test_a_store_whose_shards_name_other_places_is_refused(bucket, tmp_path):
    manifest = json.loads(bucket.cat_file("/bucket/store/manifest.json"))
    manifest["splits"]["train"]["shards"][0]["name"] = "../../x"
    bucket.pipe_file("/bucket/store/manifest.json", json_bytes(sealed(manifest)))
    with pytest.raises(
        UserError, match=r"matching regex .* `\$\.splits\.train\.shards\[0\]\.name`"
    ):
        local_store(ADDRESS)


def test_a_bucket_that_does_not_answer_is_given_up(bucket, monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(remote_fs, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(type(bucket), "cat_file", lambda *_: asked.wait(60))
    with pytest.raises(UserError, match=r"no answer in 0 s\); check the address and the cred"):
        local_store(ADDRESS)
    asked.set()


def test_a_refusal_is_one_sentence_with_the_clients_words(bucket, monkeypatch):
    def refuse(*_):
        raise PermissionError("Anonymous caller does not have\nstorage.objects.get access")

    monkeypatch.setattr(type(bucket), "cat_file", refuse)
    with pytest.raises(UserError, match=r"Anonymous caller does not have storage.*credentials"):
        local_store(ADDRESS)


def test_a_library_that_is_missing_and_a_scheme_that_is_none_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    found_already = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(found_already, "gs", raising=False)
    with pytest.raises(UserError, match=r"pip install 'albert-jax\[gcs\]'"):
        local_store("gs://bucket/store")
    with pytest.raises(UserError, match="nosuch://bucket/store cannot be read"):
        local_store("nosuch://bucket/store")
