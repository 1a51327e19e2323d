# SPDX-License-Identifier: Apache-2.0
"""The models that come with the package, each a model directory inside it."""

from __future__ import annotations

from pathlib import Path

PACKAGED = ("mini",)


def packaged_path(name: str) -> Path:
    """Return the folder of a model that comes with the package."""
    return Path(__file__).resolve().parents[1] / "packaged" / name
