# SPDX-License-Identifier: Apache-2.0
"""Turn text into ids and back: ALBERT's text cleaning over SentencePiece, and new vocabularies.

Mode `google` is google-research/albert's tokenization.py on Python 3, to which that code's
checkpoints and data files belong. Mode `hf` is transformers' slow AlbertTokenizer. Hugging Face's
`tokenizers` library runs two more: `hf-fast`, transformers' fast ALBERT tokenizer, and `wordpiece`,
BERT's, which most Chinese ALBERTs have.
"""

from __future__ import annotations

import hashlib
import io
import operator
import os
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, get_args

import numpy as np
import sentencepiece

from albert_jax.config.manifests import (
    SLOW_MODES,
    SPIECE_MODES,
    Mode,
    TextSettings,
    is_model_directory,
)
from albert_jax.config.model_names import model_path, name_of
from albert_jax.config.validation import check_least
from albert_jax.data import tokenizer_json
from albert_jax.data.fast_engine import FastEngine
from albert_jax.data.hf_tokenizer import keeps_accents, text_settings_with
from albert_jax.data.special_pieces import (
    ALBERT_IDS,
    CLS_ID,
    MARKER,
    MASK_ID,
    PAD_ID,
    SEP_ID,
    SPECIAL_PIECES,
    UNK_ID,
    SpecialIds,
)
from albert_jax.data.text_settings import FILE_NAMES, find_vocabulary_file, text_settings
from albert_jax.utils.arguments import checked, path_of, shown, texts_of
from albert_jax.utils.atomic import appearing_file, remove_leftovers, writing
from albert_jax.utils.errors import UserError
from albert_jax.utils.locks import Lock
from albert_jax.utils.streams import say
from albert_jax.utils.wording import setting

MODES: tuple[Mode, ...] = get_args(Mode)

