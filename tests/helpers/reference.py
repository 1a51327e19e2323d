# SPDX-License-Identifier: Apache-2.0
"""ALBERT's forward pass, LAMB and AdamW in NumPy float64, written from the paper and the original's
formulas with plain loops: the peer that the package's code is held against. Parameters come under
TF1 names."""

from __future__ import annotations

import math
import re

import numpy as np

from albert_jax.config.model import AlbertConfig


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, v, name):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * v[name + "/gamma"] + v[name + "/beta"]


def dense(x, v, name):
    return x @ v[name + "/kernel"] + v[name + "/bias"]


def forward(variables, config: AlbertConfig, ids, mask, segments):
    """Every block's output [L*inner][B, S, H], the embeddings and the pooled output, without
    dropout."""
    v = {name: np.asarray(x, np.float64) for name, x in variables.items()}
    x = (
        v["bert/embeddings/word_embeddings"][ids]
        + v["bert/embeddings/token_type_embeddings"][segments]
    )
    x = x + v["bert/embeddings/position_embeddings"][: ids.shape[1]]
    embeddings = x = layer_norm(x, v, "bert/embeddings/LayerNorm")
    x = dense(x, v, "bert/encoder/embedding_hidden_mapping_in")
    layers = []
    for i in range(config.num_hidden_layers):
        group = int(i / config.num_hidden_layers * config.num_hidden_groups)
        for inner in range(config.inner_group_num):
            scope = f"bert/encoder/transformer/group_{group}/inner_group_{inner}"
            x = block(x, mask, v, scope, config.num_attention_heads)
            layers.append(x)
    pooled = np.tanh(dense(x[:, 0], v, "bert/pooler/dense"))
    return embeddings, layers, pooled


def block(x, mask, v, scope, heads):
    size = x.shape[-1] // heads
    q, k, val = (dense(x, v, f"{scope}/attention_1/self/{n}") for n in ("query", "key", "value"))
    context = np.zeros_like(x)
    for b in range(x.shape[0]):
        for n in range(heads):
            part = slice(n * size, (n + 1) * size)
            logits = q[b, :, part] @ k[b, :, part].T / math.sqrt(size) + (1 - mask[b]) * -10000.0
            context[b, :, part] = softmax(logits) @ val[b, :, part]
    x = layer_norm(
        x + dense(context, v, f"{scope}/attention_1/output/dense"), v, f"{scope}/LayerNorm"
    )
    hidden = gelu_tanh(dense(x, v, f"{scope}/ffn_1/intermediate/dense"))
    return layer_norm(
        x + dense(hidden, v, f"{scope}/ffn_1/intermediate/output/dense"), v, f"{scope}/LayerNorm_1"
    )


def masked_lm_logits(variables, sequence, positions):
    v = {name: np.asarray(x, np.float64) for name, x in variables.items()}
    gathered = np.take_along_axis(sequence, positions[..., None], axis=1)
    x = gelu_tanh(dense(gathered, v, "cls/predictions/transform/dense"))
    x = layer_norm(x, v, "cls/predictions/transform/LayerNorm")
    return x @ v["bert/embeddings/word_embeddings"].T + v["cls/predictions/output_bias"]


def sentence_order_logits(variables, pooled):
    return (
        pooled @ variables["cls/seq_relationship/output_weights"].T.astype(np.float64)
        + (variables["cls/seq_relationship/output_bias"])
    )


def optimizer_step(w, m, v, g, name, rate, *, adapt, decay=0.01, b1=0.9, b2=0.999, eps=1e-6):
    """One LAMB (`adapt`) or AdamW update of one variable; returns its new (w, m, v)."""
    excluded = re.search("LayerNorm|layer_norm|bias", name)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    u = m / (np.sqrt(v) + eps)
    ratio = 1.0
    if not excluded:
        u = u + decay * w
        wn, un = np.linalg.norm(w), np.linalg.norm(u)
        if adapt and wn > 0 and un > 0:
            ratio = wn / un
    return w - rate * ratio * u, m, v
