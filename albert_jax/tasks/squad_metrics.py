# SPDX-License-Identifier: Apache-2.0
"""Compute SQuAD's official scores, as evaluate-v1.1.py and evaluate-v2.0.py do, in percent."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

Golds = Mapping[str, Sequence[str]]  # question's id -> answers' texts; none: it has no answer
Scores = dict[str, float]

# The result of trying each threshold on the scored answers themselves: the maximum that one
# threshold can reach, not a model's score on new questions.
TUNED = ("best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=1 << 16)  # each text is compared several times, in each evaluation again
def normalize_answer(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> bool:
    """Return whether the two are the same when normalised."""
    return normalize_answer(prediction) == normalize_answer(gold)


def f1_v1(prediction: str, gold: str) -> float:
    """Return the F1 of the normalised words, 0 to 1; 0 for two empty texts. evaluate-v1.1.py."""
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def f1_v2(prediction: str, gold: str) -> float:
    """Return the F1 of the normalised words, 0 to 1; 1 for two empty texts. evaluate-v2.0.py."""
    if not normalize_answer(prediction) or not normalize_answer(gold):
        return float(exact_match(prediction, gold))
    return f1_v1(prediction, gold)


def score_v1(golds: Golds, predictions: Mapping[str, str]) -> Scores:
    """Return `exact_match` and `f1` of evaluate-v1.1.py; a question without a prediction has 0."""
    answered = [(predictions[i], texts) for i, texts in golds.items() if i in predictions]
    return {
        "exact_match": 100.0 * _best_sum(exact_match, answered) / len(golds),
        "f1": 100.0 * _best_sum(f1_v1, answered) / len(golds),
    }


def _best_sum(
    score: Callable[[str, str], float], answered: Iterable[tuple[str, Sequence[str]]]
) -> float:
    return sum(max(score(prediction, gold) for gold in golds) for prediction, golds in answered)


def question_scores(
    golds: Golds, predictions: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return exact match and F1, 0 to 1, of each question by the rules of evaluate-v2.0.py.

    Answers that normalise to nothing are left out. If none is left, "" is the answer.
    """
    exact, f1 = {}, {}
    for question, texts in golds.items():
        wanted = [text for text in texts if normalize_answer(text)] or [""]
        # Differs from the script, which leaves a missing prediction out of the total and then fails
        # on it: here it is wrong.
        prediction = predictions.get(question)
        if prediction is None:
            exact[question] = f1[question] = 0.0
            continue
        exact[question] = max(float(exact_match(prediction, gold)) for gold in wanted)
        f1[question] = max(f1_v2(prediction, gold) for gold in wanted)
    return exact, f1


def score_v2(
    golds: Golds,
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> Scores:
    """Return the result of evaluate-v2.0.py: exact, f1 and total.

    They are given for all questions, and for those with (HasAns_) and without (NoAns_) an answer.
    With `null_odds`, a question above `threshold` counts as unanswered. Then the `TUNED` scores are
    added: the best that any one threshold makes of these predictions.
    """
    has_answer = {question: bool(texts) for question, texts in golds.items()}
    raw = question_scores(golds, predictions)
    kept = raw
    if null_odds is not None:
        kept = (
            _with_threshold(raw[0], null_odds, has_answer, threshold),
            _with_threshold(raw[1], null_odds, has_answer, threshold),
        )
    result = _means(kept, list(golds), "")
    for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
        if questions := [q for q in golds if has_answer[q] is wanted]:
            result |= _means(kept, questions, prefix)
    if null_odds is not None:
        for name, scores in zip(("exact", "f1"), raw, strict=True):
            best, at = best_threshold(predictions, scores, null_odds, has_answer)
            result |= {f"best_{name}": best, f"best_{name}_thresh": at}
    return result


def _with_threshold(
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
    has_answer: Mapping[str, bool],
    threshold: float,
) -> dict[str, float]:
    return {
        question: float(not has_answer[question]) if null_odds[question] > threshold else score
        for question, score in scores.items()
    }


def _means(
    scores: tuple[Mapping[str, float], Mapping[str, float]], questions: list[str], prefix: str
) -> Scores:
    exact, f1 = (100.0 * sum(s[q] for q in questions) / len(questions) for s in scores)
    return {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": len(questions)}


def best_threshold(
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
    has_answer: Mapping[str, bool],
) -> tuple[float, float]:
    """Return the best mean score in percent, and the threshold that gives it.

    A question whose null odds are above the threshold counts as unanswered. As in
    evaluate-v2.0.py's find_best_thresh, the threshold is 0 if it is best to answer nothing.
    """
    score = best = float(sum(not known for known in has_answer.values()))
    threshold = 0.0
    for question in sorted(null_odds, key=lambda q: null_odds[q]):
        if question not in scores:
            continue
        if has_answer[question]:
            score += scores[question]
        elif predictions.get(question):
            score -= 1
        if score > best:
            best, threshold = score, null_odds[question]
    return 100.0 * best / len(scores), threshold