_SPECIALS = re.compile("(" + "|".join(map(re.escape, SPECIAL_PIECES)) + ")")
_WORD = re.compile(r"\S+")
_UNITS = {"google": re.compile(r"\S"), "hf": re.compile(r"``|''|\S")}
_MODES_OF = {".json": ("hf-fast", "wordpiece"), ".txt": ("wordpiece",)}  # by a file's end
# No combining character lies below U+0300: Western text pays for few function calls.
_MAYBE_COMBINING = re.compile(r"[^\x00-\u02ff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PUNCTUATION = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~')  # the original's, without ' < = >
_WORD_CHARACTERS = _PUNCTUATION | frozenset(string.ascii_lowercase)
_FEW_CHARS = 10_000  # take SentencePiece half a millisecond, as long as starting its threads


# --------------------------------------------------------------------------------------- cleaning


def clean_text(
    text: str, *, mode: Mode = "google", lower: bool = True, keep_accents: bool = False
) -> str:
    """Collapse white space, decompose, drop accents and lower-case. tokenization.py:77.

    With `keep_accents`, as in transformers, nothing is decomposed or dropped. `hf` lower-cases
    character by character before that (so there is no final ς) and turns `` and '' into ". Lone
    surrogates, which UTF-8 cannot encode, become U+FFFD.
    """
    if mode == "hf" and lower:
        text = text.replace("\u03a3", "\u03c3").lower()  # lower() looks around only for sigma
    text = " ".join(text.split())
    if mode == "hf":
        text = text.replace("``", '"').replace("''", '"')
    if keep_accents:
        text = _SURROGATE.sub("\ufffd", text)
    elif not text.isascii():
        text = _MAYBE_COMBINING.sub(_uncombined, unicodedata.normalize("NFKD", text))
    return text.lower() if lower else text


def _uncombined(match: re.Match[str]) -> str:
    if "\ud800" <= match[0] <= "\udfff":
        return "\ufffd"
    return "" if unicodedata.combining(match[0]) else match[0]


def _origins(
    text: str, cleaned: str, units: re.Pattern[str], clean: Callable[[str], str]
) -> tuple[Sequence[int], ...]:
    """Return start and end, in `text`, of what each character of `cleaned` was made from.

    `units` finds what `clean` cleans separately. Characters can be cleaned one by one, because NFKD
    moves combining characters only, which are dropped.
    """
    if text.isascii() and len(text.strip()) == len(cleaned):
        first = len(text) - len(text.lstrip())
        return range(first, first + len(cleaned)), range(first + 1, first + len(cleaned) + 1)
    starts: list[int] = []
    ends: list[int] = []
    for index, word in enumerate(_WORD.finditer(text)):
        if index:  # the one space that the white space before this word became
            starts.append(ends[-1] if ends else 0)
            ends.append(word.start())
        if word[0].isascii() and "``" not in word[0] and "''" not in word[0]:
            starts += range(word.start(), word.end())
            ends += range(word.start() + 1, word.end() + 1)
            continue
        for unit in units.finditer(text, *word.span()):
            width = len(clean(unit[0]))
            starts += [unit.start()] * width
            ends += [unit.end()] * width
            if not width and ends and ends[-1] == unit.start():
                ends[-1] = unit.end()  # an accent belongs to its letter
    assert len(starts) == len(cleaned), (text, cleaned)
    return starts, ends


# ----------------------------------------------------------------------------------- the tokenizer


@dataclass(frozen=True)
class Encoding:
    """Hold a text's ids, pieces and places.

    Attributes:
        ids: the ids.
        tokens: the piece of each id, or the text itself where it is unknown.
        offsets: [start, end) of each piece in the original text, in characters, without the white
            space before the piece. A piece that is the marker alone has an empty span. Special
            tokens that the tokenizer added have (0, 0).
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """Encode text with a vocabulary; `Tokenizer.load` makes one, and it can be pickled.

    In the modes google and hf this class runs SentencePiece. For the other modes `load` returns a
    subclass that runs the `tokenizers` library.

    Attributes:
        path: the vocabulary's file.
        mode: google, hf, hf-fast or wordpiece (docs/reference/tokenizers.md).
        do_lower_case: whether text is lower-cased.
        keep_accents: whether accents are kept.
        vocab_size: the number of pieces.
        sha256: the hex digest of the vocabulary's file.
        pieces: the pieces by id.
        starts_word: bool[vocab_size], whether a word starts at the piece
            (create_pretraining_data.py:393).
        special: the ids of padding, unknown text, [CLS], [SEP] and [MASK].
    """

    path: Path
    mode: Mode
    do_lower_case: bool
    keep_accents: bool
    vocab_size: int
    sha256: str
    pieces: list[str]
    starts_word: np.ndarray
    special: SpecialIds

    @classmethod
    @checked
    def load(
        cls,
        path: str | Path,
        *,
        mode: Mode | None = None,
        do_lower_case: bool | None = None,
        keep_accents: bool | None = None,
    ) -> Tokenizer:
        """Read a vocabulary: a SentencePiece model, a tokenizer.json, a vocab.txt or a folder.

        Settings that are unset come from the files beside the vocabulary: those of a model
        directory, a token store, a serving folder or a transformers folder. Without such files, a
        SentencePiece model has the mode google, lower-cases and drops accents, as in the original.
        A tokenizer.json of transformers' fast ALBERT tokenizer has the mode hf-fast; one of BERT's,
        and a vocab.txt, has the mode wordpiece. With mode hf-fast, a SentencePiece model is
        converted as transformers' AlbertConverter does.

        Args:
            path: the file or the folder, or a model's name.
            mode: google, hf, hf-fast or wordpiece (docs/reference/tokenizers.md).
            do_lower_case: whether text is lower-cased.
            keep_accents: whether accents are kept.

        Returns:
            The tokenizer.

        Raises:
            UserError: if the file is missing or no vocabulary, it lacks ALBERT's special pieces, it
                cannot have the mode, a transformers folder has additional tokens, or the
                `tokenizers` library is needed and missing. The special pieces are <pad> <unk> [CLS]
                [SEP] [MASK] at ids 0 to 4, of wordpiece [PAD] [UNK] [CLS] [SEP] [MASK] at any id.

        Examples:
            >>> import albert_jax
            >>> albert_jax.Tokenizer.load("mini").vocab_size
            8000
        """
        given = model_path(path_of(path, "path"))
        path = vocabulary_file(given, mode)
        wanted: TextSettings | None = None
        if path.name in FILE_NAMES and None in (mode, do_lower_case, keep_accents):
            is_needed = path != given and None in (mode, do_lower_case)
            wanted = text_settings(path.parent, path, whole=is_needed)
        if wanted is not None:
            mode = wanted["mode"] if mode is None else mode
            if do_lower_case in (None, wanted["do_lower_case"]):
                do_lower_case = wanted["do_lower_case"]
                keep = wanted.get("keep_accents", keeps_accents(wanted["mode"], do_lower_case))
                keep_accents = keep if keep_accents is None else keep_accents
        if mode is not None and mode not in MODES:  # for example in the file of a later version
            raise UserError(f"tokenizer mode {mode!r} must be one of {', '.join(MODES)}")
        known = _MODES_OF.get(path.suffix, SPIECE_MODES)
        if mode is not None and mode not in known:
            raise UserError(
                f"{path} has no mode {mode}, but {' or '.join(known)}; leave the mode out, or give "
                "another vocabulary"
            )
        if path.suffix in _MODES_OF or mode == "hf-fast":
            return _FastTokenizer(path, mode, do_lower_case, keep_accents)
        return Tokenizer(path, mode or "google", do_lower_case is not False, bool(keep_accents))

    def __init__(self, path: Path, mode: Mode, do_lower_case: bool, keep_accents: bool) -> None:
        self.path, self.mode, self.do_lower_case = path, mode, do_lower_case
        self.keep_accents, self.special = keep_accents, ALBERT_IDS
        model = _read(path)
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor, self.pieces = _parse_spiece(model, path)
        self.vocab_size = len(self.pieces)
        self.starts_word = np.array([_starts_word(piece) for piece in self.pieces])
        # Without the special pieces: text becomes one of these ids only if it is parsed for them.
        self._ids = {piece: i for i, piece in enumerate(self.pieces) if i > MASK_ID}
        self._split = {
            piece: self._split_comma(piece)
            for piece in self._ids
            if tokenizer_json.is_divided(piece)
        }
        self._split_ids = {
            self._ids[piece]: [self._id(part) for part in parts]
            for piece, parts in self._split.items()
        } | {i: [UNK_ID] for i in (PAD_ID, CLS_ID, SEP_ID, MASK_ID)}

    @property
    def settings(self) -> TextSettings:
        """The settings of text cleaning, as `load` takes them."""
        return text_settings_with(self.mode, self.do_lower_case, self.keep_accents)

    def _id(self, piece: str) -> int:
        return self._ids.get(piece, UNK_ID)

    def _split_comma(self, piece: str) -> list[str]:
        """Return what replaces a piece that ends in digit and comma. tokenization.py:112."""
        parts = self._processor.encode(piece[:-1].replace(MARKER, ""), out_type=str)
        # Encoding puts a marker in front. The original means to strip it within a word but compares
        # str with bytes, so that its data files have it; transformers does strip it.
        if self.mode == "hf" and piece[0] != MARKER and parts[0][0] == MARKER:
            parts = parts[1:] if parts[0] == MARKER else [parts[0][1:], *parts[1:]]
        return [*parts, ","]

    @checked
    def clean(self, text: str, *, parse_special: bool | None = False) -> str:
        """Return a text as SentencePiece gets it; in the other modes `tokenizers` cleans it itself.

        Args:
            text: a text.
            parse_special: as in `encode`; special tokens that it reads stay as they are.

        Returns:
            The cleaned text.

        Examples:
            >>> import albert_jax
            >>> albert_jax.Tokenizer.load("mini").clean("  A  Café ")
            'a cafe'
        """
        (parts,) = self._divided([text], parse_special)
        return "".join(part if i % 2 else self._clean(part) for i, part in enumerate(parts))

    def _divided(self, texts: Iterable[str], parse_special: bool | None) -> list[list[str]]:
        """Return each text as plain, special, plain, …, plain."""
        parse = self.mode == "hf" if parse_special is None else parse_special
        return [_SPECIALS.split(text) if parse else [text] for text in texts]

    def _clean(self, text: str) -> str:
        return clean_text(
            text, mode=self.mode, lower=self.do_lower_case, keep_accents=self.keep_accents
        )

    def __repr__(self) -> str:
        case = "lower-cased" if self.do_lower_case else "cased"
        case += ", accents kept" * self.keep_accents
        return f"<Tokenizer {self.vocab_size:,} pieces, {self.mode}, {case}, from {self.path}>"

    @checked
    def encode(
        self, text: str, add_special_tokens: bool = False, parse_special: bool | None = None
    ) -> Encoding:
        """Clean and encode a text.

        Args:
            text: a text.
            add_special_tokens: add [CLS] before and [SEP] after the text.
            parse_special: read a literal [MASK], [SEP], [CLS], <pad> or <unk> as that token, and
                encode the text on either side of it separately. Unset, as in the mode's original:
                never in google, always in the others.

        Returns:
            Ids, pieces and offsets.

        Examples:
            >>> import albert_jax
            >>> albert_jax.Tokenizer.load("mini").encode("The cat", add_special_tokens=True).tokens
            ['[CLS]', '▁the', '▁cat', '[SEP]']
        """
        return self.encode_batch([text], add_special_tokens, parse_special, threads=1)[0]

    @checked
    def encode_batch(
        self,
        texts: Iterable[str],
        add_special_tokens: bool = False,
        parse_special: bool | None = None,
        *,
        threads: int | None = None,
    ) -> list[Encoding]:
        """Encode several texts, as `encode` does.

        Args:
            texts: the texts.
            add_special_tokens: as in `encode`.
            parse_special: as in `encode`.
            threads: threads of SentencePiece; unset, one for each core. In the modes hf-fast and
                wordpiece, 1 is one and any other number is one for each core.

        Returns:
            The encoding of each text.
        """
        split = self._divided(_several(texts), parse_special)
        cleaned = [self._clean(part) for parts in split for part in parts[::2]]
        pieces = self._encoded(cleaned, str, threads or -1)
        encoded = zip(cleaned, pieces, strict=True)
        return [self._assemble(parts, encoded, add_special_tokens) for parts in split]

    def _encoded(self, cleaned: list[str], kind: type, threads: int) -> list[list[Any]]:
        """Return each text's pieces (`kind` str) or ids (int)."""
        encode = self._processor.encode
        if threads == 1 or sum(map(len, cleaned)) < _FEW_CHARS:
            # For a list, SentencePiece starts threads each time, even for one text on one thread.
            return [encode(text, out_type=kind) for text in cleaned]
        return encode(cleaned, out_type=kind, num_threads=threads)

    def _assemble(
        self, parts: list[str], encoded: Iterator[tuple[str, list[str]]], add_special_tokens: bool
    ) -> Encoding:
        found: list[tuple[int, str, tuple[int, int]]] = []
        offset = 0
        for index, part in enumerate(parts):
            if index % 2:
                found.append((SPECIAL_PIECES.index(part), part, (offset, offset + len(part))))
            else:
                for token, start, end in self._locate(part, *next(encoded)):
                    found.append((self._id(token), token, (offset + start, offset + end)))
            offset += len(part)
        ids, tokens, offsets = zip(*found, strict=True) if found else ((), (), ())
        return self._encoding(list(ids), list(tokens), list(offsets), add_special_tokens)

    def _encoding(
        self,
        ids: list[int],
        tokens: list[str],
        offsets: list[tuple[int, int]],
        add_special_tokens: bool,
    ) -> Encoding:
        if not add_special_tokens:
            return Encoding(ids, tokens, offsets)
        ids = [self.special.cls, *ids, self.special.sep]
        return Encoding(ids, ["[CLS]", *tokens, "[SEP]"], [(0, 0), *offsets, (0, 0)])

    def _locate(self, text: str, cleaned: str, pieces: list[str]) -> Iterator[tuple[str, int, int]]:
        """Apply the digit-comma rule and yield (token, start, end), with offsets in `text`."""
        starts, ends = _origins(text, cleaned, _UNITS[self.mode], self._clean)
        # The pieces spell `normalized`; its character k was made from cleaned[at[k] : at[k + 1]].
        normalized, at = self._processor.Normalize(cleaned, with_offsets=True)
        position = 0
        for piece in pieces:
            here, position = position, min(position + len(piece), len(normalized))
            for token in self._split.get(piece, (piece,)):
                if normalized[here : here + 1] == MARKER:
                    here += 1
                width = len(token) - token.startswith(MARKER)
                if width and here < position:
                    last = at[min(here + width, position)] - 1
                    yield token, starts[at[here]], ends[max(last, at[here])]
                else:  # the marker alone: the place of the next character
                    point = starts[at[here]] if at[here] < len(starts) else ends[-1]
                    yield token, point, point
                here += width

    @checked
    def encode_ids(
        self, texts: Iterable[str], *, parse_special: bool | None = False, threads: int = 1
    ) -> list[list[int]]:
        """Return the ids of `encode` for each text, ten times as fast.

        Args:
            texts: the texts.
            parse_special: as in `encode`, but not set by default: [MASK] in a text is text.
            threads: threads of SentencePiece; -1 is one for each core. In the modes hf-fast and
                wordpiece, any number but 1 is one for each core.

        Returns:
            A list of ids for each text.
        """
        divided = self._divided(_several(texts), parse_special)
        cleaned = [self._clean(part) for parts in divided for part in parts[::2]]
        encoded = self._encoded(cleaned, int, threads)
        split, changed = self._split_ids, frozenset(self._split_ids)
        plain = [
            ids
            if changed.isdisjoint(ids)
            else [new for old in ids for new in split.get(old, (old,))]
            for ids in encoded
        ]
        if len(plain) == len(divided):  # no text has a special token
            return plain
        rest = iter(plain)
        return [_with_specials(parts[1::2], rest) for parts in divided]

    @checked
    def decode(self, ids: Iterable[SupportsIndex], *, skip_special_tokens: bool = False) -> str:
        """Return the cleaned text that ids stand for, as far as they show it.

        Args:
            ids: whole numbers below `vocab_size`.
            skip_special_tokens: leave special tokens out. If they stay, they are spaced as
                transformers does, except in the mode google.

        Returns:
            The text.

        Raises:
            UserError: if an id is not a whole number or lies outside the vocabulary.

        Examples:
            >>> import albert_jax
            >>> tokenizer = albert_jax.Tokenizer.load("mini")
            >>> tokenizer.decode(tokenizer.encode("The cat sat.").ids)
            'the cat sat.'
        """
        numbers = _whole(ids)
        if wrong := [i for i in numbers if not 0 <= i < self.vocab_size]:
            raise UserError(f"id {wrong[0]} is not in the vocabulary, 0 to {self.vocab_size - 1}")
        if skip_special_tokens:
            numbers = [i for i in numbers if i not in self.special]
        return self._decode(numbers)

    def _decode(self, numbers: list[int]) -> str:
        if self.mode == "google":
            return "".join(self.pieces[i] for i in numbers).replace(MARKER, " ").strip()
        text, run, after_special = "", [], False
        for i in numbers:
            if i > MASK_ID:
                run.append(i)
            else:
                text += "" if after_special else " "
                text += self._processor.decode(run) + self.pieces[i]
                run = []
            after_special = i <= MASK_ID
        return (text + self._processor.decode(run)).strip()


class _FastTokenizer(Tokenizer):
    """Clean and divide text with the `tokenizers` library."""

    def __init__(
        self,
        path: Path,
        mode: str | None,
        do_lower_case: bool | None,
        keep_accents: bool | None,
    ) -> None:
        """Load the vocabulary; None means as the file says, or else the mode's default.

        Raises UserError as `Tokenizer.load` does.
        """
        content = _read(path)
        self.path, self.sha256 = path, hashlib.sha256(content).hexdigest()
        kind: tokenizer_json.Kind = "wordpiece" if path.suffix == ".txt" else "hf-fast"
        lower = do_lower_case is not False
        if path.suffix == ".json":
            document = tokenizer_json.read_tokenizer_json(path)
            kind = tokenizer_json.kind_of(document, path)
            if mode not in (None, kind):
                raise UserError(f"{path} has mode {kind}, not {mode}; leave the mode out")
            own = tokenizer_json.cleaning_of(document)
            lower = own[0] if do_lower_case is None else lower
            if keep_accents is None:
                keep_accents = own[1] if do_lower_case is None else keeps_accents(kind, lower)
            if kind == "wordpiece":
                document = tokenizer_json.with_cleaning(document, lower, keep_accents)
            elif (lower, keep_accents) != own:
                raise UserError(
                    f"{path} states that text is {_case(*own)}, not "
                    f"{_case(lower, keep_accents)}; leave that out, or give another vocabulary"
                )
        else:
            keep_accents = keeps_accents(kind, lower) if keep_accents is None else keep_accents
            if path.suffix != ".txt":
                _parse_spiece(content, path)  # says what is wrong with it
            document = _document_made_of(path, lower, keep_accents)
        self.mode, self.do_lower_case, self.keep_accents = kind, lower, keep_accents
        self._engine = FastEngine(document, kind, path)
        self.special, self.pieces = self._engine.special, self._engine.pieces
        self.vocab_size = len(self.pieces)
        starts = _starts_word if kind == "hf-fast" else _starts_wordpiece
        self.starts_word = np.array([starts(piece) for piece in self.pieces])

    def _divided(self, texts: Iterable[str], parse_special: bool | None) -> list[list[str]]:
        return [[text] for text in texts]  # `tokenizers` finds special tokens itself

    def _clean(self, text: str) -> str:
        return text.strip()

    @checked
    def encode_batch(
        self,
        texts: Iterable[str],
        add_special_tokens: bool = False,
        parse_special: bool | None = None,
        *,
        threads: int | None = None,
    ) -> list[Encoding]:
        """Encode each text, as `encode` does; `threads` is 1, or else all cores."""
        found = self._engine.encode(_encodable(texts), parse_special is not False, threads)
        return [self._encoding(*each, add_special_tokens) for each in found]

    @checked
    def encode_ids(
        self, texts: Iterable[str], *, parse_special: bool | None = False, threads: int = 1
    ) -> list[list[int]]:
        """Return the ids of `encode` without offsets; `threads` is 1, or else all cores."""
        return self._engine.encode_ids(_encodable(texts), parse_special is not False, threads)

    def _decode(self, numbers: list[int]) -> str:
        return self._engine.decode(numbers)


def document_of(tokenizer: Tokenizer) -> tokenizer_json.Document:
    """Return the tokenizer.json that gives a tokenizer's ids in transformers.

    For the modes google and hf it comes as close as `tokenizer_json.of_mode` says. Raises UserError
    if there can be none.
    """
    path, mode = tokenizer.path, tokenizer.mode
    cleaning = tokenizer.do_lower_case, tokenizer.keep_accents
    if path.suffix == ".json":
        document = tokenizer_json.read_tokenizer_json(path)
        return tokenizer_json.with_cleaning(document, *cleaning)
    if mode not in SLOW_MODES:
        return _document_made_of(path, *cleaning)
    return tokenizer_json.of_mode(tokenizer_json.read_spiece(path), mode, *cleaning)


def _document_made_of(path: Path, lower: bool, keep_accents: bool) -> tokenizer_json.Document:
    """Return the tokenizer that transformers would make of a vocab.txt or a SentencePiece model."""
    if path.suffix == ".txt":
        pieces = tokenizer_json.read_vocab_txt(path)
        return tokenizer_json.wordpiece(pieces, lower, keep_accents)
    return tokenizer_json.albert_converter(tokenizer_json.read_spiece(path), lower, keep_accents)


def _with_specials(specials: Sequence[str], plain: Iterator[list[int]]) -> list[int]:
    """Return the next ids of `plain`, with the ids of the special pieces between them."""
    ids = list(next(plain))
    for piece in specials:
        ids += [SPECIAL_PIECES.index(piece), *next(plain)]
    return ids


def _case(lower: bool, keep_accents: bool) -> str:
    return f"{'lower-cased' if lower else 'cased'}, accents {'kept' if keep_accents else 'dropped'}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _parse_spiece(
    model: bytes, path: Path
) -> tuple[sentencepiece.SentencePieceProcessor, list[str]]:
    """Return a SentencePiece processor, and its pieces.

    Raises UserError for a model that is not ALBERT's.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError:
        raise UserError(
            f"{path} is no SentencePiece model; give ALBERT's spiece.model or 30k-clean.model"
        ) from None
    try:
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is damaged: a piece is no UTF-8 ({error.reason}); copy it again"
        ) from None
    if tuple(pieces[:5]) != SPECIAL_PIECES:
        raise UserError(
            f"{path} has {' '.join(pieces[:5])} at ids 0 to 4 where an ALBERT vocabulary "
            f"has {' '.join(SPECIAL_PIECES)}; make one with albert-jax train-tokenizer"
        )
    return processor, pieces


def _several(texts: Iterable[str]) -> list[str]:
    """Return the texts of an argument that may not be a single string."""
    if isinstance(texts, str):
        raise UserError(f"texts {shown(texts)} is one string; give a list of them")
    return texts_of(texts, "texts")


def _encodable(texts: Iterable[str]) -> list[str]:
    """Return the texts with U+FFFD for lone surrogates, which UTF-8 cannot encode."""
    return [_SURROGATE.sub("\ufffd", text) for text in _several(texts)]


def _whole(ids: Iterable[SupportsIndex]) -> list[int]:
    """Return the ids as Python's own integers."""
    try:
        return [operator.index(i) for i in ids]
    except TypeError:
        raise UserError(f"ids {shown(ids)} must be whole numbers in a list") from None


