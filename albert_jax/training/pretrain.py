# SPDX-License-Identifier: Apache-2.0
"""Pretrain from data to a model directory, for `albert-jax pretrain` and `albert-jax export`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from albert_jax.checkpoint.manager import Checkpointer, another_run, lock_owner, lock_workdir
from albert_jax.checkpoint.model_dir import load_model, require_no_runs_model
from albert_jax.checkpoint.model_export import (
    Replaces,
    check_destination,
    export_model,
    is_pretrained,
)
from albert_jax.config.history import CONTINUABLE, read_history, recorded, write_history
from albert_jax.config.manifests import (
    ModelManifest,
    TextSettings,
    is_model_directory,
    vocabulary_in,
    vocabulary_name,
)
from albert_jax.config.recipes import to_dict
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import Destination
from albert_jax.data.pretraining import (
    PretrainingData,
    open_data,
    settings_identity,
)
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.distributed import multihost
from albert_jax.distributed.compilation_cache import compilation_cache
from albert_jax.distributed.multihost import Launch
from albert_jax.distributed.placement import Placement
from albert_jax.models.flops import parameter_count, stage_flops
from albert_jax.models.lowering import Lowering
from albert_jax.training.continuations import (
    Continuations,
    is_of_run,
    require_checkpoint,
    run_record,
)
from albert_jax.training.course import Course
from albert_jax.training.evaluations import log_evaluation
from albert_jax.training.first_values import first_values, params_of
from albert_jax.training.heldout import evaluator
from albert_jax.training.metrics import METRICS, MetricsLog, entries_of, write_json
from albert_jax.training.position import Position
from albert_jax.training.pretrain_report import baselines_at, closing, draw_losses, run_plan
from albert_jax.training.pretrain_results import PretrainResult
from albert_jax.training.run import Evaluate, Run
from albert_jax.training.run_inputs import require_no_finetuning_run, require_pretraining_inputs
from albert_jax.training.session import Beginning, Session, carry_out, memory_check, open_placement
from albert_jax.training.standing import Standing
from albert_jax.training.step import (
    ConfiguredStep,
    TrainState,
    make_pretrain_step,
)
from albert_jax.training.step_meter import Workload
from albert_jax.training.trackers import require_trackers
from albert_jax.training.watching import TENSORBOARD, Callback, Watching, watching_of
from albert_jax.utils.atomic import appearing_file, require_apart, writing
from albert_jax.utils.errors import UserError
from albert_jax.utils.json_files import decode_json, read_json
from albert_jax.utils.json_values import JsonObject
from albert_jax.utils.provenance import versions, without_credentials
from albert_jax.utils.streams import say
from albert_jax.utils.wording import positional, setting


def pretrain(
    config: PretrainConfig,
    *,
    launch: Launch | None = None,
    log: Destination | Sequence[Destination] = TENSORBOARD,
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
    continue_with: bool = False,
) -> PretrainResult:
    """Pretrain as configured, or continue the run, and export a model directory.

    The work directory gets config.json, checkpoints/, metrics.jsonl, tensorboard/, loss.png and
    model/.

    Args:
        config: the model, data and schedule.
        launch: how this process finds the others, where several processes make the run together
            over all their devices. They share the work directory; process 0 logs and exports.
        log: the trackers that receive the figures: "tensorboard", "wandb", "mlflow", or several.
        on_step: called as (step, metrics) in process 0 with each training line of the log: step 1,
            then each `train.log_every` steps. The loop waits for it. If it raises StopTraining, the
            run is saved, evaluated and exported, and ends. Any other exception is raised here,
            after the steps so far are saved.
        on_evaluation: the same with each evaluation.
        continue_with: continue the run from its newest checkpoint although its steps, batches or
            learning rates differ from the configured ones. history.json in the work directory
            records the change.

    Returns:
        The number of steps, the last evaluation and the model directory.

    Raises:
        UserError: if the settings or the data do not fit, or are not those of the work directory's
            run.
        TryAgain: if a signal stopped the run; the same call continues it.
    """
    watching = watching_of(log, on_step, on_evaluation)
    with multihost.joined(launch):
        return _pretrain(config, watching, continue_with)


def _pretrain(config: PretrainConfig, watching: Watching, continue_with: bool) -> PretrainResult:
    workdir = Path(config.workdir or "")
    with multihost.together():
        require_pretraining_inputs(config, fetch=not multihost.several())
        require_trackers(watching.log)
        if continue_with:
            require_checkpoint(workdir)
    with multihost.together(), contextlib.ExitStack() as stack:
        _require_same_settings(config, continue_with)
        placement = open_placement(config)
        _require_own_model(config, workdir)
        stack.enter_context(compilation_cache(config.train.compilation_cache))
        if multihost.is_primary():
            stack.enter_context(lock_workdir(workdir))
            if config.text:
                _require_room_for_text(config, workdir, continue_with)
        locked = stack.pop_all()
    with locked:
        data = _open_data(config, workdir)
        course = Course(config, data, placement.lowering, continue_with=continue_with)
        with multihost.together():
            _require_own_model(config, workdir, run_record(course.continuations.identity))
        result = carry_out(_session(config, data, course, placement, watching))
    # Process 0 made it.
    return PretrainResult.from_json(multihost.gather(result)[0])


def _require_room_for_text(config: PretrainConfig, workdir: Path, continue_with: bool) -> None:
    """Raise UserError if a vocabulary and a store of text would be made for another run.

    Of a work directory's run, the settings and the text's name can be compared before.
    """
    checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
    continuations = _by_settings(config, continue_with=continue_with)
    checkpointer.require(continuations.judge)
    has_run = bool(checkpointer.steps()) or is_model_directory(workdir / "model")
    if has_run and not (workdir / "store" / "manifest.json").is_file():  # which has a record
        there = _text_of(workdir)
        if there is not None and there != config.text:
            texts = {"text": (list(there) or None, list(config.text))}
            raise UserError(f"{another_run(workdir, texts)}; give another {setting('workdir')}")


def _by_settings(
    config: PretrainConfig, *, continue_with: bool, makes_steps: bool = True
) -> Continuations:
    """Return the judge of a run's checkpoints by its settings alone, without its data."""
    return Continuations(
        settings_identity(config),
        CONTINUABLE,
        steps=config.train.steps,
        continue_with=continue_with,
        makes_steps=makes_steps,
    )


