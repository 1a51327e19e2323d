# SPDX-License-Identifier: Apache-2.0
"""Fine-tune from a task's files to a model that answers it, for `albert-jax finetune`."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from albert_jax.checkpoint.adapter import check_adapter_destination
from albert_jax.checkpoint.integrity import read_document
from albert_jax.checkpoint.manager import lock_workdir
from albert_jax.checkpoint.model_dir import ModelDirectory, load_model
from albert_jax.checkpoint.model_export import check_destination
from albert_jax.config.history import CONTINUABLE_IN_FINETUNING, write_history
from albert_jax.config.manifests import MANIFEST
from albert_jax.config.recipes import to_dict
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import Destination
from albert_jax.distributed.compilation_cache import compilation_cache
from albert_jax.distributed.placement import Placement, local_devices
from albert_jax.inference.finetuned import HeadOutputs
from albert_jax.models.flops import train_flops_per_sequence
from albert_jax.tasks import Task
from albert_jax.tasks.batches import Pack, TrainingBatches
from albert_jax.tasks.scores import goodness, line_of
from albert_jax.training.best_step import BestStep, Judged
from albert_jax.training.continuations import Continuations, require_checkpoint
from albert_jax.training.finetune_report import (
    command_line,
    hardware,
    is_degenerate,
    results_table,
    summary,
)
from albert_jax.training.finetune_results import (
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
from albert_jax.training.losses import ClassLoss, Distillation, task_objective
from albert_jax.training.metrics import METRICS, MetricsLog, entries_of, write_json
from albert_jax.training.optimizer import warmup_warnings
from albert_jax.training.position import Position
from albert_jax.training.run import Run
from albert_jax.training.run_inputs import require_finetuning_inputs
from albert_jax.training.session import Beginning, Session, carry_out, memory_check, open_placement
from albert_jax.training.step import (
    ConfiguredStep,
    TrainState,
    configured_step,
    evaluated_weights,
)
from albert_jax.training.step_meter import Workload
from albert_jax.training.trackers import require_trackers
from albert_jax.training.watching import TENSORBOARD, Callback, Watching, watching_of
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_values import finite
from albert_jax.utils.numbers import rounded
from albert_jax.utils.progress import ProgressMeter, Tick
from albert_jax.utils.provenance import commit, versions, without_credentials
from albert_jax.utils.streams import say
from albert_jax.utils.wording import setting

RESULTS = "results.json"


def finetune(
    config: FinetuneConfig,
    *,
    log: Destination | Sequence[Destination] = TENSORBOARD,
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
    continue_with: bool = False,
) -> FinetuneResults:
    """Fine-tune as configured, or continue the runs, and return the contents of results.json.

    The work directory gets config.json, results.json and a folder `seed-N` for each run, with
    checkpoints/, metrics.jsonl, tensorboard/ and the model directories last/ and best/. Its links
    `last`, `best` and `model` lead to those of the run that is best on dev; `model` is that run's
    best step.

    Args:
        config: the task, the model to start from, the data and the settings.
        log: the trackers that receive the figures: "tensorboard", "wandb", "mlflow", or several.
        on_step: called with each training line of the log, as in `pretrain`. StopTraining ends the
            run of one seed.
        on_evaluation: called with each evaluation, as in `pretrain`.
        continue_with: continue the runs in the work directory, though their steps or their learning
            rate are others than so far. The history.json of each tells of each such change.

    Returns:
        The metrics of each seed's run and their spread.

    Raises:
        UserError: if the settings or the data do not fit.
        TryAgain: if a signal stopped the run; the same call continues it.
    """
    watching = watching_of(log, on_step, on_evaluation)
    require_finetuning_inputs(config)
    require_trackers(watching.log)
    workdir = Path(config.workdir or "")
    if continue_with:
        require_checkpoint(workdir)
    placement = open_placement(config)
    started = time.time()
    with compilation_cache(config.train.compilation_cache), lock_workdir(workdir):
        _require_room_for_links(workdir)
        for seed in range(config.train.seed, config.train.seed + config.seeds):
            _require_room_for_models(config, workdir / f"seed-{seed}")
        prepared = set_up(config)
        config = dataclasses.replace(config, max_seq_length=prepared.max_seq_length)
        say(_announcement(config, prepared))
        session_of = partial(_session, config, prepared, placement, watching, continue_with)
        runs = _runs(config, session_of)
        kept = [run for run in runs if not run.restarted]
        metric, base = prepared.metric, prepared.baseline
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
            class_weights=_weights_by_label(prepared),
            seconds=time.time() - started,
            command=command_line(),
            commit=commit(),
            versions={**versions(), "python": platform.python_version()},
            hardware=hardware(local_devices(config.train.devices)),
            config=without_credentials(to_dict(config)),
        )
        chosen = max(kept, key=lambda run: goodness(metric, run.best.metrics[metric]))
        write_json(workdir / RESULTS, finite(results))
        _link(workdir, Path(chosen.directory))
        say(results_table(prepared.task, runs, results.summary, base, metric))
        say(f"use it     albert-jax predict --model {workdir / 'model'} --input FILE --output FILE")
        return results


def _weights_by_label(prepared: FinetuneSetup) -> dict[str, float] | None:
    weights = prepared.class_weights
    return dict(zip(prepared.task.labels, weights, strict=True)) if weights else None


def _runs(config: FinetuneConfig, session_of: Callable[[int], Session]) -> list[SeedRun]:
    """Make a run for each seed.

    A degenerate run is replaced by a new seed's, as often as allowed.
    """
    runs = []
    fresh = config.train.seed + config.seeds  # the first seed that is not asked for
    for number in range(config.seeds):
        seed = config.train.seed + number
        for attempt in range(config.restarts + 1):
            run = carry_out(session_of(seed))
            again = run.degenerate and attempt < config.restarts
            runs.append(dataclasses.replace(run, restarted=again))
            if run.degenerate:
                onward = f"; beginning anew with seed {fresh}" if again else ""
                say(f"seed {seed} is degenerate: it answers all dev examples alike{onward}")
            if not again:
                break
            seed, fresh = fresh, fresh + 1
    return runs


def _session(
    config: FinetuneConfig,
    prepared: FinetuneSetup,
    placement: Placement,
    watching: Watching,
    continue_with: bool,
    seed: int,
) -> Session:
    """Return the session of one seed's run."""
    directory = Path(config.workdir or "") / f"seed-{seed}"
    directory.mkdir(exist_ok=True)
    _require_room_for_models(config, directory)
    outputs = HeadOutputs(prepared.model, pack=config.pack)
    best = BestStep(config, prepared, outputs, directory / "best", seed)
    model = prepared.model.clone(lowering=placement.lowering, exits=config.exits)
    classes = ClassLoss(prepared.class_weights, config.label_smoothing)
    teacher = Distillation(config.distill_weight, config.temperature) if config.teacher else None
    made = configured_step(model, task_objective(model, classes, teacher), config)
    continuations = Continuations(
        finetuning_identity(config, prepared, seed),
        CONTINUABLE_IN_FINETUNING,
        steps=config.train.steps,
        continue_with=continue_with,
    )
    run = _run_of(config, prepared, made, placement, best, continuations)
    return Session(
        config=config,
        run=dataclasses.replace(run, watching=watching),
        placement=placement,
        directory=directory,
        random_state=partial(made.random_state, seed),
        first_state=partial(_first_state, config, prepared, made, seed),
        begin=partial(_begin, best, run.workload, continuations),
        finish=partial(_finish, best),
    )


