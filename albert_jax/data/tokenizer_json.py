# SPDX-License-Identifier: Apache-2.0
"""Read and write the JSON of Hugging Face's `tokenizers` library, tokenizer.json.

New ones are written without that library. There are three kinds: what transformers' fast tokenizer
makes of a SentencePiece model, what gives the ids of mode google or hf, and a WordPiece tokenizer.
Sources: transformers 4.57, convert_slow_tokenizer.py (AlbertConverter, BertConverter); transformers
5, models/albert/tokenization_albert.py.
"""

from __future__ import annotations

import base64
import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from albert_jax.data.special_pieces import (
    ALBERT_IDS,
    MARKER,
    SPECIAL_PIECES,
    WORDPIECE_SPECIALS,
    SpecialIds,
)
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.tf_protos import DecodeError, SentencePieceModel
from albert_jax.utils.wording import shortened

Kind = Literal["hf-fast", "wordpiece"]
Document = JsonObject

_UNIGRAM = 1  # SentencePiece's types of models, and of pieces
_CONTROL, _USER_DEFINED = 3, 4
_MOST_IDS = 1 << 22  # sixteen times the largest vocabularies in use
_NEVER = 100.0  # AlbertConverter's: removes a piece from every best division
# The characters that str.split() takes for white space.
_SPACES = r"[\t-\r\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}"
_COMBINING_FIRST = "x{300}-"  # in the list of combining characters that `of_mode` drops
_SPACES += r"\x{202f}\x{205f}\x{3000}]+"


# ----------------------------------------------------------------------------------- what one says


def read_tokenizer_json(path: Path) -> Document:
    """Return the object in a tokenizer.json; raises UserError for a file that is damaged.

    Padding and truncation, which `tokenizers` keeps in the file, are left out.
    """
    try:
        document = read_json(path, JsonObject, hint="copy it again")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a tokenizer.json") from None
    return document | {"padding": None, "truncation": None}


def kind_of(document: Document, path: Path) -> Kind:
    """Return the mode that runs a tokenizer.json.

    Raises UserError for a model that is neither Unigram with ALBERT's five pieces at ids 0 to 4 nor
    WordPiece with its five, and for a WordPiece model whose ids do not number its pieces.
    """
    model = document.get("model")
    model = model if isinstance(model, dict) else {}
    vocab, kind = model.get("vocab"), model.get("type")
    if kind is None and vocab is not None:  # as old versions wrote them
        kind = "Unigram" if isinstance(vocab, list) else "WordPiece"
    if kind == "Unigram" and isinstance(vocab, list):
        first = [row[0] if isinstance(row, list) and row else None for row in vocab[:5]]
        if tuple(first) == SPECIAL_PIECES:
            return "hf-fast"
        told = f"a Unigram model that begins with {shortened(' '.join(map(str, first)))}"
    elif kind == "WordPiece" and isinstance(vocab, dict) and "merges" not in model:
        lacking = [piece for piece in WORDPIECE_SPECIALS if piece not in vocab]
        if not lacking:
            _check_ids(vocab, path)
            return "wordpiece"
        told = f"a WordPiece model without {', '.join(lacking)}"
    else:
        told = "no model" if kind is None else f"a model of type {shortened(str(kind))}"
    raise UserError(
        f"{path} has {told}; ALBERT's is Unigram, which begins with {' '.join(SPECIAL_PIECES)}, or "
        f"WordPiece with {' '.join(WORDPIECE_SPECIALS)}: give the model's own tokenizer"
    )


def _check_ids(vocab: JsonObject, path: Path) -> None:
    """Raise UserError unless each piece has its own id; ids without a piece are allowed."""
    pieces: dict[int, str] = {}
    for piece, number in vocab.items():
        if type(number) is not int or not 0 <= number < _MOST_IDS or number in pieces:
            raise UserError(
                f"{path} has the piece {shortened(piece)!r} at id {shortened(repr(number))}; each "
                f"piece needs an id of its own, a whole number below {_MOST_IDS:,}: copy it again"
            )
        pieces[number] = piece


def special_ids(document: Document, kind: Kind) -> SpecialIds:
    """Return the ids of the five special pieces of a document that `kind_of` accepts."""
    if kind == "hf-fast":
        return ALBERT_IDS
    vocab = document["model"]["vocab"]
    return SpecialIds(*(vocab[piece] for piece in WORDPIECE_SPECIALS))


def cleaning_of(document: Document) -> tuple[bool, bool]:
    """Return whether a document's normalizer lower-cases, and whether it keeps accents."""
    lower = stripped = False
    for each in _normalizers(document.get("normalizer")):
        kind = each.get("type")
        if kind == "BertNormalizer":
            lower |= bool(each.get("lowercase"))
            strips = each.get("strip_accents")
            stripped |= bool(each.get("lowercase") if strips is None else strips)
        lower |= kind == "Lowercase"
        stripped |= kind == "StripAccents"
        stripped |= kind == "Replace" and _COMBINING_FIRST in str(each.get("pattern"))
    return lower, not stripped


