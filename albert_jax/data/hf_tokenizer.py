# SPDX-License-Identifier: Apache-2.0
"""Read how a transformers folder's tokenizer makes ids, and find the mode that does the same.

Differences between the folder's tokenizer and that mode are listed. Source: transformers'
tokenization_utils_base.py, models/albert and models/bert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import sentencepiece

from albert_jax.config.manifests import SPIECE_MODES, TextSettings
from albert_jax.data.special_pieces import MASK_ID, SPECIAL_PIECES, WORDPIECE_SPECIALS
from albert_jax.data.tokenizer_json import (
    Document,
    added_tokens,
    cleaning_of,
    kind_of,
    read_tokenizer_json,
    read_vocab_txt,
)
from albert_jax.utils.arguments import shown
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_foreign_json
from albert_jax.utils.wording import setting, shortened

_OWN_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_UNUSED_ROLES = ("bos_token", "eos_token")  # no text is ever given them
_LISTS = ("additional_special_tokens", "extra_special_tokens")
# Classes of transformers, also with Fast at the end, that do the same as a vocabulary's mode.
_GENERAL = ("PreTrainedTokenizer", "TokenizersBackend")
_CLASSES = ("AlbertTokenizer", *_GENERAL)
_WORDPIECE_CLASSES = ("BertTokenizer", "AlbertTokenizer", *_GENERAL)
_SENTENCEPIECE = ("spiece.model", "30k-clean.model")
_FAST = "tokenizer.json"
_WORDS = "vocab.txt"
OWN_MODE = "albert_jax_mode"  # what `convert --to hf` writes into tokenizer_config.json


class Choice(NamedTuple):
    """Hold the vocabulary of a transformers folder, its mode, and the reason."""

    file: Path
    mode: str
    why: str


@dataclass(frozen=True)
class HfTokenizer:
    """Hold the contents of a folder's tokenizer files."""

    folder: Path
    config: Mapping[str, Any]  # tokenizer_config.json
    special: Mapping[str, Any]  # special_tokens_map.json
    added: Mapping[str, Any]  # added_tokens.json: content -> id
    do_lower_case: bool | None  # None: not said
    keep_accents: bool | None

    @cached_property
    def fast(self) -> Document | None:
        """The contents of tokenizer.json, or None."""
        file = self.folder / _FAST
        return read_tokenizer_json(file) if file.is_file() else None

    def _document(self, vocabulary: Path) -> Document:
        """Return a tokenizer.json, the folder's or another."""
        own = self.fast if vocabulary == self.folder / _FAST else None
        return own or read_tokenizer_json(vocabulary)

    def settings_of(self, vocabulary: Path) -> TextSettings:
        """Return how text is cleaned for the folder's vocabulary of that name."""
        mode = "hf"
        lower, keep = self.do_lower_case is not False, bool(self.keep_accents)
        if vocabulary.suffix == ".json":
            document = self._document(vocabulary)
            mode = kind_of(document, vocabulary)
            own_lower, own_keep = cleaning_of(document)
            if mode == "hf-fast":  # the file is run as it is
                lower, keep = own_lower, own_keep
            else:  # BERT's classes follow tokenizer_config.json first
                lower = own_lower if self.do_lower_case is None else self.do_lower_case
                keep = own_keep if self.keep_accents is None else self.keep_accents
        elif vocabulary.suffix == ".txt":
            mode = "wordpiece"
            keep = not lower if self.keep_accents is None else self.keep_accents
        elif self.config.get(OWN_MODE) in SPIECE_MODES:
            mode = str(self.config[OWN_MODE])
        return text_settings_with(mode, lower, keep)

    @property
    def added_count(self) -> int:
        """The maximum of tokens that are looked for before pieces."""
        return len(dict.fromkeys(_added(self.config, self.added, self.fast or {})))

    def differences(self, vocabulary: Path) -> list[str]:
        """Return phrases for all that would give other ids than the mode with that vocabulary.

        The list is empty if the ids are the same.
        """
        if vocabulary.suffix == ".json":
            document = self._document(vocabulary)
            own = {str(token.get("id")): _content(token) for token in added_tokens(document)}
            names = SPECIAL_PIECES
            if kind_of(document, vocabulary) == "wordpiece":
                names = WORDPIECE_SPECIALS
                own |= {str(document["model"]["vocab"][name]): name for name in names}
            unlike = self._unlike(names, (*own.values(), *names), _WORDPIECE_CLASSES)
            added = _added(self.config, self.added, {})
        elif vocabulary.suffix == ".txt":
            pieces = read_vocab_txt(vocabulary)
            own = {str(pieces.index(name)): name for name in WORDPIECE_SPECIALS}
            unlike = self._unlike(WORDPIECE_SPECIALS, WORDPIECE_SPECIALS, _WORDPIECE_CLASSES)
            if self.config.get("tokenize_chinese_chars") is False:
                unlike.append("Chinese characters that are not divided")
            added = _added(self.config, self.added, self.fast or {})
        else:
            own = _found_whole(vocabulary)
            unlike = self._unlike(SPECIAL_PIECES, SPECIAL_PIECES, _CLASSES)
            unlike += [
                f"special token {shortened(_content(self._role(role)))}"
                for role in _UNUSED_ROLES
                if self._role(role) is not None and _content(self._role(role)) not in SPECIAL_PIECES
            ]
            added = _added(self.config, self.added, self.fast or {})
        own = {number: shortened(content) for number, content in own.items()}
        more = [
            f"{content} at id {number}"
            for content, number in dict.fromkeys(added)
            if own.get(number) != content
        ]
        return [*dict.fromkeys(unlike), *more]

    def _role(self, name: str) -> Any:
        return self.special.get(name, self.config.get(name))

    def _unlike(
        self, names: tuple[str, ...], further: tuple[str, ...], classes: tuple[str, ...]
    ) -> list[str]:
        """Return phrases for another class, and for special tokens with unexpected names.

        Expected names are in `names` and `further`.
        """
        return [
            *_of_class(self.config, classes),
            *_of_roles(self.special, names, further),
            *_of_roles(self.config, names, further),
        ]


