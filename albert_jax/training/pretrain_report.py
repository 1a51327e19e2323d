# SPDX-License-Identifier: Apache-2.0
"""Report on a pretraining run: the plan before, the figures and the model's use after."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from albert_jax.config.run import FIRST_VALUES, PretrainConfig
from albert_jax.data.loader import describe_examples
from albert_jax.data.mixture import Mixture
from albert_jax.data.pretraining import PretrainingData, objective_warnings
from albert_jax.data.text.python_docs import is_docs
from albert_jax.distributed.placement import (
    run_devices,
)
from albert_jax.inference import api as inference
from albert_jax.models.flops import (
    parameter_count,
    parameter_counts,
    stage_flops,
)
from albert_jax.models.lowering import matmul_dtype
from albert_jax.training.metrics import METRICS, draw_curves
from albert_jax.training.optimizer import (
    divergence_warnings,
    peak_learning_rate,
    warmup_steps,
    warmup_warnings,
)
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

_MANY_PASSES = 200  # passes from which on a warning is printed; the paper has about 40


def run_plan(config: PretrainConfig, data: PretrainingData | None) -> str:
    """Return model, data, updates, optimizer and devices, a line each, then any warnings."""
    model, train = config.model, config.train
    stages = config.stages
    shared = parameter_counts(model)["shared layers"]
    devices = run_devices(train.devices)
    hosts = len({device.process_index for device in devices})
    dtype = matmul_dtype(config.compute.dtype, devices[0].platform)
    dtype += " (auto)" if config.compute.dtype == "auto" else ""
    peak = peak_learning_rate(config.optimizer, stages.most_rows)
    lines = [
        f"model      {parameter_count(model):,} parameters; the shared layer's {shared:,} are "
        f"applied {model.num_hidden_layers} times; {dtype}, "
        f"remat {config.compute.remat}",
        *_updates(config),
        f"optimizer  {config.optimizer.name}, peak learning rate {peak:.4g}, "
        f"warm-up {warmup_steps(config.optimizer, train.steps)} steps",
        f"devices    {len(devices)} x {devices[0].device_kind} under {train.mode}"
        + (f", of {hosts} processes" if hosts > 1 else "")
        + (f", {train.accumulate} micro-batches" if train.accumulate > 1 else ""),
    ]
    if data is not None:
        size, sequences = len(data.train), stages.sequences(train.steps)
        passes = stages.tokens(train.steps) / (size * config.examples.max_seq_length)
        heldout = f"{len(data.heldout):,} held out" if data.heldout else "nothing held out"
        told = [f"data       {size:,} examples a pass, {passes:,.2f} passes; {heldout}"]
        if isinstance(data.train, Mixture):
            told += [
                f"           {name}: {part['share']:.2%} of the examples, "
                f"{part['sequences_a_pass']:,} a pass, {part['passes']:,.2f} passes"
                for name, part in data.train.passes(sequences).items()
            ]
        lines[1:1] = told
    warnings = divergence_warnings(
        config.optimizer, batch_size=stages.most_rows, hidden_size=model.hidden_size
    )
    warnings += warmup_warnings(config.optimizer, train.steps)
    if config.init_from is not None and (without := _first_values_set(config)):
        warnings.append(
            f"{', '.join(without)} has no effect beside {setting('init_from')}, whose weights are "
            "not random"
        )
    warnings += [f"{each} decides" for each in _overruled(config)]
    if data is not None:
        warnings += objective_warnings(data, config)
    if data is not None and passes > _MANY_PASSES:
        batches = setting("train.batch_ramp" if train.batch_ramp else "train.batch_size")
        warnings.append(
            f"each text is seen {passes:,.0f} times; lower {setting('train.steps')} "
            f"({train.steps:,}) or {batches} "
            f"({train.batch_ramp or format(train.batch_size, ',')}), or prepare more text"
        )
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def _overruled(config: PretrainConfig) -> Iterator[str]:
    """Yield the settings that no stage has, each with the schedule that has other values."""
    stages, train, examples = list(config.stages), config.train, config.examples
    of_schedules = (
        ("train.batch_size", train.batch_size, "train.batch_ramp", [s.batch_size for s in stages]),
        (
            "examples.max_seq_length",
            examples.max_seq_length,
            "train.length",
            [s.examples.max_seq_length for s in stages],
        ),
        (
            "examples.masked_lm_prob",
            examples.masked_lm_prob,
            "train.masking",
            [s.examples.masked_lm_prob for s in stages],
        ),
    )
    for name, value, schedule, values in of_schedules:
        if value not in values:
            text = getattr(train, schedule.removeprefix("train."))
            yield f"no step has {setting(name)} {value}, as {setting(schedule)} {text!r}"


def _first_values_set(config: PretrainConfig) -> list[str]:
    """Return the settings of random weights that are not at their defaults, with their values."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    given = {name: getattr(config, name) for name in FIRST_VALUES}
    return [
        f"{setting(name)} {value!r}" for name, value in given.items() if value != defaults[name]
    ]