def vocabulary_file(path: str | Path, mode: str | None = None) -> Path:
    """Return the vocabulary that a path names, or a folder's; raises UserError if there is none."""
    path = model_path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        if path.suffix not in (".model", ".json", ".txt") and (named := name_of(path)):
            raise UserError(
                f"the model {named} is not on this machine yet; fetch it with albert-jax info "
                f"{named.forced}, or give a spiece.model or the folder that holds it"
            )
        raise UserError(f"{path} does not exist; give a spiece.model or the folder that holds it")
    if found := find_vocabulary_file(path, mode):
        return found
    if is_model_directory(path / "model"):
        raise UserError(f"{path} is a work directory; give its model, {path / 'model'}")
    raise UserError(
        f"{path} holds no spiece.model, tokenizer.json or vocab.txt; give the file or the folder "
        "that holds it"
    )


def _starts_word(piece: str) -> bool:
    """Return the original's _is_start_piece_sp: punctuation, or a character no English word has."""
    return piece in _PUNCTUATION or any(c.lower() not in _WORD_CHARACTERS for c in piece)


def _starts_wordpiece(piece: str) -> bool:
    """Return whether a piece of BERT's begins a word; each Chinese character does."""
    return not piece.startswith("##")


# -------------------------------------------------------------------------------- a new vocabulary