def _run_of(
    config: FinetuneConfig,
    prepared: FinetuneSetup,
    made: ConfiguredStep,
    placement: Placement,
    best: BestStep,
    continuations: Continuations,
) -> Run:
    batches = _batches(config, prepared, best.seed)
    flops = config.train.batch_size * _flops_per_row(config, prepared, batches)

    def evaluate(params: Any, position: Position, tick: Tick) -> dict[str, float]:
        return best.offer(_on_one_device(placement, params), position.step, tick)

    return Run(
        config=dataclasses.replace(config.train, seed=best.seed),
        guard=config.guard,
        step_at=lambda _: made.step,
        batches=batches.batches,
        workload=Workload(
            steps=config.train.steps,
            rows=lambda _: config.train.batch_size,
            flops=lambda count: count * flops,
            schedule=jax.jit(made.schedule),
            passes=lambda count: count * config.train.batch_size / len(prepared.train.rows),
        ),
        identity=continuations.identity,
        judge=continuations.judge,
        kept=lambda _: continuations.kept(),
        recall=continuations.recall,
        evaluate=evaluate,
        check_program=memory_check(config),
        evaluated=evaluated_weights,
        ends_at=best.patience.is_over,
    )


def _first_state(
    config: FinetuneConfig, prepared: FinetuneSetup, made: ConfiguredStep, seed: int
) -> tuple[TrainState, str]:
    """Return the first weights with a fresh optimizer, and a sentence on where they come from."""
    params, origin = first_params(prepared, seed=seed, random_weights=config.random_weights)
    return made.state_of(jax.device_put(params), seed), origin


