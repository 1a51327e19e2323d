# SPDX-License-Identifier: Apache-2.0
"""What is measured is the step of pretrain, and figures agree; no test looks at a time."""

import itertools
import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.cli.main import main
from albert_jax.config.perf import BenchmarkConfig
from albert_jax.config.recipes import load_recipe
from albert_jax.config.run import PretrainConfig
from albert_jax.config.sections import TrainConfig
from albert_jax.data.loader import batch_at
from albert_jax.models.albert import AlbertForPretraining, init_params
from albert_jax.models.flops import (
    PEAK_FLOPS,
    forward_flops_per_sequence,
    parameter_count,
    peak_flops,
    stage_flops,
    train_flops_per_sequence,
)
from albert_jax.perf import benchmark as module
from albert_jax.perf import roofline
from albert_jax.perf.benchmark import benchmark, sweep
from albert_jax.perf.benchmark_report import benchmark_lines, draw_sweep, sweep_figure, sweep_table
from albert_jax.perf.results import StepBenchmark, SweepPoint
from albert_jax.perf.roofline import best_rates, bound, device_rates, roofline_figure, step_traffic
from albert_jax.perf.tpu import estimate
from albert_jax.perf.workload import (
    made_up_batch,
    pretrain_config,
    say_of_stages,
    setting_of,
    source_of,
)
from albert_jax.training import memory
from albert_jax.training.losses import pretraining_objective
from albert_jax.training.memory import OutOfMemory, out_of_memory_told
from albert_jax.training.metrics import read_metrics
from albert_jax.training.pretrain import pretrain
from albert_jax.utils.errors import UserError
from albert_jax.utils.numbers import rounded
from albert_jax.utils.plots import styled
from tests.helpers.models import tiny_albert
from tests.helpers.paths import REPOSITORY
from tests.helpers.pictures import faults, legend_entries, styles
from tests.helpers.pretraining_runs import make_store, tiny_config

pytestmark = pytest.mark.usefixtures("steps_made_once")

PROMISED = {"step_ms", "ms_per_sequence", "sequences_per_second", "mfu", "compile_seconds"}
PROMISED |= {"peak_bytes", "device"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.json"
    tiny_albert(num_hidden_layers=1).to_json(path)
    return str(path)


@pytest.fixture(scope="module")
def small(model):
    """Settings of a small measurement on one device, by default with the tests' compiled
    programs."""

    def make(**changes):
        settings = {"batch_size": 8, "predictions": 3, "steps": 3, "devices": 1}
        cache = {"compilation_cache": os.environ["JAX_COMPILATION_CACHE_DIR"]}
        return BenchmarkConfig(**({"model": model} | settings | cache | changes))

    return make


@pytest.fixture(scope="module")
def trained(small):
    return benchmark(small())


# ----------------------------------------------------------------------------------- what is timed


def test_the_step_measured_is_the_one_that_pretrain_runs(tmp_path):
    store = make_store(tmp_path)
    config = tiny_config(store, tmp_path / "run")
    pretrain(config)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from pathlib import Path\nfrom tests.helpers.pretraining_runs import tiny_config\n"
        f"def get_config(): return tiny_config(Path({str(store)!r}), Path('unused'))\n"
    )
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    found = benchmark(
        BenchmarkConfig(model=str(recipe), store=str(store), steps=3, compilation_cache=cache)
    )
    logged = {
        e["step"]: e["loss"]
        for e in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if e["kind"] == "train"
    }
    # The same batches in the same order, dropout and all.
    assert sorted(logged) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(found["losses"][:6], list(logged.values()), rtol=1e-6)
    assert 0 <= found["input_wait"] <= 1
    assert "waiting for data" in benchmark_lines(found)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_modes_and_micro_batches_take_the_same_steps(small, trained, mode):
    found = benchmark(small(mode=mode, devices=2, accumulate=2))
    assert (found["devices"], found["mode"]) == (2, mode)
    np.testing.assert_allclose(found["losses"], trained["losses"], rtol=1e-5)


