# SPDX-License-Identifier: Apache-2.0
"""Check that a pretraining run's inputs exist, before anything slow is imported or made."""

from __future__ import annotations

import glob
from pathlib import Path

from albert_jax.config.model_names import model_path, name_of
from albert_jax.config.run import PretrainConfig
from albert_jax.data.mixture import split_stores
from albert_jax.utils.errors import UserError
from albert_jax.utils.remote_fs import is_address
from albert_jax.utils.wording import setting


def require_pretraining_data(config: PretrainConfig) -> None:
    """Raise UserError if a run has no store and no text.

    Also raise it if a store or vocabulary that is named does not exist.
    """
    if config.store is None and not config.text:
        raise UserError(
            f"no data: give {setting('store', 'STORE')} (made by albert-jax prepare) or "
            f"{setting('text')} FILE…"
        )
    if config.store:
        require_stores(config.store)
    heldout = config.heldout
    if heldout and not (is_address(heldout) or Path(heldout).exists() or glob.glob(heldout)):
        raise UserError(
            f"held-out data {heldout} does not exist; give a store made by albert-jax prepare"
        )
    if config.vocab is not None and not _is_there(config.vocab):
        raise UserError(f"vocab {config.vocab} does not exist; give a spiece.model")


def _is_there(vocab: str) -> bool:
    """Return whether a vocabulary exists, or is the name of a released model.

    Such a name has its own error where it has not been fetched.
    """
    named = name_of(vocab)
    return model_path(vocab).exists() or (named is not None and named.kind != "hub")


def require_stores(stores: str) -> None:
    """Raise UserError if a store, or one of a mixture, does not exist."""
    for store, _ in split_stores(stores):
        if not is_address(store) and not Path(store).exists() and not glob.glob(store):
            raise UserError(f"store {store} does not exist; make one with albert-jax prepare")