def with_cleaning(document: Document, lower: bool, keep_accents: bool) -> Document:
    """Return a WordPiece document that lower-cases and keeps accents as given.

    Only BERT's normalizer can be set; others stay as they are.
    """

    def changed(each: Any) -> Any:
        if not isinstance(each, dict):
            return each
        if each.get("type") == "BertNormalizer":
            return each | {"lowercase": lower, "strip_accents": not keep_accents}
        if isinstance(each.get("normalizers"), list):
            return each | {"normalizers": [changed(x) for x in each["normalizers"]]}
        return each

    return document | {"normalizer": changed(document.get("normalizer"))}


def _normalizers(value: Any) -> Iterator[JsonObject]:
    if isinstance(value, dict):
        yield value
        value = value.get("normalizers")
    if isinstance(value, list):
        for each in value:
            yield from _normalizers(each)


def added_tokens(document: Document) -> list[JsonObject]:
    """Return the tokens that are looked for in a text before the model divides it."""
    tokens = document.get("added_tokens")
    tokens = tokens if isinstance(tokens, list) else []
    return [token for token in tokens if isinstance(token, dict)]


def without_specials(document: Document, kind: Kind) -> Document:
    """Return a document to which a literal [MASK], for example, is ordinary text."""
    names = SPECIAL_PIECES if kind == "hf-fast" else WORDPIECE_SPECIALS
    tokens = [token for token in added_tokens(document) if token.get("content") not in names]
    model = document["model"]
    if kind == "hf-fast":
        # Pieces that no text has: U+FDD0 is no character, and `tokenizers` would find the old ones.
        hidden = [[f"\ufdd0{i}", *row[1:]] for i, row in enumerate(model["vocab"][:5])]
        model = model | {"vocab": [*hidden, *model["vocab"][5:]]}
    return document | {"added_tokens": tokens, "model": model}


# ------------------------------------------------------------------------------ of SentencePiece's


@dataclass(frozen=True)
class SpieceVocabulary:
    """Hold what a document is made from."""

    pieces: list[tuple[str, float]]  # with their scores, by id
    added: list[tuple[str, bool]]  # control and user-defined pieces; whether special
    charsmap: str  # SentencePiece's rules of normalization, in base64


