# SPDX-License-Identifier: Apache-2.0
"""Open data sets of TFDS without TensorFlow, and prepare them if necessary."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from typing import Any

from albert_jax.utils.errors import TryAgain, UserError


def open_split(name: str, split: str, data_dir: str | None = None) -> tuple[Any, Any]:
    """Return a data set's builder, and random access to the examples of a split.

    `NAME[/CONFIG][:VERSION]` is downloaded and prepared if necessary. Raises UserError if the data
    set or split is unknown, is stored as TFRecord, which only TensorFlow reads, or cannot be
    prepared.
    """
    try:
        builder = _prepared(name, data_dir)
        if split not in builder.info.splits:
            raise UserError(
                f"TFDS data set {name} has no split {split!r}; it has "
                f"{', '.join(builder.info.splits)}: name one in place of input files"
            )
        return builder, builder.as_data_source(split=split)
    except (UserError, TryAgain):
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"TFDS data set {name} is not prepared here, and its own code needs {error.name} for "
            f"that; pip install {error.name}, or prepare it elsewhere with file_format array_record"
        ) from error
    except Exception as error:  # TFDS raises whatever the data set's own code does
        said = str(error).partition(" Available datasets:")[0]
        reason = " ".join(said.split())[:200] or type(error).__name__
        raise UserError(
            f"TFDS data set {name} cannot be read ({type(error).__name__}: {reason}); it must be "
            "known or prepared in its data folder, with file_format array_record; or give files"
        ) from error


def _prepared(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)  # if it is prepared, from its files alone
    except tfds.core.DatasetNotFoundError:
        # GLUE, Wikipedia and C4 are among the classes that TFDS does not know before their import.
        module = f"tensorflow_datasets.text.{re.split('[/:]', name)[0]}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if not builder.info.splits:
        # Array records can be read by index without TensorFlow; the default is TFRecord.
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the results'
            builder.download_and_prepare()
    return builder
