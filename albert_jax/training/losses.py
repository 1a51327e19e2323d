# SPDX-License-Identifier: Apache-2.0
"""Define what training minimises, as pure functions of (parameters, batch).

A loss is a SUM over the given rows, divided by normalisers over the global batch, so that it adds
up over devices and micro-batches. The mean of each shard's own mean has a different gradient if the
weights vary by shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config.heads import LABEL_SET, TEACHER_LOGITS
from albert_jax.models.lowering import Lowering, label_logits

Batch = dict[str, Array]
Metrics = dict[str, Array]

_NONZERO = 1e-5  # added to the number of predictions, as the original does


@dataclass(frozen=True)
class Objective:
    """Define what training minimises.

    Attributes:
        normalizers: `normalizers(batch)` returns sums of weights, which add up over shards.
        loss: `loss(params, batch, normalizers, key)` returns the sum over this shard, divided by
            the global normalisers, and metrics divided likewise. `key` drives dropout; None is
            evaluation.
        normalizer_of: the normaliser of each metric, which turns evaluation's plain sums into
            means.
        axis_name: the axis of devices that share a batch, over which a step sums; None if one
            device has all of the batch.
        added: what the loss adds to a normaliser before it divides by it.
    """

    normalizers: Callable[[Batch], dict[str, Array]]
    loss: Callable[[Any, Batch, dict[str, Array], Array | None], tuple[Array, Metrics]]
    normalizer_of: dict[str, str]
    axis_name: str | None = None
    added: Mapping[str, float] = field(default_factory=dict)

    def of_changed(self, change: Callable[[Any], Any]) -> Objective:
        """Return the objective of parameters that `change` turns into the model's."""

        def loss(
            params: Any, batch: Batch, normalizers: dict[str, Array], key: Array | None
        ) -> tuple[Array, Metrics]:
            return self.loss(change(params), batch, normalizers, key)

        return replace(self, loss=loss)


def cross_entropy(logits_NC: Array, labels_N: Array, lowering: Lowering = Lowering()) -> Array:
    """Return per-row cross-entropy, nats, f32[...], of logits [..., C] and integer labels [...]."""
    sums_N = jax.nn.logsumexp(logits_NC, axis=-1)
    return sums_N - label_logits(logits_NC, labels_N, lowering.platform)


def is_best(logits_NC: Array, labels_N: Array, lowering: Lowering = Lowering()) -> Array:
    """Return whether no class has a higher logit than the label's, bool[...].

    It compares the maximum with the label's logit, which is much faster than an argmax on a CPU.
    """
    return label_logits(logits_NC, labels_N, lowering.platform) >= logits_NC.max(axis=-1)


def pretraining_objective(
    model: Any, *, second: bool = True, second_weight: float = 1.0
) -> Objective:
    """Return masked-LM loss plus, with `second`, `second_weight` times the second loss.

    The second loss is that of the sentence order or of the next sentence; the original weighs both
    losses equally. `model` is an AlbertForPretraining. A batch has input_ids, input_mask,
    segment_ids [B, S], masked_lm_positions, masked_lm_ids, masked_lm_weights [B, P],
    sentence_order_labels [B] and, if some rows only fill it, example_weights [B].
    run_pretraining.py:177, 292-361.
    """

    def normalizers(batch: Batch) -> dict[str, Array]:
        return {
            "masked_lm": batch["masked_lm_weights"].sum(),
            "sentence_order": _example_weights(batch).sum(),
        }

    def loss(
        params: Any, batch: Batch, normalizers: dict[str, Array], key: Array | None
    ) -> tuple[Array, Metrics]:
        lowering = model.lowering
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
        weights_BP = batch["masked_lm_weights"] / (normalizers["masked_lm"] + _NONZERO)
        metrics = {
            "masked_lm_loss": (weights_BP * cross_entropy(logits_BPV, ids_BP, lowering)).sum(),
            "masked_lm_accuracy": (weights_BP * is_best(logits_BPV, ids_BP, lowering)).sum(),
        }
        if second:
            logits_BC, labels_B = output.sentence_order_logits_BC, batch["sentence_order_labels"]
            weights_B = _example_weights(batch) / normalizers["sentence_order"]
            losses_B = cross_entropy(logits_BC, labels_B, lowering)
            metrics["sentence_order_loss"] = (weights_B * losses_B).sum()
            is_best_B = is_best(logits_BC, labels_B, lowering)
            metrics["sentence_order_accuracy"] = (weights_B * is_best_B).sum()
        order_loss = metrics.get("sentence_order_loss", 0.0)
        weighted = order_loss if second_weight == 1 else second_weight * order_loss
        return metrics["masked_lm_loss"] + weighted, metrics

    normalizer_of = {"masked_lm_loss": "masked_lm", "masked_lm_accuracy": "masked_lm"}
    if second:
        normalizer_of |= {
            "sentence_order_loss": "sentence_order",
            "sentence_order_accuracy": "sentence_order",
        }
    return Objective(
        normalizers, loss, normalizer_of, model.lowering.axis_name, {"masked_lm": _NONZERO}
    )


