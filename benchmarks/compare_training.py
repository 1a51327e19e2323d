# SPDX-License-Identifier: Apache-2.0
"""Not a test: step and forward time beside transformers' PyTorch and Flax models, in one process.

python -m benchmarks.compare_training --batch-size 8 --sequence 128 --rounds 5

All train a base-v2 model with random weights, in float32, on the same batch without padding, with
masked-LM and sentence-order loss and AdamW. With `--bfloat16` ours and PyTorch's model under
autocast are contenders too. The peers compute logits at every position, as they do
for their users. In each round all contenders make one step, one after the other on the same
threads; compiling and warming up is left out. A matmul of 2048 in each framework says what the
cores give meanwhile.
"""

from __future__ import annotations

import dataclasses
import os
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

from albert_jax.config.model import MODELS, AlbertConfig, ComputeConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig, OptimizerConfig, TrainConfig
from albert_jax.distributed.placement import local_devices, make_placement
from albert_jax.models.flops import train_flops_per_sequence
from albert_jax.perf.workload import made_up_batch
from albert_jax.training.step import make_eval_step, make_pretrain_step
from albert_jax.utils.malloc import keep_freed_memory
from benchmarks.timing import seconds_in_turn
from tests.helpers.peers import RATE, flax_step, peer_batch, peer_config, pytorch_step

Calls = dict[str, Callable[[], Any]]


def ours(config: PretrainConfig, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The very step that `pretrain` runs, and its forward pass."""
    placement = make_placement("jit", local_devices(1))
    made = make_pretrain_step(config, placement.lowering)
    step = placement.compile(made.step)
    live = [placement.put_state(made.random_state(0))]
    placed = placement.put_batch(batch)
    evaluate = placement.compile(make_eval_step(made.objective), donate=False)

    def train() -> None:
        live[0], metrics = step(live[0], placed)
        jax.block_until_ready(metrics)

    return train, lambda: jax.block_until_ready(evaluate(live[0].params, placed))


def flax(config: Any, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """transformers' Flax model: an update by AdamW, and the loss alone."""
    model = transformers.FlaxAlbertForPreTraining(config, seed=0)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.01))
    step, loss = flax_step(model.module, tx)
    placed = jax.tree.map(jnp.asarray, peer_batch(batch))
    jitted, forward = jax.jit(step, donate_argnums=(0, 1)), jax.jit(loss)
    live = [jax.tree.map(jnp.asarray, model.params), tx.init(model.params)]

    def train() -> None:
        *live[:], value = jitted(*live, placed)
        jax.block_until_ready(value)

    return train, lambda: jax.block_until_ready(forward(live[0], placed))


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
    return seconds_in_turn(calls, rounds)


def main(
    batch_size: int = 8,
    sequence: int = 128,
    predictions: int = 20,
    rounds: int = 5,
    unroll: tuple[int, ...] = (1, 12),
    bfloat16: bool = False,
    keep_memory: bool = False,
) -> None:
    """Prints milliseconds, medians over the rounds, and their ratios.

    Args:
        batch_size: rows.
        sequence: tokens in a row.
        predictions: positions predicted in a row.
        rounds: steps of each contender.
        unroll: of our scan; a contender each.
        bfloat16: ours and PyTorch's once more, in bfloat16.
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
            dataclasses.replace(config, compute=ComputeConfig(scan_unroll=n)), batch
        )
        for n in unroll
    }
    makers |= {"PyTorch": lambda: pytorch_step(peers, batch), "Flax": lambda: flax(peers, batch)}
    if bfloat16:
        half = dataclasses.replace(config, compute=ComputeConfig(dtype="bfloat16"))
        makers |= {
            "albert_jax, bfloat16": lambda: ours(half, batch),
            "PyTorch, autocast to bfloat16": lambda: pytorch_step(peers, batch, autocast=True),
        }
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
