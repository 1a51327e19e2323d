# SPDX-License-Identifier: Apache-2.0
"""Not a test: transformers' ALBERT in PyTorch and Flax, as the comparisons train it.

Both compute logits at every position, as they do for their users, in masked-LM and sentence-order
loss. Needs torch and transformers below 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers

from albert_jax.config.model import MODELS

RATE = 1e-4  # learning rate of all contenders
Batch = dict[str, Any]


def peer_config(model: str = "base-v2") -> Any:
    """A v2 model for transformers, with its fastest attention."""
    base = MODELS[model]
    return transformers.AlbertConfig(
        vocab_size=base.vocab_size,
        embedding_size=base.embedding_size,
        hidden_size=base.hidden_size,
        num_hidden_layers=base.num_hidden_layers,
        num_attention_heads=base.num_attention_heads,
        intermediate_size=base.intermediate_size,
        hidden_act="gelu_new",
        attn_implementation="sdpa",
    )


def labels_everywhere(batch: dict[str, np.ndarray]) -> np.ndarray:
    """-100 but at the positions to predict."""
    labels_BS = np.full(batch["input_ids"].shape, -100, np.int32)
    np.put_along_axis(labels_BS, batch["masked_lm_positions"], batch["masked_lm_ids"], axis=1)
    return labels_BS


def peer_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch of ours by the names of transformers' arguments."""
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["input_mask"],
        "token_type_ids": batch["segment_ids"],
        "labels": labels_everywhere(batch),
        "sentence_order_label": batch["sentence_order_labels"],
    }


def pytorch_step(
    config: Any,
    batch: dict[str, np.ndarray],
    device: str = "cpu",
    *,
    compiled: bool = False,
    autocast: bool = False,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """An update by AdamW and a forward pass, with `autocast` to bfloat16; not waited for on a
    GPU."""
    model = transformers.AlbertForPreTraining(config).train().to(device)
    on_gpu = device != "cpu"
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=on_gpu)
    inputs = {name: torch.from_numpy(x).long().to(device) for name, x in peer_batch(batch).items()}
    call = torch.compile(model) if compiled else model

    def output() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return call(**inputs)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        output().loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def forward() -> None:
        with torch.inference_mode():
            output()

    return train, forward


def flax_step(
    module: Any, tx: optax.GradientTransformation
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """step(params, state, batch) -> (params, state, loss) and loss(params, batch), without dropout,
    of a FlaxAlbertForPreTraining's module; the batch is `peer_batch`'s."""

    def loss(params: Any, batch: Batch) -> Any:
        ids_BS, labels_BS = batch["input_ids"], batch["labels"]
        output = module.apply(
            {"params": params},
            ids_BS,
            batch["attention_mask"],
            batch["token_type_ids"],
            jnp.broadcast_to(jnp.arange(ids_BS.shape[1]), ids_BS.shape),
            deterministic=True,
        )
        each_BS = optax.softmax_cross_entropy_with_integer_labels(
            output.prediction_logits.astype(jnp.float32), jnp.maximum(labels_BS, 0)
        )
        weights_BS = labels_BS >= 0
        order_B = optax.softmax_cross_entropy_with_integer_labels(
            output.sop_logits.astype(jnp.float32), batch["sentence_order_label"]
        )
        return (each_BS * weights_BS).sum() / weights_BS.sum() + order_B.mean()

    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, Any]:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return step, loss
