# SPDX-License-Identifier: Apache-2.0
"""Run a tokenizer.json with Hugging Face's `tokenizers` library, an optional package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from albert_jax.data.special_pieces import MARKER, SpecialIds
from albert_jax.data.tokenizer_json import Document, Kind, special_ids, without_specials
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import shortened

_UNKNOWN = "\U00013000"  # a hieroglyph, which hardly any vocabulary has


class Divided(NamedTuple):
    """Hold a text's ids, their pieces, and [start, end) of each in the text."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


def require_tokenizers(path: Path) -> Any:
    """Return the `tokenizers` module; raises UserError, which names the file that needs it."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            f"{path} needs the tokenizers library for its text, which is not installed; pip "
            "install 'albert-jax[tokenizers]'"
        ) from None
    return tokenizers


class FastEngine:
    """Run a tokenizer.json; can be pickled."""

    def __init__(self, document: Document, kind: Kind, path: Path) -> None:
        """Load the document.

        Raises UserError if `tokenizers` cannot read it or is not installed.
        """
        self.special: SpecialIds = special_ids(document, kind)
        self._path = path
        # Whether literal special tokens are parsed -> the JSON of a tokenizer.
        self._json = {
            True: msgspec.json.encode(document).decode(),
            False: msgspec.json.encode(without_specials(document, kind)).decode(),
        }
        self._made: dict[bool, Any] = {}
        vocabulary = self._tokenizer(True).get_vocab(with_added_tokens=True)
        pieces = [""] * (max(vocabulary.values()) + 1)  # "" where an id has none
        for piece, number in vocabulary.items():
            pieces[number] = piece
        self.pieces: list[str] = pieces

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_made": {}}

    def _tokenizer(self, parse_special: bool) -> Any:
        if parse_special not in self._made:
            library = require_tokenizers(self._path)
            try:
                made = library.Tokenizer.from_str(self._json[parse_special])
                made.encode(_UNKNOWN)  # fails now instead of at a text, if unknown text has no id
            # The library has no exception type for files that it cannot read, and may panic in
            # Rust.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                    raise
                raise UserError(
                    f"{self._path} is not read by tokenizers {library.__version__} "
                    f"({shortened(str(error))}); copy it again, or update tokenizers"
                ) from None
            self._made[parse_special] = made
        return self._made[parse_special]

    def encode(
        self, texts: Sequence[str], parse_special: bool, threads: int | None
    ) -> Iterator[Divided]:
        """Yield the division of texts, which must have no lone surrogates.

        With `parse_special`, a literal [MASK], for example, becomes its id.
        """
        tokenizer = self._tokenizer(parse_special)
        if threads == 1:
            found = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
        else:
            found = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
        for text, encoding in zip(texts, found, strict=True):
            yield self._divided(text, encoding)

    def encode_ids(
        self, texts: Sequence[str], parse_special: bool, threads: int
    ) -> list[list[int]]:
        """Return the ids of `encode`."""
        tokenizer = self._tokenizer(parse_special)
        if threads == 1:
            return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _divided(self, text: str, encoding: Any) -> Divided:
        """Return the result of `tokenizers`, with offsets in order and without white space."""
        ids, offsets = list(encoding.ids), []
        tokens = [self.pieces[i] for i in ids]  # its own hold white space before [MASK]
        least = 0
        for i, (start, end) in enumerate(encoding.offsets):
            while start < end and text[start].isspace():
                start += 1
            if tokens[i] == MARKER:
                end = start
            # If several characters are replaced by one, the offsets of `tokenizers` can be wrong.
            start = max(start, least)
            offsets.append((start, max(start, end)))
            least = start
            if ids[i] == self.special.unk:
                tokens[i] = text[start:end] or tokens[i]
        return Divided(ids, tokens, offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special ones included."""
        text: str = self._tokenizer(True).decode(list(ids), skip_special_tokens=False)
        return text.strip()
