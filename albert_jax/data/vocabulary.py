# SPDX-License-Identifier: Apache-2.0
"""Train a vocabulary, for `train-tokenizer`, on the sentences that `prepare` makes.

The original trains on the lines of its files, which have one sentence each. That is the same.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from albert_jax.config.adapters import is_adapter
from albert_jax.config.manifests import SERVING, holds_transformers_weights, is_pretraining_run
from albert_jax.data.text.documents import find_pieces, read_piece, summarize_counts
from albert_jax.data.text.files import find_files, is_store_or_model, require_output_apart
from albert_jax.data.text.lines import Piece, Reading
from albert_jax.data.text.python_docs import is_docs
from albert_jax.data.text_settings import FILE_NAMES, is_transformers_folder
from albert_jax.data.tokenizer import VocabularySettings, train_on_lines
from albert_jax.utils.atomic import require_apart
from albert_jax.utils.errors import UserError
from albert_jax.utils.progress import ProgressMeter
from albert_jax.utils.remote_fs import is_address, require_here
from albert_jax.utils.streams import say
from albert_jax.utils.tf_files import tf_indexes

SAID_AFTER_SECONDS = 1.0
_WRITTEN = ("spiece.model", "spiece.vocab")


def train_tokenizer(
    inputs: Sequence[str | Path] | str | Path | Iterator[str],
    *,
    output: str | Path,
    vocab_size: int = 30_000,
    do_lower_case: bool = True,
    character_coverage: float = 0.99995,
    input_sentence_size: int = 10_000_000,
    max_sentence_length: int = 4192,
    format: str = "text",
    sentences: Literal["auto", "lines", "split", "wrapped"] = "auto",
    language: str = "en",
    strict: bool = False,
    data_dir: str | None = None,
    field: str | None = None,
    progress: bool = True,
    keep_accents: bool = False,
) -> Path:
    """Train a SentencePiece vocabulary with the settings of the original's README.

    The same sentences give the same bytes. spiece.vocab is written beside spiece.model.

    Args:
        inputs: text as in `prepare`, or an iterator over sentences.
        output: the folder to write to.
        vocab_size: the number of pieces.
        do_lower_case: lower-case the text first.
        character_coverage: the fraction of the text's characters that have pieces.
        input_sentence_size: sentences that are sampled from the text.
        max_sentence_length: bytes; longer sentences are left out and counted.
        format: as in `prepare`; without effect for an iterator, as are the settings below.
        sentences: as in `prepare`; a file with one sentence in each line gives its lines.
        language: as in `prepare`.
        strict: as in `prepare`.
        data_dir: as in `prepare`.
        field: as in `prepare`.
        progress: print progress to stderr.
        keep_accents: keep the accents, as the letters of a language need; `prepare` has to do so
            too.

    Returns:
        The path of spiece.model.

    Raises:
        UserError: if an input is wrong, there is no text or too little for `vocab_size` (the error
            names the largest possible), `output` cannot be written or has a vocabulary that
            `train_tokenizer` did not write, or a file to write would be one of the inputs.
    """
    settings = VocabularySettings(
        vocab_size,
        do_lower_case,
        character_coverage,
        input_sentence_size,
        max_sentence_length,
        keep_accents,
    )
    require_here(output)
    _require_own_folder(Path(output))
    if isinstance(inputs, Iterator):
        return train_on_lines(inputs, output, settings, progress=progress)
    reading = Reading(format, sentences, strict, language, data_dir, field)
    inputs = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not reading.names_data_set:
        _require_apart(Path(output), inputs)
    pieces = find_pieces(inputs, reading)
    counts: Counter[str] = Counter()
    sentences_of = _sentences_of(pieces, reading, counts, progress)
    path = train_on_lines(sentences_of, output, settings, progress=progress)
    if progress:
        for line in summarize_counts(counts):
            say(line)
    return path


def _require_own_folder(output: Path) -> None:
    """Raise UserError if the vocabulary there is another's, which would be useless with this one.

    That is the folder of a model, a store or a run, one within a model or a store, and one whose
    vocabulary has no spiece.vocab beside it, which `train_tokenizer` alone writes.
    """
    for parent in output.resolve().parents:
        if _is_store_or_ours(parent):  # a project may keep a downloaded model
            raise UserError(
                f"{output} lies in {parent}, which is a token store or a model; give another folder"
            )
    if _is_anothers(output):
        raise UserError(
            f"{output} is a token store, a model or a work directory, whose vocabulary would be "
            "lost; give another folder"
        )
    found = [output / name for name in FILE_NAMES if (output / name).is_file()]
    if found and not (output / "spiece.vocab").is_file():
        raise UserError(
            f"{found[0]} was not written by train-tokenizer (no spiece.vocab is beside it), and "
            "would be lost; give another folder"
        )


def _is_store_or_ours(folder: Path) -> bool:
    """Return whether a folder certainly is a token store or a model directory."""
    names = _names_in(folder)
    return is_store_or_model(names) and not names.isdisjoint(("train", "params"))


def _is_anothers(folder: Path) -> bool:
    """Return whether a folder is a store, an adapter, a run's or a model of some format.

    Names alone tell it, since a damaged one is not to be written to either.
    """
    names = _names_in(folder)
    is_run = is_pretraining_run(folder) or any(folder.glob("seed-*/checkpoints"))
    is_model = is_transformers_folder(folder) or bool(tf_indexes(folder))
    is_other = holds_transformers_weights(folder) or is_adapter(folder) or SERVING in names
    return is_store_or_model(names) or is_run or is_model or is_other


def _names_in(folder: Path) -> set[str]:
    with contextlib.suppress(PermissionError):  # a folder above may be closed, as /home often is
        return set(os.listdir(folder)) if folder.is_dir() else set()
    return set()


def _require_apart(output: Path, inputs: Sequence[str | Path]) -> None:
    require_output_apart(output, inputs)
    written = [file for name in _WRITTEN if (file := output / name).exists()]
    if not written:
        return  # nothing that an input could be
    given = [x for x in map(str, inputs) if not (is_docs(x) or is_address(x))]
    files = [file for each in given for file in find_files(each)]
    for file in written:
        require_apart(file, files)


def _sentences_of(
    pieces: Sequence[Piece], reading: Reading, counts: Counter[str], progress: bool
) -> Iterator[str]:
    total = sum(piece.bytes for piece in pieces)
    meter = ProgressMeter("read text", total, unit="B", show=progress, delay=SAID_AFTER_SECONDS)
    with contextlib.closing(meter):
        for piece in pieces:
            for document in read_piece(piece, reading, counts=counts, tick=meter.add):
                yield from document
