# SPDX-License-Identifier: Apache-2.0
"""Define the heads for fine-tuning on the encoder: the original's five, and two of others.

A head takes the pooled first token [B, H] or every token's state [B, S, H] and returns float32.
The two are token classification and similarity. Parameters have the names of the original's
variables, so that its weights [C, H] are transposed compared with a kernel. B batch, S sequence, H
hidden_size, P examples of a packed row, C classes or choices, K starts that a beam follows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config.heads import BEAM
from albert_jax.config.model import AlbertConfig
from albert_jax.models.albert import AlbertModel
from albert_jax.models.layers import Part, dropout, initializer, layer_norm
from albert_jax.models.packing import Packing
from albert_jax.models.parameter import parameter

MASKED = -1e30  # the logit of a position that cannot be in an answer


@flax.struct.dataclass
class SpanLogits:
    """Hold the logits of an answer's start and end."""

    start_BS: Array
    end_BS: Array


@flax.struct.dataclass
class SpanLogProbs:
    """Hold log-probabilities of the start, and of the end given the true start.

    Logit of "no answer".
    """

    start_BS: Array
    end_BS: Array
    unanswerable_B: Array


@flax.struct.dataclass
class SpanBeam:
    """Hold the most probable starts and, for each, ends, the best first; logit of "no answer"."""

    start_log_probs_BK: Array
    start_index_BK: Array
    end_log_probs_BKK: Array  # [B, start, end]
    end_index_BKK: Array
    unanswerable_B: Array


class Head(Part):
    """Define what heads have in common."""

    labels: int = 2  # classes; heads of one output or of start and end take no notice of it
    dropout: float = 0.1  # whatever the encoder's; classifier_utils.py:794

    pooled: ClassVar[bool] = True  # whether it takes pooled_BH, or else sequence_BSH
    takes_mask: ClassVar[bool] = False


def _outputs(head: Head, hidden: Array, outputs: int) -> Array:
    """Map […, H] to float32 [… , outputs] with the parameters output_weights and output_bias."""
    shape = (outputs, hidden.shape[-1])
    weights_CH = parameter(head, "output_weights", nn.initializers.truncated_normal(0.02), shape)
    bias_C = parameter(head, "output_bias", nn.initializers.zeros, (outputs,))
    return jnp.einsum("...H,CH->...C", hidden.astype(jnp.float32), weights_CH) + bias_C


class Classifier(Head):
    """Compute logits of a text's classes, [B, H] -> [B, C]. classifier_utils.py:768-823."""

    @nn.compact
    def __call__(self, pooled_BH: Array, *, deterministic: bool) -> Array:
        pooled_BH = dropout(self, self.dropout)(pooled_BH, deterministic=deterministic)
        return _outputs(self, pooled_BH, self.labels)


class Regressor(Head):
    """Compute a text's score, [B, H] -> [B]. classifier_utils.py:813-817."""

    @nn.compact
    def __call__(self, pooled_BH: Array, *, deterministic: bool) -> Array:
        pooled_BH = dropout(self, self.dropout)(pooled_BH, deterministic=deterministic)
        return _outputs(self, pooled_BH, 1)[..., 0]


class MultipleChoice(Head):
    """Compute logits of the choices, each with its own text, [B, C, H] -> [B, C].

    race_utils.py:283-346.
    """

    @nn.compact
    def __call__(self, pooled_BCH: Array, *, deterministic: bool) -> Array:
        pooled_BCH = dropout(self, self.dropout)(pooled_BCH, deterministic=deterministic)
        return _outputs(self, pooled_BCH, 1)[..., 0]


class Similarity(Head):
    """Compute the cosine of two texts' mean vectors, [B, 2, S, H] and mask [B, 2, S] -> [B].

    It has no parameters. The original has no such head; Sentence-BERT, arXiv:1908.10084, section 3.
    """

    pooled: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = True

    @nn.compact
    def __call__(self, sequence_BCSH: Array, mask_BCS: Array, *, deterministic: bool) -> Array:
        del deterministic
        # The cosine does not depend on lengths, so sums serve as well as means. Ellipses: `init`
        # gives the rows of one text.
        hidden, mask = (x.astype(jnp.float32) for x in (sequence_BCSH, mask_BCS))
        sums_BCH = jnp.einsum("...SH,...S->...H", hidden, mask)
        squares_BC = jnp.square(sums_BCH).sum(axis=-1, keepdims=True)
        units_BCH = sums_BCH * jax.lax.rsqrt(jnp.maximum(squares_BC, 1e-12))  # 0 of padding alone
        return (units_BCH[..., 0, :] * units_BCH[..., -1, :]).sum(axis=-1)


