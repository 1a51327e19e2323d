# SPDX-License-Identifier: Apache-2.0
"""`prepare`: the same store whatever the workers, kills and full disks; bad input is one error."""

import gzip
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import sentencepiece

from albert_jax.data.prepare import build as module
from albert_jax.data.prepare import units
from albert_jax.data.prepare.build import prepare, unigram_statistics
from albert_jax.data.store import SPLITS, TokenStore
from albert_jax.data.text.documents import read_documents
from albert_jax.data.text.lines import Reading
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.utils.errors import TryAgain, UserError
from tests.helpers.disks import mounted_disk
from tests.helpers.paths import DATA, REPOSITORY, VOCABULARY
from tests.helpers.texts import COMMAND, UNIT_BYTES, contents, make_text, sentences_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[Path]:
    """Six units: a plain file, which is cut in four, and two of gz."""
    folder = tmp_path_factory.mktemp("corpus")
    packed = []
    for i in range(2):
        text = make_text(folder / "text", 200_000, seed=i + 1)
        packed.append(folder / f"{i}.gz")
        packed[-1].write_bytes(gzip.compress(text.read_bytes(), 1))
        text.unlink()
    return [make_text(folder / "plain.txt", 4 * UNIT_BYTES), *packed]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    """The corpus prepared without disturbance."""
    store = tmp_path_factory.mktemp("whole") / "store"
    prepare(corpus, vocab=VOCABULARY, output=store, holdout=0.1, workers=1, progress=False)
    return store


@pytest.fixture
def small(tmp_path) -> Path:
    return make_text(tmp_path / "small.txt", 20_000)


# -------------------------------------------------------------------------------- what comes out


def test_the_store_has_every_sentence_as_the_tokenizer_alone_gives_it(corpus, whole):
    tokenizer = Tokenizer.load(VOCABULARY)
    expected = [
        [tokenizer.encode(sentence).ids for sentence in document]
        for document in read_documents(corpus[1:2])
    ]
    everywhere = {split: sentences_of(whole, split) for split in SPLITS}
    units_of_text = [s for s in TokenStore.open(whole).shards if s.name in ("00004", "00005")]
    assert len(units_of_text) == 2
    found = [json.dumps(document) for split in SPLITS for document in everywhere[split]]
    assert {json.dumps(document) for document in expected} <= set(found)
    documents = sum(1 for _ in read_documents(corpus))
    assert documents == sum(len(everywhere[split]) for split in SPLITS)
    assert 0.06 * documents < len(everywhere["heldout"]) < 0.14 * documents
    for split in SPLITS:
        TokenStore.open(whole, split=split).verify()


def test_sentences_and_documents_without_tokens_are_left_out(tmp_path):
    (tmp_path / "text").write_text("\u0301\n\nOne.\n\u0301\nTwo.\n\n\u0301\n\u0301\n\nThree.\n")
    prepare(tmp_path / "text", vocab=VOCABULARY, output=tmp_path / "s", holdout=0, progress=False)
    ids = Tokenizer.load(VOCABULARY).encode_ids(["One.", "Two.", "Three."])
    assert sentences_of(tmp_path / "s", "train") == [[*ids[:2]], [ids[2]]]


def test_size_is_two_bytes_a_token_and_little_more(whole):
    manifest = TokenStore.open(whole).manifest
    tokens = sum(manifest["splits"][split]["tokens"] for split in SPLITS)
    size = sum(len(v) for k, v in contents(whole).items() if k.startswith(SPLITS))
    assert size == sum(manifest["splits"][split]["bytes"] for split in SPLITS)
    # These sentences have 16 words; a real corpus's are longer.
    assert 2 * tokens < size < 2.35 * tokens


def test_manifest_says_what_the_tokens_are(corpus, whole):
    manifest = TokenStore.open(whole).manifest
    assert manifest["vocabulary"]["sha256"] == Tokenizer.load(VOCABULARY).sha256
    assert manifest["inputs"] == [{"path": str(p), "bytes": p.stat().st_size} for p in corpus]
    assert manifest["counts"]["files_lines"] == 3
    for split in SPLITS:
        tokens = np.concatenate([s.tokens for s in TokenStore.open(whole, split=split).shards])
        values, counts = np.unique(tokens, return_counts=True)
        totals = manifest["splits"][split]
        rates = counts / len(tokens)
        assert totals["unigram_entropy_nats"] == pytest.approx(-(rates * np.log(rates)).sum())
        assert totals["most_frequent_token_id"] == values[counts.argmax()]
        assert totals["most_frequent_token_rate"] == pytest.approx(rates.max())


