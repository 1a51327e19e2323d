# SPDX-License-Identifier: Apache-2.0
"""Locate the models that come with the package; each is a model directory."""

from __future__ import annotations

from pathlib import Path

PACKAGED = ("mini",)


def packaged_path(name: str) -> Path:
    """Return the folder of a model that comes with the package."""
    return Path(__file__).resolve().parents[1] / "packaged" / name
