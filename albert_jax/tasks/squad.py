# SPDX-License-Identifier: Apache-2.0
"""Define SQuAD 1.1 and 2.0: questions about a passage; answers are spans of it or, in 2.0, none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.config.manifests import TaskSettings
from albert_jax.data.hub import is_hub_data
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks.base import TFDS, Features, Outputs, RawExample, Targets, Task
from albert_jax.tasks.squad_metrics import Scores, score_v1, score_v2
from albert_jax.tasks.squad_reader import (
    SPLITS,
    find_squad_file,
    read_hub,
    read_squad,
    read_tfds,
    some,
)
from albert_jax.tasks.squad_spans import (
    GIVEN_UP,
    Passage,
    RankedAnswer,
    Window,
    best_answers,
    candidates_v1,
    candidates_v2,
    encode_passage,
    windows,
)
from albert_jax.tasks.tables import write_text
from albert_jax.tasks.values import id_of, require_keys, text_of
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting


class SpanPredictions(dict[str, str]):
    """Hold the text of each question's answer, "" for none.

    The fields are what the official files and scores need too.
    """

    nbest: dict[str, list[RankedAnswer]]
    """By question, the likeliest texts, best first: text, probability, start_log_prob,
    end_log_prob."""
    best: dict[str, str]
    """The likeliest text of each question, whatever its null odds; "" where it has none."""
    probabilities: dict[str, float | None]
    """By question, the probability of `best` among the texts of `nbest`, if it has one."""
    starts: dict[str, int | None]
    """By question, the character of its context where `best` begins, if it has one."""
    null_odds: dict[str, float] | None
    """By question, the logit of there being no answer; None for the v1 head."""

    def __init__(
        self,
        nbest: dict[str, list[RankedAnswer]],
        null_odds: dict[str, float] | None,
        starts: dict[str, int | None],
        threshold: float,
    ) -> None:
        self.nbest, self.null_odds, self.starts = nbest, null_odds, starts
        # Differs from TF, which takes the first candidate, even if it is a marker alone before a
        # bracket or a quotation mark. That is no answer, although the head says that there is one.
        likeliest = {
            question: next((answer for answer in answers if answer["text"]), None)
            for question, answers in nbest.items()
        }
        self.best = {q: answer["text"] if answer else "" for q, answer in likeliest.items()}
        self.probabilities = {q: x["probability"] if x else None for q, x in likeliest.items()}
        odds = null_odds or {}
        # Differs from TF, which also leaves a question at the threshold unanswered, although it
        # searches for the best threshold as the official script does: only questions above it are
        # unanswered.
        super().__init__(
            {q: "" if q in odds and odds[q] > threshold else best for q, best in self.best.items()}
        )


@dataclass(frozen=True, kw_only=True)
class SquadTask(Task):
    """Define a version of SQuAD with its head, span_v1 or span_v2.

    The defaults are those of run_squad_v1.py and run_squad_v2.py.
    """

    version: str  # in the names of the files
    doc_stride: int = 128
    max_query_length: int = 64
    n_best: int = 20
    max_answer_length: int = 30  # pieces
    null_threshold: float = 0.0  # the logit above which there is no answer; 0 is even odds
    # Whether squad1 looks beyond the `n_best` starts and ends if none of their spans is allowed.
    # predict does, to give an answer; scores follow the original.
    searches_on: bool = False

    def __post_init__(self) -> None:
        for name in ("doc_stride", "max_query_length", "n_best", "max_answer_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{setting(name)} is {getattr(self, name)}; it must be at least 1")

    @property
    def metric(self) -> str:
        # For 2.0 the score at `null_threshold`, not the best one: to choose both step and threshold
        # on the dev set would flatter twice.
        return "f1"

    def head_settings(self) -> TaskSettings:
        return TaskSettings(doc_stride=self.doc_stride, max_query_length=self.max_query_length)

    def for_answers(self) -> SquadTask:
        return dataclasses.replace(self, searches_on=True)

    def examples(
        self, split: str, data: str | Path, *, needs_labels: bool = True
    ) -> list[RawExample]:
        """Return the questions of train, dev or test, from a SQuAD file, its folder, or TFDS."""
        is_training = split == "train" and needs_labels
        if str(data) == TFDS:
            examples = read_tfds(split, self.version, is_training=is_training)
        elif is_hub_data(data, [f"{part}-{self.version}*.json*" for part in SPLITS]):
            examples = read_hub(data, split, is_training=is_training)
        else:
            path = find_squad_file(data, split, self.version)
            examples = read_squad(path, is_training=is_training)
        unanswerable = [e.id for e in examples if e.label == ""]
        if self.head == "span_v1" and unanswerable and needs_labels:
            raise UserError(
                f"{data}: {len(unanswerable)} of {len(examples)} questions have no answer: "
                f"{some(unanswerable)}; {self.name} answers each, use squad2"
            )
        return examples

    @property
    def record_names(self) -> tuple[str, ...]:
        return "question", "context"

    def from_record(self, record: Mapping[str, Any], number: int, place: str) -> RawExample:
        """Return a question to answer: `question`, `context` and, if it has one, its `id`."""
        require_keys(record, place, ("question", "context"))
        question = text_of(record["question"], "question", place)
        context = text_of(record["context"], "context", place, may_be_blank=True)
        extra = {"context": context, "answers": (), "answer": None}
        identity = id_of(record, ("id",), number, place)
        return RawExample(identity, (question, context), None, extra, place)

    def features(
        self, example: RawExample, index: int, tokenizer: Tokenizer, max_seq_length: int
    ) -> list[Features]:
        """Return [CLS] question [SEP] part of the context [SEP] for each window.

        squad_utils.py:214-535. `targets` has start_positions and end_positions (0 if the window
        lacks the answer), is_impossible for the v2 head, and always p_mask, which prediction needs
        too: 0 where an answer can be, 1 elsewhere and at padding. `extra` has passage_start, the
        context's place in input_ids, and for each piece of the context its starts and ends (in the
        context's characters) and is_max_context.
        """
        question, context = example.texts
        query = tokenizer.encode_ids([question])[0][: self.max_query_length]
        room = max_seq_length - len(query) - 3
        if room < 1:
            raise UserError(
                f"{setting('max_seq_length')} {max_seq_length} leaves no room for a context beside "
                f"the question {example.id} of {len(query)} pieces; shorten the question, or raise "
                "it, up to the model's positions; in fine-tuning, a lower "
                f"{setting('max_query_length')} cuts questions"
            )
        passage = encode_passage(tokenizer, context)
        answer = None
        if example.extra["answer"] is not None and passage.ids:
            text, start = example.extra["answer"]
            answer = passage.pieces_of(start, start + len(text))
        rows, (_, _, cls, sep, _) = [], tokenizer.special
        for window in windows(len(passage.ids), room, self.doc_stride):
            part = slice(window.start, window.start + window.length)
            first = len(query) + 2
            targets: Targets = {}
            if example.label is not None:
                targets |= _targets(window, first, answer)
            if self.head == "span_v2":
                targets["p_mask"] = [0, *[1] * (first - 1), *[0] * window.length, 1]
            else:
                targets.pop("is_impossible", None)
            rows.append(
                Features(
                    index,
                    [cls, *query, sep, *passage.ids[part], sep],
                    [0] * first + [1] * (window.length + 1),
                    targets,
                    _extra(passage, window, part, first),
                )
            )
        return rows

    def predictions(
        self, examples: Sequence[RawExample], features: Sequence[Features], outputs: Outputs
    ) -> SpanPredictions:
        """Return the most probable text over a question's windows.

        The null odds of a question are the minimum over its windows.
        """
        rows: list[list[int]] = [[] for _ in examples]
        for row, feature in enumerate(features):
            rows[feature.example].append(row)
        nbest, null_odds, starts = {}, {}, {}
        for example, mine in zip(examples, rows, strict=True):
            parts = [features[i] for i in mine]
            found = [outputs[i] for i in mine]
            nbest[example.id], starts[example.id] = self._best_answers(example, parts, found)
            if self.head == "span_v2":
                null_odds[example.id] = min(float(output["cls_logits"]) for output in found)
        return SpanPredictions(
            nbest, null_odds if self.head == "span_v2" else None, starts, self.null_threshold
        )

    def _best_answers(
        self, example: RawExample, features: Sequence[Features], outputs: Outputs
    ) -> tuple[list[RankedAnswer], int | None]:
        candidates = candidates_v2 if self.head == "span_v2" else candidates_v1

        def among(likeliest: int) -> tuple[list[RankedAnswer], int | None]:
            spans = [
                candidates(feature, output, likeliest, self.max_answer_length)
                for feature, output in zip(features, outputs, strict=True)
            ]
            return best_answers(example.texts[1], features, spans, self.n_best)

        found = among(self.n_best)
        has_pieces = any(len(feature.extra["starts"]) for feature in features)
        if self.head == "span_v1" and found[1] is None and has_pieces:
            # All of the best starts and ends may be in the question, if the context has few pieces.
            # The original then answers "empty", a word that is not in the context.
            if not self.searches_on:
                return [GIVEN_UP.copy()], None
            found = among(max(len(output["start_logits"]) for output in outputs))
        return found

    def metrics(self, examples: Sequence[RawExample], predictions: Mapping[str, str]) -> Scores:
        """Return the official scores in percent, and the number of questions.

        squad1: `exact_match` and `f1` of evaluate-v1.1.py, and `exact`, which is `exact_match`
        under squad2's name. squad2: all scores of evaluate-v2.0.py. There, `exact` and `f1` are
        those at `null_threshold`. `squad_metrics.TUNED`, for the predictions of this class, are
        those at the threshold that is best for these answers themselves, which the original reports
        as its scores.
        """
        if unlabelled := [e.id for e in examples if e.label is None]:
            raise UserError(
                f"{len(unlabelled)} of {len(examples)} questions have no answers to compare with: "
                f"{some(unlabelled)}; evaluate the dev split, or predict"
            )
        golds = {example.id: example.extra["answers"] for example in examples}
        if self.head == "span_v1":
            scores = score_v1(golds, predictions)
            return {"exact": scores["exact_match"], **scores, "total": len(golds)}
        if isinstance(predictions, SpanPredictions) and predictions.null_odds is not None:
            return score_v2(golds, predictions.best, predictions.null_odds, self.null_threshold)
        return score_v2(golds, predictions)

    def write_predictions(
        self, path: str | Path, examples: Sequence[RawExample], predictions: Mapping[str, str]
    ) -> list[Path]:
        """Write predictions.json, which the official scripts take, into the folder `path`.

        Also write the original's nbest_predictions.json and, for squad2, null_odds.json
        (--na-prob-file).
        """
        contents: dict[str, object] = {"predictions": {e.id: predictions[e.id] for e in examples}}
        if isinstance(predictions, SpanPredictions):
            contents["nbest_predictions"] = predictions.nbest
            if predictions.null_odds is not None:
                contents["null_odds"] = predictions.null_odds
        return [
            write_text(path, f"{name}.json", json.dumps(content, indent=4) + "\n")
            for name, content in contents.items()
        ]


def _targets(window: Window, first: int, answer: tuple[int, int] | None) -> dict[str, int]:
    """Return where the answer is in the model's input; nowhere if a part of it is outside."""
    end = window.start + window.length - 1
    if answer is None or answer[0] < window.start or answer[1] > end:
        return {"start_positions": 0, "end_positions": 0, "is_impossible": 1}
    start, end = (first + piece - window.start for piece in answer)
    return {"start_positions": start, "end_positions": end, "is_impossible": 0}


def _extra(passage: Passage, window: Window, part: slice, first: int) -> dict[str, object]:
    return {
        "passage_start": first,
        "starts": passage.starts[part],
        "ends": passage.answer_ends()[part],
        "is_max_context": window.is_max_context,
    }


SQUAD_TASKS: dict[str, SquadTask] = {
    "squad1": SquadTask(name="squad1", head="span_v1", version="v1.1"),
    "squad2": SquadTask(name="squad2", head="span_v2", version="v2.0"),
}
