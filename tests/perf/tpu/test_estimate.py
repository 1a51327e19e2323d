# SPDX-License-Identifier: Apache-2.0
"""What is compiled for a TPU slice is the step of pretrain; what cannot be is said in a line."""

import dataclasses
import importlib.util
import json
import sys

import jax
import pytest

from albert_jax.config.model import AlbertConfig
from albert_jax.config.perf import EstimateConfig
from albert_jax.models.flops import train_flops_per_sequence
from albert_jax.perf.tpu import estimate as module
from albert_jax.perf.tpu.estimate import estimate, estimated_config, find_batch, next_batch
from albert_jax.perf.tpu.estimate_report import batches, estimate_lines
from albert_jax.perf.tpu.results import FittingEstimate
from albert_jax.perf.tpu.topology import CHIPS, parse_slice
from albert_jax.training.memory import OutOfMemory
from albert_jax.utils.errors import UserError

PROMISED = {"fits", "ms_per_sequence_per_chip", "step_ms", "mfu", "hbm_bytes"}
PROMISED |= {"hbm_capacity_bytes", "collective_bytes", "chips"}

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed: pip install -r requirements-tpu.lock",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.json"
    AlbertConfig(
        vocab_size=512,
        embedding_size=128,
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=128,
    ).to_json(path)
    return str(path)


def recorded(**changes):
    """What `_compiled` finds out, as JSON values, of round numbers."""
    operation = {
        "ms": 6.0,
        "name": "fusion.1",
        "source": "jit(train_step)/transpose(jvp(AlbertForPretraining))/AlbertForPretraining/"
        "encoder/while/body/closed_call/group_0/inner_group_0/ffn/dot_general",
        "kind": "cycles",
        "times": 12,
        "bytes": 1e6,
        "flops": 1e9,
    }
    reduced = operation | {"ms": 1.0, "name": "all-reduce", "kind": "collective", "times": 1}
    return {
        "fits": True,
        "out_of_memory": None,
        "compile_seconds": 30.0,
        "hbm_bytes": 6 << 30,
        "hbm_capacity_bytes": 15 << 30,
        "hbm_of": {
            "arguments": 1 << 30,
            "outputs": 1 << 30,
            "aliased": 1 << 30,
            "temporaries": 5 << 30,
            "code": 0,
        },
        "step_ms": 10.0,
        "ms_per_sequence_per_chip": 0.3125,
        "mfu": 0.5,
        "days": 1.5,
        "tflop_per_step": 1.0,
        "matmuls_of_model": 1.0,
        "ms_of": {"cycles": 9.0, "kernel": 0.0, "collective": 1.0, "copy": 0.0, "bytes": 0.0},
        "collective_bytes": 1_000_000,
        "collectives": [reduced],
        "kernels": [],
        "unknown_loops": [],
        "operations": [operation, reduced],
    } | changes


@pytest.fixture
def without_compiling(monkeypatch):
    """Estimates that need no libtpu: `fits` up to a number of bytes, so many a sequence."""

    def make(*, fixed, a_sequence, capacity):
        tried = []

        def compiled(config, settings, where, devices):
            described = module._described(config, settings, where)
            batch = described["batch_size"]
            needed = fixed + a_sequence * batch
            tried.append(batch)
            if needed > capacity:
                error = OutOfMemory(f"takes {needed}")
                error.needed, error.capacity = needed, capacity
                return module._unfit(described, error, where)
            found = recorded(hbm_bytes=needed, hbm_capacity_bytes=capacity)
            return FittingEstimate.from_json(described | found)

        monkeypatch.setattr(module, "_compiled", compiled)
        monkeypatch.setattr(module, "compile_only_devices", lambda where: ())
        return tried

    return make


# ------------------------------------------------------------------------------ the real compiler


