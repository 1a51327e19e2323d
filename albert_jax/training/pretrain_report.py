# SPDX-License-Identifier: Apache-2.0
"""What a pretraining run says of itself: the plan before, the figures and how to use the model
after."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax.config.run import PretrainConfig
from albert_jax.data.loader import describe
from albert_jax.data.mixture import Mixture
from albert_jax.data.pretraining import Data, objective_warnings, open_data
from albert_jax.distributed.placement import (
    check_batch_size,
    make_placement,
    run_devices,
    set_compilation_cache,
)
from albert_jax.inference import api as inference
from albert_jax.models.flops import (
    parameter_count,
    parameter_counts,
    peak_flops,
    train_flops_per_sequence,
)
from albert_jax.perf.workload import lower, make_work
from albert_jax.training.memory import (
    GIB,
    capacity_bytes,
    out_of_memory_advice,
    out_of_memory_told,
    program_bytes,
)
from albert_jax.training.metrics import draw_curves
from albert_jax.training.optimizer import divergence_warnings, peak_learning_rate, warmup_steps
from albert_jax.utils.numbers import rounded
from albert_jax.utils.streams import say

# A warning is worth its line from here on: the paper has about 40 passes, and a month of one
# machine is more than most people mean.
_MANY_PASSES, _LONG_DAYS = 200, 30
_MATMUL = 2048  # rows and columns of what tells a CPU's rate


def describe_plan(config: PretrainConfig) -> str:
    """What `pretrain` would do, as text: sizes, schedule, examples as drawn, memory, time. It
    trains nothing, but compiles the step.

    Of `config.text` nothing is made: its lengths and shares are then not known yet.
    """
    check_batch_size(
        config.train.batch_size,
        config.train.accumulate,
        len(run_devices(config.train.devices)),
    )
    workdir = Path(config.workdir) if config.workdir else None
    made = workdir is not None and (workdir / "store" / "manifest.json").is_file()
    data = open_data(config, workdir) if made or config.store or not config.text else None
    lines = [plan(config, data)]
    if data is not None:
        lines.append(_examples(describe(data.train, examples=200)))
    return "\n".join([*lines, *_costs(config)])


def _examples(drawn: Mapping[str, Any]) -> str:
    """What the first examples are like, in words."""
    slots = drawn["tokens_per_example"] / (1 - drawn["padding_share"])
    replaced = drawn["replaced_by"]
    text = (
        f"examples   {drawn['tokens_per_example']:.0f} tokens of {slots:.0f} in the mean of the "
        f"first {drawn['examples']} ({drawn['padding_share']:.0%} padding); "
        f"{drawn['masked_share']:.1%} to predict, of them {replaced['mask']:.0%} [MASK], "
        f"{replaced['itself']:.0%} as they were, {replaced['random']:.0%} random"
    )
    if drawn["ngrams"]:
        shares = (f"{n}: {share:.0%}" for n, share in drawn["ngrams"].items())
        text += f"; words in a row {', '.join(shares)}"
    return f"{text}; {drawn['label_1_share']:.0%} swapped"


def _costs(config: PretrainConfig) -> list[str]:
    """Memory of the step as it is compiled for these devices, and the least time of all."""
    train, devices = config.train, run_devices(config.train.devices)
    set_compilation_cache(train.compilation_cache)
    placement = make_placement(train.mode, devices)
    say("compiling the step, for its memory …")
    with out_of_memory_told(devices, config):
        work = make_work("train", config, placement.axis_name)
        compiled = lower("train", config, work, placement).compile()
    needed, capacity = program_bytes(compiled), capacity_bytes(devices[0])
    lines, warnings = [], []
    if needed is not None and capacity is not None:
        on_cpu = devices[0].platform == "cpu"
        where = "in all" if on_cpu else "on each device"
        needed *= len(devices) if on_cpu else 1
        lines.append(
            f"memory     {rounded(needed / GIB, 3)} GiB of {rounded(capacity / GIB, 3)} GiB {where}"
        )
        if needed > capacity:
            warnings.append(f"the step does not fit; {out_of_memory_advice(config)}")
    rate, whose = _rate(devices)
    days = train.steps * train.batch_size * work.flops_per_sequence / rate / 86400
    lines.append(f"time       {_days(days)} at least: {rate / 1e12:,.3g} TFLOP/s, {whose}")
    if days > _LONG_DAYS:
        warnings.append(f"{_days(days)} is long; lower --train.steps, or take more devices")
    return [*lines, *(f"warning: {warning}" for warning in warnings)]


def _rate(devices: Sequence[jax.Device]) -> tuple[float, str]:
    """FLOPs a second that no step on these devices exceeds, and where that is from."""
    peak = peak_flops(devices[0].device_kind)
    if peak is not None:
        return peak * len(devices), "the devices' peak"
    x = jax.device_put(np.ones((_MATMUL, _MATMUL), np.float32), devices[0])
    matmul = jax.jit(lambda x: x @ x)
    matmul(x).block_until_ready()
    since = time.perf_counter()
    for _ in range(3):
        matmul(x).block_until_ready()
    seconds = (time.perf_counter() - since) / 3
    return 2 * _MATMUL**3 / seconds, "as large matmuls in float32 make here now"


def _days(days: float) -> str:
    if days >= 2:
        return f"{days:,.0f} days"
    hours = 24 * days
    return f"{hours:.0f} hours" if hours >= 2 else f"{60 * hours:.0f} minutes"


def plan(config: PretrainConfig, data: Data | None) -> str:
    """Model, data, updates, optimizer and devices, a line each, then any warnings."""
    model, train, examples = config.model, config.train, config.examples
    length, predictions = examples.max_seq_length, examples.max_predictions_per_seq
    flops = train.batch_size * train_flops_per_sequence(model, length, predictions)
    shared = parameter_counts(model)["shared layers"]
    devices = run_devices(train.devices)
    hosts = len({device.process_index for device in devices})
    peak = peak_learning_rate(config.optimizer, train.batch_size)
    lines = [
        f"model      {parameter_count(model):,} parameters; the shared layer's {shared:,} are "
        f"applied {model.num_hidden_layers} times; {config.compute.dtype}, "
        f"remat {config.compute.remat}",
        f"updates    {train.steps:,} x {train.batch_size} sequences of {length} tokens, "
        f"{predictions} predictions at most; {flops / 1e12:,.3g} TFLOP each",
        f"optimizer  {config.optimizer.name}, peak learning rate {peak:.4g}, "
        f"warm-up {warmup_steps(config.optimizer, train.steps)} steps",
        f"devices    {len(devices)} x {devices[0].device_kind} under {train.mode}"
        + (f", of {hosts} processes" if hosts > 1 else "")
        + (f", {train.accumulate} micro-batches" if train.accumulate > 1 else ""),
    ]
    if data is not None:
        size = len(data.train)
        passes = train.steps * train.batch_size / size
        heldout = f"{len(data.heldout):,} held out" if data.heldout else "nothing held out"
        told = [f"data       {size:,} examples a pass, {passes:,.2f} passes; {heldout}"]
        if isinstance(data.train, Mixture):
            told += [
                f"           {name}: {part['share']:.2%} of the examples, "
                f"{part['sequences_a_pass']:,} a pass, {part['passes']:,.2f} passes"
                for name, part in data.train.passes(train.steps * train.batch_size).items()
            ]
        lines[1:1] = told
    warnings = divergence_warnings(
        config.optimizer, batch_size=train.batch_size, hidden_size=model.hidden_size
    )
    if data is not None:
        warnings += objective_warnings(data, config)
    if data is not None and passes > _MANY_PASSES:
        warnings.append(
            f"each text is seen {passes:,.0f} times; lower --train.steps ({train.steps:,}) or "
            f"--train.batch-size ({train.batch_size:,}), or prepare more text"
        )
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def closing(
    config: PretrainConfig, data: Data, workdir: Path, model: Path, heldout: Mapping[str, float]
) -> str:
    """Says what came of a run and, last, how to use it."""
    baselines = baselines_at(config, data)
    is_docs = config.text == ("python-docs",)
    gap = "the function returns a [MASK]." if is_docs else "it was the [MASK] of the year."
    answers = inference.load(model, compute=config.compute).fill_mask(gap, top_k=5)
    words = ", ".join(f"{a['token_str']} {a['score']:.1%}" for a in answers)
    shown = os.path.relpath(model) if model.is_relative_to(Path.cwd()) else str(model)
    text = [f"curves     {workdir / 'loss.png'}"]
    if heldout:
        text += _figures(baselines, heldout)
    text.append(f"filled in  {gap} -> {words}")
    text.append(f'use it     albert-jax fill-mask {shown} "{gap}"')
    return "\n".join(text)


def baselines_at(config: PretrainConfig, data: Data) -> dict[str, float]:
    """What knowing only frequencies reaches on what is evaluated: `Data.baselines`, and
    label_majority, the share of the more frequent sentence-order label."""
    if data.heldout is None or config.examples.objective == "none":
        return dict(data.baselines)
    count = min(config.train.eval_examples, len(data.heldout))
    share = describe(data.heldout, examples=count)["label_1_share"]
    return {**data.baselines, "label_majority": max(share, 1 - share)}


def draw_losses(config: PretrainConfig, baselines: Mapping[str, float], workdir: Path) -> None:
    """Draws WORKDIR/loss.png from the run's log so far, beside `baselines_at`."""
    lines = {
        "loss:unigram entropy": baselines.get("unigram_entropy_nats"),
        "masked_lm_accuracy:most frequent token": baselines.get("most_frequent_token_rate"),
        "sentence_order_accuracy:more frequent label": baselines.get("label_majority"),
    }
    millions = parameter_count(config.model) / 1e6
    draw_curves(
        workdir / "metrics.jsonl",
        workdir / "loss.png",
        baselines={name: value for name, value in lines.items() if value is not None},
        title=f"{millions:.1f} M parameters, "
        f"{config.train.steps:,} steps of {config.train.batch_size} sequences",
    )


def _figures(baselines: Mapping[str, float], heldout: Mapping[str, float]) -> list[str]:
    """Held-out figures, each beside what knowing frequencies alone would reach."""
    beside = {
        name: f" ({what} {baselines[key]:{form}})" if key in baselines else ""
        for name, key, what, form in (
            ("loss", "unigram_entropy_nats", "unigram entropy of the same text", ".3f"),
            ("words", "most_frequent_token_rate", "most frequent token", ".1%"),
            ("order", "label_majority", "more frequent label", ".1%"),
        )
    }
    text = [
        f"held out   masked-LM loss {heldout['masked_lm_loss']:.3f} nats{beside['loss']}, "
        f"accuracy {heldout['masked_lm_accuracy']:.1%}{beside['words']}"
    ]
    if "sentence_order_accuracy" in heldout:
        text.append(
            f"           sentence-order loss {heldout['sentence_order_loss']:.3f} nats, "
            f"accuracy {heldout['sentence_order_accuracy']:.1%}{beside['order']}"
        )
    return text
