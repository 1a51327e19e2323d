# SPDX-License-Identifier: Apache-2.0
"""Read a model directory, which has all that a model's use needs and can be copied and checked.

DIR/params/             the parameters, orbax
DIR/albert_config.json  the architecture, Google's field names
DIR/spiece.model        the vocabulary, or tokenizer.json or vocab.txt, by its kind; not there for a
                        model without one
DIR/optimizer/          the optimizer's slots, orbax; only where a conversion was asked to keep them
DIR/manifest.json       versions, each array's shape, dtype and CRC-32C, each file's SHA-256,
                        tokenizer settings, the fine-tuned head's kind and labels, where the weights
                        come from
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from albert_jax.checkpoint.convert.parameters import check_sizes, misfits
from albert_jax.checkpoint.integrity import (
    ArrayTree,
    Damaged,
    nest,
    not_finite,
    read_arrays,
    read_document,
)
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.manifests import (
    CONFIG,
    FORMAT_VERSION,
    MANIFEST,
    HeadManifest,
    ModelManifest,
    TextSettings,
    is_model_directory,
    is_pretraining_run,
    settings_in,
)
from albert_jax.config.model import AlbertConfig
from albert_jax.utils.atomic import require_writable
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import read_json
from albert_jax.utils.json_values import JsonObject, refuse_newer_format
from albert_jax.utils.remote_fs import require_here
from albert_jax.utils.wording import first_ten, shortened


class ModelTokenizer(TextSettings):
    """Hold a model's vocabulary, None if it has none, and how it cleans text."""

    path: Path | None


class ModelDirectory(NamedTuple):
    """Hold what `load_model` returns."""

    params: ArrayTree  # of NumPy arrays
    config: AlbertConfig
    tokenizer: ModelTokenizer
    manifest: Mapping[str, Any]  # the contents on disk; `ModelManifest` has the types

    @property
    def head(self) -> HeadManifest | None:
        """The fine-tuned head, or None for a pretrained model."""
        head = self.manifest.get("head")
        return HeadManifest.from_json(head) if head else None

    @property
    def text_settings(self) -> TextSettings:
        """How text is cleaned for the vocabulary."""
        return settings_in(self.tokenizer)


def require_finite(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raise UserError, which begins with `what` and names the arrays, for NaN and infinities."""
    if wrong := not_finite(arrays):
        raise UserError(
            f"{what} hold NaN or infinities in {len(wrong)} of {len(arrays)} arrays "
            f"({first_ten(wrong)}); such a model gives no meaningful answer: take a checkpoint "
            "from before they appeared"
        )


def require_outside_models(path: Path) -> None:
    """Raise UserError for a path within a model directory.

    A model directory has only its own files; with others, no export would replace it any more.
    """
    for parent in path.resolve().parents:
        if is_model_directory(parent):
            raise UserError(f"{path} lies in the model directory {parent}; give a path outside")


def require_place(path: str | Path, *, other: str = "a new path") -> None:
    """Raise UserError for a path that cannot be or become a folder for a model's files.

    `other` says what to give instead.
    """
    require_here(path)
    path = Path(path)
    require_outside_models(path)
    require_writable(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a directory; give {other}")


def require_no_runs_model(path: str | Path, workdir: Path | None = None) -> None:
    """Raise UserError for the path of a pretraining run's model, which that run will write.

    `workdir` is the work directory of the run whose model it may be.
    """
    folder = Path(path).resolve().parent
    is_own = workdir is not None and workdir.resolve() == folder
    if Path(path).name == "model" and is_pretraining_run(folder) and not is_own:
        raise UserError(
            f"{path} is where the run in the work directory {folder} writes its model; give "
            "another path"
        )


def load_model(
    directory: str | Path, *, check_values: bool = True, as_float32: bool = False
) -> ModelDirectory:
    """Read a model directory, or the model of that name, and verify every digest.

    Parameters have the dtypes that they were exported with, or float32 with `as_float32`. Raises
    UserError for a path that is no model directory, for a newer format, for each file or array that
    is not as it was exported, and for parameters that are not finite or not those of the
    configuration. With `check_values` False, the last two pass, for a caller that reports them.
    """
    directory = require_model_directory(directory)
    try:
        document, manifest = _read_manifest(directory)
        for name, digest in manifest.sha256.items():
            if not (directory / name).is_file():
                raise Damaged(f"{name}: missing")
            if (found := file_sha256(directory / name)) != digest:
                raise Damaged(f"{name}: SHA-256 {found} where {digest!s:.64} was written")
        config = read_json(directory / CONFIG, AlbertConfig, hint="convert the model again")
        check_sizes(config, directory / CONFIG)
        if check_values:
            _check_fit(directory, config, manifest)
        arrays = read_arrays(directory / "params", manifest.tensors)
    except Damaged as error:
        raise _damaged(directory, error) from None
    if check_values:
        require_finite(arrays, f"the parameters of {directory}")
    if as_float32:
        arrays = {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}
    vocab = directory / manifest.vocabulary if manifest.vocabulary else None
    tokenizer: ModelTokenizer = {"path": vocab, **manifest.tokenizer}
    return ModelDirectory(nest(arrays), config, tokenizer, document)


def _read_manifest(directory: Path) -> tuple[JsonObject, ModelManifest]:
    """Return the manifest's document and its contents.

    Raises Damaged, and UserError for a newer format.
    """
    document = read_document(directory / MANIFEST)
    refuse_newer_format(document, FORMAT_VERSION, str(directory))
    try:
        return document, ModelManifest.from_json(document)
    except msgspec.ValidationError as error:
        raise Damaged(f"{MANIFEST}: {shortened(str(error))}") from None


def _check_fit(directory: Path, config: AlbertConfig, manifest: ModelManifest) -> None:
    """Raise UserError unless the arrays, which are not read yet, are those of the configuration."""
    shapes = {name: tuple(entry["shape"]) for name, entry in manifest.tensors.items()}
    head = manifest.head
    kind, labels = (head.kind, head.labels) if head else (None, None)
    if wrong := misfits(shapes, config, kind, labels):
        raise UserError(
            f"the parameters of {directory} are not those of its {CONFIG}: "
            f"{first_ten(wrong, '; ')}; convert or export the model again"
        )


def load_optimizer(directory: str | Path) -> ArrayTree | None:
    """Read the optimizer's slots beside a model, verified; None if it has none."""
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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
