# SPDX-License-Identifier: Apache-2.0
"""Not a test: how many held-out pairs of segments words alone put in order, without their places.

python -m benchmarks.order_by_words --store wiki --heldout ad

A logistic regression on the pieces of A minus those of B, each counted once: what sentence order
asks for beyond it is what a model has to understand. Examples are drawn as pretraining draws them.
"""

from __future__ import annotations

import json

import numpy as np
import scipy.optimize
import scipy.sparse
import tyro

from albert_jax.config import ExamplesConfig
from albert_jax.data.examples import PretrainingSource
from albert_jax.data.store import TokenStore
from albert_jax.data.store_manifest import Split

DECAYS = (1e-3, 3e-3, 1e-2)  # of the weights; the best on held-out pairs is an upper bound


def main(store: str, heldout: str, *, pairs: int = 60_000, length: int = 128) -> None:
    """Fits the regression and prints the shares of pairs that it puts in order.

    Args:
        store: token store to fit it on.
        heldout: token store whose held-out split is judged.
        pairs: number of training pairs.
        length: tokens of a row.
    """
    words, labels = _pairs(store, "train", pairs, length)
    other_words, other_labels = _pairs(heldout, "heldout", None, length)
    majority = max(other_labels.mean(), 1 - other_labels.mean())
    print(json.dumps({"pairs": len(other_labels), "more_frequent_label": float(majority)}))
    for decay in DECAYS:
        weights = _fitted(words, labels, decay)
        shares = {
            name: float(np.mean((x @ weights[:-1] + weights[-1] > 0) == y))
            for name, x, y in (
                ("training", words, labels),
                ("heldout", other_words, other_labels),
            )
        }
        print(json.dumps({"decay": decay, **shares}), flush=True)


def _pairs(
    store: str, split: Split, count: int | None, length: int
) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Return each pair's pieces (1 in A, -1 in B, 0 in both) and whether it was swapped."""
    opened = TokenStore.open(store, split=split)
    size = opened.manifest["vocabulary"]["size"]
    config = ExamplesConfig(max_seq_length=length, max_predictions_per_seq=1, masked_lm_prob=1e-3)
    source = PretrainingSource(opened, config, seed=1, starts_word=np.ones(size, bool))
    rows, columns, values, labels = [], [], [], []
    for index in range(len(source) if count is None else count):
        example = source.draw(index)
        for segment, sign in ((0, 1), (1, -1)):
            is_there = (example["input_mask"] > 0) & (example["segment_ids"] == segment)
            found = np.unique(example["input_ids"][is_there])
            rows.append(np.full(len(found), index))
            columns.append(found)
            values.append(np.full(len(found), sign, np.float64))
        labels.append(int(example["sentence_order_labels"]))
    places = np.concatenate(rows), np.concatenate(columns)
    shape = (len(labels), size)
    return scipy.sparse.csr_matrix((np.concatenate(values), places), shape), np.array(labels)


def _fitted(words: scipy.sparse.csr_matrix, labels: np.ndarray, decay: float) -> np.ndarray:
    """Return the weights of the pieces and, last, the bias."""
    signs = 2.0 * labels - 1

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (words @ weights[:-1] + weights[-1])
        missing = signs * np.exp(-np.logaddexp(0, margins))
        gradient = -(words.T @ missing) / len(signs) + decay * weights[:-1]
        penalty = decay / 2 * weights[:-1] @ weights[:-1]
        mean = np.logaddexp(0, -margins).mean() + penalty
        return float(mean), np.append(gradient, -missing.mean())

    start = np.zeros(words.shape[1] + 1)
    done = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 150}
    )
    return np.asarray(done.x)


if __name__ == "__main__":
    tyro.cli(main)