@dataclass(frozen=True)
class ClassLoss:
    """Weigh and smooth the cross-entropy of a task with classes.

    Attributes:
        weights: the weights of the labels, in the order of the head's outputs; () is 1 for all.
        smoothing: the fraction of the target that is spread evenly over all labels.
    """

    weights: tuple[float, ...] = ()
    smoothing: float = 0.0

    def of_labels(self, labels: Array) -> Array:
        """Return each label's weight, f32[...], for labels [...]."""
        if not self.weights:
            return jnp.ones(labels.shape, jnp.float32)
        return jnp.asarray(self.weights, jnp.float32)[labels]

    def losses(self, logits_NC: Array, labels_N: Array) -> Array:
        """Return weighted cross-entropies, nats, f32[...], of logits [..., C] and labels [...].

        As in torch's CrossEntropyLoss, a weight belongs to the class whose log-probability it
        multiplies, also in the part of the target that smoothing spreads.
        """
        classes = logits_NC.shape[-1]
        targets_NC = (1 - self.smoothing) * jax.nn.one_hot(labels_N, classes)
        targets_NC += self.smoothing / classes
        if self.weights:
            targets_NC *= jnp.asarray(self.weights, jnp.float32)
        return -(targets_NC * jax.nn.log_softmax(logits_NC)).sum(axis=-1)


@dataclass(frozen=True)
class Distillation:
    """Add the distance from a teacher's logits, `TEACHER_LOGITS` [B, C], to a task's loss.

    Attributes:
        weight: the fraction of the distance in the loss.
        temperature: the divisor of both models' logits.
    """

    weight: float
    temperature: float = 1.0

    def losses(self, logits_BC: Array, teacher_BC: Array) -> Array:
        """Return each example's Kullback-Leibler divergence from the teacher, nats, f32[B].

        It is multiplied by the squared temperature. Hinton et al. 2015, section 2.
        """
        theirs_BC, ours_BC = (
            jax.nn.log_softmax(x / self.temperature) for x in (teacher_BC, logits_BC)
        )
        divergence_B = (jnp.exp(theirs_BC) * (theirs_BC - ours_BC)).sum(axis=-1)
        return self.temperature**2 * divergence_B


