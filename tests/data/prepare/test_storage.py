# SPDX-License-Identifier: Apache-2.0
"""`prepare` from and to addresses: the bytes of a folder, through gcsfs and a server that answers
as Google's does, and through fsspec's file systems in memory and here."""

import gzip
import importlib.util
import json
import socket
import subprocess
import sys
import time

import pytest

from albert_jax.cli.info import describe_path
from albert_jax.data.prepare import units
from albert_jax.data.prepare.build import prepare
from albert_jax.data.prepare.storage import Bucket
from albert_jax.data.store_manifest import is_sealed
from albert_jax.data.store_remote import local_store
from albert_jax.data.text.files import find_files
from albert_jax.utils import remote_fs
from albert_jax.utils.errors import TryAgain, UserError
from tests.helpers.paths import VOCABULARY
from tests.helpers.texts import UNIT_BYTES, contents, make_text

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (the extra `gcs` has it)")
TEXT = ("plain.txt", "more/0.gz", "more/1.txt", "more/.hidden")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "more").mkdir()
    make_text(folder / "plain.txt", 4 * UNIT_BYTES)
    packed = make_text(folder / "text", 100_000, seed=1)
    (folder / "more" / "0.gz").write_bytes(gzip.compress(packed.read_bytes(), 1))
    packed.rename(folder / "more" / ".hidden")
    make_text(folder / "more" / "1.txt", 50_000, seed=2)
    return folder


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The corpus prepared from a folder to a folder."""
    store = tmp_path_factory.mktemp("whole") / "store"
    prepare(corpus, vocab=VOCABULARY, output=store, holdout=0.1, workers=1, progress=False)
    return bytes_of(contents(store))


def bytes_of(files):
    """A store's files, the manifest without where its inputs lay and so without its checksum."""
    manifest = json.loads(files.pop("manifest.json"))
    assert is_sealed(manifest)
    del manifest["checksum"]
    inputs = [entry["bytes"] for entry in manifest.pop("inputs")]
    return files | {"manifest": manifest, "inputs": inputs}


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    """gs://bucket, empty, on a server of this machine."""
    for name in ("gcsfs", "gcp_storage_emulator"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "gcp_storage_emulator", "start", "--in-memory"]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--default-bucket", "bucket", "--quiet"],
        cwd=tmp_path_factory.mktemp("server"),
        stderr=subprocess.DEVNULL,  # it complains where a client has read enough
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks for credentials
        deadline = time.monotonic() + 100
        while True:
            with socket.socket() as asked:
                if not asked.connect_ex(("localhost", port)):
                    break
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        yield
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    server.kill()
    server.wait()


@pytest.fixture(params=["gs://bucket", "memory://bucket", "file://"])
def address(request, corpus, tmp_path):
    """A place of each kind that has the corpus in TEXT."""
    root = request.param + (str(tmp_path) if request.param == "file://" else "")
    if root == "gs://bucket":
        request.getfixturevalue("google")
    files, path = fsspec.core.url_to_fs(root)
    for name in TEXT:
        put(f"{root}/text/{name}", (corpus / name).read_bytes())
    yield root
    for folder in ("text", "store"):
        if files.exists(f"{path}/{folder}"):
            files.rm(f"{path}/{folder}", recursive=True)


def put(address, data):
    with fsspec.open(address, "wb", auto_mkdir=True) as file:
        file.write(data)


def written(address):
    """All that lies at an address."""
    files, path = fsspec.core.url_to_fs(address)
    files.invalidate_cache()
    if not files.exists(path):
        return {}
    return {name.removeprefix(f"{path}/"): files.cat_file(name) for name in files.find(path)}


