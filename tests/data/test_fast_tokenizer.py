# SPDX-License-Identifier: Apache-2.0
"""Modes hf-fast and wordpiece against what transformers 4 and 5 made of the same strings."""

import itertools
import json
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data import tokenizer_json
from albert_jax.data.special_pieces import ALBERT_IDS, SPECIAL_PIECES, SpecialIds
from albert_jax.data.tokenizer import Tokenizer, document_of
from albert_jax.tasks.base import pair_features
from albert_jax.utils.errors import UserError
from tests.helpers.compressed import read_compressed, unpack
from tests.helpers.fast_tokenizers import write_transformers_5
from tests.helpers.paths import DATA

FILES = DATA / "tokenizer"
EN8K, CHINESE = FILES / "en8k.model", FILES / "zh_vocab.txt"
GOLDEN = {n: json.loads(read_compressed(FILES / f"transformers{n}.json")) for n in (4, 5)}


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("tokenizers", reason="needs the tokenizers library")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(FILES, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder5(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers 5 saves it: tokenizer.json alone, with all of its settings."""
    return write_transformers_5(files, tmp_path_factory.mktemp("transformers5"))


def ids_of(tokenizer: Tokenizer, rows: list[Any]) -> list[list[int]]:
    return [e.ids for e in tokenizer.encode_batch([text for text, _, _ in rows])]


# ----------------------------------------------------------------------- equal to transformers


@pytest.mark.extras
def test_a_folder_of_transformers_5_gives_its_ids(library: Any, folder5: Path) -> None:
    tokenizer = Tokenizer.load(folder5)
    assert (tokenizer.mode, tokenizer.do_lower_case, tokenizer.keep_accents) == (
        "hf-fast", True, False
    )  # fmt: skip
    rows = GOLDEN[5]["lower"]
    assert ids_of(tokenizer, rows) == [ids for _, ids, _ in rows]
    assert len(rows) > 300
    other = [ids for _, ids, _ in GOLDEN[4]["lower"]]
    assert ids_of(tokenizer, rows) != other, "the two versions differ, and so the file counts"


@pytest.mark.extras
@pytest.mark.parametrize("case", ["lower", "cased"])
def test_hf_fast_of_a_sentencepiece_model_is_albert_converters(
    library: Any, files: Path, case: str
) -> None:
    tokenizer = Tokenizer.load(files / "cased.model", mode="hf-fast", do_lower_case=case == "lower")
    rows = GOLDEN[4][case]
    assert ids_of(tokenizer, rows) == [ids for _, ids, _ in rows]


@pytest.mark.extras
def test_hf_fast_gives_the_earlier_goldens_of_another_vocabulary(library: Any, files: Path) -> None:
    tokenizer = Tokenizer.load(EN8K, mode="hf-fast")
    golden = json.loads((files / "tokenizer_en8k.json").read_text(encoding="utf-8"))
    for row in golden["strings"]:
        assert tokenizer.encode(row["text"]).ids == row["hf_fast"]["ids"], row["text"]


@pytest.mark.extras
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("wordpiece", {}),
        ("wordpiece_cased", {"do_lower_case": False}),
        ("wordpiece_accents", {"do_lower_case": True, "keep_accents": True}),
    ],
)
def test_wordpiece_gives_bert_tokenizers_ids_and_offsets(
    library: Any, version: int, name: str, settings: dict[str, bool]
) -> None:
    tokenizer = Tokenizer.load(CHINESE, **settings)
    assert tokenizer.mode == "wordpiece"
    for text, ids, offsets in GOLDEN[version][name]:
        encoding = tokenizer.encode(text)
        assert encoding.ids == ids, text
        assert encoding.offsets == [tuple(span) for span in offsets], text


@pytest.mark.extras
def test_offsets_are_transformers_without_white_space(library: Any, files: Path) -> None:
    tokenizer = Tokenizer.load(files / "cased.model", mode="hf-fast")
    compared = 0
    for text, _, offsets in GOLDEN[4]["lower"]:
        if re.search(r"[^\s!-~]|``|''|\[[A-Z]|<", text):
            continue
        for token, (start, end), (first, last) in zip(
            tokenizer.encode(text).tokens, tokenizer.encode(text).offsets, offsets, strict=True
        ):
            if token != "\u2581":
                stripped = text[first:last].lstrip()
                assert (start, end) == (last - len(stripped), last), (text, token)
                compared += 1
    assert compared > 500


# ---------------------------------------------------------------------------- the same interface


@pytest.mark.extras
@given(
    text=st.text(st.characters(), max_size=60)
    | st.text(st.sampled_from("a1,ﬁ½ﷺ¨Σİ\ud800\u0301\u200b\x00 ``''▁[MASK]<pad>天"), max_size=40),
    kind=st.sampled_from(["hf-fast", "wordpiece"]),
    parse=st.booleans(),
)
def test_any_text_encodes_with_offsets_in_order(
    library: Any, text: str, kind: str, parse: bool
) -> None:
    tokenizer = _loaded(kind)
    encoding = tokenizer.encode(text, parse_special=parse)
    starts = [start for start, _ in encoding.offsets]
    assert starts == sorted(starts)
    assert all(0 <= start <= end <= len(text) for start, end in encoding.offsets)
    assert len(encoding.ids) == len(encoding.tokens) == len(encoding.offsets)
    plain = tokenizer.encode_ids([text])[0]
    assert plain == tokenizer.encode(text, parse_special=False).ids
    assert tokenizer.encode_ids([text], parse_special=parse)[0] == encoding.ids
    assert not {*tokenizer.special} - {tokenizer.special.unk} & {*plain}, "text is no special token"
    tokenizer.decode(encoding.ids)


_LOADED: dict[str, Tokenizer] = {}


def _loaded(kind: str) -> Tokenizer:
    if kind not in _LOADED:
        _LOADED[kind] = Tokenizer.load(EN8K if kind == "hf-fast" else CHINESE, mode=kind)  # type: ignore[arg-type]
    return _LOADED[kind]


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["hf-fast", "wordpiece"])
def test_batches_threads_and_pickles_do_not_change_the_result(library: Any, kind: str) -> None:
    tokenizer = _loaded(kind)
    texts = ["Hello worlds, 今天 [MASK]", "", "x 1,000", "天气"] * 5
    single = [tokenizer.encode(text) for text in texts]
    for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert copy.encode_batch(texts) == copy.encode_batch(iter(texts), threads=1) == single
        plain = [e.ids for e in copy.encode_batch(texts, parse_special=False)]
        assert copy.encode_ids(texts) == copy.encode_ids(texts, threads=3) == plain
    assert tokenizer.encode_batch([]) == tokenizer.encode_ids([]) == []


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["hf-fast", "wordpiece"])
def test_a_pair_of_a_task_is_cut_as_the_library_cuts_it(library: Any, kind: str) -> None:
    tokenizer = _loaded(kind)
    made = library.Tokenizer.from_str(json.dumps(document_of(tokenizer)))
    for count, other, length in itertools.product((1, 5, 6, 9), (1, 5, 6, 9), (9, 10, 12, 13)):
        texts = ("天 " * count, "气 " * other)
        made.enable_truncation(length, strategy="longest_first")
        theirs = made.encode(*texts)
        assert pair_features(tokenizer, texts, length) == (theirs.ids, theirs.type_ids)


@pytest.mark.extras
def test_special_ids_are_the_vocabularys_own(library: Any) -> None:
    tokenizer = _loaded("wordpiece")
    assert tokenizer.special == SpecialIds(pad=0, unk=4, cls=5, sep=6, mask=7)
    assert _loaded("hf-fast").special == ALBERT_IDS
    encoding = tokenizer.encode("今[MASK] 天zz", add_special_tokens=True)
    assert encoding.ids[0] == 5
    assert encoding.ids[-1] == 6
    assert encoding.ids[2] == 7
    assert encoding.tokens == ["[CLS]", "今", "[MASK]", "天", "zz", "[SEP]"], "unknown text is said"
    assert tokenizer.decode(encoding.ids, skip_special_tokens=True) == "今 天"
    plain = tokenizer.encode("[MASK]", parse_special=False)
    assert 7 not in plain.ids
    assert tokenizer.encode_ids(["今[MASK] 天zz"], parse_special=None) == [encoding.ids[1:-1]]


@pytest.mark.extras
def test_words_start_at_all_pieces_but_continuations(library: Any) -> None:
    tokenizer = _loaded("wordpiece")
    starts = dict(zip(tokenizer.pieces, tokenizer.starts_word.tolist(), strict=True))
    assert starts["天"]
    assert starts["hello"]
    assert not starts["##s"]
    assert not starts["##天"]
    assert np.array_equal(_loaded("hf-fast").starts_word, Tokenizer.load(EN8K).starts_word)


@pytest.mark.extras
def test_added_tokens_count_as_pieces(library: Any, folder5: Path, tmp_path: Path) -> None:
    """As transformers' add_tokens and resize_token_embeddings leave a model."""
    document = json.loads((folder5 / "tokenizer.json").read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    for number, name in ((2500, "<Entity>"), (2502, "covid")):
        token = {"id": number, "content": name, "special": False} | plain
        document["added_tokens"].append(token)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    size = tokenizer.vocab_size
    assert size > 2500
    assert tokenizer.pieces[2500:] == ["<Entity>", "covid"] or tokenizer.pieces[2502] == "covid"
    encoding = tokenizer.encode("the <Entity> covid")
    assert [tokenizer.pieces[i] for i in encoding.ids][-1] == "covid"
    assert len(tokenizer.starts_word) == size


@pytest.mark.extras
def test_padding_and_truncation_of_the_file_are_left_out(
    library: Any, folder5: Path, tmp_path: Path
) -> None:
    fast = library.Tokenizer.from_file(str(folder5 / "tokenizer.json"))
    fast.enable_truncation(3)
    fast.enable_padding(length=8)
    fast.save(str(tmp_path / "tokenizer.json"))
    text = "The list of the functions that return"
    assert Tokenizer.load(tmp_path).encode(text) == Tokenizer.load(folder5).encode(text)


# ------------------------------------------------------------------------- a tokenizer.json of ours


@pytest.mark.extras
@pytest.mark.parametrize("mode", ["google", "hf"])
@pytest.mark.parametrize("name", ["en8k", "cased"])
@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"keep_accents": True}])
def test_an_exported_tokenizer_json_gives_a_modes_ids(
    library: Any, files: Path, mode: Any, name: str, settings: dict[str, Any]
) -> None:
    """But for numbers of which SentencePiece chose a piece that ends in digit and comma."""
    ours = Tokenizer.load(files / f"{name}.model", mode=mode, **settings)
    fast = library.Tokenizer.from_str(json.dumps(document_of(ours)))
    texts = [text for text, _, _ in GOLDEN[4]["lower"]]
    wrong = [
        text
        for text in texts
        if fast.encode(text, add_special_tokens=False).ids
        != ours.encode(text, parse_special=True).ids
    ]
    numbers = [text for text in texts if re.search(r"\d,", text)]
    assert set(wrong) <= set(numbers)
    assert len(numbers) < len(texts) / 2
    assert len(wrong) <= 0.8 * len(numbers)


