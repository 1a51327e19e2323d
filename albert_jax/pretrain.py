# SPDX-License-Identifier: Apache-2.0
"""Pretraining from data to a model directory: what `albert-jax pretrain` and `albert-jax export` call."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from albert_jax import inference
from albert_jax.checkpoint import Checkpointer, lock_workdir
from albert_jax.config import AlbertConfig, PretrainConfig, to_dict
from albert_jax.data.batches import Source, batch_at, describe, make_dataset
from albert_jax.errors import UserError
from albert_jax.flops import parameter_count, parameter_counts, train_flops_per_sequence
from albert_jax.losses import Objective, pretraining_objective
from albert_jax.metrics_log import MetricsLog, draw_curves, read_metrics
from albert_jax.model import AlbertForPretraining, init_params
from albert_jax.model_dir import check_destination, export_model, load_model
from albert_jax.optimizer import divergence_warnings, make_optimizer
from albert_jax.parallel import (
    Placement,
    check_batch_size,
    local_devices,
    make_placement,
    set_compilation_cache,
)
from albert_jax.pretrain_data import Data, identity_of, open_data
from albert_jax.step import TrainState, init_state, make_eval_step, make_train_step
from albert_jax.train import Position, Workload, fit, resume

Batch = dict[str, np.ndarray]


def pretrain(config: PretrainConfig) -> Path:
    """Runs the configured pretraining, or goes on with it, and returns the model directory it exports.

    The work directory gets config.json, checkpoints/, metrics.jsonl, tensorboard/, loss.png and model/. Raises UserError
    for settings or data that do not fit, TryAgain when stopped by a signal.
    """
    if config.workdir is None:
        raise UserError("no work directory; give --workdir DIR")
    train, workdir = config.train, Path(config.workdir)
    devices = local_devices(train.devices)
    check_batch_size(train.batch_size, train.accumulate, len(devices))
    check_destination(workdir / "model")
    set_compilation_cache(train.compilation_cache)
    with lock_workdir(workdir):
        data = open_data(config, workdir)
        placement = make_placement(train.mode, devices)
        model = AlbertForPretraining(config.model, config.compute)
        second = config.examples.objective != "none"
        objective = pretraining_objective(model, second=second)
        tx, schedule = make_optimizer(
            config.optimizer, steps=train.steps, batch_size=train.batch_size
        )
        step = make_train_step(
            objective, tx, accumulate=train.accumulate, axis_name=placement.axis_name
        )
        evaluate = _evaluator(config, data, objective, placement)
        expect = identity_of(config, data)
        with Checkpointer(workdir / "checkpoints", keep=train.keep) as checkpointer:
            state, position = _first_state(config, data, model, tx, checkpointer, placement, expect)
            _write_config(workdir, config)
            log = MetricsLog(workdir, total_steps=train.steps, resume_step=position.step)
            try:
                _announce(config, data, placement, position, schedule, log)
                if position.step == 0 and config.init_from and evaluate:
                    # Wrong vocabulary or activation shows here at once: accuracy near chance.
                    _evaluate_first(evaluate, state, placement, log)
                state = fit(
                    train,
                    config.guard,
                    state=state,
                    position=position,
                    step=step,
                    schedule=schedule,
                    placement=placement,
                    batches=partial(_batches, config, data.train),
                    evaluate=evaluate,
                    checkpointer=checkpointer,
                    expect=expect,
                    workload=_workload(config, data.train),
                    log=log,
                )
            finally:
                log.close()
        return _finish(config, data, workdir, state)


def export(workdir: str | Path, dest: str | Path) -> Path:
    """Writes the newest good checkpoint of a work directory as a model directory; also while the run goes on."""
    workdir = Path(workdir)
    recorded = workdir / "config.json"
    if not recorded.is_file():
        raise UserError(f"{workdir} is no work directory of albert-jax pretrain (no config.json)")
    config = _read_config(recorded)
    check_destination(dest)
    data = open_data(config, workdir)
    model = AlbertForPretraining(config.model, config.compute)
    tx, _ = make_optimizer(
        config.optimizer, steps=config.train.steps, batch_size=config.train.batch_size
    )
    state = jax.eval_shape(lambda: _random_state(config, model, tx))
    # Reading needs no lock: checkpoints appear whole. But opening cleans up, which would disturb a run at work.
    with (
        lock_workdir(workdir),
        Checkpointer(workdir / "checkpoints", keep=config.train.keep) as checkpointer,
    ):
        restored = resume(checkpointer, state, identity_of(config, data))
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    return _export(config, data, workdir, restored[0], Path(dest))


# ---------------------------------------------------------------------------------------- the state


def _first_state(
    config: PretrainConfig,
    data: Data,
    model: AlbertForPretraining,
    tx: Any,
    checkpointer: Checkpointer,
    placement: Placement,
    expect: dict[str, Any],
) -> tuple[TrainState, Position]:
    """The newest checkpoint; else the weights of `init_from` or random ones with a fresh optimizer."""
    shapes = jax.eval_shape(lambda: _random_state(config, model, tx))
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.state_sharding), shapes
    )
    restored = resume(checkpointer, target, expect)
    if restored is not None:
        return restored
    if config.init_from is None:
        state = jax.jit(lambda: _random_state(config, model, tx))()
    else:
        params = _params_of(config, data, Path(config.init_from))
        state = init_state(jax.device_put(params), tx, seed=config.train.seed)
    return jax.device_put(state, placement.state_sharding), Position()


def _random_state(config: PretrainConfig, model: AlbertForPretraining, tx: Any) -> TrainState:
    return init_state(
        init_params(model, jax.random.key(config.train.seed)), tx, seed=config.train.seed
    )


# What may differ between `init_from` and the run: how often the shared layer is applied, and dropout.
_FREE = {
    "num_hidden_layers",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
}


def _params_of(config: PretrainConfig, data: Data, directory: Path) -> Any:
    source = load_model(directory)
    theirs, ours = dataclasses.asdict(source.config), dataclasses.asdict(config.model)
    differing = [
        f"{k} is {theirs[k]} there and {ours[k]} here"
        for k in ours
        if k not in _FREE and theirs[k] != ours[k]
    ]
    if differing:
        raise UserError(
            f"init_from {directory} does not fit the model: {'; '.join(differing)}; give --model.… as there"
        )
    recorded = source.manifest["sha256"].get("spiece.model")
    if recorded is not None and recorded != data.identity["vocabulary"]:
        raise UserError(
            f"init_from {directory} was trained with another vocabulary (SHA-256 {recorded[:12]}…, the data's is "
            f"{data.identity['vocabulary'][:12]}…); prepare the text with {directory / 'spiece.model'}"
        )
    return source.params


# ---------------------------------------------------------------------------------------- the loop's parts


def _batches(
    config: PretrainConfig, source: Source, start: int, stop: int | None
) -> Iterator[Batch]:
    return make_dataset(
        source,
        batch_size=config.train.batch_size,
        start=start,
        stop=stop,
        threads=config.train.data_threads,
        workers=config.train.data_workers,
    )


def _workload(config: PretrainConfig, source: Source) -> Workload:
    examples = config.examples
    flops = train_flops_per_sequence(
        config.model, examples.max_seq_length, examples.max_predictions_per_seq
    )

    def passes(row: int) -> float:
        epoch, index = source.epoch_of(row)
        return epoch + index / source.epoch_size(epoch)

    return Workload(flops, passes)


def _evaluator(
    config: PretrainConfig, data: Data, objective: Objective, placement: Placement
) -> Callable[[Any], dict[str, float]] | None:
    """A function of parameters as placed: the means over the held-out examples, None where there are none."""
    if data.heldout is None or not len(data.heldout):
        return None
    heldout, unit = data.heldout, len(placement.devices)
    total = min(config.train.eval_examples, len(heldout))
    size = min(config.train.batch_size // config.train.accumulate, -(-total // unit) * unit)
    step = placement.compile(make_eval_step(objective, axis_name=placement.axis_name), donate=False)

    def evaluate(params: Any) -> dict[str, float]:
        results = []
        for number in range(-(-total // size)):
            batch = batch_at(
                heldout, number, size
            )  # examples past the end are drawn and weigh nothing
            weights_B = (np.arange(number * size, (number + 1) * size) < total).astype(np.float32)
            batch["masked_lm_weights"] = batch["masked_lm_weights"] * weights_B[:, None]
            batch["example_weights"] = weights_B
            results.append(placement.fetch(step(params, placement.put_batch(batch))))
        sums, weights = (
            jax.tree.map(lambda *x: float(np.sum(x, dtype=np.float64)), *(r[key] for r in results))
            for key in ("sums", "weights")
        )
        means = {name: sums[name] / weights[of] for name, of in objective.normalizer_of.items()}
        return {"loss": sum(v for n, v in means.items() if n.endswith("_loss")), **means}

    return evaluate


def _evaluate_first(
    evaluate: Callable[[Any], dict[str, float]],
    state: TrainState,
    placement: Placement,
    log: MetricsLog,
) -> None:
    values = evaluate(placement.put_state(state).params)
    text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    log.scalars("eval", 0, values, line=f"step 0, the weights started from, held out:  {text}")


def _announce(
    config: PretrainConfig,
    data: Data,
    placement: Placement,
    position: Position,
    schedule: Callable[[int], Any],
    log: MetricsLog,
) -> None:
    log.say(plan_text(config, data, placement))
    if position.step == 0:
        origin = f"weights of {config.init_from}" if config.init_from else "random weights"
        log.say(f"starting from {origin}")
    else:
        log.event(position.step, f"resumed at step {position.step}, next batch {position.batch}")
    for warning in divergence_warnings(
        config.optimizer, learning_rate=_peak(config), batch_size=config.train.batch_size
    ):
        log.say(f"warning: {warning}")


# ------------------------------------------------------------------------------------------- the plan


def describe_plan(config: PretrainConfig) -> str:
    """What `pretrain` would do, as text: sizes, schedule, examples as drawn; reads the data, trains nothing.

    Of `config.text` nothing is made: its lengths and shares are then not known yet.
    """
    devices = local_devices(config.train.devices)
    check_batch_size(config.train.batch_size, config.train.accumulate, len(devices))
    placement = make_placement(config.train.mode, devices)
    made = (
        config.workdir is not None and (Path(config.workdir) / "store" / "manifest.json").is_file()
    )
    data = (
        open_data(config, config.workdir and Path(config.workdir))
        if made or not config.text
        else None
    )
    lines = [plan_text(config, data, placement)]
    if data is not None:
        lines.append("examples as drawn   " + json.dumps(describe(data.train, examples=200)))
    lines += [f"warning: {w}" for w in divergence_warnings(config.optimizer, learning_rate=_peak(config), batch_size=config.train.batch_size)]  # fmt: skip
    return "\n".join(lines)


def _peak(config: PretrainConfig) -> float:
    _, schedule = make_optimizer(
        dataclasses.replace(config.optimizer, warmup_steps=0),
        steps=config.train.steps,
        batch_size=config.train.batch_size,
    )
    return float(schedule(0))


def plan_text(config: PretrainConfig, data: Data | None, placement: Placement) -> str:
    """The plan's main lines: model, data, updates, devices."""
    model, train, examples = config.model, config.train, config.examples
    counts = parameter_counts(model)
    flops = train_flops_per_sequence(
        model, examples.max_seq_length, examples.max_predictions_per_seq
    )
    kind = placement.devices[0].device_kind
    rows = train.steps * train.batch_size
    warmup = config.optimizer.warmup_steps
    lines = [
        f"model      {parameter_count(model):,} parameters; the shared layer's {counts['shared layers']:,} are applied "
        f"{model.num_hidden_layers} times; {config.compute.dtype}, remat {config.compute.remat}",
        f"updates    {train.steps:,} x {train.batch_size} sequences of {examples.max_seq_length} tokens, "
        f"{examples.max_predictions_per_seq} predictions at most; {flops * train.batch_size / 1e12:,.3g} TFLOP each",
        f"optimizer  {config.optimizer.name}, peak learning rate {_peak(config):.4g}, warm-up "
        f"{warmup if warmup is not None else round(train.steps * 0.025)} steps",
        f"devices    {len(placement.devices)} x {kind} under {train.mode}"
        + (f", {train.accumulate} micro-batches" if train.accumulate > 1 else ""),
    ]
    if data is not None:
        size = len(data.train)
        lines.insert(
            1,
            f"data       {size:,} examples a pass, {rows / size:,.2f} passes; "
            + (f"{len(data.heldout):,} held out" if data.heldout else "nothing held out"),
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ the end


def _finish(config: PretrainConfig, data: Data, workdir: Path, state: TrainState) -> Path:
    """Exports the model, draws the curves and says what came of the run and how to use it."""
    directory = _export(config, data, workdir, state, workdir / "model")
    heldout = _last_eval(workdir)
    baselines = _baseline_lines(data)
    draw_curves(
        workdir / "metrics.jsonl",
        workdir / "loss.png",
        baselines=baselines,
        title=f"{parameter_count(config.model) / 1e6:.1f} M parameters, {config.train.steps:,} x {config.train.batch_size} sequences",
    )
    lines = [f"curves     {workdir / 'loss.png'}"]
    if heldout:
        entropy, rate = (
            data.baselines.get("unigram_entropy_nats"),
            data.baselines.get("most_frequent_rate"),
        )
        lines.append(
            f"held out   masked-LM loss {heldout['masked_lm_loss']:.3f} nats"
            + (f" (unigram entropy of the same text {entropy:.3f})" if entropy else "")
            + f", accuracy {heldout['masked_lm_accuracy']:.1%}"
            + (f" (most frequent token {rate:.1%})" if rate else "")
        )
        if "sentence_order_accuracy" in heldout:
            lines.append(
                f"           sentence-order loss {heldout['sentence_order_loss']:.3f} nats, "
                f"accuracy {heldout['sentence_order_accuracy']:.1%}"
            )
    example = _example(config, directory)
    if example:
        lines += example
    shown = os.path.relpath(directory) if directory.is_relative_to(Path.cwd()) else str(directory)
    sentence = (
        "The [MASK] of a list."
        if config.text == ("python-docs",)
        else "The capital of France is [MASK]."
    )
    lines.append(f'use it     albert-jax fill-mask {shown} "{sentence}"')
    print("\n".join(lines), file=sys.stderr)
    return directory


def _export(
    config: PretrainConfig, data: Data, workdir: Path, state: TrainState, dest: Path
) -> Path:
    return export_model(
        dest,
        params=jax.device_get(state.params),
        config=config.model,
        vocab=data.vocab,
        tokenizer=data.tokenizer,
        provenance={
            "made_by": "albert-jax pretrain",
            "step": int(state.step),
            "config": to_dict(config),
            "held_out": _last_eval(workdir),
        },
    )


def _last_eval(workdir: Path) -> dict[str, float]:
    entries = [e for e in read_metrics(workdir / "metrics.jsonl") if e["kind"] == "eval"]
    return {k: v for k, v in entries[-1].items() if k != "kind"} if entries else {}


def _baseline_lines(data: Data) -> dict[str, float]:
    lines = {}
    if "unigram_entropy_nats" in data.baselines:
        lines["loss:unigram entropy"] = data.baselines["unigram_entropy_nats"]
    if "most_frequent_rate" in data.baselines:
        lines["masked_lm_accuracy:most frequent token"] = data.baselines["most_frequent_rate"]
    return lines


def _example(config: PretrainConfig, directory: Path) -> list[str]:
    """One sentence filled in by the model as exported, as a user would have it."""
    text = (
        "the function returns a [MASK] of strings."
        if config.text == ("python-docs",)
        else "it was the [MASK] of the year."
    )
    albert = inference.load(directory, compute=config.compute)
    answers = albert.fill_mask(text, top_k=5)
    words = ", ".join(f"{a['token_str']} {a['score']:.1%}" for a in answers)
    return [f"filled in  {text} -> {words}"]


def _write_config(workdir: Path, config: PretrainConfig) -> None:
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(to_dict(config), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, workdir / "config.json")


def _read_config(path: Path) -> PretrainConfig:
    values = json.loads(path.read_text(encoding="utf-8"))
    sections = {f.name: f.default_factory for f in dataclasses.fields(PretrainConfig) if f.default_factory is not dataclasses.MISSING}  # fmt: skip
    made = {name: type(make())(**values[name]) for name, make in sections.items() if name != "text"}
    rest = {name: value for name, value in values.items() if name not in made}
    rest["text"] = tuple(rest["text"])
    return PretrainConfig(**made, **rest)
