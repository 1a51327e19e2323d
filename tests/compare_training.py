# SPDX-License-Identifier: Apache-2.0
"""Not a test: step and forward time beside transformers' PyTorch and Flax models, in one process.

python -m tests.compare_training --batch-size 8 --sequence 128 --rounds 5

All train a base-v2 model with random weights, in float32, on the same batch without padding, with
masked-LM and sentence-order loss and AdamW. The peers compute logits at every position, as they do
for their users. In each round all contenders make one step, one after the other on the same
threads; compiling and warming up is left out. A matmul of 2048 in each framework says what the
cores give meanwhile.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
import tyro

from albert_jax.benchmark_work import made_up_batch
from albert_jax.config import (
    MODELS,
    AlbertConfig,
    ComputeConfig,
    ExamplesConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)
from albert_jax.flops import train_flops_per_sequence
from albert_jax.host_memory import keep_freed_memory
from albert_jax.parallel import local_devices, make_placement
from albert_jax.pretrain_step import make_pretrain_step
from albert_jax.step import make_eval_step
from tests.compare_inference import peer_config

RATE = 1e-4
Calls = dict[str, Callable[[], Any]]


def ours(config: PretrainConfig, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The very step that `pretrain` runs, and its forward pass."""
    placement = make_placement("jit", local_devices(1))
    made = make_pretrain_step(config, placement.axis_name)
    step = placement.compile(made.step)
    live = [placement.put_state(made.random_state(0))]
    placed = placement.put_batch(batch)
    evaluate = jax.jit(make_eval_step(made.objective))

    def train() -> None:
        live[0], metrics = step(live[0], placed)
        jax.block_until_ready(metrics)

    return train, lambda: jax.block_until_ready(evaluate(live[0].params, placed))


def labels_everywhere(batch: dict[str, np.ndarray]) -> np.ndarray:
    """-100 but at the positions to predict."""
    labels_BS = np.full(batch["input_ids"].shape, -100, np.int64)
    np.put_along_axis(labels_BS, batch["masked_lm_positions"], batch["masked_lm_ids"], axis=1)
    return labels_BS


def pytorch(
    config: Any, batch: dict[str, np.ndarray], device: str = "cpu", compiled: bool = False
) -> tuple[Any, Any]:
    """A step and a forward pass; on a GPU with autocast to bfloat16 and without waiting for it."""
    model = transformers.AlbertForPreTraining(config).train().to(device)
    on_gpu = device != "cpu"
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=on_gpu)
    inputs = {
        "input_ids": torch.from_numpy(batch["input_ids"]).long(),
        "attention_mask": torch.from_numpy(batch["input_mask"]).long(),
        "token_type_ids": torch.from_numpy(batch["segment_ids"]).long(),
        "labels": torch.from_numpy(labels_everywhere(batch)),
        "sentence_order_label": torch.from_numpy(batch["sentence_order_labels"]).long(),
    }
    inputs = {name: x.to(device) for name, x in inputs.items()}
    call = torch.compile(model) if compiled else model

    def output() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
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


def flax(config: Any, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    model = transformers.FlaxAlbertForPreTraining(config, seed=0)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.01))
    labels_BS = jnp.asarray(labels_everywhere(batch))
    orders_B = jnp.asarray(batch["sentence_order_labels"])
    inputs = [jnp.asarray(batch[name]) for name in ("input_ids", "input_mask", "segment_ids")]

    def loss(params: Any) -> Any:
        output = model(*inputs, params=params, train=False)
        each_BS = optax.softmax_cross_entropy_with_integer_labels(
            output.prediction_logits, jnp.maximum(labels_BS, 0)
        )
        weights_BS = labels_BS >= 0
        order_B = optax.softmax_cross_entropy_with_integer_labels(output.sop_logits, orders_B)
        return (each_BS * weights_BS).sum() / weights_BS.sum() + order_B.mean()

    def step(params: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    jitted, forward = jax.jit(step, donate_argnums=(0, 1)), jax.jit(loss)
    live = [jax.tree.map(jnp.asarray, model.params), tx.init(model.params)]

    def train() -> None:
        *live[:], value = jitted(*live)
        jax.block_until_ready(value)

    return train, lambda: jax.block_until_ready(forward(live[0]))


def matmuls() -> Calls:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2048, 2048), np.float32) for _ in range(2))
    product = jax.jit(jnp.matmul)
    ja, jb, ta, tb = jnp.asarray(a), jnp.asarray(b), torch.from_numpy(a), torch.from_numpy(b)
    return {
        "matmul, XLA": lambda: jax.block_until_ready(product(ja, jb)),
        "matmul, PyTorch": lambda: torch.matmul(ta, tb),
    }


def measure(calls: Calls, rounds: int) -> dict[str, np.ndarray]:
    """[rounds, (wall, CPU)] seconds of each."""
    for call in calls.values():
        call()
        call()
    seconds: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = np.array([time.perf_counter(), time.process_time()])
            call()
            seconds[name].append(np.array([time.perf_counter(), time.process_time()]) - start)
    return {name: np.stack(spent) for name, spent in seconds.items()}


def main(
    batch_size: int = 8,
    sequence: int = 128,
    predictions: int = 20,
    rounds: int = 5,
    unroll: tuple[int, ...] = (1, 12),
    keep_memory: bool = False,
) -> None:
    """Prints milliseconds, medians over the rounds, and their ratios.

    Args:
        batch_size: rows.
        sequence: tokens in a row.
        predictions: positions predicted in a row.
        rounds: steps of each contender.
        unroll: of our scan; a contender each.
        keep_memory: the process keeps freed memory, all contenders' alike, as `pretrain`'s does.
    """
    if keep_memory and not keep_freed_memory():
        raise SystemExit("the C library cannot be told to keep memory; leave --keep-memory out")
    torch.set_num_threads(os.cpu_count() or 1)
    warnings.simplefilter("ignore")
    base: AlbertConfig = MODELS["base-v2"]
    config = PretrainConfig(
        model=base,
        examples=ExamplesConfig(max_seq_length=sequence, max_predictions_per_seq=predictions),
        optimizer=OptimizerConfig(name="adamw", learning_rate=RATE, warmup_steps=10),
        train=TrainConfig(batch_size=batch_size, steps=1000),
    )
    batch = made_up_batch("train", config)
    peers = peer_config()
    makers = {
        f"albert_jax, unroll {n}": lambda n=n: ours(
            PretrainConfig(**{**vars(config), "compute": ComputeConfig(scan_unroll=n)}), batch
        )
        for n in unroll
    }
    makers |= {"PyTorch": lambda: pytorch(peers, batch), "Flax": lambda: flax(peers, batch)}
    pairs = {name: make() for name, make in makers.items()}
    flops = batch_size * train_flops_per_sequence(base, sequence, predictions)
    for title, index, work in (("train step", 0, flops), ("forward", 1, flops / 3)):
        calls = {name: pair[index] for name, pair in pairs.items()} | matmuls()
        seconds = measure(calls, rounds)
        peer = np.median(seconds["PyTorch"], axis=0)
        for name, spent in seconds.items():
            wall, cpu = np.median(spent, axis=0)
            done = 2 * 2048**3 if name.startswith("matmul") else work
            print(
                f"{title}: {name}: {wall * 1e3:.0f} ms ({spent[:, 0].min() * 1e3:.0f} at best), "
                f"{cpu * 1e3:.0f} ms of CPU, {done / wall / 1e9:.0f} GFLOP/s; "
                f"PyTorch takes {peer[0] / wall:.2f} of the time, {peer[1] / cpu:.2f} of the CPU",
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(main)
