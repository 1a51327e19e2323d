# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning from a task's files to a model that answers it: what `albert-jax finetune` calls."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from albert_jax.checkpoint.integrity import Damaged, read_document
from albert_jax.checkpoint.manager import Checkpointer, lock_workdir
from albert_jax.checkpoint.model_dir import check_destination, export_model, load_model
from albert_jax.config.manifests import MANIFEST
from albert_jax.config.run import FinetuneConfig, to_dict
from albert_jax.distributed.compilation_cache import set_compilation_cache
from albert_jax.distributed.placement import (
    Placement,
    check_batch_size,
    local_devices,
    make_placement,
)
from albert_jax.inference.finetuned import HeadOutputs
from albert_jax.models.albert import init_params
from albert_jax.models.flops import train_flops_per_sequence
from albert_jax.tasks.batches import TrainingBatches
from albert_jax.tasks.scores import Scores, line_of
from albert_jax.tasks.split_features import SplitFeatures
from albert_jax.training.finetune_report import (
    baseline,
    command_line,
    hardware,
    is_degenerate,
    results_table,
    summary,
)
from albert_jax.training.finetune_results import (
    Baseline,
    FinetuneResults,
    JudgedStep,
    SeedRun,
)
from albert_jax.training.finetune_setup import (
    FinetuneSetup,
    finetuning_identity,
    first_params,
    set_up,
)
from albert_jax.training.loop import Position, Run, fit, resume
from albert_jax.training.losses import task_objective
from albert_jax.training.memory import check_fits, out_of_memory_told
from albert_jax.training.metrics import MetricsLog, write_json
from albert_jax.training.optimizer import make_optimizer
from albert_jax.training.run_inputs import require_finetuning_inputs
from albert_jax.training.step import TrainState, init_state, make_train_step
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import finite
from albert_jax.utils.malloc import give_back_large_buffers
from albert_jax.utils.progress import ProgressMeter, Tick
from albert_jax.utils.provenance import commit, versions
from albert_jax.utils.streams import say

RESULTS = "results.json"


def finetune(config: FinetuneConfig) -> FinetuneResults:
    """Fine-tune as configured, or go on with it, and return what results.json holds.

    The work directory gets config.json, results.json, a folder `seed-N` for each run with
    checkpoints/, metrics.jsonl, tensorboard/ and the model directories last/ and best/, and links
    `last`, `best` and `model` to those of the run that is best on dev; `model` is its best step.
    Raises UserError for settings or data that do not fit, TryAgain when stopped by a signal.
    """
    require_finetuning_inputs(config)
    train, workdir = config.train, Path(config.workdir or "")
    check_batch_size(train.batch_size, train.accumulate, len(local_devices(train.devices)))
    set_compilation_cache(train.compilation_cache)
    started = time.time()
    with lock_workdir(workdir):
        prepared = set_up(config)
        base = baseline(prepared.task, prepared.train.examples, prepared.dev.examples)
        write_json(workdir / "config.json", to_dict(config))
        say(_announcement(config, prepared, base))
        runs = _runs(config, prepared, workdir)
        kept = [run for run in runs if not run.restarted]
        metric = prepared.task.metric
        results = FinetuneResults(
            task=prepared.task.name,
            metric=metric,
            model=config.model,
            random_weights=config.random_weights,
            train_examples=len(prepared.train.examples),
            dev_examples=len(prepared.dev.examples),
            runs=runs,
            summary=summary(kept, metric),
            baseline=base,
            seconds=time.time() - started,
            command=command_line(),
            commit=commit(),
            versions={**versions(), "python": platform.python_version()},
            hardware=hardware(),
            config=to_dict(config),
        )
        chosen = max(kept, key=lambda run: _comparable(run.best.metrics[metric]))
        _link(workdir, Path(chosen.directory))
        write_json(workdir / RESULTS, finite(results))
        say(results_table(prepared.task, runs, results.summary, base))
        say(f"use it     albert-jax predict --model {workdir / 'model'} --input FILE --output FILE")
        return results


def _runs(config: FinetuneConfig, prepared: FinetuneSetup, workdir: Path) -> list[SeedRun]:
    """A run for each seed, and for each degenerate one, as often as allowed, one of a new seed."""
    runs = []
    fresh = config.train.seed + config.seeds  # the first seed that is not asked for
    for number in range(config.seeds):
        seed = config.train.seed + number
        for attempt in range(config.restarts + 1):
            run = _run(config, prepared, workdir, seed)
            again = run.degenerate and attempt < config.restarts
            runs.append(dataclasses.replace(run, restarted=again))
            if run.degenerate:
                onward = f"; beginning anew with seed {fresh}" if again else ""
                say(f"seed {seed} is degenerate: it answers all dev examples alike{onward}")
            if not again:
                break
            seed, fresh = fresh, fresh + 1
    return runs