@needs_libtpu
@pytest.mark.timeout(1500)  # half a minute of one core, which others may have
def test_a_small_step_compiles_for_a_slice_and_its_matmuls_are_the_models(model):
    rolled = EstimateConfig(model=model, batch_size=4, predictions=8, unroll=1, attention="xla")
    found = estimate(rolled)
    assert found.keys() >= PROMISED
    assert found["fits"]
    assert found["chips"] == 4
    # Five turns of the layer's loop: a body counted once would leave out four fifths.
    assert found["unknown_loops"] == []
    settings = estimated_config(EstimateConfig(model=model, predictions=8), parse_slice("v5e:2x2"))
    a_sequence = train_flops_per_sequence(settings.model, 128, 8)
    # Sums over rows are products with eight rows of ones: gradients of biases and of LayerNorms, of
    # every layer's features at each token; a little more outside the layers.
    sums = 2 * 8 * 128 * 5 * (4 * 128 + 256 + 128 + 4 * 128)
    assert found["matmuls_of_model"] == pytest.approx(1 + sums / a_sequence, rel=2e-3)
    flops = 4 * a_sequence
    assert found["tflop_per_step"] == pytest.approx(flops / 1e12)
    assert found["mfu"] == pytest.approx(flops / 197e12 / (found["step_ms"] / 1e3))
    assert found["step_ms"] == pytest.approx(sum(found["ms_of"].values()))
    assert found["step_ms"] == pytest.approx(4 * found["ms_per_sequence_per_chip"])
    # Weights, LAMB's moments and the batch come in; all gradients are reduced, some in bfloat16,
    # the word embeddings' once for the lookup and once for the vocabulary's logits.
    weights = 4 * found["parameters"]
    assert 3 * weights < found["hbm_of"]["arguments"] < 3.1 * weights + 100_000
    assert 0.5 * weights < found["collective_bytes"] < weights + 4 * 512 * 128 + 1000
    assert found["hbm_bytes"] == sum(found["hbm_of"].values()) - 2 * found["hbm_of"]["aliased"]
    told = estimate_lines(found)
    assert "  backward " in told
    assert not any(module in told for module in ("encoder/", "group_0/", "while/body/"))


def test_a_recipes_rolled_layers_can_be_asked_for_unrolled(tmp_path):
    recipe = tmp_path / "rolled.py"
    recipe.write_text(
        "from albert_jax.config import ComputeConfig, PretrainConfig, model_config\n"
        "def get_config():\n"
        "    return PretrainConfig(model_config('base-v2'), compute=ComputeConfig(scan_unroll=1))\n"
    )
    asked = (EstimateConfig(model=str(recipe)), EstimateConfig(model=str(recipe), unroll=0))
    found = [estimated_config(each, parse_slice("v5e:1x1")).compute.scan_unroll for each in asked]
    assert found == [1, 0]


@needs_libtpu
@pytest.mark.timeout(1500)
def test_by_default_layers_are_unrolled_and_attend_and_normalise_in_kernels(model, tmp_path):
    """On a slice of four hosts, of which none is this machine."""
    wide = dataclasses.replace(AlbertConfig.from_json(model), hidden_size=256)
    wide.to_json(tmp_path / "wide.json")
    path = str(tmp_path / "wide.json")
    config = EstimateConfig(model=path, topology="v5e:4x4", batch_size=4, predictions=8)
    found = estimate(config)
    assert found["chips"] == 16
    assert found["unknown_loops"] == []
    kernels = {
        "/".join(kernel["source"].split("/")[-3:-1]): kernel["times"] for kernel in found["kernels"]
    }
    assert kernels == {
        "attention/attention_rows_forward": 5,
        "attention/attention_rows_backward": 5,
        "LayerNorm/layer_norm_forward": 5,
        "LayerNorm/layer_norm_backward": 5,
        "LayerNorm_1/layer_norm_forward": 5,
        "LayerNorm_1/layer_norm_backward": 5,
    }
    told = estimate_lines(found)
    assert "1.00 of the HBM's rate, 5 x LayerNorm_1/layer_norm_forward" in told


