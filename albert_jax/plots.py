# SPDX-License-Identifier: Apache-2.0
"""Export the functions that draw this project's figures, as `albert_jax.plots.new_figure(…)`."""

from albert_jax.perf.roofline import best_rates, device_rates, roofline_figure, step_traffic
from albert_jax.utils.plots import (
    bytes_unit,
    category_axis,
    from_zero,
    heat_maps,
    legend,
    legend_below,
    new_figure,
    number_axis,
    percent_axis,
    reference_line,
    set_style,
    whole_steps,
)

__all__ = [
    "best_rates",
    "bytes_unit",
    "category_axis",
    "device_rates",
    "from_zero",
    "heat_maps",
    "legend",
    "legend_below",
    "new_figure",
    "number_axis",
    "percent_axis",
    "reference_line",
    "roofline_figure",
    "set_style",
    "step_traffic",
    "whole_steps",
]
