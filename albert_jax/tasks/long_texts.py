# SPDX-License-Identifier: Apache-2.0
"""Handle texts that are longer than a row.

They are cut, refused, or read in windows whose logits are averaged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from albert_jax.config.heads import Long
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks.base import Features, Outputs, RawExample, Task
from albert_jax.tasks.cuts import Cut, cuts_of, lines_about
from albert_jax.tasks.squad_spans import windows
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

# Heads with one answer for the whole text, so that several windows can share it.
WINDOWED = ("classification", "multi_label", "regression")
# In `Features.extra`, how many tokens of the long text a window has.
_TOKENS = "window_tokens"


@dataclass(frozen=True)
class LongTexts:
    """Set how a text that is longer than a row is handled.

    Attributes:
        how: "cut" leaves out its end, "refuse" is an error, "windows" reads all of it.
        stride: tokens from the start of one window to the start of the next; None, half a window.
    """

    how: Long = "cut"
    stride: int | None = None

    def check(self, task: Task, max_seq_length: int) -> LongTexts:
        """Return this setting; raises UserError if the task or its rows cannot use it."""
        if self.how == "windows" and task.head == "multiple_choice":
            raise UserError(
                f"{setting('long', 'windows')} is not for {task.name}, whose options share one "
                "passage; give cut or refuse"
            )
        if self.how == "windows" and task.head == "similarity":
            raise UserError(
                f"{setting('long', 'windows')} is not for {task.name}; give cut or refuse"
            )
        if self.how == "windows" and task.head not in WINDOWED:
            raise UserError(
                f"{setting('long', 'windows')} is for {', '.join(WINDOWED)}, and {task.name} "
                "always reads long texts whole, in several rows; leave it out, or give cut"
            )
        if self.stride is None:
            return self
        if self.how != "windows" or task.head not in WINDOWED:
            windows = setting("long", "windows")
            other = f", or give {windows}" if task.head in WINDOWED else ""
            raise UserError(
                f"{setting('stride')} {self.stride} is for {windows} of {', '.join(WINDOWED)}; "
                f"leave it out{other}"
            )
        check_stride(self.stride, max_seq_length)
        return self


CUT = LongTexts()


def check_stride(stride: int, row: int) -> None:
    """Raise UserError for a stride below 1, or one that leaves out tokens between windows."""
    if not 1 <= stride <= row - 2:
        raise UserError(
            f"{setting('stride')} {stride} must be 1 to {row - 2}, the tokens of text in a row of "
            f"{row}"
        )


def fitted(
    task: Task,
    example: RawExample,
    features: list[Features],
    tokenizer: Tokenizer,
    max_seq_length: int,
    long: LongTexts,
) -> tuple[list[Features], list[Cut]]:
    """Return the example's features as `long` sets, and the tokens that they lack.

    Args:
        task: the example's task.
        example: the texts.
        features: the features that `task.features` made, with long texts cut.
        tokenizer: the model's.
        max_seq_length: tokens in a row.
        long: how long texts are handled.

    Raises:
        UserError: with the example's place, if a text is refused.
    """
    if long.how == "windows" and task.head in WINDOWED:
        return _in_windows(example, features[0], tokenizer, max_seq_length, long.stride), []
    cuts = cuts_of(task, example, features, tokenizer, max_seq_length)
    if cuts and long.how == "refuse":
        raise UserError(f"{_place(example)} {_refusal(task, cuts[0], max_seq_length)}")
    return features, cuts


def _place(example: RawExample) -> str:
    return f"{example.place or f'example {example.id}'}:"


def _refusal(task: Task, cut: Cut, max_seq_length: int) -> str:
    lost = f"the text is {cut.left_out:,} tokens too long for"
    others = f"{setting('long')} is refuse; cut leaves out the end"
    if task.head in WINDOWED:
        others += ", windows reads it all"
    if cut.setting != "max_seq_length":
        return f"{lost} {cut.setting}, and {others}"
    return f"{lost} a row of {max_seq_length}, and {others}"


def _in_windows(
    example: RawExample,
    row: Features,
    tokenizer: Tokenizer,
    max_seq_length: int,
    stride: int | None,
) -> list[Features]:
    """Return a row for each window; of a pair, all rows have the whole shorter text."""
    if len(row.input_ids) < max_seq_length:
        return [row]
    texts = tokenizer.encode_ids(example.texts, parse_special=None)
    is_pair = len(texts) == 2 and bool(texts[1])
    long = 1 if is_pair and len(texts[1]) >= len(texts[0]) else 0
    room = max_seq_length - 2
    if is_pair:
        kept = len(texts[1 - long])
        room = max_seq_length - 3 - kept
        if room < kept and len(texts[long]) > room:
            raise UserError(
                f"{_place(example)} the shorter text of the pair has {kept:,} tokens, over half "
                f"of a row of {max_seq_length}, so that windows of the other have no room; "
                f"shorten it, or give {setting('long', 'cut')}"
            )
    if len(texts[long]) <= room:
        return [row]
    found = []
    _, _, cls, sep, _ = tokenizer.special
    for part in window_parts(texts[long], room, stride):
        shown = [part if i == long else text for i, text in enumerate(texts[: 1 + is_pair])]
        parts = [[cls, *shown[0], sep], *([*text, sep] for text in shown[1:])]
        found.append(
            dataclasses.replace(
                row,
                input_ids=[i for ids in parts for i in ids],
                segment_ids=[n for n, ids in enumerate(parts) for _ in ids],
                extra={**row.extra, _TOKENS: len(part)},
            )
        )
    return found


def window_parts(ids: Sequence[int], room: int, stride: int | None) -> list[Sequence[int]]:
    """Return a long text's tokens in windows of at most `room` tokens.

    Each window starts `stride` tokens after the one before (None: half of `room`). The last ends
    with the text.
    """
    found = windows(len(ids), room, min(stride or max(room // 2, 1), room))
    return [ids[window.start : window.start + window.length] for window in found]


def pooled(
    features: Sequence[Features], outputs: Outputs
) -> tuple[Sequence[Features], list[Mapping[str, np.ndarray]]]:
    """Return one feature and one output for the windows of each long text.

    The logits are the mean of the windows' logits, weighted by their tokens of the text. Other
    outputs, the passes of an early exit, are the maximum.
    """
    kept: list[Features] = []
    found: list[Mapping[str, np.ndarray]] = []
    own: list[Mapping[str, np.ndarray]] = []
    weights: list[int] = []
    for index, (feature, output) in enumerate(zip(features, outputs, strict=True)):
        if (tokens := feature.extra.get(_TOKENS)) is None:
            kept.append(feature)
            found.append(output)
            continue
        own.append(output)
        weights.append(tokens)
        if not _goes_on(features, index):
            logits = np.stack([x["logits"] for x in own]).astype(np.float64)
            mean = np.average(logits, axis=0, weights=weights)
            most = {name: np.max([x[name] for x in own], axis=0) for name in output}
            kept.append(feature)
            found.append(most | {"logits": mean.astype(output["logits"].dtype)})
            own, weights = [], []
    return kept, found


def _goes_on(features: Sequence[Features], index: int) -> bool:
    """Return whether the next feature is a window of the same text."""
    after = features[index + 1 : index + 2]
    return any(_TOKENS in x.extra and x.example == features[index].example for x in after)


def window_count(features: Sequence[Features]) -> int:
    """Return the number of windows of an example's long text; 0 if it fits into a row."""
    return len(features) if features and _TOKENS in features[0].extra else 0


def length_lines(
    cuts: Mapping[Any, Sequence[Cut]],
    windows: Sequence[int],
    count: int,
    what: str,
    *,
    max_seq_length: int,
    longest: int,
) -> list[str]:
    """Return sentences for the user on the texts that are longer than a row, cut or in windows.

    Args:
        cuts: the cuts of each example that was cut.
        windows: the number of windows of each text that was read in several.
        count: the number of all examples.
        what: their name, such as "inputs".
        max_seq_length: tokens in a row.
        longest: the most tokens that the model takes.
    """
    lines = lines_about(cuts, count, what, max_seq_length=max_seq_length, longest=longest)
    if windows:
        were = "was" if len(windows) == 1 else "were"
        least, most = min(windows), max(windows)
        number = f"{least}" if least == most else f"{least} to {most}"
        lines.append(
            f"{len(windows):,} of {count:,} {what} {were} longer than {max_seq_length} tokens and "
            f"read in {number} windows"
        )
    return lines