def test_forward_is_the_loss_without_dropout(small):
    config = small(phase="forward")
    settings = pretrain_config(config)
    batch = made_up_batch("forward", settings)
    network = AlbertForPretraining(settings.model)
    objective = pretraining_objective(network)
    params = init_params(network, jax.random.key(settings.train.seed))
    loss = jax.jit(lambda p, b: objective.loss(p, b, objective.normalizers(b), None))
    _, expected = loss(params, batch)
    found = benchmark(config)
    np.testing.assert_allclose(found["losses"], 6 * [expected["masked_lm_loss"]], rtol=1e-5)
    flops = 8 * forward_flops_per_sequence(settings.model, 24, 3)
    assert found["tflop_per_step"] == pytest.approx(flops / 1e12)


def test_a_classifier_learns_the_batch_it_is_timed_on(small):
    found = benchmark(small(phase="finetune"))
    assert found["losses"][0] == pytest.approx(np.log(2), abs=0.1)
    assert "predictions" not in benchmark_lines(found)


@pytest.mark.parametrize(
    ("phase", "setting"), [("input", {"mode": "pmap"}), ("forward", {"accumulate": 2})]
)
def test_a_setting_that_a_phase_does_not_use_is_refused(small, phase, setting):
    (name,) = setting
    with pytest.raises(UserError, match=f"phase='{phase}' makes no use of {name}; leave it out"):
        benchmark(small(phase=phase, **setting))


def test_drawing_batches_has_its_own_figure(small, tmp_path):
    found = benchmark(small(phase="input", sequence=16))
    assert found.keys() >= PROMISED
    assert (found["mfu"], found["compile_seconds"], found["peak_bytes_of"]) == (
        None,
        None,
        "process",
    )
    most = 16 * found["sequences_per_second"]
    assert 0.5 * most < found["tokens_per_second"] <= most * (1 + 1e-6)
    stored = pretrain_config(small(phase="input", sequence=16, store=str(make_store(tmp_path))))
    assert stored.model.vocab_size == 8000
    batch = batch_at(source_of(stored), 0, 4)
    assert batch["input_ids"].shape == (4, 16)


# ----------------------------------------------------------------------------- what is said of it


def test_figures_agree_with_each_other(small, trained, monkeypatch):
    assert trained.keys() >= PROMISED
    settings = pretrain_config(small())
    flops = train_flops_per_sequence(settings.model, 24, 3)
    rate = trained["sequences_per_second"]
    assert trained["tflop_per_second"] == pytest.approx(rate * flops / 1e12)
    assert trained["ms_per_sequence"] == pytest.approx(1000 / rate)
    assert trained["pipelined_step_ms"] == pytest.approx(8000 / rate)
    assert trained["tokens_per_second"] == pytest.approx(24 * rate)
    spread = trained["step_ms_of"]
    ordered = [spread["least"], spread["quarter"], trained["step_ms"], spread["three_quarters"]]
    assert [*ordered, spread["most"]] == sorted([*ordered, spread["most"]])
    assert trained["mfu"] is None
    assert "no peak is known" in benchmark_lines(trained)
    assert (
        f"; of steps in a row, {rounded(trained['pipelined_step_ms'])} ms each"
        in benchmark_lines(trained)
    )
    monkeypatch.setattr(module, "peak_flops", lambda kind: 1e12)
    known = benchmark(small(devices=2, accumulate=2))  # compiled above
    assert known["mfu"] == pytest.approx(known["tflop_per_second"] / 2)


def test_results_come_back_from_their_json(trained):
    document = json.loads(json.dumps(dict(trained)))
    assert StepBenchmark.from_json(document) == trained == document
    for point in (
        SweepPoint(change={"steps": 3, "remat": trained.remat}, measured=trained),
        SweepPoint(change={"batch_size": 9}, error="out of memory"),
    ):
        assert SweepPoint.from_json(json.loads(json.dumps(dict(point)))) == point
    assert "error" not in SweepPoint(change={}, measured=trained)


