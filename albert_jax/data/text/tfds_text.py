# SPDX-License-Identifier: Apache-2.0
"""Read the text of a TFDS data set without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from albert_jax.data.tfds import open_split
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting


@dataclass(frozen=True)
class TextSource:
    """Give random access to one split of a prepared data set."""

    examples: Sequence[Mapping[str, Any]]
    feature: str  # the one that holds the text
    num_bytes: int  # of the split, as TFDS counts it

    def text(self, index: int) -> bytes:
        """Return the text of one example, UTF-8 unless the data set broke it."""
        text = self.examples[index][self.feature]
        return text if isinstance(text, bytes) else str(text).encode("utf-8", errors="replace")


@functools.lru_cache(maxsize=4)
def open_source(
    name: str, split: str, data_dir: str | None = None, field: str | None = None
) -> TextSource:
    """Open a split of `NAME[/CONFIG][:VERSION]`; see `open_split`.

    `field` is the text feature; None, `text` or the only one. Raises UserError also for a data set
    that has none.
    """
    import tensorflow_datasets as tfds  # 2 s and 200 MB, so imported only on demand

    builder, examples = open_split(name, split, data_dir)
    texts = [
        key
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Text)
    ]
    if field is not None and field not in texts:
        raise UserError(
            f"TFDS data set {name} has no text feature {field!r} (it has "
            f"{', '.join(texts) or 'none'}); name one with {setting('field')}"
        )
    if field is None and "text" not in texts and len(texts) != 1:
        raise UserError(
            f"TFDS data set {name} has no feature `text`, nor a single text feature (it has "
            f"{', '.join(builder.info.features)}); name one with {setting('field')}, or write its "
            "text to files instead"
        )
    feature = field or ("text" if "text" in texts else texts[0])
    return TextSource(examples, feature, int(builder.info.splits[split].num_bytes))
