# SPDX-License-Identifier: Apache-2.0
"""Verification of a store: by every command that opens one, and once for each state of a file."""

import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import jax
import pytest

from albert_jax.cli.info import describe_path
from albert_jax.cli.main import main
from albert_jax.data import store_verify as module
from albert_jax.data.pretraining import open_data
from albert_jax.data.store import TokenStore
from albert_jax.data.store_manifest import SPLITS, files_of, read_manifest
from albert_jax.data.store_verify import verify_files
from albert_jax.distributed.compilation_cache import set_compilation_cache
from albert_jax.utils import progress
from albert_jax.utils.errors import UserError
from albert_jax.utils.user_cache import user_cache
from tests.helpers.paths import REPOSITORY
from tests.helpers.pretraining_runs import make_store, tiny_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("data"))


@pytest.fixture
def store(whole, tmp_path, monkeypatch) -> Path:
    """A store like a large one: what is found good is remembered, also of files just written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MIN_REMEMBERED", 0)
    monkeypatch.setattr(module, "SETTLED_NANOSECONDS", -(10**9))
    return shutil.copytree(whole, tmp_path / "store")


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The files that are read whole, by name."""
    names: list[str] = []
    real = module.check_file

    def check_file(path, file, *rest):
        names.append(file.name)
        return real(path, file, *rest)

    monkeypatch.setattr(module, "check_file", check_file)
    return names


def xor(file: Path, *, keep_times: bool = False) -> None:
    """Changes every byte in place, as a program would that hides it by setting the times back."""
    status = file.stat()
    data = bytes(byte ^ 1 for byte in file.read_bytes())
    with open(file, "r+b") as stream:
        stream.write(data)
    if keep_times:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


# ----------------------------------------------------------------------------------- every command


@pytest.mark.parametrize("name", ["train/00000.tokens", "heldout/00000.sentences", "spiece.model"])
def test_whatever_opens_a_store_names_its_damaged_file(store, tmp_path, name):
    config = tiny_config(store, tmp_path / "run")
    open_data(config, None)
    assert describe_path(store)["verified"] is True
    xor(store / name)
    other = shutil.copytree(store, tmp_path / "other")
    message = f"{name} is damaged: its SHA-256 is not the manifest's; delete .* and prepare"
    for act in (
        lambda: open_data(config, None),
        lambda: open_data(tiny_config(f"{store}:1,{other}:2", tmp_path / "run"), None),
        lambda: describe_path(store),
    ):
        with pytest.raises(UserError, match=message):
            act()


def test_the_commands_end_with_one_line_and_status_2(store, tmp_path, monkeypatch, capfd):
    # It would hold for the tests after this one.
    monkeypatch.setattr("albert_jax.utils.malloc.keep_freed_memory", lambda: False)
    assert main(["info", str(store)]) == 0
    assert "verified" in capfd.readouterr().out
    xor(store / "train" / "00000.tokens")
    recipe = REPOSITORY / "configs" / "python_docs.py"
    for arguments in (
        ("info", store),
        ("info", recipe, "--store", store),
        ("pretrain", recipe, "--store", store, "--workdir", tmp_path / "run", "--dry-run"),
        ("benchmark", "--store", store, "--model", recipe),
    ):
        assert main([*map(str, arguments)]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        assert "00000.tokens is damaged" in printed.err
        assert printed.err.count("\n") == 1


# -------------------------------------------------------------------------------------- once a file


def test_what_was_found_good_is_not_read_again(store, read):
    for split in SPLITS:
        TokenStore.open(store, split=split)
    assert sorted(set(read)) == sorted(file.name for file in files_of(read_manifest(store)))
    read.clear()
    for split in SPLITS:
        TokenStore.open(store, split=split)
    assert read == []
    TokenStore.open(store).verify()
    assert len(read) == 4  # asked for, it reads whatever was found before


def test_a_file_that_changed_is_read_again_though_its_size_and_times_are_the_same(store, read):
    TokenStore.open(store)
    read.clear()
    xor(store / "train" / "00000.tokens", keep_times=True)
    with pytest.raises(UserError, match=r"00000\.tokens is damaged"):
        TokenStore.open(store)
    assert read == ["train/00000.tokens"]
    with pytest.raises(UserError, match=r"00000\.tokens is damaged"):
        TokenStore.open(store)  # what is bad is not remembered


def test_a_copy_and_another_manifest_are_read_anew(store, read, tmp_path):
    TokenStore.open(store)
    read.clear()
    TokenStore.open(shutil.copytree(store, tmp_path / "copy"))
    assert len(read) == 4
    files = files_of(read_manifest(store), ["train"])
    other = [type(file)(**vars(file) | {"sha256": "0" * 64}) for file in files]
    with pytest.raises(UserError, match=r"is damaged: .*3 more of its files\); do this"):
        verify_files(store, other, remedy="do this")


def test_a_file_that_has_only_just_changed_is_not_remembered(store, read, monkeypatch):
    monkeypatch.setattr(module, "SETTLED_NANOSECONDS", 10**12)
    TokenStore.open(store)
    TokenStore.open(store)
    assert len(read) == 8


def test_a_small_store_leaves_nothing_in_the_cache(store, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MIN_REMEMBERED", 1 << 26)
    TokenStore.open(store)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {"spiece.model": 3}}', b"\xff"])
def test_a_damaged_memory_costs_only_time(store, read, tmp_path, content):
    TokenStore.open(store)
    [memory] = (tmp_path / "cache").rglob("*.json")
    memory.write_bytes(content)
    read.clear()
    TokenStore.open(store)
    assert len(read) == 4
    read.clear()
    TokenStore.open(store)
    assert read == []


def test_without_a_cache_a_store_is_verified_at_each_start(store, read, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    TokenStore.open(store)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError))
    TokenStore.open(store)
    assert len(read) == 8
    assert (tmp_path / "a file").read_text() == ""


def test_starts_at_once_all_verify_and_leave_a_good_memory(store, read):
    failures: list[BaseException] = []

    def start(split: str) -> None:
        try:
            TokenStore.open(store, split=split)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(split,)) for split in SPLITS * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    TokenStore.open(store)
    read.clear()
    TokenStore.open(store)
    assert read == []


def test_ctrl_c_ends_the_reading_of_all_files(store, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)
    blocks = []

    def add(self, size: int) -> None:
        blocks.append(size)
        if len(blocks) == 20:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if len(blocks) > 20:
            time.sleep(0.01)  # the main thread gets its turn

    monkeypatch.setattr(module.ProgressMeter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        TokenStore.open(store)
    assert len(blocks) < 200  # of tens of thousands


def test_a_long_verification_says_how_far_it_is(store, monkeypatch, capfd):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    TokenStore.open(store)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4
    assert re.fullmatch(rf"verify {store}: 100%, \S+B/s, 00:00 left", said[-1])


def test_a_verification_that_takes_no_time_says_nothing(store, monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    TokenStore.open(store)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(module, "SAID_AFTER_SECONDS", 0.0)
    TokenStore.open(store).verify()
    assert f"verify {store}: " in capfd.readouterr().err


def test_a_user_without_a_home_is_told_where_to_set_a_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(UserError, match="no home folder to keep a cache in; set XDG_CACHE_HOME"):
        user_cache("stores")


def test_answers_need_no_home(monkeypatch, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ALBERT_JAX_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        set_compilation_cache(None)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert "programs are not kept: this user has no home folder" in capsys.readouterr().err