def test_memory_is_the_programs_own_where_the_device_does_not_count(small, trained):
    # At least the weights, LAMB's two moments and the results in place of them.
    assert trained["peak_bytes_of"] == "program"
    assert 3 * 4 * trained["parameters"] < trained["peak_bytes"] < 1e7
    larger = benchmark(small(batch_size=32))
    assert larger["peak_bytes"] > trained["peak_bytes"]


def test_programs_are_kept_only_where_asked(small, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    benchmark(small(phase="forward", compilation_cache=str(tmp_path)))
    kept = sorted(tmp_path.iterdir())
    assert kept
    benchmark(small(phase="forward", compilation_cache=str(tmp_path)))
    assert [p for p in sorted(tmp_path.iterdir()) if not p.name.endswith("-atime")] == [
        p for p in kept if not p.name.endswith("-atime")
    ]
    assert jax.config.jax_compilation_cache_dir == before


def test_a_profile_holds_the_steps(run_warm, model, tmp_path):
    # By a process of its own: another test may have loaded libtpu, whatever its version.
    result = run_warm(
        *("benchmark", "--model", model, "--phase", "forward", "--batch-size", "4"),
        *("--sequence", "24", "--dtype", "float32", "--steps", "3", "--devices", "1"),
        *("--profile", tmp_path / "trace"),
    )
    assert result.rc == 0, result.stderr
    (trace,) = (tmp_path / "trace").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    names = {e.name for plane in planes for line in plane.lines for e in line.events}
    assert "step" in names


def test_the_command_prints_json_alone_draws_a_table_and_says_it(run_warm, model, tmp_path):
    result = run_warm(
        *("benchmark", "--model", model, "--phase", "forward", "--steps", "3", "--devices", "1"),
        *("--sweep", "batch_size=4,8", "dtype=float32,bfloat16"),
        *("--compilation-cache", os.environ["JAX_COMPILATION_CACHE_DIR"]),
        *("--plot", tmp_path / "sweep.png", "--json"),
    )
    assert result.rc == 0, result.stderr
    lines = result.stderr[result.stderr.rindex("batch_size  ") :].splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [
        ["batch_size", "dtype"],
        ["4", "float32"],
        ["4", "bfloat16"],
        ["8", "float32"],
        ["8", "bfloat16"],
    ]
    assert lines[5].startswith("step ms: median of single steps, each waited for")
    found = json.loads(result.stdout)
    assert found.keys() >= PROMISED
    assert len(found["results"]) == 4
    assert found["ms_per_sequence"] == min(r["ms_per_sequence"] for r in found["results"])
    assert (tmp_path / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# ------------------------------------------------------------------------------- what does not fit


def test_a_step_that_cannot_fit_is_refused_before_it_runs(small):
    with pytest.raises(
        OutOfMemory,
        match=r"^out of memory: the step takes \S+ GiB of \S+ GiB, \S+ GiB too many; lower "
        r"batch_size \(400000000\), raise accumulate \(1\) or recompute with "
        r"remat='full' \(now none",
    ):
        benchmark(small(phase="forward", batch_size=400_000_000))


def test_a_sweep_goes_on_past_what_does_not_fit(small, monkeypatch):
    monkeypatch.setattr(memory, "capacity_bytes", lambda device: 2 << 20)
    results = sweep(small(phase="forward"), ["batch_size=8,4096"])
    assert ["error" in r for r in results] == [False, True]
    last = sweep_table(results, ["batch_size"]).splitlines()[2]
    assert last.split()[:4] == ["4096", "out", "of", "memory:"]
    assert last.endswith("too many")


STATS = {"bytes_limit": 16 << 30, "bytes_in_use": 2 << 30}


@pytest.mark.parametrize(
    ("raised", "stats", "told"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 19.30G of 15.75G hbm. Exceeded hbm capacity by 3.55G.",
            None,
            "takes 19.3 GiB of 15.8 GiB, 3.55 GiB too many",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 21474836480 bytes.",
            STATS,
            "takes 22 GiB of 16 GiB, 6 GiB too many",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 20.00GiB.",
            STATS,
            "takes 22 GiB of 16 GiB, 6 GiB too many",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory allocating 21474836480 bytes.",
            None,
            "an allocation of 20 GiB failed",
        ),
        (MemoryError("Unable to allocate"), None, "an allocation failed"),
    ],
)
def test_what_the_compiler_or_allocator_says_becomes_advice(raised, stats, told):
    device = SimpleNamespace(memory_stats=lambda: stats)
    config = PretrainConfig(train=TrainConfig(batch_size=32))
    error = jax.errors.JaxRuntimeError(raised) if isinstance(raised, str) else raised
    with pytest.raises(OutOfMemory) as caught, out_of_memory_told([device], config):
        raise error
    assert told in str(caught.value)
    assert str(caught.value).endswith(
        "lower train.batch_size (32), raise train.accumulate (1) or recompute with "
        "compute.remat='full' (now none)"
    )


@pytest.mark.parametrize(
    "said",
    [
        "Ran out of memory in memory space vmem. Used 19.30M of 16.00M vmem.",
        # libtpu 0.0.42.1, of kernels with too large a scratch.
        "E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space vmem while allocating "
        "on stack for %f.1 = f32[8,128] custom-call(%x.1). Scoped allocation with size 64.00M and "
        "limit 16.00M exceeded scoped vmem limit by 48.00M.",
        "Allocation (size=4194304) would exceed memory (size=1048576) :: #allocation2 [shape = "
        "'s32[1024,1024]{1,0:T(8,128)}', space=smem, size = 0x400000, scoped] :: f.1",
    ],
)
def test_a_kernel_too_large_for_a_chips_own_memory_is_no_matter_of_the_batch(said):
    raised = jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")
    device = SimpleNamespace(memory_stats=lambda: None)
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match=r"vmem|smem"),
        out_of_memory_told([device], PretrainConfig()),
    ):
        raise raised


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA T400", None),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("TPU v5 lite", 197),
        ("cpu", None),
    ],
)
def test_a_devices_peak_is_of_its_whole_name(kind, tera):
    assert peak_flops(kind) == (None if tera is None else pytest.approx(tera * 1e12))