def _run(config: FinetuneConfig, prepared: FinetuneSetup, workdir: Path, seed: int) -> SeedRun:
    """One seed's run: trained, or gone on with, then judged at its last and its best step."""
    name = f"seed-{seed}"
    directory = workdir / name
    directory.mkdir(exist_ok=True)
    for which in ("last", "best"):
        check_destination(directory / which)
    outputs = HeadOutputs(prepared.model, pack=config.pack)
    best = _Best(config, prepared, outputs, directory / "best", seed)
    state = _train(config, prepared, directory, seed, best)
    metrics, predictions = _judged(best, state.params, prepared, f"dev at step {state.step}")
    _export(config, prepared, state.params, directory / "last", seed, int(state.step), metrics)
    last = JudgedStep(step=int(state.step), metrics={**metrics})
    found = load_model(directory / "best")
    step = found.manifest["provenance"]["step"]
    best_metrics, best_predictions = _judged(best, found.params, prepared, f"dev at step {step}")
    collapsed, learnt_nothing = (
        is_degenerate(prepared.task, prepared.dev.examples, x)
        for x in (predictions, best_predictions)
    )
    return SeedRun(
        seed=seed,
        directory=name,
        last=last,
        best=JudgedStep(step=step, metrics={**best_metrics}),
        degenerate=learnt_nothing,
        collapsed_at_the_end=collapsed,
    )


