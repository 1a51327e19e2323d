# SPDX-License-Identifier: Apache-2.0
"""What the project's pictures have in common; Matplotlib is imported where one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from albert_jax.errors import UserError


def new_figure(panels: int, *, width: float, height: float) -> tuple[Any, list[Any]]:
    """A Matplotlib figure and its panels, side by side, of so many inches each."""
    import matplotlib

    matplotlib.use("Agg")  # no display on a training machine
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, panels, figsize=(width * panels, height), squeeze=False, layout="constrained"
    )
    return figure, list(axes[0])


def save_picture(figure: Any, title: str, picture: str | Path) -> None:
    """Writes a finished figure as PNG."""
    from matplotlib import pyplot

    figure.suptitle(title, fontsize="medium")
    try:
        figure.savefig(picture, dpi=110, format="png")
    finally:
        pyplot.close(figure)


def save_plot(figure: Any, title: str, picture: str | Path) -> None:
    """Writes what a command's --plot asked for; UserError where it cannot."""
    try:
        save_picture(figure, title, picture)
    except OSError as error:
        raise UserError(f"--plot {picture} cannot be written: {error.strerror}") from None