def test_kernels_run_at_their_profiled_share_of_peak_or_at_half_of_what_heads_fill():
    def shares(topology, model="base-v2", sequence=512, phase="train"):
        config = EstimateConfig(model=model, topology=topology, sequence=sequence)
        where = parse_slice(topology)
        return module.kernel_efficiency(estimated_config(config, where), where, phase)

    forward, backward = "attention_rows_forward", "attention_rows_backward"
    assert shares("v5e:2x2") == {"": 0.25, forward: 0.387, backward: 0.566}
    assert shares("v5e:2x2", sequence=128) == {"": 0.25, forward: 0.164, backward: 0.286}
    assert shares("v5e:2x2", "xlarge-v2") == {"": 0.5, forward: 0.516, backward: 0.709}
    assert shares("v5e:2x2", sequence=256) == {"": 0.25}
    assert shares("v6e:2x2")[""] == 0.125  # of MXUs of 256
    assert shares("v4:2x2x1", sequence=256) == {"": 0.25}
    with_dropout = shares("v5e:2x2", "base-v1")
    assert with_dropout == pytest.approx(
        {"": 0.25, forward: 0.387 * 0.800, backward: 0.566 * 0.834}
    )
    assert shares("v5e:2x2", "xlarge-v1")[forward] == pytest.approx(0.516 * 0.845)
    # Evaluation drops nothing.
    assert shares("v5e:2x2", "base-v1", phase="forward") == shares("v5e:2x2")


def test_kernels_of_an_older_result_are_read():
    of_attention = {"ms": 2.0, "name": "rows", "kind": "kernel", "times": 12, "of_peak": 0.5}
    kernel = of_attention | {"source": "attention/rows/pallas_call", "bytes": 1e6, "flops": 1e9}
    config, where = EstimateConfig(model="base-v2"), parse_slice("v5e:2x2")
    described = module._described(config, estimated_config(config, where), where)
    found = FittingEstimate.from_json(described | recorded() | {"kernels": [kernel]})
    assert found.kernels[0].of_bandwidth is None
    assert "0.50 of peak, 12 x attention/rows" in estimate_lines(found)


def test_layer_norm_moves_its_bytes_at_the_profiled_share_of_the_hbms_rate():
    def shares(topology, model="base-v2"):
        config, where = EstimateConfig(model=model, topology=topology), parse_slice(topology)
        return module.kernel_bandwidth(estimated_config(config, where), where)

    forward, backward = "layer_norm_forward", "layer_norm_backward"
    assert shares("v6e:2x2") == {forward: 0.879, backward: 0.872}
    assert shares("v5p:2x2x1", "xxlarge-v2") == {backward: 0.906}
    assert shares("v5e:2x2") == {}


def test_a_program_that_jaxlib_cannot_read_is_libtpus_own_or_one_line(tmp_path):
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nmore")

    with pytest.raises(UserError, match=r"for v5p:2x2x1, but jaxlib cannot .* failure\); try"):
        module._text_of(Compiled(), tmp_path, parse_slice("v5p:2x2x1"))
    (tmp_path / "module_0000.jit_train_step.after_codegen.txt").write_text("HloModule jit_f")
    text = module._text_of(Compiled(), tmp_path, parse_slice("v5p:2x2x1"))
    assert text == "HloModule jit_f"


# ------------------------------------------------------------------------------ the largest batch