class TokenClassifier(Head):
    """Compute logits of each token's classes, [B, S, H] -> [B, S, C].

    The head is transformers', because the original has none.
    """

    pooled: ClassVar[bool] = False

    @nn.compact
    def __call__(self, sequence_BSH: Array, *, deterministic: bool) -> Array:
        sequence_BSH = dropout(self, self.dropout)(sequence_BSH, deterministic=deterministic)
        return _outputs(self, sequence_BSH, self.labels)


class SpanV1(Head):
    """Compute SQuAD 1.1's logits, [B, S, H] -> SpanLogits; no dropout. squad_utils.py:708-746."""

    pooled: ClassVar[bool] = False

    @nn.compact
    def __call__(self, sequence_BSH: Array, *, deterministic: bool) -> SpanLogits:
        logits_BSC = _outputs(self, sequence_BSH, 2)
        return SpanLogits(logits_BSC[..., 0], logits_BSC[..., 1])


class SpanV2(Head):
    """Compute SQuAD 2.0's logits: the end depends on the start, and a text may have no answer.

    [B, S, H] -> SpanLogProbs given `start_positions_B`, as in training. Without them it returns a
    SpanBeam, as in prediction; then S must be at least BEAM. `p_mask_BS` is 1 where no answer can
    be (None: nowhere). squad_utils.py:1428-1575.
    """

    pooled: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self,
        sequence_BSH: Array,
        p_mask_BS: Array | None = None,
        start_positions_B: Array | None = None,
        *,
        deterministic: bool,
    ) -> SpanLogProbs | SpanBeam:
        parts = (self.config, self.compute, self.lowering)
        start_logits_BS = _StartLogits(*parts, name="start_logits")(sequence_BSH)
        if p_mask_BS is None:
            p_mask_BS = jnp.zeros_like(start_logits_BS)
        start_BS = _masked_log_softmax(start_logits_BS, p_mask_BS)
        answer_class = _AnswerClass(*parts, self.dropout, name="answer_class")
        unanswerable_B = answer_class(sequence_BSH, start_BS, deterministic=deterministic)
        if start_positions_B is None:
            start_log_probs_BK, start_index_BK = jax.lax.top_k(start_BS, BEAM)
        else:
            start_index_BK = start_positions_B[:, None]
        end_logits = _EndLogits(*parts, name="end_logits")
        end_BKS = _masked_log_softmax(end_logits(sequence_BSH, start_index_BK), p_mask_BS[:, None])
        if start_positions_B is not None:
            return SpanLogProbs(start_BS, end_BKS[:, 0], unanswerable_B)
        ends = jax.lax.top_k(end_BKS, BEAM)
        return SpanBeam(start_log_probs_BK, start_index_BK, *ends, unanswerable_B)


class _StartLogits(Part):
    """Compute logits of the start: [B, S, H] -> [B, S]."""

    @nn.compact
    def __call__(self, sequence_BSH: Array) -> Array:
        return _to_logit(self.config, "dense")(sequence_BSH)[..., 0]


class _EndLogits(Part):
    """Compute logits of the end for each given start: [B, S, H], [B, K] -> [B, K, S]."""

    @nn.compact
    def __call__(self, sequence_BSH: Array, start_index_BK: Array) -> Array:
        starts_BKH = jnp.take_along_axis(sequence_BSH, start_index_BK[..., None], axis=1)
        dense_0 = _PairDense(self.config, self.compute, self.lowering, name="dense_0")
        hidden_BKSH = nn.tanh(dense_0(sequence_BSH[:, None], starts_BKH[:, :, None]))
        norm = layer_norm(self, "LayerNorm", dtype="float32")
        return _to_logit(self.config, "dense_1")(norm(hidden_BKSH))[..., 0]


class _AnswerClass(Part):
    """Compute the logit of "no answer" from the mean state of the starts and the first token."""

    dropout: float = 0.1

    @nn.compact
    def __call__(
        self, sequence_BSH: Array, start_log_probs_BS: Array, *, deterministic: bool
    ) -> Array:
        start_BH = jnp.einsum("BSH,BS->BH", sequence_BSH, jnp.exp(start_log_probs_BS))
        dense_0 = _PairDense(self.config, self.compute, self.lowering, name="dense_0")
        hidden_BH = nn.tanh(dense_0(start_BH, sequence_BSH[:, 0]))
        hidden_BH = dropout(self, self.dropout)(hidden_BH, deterministic=deterministic)
        return _to_logit(self.config, "dense_1", use_bias=False)(hidden_BH)[..., 0]