def test_of_a_recipe_with_stages_the_last_ones_step_is_measured(capsys):
    recipe = str(REPOSITORY / "configs" / "mini.py")
    config = pretrain_config(BenchmarkConfig(model=recipe))
    assert (config.train.batch_size, config.examples.max_seq_length) == (32, 128)
    assert train_flops_per_sequence(config.model, 128, 20) * 32 == pytest.approx(
        stage_flops(config.model, load_recipe(recipe).stages[-1])
    )
    say_of_stages.cache_clear()
    say_of_stages(recipe)
    assert "this is the step of the last: 32 rows of 128" in capsys.readouterr().err
    say_of_stages("base-v2")
    assert not capsys.readouterr().err


def test_a_classifiers_step_has_no_masked_lm_heads_parameters():
    config = BenchmarkConfig(model="base-v2", phase="finetune")
    assert setting_of(config, pretrain_config(config)).parameters == 11_685_122
    config = BenchmarkConfig(model="base-v2")
    assert setting_of(config, pretrain_config(config)).parameters == 11_813_810


def test_no_devices_name_is_hidden_by_a_shorter_one():
    assert {name: peak_flops(name) for name in PEAK_FLOPS} == PEAK_FLOPS


def test_a_sweep_splits_what_is_not_a_recipes_own():
    recipe = "configs/pretrain.py:model=base-v2,chips=4"
    assert module._axis(f"model={recipe},large-v2") == ("model", [recipe, "large-v2"])
    assert module._axis("remat=none,dtype=float32") == ("remat", ["none", "dtype=float32"])
    assert module._axis("seconds=0.5,1") == ("seconds", [0.5, 1.0])


