# SPDX-License-Identifier: Apache-2.0
"""Find the vocabulary of a folder, and how its text is cleaned."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

from albert_jax.config.manifests import (
    MANIFEST,
    SERVING,
    TextSettings,
    holds_transformers_weights,
    is_model_directory,
    read_model_manifest,
    settings_in,
)
from albert_jax.data.hf_tokenizer import choose_vocabulary, read_tokenizer
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.streams import say
from albert_jax.utils.tf_files import tf_indexes
from albert_jax.utils.wording import first_ten

# The SentencePiece model of transformers and of the original archives, and the files of
# `tokenizers`.
FILE_NAMES = ("spiece.model", "30k-clean.model", "tokenizer.json", "vocab.txt")


class _Vocabulary(TypedDict):
    vocabulary: NotRequired[TextSettings]


class _Tokenizer(TypedDict):
    tokenizer: NotRequired[TextSettings | None]


def is_transformers_folder(folder: Path) -> bool:
    """Return whether conversion would accept a folder as a transformers model, or its tokenizer."""
    if holds_transformers_weights(folder):
        return True
    return (folder / "tokenizer_config.json").is_file() and not tf_indexes(folder)


def find_vocabulary_file(folder: Path, mode: str | None = None) -> Path | None:
    """Return the vocabulary of a folder, or None.

    A transformers folder may have several; then `choose_vocabulary` decides. In any other folder,
    the first of `FILE_NAMES` counts. `mode` is the caller's, who may want another vocabulary.
    """
    if not is_model_directory(folder) and is_transformers_folder(folder):
        choice = choose_vocabulary(read_tokenizer(folder), mode)
        return choice and choice.file
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def text_settings(folder: Path, vocabulary: Path, *, whole: bool = True) -> TextSettings | None:
    """Return how text is cleaned for the vocabulary in a folder; None if no file says it.

    A model directory, a token store and a serving folder record it. A transformers folder has what
    `choose_vocabulary` finds, as in conversion. Raises UserError for a damaged file. If the folder
    as a `whole` was named, also raise it for a transformers tokenizer that makes other ids; if the
    vocabulary's file was named, that is only reported.
    """
    found: TextSettings | None = None
    if is_model_directory(folder):
        found = read_model_manifest(folder).tokenizer
    elif (folder / MANIFEST).is_file():
        hint = "prepare the text again"
        found = read_json(folder / MANIFEST, _Vocabulary, hint=hint).get("vocabulary")
    elif (folder / SERVING).is_file():
        hint = "export the model again"
        found = read_json(folder / SERVING, _Tokenizer, hint=hint).get("tokenizer")
    elif is_transformers_folder(folder):
        found = _of_transformers(folder, vocabulary, whole)
    return found and settings_in(found)


def _of_transformers(folder: Path, vocabulary: Path, whole: bool) -> TextSettings:
    tokenizer = read_tokenizer(folder)
    if differences := tokenizer.differences(vocabulary):
        told = f"{folder}: its tokenizer has {first_ten(differences)}, which albert_jax's lacks"
        if whole:
            raise UserError(
                f"{told}, so that texts would get other ids; give {vocabulary} itself to go without"
            )
        say(f"note: {told}")
    return tokenizer.settings_of(vocabulary)
