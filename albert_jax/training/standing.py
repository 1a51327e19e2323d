# SPDX-License-Identifier: Apache-2.0
"""Report once where a pretraining run stands.

It may stay at the loss of a model that knows only frequencies, at the accuracy of the majority
label, or far from its held-out loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from albert_jax.utils.wording import setting

_LONG = 200  # steps; in a shorter run, the loss cannot have fallen yet
_PLATEAU_AT = 0.2  # of the steps; a loss that is still at the unigram entropy is slow
_ORDER_AT = 0.5
_LEFT = 0.05  # nats below the unigram entropy that count as having left it
_APART, _RISEN = 0.3, 0.05  # nats between training and held-out loss, and above the lowest


class Standing:
    """Take a run's figures as they are logged, and return what the user should know about them."""

    def __init__(
        self,
        steps: int,
        entropy: float | None,
        majority: Callable[[], float | None],
        examples: int,
    ) -> None:
        """Prepare for a run of that number of `steps`.

        `entropy` is that of the held-out text's single pieces (nats), `majority` the fraction of
        the more frequent label among the `examples` of an evaluation.
        """
        self._steps, self._entropy, self._majority = steps, entropy, majority
        self._examples = examples
        self.begin(0)

    def begin(self, step: int) -> None:
        """Continue from a step; earlier reports are not repeated."""
        self._last = self._lowest_at = step
        self._training_loss, self._lowest, self._has_parted = math.nan, math.inf, False
        self._judges_order = self._steps >= _LONG and step < _ORDER_AT * self._steps

    def trained(self, step: int, means: Mapping[str, float]) -> str | None:
        """Return what to print after a line on training, or None."""
        self._training_loss = loss = means.get("masked_lm_loss", math.nan)
        passed, self._last = self._last < _PLATEAU_AT * self._steps <= step, step
        passed = passed and self._steps >= _LONG
        entropy = self._entropy
        if not passed or entropy is None or not loss > entropy - _LEFT:
            return None
        return (
            f"the masked-LM loss {loss:.2f} is still that of knowing only how frequent each piece "
            f"is, {entropy:.2f} nats; runs stay there where weights begin too small or learn too "
            f"slowly: try {setting('kernel_init', 'fan_in')}, {setting('output_bias', 'unigram')}, "
            f"{setting('optimizer.name', 'muon')}, a higher {setting('optimizer.learning_rate')} "
            "or smaller batches"
        )

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Return what to print after an evaluation, or None."""
        return self._parting(step, metrics) or self._order(step, metrics)

    def _parting(self, step: int, metrics: Mapping[str, float]) -> str | None:
        loss = metrics.get("masked_lm_loss", math.nan)
        if loss < self._lowest:
            self._lowest, self._lowest_at = loss, step
        has_risen = loss > self._lowest + _RISEN
        if self._has_parted or not (has_risen and loss > self._training_loss + _APART):
            return None
        self._has_parted = True
        return (
            f"the held-out masked-LM loss {loss:.2f} has risen from {self._lowest:.2f} at step "
            f"{self._lowest_at} while training's is {self._training_loss:.2f}: the text is being "
            f"learnt by heart; give more text, fewer {setting('train.steps')}, or dropout "
            f"({setting('model.hidden_dropout_prob', 0.1)})"
        )

    def _order(self, step: int, metrics: Mapping[str, float]) -> str | None:
        accuracy = metrics.get("sentence_order_accuracy")
        if accuracy is None or not self._judges_order or step < _ORDER_AT * self._steps:
            return None
        self._judges_order = False
        majority = self._majority()
        if majority is None:
            return None
        error = math.sqrt(majority * (1 - majority) / max(1, self._examples))
        if accuracy > majority + 3 * error:
            return None
        return (
            f"sentence order is at {accuracy:.1%}, no more than the more frequent label's "
            f"{majority:.1%} within three standard errors ({error:.1%} each): it is learnt after "
            f"words are; give more steps, longer rows ({setting('examples.max_seq_length')}), or "
            f"leave it out ({setting('examples.objective', 'none')})"
        )
