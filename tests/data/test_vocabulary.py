# SPDX-License-Identifier: Apache-2.0
"""`train-tokenizer` reads what `prepare` reads: the same sentences from every kind of input."""

import gzip
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

import albert_jax
from albert_jax.config.packaged import packaged_path
from albert_jax.data import vocabulary as module
from albert_jax.data.prepare.build import prepare
from albert_jax.data.text.documents import read_documents
from albert_jax.data.text.lines import Reading
from albert_jax.data.tokenizer import Tokenizer, VocabularySettings, train_on_lines
from albert_jax.data.vocabulary import train_tokenizer
from albert_jax.utils.errors import UserError
from tests.helpers.texts import make_text

LINES = [line for text in topics.values() for line in text.splitlines() if line.strip()]
WIKI = (
    '<doc id="1" url="https://en.wikipedia.org/wiki?curid=1" title="A thing">\n'
    "A thing\n\nA thing is a part of the world that is of some use to somebody there. It is old.\n"
    "Section.\nSome say that there is no such thing, and others say that there are very many.\n"
    "</doc>\n"
)


@pytest.fixture
def trained_on(monkeypatch) -> list[str]:
    """The sentences that the trainer gets; nothing is trained."""
    found: list[str] = []

    def train(lines, output, settings, *, progress):
        found.extend(lines)
        return Path(output) / "spiece.model"

    monkeypatch.setattr(module, "train_on_lines", train)
    return found


def sentences_of(inputs, **reading) -> list[str]:
    return [s for document in read_documents(inputs, Reading(**reading)) for s in document]


def test_a_file_of_a_sentence_a_line_gives_the_vocabulary_of_its_lines(tmp_path: Path) -> None:
    text = make_text(tmp_path / "text.txt", 60_000)
    text.write_text(text.read_text() + "The \x00Café\u2028 is\tover  there.\r\nIt is.\rSo it is.\n")
    (tmp_path / "text.gz").write_bytes(gzip.compress(text.read_bytes()))
    with open(text, encoding="utf-8") as lines:
        expected = train_on_lines(lines, tmp_path / "lines", VocabularySettings(vocab_size=70))
    for inputs in ([text], str(text), tmp_path / "text.gz"):
        path = train_tokenizer(inputs, output=tmp_path / "file", vocab_size=70)
        assert path.read_bytes() == expected.read_bytes()
    assert path.with_suffix(".vocab").read_bytes() == expected.with_suffix(".vocab").read_bytes()