def read_spiece(path: Path) -> SpieceVocabulary:
    """Return the vocabulary of a SentencePiece model that `Tokenizer.load` accepts.

    Raises UserError for one that is no Unigram model.
    """
    model = SentencePieceModel()
    try:
        model.ParseFromString(path.read_bytes())
        pieces = [(each.piece.decode(), each.score) for each in model.pieces]
    except (DecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is no SentencePiece model; copy it again") from None
    if model.trainer_spec.model_type not in (0, _UNIGRAM):  # 0: the default, not written
        raise UserError(
            f"{path} is no Unigram model, so that no tokenizer.json of ALBERT's kind can be made "
            "of it; use mode google or hf"
        )
    added = [
        (name, each.type == _CONTROL or name == SPECIAL_PIECES[1])
        for (name, _), each in zip(pieces, model.pieces, strict=True)
        if each.type in (_CONTROL, _USER_DEFINED) or name == SPECIAL_PIECES[1]
    ]
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    return SpieceVocabulary(pieces, added, charsmap)


def is_divided(piece: str) -> bool:
    """Return whether a piece ends in digit and comma, so that ALBERT's tokenizers divide it."""
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


def albert_converter(vocabulary: SpieceVocabulary, lower: bool, keep_accents: bool) -> Document:
    """Return the tokenizer that transformers' AlbertConverter makes of a SentencePiece model."""
    steps = [_replace("``", '"'), _replace("''", '"')]
    if not keep_accents:
        steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
    steps += [{"type": "Lowercase"}] * lower
    steps += _charsmap(vocabulary)
    steps.append(_replace({"Regex": " {2,}"}, " "))
    return _unigram(vocabulary, steps, vocabulary.added)


def of_mode(vocabulary: SpieceVocabulary, mode: str, lower: bool, keep_accents: bool) -> Document:
    """Return a tokenizer with the ids of mode google or hf.

    It does all of both modes' cleaning. It cannot divide pieces that end in digit and comma.
    Instead it never finds these pieces, and divides the text into others at once, which nearly
    always gives the same ids. The symbols that SentencePiece never divides are no added tokens,
    because `tokenizers` would begin a new word before and after these; their score, 0, has them
    found.
    """
    steps: list[Document] = []
    if mode == "hf":
        steps += [{"type": "Lowercase"}] * lower
    steps += [_replace({"Regex": _SPACES}, " "), _STRIP]
    if mode == "hf":
        steps += [_replace("``", '"'), _replace("''", '"')]
    if not keep_accents:
        steps += [{"type": "NFKD"}, _replace({"Regex": _combining()}, "")]
    if lower:
        if mode == "google":  # Python's lower() has a form of its own for a word's last sigma
            steps.append(_replace({"Regex": r"(?<=\p{L})\x{3a3}(?!\p{L})"}, "\u03c2"))
        steps.append({"type": "Lowercase"})
    # NFC, as `tokenizers` applies SentencePiece's rules to graphemes: Hangul would stay in parts.
    steps += [{"type": "NFC"}, *_charsmap(vocabulary), _replace({"Regex": " {2,}"}, " "), _STRIP]
    return _unigram(vocabulary, steps, [(piece, True) for piece in SPECIAL_PIECES])


_STRIP: Document = {"type": "Strip", "strip_left": True, "strip_right": True}


def _charsmap(vocabulary: SpieceVocabulary) -> list[Document]:
    if not vocabulary.charsmap:
        return []
    return [{"type": "Precompiled", "precompiled_charsmap": vocabulary.charsmap}]


def _replace(pattern: str | dict[str, str], content: str) -> Document:
    pattern = {"String": pattern} if isinstance(pattern, str) else pattern
    return {"type": "Replace", "pattern": pattern, "content": content}


@functools.cache
def _combining() -> str:
    """Return a regular expression for the characters that `unicodedata.combining` counts."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x1F000):  # no combining character lies outside
        if not unicodedata.combining(chr(code)):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in ranges) + "]"


def _unigram(
    vocabulary: SpieceVocabulary, normalizers: list[Document], added: Sequence[tuple[str, bool]]
) -> Document:
    ids = {piece: i for i, (piece, _) in reversed(list(enumerate(vocabulary.pieces)))}
    metaspace = {
        "type": "Metaspace",
        "replacement": MARKER,
        "prepend_scheme": "always",
        "split": True,
    }
    scores = [[piece, s - _NEVER * is_divided(piece)] for piece, s in vocabulary.pieces]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(ids[piece], piece, special) for piece, special in added],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": metaspace,
        "post_processor": _template(ALBERT_IDS),
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": ALBERT_IDS.unk,
            "vocab": scores,
            "byte_fallback": False,
        },
    }


def _added(number: int, piece: str, special: bool) -> Document:
    return {
        "id": number,
        "content": piece,
        "single_word": False,
        "lstrip": piece == SPECIAL_PIECES[4] and number == ALBERT_IDS.mask,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _template(special: SpecialIds) -> Document:
    """Return the template of [CLS] A [SEP], and of [CLS] A [SEP] B [SEP].

    B's tokens and its [SEP] are in segment 1.
    """

    def mark(piece: str, segment: int) -> Document:
        return {"SpecialToken": {"id": piece, "type_id": segment}}

    def text(name: str, segment: int) -> Document:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [mark("[CLS]", 0), text("A", 0), mark("[SEP]", 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), mark("[SEP]", 1)],
        "special_tokens": {
            piece: {"id": piece, "ids": [number], "tokens": [piece]}
            for piece, number in (("[CLS]", special.cls), ("[SEP]", special.sep))
        },
    }


# ----------------------------------------------------------------------------------- of WordPieces


def read_vocab_txt(path: Path) -> list[str]:
    """Return the pieces of a vocab.txt, one a line, by id.

    Raises UserError for a file that cannot be read or lacks one of the five special pieces.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 ({error.reason}); copy it again") from None
    pieces = text.split("\n")  # other line ends may be pieces
    pieces = [piece.removesuffix("\r") for piece in pieces[: -1 if not pieces[-1] else None]]
    if lacking := [piece for piece in WORDPIECE_SPECIALS if piece not in pieces]:
        raise UserError(
            f"{path} has no {', '.join(lacking)}; give the vocab.txt of a BERT tokenizer, a piece "
            "a line"
        )
    return pieces


def wordpiece(pieces: Sequence[str], lower: bool, keep_accents: bool) -> Document:
    """Return BERT's tokenizer for a vocabulary.

    A piece that occurs twice gets the last of its ids, as in transformers.
    """
    vocab = {piece: i for i, piece in enumerate(pieces)}
    special = SpecialIds(*(vocab[piece] for piece in WORDPIECE_SPECIALS))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(vocab[piece], piece, True)
            for piece in sorted(WORDPIECE_SPECIALS, key=vocab.__getitem__)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": not keep_accents,
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(special),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": WORDPIECE_SPECIALS[1],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }
