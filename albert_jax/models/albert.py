# SPDX-License-Identifier: Apache-2.0
"""ALBERT as linen modules: the encoder scans ONE shared layer, so depth costs time and never
parameters.

Letters: B batch, S sequence, E embedding_size, H hidden_size, N heads, D head size, I
intermediate_size, V vocabulary, P masked positions, L layers. Parameters, LayerNorm, softmax and
logits are float32; matmuls and activations run in `ComputeConfig.dtype`. Parameter names are those
of the conversion table, `formats/tf_names.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax

from albert_jax.config.model import AlbertConfig, ComputeConfig
from albert_jax.models.attention import attend
from albert_jax.models.dropout import Dropout
from albert_jax.models.layers import Dense, LayerNorm, add_bias, gelu
from albert_jax.models.lowering import named_target

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,  # Google's "gelu", modeling.py:299-312
    "gelu_erf": partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}

REMAT_POLICIES: dict[str, Any] = {
    "full": None,  # keep only each layer's input
    # Keep matmul outputs, but not attention's, which grow with the square of the length.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class EncoderOutput:
    """What the encoder computes; `layers_LBSH` has one entry for each attention + feed-forward
    block, or is None."""

    embeddings_BSE: Array
    sequence_BSH: Array
    pooled_BH: Array
    layers_LBSH: Array | None


@flax.struct.dataclass
class PretrainingOutput:
    """The encoder's output with float32 logits of the two pretraining heads."""

    encoder: EncoderOutput
    masked_lm_logits_BPV: Array
    sentence_order_logits_BC: Array


def _init(config: AlbertConfig):
    # Cut at two sigma and not rescaled, as tf.truncated_normal_initializer.
    return nn.initializers.truncated_normal(config.initializer_range)


def _dense(features: int, config: AlbertConfig, compute: ComputeConfig, name: str) -> Dense:
    return Dense(features, dtype=compute.dtype, kernel_init=_init(config), name=name)


class Embeddings(nn.Module):
    """Word + segment + position embeddings, LayerNorm, dropout: [B, S] ids -> [B, S, E].

    `positions_BS` are each token's place in its example; None: in its row. modeling.py:191-222.
    """

    config: AlbertConfig
    compute: ComputeConfig

    def setup(self) -> None:
        c = self.config
        self.word_embeddings = self.param(
            "word_embeddings", _init(c), (c.vocab_size, c.embedding_size)
        )
        self.token_type_embeddings = self.param(
            "token_type_embeddings", _init(c), (c.type_vocab_size, c.embedding_size)
        )
        self.position_embeddings = self.param(
            "position_embeddings", _init(c), (c.max_position_embeddings, c.embedding_size)
        )
        self.LayerNorm = LayerNorm(c.layer_norm_eps, self.compute.dtype)
        self.dropout = Dropout(c.hidden_dropout_prob)

    def __call__(
        self,
        input_ids_BS: Array,
        segment_ids_BS: Array,
        positions_BS: Array | None = None,
        *,
        deterministic: bool,
    ) -> Array:
        sum_BSE = self.word_embeddings[input_ids_BS]
        # A one-hot matmul, as the original: a gather's gradient would scatter B*S rows into two.
        segments_BSC = jax.nn.one_hot(segment_ids_BS, self.config.type_vocab_size)
        sum_BSE += jnp.einsum("BSC,CE->BSE", segments_BSC, self.token_type_embeddings)
        if positions_BS is None:
            sum_BSE += self.position_embeddings[: input_ids_BS.shape[1]]
        else:
            sum_BSE += self.position_embeddings[positions_BS]
        return self.dropout(self.LayerNorm(sum_BSE), deterministic=deterministic)


class Attention(nn.Module):
    """Self-attention with its output projection: [B, S, H] -> [B, S, H]. modeling.py:853-996."""

    config: AlbertConfig
    compute: ComputeConfig

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
            projected_BSH = _dense(c.hidden_size, c, self.compute, name)(x_BSH)
            return projected_BSH.reshape(*x_BSH.shape[:2], c.num_attention_heads, c.head_size)

        dropping = not deterministic and c.attention_probs_dropout_prob > 0
        context_BSND = attend(
            heads("query"),
            heads("key"),
            heads("value"),
            mask_BS,
            pack_ids_BT=pack_ids_BS,
            dropout_rate=c.attention_probs_dropout_prob,
            dropout_key=self.make_rng("dropout") if dropping else None,
            implementation=self.compute.attention,
        )
        return _dense(c.hidden_size, c, self.compute, "output")(context_BSND.reshape(x_BSH.shape))


