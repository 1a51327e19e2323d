# SPDX-License-Identifier: Apache-2.0
"""Judge the steps of a fine-tuning run on dev, and keep the best as a model directory.

A run ends early when no evaluation has been better for its patience.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from albert_jax import __version__
from albert_jax.checkpoint.adapter import LORA, merged, write_adapter
from albert_jax.checkpoint.integrity import Damaged, read_document
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.checkpoint.model_export import export_model
from albert_jax.config.adapters import ADAPTER_FORMAT, AdapterManifest, base_digest
from albert_jax.config.heads import IGNORED_LABEL, LABEL_SET, SCORES
from albert_jax.config.history import read_history, recorded
from albert_jax.config.manifests import MANIFEST, HeadManifest, settings_in
from albert_jax.config.model_names import name_of
from albert_jax.config.recipes import to_dict
from albert_jax.config.run import FinetuneConfig
from albert_jax.inference.finetuned import HeadOutputs
from albert_jax.tasks import Features, Task
from albert_jax.tasks.base import Predictions
from albert_jax.tasks.long_texts import pooled
from albert_jax.tasks.scores import LOSS, Scores, goodness, line_of
from albert_jax.tasks.split_features import SplitFeatures, spaced
from albert_jax.training.finetune_setup import FinetuneSetup
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import JsonObject, finite
from albert_jax.utils.progress import Tick
from albert_jax.utils.provenance import without_credentials


class Patience:
    """Count evaluations since the best one; `limit` of them end a run, and 0 never does."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: dict[int, float] = {}  # by step, in their order

    def note(self, step: int, value: float) -> None:
        """Record the value of an evaluation, of which more is better.

        Values of later steps are forgotten, because a rollback makes these steps again.
        """
        self._values = {s: x for s, x in self._values.items() if s < step} | {step: value}

    def is_over(self, step: int) -> bool:
        """Return whether a run at this step has waited long enough."""
        values = [x for s, x in self._values.items() if s <= step]
        if not self._limit or not values:
            return False
        return len(values) - 1 - int(np.argmax(values)) >= self._limit


class Judged(NamedTuple):
    """Hold the dev metrics of some parameters."""

    metrics: dict[str, float]
    predictions: Predictions
    task: Task
    """The task with what it learnt of dev, such as thresholds."""


class BestStep:
    """Judge a seed's run on dev, and keep its best step as a model directory."""

    def __init__(
        self,
        config: FinetuneConfig,
        prepared: FinetuneSetup,
        outputs: HeadOutputs,
        directory: Path,
        seed: int,
    ) -> None:
        self.config, self.prepared, self.directory, self.seed = config, prepared, directory, seed
        self.patience = Patience(config.early_stopping)
        self._outputs = outputs
        self._dev = some_of(prepared.dev, config.train.eval_examples)
        self._kept_step: int | None = None  # of an interrupted run
        self._is_comparable = True  # its values, which may be of other examples
        self._is_to_be_judged = False
        self._value, self._nothing_kept = self._recorded(), not directory.exists()
        self._offered: tuple[int, Judged] | None = None  # the newest step, judged on all of dev

    def _recorded(self) -> float:
        """Return the goodness of the step that an interrupted run kept; -inf if it kept none."""
        try:
            found = read_document(self.directory / MANIFEST)["provenance"]
            judged_on = found["config"]["train"]["eval_examples"]
            self._kept_step = found["step"]
        except (Damaged, OSError, KeyError, TypeError):
            return -math.inf
        if len(some_of(self.prepared.dev, judged_on).examples) != len(self._dev.examples):
            self._is_comparable, self._is_to_be_judged = False, True
            return -math.inf
        return goodness(self.prepared.metric, found["chosen_by"])

    def forget(self) -> None:
        """Accept the next offer whatever it is, because the kept step may be an earlier run's."""
        self._value, self._nothing_kept, self._is_to_be_judged = -math.inf, True, False

    def recall(self, evaluations: Sequence[Mapping[str, Any]], since: int) -> None:
        """Record evaluations that were made before the run was interrupted, in their order.

        Patience begins anew after the step `since`, at which the run was continued with other
        settings, and where the values are of other dev examples.
        """
        if self._kept_step not in {entry["step"] for entry in evaluations}:
            self.forget()
        for entry in evaluations:
            if self._is_comparable and entry["step"] > since:
                self.patience.note(entry["step"], self._goodness(entry))

    def offer(self, params: Any, step: int, tick: Tick) -> dict[str, float]:
        """Return the metrics of these parameters, and keep the parameters if none were better."""
        judged = self.judge(params, self._dev, tick)
        metrics, value = judged.metrics, self._goodness(judged.metrics)
        if self._dev is self.prepared.dev:
            self._offered = step, judged
        self.patience.note(step, value)
        if self._is_to_be_judged:  # once more: its value is of other dev examples
            self._is_to_be_judged = False
            with contextlib.suppress(UserError):  # it is damaged
                kept = load_model(self.directory, as_float32=True)
                self._value = self._goodness(self.judge(kept.params, self._dev, tick).metrics)
        if value > self._value or self._nothing_kept:
            self._value, self._nothing_kept = value, False
            self.export(params, self.directory, step, judged)
        numbers = {name: x for name, x in metrics.items() if isinstance(x, (int, float))}
        return Scores(numbers, line_of(self.prepared.task, self.prepared.metric, numbers))

    def offered(self, step: int) -> Judged | None:
        """Return the dev metrics of the last offer, if it was this step and used all of dev."""
        return self._offered[1] if self._offered and self._offered[0] == step else None

    def _goodness(self, metrics: Mapping[str, Any]) -> float:
        return goodness(self.prepared.metric, metrics.get(self.prepared.metric))

    def judge(
        self,
        params: Any,
        split: SplitFeatures,
        tick: Tick | None = None,
        task: Task | None = None,
    ) -> Judged:
        """Judge parameters on a split; `tick` is called with the number of finished rows.

        `task` is a task with fitted thresholds; None, they may be fitted on this split.
        """
        fit = task is None and self.config.thresholds == "fit"
        task = task or self.prepared.task
        found = self._outputs(jax.device_put(merged(params)), split.rows, tick)
        features, outputs = pooled(split.features, found)
        if fit:
            task = task.fitted(split.examples, features, outputs)
        predictions = task.predictions(split.examples, features, outputs)
        metrics = task.metrics(split.examples, predictions)
        if self.prepared.metric == LOSS:
            metrics = metrics | {LOSS: mean_loss(task.head, features, outputs)}
        return Judged(metrics, predictions, task)

    def export(self, params: Any, directory: Path, step: int, judged: Judged) -> None:
        """Write parameters and their dev metrics as a model directory, an adapter beside it."""
        source = self.prepared.source
        head = HeadManifest.from_json(
            dataclasses.replace(self.prepared, task=judged.task).head
            | {"max_seq_length": self.prepared.max_seq_length}
            | _long_of(self.config)
        )
        provenance = self._provenance(step, judged.metrics)
        if LORA in params:
            adapter = directory.with_name(f"{directory.name}-adapter")
            manifest = self._adapter_manifest(head, provenance)
            write_adapter(adapter, jax.device_get(params), source.config, manifest)
        export_model(
            directory,
            params=jax.device_get(merged(params)),
            config=source.config,  # its dropout too: the run's dropout is not part of the weights
            vocab=source.tokenizer["path"],
            tokenizer=settings_in(source.tokenizer),
            head=head,
            provenance=provenance,
        )

    def _provenance(self, step: int, metrics: Mapping[str, Any]) -> JsonObject:
        began = self.prepared.source.manifest["provenance"]
        named = name_of(self.config.model or "")
        return {
            "made_by": "albert-jax finetune",
            "seed": self.seed,
            "step": step,
            "chosen_by": finite(metrics[self.prepared.metric]),
            "dev": finite(metrics),
            "config": without_credentials(to_dict(self.config)),
            "started_from": {
                **{key: began.get(key) for key in ("made_by", "source", "step")},
                "name": named.forced if named else None,
            },
            **recorded(read_history(self.directory.parent)),
        }

    def _adapter_manifest(self, head: HeadManifest, provenance: JsonObject) -> AdapterManifest:
        given, source = self.config.model or "", self.prepared.source
        named = name_of(given)
        base = str(named.forced) if named else str(Path(given).resolve())
        return AdapterManifest(
            format_version=ADAPTER_FORMAT,
            albert_jax=__version__,
            base=None if self.config.random_weights else base,
            base_sha256=base_digest(source.manifest["tensors"]),
            positions=self.config.positions,
            max_position_embeddings=source.config.max_position_embeddings,
            head=head,
            provenance=provenance,
        )


