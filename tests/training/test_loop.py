# SPDX-License-Identifier: Apache-2.0
"""The loop on batches made up here: guards, rollbacks, restarts, signals, the watchdog."""

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from albert_jax.checkpoint.manager import Checkpointer, same_run
from albert_jax.config.sections import GuardConfig, TrainConfig
from albert_jax.distributed.placement import local_devices, make_placement
from albert_jax.models.albert import AlbertForPretraining
from albert_jax.training.guards import LossGuard, StopSignals, Watchdog
from albert_jax.training.loop import fit
from albert_jax.training.losses import pretraining_objective
from albert_jax.training.metrics import MetricsLog, draw_curves, read_metrics
from albert_jax.training.optimizer import adamw
from albert_jax.training.position import Position
from albert_jax.training.programs import Programs
from albert_jax.training.run import Run
from albert_jax.training.saving import Saves
from albert_jax.training.step import init_state, make_train_step
from albert_jax.training.step_meter import Workload
from albert_jax.training.watching import NOBODY, StopTraining, Watching
from albert_jax.utils.errors import TryAgain, UserError
from tests.helpers.models import assert_trees_close, noisy_params, random_batch, tiny_albert

DEFAULT_GUARD = GuardConfig()
CONFIG = tiny_albert(num_hidden_layers=2, hidden_dropout_prob=0.1)


@functools.cache
def made():
    """Parameters, optimizer and step, the same objects each time: the step is compiled once."""
    tx = adamw(1e-3)
    objective = pretraining_objective(AlbertForPretraining(CONFIG))
    return noisy_params(CONFIG), tx, make_train_step(objective, tx)


def run(
    workdir,
    batches,
    *,
    steps=30,
    guard=DEFAULT_GUARD,
    evaluate=None,
    watching=NOBODY,
    changes=None,
    **settings,
):
    """fit() on a tiny model from whatever `workdir` holds; returns the final state.

    `settings` are of `TrainConfig`, `changes` of `Run`.
    """
    defaults = {"batch_size": 8, "log_every": 5, "save_every": 5, "eval_every": 10}
    train = TrainConfig(**({"steps": steps} | defaults | settings))
    params, tx, step = made()
    placement = make_placement("jit", local_devices(1))
    state, position = placement.put_state(init_state(params, tx, seed=0)), Position()
    run = Run(
        config=train,
        guard=guard,
        step_at=lambda _: step,
        batches=batches,
        workload=workload(train),
        identity={"run": "test"},
        judge=same_run({"run": "test"}),
        evaluate=evaluate,
        watching=watching,
    )
    run = replace(run, **(changes or {}))
    with Checkpointer(workdir / "checkpoints", keep=3) as checkpointer:
        saves = Saves(run, checkpointer)
        if restored := saves.restore(state):
            state, position = restored
        log = MetricsLog(workdir, total_steps=steps, resume_step=position.step)
        with contextlib.closing(log):
            held = [state]
            del state, restored
            return fit(run, held.pop, position, placement, saves, log)


def workload(train):
    return Workload(
        steps=train.steps,
        rows=lambda _: train.batch_size,
        flops=lambda batches: batches * train.batch_size * 1e6,
        schedule=lambda _: 1e-3,
        passes=lambda batches: batches * train.batch_size / 100,
    )


def batch(number):
    return random_batch(CONFIG, rows=8, seed=number)


def numbered(start, stop):
    for i in itertools.count(start) if stop is None else range(start, stop):
        yield batch(i)


def poisoned(bad, how="nan"):
    """Batches of which those numbered in `bad` are unusable."""

    def batches(start, stop):
        for i, b in enumerate(numbered(start, stop), start):
            if i in bad:
                b["masked_lm_weights"] = b["masked_lm_weights"] * np.float32(np.nan)
            yield b

    return batches


def without(bad):
    """The batches that are not in `bad`, numbered anew."""
    good = [i for i in range(200) if i not in bad]
    return lambda start, stop: (batch(i) for i in good[start:stop])