class Block(nn.Module):
    """Attention and feed-forward, each with dropout, residual and post-LayerNorm.
    modeling.py:960-1016."""

    config: AlbertConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BSH: Array,
        mask_BS: Array,
        pack_ids_BS: Array | None = None,
        *,
        deterministic: bool,
    ) -> Array:
        c, dtype = self.config, self.compute.dtype
        dropout = Dropout(c.hidden_dropout_prob, deterministic=deterministic)
        attended_BSH = Attention(c, self.compute, name="attention")(
            x_BSH, mask_BS, pack_ids_BS, deterministic=deterministic
        )
        x_BSH = LayerNorm(c.layer_norm_eps, dtype, name="LayerNorm")(dropout(attended_BSH) + x_BSH)
        hidden_BSI = ACTIVATIONS[c.hidden_act](
            _dense(c.intermediate_size, c, self.compute, "ffn")(x_BSH)
        )
        # transformers' PyTorch code leaves this dropout out; the original has it
        # (modeling.py:1013).
        ffn_BSH = dropout(_dense(c.hidden_size, c, self.compute, "ffn_output")(hidden_BSI))
        return LayerNorm(c.layer_norm_eps, dtype, name="LayerNorm_1")(ffn_BSH + x_BSH)


class Layer(nn.Module):
    """The shared layer, one turn of the scan: `inner_group_num` blocks; returns (carry, every
    block's output or None)."""

    config: AlbertConfig
    compute: ComputeConfig
    deterministic: bool
    collect: bool

    @nn.compact
    def __call__(
        self, x_BSH: Array, mask_BS: Array, pack_ids_BS: Array | None
    ) -> tuple[Array, Array | None]:
        outputs = []
        for j in range(self.config.inner_group_num):
            block = Block(self.config, self.compute, name=f"inner_group_{j}")
            x_BSH = block(x_BSH, mask_BS, pack_ids_BS, deterministic=self.deterministic)
            outputs.append(x_BSH)
        return x_BSH, jnp.stack(outputs) if self.collect else None


class Encoder(nn.Module):
    """The embedding projection and the stack: one scan over ONE parameter set for each group of
    layers.

    [B, S, E] -> [B, S, H] and, with `collect`, every block's output [L, B, S, H]. `pack_ids_BS` as
    in `attention.attend`. modeling.py:1019-1117.
    """

    config: AlbertConfig
    compute: ComputeConfig

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
        # The original has no projection where E == H; transformers always has, and may have brought
        # one that is not the identity.
        name = "embedding_hidden_mapping_in"
        if c.embedding_size != c.hidden_size or self.has_variable("params", name):
            x_BSH = _dense(c.hidden_size, c, self.compute, name)(x_BSH)
        collected = []
        for group, length in enumerate(c.group_lengths):
            if not length:  # by rounding; the original then makes no variables for the group
                continue
            unroll = min(self.compute.scan_unroll or _unroll(length, self.compute), length)
            layer = Layer
            if self.compute.remat != "none":
                # Else the compiler would find what is recomputed in what was computed, and keep it;
                # it cannot where each is in a turn of a loop.
                prevent_cse = unroll > 1
                policy = REMAT_POLICIES[self.compute.remat]
                layer = nn.remat(layer, prevent_cse=prevent_cse, policy=policy)
            scan = nn.scan(
                layer,
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                in_axes=nn.broadcast,
                length=length,
                unroll=unroll,
            )
            stack = scan(c, self.compute, deterministic, collect, name=f"group_{group}")
            x_BSH, blocks = stack(x_BSH, mask_BS, pack_ids_BS)
            collected.append(blocks)
        if not collect:
            return x_BSH, None
        # Not reshape(-1, …): a batch of no rows leaves nothing to divide.
        layers = [jax.lax.collapse(blocks, 0, 2) for blocks in collected]
        return x_BSH, jnp.concatenate(layers)


def _unroll(length: int, compute: ComputeConfig) -> int:
    """Layers to unroll where nothing is said: all in a step that is placed on devices, whose
    compilers then work across layers and copy no residuals; else one."""
    target = named_target()
    if target is None:
        return 1
    # XLA's compiler for CPUs drops the barrier behind which unrolled layers are computed again and
    # schedules them at once: the time is spent and no memory saved.
    return 1 if compute.remat != "none" and target.platform == "cpu" else length


