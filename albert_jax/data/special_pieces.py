# SPDX-License-Identifier: Apache-2.0
"""Define the five special pieces of ALBERT's and BERT's vocabularies, and the marker."""

from __future__ import annotations

from typing import NamedTuple

SPECIAL_PIECES = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)

MARKER = "\u2581"  # SentencePiece's "a word starts here"

# The special pieces of a WordPiece vocabulary, which may have them anywhere.
WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class SpecialIds(NamedTuple):
    """Hold the ids of the five special pieces of a vocabulary."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


ALBERT_IDS = SpecialIds(PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID)
