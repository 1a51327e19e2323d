# SPDX-License-Identifier: Apache-2.0
"""How text is cleaned for a vocabulary, as the files beside it say."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

from albert_jax.config.manifests import (
    MANIFEST,
    SERVING,
    TRANSFORMERS_WEIGHTS,
    TextSettings,
    is_model_directory,
    read_model_manifest,
)
from albert_jax.data.hf_tokenizer import read_tokenizer
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.streams import say
from albert_jax.utils.wording import first_ten


class _Vocabulary(TypedDict):
    vocabulary: NotRequired[TextSettings]


class _Tokenizer(TypedDict):
    tokenizer: NotRequired[TextSettings | None]


def is_transformers_folder(folder: Path) -> bool:
    """Whether conversion would take a folder for a transformers model, or for its tokenizer."""
    if any((folder / name).is_file() for name in TRANSFORMERS_WEIGHTS):
        return True
    return (folder / "tokenizer_config.json").is_file() and not any(folder.glob("*.index"))


def text_settings(folder: Path, vocabulary: Path, *, whole: bool = True) -> TextSettings:
    """Returns how text is cleaned for the vocabulary in a folder.

    A model directory, a token store and a serving folder say it themselves; a transformers folder
    has the mode hf and the case of its tokenizer_config.json, as conversion reads it; any other
    folder the original's defaults. Raises UserError for a file that is damaged and, where the
    folder is taken for a `whole`, for a transformers tokenizer that makes other ids of a text;
    where the vocabulary's file was named, that is said.
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
    return found or {"mode": "google", "do_lower_case": True}


def _of_transformers(folder: Path, vocabulary: Path, whole: bool) -> TextSettings:
    tokenizer = read_tokenizer(folder)
    for note in tokenizer.notes:
        say(f"note: {note}")
    if differences := tokenizer.differences(vocabulary):
        told = f"{folder}: its tokenizer has {first_ten(differences)}, which albert_jax's has not"
        if whole:
            raise UserError(
                f"{told}, so that texts would get other ids; give {vocabulary} itself to go without"
            )
        say(f"note: {told}")
    return {"mode": "hf", "do_lower_case": tokenizer.do_lower_case}
