# SPDX-License-Identifier: Apache-2.0
"""The five pieces that every ALBERT vocabulary begins with."""

SPECIAL_PIECES = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)