def test_a_batch_with_nan_is_left_out_and_said(tmp_path, capfd):
    bad = {12, 13}
    state = run(tmp_path / "a", poisoned(bad))
    # What was in flight behind a bad batch is left out with it (at most two steps), and nothing
    # else.
    events = [e for e in read_metrics(tmp_path / "a" / "metrics.jsonl") if e["kind"] == "event"]
    dropped = set(itertools.chain(*(range(*e["batches"]) for e in events)))
    assert bad <= dropped <= {12, 13, 14, 15}
    assert "rolled back from step" in capfd.readouterr().err
    expected = run(tmp_path / "b", without(dropped))
    assert_trees_close(state.params, expected.params, rtol=0, atol=0)
    assert int(state.step) == 30


# -------------------------------------------------------------------------------------- callbacks


def _judged(params, position, tick):
    return {"loss": float(position.step)}


class Heard:
    """Callbacks that keep what they hear, and raise at the steps named in `at`."""

    def __init__(self, on_step=(), on_evaluation=(), error=StopTraining):
        self.steps, self.evaluations = {}, {}
        self._at, self._error = {"train": on_step, "eval": on_evaluation}, error

    @property
    def watching(self):
        return Watching(on_step=self._on("train"), on_evaluation=self._on("eval"))

    def _on(self, kind):
        def callback(step, metrics):
            (self.steps if kind == "train" else self.evaluations)[step] = metrics
            if step in self._at[kind]:
                raise self._error("as was asked")

        return callback


def _logged(workdir, kind):
    entries = [e for e in read_metrics(workdir / "metrics.jsonl") if e["kind"] == kind]
    return {e["step"]: {k: v for k, v in e.items() if k not in ("kind", "step")} for e in entries}


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"), numbered, evaluate=_judged)


def test_callbacks_hear_what_the_log_has_and_change_nothing(tmp_path, unwatched):
    heard = Heard()
    state = run(tmp_path, numbered, evaluate=_judged, watching=heard.watching)
    assert list(heard.steps) == [1, 5, 10, 15, 20, 25, 30]
    assert heard.steps == _logged(tmp_path, "train")
    assert heard.evaluations == _logged(tmp_path, "eval") == {n: {"loss": n} for n in (10, 20, 30)}
    assert_trees_close(state.params, unwatched.params, rtol=0, atol=0)


@pytest.mark.parametrize("at", [{"on_step": (15,)}, {"on_evaluation": (20,)}])
def test_a_callback_ends_a_run_as_its_last_step_would(tmp_path, unwatched, at):
    heard = Heard(**at)
    last = next(iter(at.values()))[0]
    state = run(tmp_path, numbered, evaluate=_judged, watching=heard.watching)
    assert int(state.step) == max(heard.steps) == max(heard.evaluations) == last
    assert max(_logged(tmp_path, "train")) == max(_logged(tmp_path, "eval")) == last
    (event,) = [e for e in read_metrics(tmp_path / "metrics.jsonl") if e["kind"] == "event"]
    assert event["message"] == f"stopped by a callback after step {last} of 30"
    onward = Heard()
    state = run(tmp_path, numbered, evaluate=_judged, watching=onward.watching)
    assert min(onward.steps) > last
    assert_trees_close(state.params, unwatched.params, rtol=0, atol=0)


@pytest.mark.parametrize("at", [{"on_step": (1,)}, {"on_evaluation": (10,)}])
def test_what_a_callback_raises_is_raised_and_the_steps_are_kept(tmp_path, unwatched, at):
    heard = Heard(**at, error=ZeroDivisionError)
    with pytest.raises(ZeroDivisionError, match="as was asked"):
        run(tmp_path, numbered, evaluate=_judged, watching=heard.watching, save_every=1000)
    with Checkpointer(tmp_path / "checkpoints", keep=3) as checkpointer:
        assert checkpointer.steps()[-1] == next(iter(at.values()))[0]
    state = run(tmp_path, numbered, evaluate=_judged, save_every=1000)
    assert_trees_close(state.params, unwatched.params, rtol=0, atol=0)


