# SPDX-License-Identifier: Apache-2.0
"""Answer after fewer passes than the model has, one text at a time.

The head is applied after each pass. The passes stop when the answer no longer changes (Zhou et al.
2020, PABEE) or is probable enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.inference.functions import placed
from albert_jax.models.albert import Layer
from albert_jax.models.heads import EXITABLE, AlbertForTask
from albert_jax.tasks.batches import bucket
from albert_jax.tasks.collate import FeatureRow, collate
from albert_jax.utils.errors import UserError
from albert_jax.utils.progress import Tick
from albert_jax.utils.wording import setting


@dataclass(frozen=True)
class ExitRule:
    """Decide when the passes stop.

    Attributes:
        patience: stop after this number of passes in a row that did not change the answer; 0 is
            off.
        confidence: stop when the answer has at least this probability; 0 is off.
    """

    patience: int = 0
    confidence: float = 0.0

    @classmethod
    def of(cls, text: str) -> ExitRule:
        """Return the rule in `patience=N` or `confidence=P`; raises UserError for another text."""
        name, _, number = str(text).partition("=")
        try:
            if name == "patience" and (patience := int(number)) >= 1:
                return cls(patience=patience)
            if name == "confidence" and 0 < (confidence := float(number)) <= 1:
                return cls(confidence=confidence)
        except ValueError:
            pass
        raise UserError(
            f"{setting('exit')} {text!r} must be patience=N, a number of passes, or confidence=P, "
            "a probability above 0, as in patience=3 or confidence=0.9"
        )

    def is_met(self, logits_C: Array, agreed: Array) -> Array:
        """Return whether to answer, after `agreed` passes that did not change the answer."""
        if self.patience:
            return agreed >= self.patience
        return jax.nn.softmax(logits_C).max() >= self.confidence


def exit_outputs(
    model: AlbertForTask, rule: ExitRule, params: Any, batch: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the `logits` [1, C] of a batch of one text, and the number of `passes` [1]."""
    config, mask_BS = model.config, batch["input_mask"]
    first = model.clone(config=dataclasses.replace(config, num_hidden_layers=1))
    layer = Layer(config, model.compute, model.lowering)
    weights = {"params": params["encoder"]["group_0"]}

    def answer(hidden_BSH: Array) -> Array:
        logits_BC: Any = model.apply({"params": params}, hidden_BSH, method=AlbertForTask.answer)
        return logits_BC[0]

    def goes_on(state: tuple[Array, ...]) -> Array:
        _, logits_C, agreed, passes = state
        return (passes < config.num_hidden_layers) & ~rule.is_met(logits_C, agreed)

    def one_more(state: tuple[Array, ...]) -> tuple[Array, ...]:
        hidden_BSH, before_C, agreed, passes = state
        output: Any = layer.apply(weights, hidden_BSH, mask_BS, None)
        hidden_BSH, after_C = output[0], answer(output[0])
        is_same = jnp.argmax(after_C) == jnp.argmax(before_C)
        return hidden_BSH, after_C, jnp.where(is_same, agreed + 1, 0), passes + 1

    with jax.default_matmul_precision("highest"):
        hidden_BSH: Any = first.apply(
            {"params": params},
            batch["input_ids"],
            mask_BS,
            batch["segment_ids"],
            method=AlbertForTask.sequence,
        )
        start: tuple[Array, ...] = hidden_BSH, answer(hidden_BSH), jnp.int32(0), jnp.int32(1)
        _, logits_C, _, passes = jax.lax.while_loop(goes_on, one_more, start)
    return {"logits": logits_C[None], "passes": passes[None]}


class ExitOutputs:
    """Compute a head's outputs text by text, each with no more passes than it needs."""

    def __init__(self, model: AlbertForTask, rule: ExitRule) -> None:
        self.model = model
        self._longest = model.config.max_position_embeddings
        self._apply = jax.jit(partial(exit_outputs, model, rule))

    def placed(self, params: Mapping[str, Any]) -> Any:
        """Return the parameters on the device, to call with."""
        return placed(params, self.model)

    def __call__(
        self, params: Any, rows: Sequence[FeatureRow], tick: Tick | None = None
    ) -> list[dict[str, np.ndarray]]:
        """Return the `logits` [C] and the number of `passes` of each row.

        `tick` is called after each row.
        """
        found = []
        for row in rows:
            batch = collate([row], bucket(row.length, self._longest), targets=False)
            outputs = self._apply(params, batch)
            found.append({name: np.asarray(x[0]) for name, x in outputs.items()})
            if tick is not None:
                tick(len(found), len(rows))
        return found


def check_exit(model: AlbertForTask, text: str, pack: int) -> ExitRule:
    """Return the rule; raises UserError if the model or packed rows cannot use it."""
    rule = ExitRule.of(text)
    if pack:
        raise UserError(
            f"{setting('exit')} answers one text at a time; leave out {setting('pack')}"
        )
    if model.kind not in EXITABLE or model.config.num_hidden_groups > 1:
        raise UserError(
            f"{setting('exit')} is for {' and '.join(EXITABLE)} with one shared layer; this model "
            f"is for {model.kind} with {model.config.num_hidden_groups}; leave it out"
        )
    return rule


def passes_line(passes: Sequence[int], whole: int) -> list[str]:
    """Return a sentence on the number of passes that answers took, of `whole` passes.

    The list is empty without an early exit.
    """
    return [f"{np.mean(passes):.2f} passes of {whole} in the mean"] if passes else []
