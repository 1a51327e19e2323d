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
from typing import Any, Literal, NamedTuple, cast

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp

from albert_jax import __version__
from albert_jax.checkpoint.convert.parameters import check_sizes, misfits
from albert_jax.checkpoint.integrity import (
    Damaged,
    array_table,
    named_leaves,
    nest,
    not_finite,
    on_host,
    read_arrays,
    read_document,
    seal,
)
from albert_jax.checkpoint.manager import cause_of, require_space
from albert_jax.config.manifests import (
    CONFIG,
    FORMAT_VERSION,
    MANIFEST,
    VOCABULARY,
    ConvertedTensor,
    HeadManifest,
    ModelManifest,
    TensorEntry,
    TextSettings,
    is_model_directory,
)
from albert_jax.config.model import AlbertConfig
from albert_jax.utils.atomic import appearing_whole
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.json_values import finite, refuse_newer_format
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.wording import first_ten, shortened

_FILE_BYTES = 1 << 23  # of the files that orbax writes parameters to
_PARTS = {MANIFEST, CONFIG, VOCABULARY, "params", "optimizer"}


class ModelDirectory(NamedTuple):
    """What `load_model` returns."""

    params: dict[str, Any]  # nested dicts of NumPy arrays
    config: AlbertConfig
    tokenizer: dict[str, Any]  # "path" (None without a vocabulary), "mode", "do_lower_case"
    manifest: Mapping[str, Any]  # as it is on disk; `ModelManifest` has the types

    @property
    def head(self) -> HeadManifest | None:
        """The fine-tuned head, None for a pretrained model."""
        head = self.manifest.get("head")
        return HeadManifest.from_json(head) if head else None


