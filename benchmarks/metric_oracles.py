# SPDX-License-Identifier: Apache-2.0
"""Writes what scikit-learn and seqeval say of random labels and tags to tests/data/metrics, which a
test holds ours against: `python -m benchmarks.metric_oracles` where both are installed."""

import json
import random
from typing import Any

from tests.helpers.paths import DATA

DEST = DATA / "metrics" / "oracles.json"
TAGS = ("O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER")


def labels_case(rng: random.Random) -> dict[str, Any]:
    from sklearn import metrics

    names = "abcd"[: rng.randint(2, 4)]
    golds = rng.choices(names, k=rng.randint(2, 30))
    found = [gold if rng.random() < 0.6 else rng.choice(names) for gold in golds]
    return {
        "golds": golds,
        "predictions": found,
        "accuracy": metrics.accuracy_score(golds, found),
        "f1": metrics.f1_score(
            [g == "a" for g in golds], [p == "a" for p in found], zero_division=0
        ),
        "macro_f1": metrics.f1_score(golds, found, average="macro", zero_division=0),
        "matthews": metrics.matthews_corrcoef(golds, found),
    }


def tags_case(rng: random.Random) -> dict[str, Any]:
    from seqeval import metrics

    golds = [rng.choices(TAGS, k=rng.randint(1, 12)) for _ in range(rng.randint(1, 6))]
    found = [[t if rng.random() < 0.7 else rng.choice(TAGS) for t in tags] for tags in golds]
    return {
        "golds": golds,
        "predictions": found,
        "precision": metrics.precision_score(golds, found, zero_division=0),
        "recall": metrics.recall_score(golds, found, zero_division=0),
        "f1": metrics.f1_score(golds, found, zero_division=0),
        "accuracy": metrics.accuracy_score(golds, found),
    }


def main() -> None:
    rng = random.Random(0)
    cases = {
        "labels": [labels_case(rng) for _ in range(60)],
        "tags": [tags_case(rng) for _ in range(60)],
    }
    DEST.write_text(json.dumps(cases, default=float) + "\n")


if __name__ == "__main__":
    main()