@pytest.mark.extras
def test_an_exported_tokenizer_json_of_the_others_is_the_tokenizer_itself(
    library: Any, folder5: Path
) -> None:
    texts = [text for text, _, _ in GOLDEN[4]["lower"]]
    for tokenizer in (_loaded("hf-fast"), _loaded("wordpiece"), Tokenizer.load(folder5)):
        fast = library.Tokenizer.from_str(json.dumps(document_of(tokenizer)))
        found = [e.ids for e in fast.encode_batch(texts, add_special_tokens=False)]
        assert found == [e.ids for e in tokenizer.encode_batch(texts)]


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({}, r"tokenizer\.json has no model; ALBERT's is Unigram"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "has a model of type BPE"),
        ({"model": {"type": "Unigram", "vocab": [["<s>", 0.0]]}}, "Unigram model that begins with"),
        ({"model": {"type": "WordPiece", "vocab": {"[PAD]": 0}}}, r"without \[UNK\], \[CLS\]"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(
    tmp_path: Path, document: Any, told: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=told):
        Tokenizer.load(tmp_path)


PIECES = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5}


@pytest.mark.parametrize("number", ["5", -1, 4, 2.5, True, 300_000_000])
def test_a_piece_without_an_id_of_its_own_is_refused(tmp_path: Path, number: Any) -> None:
    document = {"model": {"type": "WordPiece", "vocab": PIECES | {"a": number}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"has the piece 'a' at id .* an id of its own"):
        Tokenizer.load(tmp_path)


@pytest.mark.extras
@pytest.mark.parametrize(
    "model",
    [
        tokenizer_json.wordpiece(list(PIECES), True, False)["model"] | {"unk_token": "[OOV]"},
        {"type": "Unigram", "unk_id": None, "vocab": [[p, 0.0] for p in SPECIAL_PIECES]},
    ],
)
def test_a_model_without_an_id_for_unknown_text_is_refused_at_once(
    library: Any, tmp_path: Path, model: Any
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(UserError, match=r"is not read by tokenizers [\d.]+ \("):
        Tokenizer.load(tmp_path)


@pytest.mark.extras
def test_a_damaged_file_is_one_sentence(library: Any, tmp_path: Path, folder5: Path) -> None:
    text = (folder5 / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text[:-100], encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged or of another kind"):
        Tokenizer.load(tmp_path)
    changed = text.replace('"type": "Metaspace"', '"type": "Metaspice"')
    (tmp_path / "tokenizer.json").write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=r"is not read by tokenizers [\d.]+ \("):
        Tokenizer.load(tmp_path)
    document = json.loads(text)  # of which `tokenizers` has a panic of Rust's
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError, match=r"is not read by tokenizers [\d.]+ \("):
        Tokenizer.load(tmp_path)


def test_without_the_library_a_file_that_needs_it_says_so(
    tmp_path: Path, folder5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for path, mode in ((folder5, None), (CHINESE, None), (EN8K, "hf-fast")):
        with pytest.raises(UserError, match=r"needs the tokenizers library .*'albert-jax\[token"):
            Tokenizer.load(path, mode=mode)  # type: ignore[arg-type]


def test_a_vocab_txt_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("the\nof\n")
    with pytest.raises(UserError, match=r"vocab\.txt has no \[PAD\], \[UNK\], .* a piece a line"):
        Tokenizer.load(file)
    file.write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(UserError, match=r"vocab\.txt is no UTF-8"):
        Tokenizer.load(file)


@pytest.mark.extras
def test_a_mode_that_a_file_has_not_is_said(library: Any, folder5: Path) -> None:
    with pytest.raises(UserError, match=r"vocab\.txt has no mode google, but wordpiece"):
        Tokenizer.load(CHINESE, mode="google")
    with pytest.raises(UserError, match=r"en8k\.model has no mode wordpiece, but google or hf"):
        Tokenizer.load(EN8K, mode="wordpiece")
    file = folder5 / "tokenizer.json"
    with pytest.raises(UserError, match="has mode hf-fast, not wordpiece"):
        Tokenizer.load(file, mode="wordpiece")
    with pytest.raises(UserError, match="states that text is lower-cased, accents dropped"):
        Tokenizer.load(file, do_lower_case=False)


def test_accents_are_kept_where_a_folder_says_so(tmp_path: Path, files: Path) -> None:
    shutil.copyfile(files / "cased.model", tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text('{"keep_accents": true}')
    kept = Tokenizer.load(tmp_path)
    assert (kept.mode, kept.keep_accents, kept.do_lower_case) == ("hf", True, True)
    assert kept.settings == {"mode": "hf", "do_lower_case": True, "keep_accents": True}
    text = "Caf\u00e9 na\u00efve \ud800 e\u0301"
    assert kept.clean(text) == "caf\u00e9 na\u00efve \ufffd e\u0301"
    assert kept.encode(text).offsets[-1][1] == len(text)
    assert kept.encode(text).ids != Tokenizer.load(tmp_path, keep_accents=False).encode(text).ids


def test_sentencepiece_models_without_the_unigram_model_are_refused(tmp_path: Path) -> None:
    model = tokenizer_json.SentencePieceModel()
    model.trainer_spec.model_type = 2
    (tmp_path / "bpe.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="is no Unigram model"):
        tokenizer_json.read_spiece(tmp_path / "bpe.model")