def text_settings_with(mode: str, lower: bool, keep_accents: bool) -> TextSettings:
    """Return the settings, with keep_accents only where it is not the mode's default."""
    settings: TextSettings = {"mode": cast(Any, mode), "do_lower_case": lower}
    if keep_accents != keeps_accents(mode, lower):
        settings["keep_accents"] = keep_accents
    return settings


def keeps_accents(mode: str, lower: bool) -> bool:
    """Return whether a mode keeps accents by default: BERT's does, unless it lower-cases."""
    return mode == "wordpiece" and not lower


def read_tokenizer(folder: Path) -> HfTokenizer:
    """Read tokenizer_config.json, special_tokens_map.json and added_tokens.json, if they exist.

    Raises UserError for a file that is damaged and for a setting of another type.
    """
    config, special, added = (
        read_foreign_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    file = folder / "tokenizer_config.json"
    lower = config.get("do_lower_case", True)
    if not isinstance(lower, bool):
        raise UserError(f"{file}: do_lower_case {shown(lower)} must be true or false")
    keep = config.get("keep_accents")
    if keep is None and isinstance(config.get("strip_accents"), bool):
        keep = not config["strip_accents"]
    if not isinstance(keep, bool | None):
        raise UserError(f"{file}: keep_accents {shown(keep)} must be true or false")
    lower = lower if "do_lower_case" in config else None
    return HfTokenizer(folder, config, special, added, lower, keep)


def choose_vocabulary(tokenizer: HfTokenizer, mode: str | None = None) -> Choice | None:
    """Return the vocabulary of a transformers folder that its ids refer to, or None.

    transformers 5 writes tokenizer.json alone. Version 4 writes spiece.model too, which is then
    taken, because mode hf is the closer of the two to the training of Google's models. `mode` is
    the caller's wish. Raises UserError if the folder has only a tokenizer.json of another kind.
    """
    folder = tokenizer.folder
    spiece = next((folder / n for n in _SENTENCEPIECE if (folder / n).is_file()), None)
    fast, words = folder / _FAST, folder / _WORDS
    is_fast, is_words = fast.is_file(), words.is_file()
    if mode == "hf-fast" and is_fast:
        return Choice(fast, "hf-fast", "as asked for")
    if spiece and mode == "hf-fast":
        return Choice(spiece, "hf-fast", "as asked for, made of spiece.model")
    if spiece and not (mode is None and is_fast and _is_of_tokenizers(tokenizer.config)):
        own = str(tokenizer.config.get(OWN_MODE))
        if own in SPIECE_MODES:
            return Choice(spiece, mode or own, "as albert-jax convert wrote it")
        takes = f"; {setting('mode', 'hf-fast')} takes"
        beside = f"{takes} the tokenizer.json beside it, as AutoTokenizer does" if is_fast else ""
        return Choice(spiece, mode or "hf", f"it has {spiece.name}{beside}")
    # transformers takes the case from tokenizer_config.json, not from tokenizer.json.
    document = tokenizer.fast
    if is_words and not (document and _has_further_tokens(document)):
        return Choice(words, "wordpiece", f"it has {_WORDS}")
    if document:
        kind = kind_of(document, fast)
        return Choice(fast, kind, f"transformers runs the folder's {_FAST}")
    return None


def _has_further_tokens(document: Document) -> bool:
    return any(_content(token) not in WORDPIECE_SPECIALS for token in added_tokens(document))


def _is_of_tokenizers(config: Mapping[str, Any]) -> bool:
    """Return whether tokenizer_config.json belongs to a tokenizer that has only tokenizer.json."""
    return OWN_MODE not in config and config.get("backend") == "tokenizers"


def _found_whole(vocabulary: Path) -> dict[str, str]:
    """Return the pieces by id that SentencePiece never divides.

    They are ALBERT's five, and the symbols that were named when the vocabulary was trained. Only
    these have no likelihood: their score is 0.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(vocabulary.read_bytes())
        count = processor.get_piece_size()
        whole = [i for i in range(count) if i > MASK_ID and processor.get_score(i) == 0]
        named = {str(i): processor.id_to_piece(i) for i in whole}
    except (OSError, RuntimeError, UnicodeDecodeError):
        return {}  # which `Tokenizer.load` says
    return {str(i): piece for i, piece in enumerate(SPECIAL_PIECES)} | named


def _of_class(config: Mapping[str, Any], classes: tuple[str, ...]) -> Iterator[str]:
    name = config.get("tokenizer_class")
    if isinstance(name, str) and name.removesuffix("Fast") not in classes:
        yield f"tokenizer_class {shortened(name)}"
    sampling = config.get("sp_model_kwargs")
    if isinstance(sampling, dict) and sampling.get("enable_sampling"):
        yield "sampling of pieces at random"


def _of_roles(
    values: Mapping[str, Any], names: tuple[str, ...], known: tuple[str, ...]
) -> Iterator[str]:
    """Yield special tokens with other names than a vocabulary's own, and additional ones."""
    for role, piece in zip(_OWN_ROLES, names, strict=True):
        if values.get(role) is not None and _content(values[role]) != piece:
            yield f"{role} {shortened(_content(values[role]))}"
    for key in _LISTS:
        tokens = values.get(key) or []
        if isinstance(tokens, dict):  # name -> token
            tokens = list(tokens.values())
        for token in tokens if isinstance(tokens, list) else [tokens]:
            if _content(token) not in known:
                yield f"special token {shortened(_content(token))}"


def _added(
    config: Mapping[str, Any], added: Mapping[str, Any], fast: Document
) -> Iterator[tuple[str, str]]:
    """Yield the tokens, with their ids, that are looked for in a text before its pieces."""
    found = list(added.items())
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        found += [(_content(token), number) for number, token in decoder.items()]
    found += [(_content(token), token.get("id")) for token in added_tokens(fast)]
    for content, number in found:
        yield shortened(content), shortened(str(number))


def _content(token: Any) -> str:
    """Return a token's text, which is a string or the content of its settings."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)
