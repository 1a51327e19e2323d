# SPDX-License-Identifier: Apache-2.0
"""An extension of griffe, which reads the docstrings for the site: [CLS] in one is no link."""

from __future__ import annotations

import re
from typing import Any

import griffe


class PlainBrackets(griffe.Extension):
    """Escapes the brackets of docstrings, but for those in code."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Escape the brackets of an object's docstring."""
        if obj.docstring:
            # Examples are code, and stand last.
            text, heading, examples = obj.docstring.value.partition("\nExamples:\n")
            escaped = "".join(
                piece if piece.startswith("`") else re.sub(r"(?<!\\)([\[\]])", r"\\\1", piece)
                for piece in re.split(r"(`[^`]*`)", text)
            )
            obj.docstring.value = escaped + heading + examples
