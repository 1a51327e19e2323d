# SPDX-License-Identifier: Apache-2.0
"""The model directory: all that using a model needs, in one folder that can be copied and checked.

DIR/params/             the parameters, orbax
DIR/albert_config.json  the architecture, Google's field names
DIR/spiece.model        the vocabulary; not there for a model without one
DIR/optimizer/          the optimizer's slots, orbax; only where a conversion was asked to keep them
DIR/manifest.json       versions, each array's shape, dtype and CRC-32C, each file's SHA-256,
                        tokenizer settings, the fine-tuned head's kind and labels, where the weights
                        come from
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from albert_jax import __version__
from albert_jax.appearing import appearing_whole
from albert_jax.checkpoint import cause_of, require_space
from albert_jax.config import AlbertConfig
from albert_jax.digests import (
    Damaged,
    named_leaves,
    nest,
    on_host,
    read_arrays,
    read_document,
    seal,
    table_of,
)
from albert_jax.errors import UserError

FORMAT_VERSION = 1
_FILE_BYTES = 1 << 23  # of the files that orbax writes parameters to
MANIFEST, CONFIG, VOCABULARY = "manifest.json", "albert_config.json", "spiece.model"


class ModelDirectory(NamedTuple):
    """What `load_model` returns."""

    params: dict[str, Any]  # nested dicts of NumPy arrays
    config: AlbertConfig
    tokenizer: dict[str, Any]  # "path" (None without a vocabulary), "mode", "do_lower_case"
    manifest: dict[str, Any]


def export_model(
    directory: str | Path,
    *,
    params: Any,
    config: AlbertConfig,
    vocab: Path | None,
    tokenizer: Mapping[str, Any],
    provenance: Mapping[str, Any],
    head: Mapping[str, Any] | None = None,
    inventory: Sequence[Mapping[str, Any]] | None = None,
    optimizer: Any = None,
) -> Path:
    """Writes a model directory and returns its path; it appears whole, by rename.

    `tokenizer` has `mode` and `do_lower_case`; `provenance` is any JSON that says where the weights
    come from; `head` is {"kind", "labels"} of a fine-tuned model, whose parameters are `head`;
    `inventory` lists the tensors of a converted source; `optimizer` is a tree of its slots. A model
    directory that exists is replaced; UserError for anything else in the way and
    for a disk that is full. One process of a run calls it, with parameters that it can address.
    """
    directory = Path(directory).resolve()
    check_destination(directory)
    leaves = named_leaves(params)
    arrays, slots = on_host(leaves), on_host(named_leaves(optimizer or {}))
    size = sum(x.nbytes for x in (*arrays.values(), *slots.values()))
    with appearing_whole(directory) as folder:
        try:
            require_space(folder, size)
            config.to_json(folder / CONFIG)
            if vocab is not None:
                shutil.copyfile(vocab, folder / VOCABULARY)
            _write_arrays(folder / "params", arrays)
            if slots:
                _write_arrays(folder / "optimizer", slots)
            files = [name for name in (CONFIG, VOCABULARY) if (folder / name).exists()]
            manifest = {
                "format_version": FORMAT_VERSION,
                "albert_jax": __version__,
                "tokenizer": tokenizer,
                "provenance": provenance,
                "head": head,
                "inventory": inventory,
                "sha256": {name: _sha256(folder / name) for name in files},
                "tensors": table_of(leaves, arrays),
                "optimizer": table_of(slots, slots) if slots else None,
            }
            text = json.dumps(seal(manifest), indent=1)
            (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        except Exception as error:
            cause = cause_of(error, directory.parent, size)
            raise UserError(f"model directory {directory} NOT written: {cause}") from error
    return directory


def check_destination(directory: str | Path) -> None:
    """UserError if no model can be exported to this path: to be said before the work, not after."""
    directory = Path(directory)
    if directory.is_dir() and not _is_model(directory) and any(directory.iterdir()):
        raise UserError(f"{directory} exists and is no model directory; give a new path")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file, not a directory; give a new path")


def _is_model(directory: Path) -> bool:
    return (directory / MANIFEST).is_file() and (directory / CONFIG).is_file()


class _AsItIs(np.ndarray):
    """An array that orbax does not copy, lest it change meanwhile: it takes memory, and they do
    not."""

    def __deepcopy__(self, memo: Any) -> _AsItIs:
        return self


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    here = {jax.process_index()}  # of several processes, this one alone waits for no other
    options = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes=here,
        barrier_sync_key_prefix="export",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
        given = {name: array.view(_AsItIs) for name, array in arrays.items()}
        # Without a size, orbax keeps all in memory until the end.
        save = ocp.args.PyTreeSave(nest(given), ocdbt_target_data_file_size=_FILE_BYTES)
        checkpointer.save(path, args=save)


def load_model(directory: str | Path) -> ModelDirectory:
    """Reads a model directory and verifies every digest.

    Raises UserError for a path that is no model directory, for a newer format and for each file or
    array that is not as it was exported.
    """
    directory = Path(directory)
    if not _is_model(directory):
        raise UserError(
            f"{directory} is no model directory (no {MANIFEST} or {CONFIG}); make one from "
            "released weights with albert-jax convert, or take WORKDIR/model of a finished run"
        )
    try:
        manifest = read_document(directory / MANIFEST)
        if manifest["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{directory} has format {manifest['format_version']}, newer than "
                f"{FORMAT_VERSION}; update albert_jax"
            )
        for name, digest in manifest["sha256"].items():
            if not (directory / name).is_file():
                raise Damaged(f"{name}: missing")
            if (found := _sha256(directory / name)) != digest:
                raise Damaged(f"{name}: SHA-256 {found} where {digest} was written")
        arrays = read_arrays(directory / "params", manifest["tensors"])
    except Damaged as error:
        raise UserError(
            f"model directory {directory} is damaged or was edited ({error}); "
            "copy or convert it again"
        ) from None
    config = AlbertConfig(**json.loads((directory / CONFIG).read_text(encoding="utf-8")))
    vocab = directory / VOCABULARY if VOCABULARY in manifest["sha256"] else None
    tokenizer = {"path": vocab, **manifest["tokenizer"]}
    return ModelDirectory(nest(arrays), config, tokenizer, manifest)


def load_optimizer(directory: str | Path) -> dict[str, Any] | None:
    """Reads the optimizer's slots beside a model, verified; None where it has none."""
    directory = Path(directory)
    try:
        table = read_document(directory / MANIFEST).get("optimizer")
        return nest(read_arrays(directory / "optimizer", table)) if table else None
    except Damaged as error:
        raise UserError(
            f"model directory {directory} is damaged or was edited (optimizer: {error}); "
            "copy or convert it again"
        ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
