# SPDX-License-Identifier: Apache-2.0
"""Not a test: step time on a GPU beside transformers' PyTorch model, in bfloat16.

python -m benchmarks.compare_gpu --model base-v2 --batch-sizes 16 32 64 128 --out gpu.json

All train the same model with random weights on the same batch of whole rows, with masked-LM and
sentence-order loss and AdamW. PyTorch computes under autocast with its fused AdamW and
scaled-dot-product attention, as it stands and under `torch.compile`; both peers compute logits at
every position, as they do for their users. Each contender has each batch size, one after the other
in a process of its own, as JAX and PyTorch both want the whole memory; the best sequences a second
of each is what counts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from albert_jax.config.model import MODELS, ComputeConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import ExamplesConfig, OptimizerConfig, TrainConfig
from albert_jax.models.flops import peak_flops, train_flops_per_sequence
from albert_jax.perf.workload import made_up_batch
from benchmarks.answers import answer_of
from benchmarks.compare_training import ours
from tests.helpers.peers import RATE, peer_config, pytorch_step

CONTENDERS = ("albert_jax", "PyTorch", "PyTorch, compiled")
WARM, STEPS = 5, 20
LONGEST = 180  # seconds for a contender's process, compiling included


def settings(model: str, batch_size: int, sequence: int, predictions: int) -> PretrainConfig:
    return PretrainConfig(
        model=MODELS[model],
        examples=ExamplesConfig(max_seq_length=sequence, max_predictions_per_seq=predictions),
        optimizer=OptimizerConfig(name="adamw", learning_rate=RATE, warmup_steps=10),
        train=TrainConfig(batch_size=batch_size, steps=1000),
        compute=ComputeConfig(dtype="bfloat16"),
    )


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of steps that are each waited for, after some that are not counted."""
    for _ in range(WARM):
        call()
    spent = []
    for _ in range(STEPS):
        start = time.perf_counter()
        call()
        spent.append((time.perf_counter() - start) * 1e3)
    return {"median": statistics.median(spent), "least": min(spent), "most": max(spent)}


def one(contender: str, config: PretrainConfig, model: str) -> dict[str, Any]:
    """Training's and forward's milliseconds."""
    batch = made_up_batch("train", config)
    if contender == "albert_jax":
        device, calls = jax.devices()[0].device_kind, ours(config, batch)
    else:
        import torch

        # A CPU only where it is asked for, to try the script.
        device = "cpu" if os.environ.get("JAX_PLATFORMS") == "cpu" else "cuda"
        assert device == "cpu" or torch.cuda.is_available(), "PyTorch sees no GPU"
        torch.set_float32_matmul_precision("high")
        compiled = contender.endswith("compiled")
        train, forward = pytorch_step(
            peer_config(model), batch, device=device, compiled=compiled, autocast=True
        )

        synchronize = getattr(torch, device).synchronize

        def waited(call: Callable[[], Any]) -> Callable[[], Any]:
            return lambda: (call(), synchronize())

        calls = waited(train), waited(forward)
        device = torch.cuda.get_device_name() if device == "cuda" else device
    return {"device": device, "train": timed(calls[0]), "forward": timed(calls[1])}


def main(
    model: str = "base-v2",
    batch_sizes: tuple[int, ...] = (16, 32, 64, 128),
    sequence: int = 512,
    predictions: int = 77,
    out: Path | None = None,
    contender: Literal[None, "albert_jax", "PyTorch", "PyTorch, compiled"] = None,
) -> None:
    """Prints a table, and writes all figures as JSON.

    Args:
        model: released model.
        batch_sizes: rows.
        sequence: tokens in a row.
        predictions: positions predicted in a row.
        out: file for the figures.
        contender: measure this one only, at the first batch size, and print its figures as JSON.
    """
    if contender:
        config = settings(model, batch_sizes[0], sequence, predictions)
        print(json.dumps(one(contender, config, model)))
        return
    flops = train_flops_per_sequence(MODELS[model], sequence, predictions)
    results = []
    for name in CONTENDERS:
        for size in batch_sizes:
            command = [sys.executable, "-m", "benchmarks.compare_gpu", "--contender", name]
            command += ["--model", model, "--batch-sizes", str(size)]
            command += ["--sequence", str(sequence), "--predictions", str(predictions)]
            found = answer_of(command, LONGEST, own_session=False)
            result: dict[str, Any] = {"contender": name, "batch_size": size}
            result |= found.get("answer", found)
            if "error" in result:
                print(f"{name:18} {size:4}  {result['error']}", flush=True)
            else:
                peak = peak_flops(result["device"])
                rate = size / result["train"]["median"] * 1e3
                mfu = f"{rate * flops / peak:.1%}" if peak else "unknown"
                print(
                    f"{name:18} {size:4}  train {result['train']['median']:8.1f} ms, {rate:7.1f} a "
                    f"second, MFU {mfu}; forward {result['forward']['median']:8.1f} ms",
                    flush=True,
                )
            results.append(result)
            if out:  # each time: what was measured outlives a limit on the whole
                out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