def test_the_same_bytes_from_and_to_an_address(address, whole, tmp_path, monkeypatch):
    store = f"{address}/store"
    settings = {"vocab": VOCABULARY, "holdout": 0.1, "progress": False}
    manifest = prepare(f"{address}/text", output=store, workers=1, **settings)
    assert bytes_of(written(store)) == whole
    # What is finished is not made again, and is a store like any other.
    monkeypatch.setattr(units, "tokenize", None)
    assert prepare(f"{address}/text", output=f"{store}/", **settings) == manifest
    monkeypatch.setenv("ALBERT_JAX_STORES", str(tmp_path / "fetched"))
    assert bytes_of(contents(local_store(store))) == whole
    described = describe_path(store)
    assert described["path"] == store
    assert described["splits"]["train"]["tokens"] == manifest["splits"]["train"]["tokens"]


@pytest.mark.parametrize("address", ["gs://bucket"], indirect=True)
def test_several_processes_read_and_write_a_bucket(address, corpus, whole, tmp_path):
    # Units of MIN_UNIT_BYTES are planned here; what the processes make of them is the same.
    settings = {"vocab": VOCABULARY, "holdout": 0.1, "workers": 2, "progress": False}
    prepare(f"{address}/text", output=f"{address}/store", **settings)
    assert bytes_of(written(f"{address}/store")) == whole
    prepare(corpus, output=f"{address}/store/2", **settings)
    assert bytes_of(written(f"{address}/store/2")) == whole
    prepare(f"{address}/text/**", output=tmp_path / "here", **settings)
    assert bytes_of(contents(tmp_path / "here")) == whole


@pytest.mark.parametrize("address", ["gs://bucket"], indirect=True)
def test_folders_that_a_console_made_are_neither_text_nor_in_the_way(address, whole):
    storage = pytest.importorskip("google.cloud.storage")
    credentials = pytest.importorskip("google.auth.credentials").AnonymousCredentials()
    bucket = storage.Client(project="any", credentials=credentials).bucket("bucket")
    for name in ("text/more/", "store/"):
        bucket.blob(name).upload_from_string("")
    settings = {"vocab": VOCABULARY, "holdout": 0.1, "workers": 1, "progress": False}
    prepare(f"{address}/text", output=f"{address}/store", **settings)
    files = written(f"{address}/store")
    files.pop("", None)
    assert bytes_of(files) == whole


def test_files_are_found_as_in_a_folder(address, corpus):
    text = f"{address}/text"
    for given in ("", "/", "/more", "/more/*.txt", "/**", "/plain.txt"):
        here = [path.removeprefix(str(corpus)) for path in find_files(f"{corpus}{given}")]
        there = [path.partition("/text")[2] for path in find_files(text + given)]
        assert there == [path.replace("//", "/") for path in here]
        assert all("://" in path for path in find_files(text + given))
    with pytest.raises(UserError, match=f"no such file: {text}/absent; name text files"):
        find_files(f"{text}/absent")
    with pytest.raises(UserError, match="no file matches"):
        find_files(f"{text}/*.html")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_store_is_no_text_but_a_corpus_may_have_a_manifest(tmp_path, scheme):
    for name in ("manifest.json", "a.txt"):
        (tmp_path / name).write_text("")
    assert len(find_files(f"{scheme}{tmp_path}")) == 2
    (tmp_path / "spiece.model").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path} is a token store or a model, not text"):
        find_files(f"{scheme}{tmp_path}")


def test_a_failure_keeps_what_is_finished_and_the_same_call_goes_on(address, whole, monkeypatch):
    real, made = units.prepare_unit, []
    settings = {"vocab": VOCABULARY, "holdout": 0.1, "workers": 1, "progress": False}

    def fail_late(unit, *rest):
        if unit.index == 2:
            raise OSError(5, "Input/output error")
        made.append(unit.index)
        real(unit, *rest)

    monkeypatch.setattr("albert_jax.data.prepare.local_runner.prepare_unit", fail_late)
    with pytest.raises(UserError, match="Input/output error; correct that"):
        prepare(f"{address}/text", output=f"{address}/store", **settings)
    left = written(f"{address}/store")
    assert sorted(name for name in left if name.startswith("progress/0")) == [
        "progress/00000.json",
        "progress/00001.json",
    ]
    monkeypatch.setattr(
        "albert_jax.data.prepare.local_runner.prepare_unit",
        lambda unit, *rest: (made.append(unit.index), real(unit, *rest)),
    )
    with pytest.raises(UserError, match=r"was made with other settings \(holdout 0.1 there, 0.2"):
        prepare(f"{address}/text", output=f"{address}/store", **settings | {"holdout": 0.2})
    prepare(f"{address}/text", output=f"{address}/store", **settings)
    assert made == list(range(len(made)))
    assert bytes_of(written(f"{address}/store")) == whole