def _judged(
    best: _Best, params: Any, prepared: FinetuneSetup, what: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and predictions on all of dev, with a bar."""
    with ProgressMeter(what, len(prepared.dev.rows), unit="row") as meter:
        return best.judge(params, prepared.dev, meter.tick)


def _train(
    config: FinetuneConfig, prepared: FinetuneSetup, directory: Path, seed: int, best: _Best
) -> TrainState:
    train = dataclasses.replace(config.train, seed=seed)
    devices = local_devices(train.devices)
    check = partial(check_fits, devices=devices, config=config, when_tight=give_back_large_buffers)
    placement = make_placement(train.mode, devices, check)
    tx, schedule = make_optimizer(config.optimizer, steps=train.steps, batch_size=train.batch_size)
    step = make_train_step(
        task_objective(prepared.model),
        tx,
        accumulate=train.accumulate,
        axis_name=placement.axis_name,
    )
    batches = _batches(config, prepared, seed)
    run = Run(
        step=step,
        schedule=schedule,
        batches=batches.batches,
        evaluate=lambda params, step, tick: best.offer(
            _on_one_device(placement, params), step, tick
        ),
        identity=finetuning_identity(config, prepared, seed),
        flops_per_row=_flops_per_row(prepared, batches),
        passes=lambda row: row / len(prepared.train.rows),
    )
    with (
        out_of_memory_told(devices, config),
        Checkpointer(directory / "checkpoints", keep=train.keep) as checkpointer,
    ):
        state, position, origin = _first_state(
            config, prepared, tx, checkpointer, placement, run.identity, seed
        )
        log = MetricsLog(directory, total_steps=train.steps, resume_step=position.step)
        if position.step == 0:
            best.forget()
        try:
            log.event(position.step, f"seed {seed}: {origin}")
            return fit(
                train,
                config.guard,
                run,
                state=state,
                position=position,
                placement=placement,
                checkpointer=checkpointer,
                log=log,
            )
        finally:
            log.close()


def _batches(config: FinetuneConfig, prepared: FinetuneSetup, seed: int) -> TrainingBatches:
    train = config.train
    return TrainingBatches(
        prepared.train.rows,
        batch_size=train.batch_size,
        seed=seed,
        window=config.window,
        longest=config.max_seq_length,
        pack=config.pack,
        unit=train.accumulate * len(local_devices(train.devices)),
    )


def _first_state(
    config: FinetuneConfig,
    prepared: FinetuneSetup,
    tx: Any,
    checkpointer: Checkpointer,
    placement: Placement,
    expect: Mapping[str, Any],
    seed: int,
) -> tuple[TrainState, Position, str]:
    """The newest checkpoint, else the weights to start from; and which of the two."""
    shapes = jax.eval_shape(
        lambda: init_state(init_params(prepared.model, jax.random.key(seed)), tx, seed=seed)
    )
    restored = resume(checkpointer, placement.restore_target(shapes), expect)
    if restored is not None:
        state, position = restored
        return state, position, f"resumed at step {position.step}, next batch {position.batch}"
    params, origin = first_params(prepared, seed=seed, random_weights=config.random_weights)
    state = init_state(jax.device_put(params), tx, seed=seed)
    return jax.device_put(state, placement.state_sharding), Position(), f"starting from {origin}"


class _Best:
    """Judges a run on dev, and keeps its best step as a model directory."""

    def __init__(
        self,
        config: FinetuneConfig,
        prepared: FinetuneSetup,
        outputs: HeadOutputs,
        directory: Path,
        seed: int,
    ) -> None:
        self._config, self._prepared, self._outputs = config, prepared, outputs
        self._directory, self._seed = directory, seed
        self._dev = _some_of(prepared.dev, config.train.eval_examples)
        self._value, self._nothing_kept = self._recorded(), not directory.exists()

    def _recorded(self) -> float:
        """The best value of the run that goes on."""
        try:
            found = read_document(self._directory / MANIFEST)["provenance"]
        except (Damaged, OSError, KeyError):
            return -math.inf
        return _comparable(found["chosen_by"])

    def forget(self) -> None:
        """Takes the first offer that comes: what is kept may be an earlier run's."""
        self._value, self._nothing_kept = -math.inf, True

    def offer(self, params: Any, step: int, tick: Tick) -> dict[str, float]:
        """The metrics of these parameters, which are kept where none were better."""
        metrics, _ = self.judge(params, self._dev, tick)
        value = _comparable(metrics[self._prepared.task.metric])
        if value > self._value or self._nothing_kept:
            self._value, self._nothing_kept = value, False
            _export(
                self._config, self._prepared, params, self._directory, self._seed, step, metrics
            )
        numbers = {name: x for name, x in metrics.items() if isinstance(x, (int, float))}
        task = self._prepared.task
        return Scores(numbers, line_of(task, task.metric, numbers))

    def judge(
        self, params: Any, split: SplitFeatures, tick: Tick | None = None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics and predictions; `tick` hears of rows done."""
        task = self._prepared.task
        outputs = self._outputs(jax.device_put(params), split.rows, tick)
        predictions = task.predictions(split.examples, split.features, outputs)
        return task.metrics(split.examples, predictions), predictions


def _some_of(split: SplitFeatures, limit: int) -> SplitFeatures:
    """At most `limit` of the examples, evenly spread over the file."""
    count = len(split.examples)
    if count <= limit:
        return split
    kept = {i * count // limit: i for i in range(limit)}
    pairs = [
        (dataclasses.replace(feature, example=kept[feature.example]), row)
        for feature, row in zip(split.features, split.rows, strict=True)
        if feature.example in kept
    ]
    return SplitFeatures(
        [split.examples[i] for i in kept], [f for f, _ in pairs], [row for _, row in pairs]
    )


def _comparable(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _on_one_device(placement: Placement, params: Any) -> Any:
    return jax.tree.map(lambda x: x.addressable_data(0), placement.get_state(params))


def _flops_per_row(prepared: FinetuneSetup, batches: TrainingBatches) -> float:
    choices = len(prepared.train.rows[0].ids)
    config, shapes = prepared.source.config, batches.shapes()
    flops = sum(count * train_flops_per_sequence(config, length, 0) for count, length in shapes)
    return choices * flops / (len(shapes) * batches.size)


def _export(
    config: FinetuneConfig,
    prepared: FinetuneSetup,
    params: Any,
    directory: Path,
    seed: int,
    step: int,
    metrics: dict[str, float],
) -> None:
    source = prepared.source
    export_model(
        directory,
        params=jax.device_get(params),
        config=source.config,  # its dropout too, which is the run's affair and not the weights'
        vocab=source.tokenizer["path"],
        tokenizer={key: source.tokenizer[key] for key in ("mode", "do_lower_case")},
        head=prepared.head | {"max_seq_length": config.max_seq_length},
        provenance={
            "made_by": "albert-jax finetune",
            "seed": seed,
            "step": step,
            "chosen_by": finite(metrics[prepared.task.metric]),
            "dev": finite(metrics),
            "config": to_dict(config),
            "started_from": {
                key: source.manifest["provenance"].get(key) for key in ("made_by", "source", "step")
            },
        },
    )


def _link(workdir: Path, run: Path) -> None:
    """Points `last`, `best` and `model` at a run's model directories."""
    for name, target in (("last", "last"), ("best", "best"), ("model", "best")):
        temporary, link = workdir / f".{name}.new", workdir / name
        if link.exists() and not link.is_symlink():
            raise UserError(f"{link} is in the way of a link; give another --workdir")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(run / target)
        os.replace(temporary, link)


def _announcement(config: FinetuneConfig, prepared: FinetuneSetup, base: Baseline) -> str:
    train = config.train
    batches = _batches(config, prepared, train.seed)
    length, share = batches.fill(min(train.steps, 200))
    examples, rows = len(prepared.train.examples), len(prepared.train.rows)
    passes = train.steps * train.batch_size / rows
    figures = line_of(prepared.task, prepared.task.metric, base.metrics)
    return "\n".join(
        [
            f"task       {prepared.task.name}, head {prepared.task.head}; {examples:,} examples to "
            f"train on ({rows:,} rows), {len(prepared.dev.examples):,} of dev",
            f"updates    {train.steps:,} x {train.batch_size} rows, {passes:.2f} passes; "
            f"{'packed' if config.pack else 'padded'} to "
            f"{length:.0f} tokens in the mean, {share:.0%} of them text "
            f"(all to {config.max_seq_length}: {share * length / config.max_seq_length:.0%})",
            f"baseline   {base.what}: {figures}",
        ]
    )