@pytest.mark.parametrize("capacity", [10, 11, 17, 100, 999, 5000, 77_777])
@pytest.mark.parametrize(("fixed", "curve"), [(0, 0.0), (7, 0.0), (7, 0.02)])
@pytest.mark.parametrize(("first", "unit"), [(32, 1), (1, 1), (64, 4)])
def test_the_largest_batch_is_found_to_a_sixteenth_in_few_trials(
    capacity, fixed, curve, first, unit
):
    def needed(batch):
        return int(fixed + 3 * batch + curve * batch**1.5)

    fits, fails, tried, batch = {}, [], [], first
    while batch:
        assert batch % unit == 0
        assert batch not in tried
        tried.append(batch)
        if needed(batch) <= capacity:
            fits[batch] = needed(batch)
        else:
            fails.append(batch)
        batch = next_batch(fits, min(fails, default=None), capacity, unit)
    best = max(fits, default=0)
    assert needed(min(fails)) > capacity
    assert min(fails) - best <= max(unit, best / 16)
    assert len(tried) <= 14


@pytest.mark.slow
def test_the_largest_batch_is_told_with_and_without_remat(without_compiling, model):
    tried = without_compiling(fixed=100, a_sequence=10, capacity=1000)
    config = EstimateConfig(model=model, remat="dots", accumulate=3, topology="v5e:1x1")
    found = find_batch(config)
    assert [r["remat"] for r in found] == ["dots", "none", "full"]
    assert [r["batch_size"] for r in found] == [90, 90, 90]
    assert all(batch % 3 == 0 for batch in tried)
    assert len(batches(found).splitlines()) == 4


@pytest.mark.slow
def test_a_model_too_large_for_any_batch_says_so(without_compiling, model):
    without_compiling(fixed=2000, a_sequence=10, capacity=1000)
    (found, *_) = find_batch(EstimateConfig(model=model))
    assert (found["fits"], found["batch_size"]) == (False, 1)
    assert "not even 1: takes 2010" in batches([found])


# -------------------------------------------------------------------------------- what is answered


def test_what_does_not_fit_is_an_answer_with_all_keys(monkeypatch, model):
    class Lowered:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
                "memory required for HLO temporaries (41.25G) exceeds available HBM (15.75G)."
            )

    monkeypatch.setattr(module, "compile_only_devices", lambda where: jax.devices()[:1])
    monkeypatch.setattr(module, "lower", lambda *args: Lowered())
    found = estimate(EstimateConfig(model=model, topology="v5e:1x1", batch_size=64, accumulate=2))
    assert found.keys() >= PROMISED
    assert found["fits"] is False
    assert found["step_ms"] is None
    assert (found["hbm_bytes"], found["hbm_capacity_bytes"]) == (41.25 * 2**30, 15.75 * 2**30)
    assert estimate_lines(found).splitlines()[-1] == (
        "does not fit: out of memory: the step takes 41.2 GiB of 15.8 GiB, 25.5 GiB too many; "
        "lower batch_size (64), raise accumulate (2) or recompute with remat='full' (now none)"
    )


@pytest.mark.parametrize("inside", ["", "shard_map/"])
def test_an_operation_is_told_by_what_differs_and_backward_is_never_cut(monkeypatch, model, inside):
    (operation, _) = recorded()["operations"]
    source = operation["source"].replace("train_step)/", f"train_step)/{inside}")
    second = source.replace("group_0/inner_group_0", "group_1/inner_group_12")
    long = source.replace("dot_general", 12 * "BFND,BTND->BNFT/" + "dot_general")
    rows = [operation | {"source": each} for each in (source, second, long)]

    def compiled(config, settings, where, devices):
        described = module._described(config, settings, where)
        return FittingEstimate.from_json(described | recorded(operations=rows))

    monkeypatch.setattr(module, "_compiled", compiled)
    monkeypatch.setattr(module, "compile_only_devices", lambda where: ())
    *_, first, second, cut = estimate_lines(estimate(EstimateConfig(model=model))).splitlines()
    assert first.endswith("  backward ffn/dot_general")
    assert second.endswith("  backward ffn/dot_general")
    told = cut[cut.index("backward") :]
    assert told.startswith("backward …")
    assert told.endswith("BNFT/dot_general")
    assert len(told) == 76