def test_left_out_batches_stay_left_out_after_a_restart(tmp_path):
    whole = run(tmp_path / "a", poisoned({12}), steps=30)
    run(tmp_path / "b", poisoned({12}), steps=20)  # one rollback, then its last checkpoint at 20
    resumed = run(tmp_path / "b", numbered, steps=30)  # would take batch 12 were it not left out
    assert_trees_close(whole.params, resumed.params, rtol=0, atol=0)


def test_a_run_that_keeps_failing_gives_up_with_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"not finite .* after 2 rollbacks .*learning_rate"):
        run(tmp_path, poisoned(set(range(12, 200))), guard=GuardConfig(max_rollbacks=2))


def test_rollbacks_are_forgiven_after_a_new_checkpoint(tmp_path):
    state = run(tmp_path, poisoned({7, 13, 21}), guard=GuardConfig(max_rollbacks=1), steps=24)
    assert int(state.step) == 24


def test_loss_guard_tells_spikes_from_noise():
    guard = LossGuard(GuardConfig(spike=1.0, patience=3))
    rng = np.random.default_rng(0)
    quiet = [guard.observe(i, 5 + 0.1 * rng.standard_normal(), skipped=False) for i in range(50)]
    assert quiet == [None] * 50
    assert guard.observe(50, 9.0, skipped=False) is None
    assert guard.spikes
    assert guard.observe(51, 5.0, skipped=False) is None
    assert not guard.spikes
    assert [guard.observe(i, 9.0, skipped=False) for i in (52, 53)] == [None, None]
    reason, first = guard.observe(54, 9.0, skipped=False)
    assert first == 52
    assert "above its median" in reason
    assert LossGuard(GuardConfig(spike=0)).observe(0, 1e9, skipped=False) is None


