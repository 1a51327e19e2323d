# SPDX-License-Identifier: Apache-2.0
"""Metrics against scikit-learn's and seqeval's of the same labels (`benchmarks.metric_oracles`)."""

import json

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
