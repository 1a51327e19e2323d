# SPDX-License-Identifier: Apache-2.0
"""The models that come with the package, each a model directory inside it."""

from __future__ import annotations

from pathlib import Path

PACKAGED = ("mini",)


def model_path(given: str | Path) -> Path:
    """Return the folder of a model that comes with the package, for its name; any other path, and
    whatever lies here under such a name, as it is."""
    path = Path(given)
    if str(path) in PACKAGED and not path.exists():
        return Path(__file__).resolve().parents[1] / "packaged" / path
    return path
