# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of transformers' folders: which mode a folder gets, and what `--to hf` writes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

import albert_jax
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.examples import PretrainingSource
from albert_jax.data.masking import word_starts
from albert_jax.data.prepare.build import prepare
from albert_jax.data.store import TokenStore
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.export import export_serving
from albert_jax.inference.predict import predict
from albert_jax.utils.errors import UserError
from tests.helpers.compressed import unpack
from tests.helpers.conversions import SMALL, made_up, write_original, write_transformers
from tests.helpers.fast_tokenizers import write_transformers_5
from tests.helpers.paths import DATA, VOCABULARY

FILES = DATA / "tokenizer"
CHINESE = FILES / "zh_vocab.txt"
TEXT = 'The "quick" (brown) fox, naïve Straße 1,000 '
BOTH = ("spiece.model", "tokenizer.json")
convert = albert_jax.convert

pytestmark = pytest.mark.extras


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("tokenizers", reason="needs the tokenizers library")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(FILES, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def folder5(files: Path, tmp_path: Path) -> Path:
    """A model with the tokenizer that transformers 5 saved, and embeddings padded to 2,560."""
    config = dataclasses.replace(SMALL, vocab_size=2560)
    folder = write_transformers(tmp_path / "v5", made_up(config), config)
    return write_transformers_5(files, folder)


@pytest.fixture
def chinese(tmp_path: Path) -> Path:
    """A model with BERT's tokenizer, as most Chinese ALBERTs are."""
    config = dataclasses.replace(SMALL, vocab_size=97)
    folder = write_transformers(tmp_path / "zh", made_up(config), config)
    shutil.copyfile(CHINESE, folder / "vocab.txt")
    return folder


def test_a_folder_of_tokenizer_json_alone_is_taken_and_said(
    folder5: Path, tmp_path: Path, capsys: Any
) -> None:
    report = convert(folder5, tmp_path / "model")
    assert report["vocabulary"] == "tokenizer.json"
    assert report["tokenizer"] == {"mode": "hf-fast", "do_lower_case": True}
    assert "text in mode hf-fast: transformers runs the folder's tokenizer.json" in (
        capsys.readouterr().err
    )
    assert any("rows 2,500 to 2,559 of the embeddings" in note for note in report["notes"])
    model = load_model(tmp_path / "model")
    assert model.manifest["format_version"] == 2, "older versions refuse it as newer"
    albert = albert_jax.load(tmp_path / "model")
    assert albert.tokenizer.encode(TEXT).ids == Tokenizer.load(folder5).encode(TEXT).ids
    [answer] = albert.fill_mask("the [MASK] of", top_k=1)
    assert 0 <= answer["token"] < 2500
    served = export_serving(tmp_path / "model", tmp_path / "served")
    assert Tokenizer.load(served).encode(TEXT) == albert.tokenizer.encode(TEXT)
    for to in ("hf", "albert-jax"):
        convert(tmp_path / "model", tmp_path / to, to)
        assert Tokenizer.load(tmp_path / to).encode(TEXT) == albert.tokenizer.encode(TEXT)
    notes = convert(tmp_path / "model", tmp_path / "tf", "tf")["notes"]
    assert any("tokenizer.json left out: the original reads" in note for note in notes)


def test_a_damaged_vocabulary_in_a_model_directory_is_found(folder5: Path, tmp_path: Path) -> None:
    convert(folder5, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"Lowercase", b"lowercase"))
    with pytest.raises(UserError, match=r"is damaged .*tokenizer\.json: SHA-256"):
        load_model(tmp_path / "model")