def _begin(
    best: BestStep,
    workload: Workload,
    continuations: Continuations,
    beginning: Beginning,
    _: TrainState,
    log: MetricsLog,
) -> None:
    run = best.directory.parent
    write_json(run.parent / "config.json", to_dict(best.config))
    write_history(run, continuations.history)
    if beginning.position.step == 0:
        best.forget()
    else:
        entries = entries_of(run / METRICS)
        since = max((change.step for change in continuations.history), default=0)
        best.recall([entry for entry in entries if entry["kind"] == "eval"], since)
    log.event(beginning.position.step, f"seed {best.seed}: {beginning.origin}")
    if told := continuations.begun_in_words(workload):
        log.event(beginning.position.step, f"seed {best.seed}: {told}")


def _finish(best: BestStep, state: TrainState) -> SeedRun:
    """Judge a run at its last and its best step, and export the last."""
    prepared, directory, step = best.prepared, best.directory, int(state.step)
    params = evaluated_weights(state)
    # The loop may have judged these very parameters.
    last = best.offered(step) or _judged(best, params, f"dev at step {step}")
    best.export(params, directory.parent / "last", step, last)
    found = load_model(directory)
    best_step = found.manifest["provenance"]["step"]
    kept = last
    if not _is_one_model(found, directory.parent / "last"):
        # With the thresholds that the model keeps, which may come from fewer dev examples.
        task = prepared.task.with_settings(found.head.settings if found.head else None)
        kept = _judged(best, found.params, f"dev at step {best_step}", task)
    collapsed, learnt_nothing = (
        is_degenerate(prepared.task, prepared.dev.examples, x.predictions) for x in (last, kept)
    )
    return SeedRun(
        seed=best.seed,
        directory=directory.parent.name,
        last=JudgedStep(step=step, metrics={**last.metrics}),
        best=JudgedStep(step=best_step, metrics={**kept.metrics}),
        degenerate=learnt_nothing,
        collapsed_at_the_end=collapsed,
        ended=_why_it_ended(best, step),
    )


def _is_one_model(model: ModelDirectory, other: Path) -> bool:
    """Return whether another directory has the same weights, head and thresholds."""
    theirs = read_document(other / MANIFEST)
    return all(model.manifest[part] == theirs[part] for part in ("tensors", "head"))


def _why_it_ended(best: BestStep, step: int) -> Literal["last_step", "early_stopping", "callback"]:
    if step >= best.config.train.steps:
        return "last_step"
    return "early_stopping" if best.patience.is_over(step) else "callback"


