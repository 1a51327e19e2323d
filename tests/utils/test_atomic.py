# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole, whoever else writes, dies or fills the disk."""

import gzip
import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from albert_jax.utils import atomic
from albert_jax.utils.atomic import (
    appearing_file,
    appearing_whole,
    remove_leftovers,
    require_apart,
    result_lines,
    writing,
)
from albert_jax.utils.errors import UserError
from albert_jax.utils.locks import Lock


def fill(folder: Path, text: str) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def exchanges(folder: Path) -> bool:
    """Whether two names in a folder can be exchanged in one step, as Linux's file systems can."""
    one, other = folder / "one", folder / "other"
    one.mkdir()
    other.mkdir()
    (one / "inside").touch()
    done = atomic._exchange(one, other) and (other / "inside").exists()
    shutil.rmtree(one)
    shutil.rmtree(other)
    return done


def test_a_second_writer_of_a_folder_is_refused_and_the_first_is_not_harmed(tmp_path):
    dest = tmp_path / "model"
    with appearing_whole(dest) as folder:
        fill(folder, "first")
        with (
            pytest.raises(UserError, match=rf"is being written by pid {os.getpid()} on "),
            appearing_whole(dest),
        ):
            pytest.fail("it was let in")
    assert (dest / "a").read_text() == (dest / "b").read_text() == "first"
    assert names(tmp_path) == {"model"}


def test_of_many_writers_each_is_whole_or_refused(tmp_path):
    dest = tmp_path / "model"
    never_missing = exchanges(tmp_path)

    def write(number: int) -> bool:
        try:
            with appearing_whole(dest) as folder:
                fill(folder, str(number))
                time.sleep(0.001)
            assert (dest / "a").exists() or not never_missing
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        written = sum(pool.map(write, range(200)))
    assert written
    assert (dest / "a").read_text() == (dest / "b").read_text()
    assert names(tmp_path) == {"model"}


def test_what_killed_writers_left_goes_and_the_folder_they_replaced_comes_back(tmp_path):
    dest, old = tmp_path / "model", tmp_path / ".model.17-89abcdef.old"
    own = tmp_path / ".model.old"  # a user's
    for folder in (old, own):
        folder.mkdir()
        fill(folder, folder.name)
    left = tmp_path / ".model.17-0123abcd.new"
    other = tmp_path / ".model.x.17-0123abcd.new"  # of another destination
    for folder in (left, other):
        folder.mkdir()
    remove_leftovers(tmp_path, "model.x")
    other.mkdir()
    remove_leftovers(tmp_path)  # as a run does with its work directory: the old one may be all
    assert old.is_dir()
    for folder in (left, other):
        folder.mkdir()
    with pytest.raises(ZeroDivisionError), appearing_whole(dest):
        raise ZeroDivisionError
    assert (dest / "a").read_text() == old.name
    assert names(tmp_path) == {"model", other.name, own.name}


def test_a_reader_finds_the_old_folder_or_the_new_one_at_every_moment(tmp_path):
    if not exchanges(tmp_path):
        pytest.skip("this file system cannot exchange two names in one step")
    dest = tmp_path / "model"
    dest.mkdir()
    done = threading.Event()

    def write() -> None:
        for number in range(300):
            with appearing_whole(dest) as folder:
                fill(folder, str(number))
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not done.is_set() and not writer.done():
            assert dest.exists()
        writer.result()
    assert (dest / "a").read_text() == "299"
    assert names(tmp_path) == {"model"}


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)  # as on a file system that cannot
    dest = tmp_path / "model"
    dest.mkdir()
    fill(dest, "old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with (
        pytest.raises(UserError, match=r"NOT written: .*No space"),
        appearing_whole(dest) as folder,
    ):
        fill(folder, "new")
    assert (dest / "a").read_text() == "old"
    assert names(tmp_path) == {"model"}


def test_two_writers_of_a_file_have_two_temporary_files(tmp_path):
    dest = tmp_path / "file"
    with appearing_file(dest) as one, appearing_file(dest) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert dest.read_text() == "one"
    assert names(tmp_path) == {"file"}