def task_objective(
    model: Any, classes: ClassLoss = ClassLoss(), teacher: Distillation | None = None
) -> Objective:
    """Return the objective of a fine-tuned head; `model` is an AlbertForTask.

    The loss is a mean, weighted by `classes` for heads with classes or choices, and mixed with the
    distance from a `teacher`. A batch has input_ids, input_mask, segment_ids [B, S] (multiple
    choice: [B, C, S]), what the functions of `TASK_LOSSES` read and, if some rows only fill it,
    example_weights [B]. Rows that examples share have starts [B, P], labels [B, P] and
    example_weights [B, P].
    """
    task = TASK_LOSSES[model.kind]
    is_plain = classes == ClassLoss()

    def weights_of(batch: Batch) -> Array:
        if model.kind != "token_classification":
            return _example_weights(batch)
        is_labelled_BS = (batch["labels"] >= 0).astype(jnp.float32)
        return is_labelled_BS * _example_weights(batch)[:, None]

    def normalizers(batch: Batch) -> dict[str, Array]:
        found = {"labels": weights_of(batch).sum()}
        if not is_plain:
            weighted = weights_of(batch) * classes.of_labels(jnp.maximum(batch["labels"], 0))
            found["weighted_labels"] = weighted.sum()
        return found

    def of_pass(output: Any, batch: Batch, normalizers: dict[str, Array]) -> tuple[Array, Metrics]:
        # A batch may hold no label at all: then the loss is 0, not NaN.
        shares = weights_of(batch) / jnp.maximum(normalizers["labels"], 1.0)
        losses = task.losses(output, batch, model.lowering)
        metrics = {name: (shares * x).sum() for name, x in losses.items()}
        if not is_plain:
            whole = normalizers["weighted_labels"]
            weighted = classes.losses(output, jnp.maximum(batch["labels"], 0))
            of_labels = weights_of(batch) / jnp.where(whole > 0, whole, 1.0)
            metrics["task_loss"] = (of_labels * weighted).sum()
        total = metrics["task_loss"]
        if teacher is not None:
            distances = teacher.losses(output, batch[TEACHER_LOGITS])
            metrics["distill_loss"] = (shares * distances).sum()
            total = (1 - teacher.weight) * total + teacher.weight * metrics["distill_loss"]
        return total, metrics

    def loss(
        params: Any, batch: Batch, normalizers: dict[str, Array], key: Array | None
    ) -> tuple[Array, Metrics]:
        output = model.apply(
            {"params": params},
            batch["input_ids"],
            batch["input_mask"],
            batch["segment_ids"],
            batch.get("starts"),
            **{name: batch[column] for name, column in task.head_inputs.items()},
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        if not model.exits:
            return of_pass(output, batch, normalizers)
        return _of_all_passes(output, lambda logits: of_pass(logits, batch, normalizers))

    normalizer_of = dict.fromkeys(task.metrics, "labels")
    if teacher is not None:
        normalizer_of["distill_loss"] = "labels"
    if not is_plain:
        normalizer_of["task_loss"] = "weighted_labels"
    return Objective(normalizers, loss, normalizer_of, model.lowering.axis_name)


def _of_all_passes(
    logits: Array, of_pass: Callable[[Array], tuple[Array, Metrics]]
) -> tuple[Array, Metrics]:
    """Return loss and metrics of logits [..., L, C] of L passes.

    A loss is the mean of the passes' losses, weighted by the pass's number (Zhou et al. 2020,
    equation 4). Other metrics are those of the last pass.
    """
    passes = logits.shape[-2]
    found = [of_pass(logits[..., j, :]) for j in range(passes)]
    weights = [2 * (j + 1) / (passes * (passes + 1)) for j in range(passes)]

    def mean(values: Iterable[Array]) -> Array:
        terms = [weight * x for weight, x in zip(weights, values, strict=True)]
        return jnp.stack(terms).sum()

    _, metrics = found[-1]
    losses = [name for name in metrics if name.endswith("loss")]
    metrics |= {name: mean(each[name] for _, each in found) for name in losses}
    return mean(total for total, _ in found), metrics


def classification_losses(logits_BC: Array, batch: Batch, lowering: Lowering) -> Metrics:
    """Return cross-entropy with integer `labels` [B]; also of multiple choice.

    classifier_utils.py:807-811.
    """
    labels_B = batch["labels"]
    return {
        "task_loss": cross_entropy(logits_BC, labels_B, lowering),
        "accuracy": is_best(logits_BC, labels_B, lowering),
    }


def multi_label_losses(logits_BC: Array, batch: Batch, _: Lowering) -> Metrics:
    """Return the mean over the labels of binary cross-entropy with `label_set` [B, C].

    The accuracy is the fraction of labels that are right at a threshold of 0.5. torch's
    BCEWithLogitsLoss.
    """
    labels_BC = batch[LABEL_SET]
    losses_BC = jax.nn.softplus(logits_BC) - labels_BC * logits_BC
    return {
        "task_loss": losses_BC.mean(axis=-1),
        "accuracy": ((logits_BC > 0) == (labels_BC > 0)).mean(axis=-1),
    }


def regression_losses(scores_B: Array, batch: Batch, _: Lowering) -> Metrics:
    """Return the squared error from `labels` [B]. classifier_utils.py:817."""
    return {"task_loss": jnp.square(scores_B - batch["labels"])}


def token_losses(logits_BSC: Array, batch: Batch, lowering: Lowering) -> Metrics:
    """Return cross-entropy with `labels` [B, S]; a negative label has no weight.

    transformers' label of such tokens is -100.
    """
    labels_BS = jnp.maximum(batch["labels"], 0)
    return classification_losses(logits_BSC, {"labels": labels_BS}, lowering)


def span_v1_losses(output: Any, batch: Batch, lowering: Lowering) -> Metrics:
    """Return the mean cross-entropy with `start_positions` and `end_positions` [B].

    squad_utils.py:814-828.
    """
    return _span_losses(output, batch, lowering)


def span_v2_losses(output: Any, batch: Batch, lowering: Lowering) -> Metrics:
    """Return `span_v1_losses` plus half the binary cross-entropy with `is_impossible` [B].

    The end is predicted from the true start, in evaluation too. squad_utils.py:1641-1664.
    """
    losses = _span_losses(output, batch, lowering)
    logits_B, is_impossible_B = output.unanswerable_B, batch["is_impossible"].astype(jnp.float32)
    answerability_B = jax.nn.softplus(logits_B) - is_impossible_B * logits_B
    losses["task_loss"] += 0.5 * answerability_B
    return losses | {"answerability_loss": answerability_B}


def _span_losses(output: Any, batch: Batch, lowering: Lowering) -> Metrics:
    starts_B, ends_B = batch["start_positions"], batch["end_positions"]
    start_B = cross_entropy(output.start_BS, starts_B, lowering)
    end_B = cross_entropy(output.end_BS, ends_B, lowering)
    return {
        "task_loss": (start_B + end_B) / 2,
        "start_accuracy": is_best(output.start_BS, starts_B, lowering),
        "end_accuracy": is_best(output.end_BS, ends_B, lowering),
    }


def _example_weights(batch: Batch) -> Array:
    rows = batch["input_ids"].shape[0]
    return batch.get("example_weights", jnp.ones(rows, jnp.float32))


@dataclass(frozen=True)
class TaskLoss:
    """Define how a kind of head is trained.

    It has the losses and metrics of each example, the metrics' names, and the columns of a batch
    that the head takes, by its own names.
    """

    losses: Callable[[Any, Batch, Lowering], Metrics]
    metrics: tuple[str, ...]
    head_inputs: Mapping[str, str] = field(default_factory=dict)


_SPAN_METRICS = ("task_loss", "start_accuracy", "end_accuracy")

TASK_LOSSES: dict[str, TaskLoss] = {
    "classification": TaskLoss(classification_losses, ("task_loss", "accuracy")),
    "multi_label": TaskLoss(multi_label_losses, ("task_loss", "accuracy")),
    "regression": TaskLoss(regression_losses, ("task_loss",)),
    "similarity": TaskLoss(regression_losses, ("task_loss",)),
    "multiple_choice": TaskLoss(classification_losses, ("task_loss", "accuracy")),
    "token_classification": TaskLoss(token_losses, ("task_loss", "accuracy")),
    "span_v1": TaskLoss(span_v1_losses, _SPAN_METRICS),
    "span_v2": TaskLoss(
        span_v2_losses,
        (*_SPAN_METRICS, "answerability_loss"),
        {"p_mask_BS": "p_mask", "start_positions_B": "start_positions"},
    ),
}