def test_a_table_says_why_a_steps_time_is_not_the_batch_times_a_sequences(trained):
    """One is of single steps, the other of steps in a row; both can be read, with one divisor."""
    results = [
        trained | {"batch_size": 8, "step_ms": 14.4, "pipelined_step_ms": 12.0},
        trained | {"batch_size": 16, "step_ms": 21.0, "pipelined_step_ms": 20.0},
    ]
    for each in results:
        each["ms_per_sequence"] = each["pipelined_step_ms"] / each["batch_size"]
    head, *rows, first, second = sweep_table(results, ["batch_size"]).splitlines()
    titles = head.replace("step ms", "step_ms").replace("in-row ms", "in-row_ms").split()[:4]
    assert titles == ["batch_size", "step_ms", "in-row_ms", "ms/seq"]
    for row in rows:
        batch, single, in_row, each = map(float, row.split()[:4])
        assert single > in_row
        assert each == pytest.approx(in_row / batch, rel=0.01)
    assert "step ms: median of single steps" in first
    assert "ms/seq (in-row ms / batch)" in second


def test_a_tables_small_numbers_keep_their_digits(trained):
    small = trained | {"step_ms": 0.0123456, "peak_bytes": 150_000, "mfu": None}
    row = sweep_table([small], ["phase"]).splitlines()[1].split()
    assert row[1] == "0.0123"
    assert row[-3:] == ["-", f"{trained['compile_seconds']:.1f}", "0.000140"]


def test_a_table_of_drawing_batches_says_what_its_time_is(trained):
    drawn = {k: v for k, v in trained.items() if k != "pipelined_step_ms"} | {"phase": "input"}
    lines = sweep_table([drawn | {"compile_seconds": None}], ["phase"]).splitlines()
    assert lines[1].split()[2] == "-"
    assert lines[2:] == ["step ms: mean time of drawing a batch; ms/seq is step ms / batch"]


@pytest.fixture
def style():
    with styled():
        yield