def test_training_repeats_itself_from_files_and_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    half = 600
    (tmp_path / "a.txt").write_text("\n".join(LINES[:half]) + "\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(LINES[half : 2 * half]))
    files = [tmp_path / "a.txt", str(tmp_path / "b.txt.gz")]
    options = {"output": tmp_path / "out", "vocab_size": 400, "input_sentence_size": 900}
    first = train_tokenizer(files, sentences="lines", **options).read_bytes()
    assert capfd.readouterr() == (
        "",
        "SentencePiece trains on 1,200 sentences; millions of them take minutes\n"
        "vocabulary of 400 pieces from 1,200 sentences\n"
        "files: one sentence a line 2\n",
    )
    again = albert_jax.train_tokenizer(iter(LINES[: 2 * half]), **options)  # the public name
    assert again.read_bytes() == first


def test_a_wiki_extract_gives_its_text_and_no_markup(tmp_path: Path, trained_on) -> None:
    (tmp_path / "extracted" / "AA").mkdir(parents=True)
    (tmp_path / "extracted" / "AA" / "wiki_00").write_text(WIKI)
    (tmp_path / "extracted" / "AA" / "wiki_01.gz").write_bytes(gzip.compress(WIKI.encode()))
    train_tokenizer(tmp_path / "extracted", output=tmp_path / "vocab")
    assert trained_on == sentences_of(tmp_path / "extracted")
    assert len(trained_on) == 6
    assert not {"<doc", "url=", "wiki?"} & set(" ".join(trained_on).split())


@pytest.mark.parametrize(
    ("inputs", "reading"),
    [
        (["prose.txt"], {}),
        (["prose.txt"], {"sentences": "lines"}),
        (["wrapped.txt"], {}),
        (["wrapped.txt"], {"sentences": "lines"}),
        (["*.txt"], {}),
        (["."], {}),
        (["python-docs"], {}),
        (["wiki"], {"format": "wiki"}),
        (["prose.txt"], {"language": "de"}),
    ],
)
def test_the_trainer_gets_the_sentences_of_prepare(
    tmp_path: Path, monkeypatch, trained_on, inputs, reading
) -> None:
    rng = random.Random(0)
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    sentences = [f"It is {rng.randint(1, 10**9)} so it is not that many." for _ in range(80)]
    paragraphs = [" ".join(sentences[i : i + 8]) for i in range(0, 80, 8)]
    Path("prose.txt").write_text("\n\n".join(paragraphs))
    words, lines = " ".join(sentences).split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 66:
            lines.append("")
        lines[-1] += f" {word}"
    Path("wrapped.txt").write_text("\n".join(line.strip() for line in lines))
    Path("wiki").write_text(WIKI)
    train_tokenizer(inputs, output=tmp_path / "vocab", **reading)
    assert trained_on == sentences_of(inputs, **reading)
    assert len(trained_on) >= 3


def test_text_in_a_bucket_and_a_tfds_data_set_are_read(tmp_path: Path, trained_on, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/text/a.txt", b"One.\n\nTwo.\n")
    train_tokenizer("memory://bucket/text", output=tmp_path)
    files.rm("/bucket", recursive=True)
    assert trained_on == ["One.", "Two."]
    trained_on.clear()
    asked = []

    def open_source(name, split, data_dir, field):
        asked.append((name, split, data_dir))
        examples = [{"text": b"Three. Four."}]
        return module_of_tfds.TextSource(examples, "text", 12)

    from albert_jax.data.text import tfds_text as module_of_tfds

    monkeypatch.setattr(module_of_tfds, "open_source", open_source)
    train_tokenizer("test", output=tmp_path, format="tfds:tiny", data_dir="here")
    assert trained_on == ["Three.", "Four."]
    assert set(asked) == {("tiny", "test", "here")}


def test_accents_are_kept_from_training_to_the_store_and_what_is_made_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The letters of German; without the flag both drop them, as the original does."""
    text = tmp_path / "a.txt"
    text.write_text("Die Käse für Übergröße.\nÖl über dem Fluß, schöne Grüße.\n\nÄpfel.\n" * 30)
    shared: dict[str, Any] = {"do_lower_case": False, "keep_accents": True}
    vocab = train_tokenizer(text, output=tmp_path / "vocab", vocab_size=42, **shared)
    store = prepare(text, vocab=vocab, output=tmp_path / "store", progress=False, **shared)
    assert store["vocabulary"]["keep_accents"] is True
    for given in (tmp_path / "store", vocab):
        settings = {} if given is not vocab else shared
        found = Tokenizer.load(given, **settings)
        assert found.decode(found.encode("Käse für Übergröße").ids) == "Käse für Übergröße"
    # The store says how its vocabulary cleans text, and a store that is made with it does the same.
    again = prepare(text, vocab=tmp_path / "store", output=tmp_path / "again", progress=False)
    assert again["vocabulary"] == store["vocabulary"]
    assert again["splits"] == store["splits"]
    # Without the flags its upper-case pieces would be lost.
    said = (
        r"has \d+ pieces with upper-case letters, which lower-cased text never uses; prepare with"
    )
    prepare(text, vocab=vocab, output=tmp_path / "cased", **shared)
    assert not re.search(said, capsys.readouterr().err)
    prepare(text, vocab=vocab, output=tmp_path / "lowered")
    assert re.search(said, capsys.readouterr().err)
    # A setting that is given as it is recorded changes nothing.
    assert Tokenizer.load(tmp_path / "store", do_lower_case=False).keep_accents


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"vocab_size": 0}, "vocab_size 0 must be at least 1"),
        ({"input_sentence_size": -3}, "input_sentence_size -3 must be at least 0"),
        ({"character_coverage": 2.0}, r"character_coverage 2\.0 must lie in \[0\.98, 1\]"),
    ],
)
def test_settings_that_the_trainer_cannot_have_are_named(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        train_tokenizer(iter(["a"]), output=tmp_path, **settings)


def test_inputs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"some text\n" * 1000)[:-20])
    (tmp_path / "odd.txt").write_bytes(b"One.\n\xff\n")
    for inputs, settings, message in (
        (tmp_path / "empty", {}, "no text to train a vocabulary on; give"),
        ([], {}, "no input was given"),
        (tmp_path / "none" / "absent", {}, "no such file: .*absent"),
        ([tmp_path / "cut.gz"], {}, r"cut\.gz is a damaged gz file"),
        (tmp_path / "odd.txt", {"strict": True}, r"odd\.txt: invalid UTF-8 at byte 5"),
        (tmp_path / "empty", {"format": "pdf"}, "format 'pdf' is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            train_tokenizer(inputs, output=tmp_path / "out", vocab_size=50, **settings)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_among_its_inputs_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    text = make_text(Path("texts") / "a.txt", 9000)
    for output in ("texts", "texts/vocab"):
        with pytest.raises(UserError, match=f"^{output} lies in the input texts"):
            train_tokenizer("texts", output=output)
    train_tokenizer(text, output="texts", vocab_size=60)  # only this file is read, now and later
    kept = Path("texts/spiece.vocab").read_bytes()
    with pytest.raises(UserError, match=r"texts/spiece\.(model|vocab) is the input itself"):
        train_tokenizer("texts/*", output="texts", vocab_size=60)
    assert Path("texts/spiece.vocab").read_bytes() == kept


def test_a_vocabulary_that_belongs_to_a_store_a_model_or_a_run_stays(tmp_path: Path) -> None:
    text = make_text(tmp_path / "a.txt", 9000)
    model = shutil.copytree(packaged_path("mini"), tmp_path / "model")
    store = tmp_path / "store"
    prepare(text, vocab=model, output=store)
    run = tmp_path / "run"
    (run / "checkpoints" / "2" / "meta").mkdir(parents=True)
    begun = tmp_path / "begun"  # before its first checkpoint
    (begun / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        (begun / name).write_text("{}")
    for folder in (model, store, run, begun):
        with pytest.raises(UserError, match=f"{folder} is a token store, a model or a work dir"):
            train_tokenizer(text, output=folder, vocab_size=60)
    assert (model / "spiece.model").read_bytes() == (store / "spiece.model").read_bytes()


@pytest.mark.parametrize(
    ("inside", "names"),
    [
        ("", ("config.json", "model.safetensors", "spiece.model", "tokenizer.json")),
        ("", ("config.json", "tokenizer_config.json", "tokenizer.json")),
        ("", ("30k-clean.model", "albert_config.json", "model.ckpt-best.index")),
        ("", ("model.ckpt-1.index", "model.ckpt-1.data-00000-of-00002")),
        ("", ("serving.json", "params.npz", "spiece.model")),
        ("", ("adapter_config.json", "adapter_model.safetensors")),
        ("", ("seed-0/checkpoints/0",)),
        ("vocab", ("manifest.json", "spiece.model", "train/0.tokens")),
        ("params", ("manifest.json", "albert_config.json", "params/d")),
        ("", ("config.json", "spiece.model")),  # of a run before its first checkpoint
        ("", ("30k-clean.model", "30k-clean.vocab")),
        ("", ("tokenizer.json",)),
        ("", ("vocab.txt",)),
    ],
)
def test_no_folder_gets_a_vocabulary_that_is_not_its_own(
    tmp_path: Path, inside: str, names: tuple[str, ...]
) -> None:
    text = make_text(tmp_path / "a.txt", 9000)
    folder = tmp_path / "folder"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("own")
    for inputs in (text, iter(["a sentence"])):
        with pytest.raises(UserError, match="; give another folder"):
            train_tokenizer(inputs, output=folder / inside, vocab_size=60)
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert {str(path.relative_to(folder)) for path in found} == set(names)
    assert {path.read_text() for path in found} == {"own"}


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_config.json", "serving.json"])
def test_a_project_that_keeps_a_downloaded_model_may_have_a_vocabulary(
    tmp_path: Path, name: str
) -> None:
    for own in ("config.json", name):
        (tmp_path / own).write_text("own")
    text = make_text(tmp_path / "a.txt", 9000)
    train_tokenizer(text, output=tmp_path / "runs" / "vocab", vocab_size=60)


@pytest.mark.parametrize(
    "name", ["checkpoints/epoch-3.pt", "checkpoints/7/weights.bin", "config.json", "search.index"]
)
def test_a_project_may_have_a_vocabulary_beside_files_of_its_own(tmp_path: Path, name: str) -> None:
    text = make_text(tmp_path / "a.txt", 9000)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("own")
    train_tokenizer(text, output=tmp_path, vocab_size=60)
    assert (tmp_path / name).read_text() == "own"


def test_a_folder_above_that_cannot_be_listed_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = make_text(tmp_path / "a.txt", 9000)
    listed = os.listdir

    def listdir(path: Path) -> list[str]:  # root may list all
        if Path(path) == tmp_path.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr("os.listdir", listdir)
    train_tokenizer(text, output=tmp_path / "vocab", vocab_size=60)


def test_an_older_vocabulary_of_its_own_is_replaced_also_beside_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "manifest.json").write_text("{}")  # a corpus's
    text = make_text(tmp_path / "train" / "a.txt", 9000)
    for size in (60, 70):
        train_tokenizer(text, output=tmp_path / "vocab", vocab_size=size)
        assert Tokenizer.load(tmp_path / "vocab").vocab_size == size


def test_the_command_shows_how_far_it_is_and_takes_prepares_flags(tmp_path: Path, run_cli) -> None:
    (tmp_path / "wiki").write_text(WIKI * 40)
    flags = ("--format", "wiki", "--sentences", "split", "--language", "en", "--strict")
    done = run_cli(
        "train-tokenizer",
        tmp_path / "wiki",
        "--vocab-size",
        "42",
        "--output",
        tmp_path / "v",
        *flags,
    )
    assert (done.rc, done.stdout) == (0, f"{tmp_path}/v/spiece.model\n")
    assert done.stderr.splitlines() == [
        "SentencePiece trains on 120 sentences; millions of them take minutes",
        "vocabulary of 42 pieces from 120 sentences",
        "files: wiki extracts 1",
        "mended or left out: short lines dropped 80",
    ]
    assert Tokenizer.load(tmp_path / "v").vocab_size == 42


BAR = """
import sys
from albert_jax.data import vocabulary

vocabulary.SAID_AFTER_SECONDS = 0.0
sys.stderr.isatty = lambda: True
vocabulary.train_tokenizer(sys.argv[1], output=sys.argv[2], vocab_size=60)
"""


def test_on_a_terminal_there_is_a_bar_while_text_is_read(tmp_path: Path) -> None:
    text = make_text(tmp_path / "text.txt", 400_000)
    done = subprocess.run(
        [sys.executable, "-c", BAR, text, tmp_path / "v"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "read text: " in done.stderr
    assert done.stderr.index("read text") < done.stderr.index("SentencePiece trains on")