def test_tokens_that_transformers_added_are_taken_with_a_grown_model(
    folder5: Path, tmp_path: Path
) -> None:
    document = json.loads((folder5 / "tokenizer.json").read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document["added_tokens"].append({"id": 2500, "content": "<E>", "special": False, **plain})
    (folder5 / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    convert(folder5, tmp_path / "model")
    tokenizer = albert_jax.load(tmp_path / "model").tokenizer
    assert tokenizer.vocab_size == 2501
    assert 2500 in tokenizer.encode("a <E> b").ids
    (folder5 / "added_tokens.json").write_text('{"<F>": 2501}')
    with pytest.raises(UserError, match="its tokenizer has <F> at id 2501, which albert_jax's"):
        convert(folder5, tmp_path / "no")


@pytest.mark.parametrize(
    ("names", "config", "mode", "vocabulary"),
    [
        (("spiece.model",), {}, "hf", "spiece.model"),
        (BOTH, {}, "hf", "spiece.model"),
        (BOTH, {"backend": "tokenizers"}, "hf-fast", "tokenizer.json"),
        (BOTH, {"albert_jax_mode": "google"}, "google", "spiece.model"),
        (("tokenizer.json",), {}, "hf-fast", "tokenizer.json"),
        (("vocab.txt",), {}, "wordpiece", "vocab.txt"),
    ],
)
def test_the_files_of_a_folder_say_its_mode(
    files: Path, tmp_path: Path, names: Any, config: Any, mode: str, vocabulary: str
) -> None:
    (tmp_path / "5").mkdir()
    sources = {
        "spiece.model": files / "cased.model",
        "tokenizer.json": write_transformers_5(files, tmp_path / "5") / "tokenizer.json",
        "vocab.txt": CHINESE,
    }
    for name in names:
        shutil.copyfile(sources[name], tmp_path / name)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.mode, tokenizer.path.name) == (mode, vocabulary)
    if "tokenizer.json" in names:
        asked = Tokenizer.load(tmp_path, mode="hf-fast")
        assert asked.path.name == "tokenizer.json"


# ---------------------------------------------------------------------------------- WordPiece


def test_a_chinese_albert_is_converted_and_answers(chinese: Path, tmp_path: Path) -> None:
    report = convert(chinese, tmp_path / "model")
    assert report["vocabulary"] == "vocab.txt"
    assert report["tokenizer"] == {"mode": "wordpiece", "do_lower_case": True}
    albert = albert_jax.load(tmp_path / "model")
    [answer] = albert.fill_mask("今[MASK]天气好", top_k=1)
    assert answer["token_str"] == albert.tokenizer.pieces[answer["token"]]
    own = albert.tokenizer.special
    ids = albert.tokenizer.encode("今天").ids
    wanted = albert.forward(np.array([[own.cls, *ids, own.sep]])).sequence
    np.testing.assert_allclose(albert.encode(["今天"]).sequence, wanted, atol=1e-6)
    convert(tmp_path / "model", tmp_path / "hf", "hf")
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert {"vocab.txt", "tokenizer.json"} < names
    assert Tokenizer.load(tmp_path / "hf").encode("今天 Hello") == albert.tokenizer.encode(
        "今天 Hello"
    )


def test_case_and_accents_are_as_the_folder_says(chinese: Path, tmp_path: Path) -> None:
    config = chinese / "tokenizer_config.json"
    config.write_text('{"do_lower_case": true, "strip_accents": false}')
    assert convert(chinese, tmp_path / "kept")["tokenizer"] == {
        "mode": "wordpiece", "do_lower_case": True, "keep_accents": True
    }  # fmt: skip
    config.write_text('{"do_lower_case": false}')
    assert convert(chinese, tmp_path / "cased")["tokenizer"] == {
        "mode": "wordpiece", "do_lower_case": False
    }  # fmt: skip
    text = "Résumé 今天"
    for name, lower, keep in (("kept", True, True), ("cased", False, True)):
        own = Tokenizer.load(CHINESE, do_lower_case=lower, keep_accents=keep)
        found = albert_jax.load(tmp_path / name).tokenizer.encode(text).ids
        assert found == own.encode(text).ids
    config.write_text('{"tokenize_chinese_chars": false}')
    with pytest.raises(UserError, match="has Chinese characters that are not divided"):
        convert(chinese, tmp_path / "no")


def test_the_originals_chinese_archive_has_its_vocabulary_found(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, vocab_size=97)
    source = write_original(tmp_path / "tf", made_up(config), config).parent
    shutil.copyfile(CHINESE, source / "vocab_chinese.txt")
    report = convert(source, tmp_path / "model")
    assert report["vocabulary"] == "vocab_chinese.txt"
    assert report["tokenizer"]["mode"] == "wordpiece"
    assert (tmp_path / "model" / "vocab.txt").is_file()


def test_text_is_prepared_and_masked_by_a_wordpiece_vocabulary(tmp_path: Path) -> None:
    text = "今天天气很好\nhello unhappiness 我们去公园玩\n今天去公园 worlds\n\n" * 30
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    manifest = prepare(
        tmp_path / "text.txt", vocab=CHINESE, output=tmp_path / "store", workers=1, progress=False
    )
    assert manifest["vocabulary"]["mode"] == "wordpiece"
    assert manifest["vocabulary"]["file"] == "vocab.txt"
    store = TokenStore.open(tmp_path / "store")
    tokenizer = Tokenizer.load(store.vocab_path)
    assert tokenizer.mode == "wordpiece"
    first = store.shards[0]
    start, end = first.sentence_starts[:2]
    assert tokenizer.decode(first.tokens[start:end]) == "今 天 天 气 很 好"
    config = ExamplesConfig(max_seq_length=32, max_predictions_per_seq=8, ngram=1)
    source = PretrainingSource(
        store,
        config,
        seed=1,
        starts_word=word_starts(tokenizer, "marker"),
        special=tokenizer.special,
    )
    continued = {i for i, piece in enumerate(tokenizer.pieces) if piece.startswith("##")}
    masked = 0
    for index in range(len(source)):
        example = source[index]
        ids = example["input_ids"][example["input_mask"] > 0]
        assert ids[0] == tokenizer.special.cls
        assert ids[-1] == tokenizer.special.sep
        whole = example["input_ids"].copy()
        real = example["masked_lm_weights"] > 0
        positions = example["masked_lm_positions"][real]
        whole[positions] = example["masked_lm_ids"][real]
        for position in positions:  # a word is masked whole
            for beside in (position, position + 1):
                if int(whole[beside]) in continued:
                    assert {beside - 1, beside} <= set(positions.tolist())
                    masked += 1
    assert masked


# ---------------------------------------------------------------------- read by transformers itself


@pytest.mark.peers
@pytest.mark.parametrize("mode", ["google", "hf", "hf-fast", "wordpiece"])
def test_auto_tokenizer_gives_the_models_own_ids(
    chinese: Path, files: Path, tmp_path: Path, mode: Any
) -> None:
    """Of transformers 4 or 5, whichever is installed."""
    transformers = pytest.importorskip("transformers")
    if mode == "wordpiece":
        source = chinese
    else:
        config = dataclasses.replace(SMALL, vocab_size=2500)
        source = write_original(tmp_path / "tf", made_up(config), config).parent
        shutil.copyfile(files / "cased.model", source / "30k-clean.model")
    convert(source, tmp_path / "ours", mode=mode)
    notes = convert(tmp_path / "ours", tmp_path / "hf", "hf")["notes"]
    assert any("tokenizer.json cannot divide" in n for n in notes) == (mode in ("google", "hf"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
        theirs.save_pretrained(tmp_path / "saved")
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    ours = albert_jax.load(tmp_path / "ours").tokenizer
    texts = ['The list (of) "all"  functions.', "naïve ÉTÉ ﬁne [MASK] x", "今天hello 한국어 ", ""]
    for tokenizer in (theirs, again):
        for text in texts:
            found = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert found == ours.encode(text, parse_special=True).ids, text
        pair = tokenizer("the list", "the text")
        assert pair["input_ids"][0] == ours.special.cls
        assert sum(pair["token_type_ids"]) == len(ours.encode("the text").ids) + 1
    assert Tokenizer.load(tmp_path / "hf").settings == ours.settings


@pytest.mark.peers
def test_a_model_fine_tuned_in_transformers_answers_as_its_pipeline_does(tmp_path: Path) -> None:
    """With the fast tokenizer, on lines of Python's documentation; of transformers 4 or 5."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    lines = list(dict.fromkeys(x for text in topics.values() for x in text.splitlines()))
    kinds: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for line in lines:
        if len(line) > 20:
            kinds[1 if '"' in line else 2 if "(" in line else 0].append(line)
    train = [line for found in kinds.values() for line in found[:24]]
    dev = [line for found in kinds.values() for line in found[24:74]]
    (tmp_path / "base").mkdir()
    shutil.copyfile(VOCABULARY, tmp_path / "base" / "spiece.model")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "albert"}')
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        vocab_size=8000,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label={0: "other", 1: "quoted", 2: "bracketed"},
        label2id={"other": 0, "quoted": 1, "bracketed": 2},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
        model = transformers.AlbertForSequenceClassification(config)
        labels = torch.tensor([kind for kind in kinds for _ in range(24)])
        inputs = tokenizer(train, padding=True, truncation=True, max_length=64, return_tensors="pt")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(30):
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for part in (model.eval(), tokenizer):
            part.save_pretrained(tmp_path / "tuned")
        pipeline = transformers.pipeline(
            "text-classification", model=str(tmp_path / "tuned"), device="cpu", top_k=None
        )
        theirs = pipeline(dev, truncation=True, max_length=64)
    is_4 = transformers.__version__.startswith("4.")  # which writes spiece.model too
    report = convert(tmp_path / "tuned", tmp_path / "ours", mode="hf-fast" if is_4 else None)
    assert report["tokenizer"]["mode"] == "hf-fast"
    records = [{"text": line} for line in dev]
    ours = list(predict(tmp_path / "ours", records, task="single", max_seq_length=64))
    for answer, found in zip(ours, theirs, strict=True):
        wanted = {x["label"]: x["score"] for x in found}
        assert answer["prediction"] == max(wanted, key=wanted.__getitem__)
        assert answer["probabilities"] == pytest.approx(wanted, abs=2e-5)
    assert len({answer["prediction"] for answer in ours}) > 1
