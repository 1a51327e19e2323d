# SPDX-License-Identifier: Apache-2.0
"""Check ids, mask, segments and positions that a caller gives, and convert them to int32."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from albert_jax.config.model import AlbertConfig
from albert_jax.utils.arguments import shown
from albert_jax.utils.errors import UserError

# Of every program that is exported; the masked positions are one more of fill-mask's.
INPUTS = ("input_ids", "input_mask", "segment_ids")
POSITIONS = "masked_lm_positions"


def model_inputs(
    config: AlbertConfig,
    input_ids: Any,
    input_mask: Any = None,
    segment_ids: Any = None,
    masked_lm_positions: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Return ids, mask and segments i32[B, S] and masked positions i32[B, P] or None.

    The mask defaults to ones, the segments to zeros. Lists and arrays of NumPy and JAX may hold
    whole numbers of any type; mask and segments may also hold True and False. Raises UserError,
    which names the argument, for anything else, for rows of different lengths and for values out of
    range.
    """
    ids_BS = _numbers(input_ids, "input_ids", config.vocab_size, "the vocabulary has")
    if not ids_BS.shape[1]:
        raise UserError(f"input_ids has shape {ids_BS.shape}; a row needs at least one id")
    if ids_BS.shape[1] > config.max_position_embeddings:
        raise UserError(
            f"input_ids has rows of {ids_BS.shape[1]} tokens, more than the model's "
            f"{config.max_position_embeddings}; shorten or split them"
        )
    mask_BS, segments_BS = np.ones_like(ids_BS), np.zeros_like(ids_BS)
    if input_mask is not None:
        told = "a mask has"
        mask_BS = _numbers(input_mask, "input_mask", 2, told, flags=True)
        _require_shape(mask_BS, "input_mask", ids_BS.shape)
    if segment_ids is not None:
        told = "the model has segments"
        segments_BS = _numbers(segment_ids, "segment_ids", config.type_vocab_size, told, flags=True)
        _require_shape(segments_BS, "segment_ids", ids_BS.shape)
    if masked_lm_positions is None:
        return ids_BS, mask_BS, segments_BS, None
    rows, length = ids_BS.shape
    told = f"rows of {length} ids have"
    positions_BP = _numbers(masked_lm_positions, "masked_lm_positions", length, told)
    if len(positions_BP) != rows:
        raise UserError(
            f"masked_lm_positions has {len(positions_BP)} rows and input_ids {rows}; "
            "give a row of positions for each row of ids"
        )
    return ids_BS, mask_BS, segments_BS, positions_BP


def _require_shape(array: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise UserError(f"{name} has shape {array.shape}; it must be input_ids' {shape}")


def _numbers(value: Any, name: str, end: int, told: str, *, flags: bool = False) -> np.ndarray:
    """Return an argument as i32[…, …] with values from 0 to `end` - 1.

    With `flags` it may be bool.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        if "inhomogeneous" in str(error):
            raise UserError(f"{name} has rows of different lengths; pad them to one") from None
        raise UserError(f"{name} {shown(value)} cannot be made an array ({error})") from None
    if not array.ndim:
        raise UserError(f"{name} {shown(value)} must be rows of whole numbers, as [[2, 13, 3]]")
    if array.ndim != 2:
        axes = "[batch, positions]" if name == "masked_lm_positions" else "[batch, sequence]"
        raise UserError(f"{name} has shape {array.shape}; give {axes}, as [[2, 13, 3]]")
    if array.size and not (flags and array.dtype == bool):
        _require_whole(array, name)
        if array.min() < 0 or array.max() >= end:
            low, high = array.min().item(), array.max().item()
            raise UserError(f"{name} go from {low} to {high}; {told} 0 to {end - 1}")
    return array.astype(np.int32)


def _require_whole(array: np.ndarray, name: str) -> None:
    """Raise UserError unless all values are whole numbers; floats with whole values pass."""
    if jnp.issubdtype(array.dtype, np.integer) and array.dtype.kind != "m":  # a span of time
        return
    if jnp.issubdtype(array.dtype, np.floating):
        wide = array.astype(np.float64)  # NumPy itself does not know bfloat16's kind
        wrong = wide[~(np.isfinite(wide) & (np.trunc(wide) == wide))].tolist()
    elif array.dtype == object:  # Python objects, which fit no other array
        wrong = [x for x in array.flat if not isinstance(x, int) or abs(x) >= 1 << 63]
    else:
        raise UserError(f"{name} is of dtype {array.dtype}; its values must be whole numbers")
    if wrong:
        told = "its values must be whole numbers of 64 bits"
        raise UserError(f"{name} has {shown(wrong[0])}; {told}")
