# SPDX-License-Identifier: Apache-2.0
"""Reads from a transformers folder how its tokenizer makes ids of text, and in what our tokenizer,
which has SentencePiece's pieces and ALBERT's five special tokens, would not do the same.

Source: transformers' tokenization_utils_base.py and models/albert.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece

from albert_jax.data.special_pieces import MASK_ID, SPECIAL_PIECES
from albert_jax.utils import json_files
from albert_jax.utils.arguments import shown
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_foreign_json
from albert_jax.utils.wording import shortened

_OWN_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # at ids 0 to 4
_UNUSED_ROLES = ("bos_token", "eos_token")  # no text is ever given them
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_CLASSES = ("AlbertTokenizer", "PreTrainedTokenizer", "TokenizersBackend")  # and these with Fast


@dataclass(frozen=True)
class HfTokenizer:
    """What a folder's tokenizer files say."""

    do_lower_case: bool
    notes: tuple[str, ...]
    unlike: list[str]  # phrases for settings that ours has not
    added: dict[tuple[str, str], None]  # tokens that are looked for before pieces, with their ids

    def differences(self, vocabulary: Path) -> list[str]:
        """Phrases for all that would make other ids of a text than our tokenizer with that
        vocabulary; none where it is the same."""
        if not self.added:
            return self.unlike
        own = _found_whole(vocabulary)
        more = [
            f"{content} at id {number}"
            for content, number in self.added
            if own.get(number) != content
        ]
        return [*self.unlike, *more]


@dataclass(frozen=True)
class _Fast:
    """What is of interest in tokenizer.json, most of which is the vocabulary once more."""

    added_tokens: list[Any] = field(default_factory=list)


def read_tokenizer(folder: Path) -> HfTokenizer:
    """Reads tokenizer_config.json, special_tokens_map.json, added_tokens.json and tokenizer.json,
    each where it is there.

    Raises UserError for a file that is damaged and for a setting of another type.
    """
    config, special, added = (
        read_foreign_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    fast = _Fast()
    with contextlib.suppress(FileNotFoundError):
        fast = json_files.read_json(folder / "tokenizer.json", _Fast, hint="copy it again")
    lower = config.get("do_lower_case", True)
    if not isinstance(lower, bool):
        file = folder / "tokenizer_config.json"
        raise UserError(f"{file}: do_lower_case {shown(lower)} must be true or false")
    unlike = [*_of_class(config), *_of_roles(special), *_of_roles(config)]
    notes = []
    if config.get("keep_accents"):
        notes.append("tokenizer_config.json keeps accents, which albert_jax's tokenizer drops")
    return HfTokenizer(
        lower,
        tuple(notes),
        list(dict.fromkeys(unlike)),
        dict.fromkeys(_added(config, added, fast)),
    )


def _found_whole(vocabulary: Path) -> dict[str, str]:
    """Id -> piece of those that SentencePiece itself never divides: ALBERT's five, and the symbols
    that whoever trained the vocabulary named. Only they have no likelihood: their score is 0."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(vocabulary.read_bytes())
        count = processor.get_piece_size()
        whole = [i for i in range(count) if i > MASK_ID and processor.get_score(i) == 0]
        named = {str(i): processor.id_to_piece(i) for i in whole}
    except (OSError, RuntimeError, UnicodeDecodeError):
        return {}  # which `Tokenizer.load` says
    return {str(i): piece for i, piece in enumerate(SPECIAL_PIECES)} | named


def _of_class(config: Mapping[str, Any]) -> Iterator[str]:
    name = config.get("tokenizer_class")
    if isinstance(name, str) and name.removesuffix("Fast") not in _CLASSES:
        yield f"tokenizer_class {shortened(name)}"
    sampling = config.get("sp_model_kwargs")
    if isinstance(sampling, dict) and sampling.get("enable_sampling"):
        yield "sampling of pieces at random"


def _of_roles(values: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens of other names than ALBERT's, and further ones."""
    for role, piece in zip(_OWN_ROLES, SPECIAL_PIECES, strict=True):
        if values.get(role) is not None and _content(values[role]) != piece:
            yield f"{role} {shortened(_content(values[role]))}"
    further = [values[role] for role in _UNUSED_ROLES if values.get(role) is not None]
    for key in _LISTS:
        tokens = values.get(key) or []
        if isinstance(tokens, dict):  # name -> token
            tokens = list(tokens.values())
        further += tokens if isinstance(tokens, list) else [tokens]
    for token in further:
        if _content(token) not in SPECIAL_PIECES:
            yield f"special token {shortened(_content(token))}"


def _added(
    config: Mapping[str, Any], added: Mapping[str, Any], fast: _Fast
) -> Iterator[tuple[str, str]]:
    """The tokens, with their ids, that are looked for in a text before its pieces are."""
    found = list(added.items())
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        found += [(_content(token), number) for number, token in decoder.items()]
    for token in fast.added_tokens:
        number = token.get("id") if isinstance(token, dict) else None
        found.append((_content(token), number))
    for content, number in found:
        yield shortened(content), shortened(str(number))


def _content(token: Any) -> str:
    """A token's text, which stands by itself or among its settings."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)