class _PairDense(Part):
    """Apply a dense layer to [x; y], […, H] each, which may have lengths of 1 to be broadcast.

    The kernel's halves are applied separately. For a beam, that is a tenth of the original's
    multiplications, and [x; y] takes no memory.
    """

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        c, dtype = self.config, self.dtype
        kernel = parameter(self, "kernel", initializer(c), (2 * c.hidden_size, c.hidden_size))
        bias_H = parameter(self, "bias", nn.initializers.zeros, (c.hidden_size,))
        of_x, of_y = jnp.split(kernel.astype(dtype), 2)
        return x.astype(dtype) @ of_x + y.astype(dtype) @ of_y + bias_H.astype(dtype)


def _to_logit(config: AlbertConfig, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(1, use_bias, dtype="float32", kernel_init=initializer(config), name=name)


def _masked_log_softmax(logits: Array, mask: Array) -> Array:
    # As in the original. Masked positions get -1e30, so all of them tie and argmax returns the
    # first.
    return jax.nn.log_softmax(logits * (1 - mask) + MASKED * mask)


HEADS: dict[str, type[Head]] = {
    "classification": Classifier,
    "multi_label": Classifier,  # the logits are then independent for each label
    "regression": Regressor,
    "similarity": Similarity,
    "multiple_choice": MultipleChoice,
    "token_classification": TokenClassifier,
    "span_v1": SpanV1,
    "span_v2": SpanV2,
}

PACKABLE = ("classification", "multi_label", "regression")  # kinds whose examples may share rows
EXITABLE = ("classification",)  # kinds that may answer after any pass


class AlbertForTask(AlbertModel):
    """Apply ALBERT with `head`, of a kind of `HEADS`; a kind that needs no pooler has none.

    It maps ids, mask and segments [B, S] (of `SEVERAL_ROWS`: [B, C, S]), and inputs of the head by
    name, to the head's outputs. Rows of a `PACKABLE` kind may have several examples, one after
    another. Then `starts_BP` is where each begins, S in slots without one, and the head returns [B,
    P, …]. With `exits`, the pooler and the head are applied after each of the L passes, and the
    head of an `EXITABLE` kind returns [B, L, C], for packed rows [B, P, L, C].
    """

    kind: str = "classification"
    labels: int = 2
    dropout: float = 0.1
    exits: bool = False

    def setup(self) -> None:
        super().setup()
        self.head = HEADS[self.kind](
            self.config, self.compute, self.lowering, self.labels, self.dropout
        )

    def __call__(
        self,
        input_ids: Array,
        input_mask: Array,
        segment_ids: Array,
        starts_BP: Array | None = None,
        *,
        deterministic: bool = True,
        **head_inputs: Any,
    ) -> Any:
        *rows, length = input_ids.shape
        ids_BS, mask_BS, segments_BS = (
            x.reshape(-1, length) for x in (input_ids, input_mask, segment_ids)
        )
        packing = None if starts_BP is None else Packing.of(starts_BP, mask_BS)
        encoder = self.encode(
            ids_BS,
            mask_BS,
            segments_BS,
            packing,
            deterministic=deterministic,
            collect_layers=self.exits,
        )
        if self.exits:
            each = [packing.first_tokens(x) if packing else x[:, 0] for x in encoder.layers_LBSH]
            pooled = jnp.tanh(self.pooler(jnp.stack(each, axis=-2)))
            return self.head(pooled, deterministic=deterministic)
        hidden = encoder.sequence_BSH
        if self.head.pooled:
            hidden = self.pool(hidden, packing)
        hidden = hidden.reshape(*rows, *hidden.shape[1:])
        if self.head.takes_mask:
            head_inputs["mask_BCS"] = input_mask
        return self.head(hidden, deterministic=deterministic, **head_inputs)

    def sequence(self, input_ids_BS: Array, input_mask_BS: Array, segment_ids_BS: Array) -> Array:
        """Return the last pass's states, without dropout: [B, S] -> [B, S, H]."""
        return self.encode(input_ids_BS, input_mask_BS, segment_ids_BS).sequence_BSH

    def answer(self, sequence_BSH: Array) -> Array:
        """Return the outputs of a pooled head for a pass's states, without dropout."""
        return self.head(self.pool(sequence_BSH), deterministic=True)