def test_a_complete_store_that_lacks_a_file_is_not_called_complete(address, whole):
    settings = {"vocab": VOCABULARY, "holdout": 0.1, "workers": 1, "progress": False}
    store = f"{address}/store"
    prepare(f"{address}/text", output=store, **settings)
    files, path = fsspec.core.url_to_fs(store)
    content = files.cat_file(f"{path}/train/00001.tokens")
    files.pipe_file(f"{path}/train/00001.tokens", content[:-2])
    with pytest.raises(UserError, match=r"train/00001\.tokens has .* bytes where .*; delete"):
        prepare(f"{address}/text", output=store, **settings)
    files.rm(f"{path}/train/00001.tokens")
    with pytest.raises(UserError, match=r"train/00001\.tokens is missing; delete"):
        prepare(f"{address}/text", output=store, **settings)


def test_a_store_in_its_input_folder_is_refused(address):
    for output in (f"{address}/text/store", f"{address}/text"):
        with pytest.raises(UserError, match=r"/text.* lies in the input .*/text"):
            prepare(f"{address}/text", vocab=VOCABULARY, output=output, progress=False)
        with pytest.raises(UserError, match=r"/text.* lies in the input .*/text"):
            prepare(f"{address}/text/**", vocab=VOCABULARY, output=output, progress=False)


def test_a_changed_file_is_read_again(address, whole, monkeypatch):
    real, made = units.prepare_unit, []
    settings = {"vocab": VOCABULARY, "holdout": 0.1, "workers": 1, "progress": False}

    def fail_last(unit, *rest):
        made.append(unit.index)
        if "1.txt" in str(unit.pieces):
            raise OSError(5, "Input/output error")
        real(unit, *rest)

    monkeypatch.setattr("albert_jax.data.prepare.local_runner.prepare_unit", fail_last)
    for _ in range(2):
        with pytest.raises(UserError):
            prepare(f"{address}/text", output=f"{address}/store", **settings)
    assert made[-1] == made[-2]  # the second call had no other unit to make
    files, path = fsspec.core.url_to_fs(address)
    before = files.cat_file(f"{path}/text/plain.txt")
    files.pipe_file(f"{path}/text/plain.txt", before.replace(b"a", b"e"))
    made.clear()
    with pytest.raises(UserError):
        prepare(f"{address}/text", output=f"{address}/store", **settings)
    assert made[0] == 0


def test_nothing_is_left_where_no_unit_was_finished(address, monkeypatch):
    def fail(*_):
        raise UserError("bad input")

    monkeypatch.setattr("albert_jax.data.prepare.local_runner.prepare_unit", fail)
    with pytest.raises(UserError, match="bad input"):
        prepare(
            f"{address}/text",
            vocab=VOCABULARY,
            output=f"{address}/store",
            workers=1,
            progress=False,
        )
    assert not written(f"{address}/store")


def test_two_at_once_are_told_at_the_end(address, monkeypatch):
    real = units.prepare_unit

    def while_another_tidies(unit, job, *rest):
        real(unit, job, *rest)
        if unit.index == 3:
            Bucket(job.store).remove(["train/00001.tokens"])

    monkeypatch.setattr("albert_jax.data.prepare.local_runner.prepare_unit", while_another_tidies)
    settings = {"vocab": VOCABULARY, "holdout": 0.1, "workers": 1, "progress": False}
    with pytest.raises(TryAgain, match=r"unit 00001 is gone from .*one prepare of a store"):
        prepare(f"{address}/text", output=f"{address}/store", **settings)
    assert "manifest.json" not in written(f"{address}/store")


