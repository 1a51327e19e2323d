# SPDX-License-Identifier: Apache-2.0
"""Define what models, tasks and manifests must agree on about fine-tuned heads."""

from __future__ import annotations

from typing import Final, Literal

HeadKind = Literal[
    "classification",
    "multi_label",
    "regression",
    "similarity",
    "multiple_choice",
    "token_classification",
    "span_v1",
    "span_v2",
]

# How a text that is longer than a row is handled: its end is left out, it is an error, or it is
# read in several windows.
Long = Literal["cut", "refuse", "windows"]

# Kinds whose answer is a number, and kinds that read several rows for an example, [B, C, S].
SCORES: Final = ("regression", "similarity")
SEVERAL_ROWS: Final = ("multiple_choice", "similarity")

# Starts that the span_v2 head answers, and ends for each: run_squad_v2.py's start_n_top and
# end_n_top.
BEAM: Final = 5

# Label of a token that has none: padding, and all but the first piece of a word. transformers'.
IGNORED_LABEL: Final = -100

# Target of a multi_label head: for each label 1.0 if the text has it, else 0.0.
LABEL_SET: Final = "label_set"

# Target that a teacher gives: its logits for the example, in the order of the task's labels.
TEACHER_LOGITS: Final = "teacher_logits"
