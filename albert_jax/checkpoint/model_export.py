# SPDX-License-Identifier: Apache-2.0
"""Write a model directory; `model_dir` describes its contents and reads it.

This is a separate module, because orbax takes longer to import than a model to read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from albert_jax import __version__
from albert_jax.checkpoint.disk import WRITE_ERRORS, cause_of, require_space
from albert_jax.checkpoint.integrity import array_table, named_leaves, nest, on_host, seal
from albert_jax.checkpoint.model_dir import file_sha256, require_finite, require_place
from albert_jax.config.manifests import (
    CONFIG,
    MANIFEST,
    VOCABULARIES,
    VOCABULARY,
    ConvertedTensor,
    HeadManifest,
    ModelManifest,
    TensorEntry,
    format_version,
    is_model_directory,
    read_model_manifest,
    settings_in,
    vocabulary_name,
)
from albert_jax.config.model import AlbertConfig
from albert_jax.utils.atomic import appearing_whole
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import finite
from albert_jax.utils.wording import first_ten, shortened

_FILE_BYTES = 1 << 23  # of the files that orbax writes parameters to
# Whether the model of a manifest is an older version of the one to write.
Replaces = Callable[[ModelManifest], bool]
_PARTS = {MANIFEST, CONFIG, *VOCABULARIES, "params", "optimizer"}


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
    replaces: Replaces | None = None,
) -> Path:
    """Write a model directory and return its path; it appears complete, by a rename.

    `tokenizer` has the `TextSettings`; `provenance` is any JSON about where the weights come from;
    `head` is {"kind", "labels"} of a fine-tuned model, whose parameters are `head`; `inventory`
    lists the tensors of a converted source; `optimizer` is a tree of its slots. An existing model
    directory is replaced, if `replaces` says that it is an older version of this one; unset, any,
    but a fine-tuned one by another fine-tuned one only. Raises UserError for anything else in the
    way, a full disk, and numbers that are not finite. One process of a run calls it, with
    parameters that it can address.
    """
    replaces = replaces or (_is_any if head is not None else is_pretrained)
    check_destination(directory, replaces)
    directory = Path(directory).resolve()
    leaves = named_leaves(params)
    arrays, slots = on_host(leaves), on_host(named_leaves(optimizer or {}))
    require_finite(arrays | slots, f"model directory {directory} NOT written: its parameters")
    size = sum(x.nbytes for x in (*arrays.values(), *slots.values()))
    with appearing_whole(directory) as folder:
        check_destination(directory, replaces)  # it may have appeared since
        try:
            require_space(folder, size)
            config.to_json(folder / CONFIG)
            vocabulary = VOCABULARY if vocab is None else vocabulary_name(vocab)
            if vocab is not None:
                shutil.copyfile(vocab, folder / vocabulary)
            _write_arrays(folder / "params", arrays)
            if slots:
                _write_arrays(folder / "optimizer", slots)
            settings = settings_in(tokenizer)
            manifest = ModelManifest(
                format_version=format_version(settings, vocabulary),
                albert_jax=__version__,
                tokenizer=settings,
                provenance=dict(provenance),
                head=HeadManifest.from_json(head) if head else None,
                inventory=None if inventory is None else list(inventory),
                sha256={
                    name: file_sha256(folder / name)
                    for name in (CONFIG, *VOCABULARIES)
                    if (folder / name).exists()
                },
                tensors=_table(leaves, arrays),
                optimizer=_table(slots, slots) if slots else None,
            )
            text = json.dumps(seal(finite(manifest.to_json())), indent=1)
            (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        except WRITE_ERRORS as error:
            cause = cause_of(error, directory.parent, size)
            raise UserError(f"model directory {directory} NOT written: {cause}") from error
    return directory


def check_destination(
    directory: str | Path, replaces: Replaces | None = None, *, other: str = "a new path"
) -> None:
    """Raise UserError if no model can be exported to this path; call this before the work.

    `replaces` is as in `export_model`; unset, any model may be replaced. `other` says what to give
    instead.
    """
    require_place(directory, other=other)
    directory = Path(directory)
    if directory.is_dir():
        names = {path.name for path in directory.iterdir()}
        if names and not is_model_directory(directory):
            raise UserError(f"{directory} exists and is no model directory; give {other}")
        if others := sorted(names - _PARTS):
            raise UserError(
                f"{directory} is a model directory with other files in it ({first_ten(others)}), "
                f"which would be lost; move them, or give {other}"
            )
        found = _manifest_of(directory) if names else None
        if found is not None and not (replaces or _is_any)(found):
            raise UserError(
                f"{directory} is {_described(found)}, which would be lost; give {other}, or "
                "delete it first"
            )


def _manifest_of(directory: Path) -> ModelManifest | None:
    try:
        return read_model_manifest(directory)
    except UserError:  # it is damaged, and to be replaced perhaps
        return None


def _is_any(manifest: ModelManifest) -> bool:
    return True


def is_pretrained(manifest: ModelManifest) -> bool:
    """Return False for a fine-tuned model, which `finetune` may have linked to."""
    return manifest.head is None


def _described(manifest: ModelManifest) -> str:
    """Return what a model is, which command made it, and of what or where."""
    kind = "a model" if manifest.head is None else "a fine-tuned model"
    made = manifest.provenance
    if manifest.inventory is not None:  # which convert always writes
        return f"{kind} that albert-jax convert made of {shortened(str(made.get('source')))}"
    if "made_by" not in made:
        return kind
    config = made.get("config")
    workdir = config.get("workdir") if isinstance(config, Mapping) else None
    where = f" in {shortened(str(workdir))}" if workdir else ""
    return f"{kind} that {shortened(str(made['made_by']))} made{where}"


class _AsItIs(np.ndarray):
    """Hold an array that orbax does not copy, because it does not change meanwhile.

    Orbax copies an array in case it changes, which takes memory.
    """

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
    # Orbax only checks that the folder exists, but writes to the place where it was on this
    # machine.
    (path / "commit_success.txt").write_text("Checkpoint commit was successful\n", encoding="utf-8")