def export_model(
    directory: str | Path,
    *,
    params: Any,
    config: AlbertConfig,
    vocab: Path | None,
    tokenizer: Mapping[str, Any],
    provenance: Mapping[str, Any],
    head: HeadManifest | Mapping[str, Any] | None = None,
    inventory: Sequence[ConvertedTensor] | None = None,
    optimizer: Any = None,
) -> Path:
    """Writes a model directory and returns its path; it appears whole, by rename.

    `tokenizer` has `mode` and `do_lower_case`; `provenance` is any JSON that says where the weights
    come from; `head` is {"kind", "labels"} of a fine-tuned model, whose parameters are `head`;
    `inventory` lists the tensors of a converted source; `optimizer` is a tree of its slots. A model
    directory that exists is replaced; UserError for anything else in the way, for a disk that is
    full and for numbers that are not finite. One process of a run calls it, with parameters that it
    can address.
    """
    check_destination(directory)
    directory = Path(directory).resolve()
    leaves = named_leaves(params)
    arrays, slots = on_host(leaves), on_host(named_leaves(optimizer or {}))
    require_finite(arrays | slots, f"model directory {directory} NOT written: its parameters")
    size = sum(x.nbytes for x in (*arrays.values(), *slots.values()))
    with appearing_whole(directory) as folder:
        check_destination(directory)  # it may have appeared since
        try:
            require_space(folder, size)
            config.to_json(folder / CONFIG)
            if vocab is not None:
                shutil.copyfile(vocab, folder / VOCABULARY)
            _write_arrays(folder / "params", arrays)
            if slots:
                _write_arrays(folder / "optimizer", slots)
            files: list[Literal["albert_config.json", "spiece.model"]]
            files = [name for name in (CONFIG, VOCABULARY) if (folder / name).exists()]
            manifest = ModelManifest(
                format_version=FORMAT_VERSION,
                albert_jax=__version__,
                tokenizer=TextSettings(
                    mode=tokenizer["mode"], do_lower_case=tokenizer["do_lower_case"]
                ),
                provenance=dict(provenance),
                head=HeadManifest.from_json(head) if head else None,
                inventory=None if inventory is None else list(inventory),
                sha256={name: _sha256(folder / name) for name in files},
                tensors=_table(leaves, arrays),
                optimizer=_table(slots, slots) if slots else None,
            )
            text = json.dumps(seal(finite(manifest.to_json())), indent=1)
            (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        except Exception as error:
            cause = cause_of(error, directory.parent, size)
            raise UserError(f"model directory {directory} NOT written: {cause}") from error
    return directory


def require_finite(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """UserError, which begins with `what` and names the arrays, for NaN and infinities."""
    if wrong := not_finite(arrays):
        raise UserError(
            f"{what} hold NaN or infinities in {len(wrong)} of {len(arrays)} arrays "
            f"({first_ten(wrong)}); no answer of such a model means anything: take a checkpoint "
            "from before they appeared"
        )


def check_destination(directory: str | Path) -> None:
    """UserError if no model can be exported to this path: to be said before the work, not after."""
    if is_address(str(directory)):
        raise UserError(f"{directory} is an address; give a folder here, and copy it there then")
    directory = Path(directory)
    require_outside_models(directory)
    if directory.is_dir():
        names = {path.name for path in directory.iterdir()}
        if names and not is_model_directory(directory):
            raise UserError(f"{directory} exists and is no model directory; give a new path")
        if others := sorted(names - _PARTS):
            raise UserError(
                f"{directory} is a model directory with other files in it ({first_ten(others)}), "
                "which would be lost; move them, or give a new path"
            )
    elif directory.exists():
        raise UserError(f"{directory} is a file, not a directory; give a new path")


def require_outside_models(path: Path) -> None:
    """Raises UserError for a path within a model directory, which holds its own files and no more:
    no export would replace it any more."""
    for parent in path.resolve().parents:
        if is_model_directory(parent):
            raise UserError(f"{path} lies in the model directory {parent}; give a path outside")


class _AsItIs(np.ndarray):
    """An array that orbax does not copy, lest it change meanwhile: it takes memory, and they do
    not."""

    def __deepcopy__(self, memo: Any) -> _AsItIs:
        return self


def _table(leaves: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, TensorEntry]:
    return cast(dict[str, TensorEntry], array_table(leaves, arrays))


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


def load_model(directory: str | Path, *, check_values: bool = True) -> ModelDirectory:
    """Reads a model directory and verifies every digest.

    Raises UserError for a path that is no model directory, for a newer format, for each file or
    array that is not as it was exported, and for parameters that are not finite or not those of the
    configuration; the last two pass with `check_values` False, for who reports on them.
    """
    directory = Path(directory)
    if not is_model_directory(directory):
        raise UserError(
            f"{directory} is no model directory (no {MANIFEST} or {CONFIG}); make one from "
            "released weights with albert-jax convert, or take WORKDIR/model of a finished run"
        )
    try:
        document, manifest = _read_manifest(directory)
        for name, digest in manifest.sha256.items():
            if not (directory / name).is_file():
                raise Damaged(f"{name}: missing")
            if (found := _sha256(directory / name)) != digest:
                raise Damaged(f"{name}: SHA-256 {found} where {digest!s:.64} was written")
        config = read_json(directory / CONFIG, AlbertConfig, hint="convert the model again")
        check_sizes(config, directory / CONFIG)
        if check_values:
            _check_fit(directory, config, manifest)
        params = nest(read_arrays(directory / "params", manifest.tensors))
    except Damaged as error:
        raise _damaged(directory, error) from None
    if check_values:
        require_finite(named_leaves(params), f"the parameters of {directory}")
    vocab = directory / VOCABULARY if VOCABULARY in manifest.sha256 else None
    tokenizer = {"path": vocab, **manifest.tokenizer}
    return ModelDirectory(params, config, tokenizer, document)


def _read_manifest(directory: Path) -> tuple[dict[str, Any], ModelManifest]:
    """The document and what it says, or Damaged; UserError for a newer format."""
    document = read_document(directory / MANIFEST)
    refuse_newer_format(document, FORMAT_VERSION, str(directory))
    try:
        return document, ModelManifest.from_json(document)
    except msgspec.ValidationError as error:
        raise Damaged(f"{MANIFEST}: {shortened(str(error))}") from None


def _check_fit(directory: Path, config: AlbertConfig, manifest: ModelManifest) -> None:
    """UserError unless the arrays, of which nothing was read, are those of the configuration."""
    shapes = {name: tuple(entry["shape"]) for name, entry in manifest.tensors.items()}
    head = manifest.head
    kind, labels = (head.kind, head.labels) if head else (None, None)
    if wrong := misfits(shapes, config, kind, labels):
        raise UserError(
            f"the parameters of {directory} are not those of its {CONFIG}: "
            f"{first_ten(wrong, '; ')}; convert or export the model again"
        )


def load_optimizer(directory: str | Path) -> dict[str, Any] | None:
    """Reads the optimizer's slots beside a model, verified; None where it has none."""
    directory = Path(directory)
    try:
        _, manifest = _read_manifest(directory)
        if not manifest.optimizer:
            return None
        params = [directory / "params"]  # slots of a run that has not begun are zeros, and no bytes
        arrays = read_arrays(directory / "optimizer", manifest.optimizer, beside=params)
        require_finite(arrays, f"the optimizer's slots of {directory}")
        return nest(arrays)
    except Damaged as error:
        raise _damaged(directory, f"optimizer: {error}") from None


def _damaged(directory: Path, why: object) -> UserError:
    return UserError(
        f"model directory {directory} is damaged or was edited ({why}); copy or convert it again"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