def _text_of(workdir: Path) -> tuple[str, ...] | None:
    """Return the text of the run in a work directory, by its config.json; None if unknown."""
    with contextlib.suppress(FileNotFoundError, UserError):
        return read_json(workdir / "config.json", PretrainConfig, hint="").text
    return None


def _require_own_model(
    config: PretrainConfig, workdir: Path, run: JsonObject | None = None
) -> None:
    """Raise UserError if a run would replace a model which it did not make.

    The checkpoints of a run that continues are its own, and so is the model beside them. Before the
    data are opened, which may mean to prepare text for hours, the record `run` is unknown, and a
    model that has this run's settings may be its own.
    """
    replaces: Replaces = is_pretrained
    # Process 0 writes the model, and another host may have its own name for the work directory.
    if multihost.is_primary() and not Checkpointer(workdir / "checkpoints", read_only=True).steps():
        replaces = _older_of(config, run)
    check_destination(workdir / "model", replaces, other=f"another {setting('workdir')}")


def _session(
    config: PretrainConfig,
    data: PretrainingData,
    course: Course,
    placement: Placement,
    watching: Watching,
) -> Session:
    workdir = Path(config.workdir or "")
    made = make_pretrain_step(config, placement.lowering)
    run = _run_of(config, data, course, placement, watching)
    random_state = jax.jit(partial(made.random_state, config.train.seed))  # traced once
    return Session(
        config=config,
        run=run,
        placement=placement,
        directory=workdir,
        random_state=random_state,
        first_state=partial(_first_state, config, data, made, random_state),
        begin=partial(_begin, course, run, placement),
        finish=partial(_finish, course, workdir),
    )