def test_unigram_statistics_of_known_distributions():
    assert unigram_statistics(np.array([0, 8, 8, 8, 8]))["unigram_entropy_nats"] == pytest.approx(
        np.log(4)
    )
    assert unigram_statistics(np.array([0, 7]))["unigram_entropy_nats"] == 0
    assert unigram_statistics(np.zeros(3))["most_frequent_token_rate"] is None


def test_wiki_sample_counts(shared, tmp_path):
    manifest = prepare(
        shared / "data" / "enwiki" / "sample",
        vocab=VOCABULARY,
        output=tmp_path / "store",
        format="wiki",
        workers=1,
        progress=False,
    )
    totals = [manifest["splits"][split] for split in SPLITS]
    assert sum(t["documents"] for t in totals) == 17
    assert sum(t["sentences"] for t in totals) == pytest.approx(2234, abs=30)
    assert manifest["counts"]["short_lines_dropped"] == 269
    assert totals[1]["documents"] >= 1


def test_a_huge_unit_rolls_over_to_more_shards(tmp_path, small, monkeypatch):
    one = prepare(small, vocab=VOCABULARY, output=tmp_path / "one", workers=1, progress=False)
    monkeypatch.setattr(units, "MAX_SHARD_TOKENS", 1000)
    monkeypatch.setattr(units, "BATCH_CHARS", 2000)
    many = prepare(small, vocab=VOCABULARY, output=tmp_path / "many", workers=1, progress=False)
    assert len(TokenStore.open(tmp_path / "many").shards) > 4
    for split, totals in one["splits"].items():
        of_shards = ("shards", "bytes")  # each shard's offsets begin with a 0
        assert {k: v for k, v in totals.items() if k not in of_shards}.items() <= many["splits"][
            split
        ].items()
    for split in SPLITS:
        assert sentences_of(tmp_path / "many", split) == sentences_of(tmp_path / "one", split)


def test_a_tfds_text_data_set_is_read_without_tensorflow(tmp_path):
    script = f"""
import sys, tensorflow_datasets as tfds
class TinyText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict(
            {{"text": tfds.features.Text(), "title": tfds.features.Text()}})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, manager):
        return {{"train": self._generate_examples(30), "test": self._generate_examples(4)}}
    def _generate_examples(self, n):
        for i in range(n):
            text = f"Café {{i}} opens. It has tea.\\n\\nIt closes at {{i}}."
            yield i, {{"text": text, "title": "x"}}
TinyText(data_dir={str(tmp_path / "data")!r}, file_format="array_record").download_and_prepare()
"""
    (tmp_path / "make.py").write_text(script)
    # In a fresh process, which does not know the class.
    (tmp_path / "read.py").write_text(f"""
import sys
from albert_jax.data.prepare.build import prepare
from albert_jax.utils.errors import UserError
def call(name, *splits):
    prepare(splits, vocab={str(VOCABULARY)!r}, output="store", format="tfds:" + name,
            data_dir={str(tmp_path / "data")!r}, workers=1)
import tensorflow_datasets as tfds
class NotPrepared(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict({{"text": tfds.features.Text()}})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, manager):
        import no_such_library
    def _generate_examples(self): ...
def download(self, url): raise ConnectionError("no network in tests")
tfds.download.DownloadManager.download_and_extract = download
for name, split in (("no_such_set", "train"), ("tiny_text", "dev"), ("not_prepared", "train"),
                    ("wikipedia/20230601.en", "train")):
    try:
        call(name, split)
    except UserError as error:
        print(error)
try:
    prepare(["train"], vocab={str(VOCABULARY)!r}, output="other", format="tfds:tiny_text",
            data_dir={str(tmp_path / "data")!r}, workers=1, field="body")
except UserError as error:
    assert "has no text feature 'body' (it has " in str(error)
else:
    raise AssertionError
call("tiny_text", "train", "test")
assert "tensorflow" not in sys.modules
""")
    done = [run_python(tmp_path / name, cwd=tmp_path) for name in ("make.py", "read.py")]
    assert [d.returncode for d in done] == [0, 0], done
    errors = done[1].stdout.splitlines()
    assert "no_such_set cannot be read (DatasetNotFoundError: Dataset no_such_set not" in errors[0]
    assert errors[1].startswith("TFDS data set tiny_text has no split 'dev'; it has")
    assert "its own code needs no_such_library for that; pip install no_such_library" in errors[2]
    assert "wikipedia/20230601.en cannot be read (ConnectionError: no network" in errors[3]
    documents = [d for split in SPLITS for d in sentences_of(tmp_path / "store", split)]
    assert [len(d) for d in documents] == [3] * 34  # the empty line ends no document
    tokenizer = Tokenizer.load(VOCABULARY)
    expected = [tokenizer.encode(f"Café {i} opens.").ids for i in [*range(30), *range(4)]]
    assert sorted(d[0] for d in documents) == sorted(expected)


