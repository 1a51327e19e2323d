# SPDX-License-Identifier: Apache-2.0
"""The model against the original's numbers, against NumPy in float64 and against itself computed
another way."""

import dataclasses
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.checkpoint.convert.tf_names import tf_names
from albert_jax.config.model import MODELS, ComputeConfig
from albert_jax.distributed.placement import local_devices, make_placement
from albert_jax.models.albert import AlbertForPretraining, Block, init_params
from albert_jax.models.flops import parameter_count, parameter_counts
from albert_jax.models.lowering import Lowering
from albert_jax.training.losses import pretraining_objective
from tests.helpers import reference
from tests.helpers.golden import CHECKPOINTS, arrays, as_tf, batch_of, original_model
from tests.helpers.models import assert_trees_close, noisy_params, random_batch, tiny_albert

# Two float32 implementations differ by 6e-6 here (tests/data/README.md); a wrong epsilon shows from
# 2.7e-5 on.
FORWARD = {"atol": 2e-5, "rtol": 0}
DEFAULT, HERE = ComputeConfig(), Lowering()


def apply(config, params, batch, *, compute=DEFAULT, **kwargs):
    model = AlbertForPretraining(config, compute)
    positional = (
        batch[n] for n in ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
    )
    return jax.jit(partial(model.apply, collect_layers=True, **kwargs))(
        {"params": params}, *positional
    )


# ----------------------------------------------------------------------------- against the original


def check_forward(config, params, expected):
    batch = batch_of(expected)
    output = apply(config, params, batch)
    pairs = {
        "embedding_output": output.encoder.embeddings_BSE,
        "sequence_output": output.encoder.sequence_BSH,
        "pooled_output": output.encoder.pooled_BH,
        "sop_logits": output.sentence_order_logits_BC,
        "mlm_logits": output.masked_lm_logits_BPV.reshape(-1, config.vocab_size),
    }
    layers = sorted(name for name in expected if name.startswith("layer_"))
    pairs |= dict(zip(layers, output.encoder.layers_LBSH, strict=True))
    for name, found in pairs.items():
        np.testing.assert_allclose(found, expected[name], err_msg=name, **FORWARD)
    total, metrics = loss_of(config, params, batch)
    np.testing.assert_allclose(metrics["masked_lm_loss"], expected["mlm_loss"], atol=5e-6)
    np.testing.assert_allclose(metrics["sentence_order_loss"], expected["sop_loss"], atol=5e-6)
    np.testing.assert_allclose(total, expected["total_loss"], atol=5e-6)


def loss_of(config, params, batch, compute=DEFAULT):
    objective = pretraining_objective(AlbertForPretraining(config, compute))
    return jax.jit(objective.loss)(params, batch, objective.normalizers(batch), None)


def grads_of(config, params, batch, compute=DEFAULT, lowering=HERE):
    objective = pretraining_objective(AlbertForPretraining(config, compute, lowering))
    loss = jax.jit(jax.grad(lambda p, b, n: objective.loss(p, b, n, None)[0]))
    return loss(params, batch, objective.normalizers(batch))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_forward_and_gradients_equal_the_original(name):
    config, params = original_model(name)
    expected = arrays(f"{name}/forward")
    check_forward(config, params, expected)

    golden = arrays(f"{name}/grads")
    grads = as_tf(grads_of(config, params, batch_of(expected)), config)
    assert set(grads) == {name for name in golden if not name.startswith("__")}
    for variable, gradient in grads.items():
        want = golden[variable]
        scale = np.abs(want).max()
        np.testing.assert_allclose(
            gradient, want, rtol=1e-4, atol=1e-5 * max(scale, 0.1), err_msg=variable
        )
    norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in grads.values()))
    np.testing.assert_allclose(norm, golden["__global_norm_dense__"], rtol=1e-5)