def test_the_loss_may_jump_where_another_stage_begins(tmp_path):
    _, _, step = made()

    def worse(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {"loss": metrics["loss"] + 5}

    def rollbacks(name, jumps_at, stage_at):
        changes = {"step_at": lambda batch: worse if batch >= jumps_at else step}
        run(tmp_path / name, numbered, steps=60, changes=changes | {"stage_at": stage_at})
        entries = read_metrics(tmp_path / name / "metrics.jsonl")
        return sum("rolled back" in e.get("message", "") for e in entries)

    assert rollbacks("one", 25, lambda _: 0) == 1  # which forgets the losses before
    assert rollbacks("two", 25, lambda batch: int(batch >= 25)) == 0
    assert rollbacks("within", 50, lambda batch: int(batch >= 25)) == 1


def spiking(bad):
    """Changes of a run whose losses are spikes for the batches numbered in `bad`."""
    _, _, step = made()

    def spike(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {"loss": metrics["loss"] + 5}

    return {"step_at": lambda batch: spike if batch in bad else step}


def rolled_back(workdir):
    """The batches that rollbacks left out."""
    events = [e for e in read_metrics(workdir / "metrics.jsonl") if e["kind"] == "event"]
    return [e["batches"] for e in events if "batches" in e]


@pytest.mark.parametrize("stage_at", [lambda _: 0, lambda batch: int(batch >= 3)])
def test_a_resumed_run_judges_by_the_losses_before_it(tmp_path, stage_at):
    changes = spiking({26, 27, 28}) | {"stage_at": stage_at}
    whole = run(tmp_path / "whole", numbered, steps=35, changes=changes)
    run(tmp_path / "parts", numbered, steps=25, changes=changes)
    parts = run(tmp_path / "parts", numbered, steps=35, changes=changes)
    [left_out] = rolled_back(tmp_path / "whole")
    assert left_out[0] == 26
    assert rolled_back(tmp_path / "parts") == [left_out]
    assert_trees_close(whole.params, parts.params, rtol=0, atol=0)


def test_losses_of_the_stage_before_do_not_judge_a_run_that_resumes_between_two(tmp_path):
    changes = spiking(set(range(25, 99))) | {"stage_at": lambda batch: int(batch >= 25)}
    run(tmp_path, numbered, steps=25, changes=changes)
    run(tmp_path, numbered, steps=35, changes=changes)
    assert rolled_back(tmp_path) == []


def test_a_run_that_is_stopped_amid_spikes_goes_back_to_before_them(tmp_path):
    def stop(step, metrics):
        if step == 27:  # batch 26, the second spike; the run stops after the next step
            os.kill(os.getpid(), signal.SIGTERM)

    settings = {"steps": 35, "log_every": 1, "changes": spiking({25, 26, 27, 28})}
    settings |= {"guard": GuardConfig(patience=4)}
    whole = run(tmp_path / "whole", numbered, watching=Heard().watching, **settings)
    with pytest.raises(TryAgain, match=r"after step 28, whose loss is a spike; step 25 is saved"):
        run(tmp_path / "parts", numbered, watching=Watching(on_step=stop), **settings)
    parts = run(tmp_path / "parts", numbered, watching=Heard().watching, **settings)
    assert rolled_back(tmp_path / "parts") == rolled_back(tmp_path / "whole") == [[25, 29]]
    assert_trees_close(whole.params, parts.params, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("bad", "told"),
    [({33, 34}, "last 2 losses are spikes, "), ({34}, "last loss is a spike, "), ({33}, None)],
)
def test_a_run_that_ends_on_a_spike_says_so(tmp_path, bad, told):
    run(tmp_path, numbered, steps=35, save_every=10, changes=spiking(bad))
    notes = [e["message"] for e in read_metrics(tmp_path / "metrics.jsonl") if "message" in e]
    found = [note for note in notes if "spike" in note]
    assert len(found) == (told is not None)
    for note in found:
        assert note.startswith(f"note: the run's {told}so that the model may be worse than checkp")
        assert f"checkpoint 30 in {tmp_path}" in note
        assert (tmp_path / "checkpoints" / "30").is_dir()


def test_resuming_gives_the_bits_of_the_uninterrupted_run(tmp_path):
    whole = run(tmp_path / "whole", numbered, steps=30)
    run(tmp_path / "parts", numbered, steps=10)
    run(tmp_path / "parts", numbered, steps=20)
    parts = run(tmp_path / "parts", numbered, steps=30)
    key = jax.random.key_data
    assert_trees_close(
        whole.replace(key=key(whole.key)), parts.replace(key=key(parts.key)), rtol=0, atol=0
    )
    steps = [
        e["step"]
        for e in read_metrics(tmp_path / "parts" / "metrics.jsonl")
        if e["kind"] == "train"
    ]
    assert steps == [1, 5, 10, 15, 20, 25, 30]


def test_log_lines_after_the_checkpoint_resumed_from_are_dropped(tmp_path):
    run(tmp_path, numbered, steps=10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 15, "loss": 9.0}) + "\n")
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    run(tmp_path, numbered, steps=20)
    entries = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [e["step"] for e in entries if e["kind"] == "train"] == [1, 5, 10, 15, 20]
    assert all(e.get("loss") != 9.0 for e in entries)


TIMES = {"sequences_per_second", "tokens_per_second", "input_wait", "mfu"}


def without_times(workdir):
    """The train and eval entries of a log, but for what a clock says."""
    entries = [e for e in read_metrics(workdir / "metrics.jsonl") if e["kind"] != "event"]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in entries]


def dying_at(last):
    """Batches of which the one after `last` raises."""

    def batches(start, stop):
        for i, b in enumerate(numbered(start, stop), start):
            if i > last:
                raise ZeroDivisionError
            yield b

    return batches


def evaluated(params, position, tick):
    tick(1, 1)
    return {"x_loss": float(position.step)}