def _judged(best: BestStep, params: Any, what: str, task: Task | None = None) -> Judged:
    """Judge parameters on all of dev, with a progress bar."""
    dev = best.prepared.dev
    with ProgressMeter(what, len(dev.rows), unit="row") as meter:
        return best.judge(params, dev, meter.tick, task)


def _batches(config: FinetuneConfig, prepared: FinetuneSetup, seed: int) -> TrainingBatches:
    train = config.train
    unit = train.accumulate * len(local_devices(train.devices))
    return TrainingBatches(
        prepared.train.rows,
        batch_size=train.batch_size,
        seed=seed,
        window=config.window,
        longest=prepared.max_seq_length,
        pack=Pack(config.pack, unit) if config.pack else None,
    )


def _on_one_device(placement: Placement, params: Any) -> Any:
    return jax.tree.map(lambda x: x.addressable_data(0), placement.get_state(params))


def _flops_per_row(
    config: FinetuneConfig, prepared: FinetuneSetup, batches: TrainingBatches
) -> float:
    """Return the matmul FLOPs of a row, forward and backward.

    Of an encoder that is frozen the forward pass alone. With adapters the backward pass has the
    gradients of activations and none of kernels.
    """
    share = 1 / 3 if config.freeze == "encoder" else 2 / 3 if config.lora else 1.0
    choices = len(prepared.train.rows[0].ids)
    model, shapes = prepared.source.config, batches.shapes()
    flops = sum(count * train_flops_per_sequence(model, length, 0) for count, length in shapes)
    return share * choices * flops / (len(shapes) * batches.size)


_LINKS = {"last": "last", "best": "best", "model": "best"}  # in a work directory, and their targets


def _link(workdir: Path, run: Path) -> None:
    """Point the links `last`, `best` and `model` at a run's model directories."""
    for name, target in _LINKS.items():
        temporary = workdir / f".{name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(run / target)
        os.replace(temporary, workdir / name)


def _require_room_for_links(workdir: Path) -> None:
    """Raise UserError if something else has the name of a link, as a pretraining run's model."""
    for link in (workdir / name for name in _LINKS):
        if link.exists() and not link.is_symlink():
            raise UserError(f"{link} is in the way of a link; give another {setting('workdir')}")


def _require_room_for_models(config: FinetuneConfig, run: Path) -> None:
    """Raise UserError if the models of one seed's run cannot be written."""
    for which in ("last", "best"):
        other = f"another {setting('workdir')}"
        check_destination(run / which, other=other)
        if config.lora:
            check_adapter_destination(run / f"{which}-adapter", other=other)


def _announcement(config: FinetuneConfig, prepared: FinetuneSetup) -> str:
    train, base = config.train, prepared.baseline
    batches = _batches(config, prepared, train.seed)
    length, share = batches.fill(min(train.steps, 200))
    whole = prepared.max_seq_length
    examples, rows = len(prepared.train.examples), len(prepared.train.rows)
    passes = train.steps * train.batch_size / rows
    figures = line_of(prepared.task, prepared.metric, base.metrics)
    weights = _weights_by_label(prepared) or {}
    told = ", ".join(f"{label} {rounded(weight)}" for label, weight in weights.items())
    return "\n".join(
        [
            f"task       {prepared.task.name}, head {prepared.task.head}; {examples:,} examples to "
            f"train on ({rows:,} rows), {len(prepared.dev.examples):,} of dev",
            f"updates    {train.steps:,} x {train.batch_size} rows, {passes:.2f} passes; "
            f"{'packed' if config.pack else 'padded'} to "
            f"{length:.0f} tokens in the mean, {share:.0%} of them text "
            f"(all to {whole}: {share * length / whole:.0%})",
            f"baseline   {base.what}: {figures}",
            *([f"weights    {told}"] if told else []),
            *(f"warning: {x}" for x in warmup_warnings(config.optimizer, train.steps)),
        ]
    )
