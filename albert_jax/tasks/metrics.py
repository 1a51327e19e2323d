# SPDX-License-Identifier: Apache-2.0
"""Compute metrics of classification, regression and chunks, as fractions.

The definitions are scikit-learn's and conlleval's. 0/0 is 0: a constant prediction correlates with
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def accuracy(golds: Sequence, predictions: Sequence) -> float:
    """Return the fraction of predictions that equal the gold label."""
    return _ratio(sum(g == p for g, p in zip(golds, predictions, strict=True)), len(golds))


def f1(golds: Sequence, predictions: Sequence, positive: object) -> float:
    """Return the harmonic mean of precision and recall of the label `positive`, 0 to 1."""
    pairs = list(zip(golds, predictions, strict=True))
    correct = sum(g == p == positive for g, p in pairs)
    return _ratio(2 * correct, sum((g == positive) + (p == positive) for g, p in pairs))


def macro_f1(golds: Sequence, predictions: Sequence) -> float:
    """Return mean of the F1 of each label that is gold or predicted, 0 to 1."""
    labels = sorted({*golds, *predictions})
    return _ratio(sum(f1(golds, predictions, label) for label in labels), len(labels))


def label_set_scores(golds_NC: np.ndarray, found_NC: np.ndarray) -> dict[str, float]:
    """Return `micro_f1`, `macro_f1` and `accuracy` of bools [N, C], as scikit-learn does.

    `micro_f1` is over all labels of all texts, `macro_f1` is the mean of the labels' F1, and
    `accuracy` is the fraction of texts whose labels are all right.
    """
    both_C, sums_C = (
        (golds_NC & found_NC).sum(axis=0),
        (golds_NC.sum(axis=0) + found_NC.sum(axis=0)),
    )
    each = [_ratio(2 * both, total) for both, total in zip(both_C, sums_C, strict=True)]
    return {
        "micro_f1": _ratio(2 * both_C.sum(), sums_C.sum()),
        "macro_f1": float(np.mean(each)),
        "accuracy": float((golds_NC == found_NC).all(axis=1).mean()),
    }


def best_threshold(golds_N: np.ndarray, probabilities_N: np.ndarray) -> float:
    """Return the probability from which on a label is given for the best F1.

    It lies half-way between two of the probabilities. Of equally good ones, it is the nearest to
    0.5. It is 0.5 if no text has the label.
    """
    if not golds_N.any():
        return 0.5
    values, inverse_N, counts = np.unique(probabilities_N, return_inverse=True, return_counts=True)
    tried = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])
    # The texts, and those with the label, whose probability is this value or a larger one.
    given_T = counts[::-1].cumsum()[::-1]
    with_label = np.bincount(inverse_N.ravel(), golds_N, len(values))
    both_T = with_label[::-1].cumsum()[::-1]
    scores_T = 2 * both_T / (given_T + golds_N.sum())
    best = tried[scores_T == scores_T.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return each logit's probability, in float64."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -500, 500)))


def matthews(golds: Sequence, predictions: Sequence) -> float:
    """Return Matthews' correlation, -1 to 1; for more than two labels, Gorodkin's R_K."""
    labels = sorted({*golds, *predictions})
    # The labels as one-hot rows: R_K is the correlation of the two matrices.
    g, p = (np.array([[x == label for label in labels] for x in xs]) for xs in (golds, predictions))
    return _correlation(g, p)


def pearson(golds: Sequence[float], predictions: Sequence[float]) -> float:
    """Return Pearson's correlation, -1 to 1."""
    return _correlation(np.array(golds)[:, None], np.array(predictions)[:, None])


def spearman(golds: Sequence[float], predictions: Sequence[float]) -> float:
    """Return Pearson's correlation of the ranks, -1 to 1; ties have their average rank."""
    return _correlation(_ranks(golds)[:, None], _ranks(predictions)[:, None])


def mean_squared_error(golds: Sequence[float], predictions: Sequence[float]) -> float:
    """Return the mean squared difference."""
    return float(np.mean(np.square(np.subtract(golds, predictions))))


def _correlation(x_NC: np.ndarray, y_NC: np.ndarray) -> float:
    # Less the first row, so that a constant column is exactly 0, then less the mean.
    x_NC, y_NC = (z.astype(np.float64) - z[0] for z in (x_NC, y_NC))
    x_NC, y_NC = (z - z.mean(axis=0) for z in (x_NC, y_NC))
    return _ratio((x_NC * y_NC).sum(), np.sqrt((x_NC**2).sum()) * np.sqrt((y_NC**2).sum()))


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


# --------------------------------------------------------------------------------------- chunks


def chunk_scores(golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict:
    """Return `precision`, `recall` and `f1` of whole chunks, and `accuracy` of tags.

    The definitions are conlleval's. A sentence's tags are O, or B-, I-, E- or S- and a type. A
    chunk counts if its type and both of its ends are right.
    """
    found = correct = wanted = 0
    for gold, predicted in zip(golds, predictions, strict=True):
        gold_chunks, predicted_chunks = chunks(gold), chunks(predicted)
        wanted += len(gold_chunks)
        found += len(predicted_chunks)
        correct += len(gold_chunks & predicted_chunks)
    return {
        "f1": _ratio(2 * correct, wanted + found),
        "precision": _ratio(correct, found),
        "recall": _ratio(correct, wanted),
        "accuracy": accuracy(
            [tag for tags in golds for tag in tags], [tag for tags in predictions for tag in tags]
        ),
    }


def chunks(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return (type, first word, last word) of each chunk; an I- that continues none starts one."""
    found = set()
    kind, start, previous = "", 0, "O"
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        follows = prefix in ("I", "E") and this == kind and previous in ("B", "I")
        if previous != "O" and not follows:
            found.add((kind, start, i - 1))
        if prefix != "O" and not follows:
            start = i
        kind, previous = this, prefix
    return found