def test_damage_and_other_formats_are_named_by_their_address(address, corpus):
    settings = {"vocab": VOCABULARY, "output": f"{address}/store", "progress": False, "workers": 1}
    for name, value, message in (
        ("a.gz", (corpus / "more" / "0.gz").read_bytes()[:-9], "a.gz is a damaged gz file"),
        ("b.bz2", b"BZh91AY&SY", "b.bz2 is bzip2-compressed; make it UTF-8 text"),
        ("c.txt", b" \n", "no text in "),
    ):
        put(f"{address}/text/bad/{name}", value)
        with pytest.raises(UserError, match=f"{message}") as raised:
            prepare(f"{address}/text/bad/{name}", **settings)
        assert "://" in str(raised.value)
        assert not written(f"{address}/store")


# --------------------------------------------------------------------------- what cannot be reached


def test_a_bucket_that_is_none_is_one_line(google, run_cli):
    done = run_cli(
        "prepare", "gs://nosuch/text", "--vocab", VOCABULARY, "--output", "gs://nosuch/store"
    )
    assert done.rc == 2
    assert done.stderr.splitlines()[-1].startswith("albert-jax: no such file: gs://nosuch/text")


def test_a_bucket_that_takes_nothing_is_one_line(google, corpus):
    with pytest.raises(
        UserError, match=r"gs://nosuch/store cannot be reached \(not found.*credentials"
    ):
        prepare(corpus, vocab=VOCABULARY, output="gs://nosuch/store", workers=1, progress=False)


def test_an_address_that_refuses_or_hangs_is_one_line(corpus, monkeypatch):
    files = fsspec.filesystem("memory")
    settings = {
        "vocab": VOCABULARY,
        "output": "memory://bucket/store",
        "progress": False,
        "workers": 1,
    }

    def refuse(*_, **__):
        raise PermissionError("Anonymous caller does not have\nstorage.objects.create access")

    with monkeypatch.context() as patch:
        patch.setattr(type(files), "pipe_file", refuse)
        with pytest.raises(UserError, match=r"store cannot be reached \(Anonymous caller does not"):
            prepare(corpus, **settings)
    files.pipe_file("/bucket/store/manifest.json", b"{}")
    with monkeypatch.context() as patch:
        patch.setattr(type(files), "cat_file", refuse)
        with pytest.raises(UserError, match=r"store cannot be reached \(Anonymous caller does not"):
            prepare(corpus, **settings)  # what cannot be read is not what is not there
    files.rm("/bucket", recursive=True)
    monkeypatch.setattr(remote_fs, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(type(files), "ls", lambda *_, **__: time.sleep(5))
    with pytest.raises(UserError, match=r"no answer in 0 s"):
        prepare(corpus, **settings)


def test_a_file_that_stops_coming_is_named(corpus, monkeypatch):
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/text/a.txt", (corpus / "plain.txt").read_bytes())

    class Broken(type(files.open("/bucket/text/a.txt"))):
        def read(self, size=-1):
            if self.tell() > 100_000:
                raise ConnectionResetError("reset by peer")
            return super().read(size)

    real = type(files)._open
    monkeypatch.setattr(
        type(files),
        "_open",
        lambda self, path, *a, **k: Broken(self, path, real(self, path, *a, **k).getvalue()),
    )
    with pytest.raises(UserError, match=r"text/a\.txt cannot be reached \(reset by peer\)"):
        prepare(
            "memory://bucket/text",
            vocab=VOCABULARY,
            output="memory://bucket/s",
            workers=1,
            progress=False,
        )
    files.rm("/bucket", recursive=True)


# ------------------------------------------------------------------------------------ Apache Beam


def test_beam_writes_the_same_bytes_to_a_bucket(google, corpus, whole):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed (the extra `beam`)")
    settings = {"vocab": VOCABULARY, "holdout": 0.1, "progress": False}
    prepare(corpus, output="gs://bucket/beam", beam=(), **settings)
    assert bytes_of(written("gs://bucket/beam")) == whole
