# SPDX-License-Identifier: Apache-2.0
"""Check that a run's inputs exist, before anything slow is imported or made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from albert_jax.checkpoint.convert.parameters import MAPPING
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.config.manifests import TensorEntry, is_pretraining_run, read_model_manifest
from albert_jax.config.run import FinetuneConfig, PretrainConfig
from albert_jax.data.hub import HUB
from albert_jax.data.required import require_pretraining_data
from albert_jax.tasks.base import TFDS
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import MOUNT, is_address, require_here
from albert_jax.utils.wording import setting


def require_pretraining_inputs(
    config: PretrainConfig, *, workdir_too: bool = True, fetch: bool = True
) -> None:
    """Raise UserError if a run's data or work directory is not given, or a path does not exist.

    With `fetch` False, also raise it for a model that would have to be fetched or converted first.
    """
    if workdir_too:
        workdir = _require_workdir(config.workdir)
        require_no_finetuning_run(workdir, f"give another {setting('workdir')}")
    if config.init_from is not None:
        folder = require_model_directory(config.init_from, "init_from", fetch=fetch)
        tensors = _trainable(folder, f"{setting('init_from')} {config.init_from}")
        if not any(name.startswith("predictions/") for name in tensors):
            raise UserError(
                f"{setting('init_from')} {config.init_from} has no masked-LM head to train; give a "
                "pretrained model"
            )
    require_pretraining_data(config)


def _trainable(folder: Path, name: str) -> Mapping[str, TensorEntry]:
    """Return a model's tensors; raises UserError if no checkpoint of a run from it can be restored.

    A new model has no embedding projection if embedding_size equals hidden_size. transformers'
    models always have one.
    """
    tensors = read_model_manifest(folder).tensors
    projection = tensors.get(f"{MAPPING}/kernel")
    if projection is not None and len({*projection["shape"]}) == 1:
        raise UserError(
            f"{name} projects its embeddings, though embedding_size equals hidden_size, and a run "
            "from it could not be resumed; take another model to train from"
        )
    return tensors


def require_finetuning_inputs(config: FinetuneConfig, *, workdir_too: bool = True) -> None:
    """Raise UserError if a run's model, data or work directory is not given, or does not exist."""
    if workdir_too:
        _require_no_pretraining_run(_require_workdir(config.workdir))
    if config.model is None:
        raise UserError(f"no model directory to start from; give {setting('model', 'DIR')}")
    _trainable(require_model_directory(config.model), f"model {config.model}")
    if config.teacher is not None:
        require_model_directory(config.teacher)
    if config.data is None:
        raise UserError(f"no data; give {setting('data', 'DIR')}, hf:NAME, or tfds")
    if config.data == TFDS or config.data.startswith(HUB) or is_address(config.data):
        return
    if not Path(config.data).exists():
        raise UserError(
            f"data {config.data} does not exist; give the folder of the task's files, hf:NAME or "
            "tfds"
        )
    if Path(config.data).is_file():
        raise UserError(
            f"data {config.data} is a file; give a folder that holds the task's files, for a table "
            "of your own train.csv and dev.csv"
        )


def require_no_finetuning_run(workdir: Path, remedy: str) -> None:
    """Raise UserError, which ends with `remedy`, for the work directory of a fine-tuning run.

    Its `model` is a link to the best seed's model, which a pretraining run would overwrite.
    """
    if (workdir / "model").is_symlink() or any(workdir.glob("seed-*/checkpoints")):
        raise UserError(f"{workdir} is the work directory of a fine-tuning run; {remedy}")


def _require_no_pretraining_run(workdir: Path) -> None:
    """Raise UserError for a pretraining run's work directory, whose config.json would be lost."""
    if is_pretraining_run(workdir):
        raise UserError(
            f"{workdir} is the work directory of a pretraining run; give another "
            f"{setting('workdir')}"
        )


def _require_workdir(workdir: str | None) -> Path:
    if workdir is None:
        raise UserError(f"no work directory; give {setting('workdir', 'DIR')}")
    require_here(workdir, MOUNT)
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise UserError(f"work directory {workdir} is a file; give another {setting('workdir')}")
    return Path(workdir)