def _begin(
    course: Course,
    run: Run,
    placement: Placement,
    beginning: Beginning,
    state: TrainState,
    log: MetricsLog,
) -> None:
    """Report what the run is, and how good its first weights are."""
    config = course.config
    if multihost.is_primary():
        workdir = Path(config.workdir or "")
        write_json(workdir / "config.json", to_dict(config))
        write_history(workdir, course.continuations.history)
        _keep_vocabulary(course.data, workdir)
    step = beginning.position.step
    log.say(run_plan(config, course.data))
    if step:
        log.event(step, beginning.origin)
        if told := course.continuations.begun_in_words(run.workload):
            log.event(step, told)
        return
    log.say(beginning.origin)
    if config.init_from and run.evaluate:
        _evaluate_first(run.evaluate, placement, state, log)


def _evaluate_first(
    evaluate: Evaluate, placement: Placement, state: TrainState, log: MetricsLog
) -> None:
    """Evaluate the weights that the run starts from.

    A wrong vocabulary or activation shows here at once, as accuracy near chance.
    """
    if multihost.gather(log.has_evaluation(0))[0]:
        return

    def tick(done: int, total: int) -> None:
        log.working(0, f"evaluating {done:,} of {total:,}")

    values = evaluate(placement.put_state(state).params, Position(), tick)
    log_evaluation(log, 0, values, "the weights started from, held out")


def _finish(course: Course, workdir: Path, state: TrainState) -> PretrainResult:
    """Export the model and report how good it is."""
    config, data = course.config, course.data
    model, held_out = workdir / "model", _last_eval(workdir)
    run = run_record(course.continuations.identity)
    _export(config, data.vocab, data.tokenizer, workdir, state, model, run, is_pretrained)
    baselines = baselines_at(config, data)
    say(closing(config, workdir, model, held_out, baselines))
    return PretrainResult(
        model=str(model),
        workdir=str(workdir),
        step=int(state.step),
        steps=config.train.steps,
        parameters=parameter_count(config.model),
        held_out=held_out,
        baselines=baselines,
    )


