# SPDX-License-Identifier: Apache-2.0
"""The text of a TFDS data set, read without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from albert_jax.errors import UserError


@dataclass(frozen=True)
class TextSource:
    """One split of a prepared data set, by random access."""

    examples: Sequence[dict[str, Any]]
    feature: str  # the one that holds the text
    num_bytes: int  # of the split, as TFDS counts it

    def text(self, index: int) -> bytes:
        """The text of one example, UTF-8 unless the data set broke it."""
        text = self.examples[index][self.feature]
        return text if isinstance(text, bytes) else str(text).encode("utf-8", errors="replace")


@functools.lru_cache(maxsize=4)
def open_source(name: str, split: str, data_dir: str | None = None) -> TextSource:
    """Opens a split of `NAME[/CONFIG][:VERSION]`, which is downloaded and prepared where need be.

    Raises UserError for a data set that is unknown, that is stored as TFRecord (which only
    TensorFlow reads) or that has no text feature.
    """
    import tensorflow_datasets as tfds  # 2 s and 200 MB, so only where it is asked for

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.info.splits:
            # Array records can be read by index without TensorFlow; the default is TFRecord.
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the results'
                builder.download_and_prepare()
        if split not in builder.info.splits:
            raise UserError(
                f"TFDS data set {name} has no split {split!r}; it has "
                f"{', '.join(builder.info.splits)}: name one in place of input files"
            )
        examples = builder.as_data_source(split=split)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"TFDS data set {name} is not prepared here, and its own code needs {error.name} for "
            f"that; pip install {error.name}, or prepare it elsewhere with file_format array_record"
        ) from error
    except Exception as error:  # TFDS raises whatever the data set's own code does
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"TFDS data set {name} cannot be read ({type(error).__name__}: {reason}); it must be "
            "known or prepared in its data folder, with file_format array_record"
        ) from error
    texts = [
        key
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Text)
    ]
    if "text" not in texts and len(texts) != 1:
        raise UserError(
            f"TFDS data set {name} has no feature `text`, nor a single text feature (it has "
            f"{', '.join(builder.info.features)}); write its text to files instead"
        )
    feature = "text" if "text" in texts else texts[0]
    return TextSource(examples, feature, int(builder.info.splits[split].num_bytes))