def test_a_picture_leaves_out_what_a_phase_does_not_have(trained, tmp_path, style):
    results = [trained | {"phase": "train", "mfu": 0.5}, trained | {"phase": "input", "mfu": None}]
    draw_sweep(results, ["phase"], tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    figure = sweep_figure(results, ["phase"])
    assert faults(figure) == []
    (mfu,) = (axis for axis in figure.axes if axis.get_ylabel() == "MFU")
    assert mfu.lines[0].get_xdata().tolist() == [0.0]


def test_a_sweep_of_many_settings_has_a_line_of_its_own_for_each(trained, style):
    settings = [f"setting {number}" for number in range(36)]
    results = [
        trained | {"batch_size": size, "mfu": 0.5, "remat": setting, "dtype": "float32"}
        for size, setting in itertools.product((4, 8), settings)
    ]
    figure = sweep_figure(results, ["batch_size", "remat", "dtype"])
    assert faults(figure) == []
    panels = [axis for axis in figure.axes if axis.lines]
    units = [axis.get_ylabel().partition(" (")[0] for axis in panels]
    assert units == ["sequences a second", "ms a sequence", "peak memory", "MFU"]
    assert all(len(set(styles(axis))) == 36 for axis in panels)
    assert {axis.get_xlabel() for axis in panels} == {"batch_size"}
    assert {axis.get_xscale() for axis in panels} == {"log"}
    assert legend_entries(figure) == {f"{setting}, float32" for setting in settings}
    assert figure.legends[0].get_title().get_text() == "remat, dtype"


def test_a_sweeps_picture_shows_what_does_not_fit(trained, style):
    failed = {"batch_size": 16, "error": "out of memory: too much"}
    results = [trained | {"batch_size": size} for size in (4, 8)] + [failed]
    figure = sweep_figure(results, ["batch_size"])
    assert faults(figure) == []
    assert legend_entries(figure) == {"measured", "does not fit"}
    cross = figure.axes[0].lines[-1]
    assert (cross.get_marker(), cross.get_xdata().tolist()) == ("x", [16.0])


@pytest.mark.parametrize("command", ["benchmark --sweep batch_size=4", "estimate --table t.jsonl"])
def test_a_picture_that_cannot_be_is_told_before_anything_runs(
    command, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("albert_jax.utils.malloc.keep_freed_memory", lambda: False)
    monkeypatch.setattr(module, "sweep", lambda *args: pytest.fail("it measured"))
    monkeypatch.setattr(estimate, "estimate", lambda *args: pytest.fail("it compiled"))
    assert main([*command.split(), "--model", model, "--plot", "none/x.png"]) == 2
    assert "--plot none/x.png cannot be written: there is no folder none" in capsys.readouterr().err


def test_figures_are_printed_though_the_picture_cannot_be_written(
    model, trained, tmp_path, monkeypatch, capsys
):
    def full(figure, path, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("albert_jax.utils.malloc.keep_freed_memory", lambda: False)
    monkeypatch.setattr(module, "sweep", lambda *args: [trained])
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    command = ["benchmark", "--model", model, "--sweep", "batch_size=8", "--json"]
    assert main([*command, "--plot", str(tmp_path / "x.png")]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["step_ms"] == trained["step_ms"]
    assert "cannot be written: No space left on device" in told.err


def test_sweeps_given_one_by_one_are_one(model, monkeypatch):
    asked = []

    def noted(config, points):
        asked.extend(points)
        raise UserError("that is enough")

    monkeypatch.setattr(module, "sweep", noted)
    # It would hold for the tests after this one.
    monkeypatch.setattr("albert_jax.utils.malloc.keep_freed_memory", lambda: False)
    command = ["benchmark", "--model", model, "--sweep", "batch_size=8", "unroll=1"]
    assert main([*command, "--sweep", "remat=none"]) == 2
    assert asked == ["batch_size=8", "unroll=1", "remat=none"]


def test_a_setting_swept_twice_is_refused(small):
    with pytest.raises(UserError, match="sweep has batch_size twice; give all its values at once"):
        sweep(small(), ["batch_size=8", "batch_size=16"])


def test_a_sweep_refuses_what_the_devices_cannot_divide_before_it_measures(small, monkeypatch):
    monkeypatch.setattr(module, "benchmark", lambda config: pytest.fail("it measured"))
    with pytest.raises(UserError, match="13"):
        sweep(small(devices=4), ["batch_size=16,13"])


def test_a_sweep_refuses_a_classifiers_store_before_it_measures(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "benchmark", lambda config: pytest.fail("it measured"))
    with pytest.raises(UserError, match="store holds no classified texts; leave it out"):
        sweep(small(store=str(make_store(tmp_path))), ["phase=train,finetune"])


def test_pretrain_says_so_too(tmp_path, monkeypatch):
    def fit(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9000 bytes")

    monkeypatch.setattr("albert_jax.training.session.fit", fit)
    with pytest.raises(OutOfMemory, match=r"out of memory: .*; lower train.batch_size \(8\)"):
        pretrain(tiny_config(make_store(tmp_path), tmp_path / "run"))


@pytest.mark.parametrize(
    ("mode", "devices"), [("jit", 1), pytest.param("jit", 4, marks=pytest.mark.slow), ("pmap", 4)]
)
def test_pretrain_refuses_what_cannot_fit_before_it_runs(tmp_path, monkeypatch, mode, devices):
    monkeypatch.setattr(memory, "capacity_bytes", lambda device: 1 << 20)
    config = tiny_config(make_store(tmp_path), tmp_path / "run", mode=mode, devices=devices)
    with pytest.raises(
        OutOfMemory, match=r"takes \S+ GiB of 0.000977 GiB, \S+ GiB too many; lower"
    ):
        pretrain(config)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(("share", "tight"), [(0.2, False), (0.3, True)])
def test_a_cpu_is_tight_where_it_has_no_room_for_buffers_of_steps_in_flight(
    monkeypatch, share, tight
):
    called = []
    monkeypatch.setattr(memory, "capacity_bytes", lambda device: 10 << 30)
    monkeypatch.setattr(memory, "program_bytes", lambda compiled: share * (10 << 30))
    memory.check_fits(
        None, jax.devices("cpu")[:1], PretrainConfig(), when_tight=lambda: called.append(True)
    )
    assert bool(called) == tight


def test_who_runs_a_program_on_a_tight_cpu_gives_large_buffers_back(small, tmp_path, monkeypatch):
    class GivenBackError(Exception):
        pass

    def give_back():
        raise GivenBackError

    for name in ("perf.benchmark", "training.session"):
        monkeypatch.setattr(f"albert_jax.{name}.give_back_large_buffers", give_back)
    monkeypatch.setattr(memory, "capacity_bytes", lambda device: 10 << 30)
    monkeypatch.setattr(memory, "program_bytes", lambda compiled: 5 << 30)
    with pytest.raises(GivenBackError):
        benchmark(small())
    with pytest.raises(GivenBackError):
        pretrain(tiny_config(make_store(tmp_path), tmp_path / "run", devices=1))


def test_other_errors_of_the_device_stay_as_they_are():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        out_of_memory_told([], PretrainConfig()),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


# ---------------------------------------------------------------------------------------- roofline


@pytest.mark.parametrize(("phase", "passes"), [("forward", 1), ("train", 3)])
def test_xla_counts_the_flops_that_we_do_whatever_the_depth(tmp_path, phase, passes):
    model = tiny_albert(hidden_size=48, num_hidden_layers=3)
    model.to_json(tmp_path / "deep.json")
    config = BenchmarkConfig(
        model=str(tmp_path / "deep.json"), batch_size=4, predictions=3, phase=phase
    )
    found = step_traffic(config)
    wanted = 4 * passes * forward_flops_per_sequence(model, model.max_position_embeddings, 3)
    # XLA counts what is no matmul too; a loop counted once would be about a third.
    assert wanted < found["flops"] < 1.3 * wanted
    assert found["bytes"] > 4 * parameter_count(model)


def test_the_rates_of_a_device_are_those_of_work_done():
    rates = device_rates(seconds=0.0)
    assert all(0 < rate < 1e18 for rate in rates.values())
    assert rates["cache_bytes_per_second"] >= rates["bytes_per_second"]


def test_memory_is_timed_without_handing_out_pages(monkeypatch):
    """A new array for each result is mostly page faults on a CPU: steps then lay above the roof."""
    timed = []

    def noted(function, argument, seconds, *, donate=False):
        timed.append((argument.ndim, argument.nbytes, donate))
        return 1.0

    monkeypatch.setattr(roofline, "_least_time", noted)
    rates = device_rates()
    copies = [(size, donate) for dimensions, size, donate in timed if dimensions == 1]
    assert sorted(size for size, _ in copies) == [1 << 22, 1 << 24, 1 << 28]
    assert all(donate for _, donate in copies)
    assert rates["flop_per_second"] == 2 * 2048**3  # the best of several


def test_a_result_takes_its_arguments_place():
    array = jnp.ones(1 << 10)
    assert roofline._least_time(lambda x: x + 1, array, 0.0, donate=True) > 0
    assert array.is_deleted()


RATES = {"flop_per_second": 200e9, "bytes_per_second": 20e9, "cache_bytes_per_second": 100e9}


@pytest.mark.parametrize(("flops_per_byte", "told"), [(0.5, 50e9), (2.0, 200e9), (64.0, 200e9)])
def test_a_step_is_bound_by_a_cache_and_by_arithmetic(flops_per_byte, told):
    assert bound(RATES, flops_per_byte) == told


def test_the_best_of_several_measurements_counts():
    other = {"flop_per_second": 300e9, "bytes_per_second": 10e9, "cache_bytes_per_second": 100e9}
    assert best_rates(RATES, other) == RATES | {"flop_per_second": 300e9}


def step_at(flops_per_byte, rate, name="base", phase="train"):
    return {
        "name": name,
        "phase": phase,
        "flops_per_byte": flops_per_byte,
        "flop_per_second": rate,
    }


def test_a_roofline_names_its_lines_and_each_step(style):
    steps = [step_at(7.0, 9e10), step_at(9.0, 8e10, phase="forward"), step_at(1.0, 5e10, "small")]
    figure = roofline_figure("Roofline: cpu, float32", steps, RATES, peak=400e9)
    assert faults(figure) == []
    assert figure.get_suptitle() == "Roofline: cpu, float32"
    lines = {
        "data in memory: 20 GB/s, measured",
        "data in a cache: 100 GB/s, measured",
        "a large matmul: 200 GFLOP/s, measured",
        "data sheet's peak: 400 GFLOP/s",
    }
    assert legend_entries(figure) == lines | {"base, train", "base, forward", "small, train"}
    axis = figure.axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert axis.get_xlabel() == "model FLOPs for each byte that kernels read and write"
    for line in axis.lines[3:6]:  # the slopes and the flat line meet the bound at its corners
        x, y = line.get_data()
        rate = RATES["bytes_per_second" if "memory" in line.get_label() else "flop_per_second"]
        assert y[-1] * 1e9 == pytest.approx(min(RATES["flop_per_second"], x[-1] * rate))


def test_a_roofline_without_a_data_sheet_or_a_cache_draws_neither(style):
    rates = RATES | {"cache_bytes_per_second": 20e9}
    figure = roofline_figure("t", [step_at(7.0, 9e10)], rates)
    assert {entry.partition(":")[0] for entry in legend_entries(figure)} == {
        "base, train",
        "data in memory",
        "a large matmul",
    }
    assert faults(roofline_figure("nothing fitted", [], rates)) == []


def test_a_step_above_the_roof_is_told_as_a_busy_devices(style):
    figure = roofline_figure("t", [step_at(7.0, 300e9)], RATES)
    assert "the device was busy while its own rates were measured" in figure.get_suptitle()
    assert faults(figure) == []


# ------------------------------------------------------------------------------------ bad requests


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "base-v3"}, "'base-v3' is unknown .did you mean 'base-v2'"),
        ({"model": "./nothing"}, "nothing is no released model"),
        ({"phase": "sleep"}, "phase 'sleep' must be one of train, forward, finetune, input"),
        ({"dtype": "int8"}, "dtype 'int8' must be one of float32, bfloat16"),
        ({"mode": "xmap"}, "mode 'xmap' must be one of jit, pmap"),
        ({"sequence": 99}, "sequence 99 exceeds the model's max_position_embeddings 24"),
        ({"devices": 2, "batch_size": 9}, "batch_size 9 does not divide over 2 devices"),
        ({"store": "nothing"}, "store nothing is no token store"),
        ({"steps": 1}, "steps 1 must be at least 3"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(small, settings, told):
    with pytest.raises(UserError, match=told):
        benchmark(small(**settings))


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ("batch_size", "must be name=value,value"),
        ("batch=8", "'batch' is no setting of benchmark; there are model"),
        ("batch_size=8,many", "must give whole numbers"),
        ("seconds=1,long", "must give numbers"),
        ("remat=none,half", "remat 'half' must be one of"),
    ],
)
def test_a_sweep_is_refused_before_it_measures(small, point, told, monkeypatch):
    monkeypatch.setattr(module, "benchmark", None)
    with pytest.raises(UserError, match=told):
        sweep(small(), [point])