def test_forward_equals_float64_numpy():
    config, params = original_model()
    batch = batch_of(arrays("tiny/forward"))
    variables = as_tf(params, config)
    embeddings, layers, pooled = reference.forward(
        variables, config, batch["input_ids"], batch["input_mask"], batch["segment_ids"]
    )
    output = apply(config, params, batch)
    np.testing.assert_allclose(output.encoder.embeddings_BSE, embeddings, **FORWARD)
    np.testing.assert_allclose(output.encoder.layers_LBSH, np.stack(layers), **FORWARD)
    np.testing.assert_allclose(output.encoder.pooled_BH, pooled, **FORWARD)
    logits = reference.masked_lm_logits(variables, layers[-1], batch["masked_lm_positions"])
    np.testing.assert_allclose(output.masked_lm_logits_BPV, logits, **FORWARD)


@pytest.mark.parametrize("mutation", ["query-key", "epsilon", "gelu", "mask", "segments"])
def test_the_golden_comparison_can_fail(mutation):
    config, params = original_model()
    expected = arrays("tiny/forward")
    batch = batch_of(expected)
    if mutation == "query-key":
        attention = params["encoder"]["group_0"]["inner_group_0"]["attention"]
        attention["query"], attention["key"] = attention["key"], attention["query"]
    elif mutation == "epsilon":
        config = dataclasses.replace(config, layer_norm_eps=1e-5)
    elif mutation == "gelu":
        config = dataclasses.replace(config, hidden_act="gelu_erf")
    elif mutation == "mask":
        batch["input_mask"] = np.ones_like(batch["input_mask"])
    else:
        batch["segment_ids"] = np.zeros_like(batch["segment_ids"])
    output = apply(config, params, batch)
    worst = np.abs(output.encoder.sequence_BSH - expected["sequence_output"]).max()
    assert worst > FORWARD["atol"]


# ---------------------------------------------------------------------- against itself, another way


def test_scan_equals_a_python_loop_over_one_layer():
    config = tiny_albert(num_hidden_layers=3, num_hidden_groups=2, inner_group_num=2)
    params, batch = noisy_params(config), random_batch(config)
    block = Block(config, ComputeConfig())

    def looped(params):
        encoder = AlbertForPretraining(config).apply(
            {"params": params},
            batch["input_ids"],
            batch["input_mask"],
            batch["segment_ids"],
        ).encoder  # fmt: skip
        mapping = params["encoder"]["embedding_hidden_mapping_in"]
        x = encoder.embeddings_BSE @ mapping["kernel"] + mapping["bias"]
        for i in range(3):
            group = params["encoder"][f"group_{int(i / 3 * 2)}"]
            for j in range(2):
                inner = {"params": group[f"inner_group_{j}"]}
                x = block.apply(inner, x, batch["input_mask"], deterministic=True)
        return x

    def scanned(params):
        return apply(config, params, batch).encoder.sequence_BSH

    shape = (*batch["input_ids"].shape, config.hidden_size)
    cotangent = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    def along(function, params):
        found = function(params)
        return (found * cotangent).sum(), found

    (by_scan, states), (by_loop, expected) = (
        jax.jit(jax.grad(partial(along, f), has_aux=True))(params) for f in (scanned, looped)
    )
    np.testing.assert_allclose(states, expected, atol=1e-5)
    assert_trees_close(by_scan, by_loop, atol=2e-4, rtol=1e-4)


@cache
def grads_with_dropout(compute):
    """The loss and its gradient for four layers, computed in one way."""
    config = tiny_albert(
        num_hidden_layers=4, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2
    )
    params, batch = noisy_params(config), random_batch(config)
    objective = pretraining_objective(AlbertForPretraining(config, compute))
    normalizers = objective.normalizers(batch)
    key = jax.random.key(3)
    loss = jax.value_and_grad(lambda p: objective.loss(p, batch, normalizers, key)[0])
    return jax.jit(loss)(params)


