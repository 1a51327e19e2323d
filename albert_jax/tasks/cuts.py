# SPDX-License-Identifier: Apache-2.0
"""Count the tokens of an example that its rows cannot hold, and report them.

A text that is too long loses tokens, as in the original. Nothing is lost silently.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks.base import Features, RawExample, Task
from albert_jax.tasks.race import MAX_QA_LENGTH, choice_features
from albert_jax.tasks.squad import SquadTask
from albert_jax.utils.wording import setting

_ENDLESS = 1 << 40  # tokens


@dataclass(frozen=True)
class Cut:
    """Describe tokens that were left out because of one setting."""

    setting: str  # max_seq_length, max_query_length, or MAX_QA_LENGTH, which nobody sets
    left_out: int
    needed: int  # the value of the setting that leaves out none


def cuts_of(
    task: Task,
    example: RawExample,
    features: Sequence[Features],
    tokenizer: Tokenizer,
    max_seq_length: int,
) -> list[Cut]:
    """Return what the features of one example lack of its texts.

    Of multiple choice, it is what the option lacks that lost the most.
    """
    if isinstance(task, SquadTask):
        found = _question_cut(task, example, features[0], tokenizer)
    elif task.head == "multiple_choice":
        found = _choice_cuts(task, example, features[0], tokenizer, max_seq_length)
    elif task.head == "similarity":
        found = _longer_cut(example, features[0], tokenizer, max_seq_length)
    else:
        found = _row_cut(task, example, features, tokenizer, max_seq_length)
    return [cut for cut in found if cut.left_out]


def _question_cut(
    task: SquadTask, example: RawExample, first: Features, tokenizer: Tokenizer
) -> list[Cut]:
    # The context itself is read in windows, whole.
    kept = first.extra["passage_start"] - 2
    if kept < task.max_query_length:
        return []
    length = len(tokenizer.encode_ids([example.texts[0]])[0])
    return [Cut("max_query_length", length - kept, length)]


def _choice_cuts(
    task: Task, example: RawExample, feature: Features, tokenizer: Tokenizer, max_seq_length: int
) -> list[Cut]:
    lengths = [len(segments) for segments in feature.segment_ids]
    asked = [sum(segments) - 1 for segments in feature.segment_ids]
    if max(lengths) < max_seq_length and max(asked) < MAX_QA_LENGTH:
        return []
    _, whole = choice_features(
        tokenizer, example.texts, _ENDLESS, max_qa_length=_ENDLESS, gap=task.gap
    )
    wholes_asked = [sum(segments) - 1 for segments in whole]
    lost = [len(segments) - length for segments, length in zip(whole, lengths, strict=True)]
    # What the limit for questions alone would have taken from the option that lost the most.
    worst = lost.index(max(lost))
    by_limit = max(wholes_asked[worst] - MAX_QA_LENGTH, 0)
    needed = max(
        len(segments) - max(length - MAX_QA_LENGTH, 0)
        for segments, length in zip(whole, wholes_asked, strict=True)
    )
    return [
        Cut("max_seq_length", lost[worst] - by_limit, needed),
        Cut("MAX_QA_LENGTH", by_limit, max(wholes_asked)),
    ]


def _longer_cut(
    example: RawExample, feature: Features, tokenizer: Tokenizer, max_seq_length: int
) -> list[Cut]:
    """Return what the longer one of two texts with a row of its own lacks."""
    if max(map(len, feature.input_ids)) < max_seq_length:
        return []
    lengths = [len(ids) + 2 for ids in tokenizer.encode_ids(example.texts, parse_special=None)]
    left_out = max(n - len(row) for n, row in zip(lengths, feature.input_ids, strict=True))
    return [Cut("max_seq_length", left_out, max(lengths))]


def _row_cut(
    task: Task,
    example: RawExample,
    features: Sequence[Features],
    tokenizer: Tokenizer,
    max_seq_length: int,
) -> list[Cut]:
    if max(len(feature.input_ids) for feature in features) < max_seq_length:
        return []
    unlabelled = dataclasses.replace(example, label=None)
    (whole,) = task.features(unlabelled, 0, tokenizer, _ENDLESS)
    # Words have rows of [CLS] and [SEP] each; a text or a pair has one row.
    kept = sum(len(feature.input_ids) for feature in features) - 2 * (len(features) - 1)
    left_out = len(whole.input_ids) - kept
    if len(features) == 1 and task.head != "token_classification":
        return [Cut("max_seq_length", left_out, len(whole.input_ids))]
    starts = [*whole.extra["starts"], len(whole.input_ids) - 1]
    longest = max(b - a for a, b in itertools.pairwise(starts))
    return [Cut("max_seq_length", left_out, longest + 2)]


def lines_about(
    cuts: Mapping[Any, Sequence[Cut]],
    count: int,
    what: str,
    *,
    max_seq_length: int,
    longest: int,
) -> list[str]:
    """Return sentences for the user: how many examples were cut, and which setting would hold them.

    Args:
        cuts: the cuts of each example that was cut.
        count: the number of all examples.
        what: their name, such as "inputs".
        max_seq_length: tokens in a row.
        longest: the most tokens that the model takes.
    """
    by_setting: dict[str, list[Cut]] = {}
    for each in cuts.values():
        for cut in each:
            by_setting.setdefault(cut.setting, []).append(cut)
    lines = []
    for limit, found in by_setting.items():
        most = max(found, key=lambda cut: cut.needed).needed
        were = f"{len(found):,} of {count:,} {what} {'was' if len(found) == 1 else 'were'} cut to"
        if limit == "max_query_length":
            kept = found[0].needed - found[0].left_out
            lines.append(
                f"{were} {kept} tokens of question; the longest has {most:,}: finetune's "
                f"{setting('max_query_length', most)} holds it"
            )
        elif limit == "MAX_QA_LENGTH":
            lines.append(
                f"{were} the last {MAX_QA_LENGTH} tokens of question and option, as in the "
                f"original; the longest has {most:,}"
            )
        else:
            lines.append(
                f"{were} {max_seq_length} tokens; the longest has {most:,}: "
                + _longer_rows(max_seq_length, most, longest)
            )
    return lines


def _longer_rows(max_seq_length: int, needed: int, longest: int) -> str:
    if needed <= longest:
        return f"{setting('max_seq_length', needed)} holds it"
    if max_seq_length < longest:
        longer = setting("max_seq_length", longest)
        return f"{longer}, the most that the model takes, holds more"
    return "the model takes no more"