def export(
    workdir: str | Path, dest: str | Path, *, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Path:
    """Write a run's newest good checkpoint as a model directory, also during the run.

    An older export of the same run is replaced, and no other model.

    Args:
        workdir: the run's work directory.
        dest: the model directory to write.
        dtype: bfloat16 halves the files; parameters are float32 again when read.

    Returns:
        The path of the model directory.
    """
    workdir = Path(workdir)
    require_apart(dest, [workdir], positional("dest"))
    require_no_runs_model(dest, workdir)
    check_destination(dest, is_pretrained)
    config = _read_config(workdir)
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpointer:
        continuations = _by_settings(config, continue_with=False, makes_steps=False)
        meta = checkpointer.require(continuations.judge)
        if meta is not None:
            check_destination(dest, _older_of(config, run_record(meta)))  # before arrays are read
        made = make_pretrain_step(config, Lowering())
        state = jax.eval_shape(lambda: made.random_state(config.train.seed))
        restored = checkpointer.restore(state, continuations.judge)
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet; wait for the run's first")
    state, meta = restored
    vocab, tokenizer = _kept_vocabulary(config, workdir, meta)
    params = jax.tree.map(lambda x: x.astype(dtype), state.params)
    state = dataclasses.replace(state, params=params)
    run = run_record(meta)
    replaces = _older_of(config, run)
    return _export(config, vocab, tokenizer, workdir, state, Path(dest), run, replaces)


def _older_of(config: PretrainConfig, run: JsonObject | None) -> Replaces:
    """Return a function that says whether a model is an older export of a run.

    Without the run's record, it says whether the model may be one, by the settings. The work
    directory counts too: two runs may differ in nothing but the learning rate, which may change
    during a run. It may have been named in another way, as relative or with a slash.
    """

    def is_older(manifest: ModelManifest) -> bool:
        there = manifest.provenance.get("config")
        workdir = there.get("workdir") if isinstance(there, Mapping) else None
        own = Path(config.workdir or "").resolve()
        is_there = isinstance(workdir, str) and Path(workdir).resolve() == own
        if run is None:
            is_this_run = "run" in manifest.provenance and _may_have_settings(there, config)
        else:
            is_this_run = is_of_run(manifest.provenance, run)
        return is_there and is_this_run and manifest.inventory is None

    return is_older


def _may_have_settings(there: Any, config: PretrainConfig) -> bool:
    """Return whether a model's provenance has the settings of a run, or some that are unknown."""
    try:
        made = decode_json(json.dumps(there).encode(), PretrainConfig, name="", hint="")
    except UserError:  # of another version
        return True
    return run_record(settings_identity(made)) == run_record(settings_identity(config))


def _read_config(workdir: Path) -> PretrainConfig:
    hint = "start the run again, which writes it anew"
    model = workdir / "model"
    made = "its model is" if model.exists() else "its command writes the model"
    require_no_finetuning_run(workdir, f"{made} {model}")
    try:
        return read_json(workdir / "config.json", PretrainConfig, hint=hint)
    except FileNotFoundError:
        if not workdir.exists():
            raise UserError(
                f"{workdir} does not exist; give a work directory of albert-jax pretrain, the one "
                f"that {setting('workdir')} named"
            ) from None
        if is_model_directory(workdir):
            raise UserError(
                f"{workdir} is a model directory already; use it as it is, or give the work "
                "directory of albert-jax pretrain"
            ) from None
        raise UserError(
            f"{workdir} is no work directory of albert-jax pretrain (no config.json); give the one "
            f"that {setting('workdir')} named"
        ) from None


# ----------------------------------------------------------------------------------- the vocabulary


def _keep_vocabulary(data: PretrainingData, workdir: Path) -> None:
    """Copy the vocabulary into the work directory, so that `export` needs nothing else."""
    if data.vocab is None:
        return
    kept = workdir / vocabulary_name(data.vocab)
    with writing(kept), appearing_file(kept) as temporary:
        shutil.copyfile(data.vocab, temporary)


def _kept_vocabulary(
    config: PretrainConfig, workdir: Path, meta: Mapping[str, Any]
) -> tuple[Path | None, TextSettings]:
    """Return the run's vocabulary and how text is cleaned for it."""
    kept = vocabulary_in(workdir)
    if not kept.is_file() or "tokenizer" not in meta:  # 0.1.0 kept none
        data = open_data(config, workdir)
        return data.vocab, data.tokenizer
    tokenizer = Tokenizer.load(kept, **meta["tokenizer"])
    if tokenizer.sha256 != meta["vocabulary"]:
        raise UserError(
            f"{kept} is damaged: its SHA-256 is not the checkpoint's; copy the vocabulary of the "
            "run's store there"
        )
    return kept, meta["tokenizer"]


# ---------------------------------------------------------------------------------- the processes


def _require_same_settings(config: PretrainConfig, continue_with: bool) -> None:
    """Raise UserError unless all processes have the same settings and the same kind of devices."""
    settings = to_dict(config) | {"continue_with": continue_with}
    for path in ("store", "workdir", "vocab", "heldout"):  # a host may have its own names for them
        del settings[path]
    del settings["train"]["compilation_cache"]
    multihost.require_same(settings | {"versions": versions()})
    devices = jax.local_devices()
    multihost.require_same({"devices": {"number": len(devices), "kind": devices[0].device_kind}})


def _open_data(config: PretrainConfig, workdir: Path) -> PretrainingData:
    """Return the data, which must be the same for all processes.

    One process alone makes a store of text.
    """
    with multihost.together(limit=math.inf):  # making a store of text may take hours
        multihost.require_same({"work directory's lock": lock_owner(workdir)})
        data = open_data(config, workdir) if config.store or multihost.is_primary() else None
    with multihost.together():
        data = data or open_data(config, workdir)
    heldout = {"held-out examples": len(data.heldout or ()), **data.baselines}
    multihost.require_same(data.identity | heldout)
    return data


# ---------------------------------------------------------------------------------------- the state


def _first_state(
    config: PretrainConfig,
    data: PretrainingData,
    made: ConfiguredStep,
    random_state: Callable[[], TrainState],
) -> tuple[TrainState, str]:
    """Return a fresh state, and a sentence on where its weights come from.

    They are those of `init_from`, or random. A part that the model lacks, as the pooler and the
    sentence-order head of many, is random too.
    """
    if config.init_from is None:
        state = random_state()
        params = first_values(state.params, config, data)
        return dataclasses.replace(state, params=params), "random weights"
    source = load_model(config.init_from, as_float32=True)
    params = params_of(source, f"{setting('init_from')} {config.init_from}", config, data)
    said = f"weights of {config.init_from}"
    if lacking := sorted(jax.eval_shape(random_state).params.keys() - params.keys()):
        fresh = random_state().params
        params = {**params, **{part: fresh[part] for part in lacking}}
        said += f"; new {', '.join(lacking)}"
    return made.state_of(jax.device_put(params), config.train.seed), said


# --------------------------------------------------------------------------------- the loop's parts


def _run_of(
    config: PretrainConfig,
    data: PretrainingData,
    course: Course,
    placement: Placement,
    watching: Watching,
) -> Run:
    workdir = Path(config.workdir or "")
    baselines = functools.cache(partial(baselines_at, config, data))

    def draw() -> None:
        try:
            draw_losses(config, baselines(), workdir)
        except OSError as error:  # a picture is no reason to stop
            say(f"{workdir / 'loss.png'} is not drawn: {error.strerror or error}")

    # Functions that ask the course when they are called: `recall` replaces its stages and examples.
    return Run(
        config=config.train,
        guard=config.guard,
        step_at=lambda batch: course.steps.at(batch).step,
        batches=lambda start, stop: course.examples.batches(
            start,
            stop,
            process=(jax.process_index(), jax.process_count()),
            threads=config.train.data_threads,
            workers=config.train.data_workers,
        ),
        workload=Workload(
            steps=config.train.steps,
            rows=lambda batch: course.stages.at(batch).batch_size,
            flops=lambda batches: course.stages.total(batches, partial(stage_flops, config.model)),
            schedule=jax.jit(course.steps.at(0).schedule),
            passes=lambda batches: course.examples.passes(batches),
        ),
        identity=course.continuations.identity,
        stage_at=lambda batch: course.stages.number_at(batch),
        judge=course.continuations.judge,
        evaluate=evaluator(config, data, course.steps, placement),
        after_evaluation=draw if multihost.is_primary() else lambda: None,
        standing=Standing(
            config.train.steps,
            data.baselines.get("unigram_entropy_nats"),
            lambda: baselines().get("label_majority"),
            min(config.train.eval_examples, len(data.heldout or ())),
        )
        if multihost.is_primary()
        else None,
        watching=watching,
        check_program=memory_check(config),
        kept=course.kept,
        recall=course.recall,
    )


# ------------------------------------------------------------------------------------------ the end


def _export(
    config: PretrainConfig,
    vocab: Path | None,
    tokenizer: Mapping[str, Any],
    workdir: Path,
    state: TrainState,
    dest: Path,
    run: JsonObject,
    replaces: Replaces,
) -> Path:
    return export_model(
        dest,
        params=jax.device_get(state.params),
        config=config.model,
        vocab=vocab,
        tokenizer=tokenizer,
        replaces=replaces,
        provenance={
            "made_by": "albert-jax pretrain",
            **without_credentials(run),
            "step": int(state.step),
            "config": without_credentials(to_dict(config)),
            "held_out": _last_eval(workdir),
            **recorded(read_history(workdir)),
        },
    )


def _last_eval(workdir: Path) -> dict[str, float]:
    entries = [e for e in entries_of(workdir / METRICS) if e["kind"] == "eval"]
    return {k: v for k, v in entries[-1].items() if k != "kind"} if entries else {}