# The original README's spm_train command, with its symbols as lists. In the README's single string,
# the quote opens a quoted CSV field, which silently gives another list of symbols.
_TRAINER: dict[str, Any] = {
    "model_type": "unigram",
    "pad_id": PAD_ID,
    "unk_id": UNK_ID,
    "bos_id": -1,
    "eos_id": -1,
    "control_symbols": list(SPECIAL_PIECES[2:]),
    "user_defined_symbols": ["(", ")", '"', "-", ".", "–", "£", "€"],
    "shuffle_input_sentence": True,
    "num_threads": 16,  # spm_train's default; fixed, as another number gives another model
    "minloglevel": 2,
}


class _Lines:
    """Clean lines on their way to the trainer, and count them."""

    def __init__(self, source: Iterable[str], settings: VocabularySettings, progress: bool) -> None:
        self.source, self.settings, self.progress = source, settings, progress
        self.used = self.too_long = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        own = self.settings
        try:
            for line in self.source:
                line = clean_text(line, lower=own.do_lower_case, keep_accents=own.keep_accents)
                line = line.replace("\0", "")
                if len(line.encode()) > own.max_sentence_length:
                    self.too_long += 1
                elif line:
                    self.used += 1
                    yield line
        except GeneratorExit:
            raise
        except BaseException as error:
            # SentencePiece 0.2.1 drops it and trains on the lines before; 0.2.3 raises another
            # error.
            self.error = error
            raise
        if self.used and self.progress:
            say(f"SentencePiece trains on {self.used:,} sentences; millions of them take minutes")


