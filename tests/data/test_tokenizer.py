# SPDX-License-Identifier: Apache-2.0
"""The tokenizer against what google-research/albert and transformers made of the same strings."""

import hashlib
import io
import itertools
import json
import os
import pickle
import re
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.special_pieces import MASK_ID, UNK_ID
from albert_jax.data.tokenizer import (
    MARKER,
    Tokenizer,
    VocabularySettings,
    clean_text,
    train_on_lines,
)
from albert_jax.utils.errors import TryAgain, UserError
from tests.helpers.compressed import read_compressed, unpack
from tests.helpers.paths import DATA

FILES = DATA / "tokenizer"
MODEL = FILES / "en8k.model"
GOOGLE = Tokenizer.load(MODEL)
CASED = Tokenizer.load(MODEL, do_lower_case=False)
HF = Tokenizer.load(MODEL, mode="hf")
LINES = [line for text in topics.values() for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(FILES, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["en8k", "cased"])
def golden(files: Path, request: pytest.FixtureRequest) -> tuple[dict, Path]:
    """What the originals made of 300 strings with a vocabulary, and its file."""
    text = (files / f"tokenizer_{request.param}.json").read_text(encoding="utf-8")
    return json.loads(text), files / f"{request.param}.model"


def text_tokens(tokens: list[str]) -> list[str]:
    return [token.replace(MARKER, "") for token in tokens]


# ------------------------------------------------------------------------- equal to the originals


@pytest.mark.parametrize("case", ["lower", "cased"])
def test_google_mode_gives_the_originals_ids(golden: tuple[dict, Path], case: str) -> None:
    expected, model = golden
    tokenizer = Tokenizer.load(model, do_lower_case=case == "lower")
    texts = [row["text"] for row in expected["strings"]]
    tf = [row["tf"] for row in expected["strings"]]
    cleaned = [clean_text(text, lower=case == "lower") for text in texts]
    assert cleaned == [row[f"preprocessed_{case}"] for row in tf]
    assert [tokenizer.encode(text).ids for text in texts] == [row[case]["ids"] for row in tf]
    assert tokenizer.encode_ids(texts) == [row[case]["ids"] for row in tf]
    for text, row in zip(texts, tf, strict=True):
        assert tokenizer.encode(text).tokens == row[case].get(
            "pieces", tokenizer.encode(text).tokens
        )


def test_digit_comma_rule_is_the_originals_on_uncleaned_text(golden: tuple[dict, Path]) -> None:
    expected, model = golden
    tokenizer = Tokenizer.load(model)
    for row in expected["strings"]:
        pieces = tokenizer._processor.encode(row["text"], out_type=str)
        split = [part for piece in pieces for part in tokenizer._split.get(piece, (piece,))]
        ids = [tokenizer._id(piece) for piece in split]
        assert ids == row["tf"]["raw_no_preprocess"]["ids"], row["text"]


def test_hf_mode_gives_the_slow_tokenizers_ids(golden: tuple[dict, Path]) -> None:
    expected, model = golden
    tokenizer = Tokenizer.load(model, mode="hf")
    for row in expected["strings"]:
        slow, ids = row["hf_slow"], row["hf_slow"]["ids"]
        encoding = tokenizer.encode(row["text"])
        assert encoding.ids == ids, row["text"]
        assert encoding.tokens == slow.get("pieces", encoding.tokens)
        special = tokenizer.encode(row["text"], add_special_tokens=True)
        assert special.ids == slow.get("ids_with_special", [2, *ids, 3])


def test_decoding_gives_the_originals_text(golden: tuple[dict, Path]) -> None:
    expected, model = golden
    google, hf = Tokenizer.load(model), Tokenizer.load(model, mode="hf")
    for row in expected["decode"]:
        assert hf.decode(row["ids"]) == row["hf_slow_decode"]
        # The slow one loses the space after <unk>; the fast one keeps it, and a leading one.
        assert google.decode(row["ids"]) == row["hf_fast_decode"].strip()


def test_pairs_are_the_slow_tokenizers(golden: tuple[dict, Path]) -> None:
    expected, model = golden
    tokenizer = Tokenizer.load(model, mode="hf")
    for row in expected["hf_pairs"]:
        a, b = (tokenizer.encode(row[name]).ids for name in "ab")
        while len(a) + len(b) + 3 > row["max_length"]:  # transformers' longest_first
            (a if len(a) > len(b) else b).pop()
        ids = [2, *a, 3, *b, 3]
        assert ids + [0] * (row["max_length"] - len(ids)) == row["slow"]["input_ids"], row


def test_offsets_are_the_fast_tokenizers_where_ids_agree(files: Path) -> None:
    """In printable ASCII without ``, where the fast one's do not drift; its hold leading space."""
    compared = 0
    for name in ("en8k", "cased"):
        tokenizer = Tokenizer.load(files / f"{name}.model", mode="hf")
        file = files / f"tokenizer_{name}.json"
        for row in json.loads(file.read_text(encoding="utf-8"))["strings"]:
            text, fast = row["text"], row["hf_fast"]
            encoding = tokenizer.encode(text)
            if re.search(r"[^\s!-~]|``|''|  ", text) or encoding.ids != fast["ids"]:
                continue
            compared += 1
            for token, (start, end), (first, last) in zip(
                encoding.tokens, encoding.offsets, fast["offsets"], strict=True
            ):
                if token != MARKER and token != "[MASK]":
                    stripped = text[first:last].lstrip()
                    assert (start, end) == (last - len(stripped), last), (text, token)
    assert compared >= 50


def test_word_starts_are_the_originals() -> None:
    """As token_boundary has them, which was made before the tokens were masked."""
    instances = json.loads(read_compressed(DATA / "pretraining" / "raw_instances.json"))
    ids = {piece: i for i, piece in enumerate(GOOGLE.pieces)}
    seen = set()
    for instance in itertools.chain(*instances.values()):
        tokens = list(instance["tokens"])
        for position, token in zip(
            instance["masked_lm_positions"], instance["masked_lm_labels"], strict=True
        ):
            tokens[position] = token
        for token, boundary in zip(tokens, instance["token_boundary"], strict=False):
            if token not in ("[CLS]", "[SEP]"):
                seen.add(token)
                assert GOOGLE.starts_word[ids.get(token, UNK_ID)] == boundary, token
    assert len(seen) > 1000


def test_word_starts_follow_the_rule_with_its_quirks() -> None:
    starts = dict(zip(GOOGLE.pieces, GOOGLE.starts_word, strict=True))
    for piece in ("<unk>", f"{MARKER}the", MARKER, ",", ".", "_", "'", "9", "1,", "–", "€"):
        assert starts[piece], piece
    for piece in ("s", "ing", "[CLS]", "[MASK]"):  # letters and its punctuation alone
        assert not starts[piece], piece


# ----------------------------------------------------------------------------------------- offsets

# One character cleaned is one character or none here, so that spans can be read back.
ONE_TO_ONE = st.text(
    st.sampled_from("abcdeABC0123456789,,,.-\"'()  \t\n\u00a0éÀñçøß\u0301\u0323中か字🎉–—£€жΩ[]"),
    max_size=60,
)


@given(text=ONE_TO_ONE, mode=st.sampled_from([GOOGLE, CASED, HF]))
def test_spans_read_as_their_pieces_and_leave_nothing_out(text: str, mode: Tokenizer) -> None:
    encoding = mode.encode(text, parse_special=False)
    spans = [mode._clean(text[start:end]) for start, end in encoding.offsets]
    if mode is HF and "''" in text:  # two characters make one
        return
    assert spans == text_tokens(encoding.tokens)
    assert "".join(spans) == mode._clean(text).replace(" ", "")


@given(
    text=st.text(st.characters(), max_size=80)
    | st.text(st.sampled_from("a1,ﬁ½ﷺ¨Σİ\ud800\u0301\u200b\x00 ``''▁[MASK]<pad>"), max_size=40),
    mode=st.sampled_from([GOOGLE, CASED, HF]),
    parse=st.booleans(),
)
def test_any_text_encodes_with_offsets_in_order(text: str, mode: Tokenizer, parse: bool) -> None:
    encoding = mode.encode(text, parse_special=parse)
    starts = [start for start, _ in encoding.offsets]
    assert starts == sorted(starts)
    assert all(0 <= start <= end <= len(text) for start, end in encoding.offsets)
    assert len(encoding.ids) == len(encoding.tokens) == len(encoding.offsets)
    assert mode.encode_ids([text])[0] == mode.encode(text, parse_special=False).ids
    assert mode.encode_ids([text, text], parse_special=parse) == [encoding.ids] * 2
    mode.decode(encoding.ids)


@pytest.mark.parametrize("tokenizer", [GOOGLE, HF], ids=["google", "hf"])
def test_every_code_point_keeps_offsets_in_step(tokenizer: Tokenizer) -> None:
    """Each between two letters, whose spans must not move. Most ideographs and Hangul left out."""
    blocks = [
        (0, 0x3400),
        (0xA000, 0xAD00),
        (0xD700, 0x11000),
        (0x1D000, 0x1F000),
        (0x2F800, 0x2FA20),
    ]
    for first in itertools.chain(*(range(*block, 64) for block in blocks)):
        text = "".join(f"q{chr(code)}z " for code in range(first, first + 64))
        encoding = tokenizer.encode(text)
        for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            body = token.replace(MARKER, "")
            if body in ("q", "z"):
                assert text[start].lower() == body or not text[start].isascii(), (first, token)
                assert end - start <= 2, (first, token)


def test_offsets_survive_what_cleaning_does_to_lengths() -> None:
    text = "  The\t\tﬁne cafe\u0301  É, in 1,234"
    encoding = GOOGLE.encode(text)
    spans = [text[start:end] for start, end in encoding.offsets]
    assert spans[:2] == ["The", "ﬁne"]
    assert "".join(spans) == "Theﬁnecafe\u0301É,in1,234"
    assert GOOGLE.encode("x9,").offsets == HF.encode("x9,").offsets == [(0, 1), (1, 2), (2, 3)]
    assert GOOGLE.encode("\u0301 b").offsets == [(2, 3)]  # a word of which nothing is left
    assert GOOGLE.encode("x9,").tokens == ["▁x", "▁9", ","]
    assert HF.encode("x9,").tokens == ["▁x", "9", ","]


# -------------------------------------------------------------------------------- special pieces


@pytest.mark.parametrize("tokenizer", [GOOGLE, HF], ids=["google", "hf"])
def test_literal_specials_become_ids_only_where_asked_for(tokenizer: Tokenizer) -> None:
    text = "The [MASK] sat[SEP]"
    encoding = tokenizer.encode(text, parse_special=True)
    assert encoding.ids == [14, 4, 13, 20, 893, 3]
    assert [text[start:end] for start, end in encoding.offsets] == [
        "The", "[MASK]", "", "s", "at", "[SEP]"
    ]  # fmt: skip
    plain = tokenizer.encode(text, parse_special=False)
    assert min(plain.ids) > MASK_ID
    assert plain.tokens[1:4] == ["▁[", "mask", "]"]
    assert min(GOOGLE.encode(text).ids) > MASK_ID
    assert GOOGLE.encode("[mask]", parse_special=True) == GOOGLE.encode("[mask]")
    assert tokenizer.encode_ids([text, "sat"], parse_special=True) == [encoding.ids, [13, 20, 893]]
    by_mode = encoding if tokenizer is HF else plain
    assert tokenizer.encode_ids([text], parse_special=None) == [by_mode.ids]
    assert tokenizer.clean(text) == "the [mask] sat[sep]"
    cleaned = tokenizer.clean(text, parse_special=None)
    assert tokenizer.encode_ids([cleaned], parse_special=None) == [by_mode.ids]


def test_added_specials_have_no_span() -> None:
    encoding = GOOGLE.encode("the", add_special_tokens=True)
    assert encoding.ids == [2, 14, 3]
    assert encoding.tokens == ["[CLS]", "▁the", "[SEP]"]
    assert encoding.offsets == [(0, 0), (0, 3), (0, 0)]
    assert GOOGLE.encode("", add_special_tokens=True).ids == [2, 3]


def test_decoding_can_leave_specials_out() -> None:
    ids = GOOGLE.encode("[CLS] the [MASK] world [SEP]", parse_special=True).ids
    assert GOOGLE.decode(ids) == "[CLS] the[MASK] world[SEP]"
    assert GOOGLE.decode(np.array(ids), skip_special_tokens=True) == "the world"
    assert HF.decode([2, 4, *ids[1:]]) == "[CLS][MASK] the[MASK] world[SEP]"
    with pytest.raises(UserError, match="id 8000 is not in the vocabulary, 0 to 7999"):
        GOOGLE.decode([5, 8000])


def test_lone_surrogates_read_as_replacement_characters() -> None:
    for tokenizer in (GOOGLE, CASED, HF):
        assert tokenizer.encode("a\ud800b\udfff") == tokenizer.encode("a\ufffdb\ufffd")
        assert tokenizer.encode_ids(["\udead"]) == tokenizer.encode_ids(["\ufffd"])


# ---------------------------------------------------------------------------- batches and processes


@pytest.mark.parametrize("tokenizer", [GOOGLE, HF], ids=["google", "hf"])
def test_batches_threads_and_pickles_do_not_change_the_result(tokenizer: Tokenizer) -> None:
    texts = [*LINES[:200], "x9, 19,000", "", "[MASK]"]
    assert sum(map(len, texts)) > 10_000  # enough for threads, where one text is too little
    single = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == single
    assert tokenizer.encode_batch(iter(texts), threads=3) == single
    plain = [encoding.ids for encoding in tokenizer.encode_batch(texts, parse_special=False)]
    assert tokenizer.encode_ids(texts, threads=1) == plain
    assert tokenizer.encode_ids(texts, threads=3) == plain
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_batch(texts) == single
    assert (copy.path, copy.sha256, copy.mode) == (MODEL, tokenizer.sha256, tokenizer.mode)
    assert tokenizer.encode_batch([]) == tokenizer.encode_ids([]) == []


# ------------------------------------------------------------------------------------- bad models


def test_what_a_tokenizer_knows_of_its_file(tmp_path: Path) -> None:
    assert GOOGLE.vocab_size == len(GOOGLE.pieces) == len(GOOGLE.starts_word) == 8000
    assert GOOGLE.sha256 == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    for name in ("30k-clean.model", "spiece.model"):
        (tmp_path / name).write_bytes(MODEL.read_bytes())
        assert Tokenizer.load(tmp_path).path == tmp_path / name
    with pytest.raises(
        UserError, match="mode 'fast' must be one of google, hf, hf-fast, wordpiece"
    ):
        Tokenizer.load(MODEL, mode="fast")  # type: ignore[arg-type]


def test_files_that_hold_no_vocabulary_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing does not exist; give a spiece\.model"):
        Tokenizer.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no spiece\.model, tokenizer\.json or vocab\.txt"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json has no model; ALBERT's is Unigram"):
        Tokenizer.load(tmp_path)
    for content in (b"", b"{}", MODEL.read_bytes()[:1000]):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(UserError, match=r"spiece\.model is no SentencePiece model"):
            Tokenizer.load(tmp_path)


def test_a_vocabulary_of_another_layout_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()  # sentencepiece's own layout, as in XLNet's or T5's family
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES[:300]), model_writer=model, vocab_size=200, minloglevel=2
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    expected = r"has <unk> <s> </s> .* ids 0 to 4 where .* has <pad> <unk> \[CLS\] \[SEP\] \[MASK\]"
    with pytest.raises(UserError, match=expected):
        Tokenizer.load(tmp_path)


def test_ordinary_pieces_named_like_specials_never_come_out_of_text(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES[:300]),
        model_writer=model,
        vocab_size=200,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=["[CLS]", "[SEP]", "[MASK]", "x,", "9,"],
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    tokenizer = Tokenizer.load(tmp_path, do_lower_case=False)
    assert "[MASK]" in tokenizer._processor.encode("a [MASK]", out_type=str)
    for text in ("a [MASK]", "[CLS]b[SEP]"):
        ids = tokenizer.encode(text).ids
        assert UNK_ID in ids
        assert not {2, 3, 4} & set(ids)
        assert tokenizer.encode_ids([text]) == [ids]
    assert MASK_ID in tokenizer.encode("a [MASK]", parse_special=True).ids
    tokens = tokenizer.encode("x,9,").tokens
    assert "x," in tokens
    assert tokens[-2:] == ["9", ","]  # only digits lose their comma


# --------------------------------------------------------------------------------- new vocabularies


def test_training_is_spm_train_with_the_readmes_options(tmp_path: Path) -> None:
    """The same table of pieces and scores as SentencePiece itself writes for clean lines."""
    clean = tmp_path / "clean"
    clean.write_text("\n".join(clean_text(line) for line in LINES[:1500]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        f"--input={clean} --model_prefix={tmp_path / 'reference'} --vocab_size=700 --pad_id=0 "
        "--unk_id=1 --eos_id=-1 --bos_id=-1 --control_symbols=[CLS],[SEP],[MASK] "
        '--user_defined_symbols=(,),"""",-,.,–,£,€ '  # the lone quote, as CSV writes it
        "--shuffle_input_sentence=true --input_sentence_size=10000000 "
        "--character_coverage=0.99995 --model_type=unigram --minloglevel=2"
    )
    path = train_on_lines(LINES[:1500], tmp_path / "new" / "vocabulary", VocabularySettings(700))
    assert path == tmp_path / "new" / "vocabulary" / "spiece.model"
    assert sorted(file.name for file in path.parent.iterdir()) == ["spiece.model", "spiece.vocab"]
    table = path.with_suffix(".vocab").read_text(encoding="utf-8")
    assert table == (tmp_path / "reference.vocab").read_text(encoding="utf-8")
    tokenizer = Tokenizer.load(path.parent)
    assert tokenizer.pieces == [row.split("\t")[0] for row in table.splitlines()]
    assert " ".join(tokenizer.pieces[:13]) == '<pad> <unk> [CLS] [SEP] [MASK] ( ) " - . – £ €'


def test_training_lower_cases_unless_told_not_to(tmp_path: Path) -> None:
    lines = ["The Café AND THE Naïve Über\u0301 \x00 \ud800"] * 50 + LINES[:400]
    lower = Tokenizer.load(train_on_lines(iter(lines), tmp_path, VocabularySettings(300)))
    assert not any(piece != piece.lower() for piece in lower.pieces[5:])
    without = [line.replace("\x00", "") for line in lines]  # SentencePiece drops lines with it
    train_on_lines(iter(without), tmp_path, VocabularySettings(300))
    assert Tokenizer.load(tmp_path).sha256 == lower.sha256
    cased = Tokenizer.load(
        train_on_lines(iter(lines), tmp_path, VocabularySettings(300, do_lower_case=False))
    )
    assert any(piece != piece.lower() for piece in cased.pieces[5:])
    for tokenizer in (lower, cased):
        assert not set("éïü\u0301\x00\ud800") & set("".join(tokenizer.pieces))


def test_training_skips_and_counts_overlong_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [*LINES[:300], "xylophonic " * 400, "中" * 1398, "中" * 1397]
    model = train_on_lines(iter(lines), tmp_path, VocabularySettings(200)).read_bytes()
    assert capfd.readouterr().err == (
        "SentencePiece trains on 301 sentences; millions of them take minutes\n"
        "vocabulary of 200 pieces from 301 sentences; 2 over 4192 bytes skipped\n"
    )
    without = [*LINES[:300], "中" * 1397]
    assert train_on_lines(iter(without), tmp_path, VocabularySettings(200)).read_bytes() == model


def test_training_names_the_largest_vocabulary_the_text_allows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too large for this text; the largest is") as caught:
        train_on_lines(iter(LINES[:200]), tmp_path, VocabularySettings(30000))
    assert not list(tmp_path.iterdir())
    largest = int(str(caught.value).split()[-1])
    path = train_on_lines(iter(LINES[:200]), tmp_path, VocabularySettings(largest))
    assert Tokenizer.load(path).vocab_size == largest
    with pytest.raises(UserError, match=r"vocab_size 20 is too small: \d+ characters and symbols"):
        train_on_lines(iter(LINES[:200]), tmp_path, VocabularySettings(20))


def test_training_refuses_text_that_is_not_there(tmp_path: Path) -> None:
    for lines, message in (
        ([" ", "\n"], "no text to train a vocabulary on; give"),
        ([], "no text to train"),
        (["a" * 5000], "no text .*: 1 lines have over 4192 bytes"),
    ):
        with pytest.raises(UserError, match=message):
            train_on_lines(iter(lines), tmp_path / "out", VocabularySettings(50))
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_found_before_the_lines_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    lines = iter(LINES[:200])
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file is a file; name a folder for the vocabulary"):
            train_on_lines(lines, output, VocabularySettings(200))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write all
    with pytest.raises(UserError, match="new cannot be written; name another folder"):
        train_on_lines(lines, tmp_path / "new", VocabularySettings(200))
    assert next(lines) == LINES[0]


def test_a_disk_that_fills_up_leaves_the_vocabulary_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".spiece.model.12-0123abcd.tmp").write_text("of a killed process")
    train_on_lines(iter(LINES[:300]), tmp_path, VocabularySettings(200))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == ["spiece.model", "spiece.vocab"]

    def write_bytes(self: Path, data: bytes) -> int:
        with open(self, "wb") as stream:
            stream.write(data[:100])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(UserError, match="NOT written: No space left on device"):
        train_on_lines(iter(LINES[:300]), tmp_path, VocabularySettings(210))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("error", [KeyError("broken source"), KeyboardInterrupt(), TryAgain("x")])
def test_an_error_among_the_lines_is_raised_as_it_is(tmp_path: Path, error: BaseException) -> None:
    def lines():
        yield from LINES[:300]
        raise error

    with pytest.raises(type(error)) as raised:
        train_on_lines(lines(), tmp_path, VocabularySettings(200))
    assert raised.value is error
    assert not list(tmp_path.iterdir())
