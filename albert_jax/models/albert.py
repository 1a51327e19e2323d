# SPDX-License-Identifier: Apache-2.0
"""Define ALBERT as linen modules.

The encoder scans ONE shared layer, so that depth costs time and never parameters. Letters: B batch,
S sequence, E embedding_size, H hidden_size, N heads, D head size, I intermediate_size, V
vocabulary, P masked positions or examples of a packed row, L layers. Parameters, LayerNorm, softmax
and logits are float32; matmuls and activations run in `ComputeConfig.dtype`. Parameter names are
those of the conversion table, `checkpoint/convert/tf_names.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax

from albert_jax.config.model import ComputeConfig
from albert_jax.models.attention import attend
from albert_jax.models.attention_plain import Heads, padding, probs
from albert_jax.models.dropout import RowDropout, row_seeds
from albert_jax.models.layers import (
    Part,
    activation,
    add_bias,
    dense,
    dropout,
    initializer,
    layer_norm,
)
from albert_jax.models.lowering import Lowering
from albert_jax.models.packing import Packing
from albert_jax.models.parameter import parameter

REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "full": None,  # keep only each layer's input
    # Keep matmul outputs, but not attention's, which grow with the square of the length.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class EncoderOutput:
    """Hold the encoder's outputs.

    `layers_LBSH` has an entry for each block of attention and feed-forward, or is None. `pooled_BH`
    is None without a pooler, and [B, P, H] for packed rows.
    """

    embeddings_BSE: Array
    sequence_BSH: Array
    pooled_BH: Array | None
    layers_LBSH: Array | None


@flax.struct.dataclass
class PretrainingOutput:
    """Hold the encoder's output and float32 logits of the two pretraining heads.

    The logits of an absent head are None.
    """

    encoder: EncoderOutput
    masked_lm_logits_BPV: Array | None
    sentence_order_logits_BC: Array | None


class Embeddings(Part):
    """Add word, segment and position embeddings; LayerNorm and dropout: [B, S] ids -> [B, S, E].

    `positions_BS` are the tokens' positions in their examples; None, in their rows.
    modeling.py:191-222.
    """

    def setup(self) -> None:
        c, init = self.config, initializer(self.config)
        self.word_embeddings = parameter(
            self, "word_embeddings", init, (c.vocab_size, c.embedding_size)
        )
        self.token_type_embeddings = parameter(
            self, "token_type_embeddings", init, (c.type_vocab_size, c.embedding_size)
        )
        self.position_embeddings = parameter(
            self, "position_embeddings", init, (c.max_position_embeddings, c.embedding_size)
        )
        self.LayerNorm = layer_norm(self)
        self.dropout = dropout(self)

    def __call__(
        self,
        input_ids_BS: Array,
        segment_ids_BS: Array,
        positions_BS: Array | None = None,
        *,
        deterministic: bool,
    ) -> Array:
        sum_BSE = self.word_embeddings[input_ids_BS]
        # A one-hot matmul, as in the original: a gather's gradient would scatter B*S rows into two.
        segments_BSC = jax.nn.one_hot(segment_ids_BS, self.config.type_vocab_size)
        sum_BSE += jnp.einsum("BSC,CE->BSE", segments_BSC, self.token_type_embeddings)
        if positions_BS is None:
            sum_BSE += self.position_embeddings[: input_ids_BS.shape[1]]
        else:
            sum_BSE += self.position_embeddings[positions_BS]
        return self.dropout(self.LayerNorm(sum_BSE), deterministic=deterministic)


class Attention(Part):
    """Apply self-attention and its output projection: [B, S, H] -> [B, S, H].

    The probabilities [B, N, S, S] before dropout are the intermediate `probs_BNFT`.
    modeling.py:853-996.
    """

    @nn.compact
    def __call__(
        self,
        x_BSH: Array,
        mask_BS: Array,
        pack_ids_BS: Array | None = None,
        *,
        deterministic: bool,
    ) -> Array:
        c = self.config

        def heads(name: str) -> Array:
            projected_BSH = dense(self, c.hidden_size, name)(x_BSH)
            return projected_BSH.reshape(*x_BSH.shape[:2], c.num_attention_heads, c.head_size)

        projected = Heads(heads("query"), heads("key"), heads("value"))
        drawn, rate = None, c.attention_probs_dropout_prob
        if rate > 0 and not deterministic:
            key = self.make_rng("dropout")
            drawn = RowDropout(rate, row_seeds(key, len(x_BSH), self.lowering.axis_name))
        context_BSND = attend(
            projected,
            mask_BS,
            pack_ids_BT=pack_ids_BS,
            dropout=drawn,
            compute=self.compute,
            lowering=self.lowering,
        )
        if self.is_mutable_collection("intermediates"):
            # Computed for this alone: kernels keep no probabilities.
            probs_BNFT = probs(*projected[:2], padding(mask_BS, pack_ids_BS))
            self.sow("intermediates", "probs_BNFT", probs_BNFT)
        return dense(self, c.hidden_size, "output")(context_BSND.reshape(x_BSH.shape))


class Block(Part):
    """Apply attention and feed-forward, each with dropout, residual and post-LayerNorm.

    modeling.py:960-1016.
    """

    @nn.compact
    def __call__(
        self,
        x_BSH: Array,
        mask_BS: Array,
        pack_ids_BS: Array | None = None,
        *,
        deterministic: bool,
    ) -> Array:
        c, drop = self.config, dropout(self)
        attention = Attention(c, self.compute, self.lowering, name="attention")
        attended_BSH = drop(
            attention(x_BSH, mask_BS, pack_ids_BS, deterministic=deterministic), deterministic
        )
        x_BSH = layer_norm(self, "LayerNorm")(attended_BSH + x_BSH)
        hidden_BSI = activation(self)(dense(self, c.intermediate_size, "ffn")(x_BSH))
        # transformers' PyTorch code leaves this dropout out; the original has it
        # (modeling.py:1013).
        output = dense(self, c.hidden_size, "ffn_output", narrows=True)
        ffn_BSH = drop(output(hidden_BSI), deterministic)
        return layer_norm(self, "LayerNorm_1")(ffn_BSH + x_BSH)


class Layer(Part):
    """Apply the shared layer, one turn of the scan: `inner_group_num` blocks.

    Returns (carry, every block's output or None).
    """

    deterministic: bool = True
    collect: bool = False

    @nn.compact
    def __call__(
        self, x_BSH: Array, mask_BS: Array, pack_ids_BS: Array | None
    ) -> tuple[Array, Array | None]:
        outputs = []
        for j in range(self.config.inner_group_num):
            block = Block(self.config, self.compute, self.lowering, name=f"inner_group_{j}")
            x_BSH = block(x_BSH, mask_BS, pack_ids_BS, deterministic=self.deterministic)
            outputs.append(x_BSH)
        return x_BSH, jnp.stack(outputs) if self.collect else None


class Encoder(Part):
    """Apply the embedding projection and the layers.

    One scan over ONE parameter set runs each group of layers: [B, S, E] -> [B, S, H] and, with
    `collect`, every block's output [L, B, S, H]. `pack_ids_BS` is as in `attention.attend`. The
    first block's input is the intermediate `projected_BSH`. modeling.py:1019-1117.
    """

    @nn.compact
    def __call__(
        self,
        embeddings_BSE: Array,
        mask_BS: Array,
        pack_ids_BS: Array | None = None,
        *,
        deterministic: bool,
        collect: bool,
    ) -> tuple[Array, Array | None]:
        c, x_BSH = self.config, embeddings_BSE
        # The original has no projection if E == H. transformers always has one, which may not be
        # the identity.
        name = "embedding_hidden_mapping_in"
        if c.embedding_size != c.hidden_size or self.has_variable("params", name):
            x_BSH = dense(self, c.hidden_size, name)(x_BSH)
        self.sow("intermediates", "projected_BSH", x_BSH)
        drops = max(c.hidden_dropout_prob, c.attention_probs_dropout_prob) > 0 and not deterministic
        # New parameters come from the first tracing. Dropout needs no second one, but its choices
        # depend on the number of tracings, and a resumed run must make the same choices.
        traced_twice = self.is_initializing() or drops
        collected = []
        for group, length in enumerate(c.group_lengths):
            if not length:  # by rounding; the original then makes no variables for the group
                continue
            stack = _repeated(length, self.compute, self.lowering, traced_twice=traced_twice)
            layers = stack(
                c, self.compute, self.lowering, deterministic, collect, name=f"group_{group}"
            )
            x_BSH, blocks = layers(x_BSH, mask_BS, pack_ids_BS)
            collected.append(blocks)
        if not collect:
            return x_BSH, None
        # Not reshape(-1, …): a batch of no rows leaves nothing to divide.
        return x_BSH, jnp.concatenate([jax.lax.collapse(blocks, 0, 2) for blocks in collected])


def _repeated(
    length: int, compute: ComputeConfig, lowering: Lowering, *, traced_twice: bool
) -> type[Layer]:
    """Return `Layer` applied `length` times with one parameter set.

    The layers are unrolled and rematerialised as configured. With `traced_twice`, flax traces the
    layer once more beforehand.
    """
    unroll = min(compute.scan_unroll or _default_unroll(length, compute, lowering), length)
    layer: Any = Layer
    if compute.remat != "none":
        # Without the loop, unrolled layers are adjacent, and the compiler merges the recomputation
        # with the first computation. It cannot if each layer is in a turn of its own loop.
        layer = nn.remat(layer, prevent_cse=unroll > 1, policy=REMAT_POLICIES[compute.remat])
    return nn.scan(
        layer,
        variable_broadcast="params",
        variable_axes={"intermediates": 0},
        split_rngs={"params": False, "dropout": True},
        in_axes=nn.broadcast,
        length=length,
        unroll=unroll,
        check_constancy_invariants=traced_twice,
    )


def _default_unroll(length: int, compute: ComputeConfig, lowering: Lowering) -> int:
    """Return the number of layers to unroll if `scan_unroll` is 0."""
    # XLA's compiler for CPUs removes the barrier before recomputed unrolled layers and schedules
    # them early: recomputing then costs time and saves no memory.
    no_use = compute.remat != "none" and lowering.platform == "cpu"
    return length if lowering.unroll and not no_use else 1


class MaskedLMHead(Part):
    """Map [B, P, H] to float32 logits [B, P, V] through the tied word embeddings.

    A parameter `word_embeddings` replaces them: their copy, converted beforehand.
    run_pretraining.py:292-336.
    """

    @nn.compact
    def __call__(self, hidden_BPH: Array, word_embeddings_VE: Array) -> Array:
        c = self.config
        x_BPE = activation(self)(dense(self, c.embedding_size, "transform")(hidden_BPH))
        x_BPE = layer_norm(self, "LayerNorm")(x_BPE)
        if self.has_variable("params", "word_embeddings"):
            word_embeddings_VE = self.get_variable("params", "word_embeddings")
        logits_BPV = jnp.einsum(
            "BPE,VE->BPV",
            x_BPE,
            word_embeddings_VE.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        bias_V = parameter(self, "output_bias", nn.initializers.zeros, (c.vocab_size,))
        return add_bias(self, logits_BPV, bias_V)


class SentenceOrderHead(Part):
    """Map [B, H] to float32 logits [B, 2]; class 0 is the right order, 1 is swapped.

    run_pretraining.py:339-361.
    """

    @nn.compact
    def __call__(self, pooled_BH: Array) -> Array:
        shape = (2, self.config.hidden_size)
        weights_CH = parameter(self, "output_weights", initializer(self.config), shape)
        bias_C = parameter(self, "output_bias", nn.initializers.zeros, (2,))
        return jnp.einsum("BH,CH->BC", pooled_BH.astype(jnp.float32), weights_CH) + bias_C


class AlbertModel(Part):
    """Apply embeddings, encoder and pooler: ids, mask and segments [B, S] -> EncoderOutput.

    With `packing`, rows have several examples. Each attends to itself alone, and its first token is
    pooled. A subclass that calls `encode` alone has no parameters of the pooler.
    """

    def setup(self) -> None:
        parts = (self.config, self.compute, self.lowering)
        self.embeddings = Embeddings(*parts)
        self.encoder = Encoder(*parts)
        self.pooler = dense(self, self.config.hidden_size)

    def __call__(
        self,
        input_ids_BS: Array,
        input_mask_BS: Array,
        segment_ids_BS: Array,
        packing: Packing | None = None,
        *,
        deterministic: bool = True,
        collect_layers: bool = False,
    ) -> EncoderOutput:
        output = self.encode(
            input_ids_BS,
            input_mask_BS,
            segment_ids_BS,
            packing,
            deterministic=deterministic,
            collect_layers=collect_layers,
        )
        return output.replace(pooled_BH=self.pool(output.sequence_BSH, packing))

    @nn.nowrap  # operations keep the names that they have in `__call__`
    def encode(
        self,
        input_ids_BS: Array,
        input_mask_BS: Array,
        segment_ids_BS: Array,
        packing: Packing | None = None,
        *,
        deterministic: bool = True,
        collect_layers: bool = False,
    ) -> EncoderOutput:
        """Return the output without the pooler's part, which is None."""
        embeddings_BSE = self.embeddings(
            input_ids_BS,
            segment_ids_BS,
            packing.positions_BS if packing else None,
            deterministic=deterministic,
        )
        sequence_BSH, layers_LBSH = self.encoder(
            embeddings_BSE,
            input_mask_BS,
            packing.ids_BS if packing else None,
            deterministic=deterministic,
            collect=collect_layers,
        )
        return EncoderOutput(embeddings_BSE, sequence_BSH, None, layers_LBSH)

    @nn.nowrap
    def pool(self, sequence_BSH: Array, packing: Packing | None = None) -> Array:
        """Return the pooled first tokens, [B, H]; of packed rows those of each example."""
        first_BH = packing.first_tokens(sequence_BSH) if packing else sequence_BSH[:, 0]
        return jnp.tanh(self.pooler(first_BH))


class AlbertForPretraining(AlbertModel):
    """Apply ALBERT with its two pretraining heads.

    The masked-LM head sees `masked_lm_positions_BP` only (None: all positions). `absent` names the
    parts without weights, of pooler, predictions and seq_relationship; outputs that need them are
    None.
    """

    absent: frozenset[str] = frozenset()

    def setup(self) -> None:
        super().setup()
        parts = (self.config, self.compute, self.lowering)
        self.predictions = MaskedLMHead(*parts)
        self.seq_relationship = SentenceOrderHead(*parts)

    def __call__(
        self,
        input_ids_BS: Array,
        input_mask_BS: Array,
        segment_ids_BS: Array,
        masked_lm_positions_BP: Array | None = None,
        *,
        deterministic: bool = True,
        collect_layers: bool = False,
    ) -> PretrainingOutput:
        encoder = self.encode(
            input_ids_BS,
            input_mask_BS,
            segment_ids_BS,
            deterministic=deterministic,
            collect_layers=collect_layers,
        )
        if "pooler" not in self.absent:
            encoder = encoder.replace(pooled_BH=self.pool(encoder.sequence_BSH))
        masked_lm_logits_BPV = sentence_order_logits_BC = None
        if "predictions" not in self.absent:
            hidden_BPH = encoder.sequence_BSH
            if masked_lm_positions_BP is not None:
                hidden_BPH = _at(hidden_BPH, masked_lm_positions_BP)
            masked_lm_logits_BPV = self.predictions(hidden_BPH, self.embeddings.word_embeddings)
        if not self.absent & {"pooler", "seq_relationship"}:
            sentence_order_logits_BC = self.seq_relationship(encoder.pooled_BH)
        return PretrainingOutput(encoder, masked_lm_logits_BPV, sentence_order_logits_BC)


def _at(x_BSH: Array, positions_BP: Array) -> Array:
    """Return each row's tokens at `positions_BP`, [B, P, H]; NaN for a position outside the row.

    They are taken from the batch's tokens in one row, as in the original's gather_indexes. For the
    gradient of take_along_axis, XLA transposes the activations of all layers on a GPU.
    """
    rows, length, width = x_BSH.shape
    is_token_BP = (positions_BP >= 0) & (positions_BP < length)
    tokens_BP = positions_BP + length * jnp.arange(rows)[:, None]
    # Filled here: jnp's and lax's filling refuse a dimension that an int32 does not count, and a
    # batch that large is for its memory to refuse.
    x_BPH = lax.gather(
        x_BSH.reshape(-1, width),
        jnp.where(is_token_BP, tokens_BP, 0)[..., None],
        lax.GatherDimensionNumbers((2,), collapsed_slice_dims=(0,), start_index_map=(0,)),
        slice_sizes=(1, width),
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return jnp.where(is_token_BP[..., None], x_BPH, jnp.nan)


def init_params(model: Part, key: Array) -> Any:
    """Return random parameters of `model`, initialised as in the original.

    Kernels have a truncated normal distribution, biases are zero, LayerNorm is the identity.
    """
    ids_BS = jnp.zeros((1, 8), jnp.int32)
    # Any device, however short the row.
    model = model.clone(compute=ComputeConfig(), lowering=Lowering())
    return jax.jit(model.init)(key, ids_BS, jnp.ones_like(ids_BS), ids_BS)["params"]
