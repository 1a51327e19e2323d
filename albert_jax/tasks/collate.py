# SPDX-License-Identifier: Apache-2.0
"""Turn a task's features into arrays, and several of them into one padded array.

An example has its own row, or short examples are packed into rows that they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from albert_jax.config.heads import IGNORED_LABEL, LABEL_SET, TEACHER_LOGITS
from albert_jax.data.special_pieces import PAD_ID
from albert_jax.tasks import Features
from albert_jax.utils.errors import UserError

Arrays = dict[str, np.ndarray]
# The padding of targets with one value a token: no label, and no place for an answer.
_WHOLE = (LABEL_SET, TEACHER_LOGITS)  # a value a label, and none a token
_FILL = {"labels": IGNORED_LABEL, "p_mask": 1}


class FeatureRow(NamedTuple):
    """Hold a feature's arrays without padding.

    `ids` and `segments` have one entry, or one for each choice.
    """

    ids: tuple[np.ndarray, ...]
    segments: tuple[np.ndarray, ...]
    targets: dict[str, np.ndarray]
    has_choices: bool

    @property
    def length(self) -> int:
        return max(map(len, self.ids))


def as_rows(features: Iterable[Features]) -> list[FeatureRow]:
    """Return features as arrays, which take a tenth of the lists' memory."""
    rows = []
    for feature in features:
        has_choices = isinstance(feature.input_ids[0], (list, tuple))
        ids, segments = feature.input_ids, feature.segment_ids
        if not has_choices:
            ids, segments = [ids], [segments]
        targets = dict(feature.targets)
        if "p_mask" in feature.extra:  # no label: prediction needs it too
            targets["p_mask"] = feature.extra["p_mask"]
        rows.append(
            FeatureRow(
                tuple(np.asarray(x, np.int32) for x in ids),
                tuple(np.asarray(x, np.uint8) for x in segments),
                {name: _target(name, value) for name, value in targets.items()},
                has_choices,
            )
        )
    return rows


def _target(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    is_real = array.dtype.kind == "f" or name == "p_mask"
    return array.astype(np.float32 if is_real else np.int32)


def collate(rows: Sequence[FeatureRow], length: int, *, targets: bool = True) -> Arrays:
    """Return input_ids, input_mask and segment_ids i32[B, S] (multiple choice: [B, C, S]).

    With `targets`, also return what the loss reads. Raises UserError if rows have different numbers
    of choices.
    """
    choices = {len(row.ids) for row in rows}
    if len(choices) > 1:
        raise UserError(
            f"the examples have {min(choices)} to {max(choices)} choices; "
            "to train they must all have as many"
        )
    shape = (len(rows), choices.pop(), length)
    arrays = {name: np.zeros(shape, np.int32) for name in ("input_mask", "segment_ids")}
    arrays["input_ids"] = np.full(shape, PAD_ID, np.int32)
    for b, row in enumerate(rows):
        for c, (ids, segments) in enumerate(zip(row.ids, row.segments, strict=True)):
            arrays["input_ids"][b, c, : len(ids)] = ids
            arrays["input_mask"][b, c, : len(ids)] = 1
            arrays["segment_ids"][b, c, : len(ids)] = segments
    if not rows[0].has_choices:
        arrays = {name: x[:, 0] for name, x in arrays.items()}
    if targets:
        for name in rows[0].targets:
            values = [row.targets[name] for row in rows]
            fill = _FILL.get(name, 0)
            arrays[name] = np.stack(values) if name in _WHOLE else stacked(values, length, fill)
    return arrays


def stacked(values: Sequence[np.ndarray], length: int, fill: int) -> np.ndarray:
    """Return scalars as [B], or one value a token as [B, S]."""
    if values[0].ndim == 0:
        return np.stack(values)
    array = np.full((len(values), length), fill, values[0].dtype)
    for b, value in enumerate(values):
        array[b, : len(value)] = value
    return array


# ------------------------------------------------------------------------------------------ packing


def share_rows(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Return the indices of examples that share each row of `length` tokens.

    The longest example comes first. Each goes into the fullest row that it fits in.
    """
    with_room: list[list[list[int]]] = [[] for _ in range(length + 1)]  # rows by tokens left
    shared: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[index]
        left = next((x for x in range(need, length + 1) if with_room[x]), None)
        if left is None:
            left = length
            with_room[left].append([])
            shared.append(with_room[left][0])
        row = with_room[left].pop()
        row.append(index)
        with_room[left - need].append(row)
    return shared


def pack(
    rows: Sequence[FeatureRow],
    shared: Sequence[Sequence[int]],
    count: int,
    length: int,
    *,
    targets: bool = True,
) -> Arrays:
    """Return examples as `shared` groups them, one after another, in `count` rows.

    The arrays are input_ids, input_mask and segment_ids i32[B, S], and starts i32[B, P], the first
    token of each example, S in slots without one. With `targets`, also what the loss reads [B, P],
    and example_weights f32[B, P], 1 for an example. P is half of S, because an example has at least
    two tokens, [CLS] and [SEP].
    """
    arrays = {name: np.zeros((count, length), np.int32) for name in ("input_mask", "segment_ids")}
    arrays["input_ids"] = np.full((count, length), PAD_ID, np.int32)
    slots = (count, length // 2)
    arrays["starts"] = np.full(slots, length, np.int32)
    if targets:
        arrays["example_weights"] = np.zeros(slots, np.float32)
        for name, value in rows[0].targets.items():
            arrays[name] = np.zeros((*slots, *value.shape), value.dtype)
    for b, chosen in enumerate(shared):
        start = 0
        for p, row in enumerate(rows[i] for i in chosen):
            end = start + row.length
            arrays["input_ids"][b, start:end] = row.ids[0]
            arrays["input_mask"][b, start:end] = 1
            arrays["segment_ids"][b, start:end] = row.segments[0]
            arrays["starts"][b, p] = start
            if targets:
                arrays["example_weights"][b, p] = 1
                for name, value in row.targets.items():
                    arrays[name][b, p] = value
            start = end
    return arrays