@pytest.mark.slow
def test_the_log_of_an_interrupted_run_is_that_of_one_left_alone(tmp_path):
    settings = {"steps": 17, "log_every": 5, "save_every": 3, "eval_every": 7}
    run(tmp_path / "whole", numbered, evaluate=evaluated, **settings)
    for last in (4, 7, 13):  # between a checkpoint and the next line, and at an evaluation
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "parts", dying_at(last), evaluate=evaluated, **settings)
    run(tmp_path / "parts", numbered, evaluate=evaluated, **settings)
    whole = without_times(tmp_path / "whole")
    assert whole == without_times(tmp_path / "parts")
    lines = [(e["kind"], e["step"]) for e in whole]
    assert lines == [
        ("train", 1),
        ("train", 5),
        ("eval", 7),
        ("train", 10),
        ("eval", 14),
        ("train", 15),
        ("train", 17),
        ("eval", 17),
    ]


def test_the_first_line_is_the_first_steps_and_has_no_rates(tmp_path, capfd):
    run(tmp_path, numbered, steps=6)
    first, second = [e for e in read_metrics(tmp_path / "metrics.jsonl") if e["kind"] == "train"][
        :2
    ]
    assert first["step"] == 1
    assert abs(first["masked_lm_loss"] - np.log(CONFIG.vocab_size)) < 0.5
    assert not TIMES & first.keys()
    # The first step compiles, so that the second to the fifth are timed.
    tokens = np.mean([batch(i)["input_mask"].sum() for i in range(1, 5)]) / 8
    ratio = second["tokens_per_second"] / second["sequences_per_second"]
    assert ratio == pytest.approx(tokens)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step 1/")]
    assert "seq/s" not in said[0]
    assert "left" not in said[0]


def test_what_is_due_is_saved_before_an_evaluation_begins(tmp_path):
    def evaluate(params, position, tick):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, numbered, steps=10, eval_every=10, evaluate=evaluate)
    with Checkpointer(tmp_path / "checkpoints", keep=3) as checkpointer:
        assert checkpointer.steps()[-1] == 10
    # Nothing is trained again, and the evaluation is made up for.
    state = run(tmp_path, dying_at(0), steps=10, eval_every=10, evaluate=evaluated)
    assert int(state.step) == 10
    assert [e["step"] for e in without_times(tmp_path) if e["kind"] == "eval"] == [10]


def test_what_is_long_unsaved_is_saved_before_an_evaluation(tmp_path, monkeypatch):
    settings = {"steps": 6, "save_every": 0, "eval_every": 2, "evaluate": evaluated}
    run(tmp_path / "a", numbered, **settings)
    monkeypatch.setattr("albert_jax.training.due.UNSAVED_SECONDS", 0.0)
    run(tmp_path / "b", numbered, **settings)
    for name, steps in (("a", [0, 6]), ("b", [2, 4, 6])):
        with Checkpointer(tmp_path / name / "checkpoints", read_only=True) as checkpointer:
            assert checkpointer.steps() == steps


def test_a_signal_in_an_evaluation_ends_it_at_once_and_it_is_made_again(tmp_path):
    ticks = []

    def evaluate(params, position, tick):
        for done in range(1, 100):
            if done == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            ticks.append(done)
            tick(done, 100)
        pytest.fail("it went on")

    settings = {"steps": 10, "save_every": 0, "eval_every": 4}
    with pytest.raises(TryAgain, match="stopped by SIGTERM after step 4, which is saved"):
        run(tmp_path, numbered, evaluate=evaluate, **settings)
    assert ticks == [1, 2, 3]
    run(tmp_path, numbered, evaluate=evaluated, **settings)
    assert [e["step"] for e in without_times(tmp_path) if e["kind"] == "eval"] == [4, 8, 10]


def test_a_long_evaluation_whose_examples_come_is_no_hang(tmp_path):
    def evaluate(params, position, tick):
        for done in range(8):
            time.sleep(0.25)
            tick(done, 8)
        return {"x_loss": 0.0}

    guard = GuardConfig(step_timeout=1.5)
    assert int(run(tmp_path, numbered, steps=2, guard=guard, evaluate=evaluate).step) == 2