@pytest.mark.parametrize(
    "compute",
    [ComputeConfig(remat="full"), ComputeConfig(remat="dots"), ComputeConfig(scan_unroll=2)],
    ids=["remat-full", "remat-dots", "unroll"],
)
def test_remat_and_unroll_change_nothing_but_speed(compute):
    # Dropout is on: the masks must be the same ones too. Only the order of additions may differ.
    assert_trees_close(
        grads_with_dropout(compute), grads_with_dropout(ComputeConfig()), atol=2e-6, rtol=2e-5
    )


def test_dropout_differs_between_the_layers_of_one_scan():
    config = tiny_albert(hidden_dropout_prob=0.5, num_hidden_layers=2)
    params = init_params(AlbertForPretraining(config), jax.random.key(0))
    zeroed = jax.tree.map(jnp.zeros_like, params["encoder"]["group_0"])
    # With zero kernels each block is LayerNorm_1(dropout(ffn bias) + LayerNorm(…)): its zeros are
    # the mask.
    zeroed["inner_group_0"]["ffn_output"]["bias"] = jnp.ones(config.hidden_size)
    zeroed["inner_group_0"]["LayerNorm_1"]["scale"] = jnp.ones(config.hidden_size)
    params["encoder"]["group_0"] = zeroed
    output = apply(
        config,
        params,
        random_batch(config),
        deterministic=False,
        rngs={"dropout": jax.random.key(1)},
    )
    first, second = output.encoder.layers_LBSH > 0
    assert 0.2 < np.mean(first == second) < 0.8


@pytest.mark.parametrize(("rate", "deterministic"), [(0.1, True), (0.0, False)])
def test_the_layer_is_traced_once_where_nothing_is_drawn(monkeypatch, rate, deterministic):
    config = tiny_albert(hidden_dropout_prob=rate, attention_probs_dropout_prob=rate)
    model, params = AlbertForPretraining(config), noisy_params(config)
    traced, call = [], Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda *a, **k: (traced.append(1), call(*a, **k))[1])
    ids = jnp.zeros((2, 8), jnp.int32)
    run = partial(model.apply, deterministic=deterministic, rngs={"dropout": jax.random.key(0)})
    jax.eval_shape(run, {"params": params}, ids, ids + 1, ids)
    assert len(traced) == 1


def test_padding_does_not_change_other_positions():
    config = tiny_albert(num_hidden_layers=4)
    params, batch = noisy_params(config), random_batch(config)
    padded = {
        name: np.pad(x, ((0, 0), (0, 7)))
        if name in ("input_ids", "input_mask", "segment_ids")
        else x
        for name, x in batch.items()
    }
    short, long = apply(config, params, batch), apply(config, params, padded)
    length = batch["input_ids"].shape[1]
    np.testing.assert_allclose(
        long.encoder.sequence_BSH[:, :length], short.encoder.sequence_BSH, atol=1e-5
    )


def test_gathered_masked_lm_logits_equal_those_of_all_positions():
    config = tiny_albert(num_hidden_layers=4)
    params, batch = noisy_params(config), random_batch(config)
    gathered = apply(config, params, batch).masked_lm_logits_BPV
    everywhere = apply(config, params, batch | {"masked_lm_positions": None}).masked_lm_logits_BPV
    picked = np.take_along_axis(
        np.asarray(everywhere), batch["masked_lm_positions"][..., None], axis=1
    )
    np.testing.assert_allclose(gathered, picked, atol=1e-5)


def test_a_position_outside_the_row_is_nan_and_not_another_rows_token():
    config = tiny_albert(num_hidden_layers=4)
    params, batch = noisy_params(config), random_batch(config)
    length = batch["input_ids"].shape[1]
    positions_BP = batch["masked_lm_positions"].copy()
    positions_BP[0, 0], positions_BP[1, 0] = length, -1
    batch["masked_lm_positions"] = positions_BP
    is_nan_BP = np.isnan(apply(config, params, batch).masked_lm_logits_BPV).all(axis=-1)
    np.testing.assert_array_equal(is_nan_BP, (positions_BP < 0) | (positions_BP >= length))