def _long_of(config: FinetuneConfig) -> JsonObject:
    """Return what a manifest records about long texts, if they are not cut."""
    kept = {"long": config.long, "stride": config.stride} if config.long != "cut" else {}
    return {name: value for name, value in kept.items() if value is not None}


def some_of(split: SplitFeatures, limit: int) -> SplitFeatures:
    """Return at most `limit` of the examples, evenly spaced over the file."""
    count = len(split.examples)
    if count <= limit:
        return split
    kept = {at: i for i, at in enumerate(spaced(count, limit))}
    pairs = [
        (dataclasses.replace(feature, example=kept[feature.example]), row)
        for feature, row in zip(split.features, split.rows, strict=True)
        if feature.example in kept
    ]
    return SplitFeatures(
        [split.examples[i] for i in kept], [f for f, _ in pairs], [row for _, row in pairs]
    )


def mean_loss(
    head: str, features: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
) -> float:
    """Return the mean loss of examples, from the head's outputs.

    It is training's loss without class weights and label smoothing: cross-entropy in nats, or
    squared error of scores.
    """
    logits = [np.asarray(x["logits"], np.float64) for x in outputs]
    if head == "multi_label":
        sets = [np.asarray(feature.targets[LABEL_SET]) for feature in features]
        pairs = zip(logits, sets, strict=True)
        return float(np.mean([np.logaddexp(0, x) - y * x for x, y in pairs]))
    labels = [np.asarray(feature.targets["labels"]) for feature in features]
    if head in SCORES:
        return float(
            np.mean([np.square(x.ravel()[0] - y) for x, y in zip(logits, labels, strict=True)])
        )
    losses = np.concatenate([_cross_entropies(x, y) for x, y in zip(logits, labels, strict=True)])
    return float(losses.mean())


def _cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each label, nats, f64[N].

    `logits` [C] go with one label, `logits` [S, C] with labels [S]; labels to be ignored are left
    out.
    """
    logits_SC, labels_S = np.atleast_2d(logits), np.atleast_1d(labels)
    logits_SC, labels_S = (x[labels_S != IGNORED_LABEL] for x in (logits_SC, labels_S))
    most_S = logits_SC.max(axis=-1)
    sums_S = most_S + np.log(np.exp(logits_SC - most_S[:, None]).sum(axis=-1))
    return sums_S - logits_SC[np.arange(len(labels_S)), labels_S]
