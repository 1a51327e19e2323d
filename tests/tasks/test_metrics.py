# SPDX-License-Identifier: Apache-2.0
"""Metrics against scikit-learn's and seqeval's of the same labels (`benchmarks.metric_oracles`)."""

import json

import numpy as np
import pytest

from albert_jax.tasks import metrics
from tests.helpers.paths import DATA

ORACLES = json.loads((DATA / "metrics" / "oracles.json").read_text(encoding="utf-8"))
CLOSE = {"rel": 1e-12, "abs": 1e-12}


@pytest.mark.parametrize("number", range(len(ORACLES["labels"])))
def test_scores_of_labels_are_scikit_learns(number: int) -> None:
    case = ORACLES["labels"][number]
    golds, predictions = case["golds"], case["predictions"]
    assert metrics.accuracy(golds, predictions) == pytest.approx(case["accuracy"], **CLOSE)
    assert metrics.f1(golds, predictions, "a") == pytest.approx(case["f1"], **CLOSE)
    assert metrics.macro_f1(golds, predictions) == pytest.approx(case["macro_f1"], **CLOSE)
    assert metrics.matthews(golds, predictions) == pytest.approx(case["matthews"], **CLOSE)


@pytest.mark.parametrize("number", range(len(ORACLES["tags"])))
def test_scores_of_chunks_are_seqevals(number: int) -> None:
    case = ORACLES["tags"][number]
    found = metrics.chunk_scores(case["golds"], case["predictions"])
    for name in ("precision", "recall", "f1", "accuracy"):
        assert found[name] == pytest.approx(case[name], **CLOSE), name


def test_scores_of_sets_of_labels_are_scikit_learns():
    """f1_score(average="micro" and "macro") and accuracy_score of scikit-learn 1.7; the third label
    is no text's, and counts as 0."""
    golds = np.zeros((9, 3), bool)
    golds[[1, 5, 6, 7], 0] = golds[4, 1] = True
    found = np.zeros((9, 3), bool)
    found[[3, 4, 7, 8], 0] = found[6, 1] = found[8, 2] = True
    assert metrics.label_set_scores(golds, found) == pytest.approx(
        {"micro_f1": 2 / 11, "macro_f1": 1 / 12, "accuracy": 1 / 3}
    )


def test_a_threshold_has_the_best_f1_that_any_has():
    rng = np.random.default_rng(0)
    for _ in range(20):
        golds, shares = rng.random(12) < 0.4, rng.random(12).round(1)
        has = golds.tolist()
        found = metrics.best_threshold(golds, shares)
        f1 = lambda at, has=has, x=shares: metrics.f1(has, (x >= at).tolist(), True)  # noqa: E731
        if golds.any():
            assert f1(found) == max(f1(at) for at in np.linspace(-0.01, 1.01, 1000))
        else:
            assert found == 0.5
    many = rng.random(200_000)  # of which a table of all pairs would take 40 GB
    assert metrics.best_threshold(many > 0.7, many) == pytest.approx(0.7, abs=1e-4)
