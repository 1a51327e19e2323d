# SPDX-License-Identifier: Apache-2.0
"""What training minimises, as pure functions of (parameters, batch).

A loss is a SUM over the rows at hand divided by normalisers taken over the global batch, so that it
adds up over devices and micro-batches: averaging each shard's own mean is a different gradient
where the weights vary by shard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Batch = dict[str, Array]
Metrics = dict[str, Array]


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    `normalizers(batch)` returns sums of weights that add up over shards; `loss(params, batch,
    normalizers, key)` the sum over this shard divided by the global normalisers, with metrics
    divided likewise. `key` drives dropout, None is evaluation. `normalizer_of` names each metric's
    normaliser, which turns evaluation's plain sums into means.
    """

    normalizers: Callable[[Batch], dict[str, Array]]
    loss: Callable[[Any, Batch, dict[str, Array], Array | None], tuple[Array, Metrics]]
    normalizer_of: dict[str, str]


def cross_entropy(logits_NC: Array, labels_N: Array) -> Array:
    """Per-row cross-entropy, nats, f32[...], for logits [..., C] and integer labels [...]."""
    return jax.nn.logsumexp(logits_NC, axis=-1) - _label_logits(logits_NC, labels_N)


def is_best(logits_NC: Array, labels_N: Array) -> Array:
    """Whether no class has a higher logit than the label's, bool[...].

    A maximum and a gather: on CPU nine times as fast as an argmax.
    """
    return _label_logits(logits_NC, labels_N) >= logits_NC.max(axis=-1)


def pretraining_objective(model: Any, *, second: bool = True) -> Objective:
    """Masked-LM loss plus, with `second`, the sentence-order (or next-sentence) loss, equally
    weighted.

    `model` is an AlbertForPretraining. A batch has input_ids, input_mask, segment_ids [B, S],
    masked_lm_positions, masked_lm_ids, masked_lm_weights [B, P], sentence_order_labels [B] and,
    where some rows are filling, example_weights [B]. run_pretraining.py:177, 292-361.
    """

    def normalizers(batch: Batch) -> dict[str, Array]:
        return {
            "masked_lm": batch["masked_lm_weights"].sum(),
            "sentence_order": _example_weights(batch).sum(),
        }

    def loss(
        params: Any, batch: Batch, normalizers: dict[str, Array], key: Array | None
    ) -> tuple[Array, Metrics]:
        output = model.apply(
            {"params": params},
            batch["input_ids"],
            batch["input_mask"],
            batch["segment_ids"],
            batch["masked_lm_positions"],
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        logits_BPV, ids_BP = output.masked_lm_logits_BPV, batch["masked_lm_ids"]
        # Differs from TF: the mean is over the global batch, not per core.
        weights_BP = batch["masked_lm_weights"] / (normalizers["masked_lm"] + 1e-5)
        metrics = {
            "masked_lm_loss": (weights_BP * cross_entropy(logits_BPV, ids_BP)).sum(),
            "masked_lm_accuracy": (weights_BP * is_best(logits_BPV, ids_BP)).sum(),
        }
        if second:
            logits_BC, labels_B = output.sentence_order_logits_BC, batch["sentence_order_labels"]
            weights_B = _example_weights(batch) / normalizers["sentence_order"]
            metrics["sentence_order_loss"] = (weights_B * cross_entropy(logits_BC, labels_B)).sum()
            metrics["sentence_order_accuracy"] = (weights_B * is_best(logits_BC, labels_B)).sum()
        total = metrics["masked_lm_loss"] + metrics.get("sentence_order_loss", 0.0)
        return total, metrics

    normalizer_of = {"masked_lm_loss": "masked_lm", "masked_lm_accuracy": "masked_lm"}
    if second:
        normalizer_of |= {
            "sentence_order_loss": "sentence_order",
            "sentence_order_accuracy": "sentence_order",
        }
    return Objective(normalizers, loss, normalizer_of)


def _example_weights(batch: Batch) -> Array:
    labels_B = batch["sentence_order_labels"]
    return batch.get("example_weights", jnp.ones(labels_B.shape, jnp.float32))


def _label_logits(logits_NC: Array, labels_N: Array) -> Array:
    return jnp.take_along_axis(logits_NC, labels_N[..., None], axis=-1)[..., 0]