def test_a_recipe_keeps_its_batch_and_dtype(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from albert_jax.config import *\n"
        "def get_config(): return PretrainConfig(train=TrainConfig(batch_size=64, steps=9))\n"
    )
    where = parse_slice("v5e:2x4")
    config = estimated_config(EstimateConfig(model=str(recipe)), where)
    assert (config.train.batch_size, config.compute.dtype, config.train.steps) == (64, "float32", 9)
    alone = estimated_config(EstimateConfig(steps=7), where)
    assert (alone.train.batch_size, alone.compute.dtype) == (8 * 32, "bfloat16")
    assert alone.train.steps == 7


def test_the_command_prints_json_alone(monkeypatch, capsys, without_compiling):
    from albert_jax.cli.main import main

    without_compiling(fixed=0, a_sequence=1, capacity=100)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main(["estimate", "--topology", "v5e:2x2", "--batch-size", "32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= PROMISED
    assert (found["chips"], found["batch_size"], found["global_batch_size"]) == (4, 32, 128)
    assert main(["estimate", "--topology", "v5e:2x2", "--batch-size", "101"]) == 0
    assert "does not fit: takes 101" in capsys.readouterr().out
    assert main(["estimate", "--find-batch", "--json"]) == 0
    assert [r["batch_size"] for r in json.loads(capsys.readouterr().out)["results"]] == [100, 100]


# ---------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize(
    ("name", "chips", "ring"),
    [
        ("v5e:1x1", 1, 0.0),
        ("v5e:2x2", 4, 2 * 45e9),  # a corner has one neighbour along each axis
        ("v5e:16x16", 256, 4 * 45e9),
        ("v4:2x2x1", 4, 2 * 45e9),
        ("v5p:4x4x8", 128, 6 * 90e9),
        ("v6e:8x16", 128, 3 * 90e9),
    ],
)
def test_slices_have_so_many_chips_and_links(name, chips, ring):
    where = parse_slice(name)
    assert where.chips == chips
    assert where.ring_bandwidth == ring


def test_every_listed_slice_is_one():
    for kind, chip in CHIPS.items():
        assert all(parse_slice(f"{kind}:{s}").chips <= chip.largest for s in chip.shapes)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"topology": "v9:2x2"}, "topology 'v9:2x2' is unknown; known: v4:1x1x1 .*v5e:1x1 .2x2, "),
        ({"topology": "v5e"}, "topology 'v5e' is unknown; known: "),
        ({"topology": "v5e:4"}, "topology 'v5e:4' is unknown; known: "),
        ({"topology": "v5e:16x32"}, "no slice of v5e, of up to 256 chips; known: 1x1, 2x2"),
        ({"topology": "v5e:0x2"}, "no slice of v5e"),
        ({"topology": "v5p:2x2"}, "has 2 numbers, and a slice of v5p has 3; known: 1x1x1"),
        ({"topology": "v5e:2x2x2"}, "has 3 numbers, and a slice of v5e has 2; known: 1x1, 2x2"),
        ({"model": "base-v3"}, "'base-v3' is unknown .did you mean 'base-v2'"),
        ({"dtype": "int8"}, "dtype 'int8' must be one of float32, bfloat16"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"batch_size": 9, "accumulate": 2}, "batch_size 9 a chip does not divide into 2"),
        ({"sequence": 513}, "sequence 513 exceeds"),
    ],
)
def test_what_cannot_be_estimated_is_one_sentence(settings, told):
    with pytest.raises(UserError, match=told):
        estimate(EstimateConfig(**settings))


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"libtpu.* pip install 'albert-jax\[tpu\]'$"):
        estimate(EstimateConfig())


@needs_libtpu
def test_a_slice_that_the_compiler_does_not_make_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no topology 'v5e:3x3': .*divisible.*; known: v4:1x1x1"):
        estimate(EstimateConfig(topology="v5e:3x3"))