def run_python(script: Path, *arguments: str, cwd: Path | None = None):
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
    )


# ------------------------------------------------------------------------------ the held-out split


@pytest.mark.parametrize("documents", [2, 3, 10])
@pytest.mark.parametrize("holdout", [1e-9, 0.01, 0.999999])
def test_neither_split_is_empty_where_there_are_two_documents(tmp_path, documents, holdout):
    text = "\n\n".join(f"Document number {i} is this." for i in range(documents))
    (tmp_path / "text").write_text(text)
    store = tmp_path / "store"
    prepare(tmp_path / "text", vocab=VOCABULARY, output=store, holdout=holdout, progress=False)
    sizes = [TokenStore.open(store, split=split).num_documents for split in SPLITS]
    assert sum(sizes) == documents
    assert min(sizes) > 0


def test_copies_of_a_document_are_all_on_one_side(tmp_path):
    text = "\n\n".join(f"Document number {i % 40} is this." for i in range(400))
    (tmp_path / "text").write_text(text)
    store = tmp_path / "store"
    prepare(tmp_path / "text", vocab=VOCABULARY, output=store, holdout=0.3, progress=False)
    train, heldout = ({json.dumps(d) for d in sentences_of(store, s)} for s in SPLITS)
    assert len(train) + len(heldout) == 40
    assert not train & heldout


def test_nothing_is_held_out_of_one_document_or_where_it_is_not_wanted(tmp_path, small, capfd):
    (tmp_path / "one").write_text("The only document.\n" * 3)
    for text, holdout in ((tmp_path / "one", 0.5), (small, 0.0)):
        store = tmp_path / f"store-{holdout}"
        prepare(text, vocab=VOCABULARY, output=store, holdout=holdout, workers=1)
        assert TokenStore.open(store, split="heldout").num_documents == 0
        assert TokenStore.open(store).num_documents > 0
        assert "nothing is held out" in capfd.readouterr().err


# --------------------------------------------------------------------- workers, kills, restarts


def test_two_workers_write_the_same_bytes_as_one(corpus, whole, tmp_path):
    prepare(corpus, vocab=VOCABULARY, output=tmp_path / "s", holdout=0.1, workers=2, progress=False)
    assert contents(tmp_path / "s") == contents(whole)
    assert len(TokenStore.open(whole).shards) == 6


