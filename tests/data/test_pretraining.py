# SPDX-License-Identifier: Apache-2.0
"""What a pretraining run trains on: a store made of its own text, labels that teach nothing."""

import dataclasses
import json
import os
import random
import textwrap
import time
from pathlib import Path

import pytest

from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig
from albert_jax.data import pretraining as module
from albert_jax.data.prepare.build import prepare
from albert_jax.data.pretraining import objective_warnings, open_data
from albert_jax.data.tfrecord import write_records
from albert_jax.data.vocabulary import train_tokenizer
from albert_jax.utils.errors import UserError
from tests.helpers.pretraining_runs import TINY, VOCABULARY, make_store, tiny_config, write_corpus


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def lone_sentences(tmp_path_factory) -> Path:
    """A beginner's commonest layout: an empty line after every sentence; two between stories."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("lone") / "text.txt"
    words = ["the", "list", "of", "a", "string", "is", "not", "open"]
    sentences = [" ".join(rng.choices(words, k=9)).capitalize() + "." for _ in range(320)]
    stories = ["\n\n".join(sentences[i : i + 8]) for i in range(0, 320, 8)]
    path.write_text("\n\n\n".join(stories) + "\n")
    return path


def prepared(text: Path, store: Path, **settings) -> Path:
    prepare(text, vocab=VOCABULARY, output=store, holdout=0.1, workers=1, **settings)
    return store


# --------------------------------------------------------------------- labels that teach nothing


def warnings(store: Path | str, **examples) -> list[str]:
    config = tiny_config(store, "unused")
    examples = {"max_seq_length": 32, "max_predictions_per_seq": 4} | examples
    config = dataclasses.replace(config, examples=ExamplesConfig(**examples))
    return objective_warnings(open_data(config, None), config)


def test_an_ordinary_store_has_no_warning(store, lone_sentences, tmp_path, capfd):
    assert warnings(store) == []
    assert warnings(store, objective="nsp") == []
    assert "one sentence" not in capfd.readouterr().err.replace("one sentence a line", "")


def test_documents_of_one_sentence_are_said_by_prepare_and_by_the_plan(
    lone_sentences, store, tmp_path, capfd
):
    lone = prepared(lone_sentences, tmp_path / "lone")
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("prepare: nearly all documents have one sentence")
    for objective, name in (("sop", "sentence-order"), ("nsp", "next-sentence")):
        [warning] = warnings(lone, objective=objective)
        assert warning.startswith(f"100% of the {name} labels are 1, so that they teach nothing")
        for text in (said, warning):
            assert "examples.objective='none'" in text
            assert "sentences='wrapped'" in text
    assert warnings(f"{store}:0.1,{lone}:0.9") != []
    assert warnings(f"{store}:0.5,{lone}:0.5") == []


def test_a_text_that_is_one_document_is_said_by_prepare_with_the_way_out(tmp_path, capfd):
    wrapped = " ".join(f"The line {number} is long enough to be wrapped." for number in range(99))
    text = "\n\n".join(f"Part {n}. {textwrap.fill(wrapped, 60)}" for n in range(3))
    (tmp_path / "text.txt").write_text(text)
    prepare(tmp_path / "text.txt", vocab=VOCABULARY, output=tmp_path / "one", workers=1)
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("prepare: all of the text is one document, so nothing is held out")
    prepare(
        tmp_path / "text.txt",
        vocab=VOCABULARY,
        output=tmp_path / "three",
        sentences="split",
        workers=1,
    )
    assert "all of the text is one document" not in capfd.readouterr().err


def test_each_of_the_ways_out_that_are_named_is_one(lone_sentences, tmp_path, capfd):
    lone = prepared(lone_sentences, tmp_path / "lone", progress=False)
    assert warnings(lone, objective="none") == []
    assert warnings(lone, single_segment="split") == []
    wrapped = prepared(lone_sentences, tmp_path / "wrapped", sentences="wrapped")
    assert "nearly all documents" not in capfd.readouterr().err
    assert warnings(wrapped) == []


def test_records_whose_labels_are_all_alike_are_said(store, tmp_path):
    config = tiny_config(store, tmp_path)
    source = open_data(config, None).train
    for alike in (True, False):
        examples = [source.draw(i) for i in range(60)]
        if alike:
            examples = [
                e | {"sentence_order_labels": e["sentence_order_labels"] * 0} for e in examples
            ]
        write_records(tmp_path / "a.tfrecord", examples)
        config = dataclasses.replace(
            config, store=str(tmp_path / "*.tfrecord"), vocab=str(VOCABULARY)
        )
        found = objective_warnings(open_data(config, None), config)
        assert bool(found) == alike
        assert not found or found[0].startswith("100% of the sentence-order labels are 0")


# ------------------------------------------------------------------------------- a run's own text


@pytest.fixture
def of_text(tmp_path) -> tuple[PretrainConfig, Path]:
    text = write_corpus(tmp_path / "corpus.txt")
    workdir = tmp_path / "run"
    config = dataclasses.replace(
        tiny_config("", workdir),
        store=None,
        text=(str(text),),
        model=dataclasses.replace(TINY, vocab_size=38),
    )
    return config, workdir


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"text": 3}', b"\xff", None])
def test_a_vocabulary_of_which_it_is_not_known_is_made_again(of_text, content):
    config, workdir = of_text
    open_data(config, workdir)
    made_of, model = (workdir / "vocabulary" / name for name in ("made_of.json", "spiece.model"))
    first = model.read_bytes()
    assert json.loads(made_of.read_text()) == {"text": list(config.text), "vocab_size": 38}
    if content is None:
        model.unlink()
    else:
        made_of.write_bytes(content)
        model.write_bytes(b"of something else")
    open_data(config, workdir)
    assert model.read_bytes() == first
    assert json.loads(made_of.read_text()) == {"text": list(config.text), "vocab_size": 38}
    assert sorted(f.name for f in (workdir / "vocabulary").iterdir()) == [
        "made_of.json",
        "spiece.model",
        "spiece.vocab",
    ]


def test_the_text_of_a_run_that_starts_from_a_model_may_not_change(of_text, tmp_path):
    config, workdir = of_text
    other = tmp_path / "other.txt"
    other.write_text("Other text.\n\nMore of it.\n")
    config = dataclasses.replace(config, init_from="mini")
    store = open_data(_of_mini(config), workdir).vocab.parent
    assert store == workdir / "store"
    with pytest.raises(UserError, match=r"store was made of .*, and .*other\.txt with 8,000 is"):
        open_data(_of_mini(dataclasses.replace(config, text=(str(other),))), workdir)


def _of_mini(config):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=8000))


@pytest.mark.parametrize("init_from", [None, "mini"])
def test_text_that_has_changed_is_not_trained_on_as_it_was(of_text, tmp_path, capsys, init_from):
    config, workdir = of_text
    folder = tmp_path / "own"
    folder.mkdir()
    write_corpus(folder / "a.txt")
    config = dataclasses.replace(config, text=(f"{folder}/*.txt",), init_from=init_from)
    config = _of_mini(config) if init_from else config
    store = open_data(config, workdir).vocab.parent
    open_data(config, workdir)
    write_corpus(folder / "b.txt", documents=70)
    with pytest.raises(UserError, match=r"store was made of other text .*gone: .*b\.txt\); give a"):
        open_data(config, workdir)
    (folder / "b.txt").unlink()
    open_data(config, workdir)
    (folder / "a.txt").write_text("Other text.\n\nMore of it.\n")
    with pytest.raises(UserError, match=r"gone: .*a\.txt\); .*or store=.* in place of text"):
        open_data(config, workdir)
    write_corpus(folder / "a.txt")
    os.utime(folder / "a.txt", (time.time() + 60, time.time() + 60))
    open_data(config, workdir)
    assert "store is made already, but" in capsys.readouterr().err
    (folder / "new.txt").write_bytes(b"PK\x03\x04")  # which is no text
    with pytest.raises(UserError, match=r"gone: .*new\.txt\)"):
        open_data(config, workdir)
    (folder / "new.txt").unlink()
    everything = dataclasses.replace(config, text=(f"{tmp_path}/**/*.txt",))
    inside = tmp_path / "of-all"
    open_data(everything, inside)
    (inside / "vocab.txt").write_text("its own\n")
    open_data(everything, inside)
    (folder / "a.txt").unlink()
    open_data(config, workdir)  # a finished store does not need it
    assert store.is_dir()


def test_the_vocabulary_may_be_a_models_name(of_text):
    config, workdir = of_text
    config = _of_mini(dataclasses.replace(config, vocab="mini"))
    assert open_data(config, workdir).vocab.parent == workdir / "store"
    with pytest.raises(UserError, match="the model base-v2 is not on this machine yet; fetch it"):
        open_data(dataclasses.replace(config, vocab="base-v2"), workdir / "other")


def test_a_vocabulary_of_other_text_is_refused(of_text):
    config, workdir = of_text
    open_data(config, workdir)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=39))
    told = r"corpus\.txt with 38 pieces, and .* with 39 is asked for; give"
    with pytest.raises(UserError, match=told):
        open_data(other, workdir)


def test_a_store_of_other_text_is_not_taken_for_that_of_a_new_vocabulary(of_text, tmp_path):
    config, workdir = of_text
    open_data(config, workdir)
    (workdir / "vocabulary" / "made_of.json").write_text("")
    other = write_corpus(tmp_path / "other.txt", documents=70)
    with pytest.raises(
        UserError, match=r"store (is complete and was made of|was made with an)other"
    ):
        open_data(dataclasses.replace(config, text=(str(other),)), workdir)


def test_a_damaged_store_of_a_runs_own_text_says_what_to_do(of_text):
    config, workdir = of_text
    open_data(config, workdir)
    file = workdir / "store" / "train" / "00000.tokens"
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    with pytest.raises(UserError, match=r"tokens is damaged.*; delete .*store to have it made"):
        open_data(config, workdir)


def test_a_work_directory_in_its_text_is_refused(of_text, tmp_path):
    config, workdir = of_text
    config = dataclasses.replace(config, text=(str(tmp_path),))
    with pytest.raises(UserError, match=r"run lies in the input .*another place for workdir"):
        open_data(config, workdir)
    assert not workdir.exists()


def test_a_full_disk_while_the_vocabulary_is_written_is_one_line(of_text, monkeypatch):
    config, workdir = of_text
    real = Path.write_text

    def write_text(self, *args, **kwargs):
        real(self, "{", encoding="utf-8")
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "write_text", write_text)
        with pytest.raises(UserError, match="vocabulary NOT written: No space left on device"):
            open_data(config, workdir)
    assert not (workdir / "vocabulary" / "made_of.json").exists()
    open_data(config, workdir)


def heldout_rows(data):
    return [data.heldout[i]["input_ids"].tolist() for i in range(len(data.heldout))]


def test_another_store_s_held_out_split_takes_the_place_of_the_store_s(store, tmp_path):
    other = prepared(write_corpus(tmp_path / "other.txt", documents=90), tmp_path / "other")
    config = tiny_config(store, tmp_path / "run")
    alone, theirs = (open_data(tiny_config(of, tmp_path / "run"), None) for of in (store, other))
    for stores in (str(store), f"{store}:0.5,{other}:0.5"):
        data = open_data(dataclasses.replace(config, store=stores, heldout=str(other)), None)
        assert heldout_rows(data) == heldout_rows(theirs) != heldout_rows(alone)
        assert data.baselines == theirs.baselines
    one = open_data(dataclasses.replace(config, heldout=str(other)), None)
    assert one.identity == alone.identity  # a run may be evaluated on another text when it resumes


def test_a_held_out_store_that_cannot_be_is_refused(store, tmp_path):
    config = tiny_config(store, tmp_path / "run")
    text = write_corpus(tmp_path / "text.txt")
    prepare(text, vocab=VOCABULARY, output=tmp_path / "whole", holdout=0.0, workers=1)
    train_tokenizer(text, output=tmp_path / "vocab", vocab_size=36)
    prepare(text, vocab=tmp_path / "vocab", output=tmp_path / "foreign", holdout=0.3, workers=1)
    for name, words in [
        ("whole", "has no held-out document; prepare it with holdout=0.5"),
        ("foreign", "was made with another vocabulary"),
        ("nowhere", "does not exist; give a store"),
    ]:
        with pytest.raises(UserError, match=words):
            open_data(dataclasses.replace(config, heldout=str(tmp_path / name)), None)


def test_a_held_out_store_whose_text_was_cleaned_otherwise_is_refused(store, tmp_path):
    text = write_corpus(tmp_path / "text.txt")
    prepare(
        text,
        vocab=VOCABULARY,
        output=tmp_path / "cased",
        holdout=0.3,
        workers=1,
        do_lower_case=False,
    )
    config = dataclasses.replace(tiny_config(store, tmp_path / "run"), heldout=f"{tmp_path}/cased")
    with pytest.raises(
        UserError, match=r"cleaned otherwise .*\(do_lower_case False and not True\)"
    ):
        open_data(config, None)


def test_a_key_of_text_that_must_be_named_is_said_to_be_prepares(of_text, tmp_path):
    config, workdir = of_text
    text = tmp_path / "a.jsonl"
    text.write_text('{"body": "A text.", "title": "x"}\n')
    told = "name another key with field of prepare"
    with pytest.raises(UserError, match=told):
        open_data(dataclasses.replace(config, text=(str(text),)), workdir)