@dataclass(frozen=True)
class VocabularySettings:
    """Set what a new vocabulary is like; the defaults are those of the original's README."""

    vocab_size: int = 30_000
    do_lower_case: bool = True
    character_coverage: float = 0.99995
    input_sentence_size: int = 10_000_000
    """Maximum of lines; of more, a random sample is used. 0: all."""
    max_sentence_length: int = 4192
    """Bytes; longer lines are skipped and counted."""
    keep_accents: bool = False
    """Keep accents, as the letters of a language need."""

    def __post_init__(self) -> None:
        check_least(self, "", 1, "vocab_size", "max_sentence_length")
        check_least(self, "", 0, "input_sentence_size")
        if not 0.98 <= self.character_coverage <= 1:
            raise UserError(
                f"{setting('character_coverage')} {self.character_coverage} must lie in [0.98, 1], "
                "the fraction of the text's characters that get a piece"
            )


def train_on_lines(
    lines: Iterable[str],
    output: str | Path,
    settings: VocabularySettings = VocabularySettings(),
    *,
    progress: bool = True,
) -> Path:
    """Train a vocabulary as the original's README does; return `output`/spiece.model.

    Lines are cleaned as the tokenizer cleans them, lower-casing included. The same lines give the
    same bytes. spiece.vocab is written too. Raises UserError if there is no text, or too little for
    `vocab_size`; the error names the largest possible. Also raises it if the folder cannot be
    written, before the lines are read if possible.
    """
    output = Path(output)
    _require_writable(output)
    cleaned = _Lines(lines, settings, progress)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(cleaned),
            model_writer=model,
            vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage,
            input_sentence_size=settings.input_sentence_size,
            max_sentence_length=settings.max_sentence_length,
            **_TRAINER,
        )
    except RuntimeError as error:
        if cleaned.error is None:
            raise UserError(_reason(str(error), cleaned, settings.vocab_size)) from None
    if cleaned.error is not None:
        raise cleaned.error
    message = f"vocabulary of {settings.vocab_size:,} pieces from {cleaned.used:,} sentences"
    if cleaned.too_long:
        message += f"; {cleaned.too_long:,} over {settings.max_sentence_length} bytes skipped"
    if progress:
        say(message)
    return _write_vocabulary(output, model.getvalue())