@pytest.fixture
def command(tmp_path, corpus):
    """Starts prepare of the corpus in a process group of its own; none outlives the test."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND.format(vocab=str(VOCABULARY), unit_bytes=UNIT_BYTES))

    started = []

    def start(workers: int, store: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, script, str(workers), store, *corpus],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_killed_at_random_moments_ends_the_same(command, whole, tmp_path, workers):
    rng = random.Random(workers)
    store = tmp_path / "store"
    kills = resumed = 0
    for _ in range(20):
        process = command(workers, store)
        if kills < 6:
            while process.poll() is None and not (store / "progress" / "settings.json").exists():
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()  # the parent alone: workers must end by themselves
            kills += 1
        stderr = process.communicate(timeout=200)[1]
        resumed += "units are finished already" in stderr
        if process.returncode == 0:
            break
    print(f"{kills} kills, {resumed} of the starts found finished units")
    assert process.returncode == 0, stderr
    assert contents(store) == contents(whole)
    TokenStore.open(store).verify()


def test_workers_end_when_their_parent_is_killed(command, tmp_path):
    process = command(2, tmp_path / "store")
    children = wait_for(lambda: psutil.Process(process.pid).children(), process)
    wait_for(lambda: list(tmp_path.glob("store/train/*")), process)  # the first of six units
    process.kill()
    process.communicate()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert gone


def wait_for(condition, process):
    for _ in range(2000):
        if found := condition():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("waited 20 s in vain")


def test_a_killed_worker_is_reported_and_what_is_finished_is_kept(corpus, whole, tmp_path):
    store = tmp_path / "store"

    def kill() -> None:
        while not list(store.glob("progress/0*.json")):
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    settings = {
        "vocab": VOCABULARY,
        "output": store,
        "holdout": 0.1,
        "workers": 2,
        "progress": False,
    }
    with pytest.raises(TryAgain, match=r"worker process of prepare died .signal 9"):
        prepare(corpus, **settings)
    killer.join()
    assert list(store.glob("progress/0*.json"))
    assert not list(store.rglob("*.tmp"))
    with pytest.raises(UserError, match="not complete: prepare was interrupted"):
        TokenStore.open(store)
    prepare(corpus, **settings)
    assert contents(store) == contents(whole)


@pytest.fixture
def begun(corpus, whole, tmp_path, monkeypatch) -> Path:
    """A store of which the first two units are finished and the third failed."""
    real = units.prepare_unit
    store = tmp_path / "store"

    def fail_late(unit, *rest):
        if unit.index == 2:
            raise OSError(5, "Input/output error")
        real(unit, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("albert_jax.data.prepare.local_runner.prepare_unit", fail_late)
        with pytest.raises(UserError, match="Input/output error; correct that"):
            prepare(corpus, vocab=VOCABULARY, output=store, holdout=0.1, workers=1, progress=False)
    return store


def test_restart_takes_only_what_is_not_finished(corpus, whole, begun, monkeypatch, capfd):
    made = []
    real = units.prepare_unit
    monkeypatch.setattr(
        "albert_jax.data.prepare.local_runner.prepare_unit",
        lambda unit, *rest: (made.append(unit.index), real(unit, *rest)),
    )
    prepare(corpus, vocab=VOCABULARY, output=begun, holdout=0.1, workers=1)
    assert made == [2, 3, 4, 5]
    assert "2 of 6 units are finished already" in capfd.readouterr().err
    assert contents(begun) == contents(whole)
    prepare(corpus, vocab=VOCABULARY, output=begun, holdout=0.1, workers=1)
    assert len(made) == 4
    assert "complete already" in capfd.readouterr().err


def test_a_damaged_record_or_missing_shard_is_made_again(corpus, whole, begun):
    (begun / "progress" / "00000.json").write_text("{")
    next(begun.glob("train/00001.tokens")).unlink()
    (begun / "train" / "00009.tokens").write_bytes(b"of another plan")
    prepare(corpus, vocab=VOCABULARY, output=begun, holdout=0.1, workers=1, progress=False)
    assert contents(begun) == contents(whole)


def test_restart_with_other_settings_or_vocabulary_is_refused(corpus, begun, whole, tmp_path):
    other = other_vocabulary(tmp_path)
    for store in (begun, whole):
        before = contents(store)
        for change, message in (
            ({"vocab": other}, "made with another vocabulary .vocabulary.sha256"),
            ({"holdout": 0.2}, r"other settings \(holdout 0\.1 there, 0\.2 now\)"),
            ({"do_lower_case": False}, "vocabulary.do_lower_case True there, False now"),
        ):
            settings = {
                "vocab": VOCABULARY,
                "holdout": 0.1,
                "workers": 1,
                "progress": False,
            } | change
            with pytest.raises(UserError, match=message):
                prepare(corpus, output=store, **settings)
        assert contents(store) == before
    with pytest.raises(UserError, match="made of other inputs"):
        prepare(corpus[:1], vocab=VOCABULARY, output=whole, holdout=0.1, progress=False)


def other_vocabulary(folder: Path) -> Path:
    """The same pieces under another hash: a field that SentencePiece does not know is appended."""
    path = folder / "other.model"
    path.write_bytes(VOCABULARY.read_bytes() + b"\xc2\xbb\x01\x00")
    return path


def test_inputs_that_changed_are_read_again(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(3):
        make_text(folder / f"{i}.txt", UNIT_BYTES, seed=i)
    store, fresh = tmp_path / "store", tmp_path / "fresh"
    settings = {"vocab": VOCABULARY, "workers": 1, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(folder, output=store, **settings)
    assert len(list(store.glob("progress/0*.json"))) == 3
    text = (folder / "1.txt").read_text()
    (folder / "1.txt").write_text(text.replace("Python", "Monty."))
    prepare(folder, output=store, **settings)
    prepare(folder, output=fresh, **settings)
    assert contents(store) == contents(fresh)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format_version": "x"}', b"\xff"])
def test_damaged_settings_of_a_begun_store_are_one_line_that_helps(corpus, whole, begun, content):
    settings = begun / "progress" / "settings.json"
    settings.write_bytes(content)
    again = {"vocab": VOCABULARY, "output": begun, "holdout": 0.1, "workers": 1, "progress": False}
    with pytest.raises(UserError, match=r"settings\.json is damaged .*; delete that file and run"):
        prepare(corpus, **again)
    settings.unlink()
    finished = (begun / "progress" / "00001.json").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(corpus, **again)
    assert (begun / "progress" / "00001.json").stat().st_mtime_ns == finished
    prepare(corpus, **again)
    assert contents(begun) == contents(whole)


def _flip(text: str) -> str:
    return text.replace('"lines_cut": ', '"lines_cut": 1').replace("files_lines", "files_limes")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "null",
        lambda text: text.replace('"tokens": ', '"tokens": 1'),
        lambda text: text.replace('"splits"', '"split"'),
        lambda text: text.replace('"train": {', '"train": {"shards": 3, '),
        lambda text: re.sub('"token_counts": ".', '"token_counts": "A', text),
        lambda text: re.sub('"key": "[^"]*"', '"key": [[]]', text),
        _flip,
    ],
)
def test_a_record_that_is_not_what_was_written_has_its_unit_made_again(
    corpus, whole, begun, change
):
    record = begun / "progress" / "00001.json"
    text = record.read_text()
    assert change(text) != text
    record.write_text(change(text))
    prepare(corpus, vocab=VOCABULARY, output=begun, holdout=0.1, workers=1, progress=False)
    assert contents(begun) == contents(whole)


def test_a_complete_store_that_was_damaged_since_is_not_called_complete(corpus, whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / "store")
    again = {"vocab": VOCABULARY, "output": store, "holdout": 0.1, "workers": 1, "progress": False}
    file = store / "heldout" / "00002.sentences"
    content = file.read_bytes()
    for damage, message in (
        (lambda: file.write_bytes(content[:4] + b"?" + content[5:]), "is damaged: its SHA-256"),
        (lambda: file.write_bytes(content[:-4]), "has .* bytes where"),
        (file.unlink, "cannot be read"),
    ):
        damage()
        with pytest.raises(
            UserError, match=f"00002.sentences {message}.*; delete .*store and run the same command"
        ):
            prepare(corpus, **again)
    shutil.rmtree(store)  # as it says
    prepare(corpus, **again)
    assert contents(store) == contents(whole)


def test_a_file_whose_name_is_no_utf8_is_read_and_named(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("One. \n\nTwo.\n")
    for _ in range(2):
        manifest = prepare(
            folder, vocab=VOCABULARY, output=tmp_path / "s", workers=1, progress=False
        )
        assert manifest["inputs"] == [{"path": f"{folder}/caf\\xe9.txt", "bytes": 12}]
    assert TokenStore.open(tmp_path / "s").manifest == manifest


def test_a_folder_with_a_dangling_link_is_not_taken_for_an_empty_one(small, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="holds link, which is no part of a store"):
        prepare(small, vocab=VOCABULARY, output=store, progress=False)


def test_a_manifest_that_cannot_be_read_is_one_line(small, tmp_path):
    (tmp_path / "store" / "manifest.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read \(Is a directory\)"):
        prepare(small, vocab=VOCABULARY, output=tmp_path / "store", progress=False)


def test_a_second_prepare_of_the_same_store_is_refused(
    command, corpus, whole, tmp_path, monkeypatch
):
    real = units.prepare_unit
    store = tmp_path / "store"
    told = []

    def while_another_starts(*arguments):
        if not told:
            second = command(1, store)
            told.append(second.communicate(timeout=100)[1])
            assert second.returncode == 1
        return real(*arguments)

    monkeypatch.setattr("albert_jax.data.prepare.local_runner.prepare_unit", while_another_starts)
    prepare(corpus, vocab=VOCABULARY, output=store, holdout=0.1, workers=1, progress=False)
    assert "Busy: another prepare is writing" in told[0].splitlines()[-1]
    assert contents(store) == contents(whole)


# -------------------------------------------------------------------------------------- bad input


DAMAGED = gzip.compress(b"Text.\n\nMore.\n" * 999, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"", {}, "no text in"),
        (b"\n \n\x00\n\xe2\x80\xa8\n", {}, "no text in"),
        (b"No extract.\n", {"format": "wiki"}, "no text in .*format='text'"),
        (b"Good.\n\nBad \xff.\n", {"strict": True}, "invalid UTF-8 at byte 11"),
        # A name of its own: the header holds the time, and processes of tests compare names.
        pytest.param(DAMAGED, {}, "is a damaged gz file", id="damaged"),
        (b"Text.\n", {"holdout": 1.0}, "holdout 1.0 must lie in"),
        (b"Text.\n", {"workers": 0}, "workers 0 must be at least 1"),
        (b"Text.\n", {"format": "html"}, "format 'html' is unknown"),
        (b"Text.\n", {"vocab": "absent.model"}, "absent.model"),
        (b"Text.\n", {"vocab": REPOSITORY / "pyproject.toml"}, "is no SentencePiece model"),
        *(
            (
                b"Text.\n",
                {"vocab": DATA / "tokenizer" / "zh_vocab.txt", "mode": mode},
                f"has no mode {mode}, but wordpiece; leave the mode out",
            )
            for mode in ("hf", "google")
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, content, settings, message):
    (tmp_path / "text").write_bytes(content)
    store = tmp_path / "store"
    with pytest.raises(UserError, match=message) as raised:
        prepare(
            tmp_path / "text",
            **{"vocab": VOCABULARY, "output": store, "progress": False} | settings,
        )
    assert "\n" not in str(raised.value)
    assert not store.exists()


def test_the_command_ends_with_one_line_and_status_2(tmp_path, small, run_cli):
    store = tmp_path / "a store"
    done = run_cli("prepare", tmp_path / "absent", "--vocab", VOCABULARY, "--output", store)
    assert (done.rc, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no such file: " in done.stderr
    assert not store.exists()
    done = run_cli("prepare", small, "--vocab", VOCABULARY, "--output", store)
    assert done.rc == 0, done.stderr
    TokenStore.open(store).verify()


def test_strict_fails_late_without_a_trace_of_the_unit(tmp_path):
    make_text(tmp_path / "a.txt", UNIT_BYTES)
    make_text(tmp_path / "b.txt", UNIT_BYTES)
    with open(tmp_path / "b.txt", "ab") as stream:
        stream.write(b"\xff")
    store = tmp_path / "store"
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"b\.txt: invalid UTF-8 at byte"):
            prepare(
                [tmp_path / "a.txt", tmp_path / "b.txt"],
                vocab=VOCABULARY,
                output=store,
                strict=True,
                workers=workers,
                progress=False,
            )
        assert not list(store.rglob("*.tmp"))
        assert not list(store.rglob("00001*"))


def test_a_vocabulary_of_the_wrong_layout_or_size_is_refused(tmp_path, small, monkeypatch):
    monkeypatch.setattr(module, "MAX_VOCAB_SIZE", 7999)
    with pytest.raises(UserError, match="has 8000 pieces; a store holds at most 7999"):
        prepare(small, vocab=VOCABULARY, output=tmp_path / "store", progress=False)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(small.read_text().splitlines()),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "t5.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match="at ids 0 to 4 where an ALBERT vocabulary has"):
        prepare(small, vocab=tmp_path / "t5.model", output=tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_what_is_no_store_is_not_overwritten(tmp_path, small):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds thesis\.txt, which is no part of a store"):
        prepare(small, vocab=VOCABULARY, output=tmp_path / "folder", progress=False)
    (tmp_path / "a file").write_text("precious")
    with pytest.raises(UserError, match="a file is a file; name a folder"):
        prepare(small, vocab=VOCABULARY, output=tmp_path / "a file", progress=False)
    for name in ("folder/thesis.txt", "a file"):
        assert (tmp_path / name).read_text() == "precious"


def test_a_vocabulary_of_ones_own_is_not_taken_for_the_stores(tmp_path, small):
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    shutil.copy(VOCABULARY, folder / "spiece.model")
    with pytest.raises(UserError, match=r"holds spiece\.model, which is no part of a store"):
        prepare(small, vocab=folder, output=folder, progress=False)
    assert [file.name for file in folder.iterdir()] == ["spiece.model"]


@pytest.mark.parametrize("given", ["texts", "texts/", "texts/**", "texts/**/*", "."])
@pytest.mark.parametrize("output", ["texts", "texts/store", "texts/more/store"])
def test_a_store_in_an_input_folder_is_refused(tmp_path, monkeypatch, given, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts" / "more").mkdir(parents=True)
    make_text(tmp_path / "texts" / "more" / "a.txt", 3000)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"^{output} lies in the input .*; name another place for"):
        prepare(given, vocab=VOCABULARY, output=output, progress=False)
    assert contents(tmp_path) == before


def test_a_store_around_its_input_is_refused(tmp_path):
    (tmp_path / "store").mkdir()
    text = make_text(tmp_path / "store" / "a.txt", 3000)
    (tmp_path / "link").symlink_to(text)
    for given in (text, tmp_path / "link", tmp_path / "store" / "*.txt"):
        with pytest.raises(UserError, match=r"store holds the input .*; name another place for"):
            prepare(given, vocab=VOCABULARY, output=tmp_path / "store", progress=False)
    with pytest.raises(UserError, match=r"a\.txt is the input itself; name another place"):
        prepare(text, vocab=VOCABULARY, output=text, progress=False)
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["a.txt"]


def test_a_store_beside_its_input_and_a_hidden_one_are_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    make_text(tmp_path / "texts" / "a.txt", 3000)
    for given, output in (
        ("texts", "texts.store"),
        ("texts/*.txt", "texts/store"),
        ("texts/a.txt", "texts/store2"),
        ("texts", "texts/.store"),
    ):
        for _ in range(2):  # what was written is not read
            prepare(given, vocab=VOCABULARY, output=output, workers=1, progress=False)


# -------------------------------------------------------------------------------- disk and memory


@pytest.fixture
def little_disk(tmp_path):
    """A file system of 1.5 MB."""
    with mounted_disk(tmp_path / "disk", "1500k", lazily=True) as path:
        yield path


def test_too_small_a_disk_is_refused_before_the_start(corpus, little_disk):
    (little_disk / "other").write_bytes(bytes(1_300_000))
    with pytest.raises(UserError, match=r"needs about .*kB and its disk has .*kB free"):
        prepare(corpus, vocab=VOCABULARY, output=little_disk / "store", progress=False)
    assert not (little_disk / "store").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_leaves_finished_units_and_goes_on_later(
    corpus, whole, little_disk, monkeypatch, workers
):
    monkeypatch.setattr("albert_jax.data.prepare.forecast.Forecast.check_disk", lambda *_: None)
    other, store = little_disk / "other", little_disk / "store"
    other.write_bytes(bytes(900_000))
    settings = {"vocab": VOCABULARY, "output": store, "holdout": 0.1, "workers": workers}
    with pytest.raises(UserError, match=r"disk of .*store is full: .*B free, about .*kB needed"):
        prepare(corpus, progress=False, **settings)
    assert not list(store.rglob("*.tmp"))
    assert len(list(store.glob("progress/0*.json"))) >= 1
    assert not (store / "manifest.json").exists()
    other.unlink()
    prepare(corpus, progress=False, **settings)
    assert contents(store) == contents(whole)


def test_a_disk_full_from_the_start_leaves_nothing(corpus, little_disk, monkeypatch):
    monkeypatch.setattr("albert_jax.data.prepare.forecast.Forecast.check_disk", lambda *_: None)
    (little_disk / "other").write_bytes(bytes(1_530_000))
    with pytest.raises(UserError, match="is full"):
        prepare(corpus, vocab=VOCABULARY, output=little_disk / "store", workers=1, progress=False)
    assert [file.name for file in little_disk.iterdir()] == ["other"]


def test_a_disk_that_cannot_be_written_is_one_line_and_a_store_on_it_can_be_read(
    corpus, whole, begun, small, little_disk
):
    (little_disk / "texts").mkdir()
    shutil.copy(small, little_disk / "texts" / "a.txt")
    settings = {"vocab": VOCABULARY, "workers": 1, "progress": False}
    prepare(little_disk / "texts", output=little_disk / "store", **settings)
    shutil.copytree(begun, little_disk / "begun")
    before = contents(little_disk)
    subprocess.run(["mount", "-o", "remount,ro", little_disk], check=True)
    prepare(little_disk / "texts", output=little_disk / "store", **settings)  # complete already
    TokenStore.open(little_disk / "store").verify()
    for text, store in ((small, "new"), (corpus, "begun")):
        with pytest.raises(UserError, match="Read-only file system; correct that and run the same"):
            prepare(text, output=little_disk / store, **settings | {"holdout": 0.1})
    assert contents(little_disk) == before
    subprocess.run(["mount", "-o", "remount,rw", little_disk], check=True)
    prepare(corpus, output=little_disk / "begun", **settings | {"holdout": 0.1})
    assert contents(little_disk / "begun") == contents(whole)


def test_forecast_is_near_the_truth(corpus, whole, tmp_path, capfd):
    prepare(corpus, vocab=VOCABULARY, output=tmp_path / "store", holdout=0.1, workers=1)
    stderr = capfd.readouterr().err
    expected = float(stderr.split("expected: ")[1].split("k tokens")[0])
    manifest = TokenStore.open(whole).manifest
    tokens = sum(manifest["splits"][split]["tokens"] for split in SPLITS)
    assert expected * 1e3 == pytest.approx(tokens, rel=0.2)
    assert "free)" in stderr
    assert "one sentence a line" in stderr


MEMORY = """
import sys
from albert_jax.data.prepare.build import prepare
prepare(sys.argv[2:], vocab={vocab!r}, output=sys.argv[1], workers=1, progress=False)
# ru_maxrss would be that of the process which started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line))
"""


@pytest.mark.slow
def test_memory_stays_flat_as_the_input_grows(tmp_path):
    (tmp_path / "memory.py").write_text(MEMORY.format(vocab=str(VOCABULARY)))
    block = make_text(tmp_path / "block", 2_500_000).read_bytes()
    peaks = []
    for times in (1, 10):
        path = tmp_path / f"{times}.txt.gz"
        path.write_bytes(gzip.compress(block, 1) * times)  # one unit: members follow each other
        done = run_python(tmp_path / "memory.py", str(tmp_path / f"store{times}"), str(path))
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
        shutil.rmtree(tmp_path / f"store{times}")
    print(f"peak RSS {peaks[0]:.0f} MB at 2.5 MB of text, {peaks[1]:.0f} MB at 25 MB")
    assert peaks[1] < peaks[0] + 6  # the text is 22 MB longer, its tokens take 11 MB more
    assert peaks[1] < 120


# What takes most memory for its size: the text, how often it is repeated, how it is read.
GREEDY = {
    "a few words": ("One.\n\nTwo.\n", 1, "auto"),
    "blank lines": ("\n", 12 << 20, "auto"),
    "lines of one character": ("中\n", 3 << 18, "auto"),
    "wrapped lines of one character": ("中\n", 3 << 18, "wrapped"),
    "documents of one character": ("中\n\n", 1 << 18, "auto"),
    "a line without end": ("a", 6 << 20, "auto"),
    "words without end": ("ab ", 2 << 20, "wrapped"),
    "invalid bytes": ("\udcff", 3 << 20, "auto"),
    "wiki extracts": ("<doc>\n中\n</doc>\n", 1 << 17, "auto"),
}
MEASURE = """
import sys
from pathlib import Path
from albert_jax.data.prepare.build import prepare
from albert_jax.utils.errors import UserError
for number, text in enumerate(sys.argv[1:]):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it takes now
    sentences = text.rpartition("-")[2].removesuffix(".gz")
    try:
        prepare(text, vocab={vocab!r}, output=f"{{text}}.store", workers=1, sentences=sentences,
                progress=False)
    except UserError as error:
        assert "no text in" in str(error), error
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10)
"""


@pytest.mark.slow
def test_no_small_file_takes_memory_out_of_proportion(tmp_path):
    """At most 110 MB more than for two words, as a block, a line, a document, a batch have bounds;
    without those, every text here takes from 130 MB to 270 MB more."""
    files = []
    for name, (text, times, sentences) in GREEDY.items():
        data = text.encode("utf-8", "surrogateescape") * times
        if name == "invalid bytes":
            data = b"\n" * (1 << 12) + data  # by its beginning it would be no text
        files.append(tmp_path / f"{name}-{sentences}.gz")
        files[-1].write_bytes(gzip.compress(data, 6))
        assert files[-1].stat().st_size < 20_000
    (tmp_path / "measure.py").write_text(MEASURE.format(vocab=str(VOCABULARY)))
    done = run_python(tmp_path / "measure.py", *map(str, files))
    assert done.returncode == 0, done.stderr
    least, *peaks = map(int, done.stdout.split())
    taken = dict(zip(list(GREEDY)[1:], (peak - least for peak in peaks), strict=True))
    print(taken)
    assert max(taken.values()) < 110, taken


def test_reading_settings_reach_the_store(tmp_path):
    (tmp_path / "text").write_text("One. Two. Three.\n\nFour. Five.\n")
    lengths = {}
    for sentences in ("lines", "split"):
        store = tmp_path / sentences
        prepare(
            tmp_path / "text", vocab=VOCABULARY, output=store, sentences=sentences, progress=False
        )
        lengths[sentences] = sorted(len(d) for s in SPLITS for d in sentences_of(store, s))
        assert TokenStore.open(store).manifest["reading"] == {
            "format": "text",
            "sentences": sentences,
            "strict": False,
            "language": "en",
        }
    assert lengths == {"lines": [1, 1], "split": [2, 3]}
    assert Reading().sentences == "auto"


def test_text_that_the_vocabulary_does_not_know_is_told(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("THE CAT SAT ON THE MAT.\n\nIT SAW A DOG.\n")
    for lowered in (True, False):
        prepare(
            tmp_path / "text.txt",
            vocab="mini",
            output=tmp_path / f"store-{lowered}",
            workers=1,
            do_lower_case=lowered,
        )
        said = capsys.readouterr().err
        assert ("% of the tokens are <unk>, of which nothing can be learnt" in said) != lowered
        assert "upper-case" not in said