def test_bfloat16_keeps_parameters_softmax_layernorm_and_logits_in_float32():
    config = tiny_albert(num_hidden_layers=4)
    params, batch = noisy_params(config), random_batch(config)
    compute = ComputeConfig(dtype="bfloat16")
    output = apply(config, params, batch, compute=compute)
    assert output.encoder.sequence_BSH.dtype == jnp.bfloat16
    assert output.masked_lm_logits_BPV.dtype == jnp.float32
    grads = grads_of(config, params, batch, compute)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda p: loss_of(config, p, batch, compute)[0])(params))
    exps = [line for line in text.splitlines() if " exp " in line or " rsqrt " in line]
    assert exps
    assert all("f32[" in line and "bf16[" not in line for line in exps)
    # 8 bits of mantissa: a loss of about 4.5 nats agrees to about 1e-2.
    full, _ = loss_of(config, params, batch)
    half, _ = loss_of(config, params, batch, compute)
    np.testing.assert_allclose(half, full, atol=0.05)


def test_init_is_truncated_at_two_sigma_and_not_rescaled():
    params = init_params(
        AlbertForPretraining(tiny_albert(num_hidden_layers=4, vocab_size=3000)), jax.random.key(0)
    )
    words = np.asarray(params["embeddings"]["word_embeddings"])
    assert np.abs(words).max() <= 0.04
    # The stddev of a normal cut at two sigma is 0.8796 of the uncut one's.
    np.testing.assert_allclose(words.std(), 0.02 * 0.8796, rtol=0.02)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_parameter_counts_equal_the_released_checkpoints(name):
    published = {
        "base": (11_813_810, 7_087_872),
        "large": (17_847_474, 12_596_224),
        "xlarge": (59_021_490, 50_358_272),
        "xxlarge": (223_158_450, 201_379_840),
    }[name.split("-")[0]]
    config = MODELS[name]
    assert (parameter_count(config), parameter_counts(config)["shared layers"]) == published
    shapes = jax.eval_shape(partial(init_params, AlbertForPretraining(config)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == published[0]
    assert len(tf_names(config)) == len(jax.tree.leaves(shapes)) == 32


def test_compiled_program_does_not_grow_with_depth():
    def size(layers):
        config = tiny_albert(num_hidden_layers=layers)
        params, batch = noisy_params(config), random_batch(config)
        return len(jax.jit(partial(grads_of, config)).lower(params, batch).as_text())

    assert size(48) < 1.01 * size(12)


@pytest.mark.parametrize("unroll", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_remat_leaves_out_is_computed_again(unroll):
    config = tiny_albert(num_hidden_layers=4)
    params, batch = noisy_params(config), random_batch(config)

    def matmuls(remat):
        compute = ComputeConfig(remat=remat, scan_unroll=unroll)
        compiled = jax.jit(partial(grads_of, config, compute=compute)).lower(params, batch)
        return compiled.compile().as_text().count(" dot(")

    none, dots, full = (matmuls(remat) for remat in ("none", "dots", "full"))
    assert full >= none + 4 * unroll
    assert full >= dots + 2 * unroll


@pytest.mark.parametrize(
    ("lowering", "layers_in_a_turn"),
    [(Lowering("tpu", unroll=True), 4), ("placement", 4), (Lowering(), 1)],
    ids=["tpu", "placement", "here"],
)
def test_layers_are_unrolled_where_the_step_is_placed_on_devices(lowering, layers_in_a_turn):
    if lowering == "placement":
        lowering = make_placement("jit", local_devices(1)).lowering
    config = tiny_albert(num_hidden_layers=4)
    params, batch = noisy_params(config), random_batch(config)
    jaxpr = str(jax.make_jaxpr(partial(grads_of, config, lowering=lowering))(params, batch))
    assert f"unroll={layers_in_a_turn}\n" in jaxpr


@pytest.mark.parametrize(("kind", "written"), [("TPU v6 lite", True), ("TPU v5 lite", False)])
def test_gelus_output_is_written_out_on_chips_that_gain_by_it(kind, written):
    chip = SimpleNamespace(platform="tpu", device_kind=kind)
    placement = dataclasses.replace(make_placement("jit", local_devices(1)), devices=(chip,))
    config = tiny_albert()
    params, batch = noisy_params(config), random_batch(config)
    lowering = dataclasses.replace(placement.lowering, backend="cpu")
    jaxpr = str(jax.make_jaxpr(partial(grads_of, config, lowering=lowering))(params, batch))
    wide = f"{config.intermediate_size}] = optimization_barrier"
    assert (wide in jaxpr) == written


def test_remat_saves_memory_on_a_cpu():
    config = tiny_albert(num_hidden_layers=4)
    params, batch = noisy_params(config), random_batch(config)

    def temporaries(remat):
        compute, lowering = ComputeConfig(remat=remat), Lowering("cpu", unroll=True)
        grads = partial(grads_of, config, compute=compute, lowering=lowering)
        compiled = jax.jit(grads).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, dots, full = (temporaries(remat) for remat in ("none", "dots", "full"))
    assert dots < 0.8 * none
    assert full < 0.8 * none


# ----------------------------------------------------------------------- gradients that JAX makes


def outputs_and_gradients(config, params, batch, *, fused, key=None):
    """The loss, encoder states and gradient with the layers of `fused.py` or flax's."""
    model = AlbertForPretraining(config, ComputeConfig(fused=fused))
    objective = pretraining_objective(model)
    normalizers = objective.normalizers(batch)
    names = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")

    @jax.jit  # one program
    def both(params):
        states = model.apply({"params": params}, *(batch[name] for name in names))
        loss = jax.value_and_grad(lambda p: objective.loss(p, batch, normalizers, key)[0])
        return states, loss(params)

    return both(params)


@pytest.mark.parametrize("key", [None, 7], ids=["evaluation", "dropout"])
@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
def test_layers_with_gradients_by_hand_equal_flaxs(hidden_act, key):
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    config = tiny_albert(num_hidden_layers=4, hidden_act=hidden_act, **rates)
    params, batch = noisy_params(config), random_batch(config)
    key = None if key is None else jax.random.key(key)
    ours, theirs = (
        outputs_and_gradients(config, params, batch, fused=f, key=key) for f in (True, False)
    )
    # Float32 throughout; states and gradients are of order 1.
    assert_trees_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_parameters_are_the_same_whatever_makes_the_gradients():
    config = tiny_albert()
    params = [
        init_params(AlbertForPretraining(config, ComputeConfig(fused=f)), jax.random.key(0))
        for f in (True, False)
    ]
    assert_trees_close(*params, rtol=0, atol=0)


def test_without_gradients_by_hand_there_are_jvps_and_hessians():
    config = tiny_albert(num_hidden_layers=2)
    params, batch = noisy_params(config), random_batch(config)
    tangent = noisy_params(config, seed=1)

    def loss_by(fused):
        objective = pretraining_objective(AlbertForPretraining(config, ComputeConfig(fused=fused)))
        normalizers = objective.normalizers(batch)
        return lambda p: objective.loss(p, batch, normalizers, None)[0]

    loss = loss_by(fused=False)
    grads, product = jax.jit(lambda p, t: jax.jvp(jax.grad(loss), (p,), (t,)))(params, tangent)
    _, slope = jax.jit(lambda p, t: jax.jvp(loss, (p,), (t,)))(params, tangent)
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, t: (g * t).sum(), grads, tangent)))
    np.testing.assert_allclose(slope, along, rtol=1e-4)
    # The Hessian's product is the gradient's derivative along the tangent: by central differences,
    # whose rounding (1e-7 / 2e-3) and curvature (1e-6) leave about 1e-3 of values of order 1.
    step, grad = 1e-3, jax.jit(jax.grad(loss))

    def moved(by):
        return jax.tree.map(lambda p, t: p + by * t, params, tangent)

    ahead, behind = grad(moved(step)), grad(moved(-step))
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    assert_trees_close(product, differences, rtol=2e-2, atol=2e-3)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(loss_by(fused=True), (params,), (tangent,))