def _updates(config: PretrainConfig) -> list[str]:
    """Return a line on the updates, or one for each of several stages."""
    stages, lines = config.stages, []
    for number, stage in enumerate(stages):
        end = stages.end(number) or config.train.steps
        least, most = stage.depths
        depth = f"{most}" if least == most else f"{least} to {most}"
        of_depth = f", depth {depth}" if config.train.depth else ""
        start = f"from step {stage.first + 1:,}: " if stage.first else ""
        lines.append(
            f"{'updates' if number == 0 else '':<10} {start}{end - stage.first:,} x "
            f"{stage.batch_size} sequences of {stage.examples.max_seq_length} tokens, "
            f"{stage.examples.max_predictions_per_seq} predictions at most{of_depth}; "
            f"{stage_flops(config.model, stage) / 1e12:,.3g} TFLOP each"
        )
    return lines


def closing(
    config: PretrainConfig,
    workdir: Path,
    model: Path,
    heldout: Mapping[str, float],
    baselines: Mapping[str, float],
) -> str:
    """Return the result of a run and, last, how to use its model.

    `baselines` are `baselines_at`.
    """
    of_docs = bool(config.text) and all(map(is_docs, config.text))
    gap = "it was the [MASK] of the year."
    if of_docs:
        gap = "the input array must have the same [MASK] as the output."
    shown = os.path.relpath(model) if model.is_relative_to(Path.cwd()) else str(model)
    text = [f"curves     {workdir / 'loss.png'}"]
    if heldout:
        text += figures(baselines, heldout)
    # Attention's kernels take no row as short as this, and a tiny model may have no room for it.
    compute = replace(config.compute, attention="auto")
    with contextlib.suppress(UserError):
        answers = inference.load(model, compute=compute).fill_mask(gap, top_k=5)
        words = ", ".join(f"{a['token_str']} {a['score']:.1%}" for a in answers)
        text.append(f"filled in  {gap} -> {words}")
    text.append(f'use it     albert-jax fill-mask {shown} "{gap}"')
    return "\n".join(text)


def baselines_at(config: PretrainConfig, data: PretrainingData) -> dict[str, float]:
    """Return the metrics of a model that knows only frequencies, on the evaluated data.

    They are `Data.baselines`, and label_majority, the fraction of the more frequent sentence-order
    label.
    """
    if data.heldout is None or config.examples.objective == "none":
        return dict(data.baselines)
    count = min(config.train.eval_examples, len(data.heldout))
    share = describe_examples(data.heldout, examples=count)["label_1_share"]
    return {**data.baselines, "label_majority": max(share, 1 - share)}


def draw_losses(config: PretrainConfig, baselines: Mapping[str, float], workdir: Path) -> None:
    """Draw WORKDIR/loss.png from the run's log so far, beside `baselines_at`."""
    lines = {
        "loss:unigram entropy": baselines.get("unigram_entropy_nats"),
        "masked_lm_accuracy:most frequent token": baselines.get("most_frequent_token_rate"),
        "sentence_order_accuracy:more frequent label": baselines.get("label_majority"),
    }
    millions = parameter_count(config.model) / 1e6
    draw_curves(
        workdir / METRICS,
        workdir / "loss.png",
        baselines={name: value for name, value in lines.items() if value is not None},
        title=f"{millions:.1f} M parameters, "
        f"{config.train.steps:,} steps of {config.train.batch_size} sequences",
    )


def figures(baselines: Mapping[str, float], heldout: Mapping[str, float]) -> list[str]:
    """Return held-out figures, each beside its baseline."""
    beside = {
        name: "" if baselines.get(key) is None else f" ({what} {baselines[key]:{form}})"
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