class MaskedLMHead(nn.Module):
    """[B, P, H] -> float32 logits [B, P, V] through the tied word embeddings.
    run_pretraining.py:292-336."""

    config: AlbertConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, hidden_BPH: Array, word_embeddings_VE: Array) -> Array:
        c = self.config
        x_BPE = ACTIVATIONS[c.hidden_act](
            _dense(c.embedding_size, c, self.compute, "transform")(hidden_BPH)
        )
        x_BPE = LayerNorm(c.layer_norm_eps, self.compute.dtype, name="LayerNorm")(x_BPE)
        logits_BPV = jnp.einsum(
            "BPE,VE->BPV",
            x_BPE,
            word_embeddings_VE.astype(self.compute.dtype),
            preferred_element_type=jnp.float32,
        )
        bias_V = self.param("output_bias", nn.initializers.zeros, (c.vocab_size,))
        return add_bias(logits_BPV, bias_V)


class SentenceOrderHead(nn.Module):
    """[B, H] -> float32 logits [B, 2]; class 0 is the right order, 1 swapped.
    run_pretraining.py:339-361."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, pooled_BH: Array) -> Array:
        weights_CH = self.param("output_weights", _init(self.config), (2, self.config.hidden_size))
        bias_C = self.param("output_bias", nn.initializers.zeros, (2,))
        return jnp.einsum("BH,CH->BC", pooled_BH.astype(jnp.float32), weights_CH) + bias_C


class AlbertModel(nn.Module):
    """Embeddings, encoder and pooler: ids, mask and segments [B, S] -> EncoderOutput."""

    config: AlbertConfig
    compute: ComputeConfig = ComputeConfig()

    def setup(self) -> None:
        c = self.config
        self.embeddings = Embeddings(c, self.compute)
        self.encoder = Encoder(c, self.compute)
        self.pooler = _dense(c.hidden_size, c, self.compute, "pooler")

    def __call__(
        self,
        input_ids_BS: Array,
        input_mask_BS: Array,
        segment_ids_BS: Array,
        *,
        deterministic: bool = True,
        collect_layers: bool = False,
    ) -> EncoderOutput:
        embeddings_BSE = self.embeddings(input_ids_BS, segment_ids_BS, deterministic=deterministic)
        sequence_BSH, layers_LBSH = self.encoder(
            embeddings_BSE, input_mask_BS, deterministic=deterministic, collect=collect_layers
        )
        pooled_BH = jnp.tanh(self.pooler(sequence_BSH[:, 0]))
        return EncoderOutput(embeddings_BSE, sequence_BSH, pooled_BH, layers_LBSH)


class AlbertForPretraining(AlbertModel):
    """ALBERT with its two pretraining heads, the masked-LM head on `masked_lm_positions_BP` only
    (None: everywhere)."""

    def setup(self) -> None:
        super().setup()
        self.predictions = MaskedLMHead(self.config, self.compute)
        self.seq_relationship = SentenceOrderHead(self.config)

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
        encoder = super().__call__(
            input_ids_BS,
            input_mask_BS,
            segment_ids_BS,
            deterministic=deterministic,
            collect_layers=collect_layers,
        )
        hidden_BPH = encoder.sequence_BSH
        if masked_lm_positions_BP is not None:
            hidden_BPH = _at(hidden_BPH, masked_lm_positions_BP)
        return PretrainingOutput(
            encoder,
            self.predictions(hidden_BPH, self.embeddings.word_embeddings),
            self.seq_relationship(encoder.pooled_BH),
        )


def _at(x_BSH: Array, positions_BP: Array) -> Array:
    """Each row's tokens at `positions_BP`, [B, P, H]; NaN where there is none.

    Out of the batch's tokens in one row, as the original's gather_indexes: take_along_axis has a
    gradient for which XLA transposes the activations of all layers on a GPU.
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


def init_params(model: nn.Module, key: Array) -> Any:
    """Random parameters of `model`, as the original initialises: truncated normal, zero biases,
    unit LayerNorm."""
    ids_BS = jnp.zeros((1, 8), jnp.int32)
    model = model.clone(compute=ComputeConfig())  # any device, however short the row
    return jax.jit(model.init)(key, ids_BS, jnp.ones_like(ids_BS), ids_BS)["params"]