def _require_writable(folder: Path) -> None:
    """Raise UserError if a folder cannot be written, as far as that can be seen."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file; name a folder for the vocabulary")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written; name another folder for the vocabulary")


def _reason(error: str, lines: _Lines, vocab_size: int) -> str:
    if not lines.used:
        most = lines.settings.max_sentence_length
        long = f": {lines.too_long} lines have over {most} bytes" * bool(lines.too_long)
        return f"no text to train a vocabulary on{long}; give a sentence or paragraph a line"
    asked = f"{setting('vocab_size')} {vocab_size}"
    if found := re.search(r"too high .* value <= (\d+)", error):
        return f"{asked} is too large for this text; the largest is {found[1]}"
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return f"{asked} is too small: {found[1]} characters and symbols alone"
    return f"SentencePiece could not train a vocabulary of {vocab_size}: {error.splitlines()[0]}"


def _write_vocabulary(folder: Path, model: bytes) -> Path:
    sp = sentencepiece.SentencePieceProcessor()
    sp.LoadFromSerializedProto(model)
    rows = [f"{sp.id_to_piece(i)}\t{sp.get_score(i):g}\n" for i in range(sp.get_piece_size())]
    busy = f"{folder} is being written by {{owner}}; run the same command again, or name another"
    with writing(folder), Lock(folder / ".spiece.lock", busy):
        for name, data in (("spiece.vocab", "".join(rows).encode()), ("spiece.model", model)):
            remove_leftovers(folder, name)
            with appearing_file(folder / name) as temporary:
                temporary.write_bytes(data)
    return folder / "spiece.model"