def test_leftovers_of_any_name_go_and_nothing_else(tmp_path):
    for name in (".a.1-00000000.tmp", ".b.c.22-deadbeef.new", ".a.tmp", "a.1-00000000.tmp", ".git"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {".a.tmp", "a.1-00000000.tmp", ".git"}
    remove_leftovers(tmp_path / "nowhere")


def test_an_output_that_is_the_input_is_refused_by_any_name(tmp_path):
    source, folder = tmp_path / "in.txt", tmp_path / "folder"
    source.write_text("text")
    folder.mkdir()
    (folder / "in.txt").write_text("text")
    (tmp_path / "link").symlink_to(source)
    os.link(source, tmp_path / "hard")
    for other in (source, tmp_path / "link", tmp_path / "hard", folder / ".." / "in.txt"):
        with pytest.raises(UserError, match="is the input itself; name another place for output"):
            require_apart(other, [source])
    with pytest.raises(UserError, match="holds the input"):
        require_apart(folder, [folder / "in.txt"], "DEST")
    require_apart(tmp_path / "new", [source])
    require_apart(folder / "in.txt", [source, tmp_path / "not there"])


def test_results_appear_at_the_end_and_what_was_written_before_an_error_is_kept(tmp_path):
    dest = tmp_path / "deep" / "out.jsonl"
    told = r"row 3 is bad; what came before is in .*out.jsonl.partial"
    with pytest.raises(UserError, match=told), result_lines(str(dest)) as out:  # noqa: PT012
        out.write("1\n")
        assert not dest.exists()
        raise UserError("row 3 is bad")
    assert names(dest.parent) == {"out.jsonl.partial"}
    with result_lines(str(dest)) as out:
        out.write("1\n2\n")
    assert dest.read_text() == "1\n2\n"
    assert names(dest.parent) == {"out.jsonl"}
    with pytest.raises(UserError, match=r"^row 1$"), result_lines(str(dest)) as out:
        raise UserError("row 1")
    assert dest.read_text() == "1\n2\n"


@pytest.mark.parametrize("name", ["x.jsonl.gz", "X.JSONL.GZ"])
def test_a_name_in_gz_is_that_of_a_compressed_file(tmp_path: Path, name: str) -> None:
    with result_lines(str(tmp_path / name)) as out:
        out.write("é\n")
    assert gzip.decompress((tmp_path / name).read_bytes()) == "é\n".encode()


def test_a_link_stays_a_link_and_a_device_is_written_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("")
    with result_lines(str(tmp_path / "link")) as out:
        out.write("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "x"
    with result_lines(os.devnull) as out:
        out.write("x")
    with pytest.raises(UserError, match="is a folder"), result_lines(str(tmp_path)):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_names_the_file():
    told = "x NOT written: No space left on device"
    with pytest.raises(UserError, match=told), writing("x"), result_lines("/dev/full") as out:
        out.write("x")


# ---------------------------------------------------------------------------------------- locks


def hold(path: Path, ready: Any) -> None:
    lock = Lock(path, "{owner}")
    ready.set()
    time.sleep(600)
    lock.release()


def test_a_lock_is_free_when_its_owner_is_killed(tmp_path):
    path = tmp_path / "deep" / "lock"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(path, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(UserError, match=f"^busy: pid {process.pid} on "):
        Lock(path, "busy: {owner}")
    process.kill()
    process.join()
    with Lock(path, "busy"):
        assert path.exists()
    assert names(path.parent) == set()


def test_a_lock_leaves_nothing_of_the_folders_that_it_made(tmp_path):
    with Lock(tmp_path / "a" / "b" / "lock", "busy"):
        pass
    assert names(tmp_path) == set()
    with Lock(tmp_path / "a" / "b" / "lock", "busy"):
        (tmp_path / "a" / "file").write_text("")
    assert names(tmp_path / "a") == {"file"}


def test_a_lock_removed_between_opening_and_locking_is_taken_anew(tmp_path, monkeypatch):
    path, gone = tmp_path / "lock", []

    def flock(file: int, how: int) -> None:
        if not gone:  # its owner releases it now
            gone.append(path.unlink())

    monkeypatch.setattr(atomic.Lock.__module__ + ".fcntl.flock", flock)
    with Lock(path, "busy"):
        assert path.exists()