def test_a_damaged_log_stops_no_run(tmp_path, capfd):
    run(tmp_path, numbered, steps=10)
    log = tmp_path / "metrics.jsonl"
    whole = without_times(tmp_path)
    with log.open("ab") as file:
        file.write(b'12\n{"kind": "train", "step": "x"}\n\xff\n[1]\n{"kind": 5, "step": 1}\n')
        file.write(b"[" * 100_000 + b"\n" + b'{"kind": "train", "st')
    run(tmp_path, numbered, steps=10)
    assert without_times(tmp_path) == whole
    assert f"{log}: 6 damaged lines left out" in capfd.readouterr().err
    assert all(json.loads(line)["kind"] for line in log.read_text().splitlines())


def test_evaluation_happens_on_schedule_and_at_the_end(tmp_path):
    seen = []
    run(
        tmp_path,
        numbered,
        steps=25,
        evaluate=lambda params, position, tick: seen.append(1) or {"x_loss": 1.0},
    )
    evals = [e["step"] for e in read_metrics(tmp_path / "metrics.jsonl") if e["kind"] == "eval"]
    assert evals == [10, 20, 25]
    assert len(seen) == 3


def test_an_error_in_the_data_surfaces_as_itself(tmp_path):
    def batches(start, stop):
        yield batch(0)
        raise UserError("shard 3 is damaged")

    with pytest.raises(UserError, match="shard 3"):
        run(tmp_path, batches)


def test_curves_are_drawn(tmp_path):
    run(tmp_path, numbered, steps=20, evaluate=lambda p, position, tick: {"masked_lm_loss": 4.0})
    draw_curves(
        tmp_path / "metrics.jsonl",
        tmp_path / "loss.png",
        baselines={"loss: chance": 4.5},
        title="t",
    )
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_a_signal_is_noted_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert signals.requested is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_watchdog_ends_a_stuck_process_with_75_and_its_stacks():
    code = """
        import time
        from albert_jax.training.guards import Watchdog
        def stuck_here():
            time.sleep(60)
        with Watchdog(0.3) as watchdog:
            watchdog.beat("step 7")
            stuck_here()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 75
    assert "stuck_here" in done.stderr
    assert "after step 7" in done.stderr


def test_the_watchdog_does_not_count_the_time_of_a_stopped_process():
    code = """
        import sys, time
        from albert_jax.training.guards import Watchdog
        with Watchdog(4) as watchdog:
            watchdog.beat("step 7")
            print("ready", flush=True)
            sys.stdin.readline()
            time.sleep(0.5)  # in which the watchdog looks
            print("went on", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        process.send_signal(signal.SIGCONT)
        assert process.communicate("\n", timeout=60)[0] == "went on\n"
    assert process.returncode == 0


def test_the_watchdog_does_not_count_the_time_of_a_compilation(monkeypatch):
    """A later stage, or another length of rows, compiles after the first steps."""
    ended = []
    monkeypatch.setattr("albert_jax.training.guards.os._exit", ended.append)

    class Slow:
        def lower(self, *_):
            return self

        def compile(self):
            time.sleep(1.0)
            return lambda live, batch: "ran"

    @contextlib.contextmanager
    def together():
        yield
        time.sleep(1.0)  # another process compiles for longer

    monkeypatch.setattr("albert_jax.training.programs.multihost.together", together)
    with Watchdog(0.3) as watchdog:
        watchdog.beat("step 7")
        assert Programs(Slow())(None, {"input_ids": np.zeros((2, 3))}) == "ran"
        watchdog.beat("step 8")
    assert ended == []


def test_the_watchdog_leaves_a_process_alone_that_beats():
    with Watchdog(30) as watchdog:
        watchdog.beat("a step")
    quiet = Watchdog(0)
    quiet._beats.extend([0.0, 40.0, 80.0])
    assert quiet.limit() == 800.0
