# SPDX-License-Identifier: Apache-2.0
"""The operations that depend on the platform: the same numbers, by another way."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config.model import ComputeConfig
from albert_jax.models import lowering
from albert_jax.models.albert import AlbertForPretraining
from albert_jax.models.lowering import (
    Lowering,
    gpus_have_attention,
    matmul,
    matmul_dtype,
    product_by_columns,
    product_over_rows,
)
from albert_jax.training.losses import pretraining_objective
from tests.helpers.models import noisy_params, random_batch, tiny_albert


def operands(dtype):
    rng = np.random.default_rng(0)
    a_ND, b_NF = (jnp.asarray(rng.standard_normal((48, n)), dtype) for n in (16, 24))
    return a_ND, b_NF


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_products_are_added_up_in_float32_and_rounded_once(dtype, platform):
    a_ND, b_NF = operands(dtype)
    exact_DF = np.asarray(a_ND, np.float64).T @ np.asarray(b_NF, np.float64)
    results = [
        jax.jit(matmul, static_argnums=(0, 3))("ND,NF->DF", a_ND, b_NF, platform),
        jax.jit(product_over_rows, static_argnums=2)(a_ND, b_NF, platform),
    ]
    for result_DF in results:
        assert result_DF.dtype == dtype
        # 8 bits of mantissa, and float32's own error where a sum lies between two numbers.
        bound = 1e-5 if dtype == "float32" else 2**-8 * np.abs(exact_DF) + 1e-5
        assert (np.abs(np.asarray(result_DF, np.float64) - exact_DF) <= bound).all()


def matmul_results(platform):
    """The dtypes of all matmuls of a bfloat16 loss and its gradient, as lowered for `platform`."""
    config, compute = tiny_albert(), ComputeConfig(dtype="bfloat16", attention="xla")
    objective = pretraining_objective(AlbertForPretraining(config, compute, Lowering(platform)))
    batch = random_batch(config)
    grads = jax.grad(lambda p: objective.loss(p, batch, objective.normalizers(batch), None)[0])
    program = jax.jit(grads).trace(noisy_params(config)).lower(lowering_platforms=(platform,))
    return re.findall(r"dot_general .*-> tensor<\S*x(\w+)>", program.as_text())


def test_bfloat16_matmuls_ask_a_cpu_for_float32_and_a_tpu_for_bfloat16():
    on_cpu, on_tpu = matmul_results("cpu"), matmul_results("tpu")
    assert len(on_cpu) > 20
    assert set(on_cpu) == {"f32"}
    assert on_tpu.count("bf16") > 20


def test_the_kernels_gradient_takes_rows_that_are_transposed_in_memory():
    a_ND, b_NF = operands("bfloat16")
    program = jax.jit(product_over_rows, static_argnums=2).lower(a_ND, b_NF, "cpu").compile()
    assert "bf16[16,48]{1,0} copy(" in program.as_text()


@pytest.mark.parametrize(
    ("instructions", "dtype"),
    [("fma avx512_bf16 vaes", "bfloat16"), ("amx_tile amx_bf16", "bfloat16"), ("avx2", "float32")],
)
def test_auto_is_bfloat16_where_a_cpu_has_instructions_for_it(
    tmp_path, monkeypatch, instructions, dtype
):
    (tmp_path / "cpuinfo").write_text(f"flags\t: sse {instructions}\nbugs\t: none\n")
    monkeypatch.setattr(lowering, "_CPU_INFO", tmp_path / "cpuinfo")
    assert matmul_dtype("auto", "cpu") == dtype
    assert matmul_dtype("float32", "cpu") == "float32"
    model = AlbertForPretraining(tiny_albert(), ComputeConfig(dtype="auto"), Lowering("cpu"))
    ids = [jnp.ones((1, 8), jnp.int32)] * 3
    shapes = jax.eval_shape(lambda key: model.init_with_output(key, *ids)[0], jax.random.key(0))
    assert shapes.encoder.sequence_BSH.dtype == dtype


def test_auto_is_bfloat16_on_a_tpu_and_float32_where_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(lowering, "_CPU_INFO", tmp_path / "nothing")
    assert (matmul_dtype("auto", "tpu"), matmul_dtype("auto", "cpu")) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [(["8.0", "9.0"], "bfloat16"), (["9.0", "7.5"], "float32"), (["gfx90a"], "bfloat16")],
)
def test_auto_is_bfloat16_on_gpus_from_ampere_on(monkeypatch, capabilities, dtype):
    devices = [SimpleNamespace(compute_capability=version) for version in capabilities]
    monkeypatch.setattr(jax, "local_devices", lambda backend: devices)
    assert matmul_dtype("auto", "gpu") == dtype


@pytest.mark.parametrize(
    ("capability", "has"), [("7.5", False), ("8.0", True), ("10.0", True), ("gfx90a", False)]
)
def test_cudnn_has_attention_from_ampere_on(monkeypatch, capability, has):
    device = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    assert gpus_have_attention() is has


def test_gpus_elsewhere_have_bfloat16_and_attention():
    assert matmul_dtype("auto", "gpu") == "bfloat16"
    assert gpus_have_attention()


def test_a_kernels_gradient_can_be_mapped_over_examples():
    a_ND, b_NF = operands("bfloat16")
    each_BND, each_BNF = a_ND.reshape(4, 12, -1), b_NF.reshape(4, 12, -1)
    mapped = jax.jit(jax.vmap(partial(product_over_rows, platform="cpu")))(each_BND, each_BNF)
    single = [
        product_over_rows(x_ND, y_NF, "cpu") for x_ND, y_NF in zip(each_BND, each_BNF, strict=True)
    ]
    np.testing.assert_allclose(
        np.asarray(mapped, "float32"), np.asarray(single, "float32"), rtol=2**-7
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [(0, 5), (1, 1), (3, 40), (3, 50)])
def test_a_product_by_columns_is_that_of_rows(dtype, rows):
    """Of no rows, of one, of few and of many; float32's own rounding, in bfloat16 also that of the
    result."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((*rows, 16)), dtype)
    kernel_FD = jnp.asarray(rng.standard_normal((24, 16)), dtype)
    found = jax.jit(product_by_columns)(x, kernel_FD)
    assert (found.dtype, found.shape) == (dtype, (*rows, 24))
    exact = np.asarray(x, np.float64) @ np.asarray(kernel_FD, np.float64).T
    bound = 1e-5 if dtype == "float32" else 2**-8 * np.abs(exact) + 1e-5
    assert (np.abs(np.asarray(found, np.float64) - exact) <= bound).all()


def test_few_rows_are_multiplied_as_columns():
    """The dot gives [F, N]: XLA has not exchanged its operands to save the transpositions."""
    x_ND, kernel_FD = jnp.ones((40, 16)), jnp.ones((24, 16))
    program = jax.jit(product_by_columns).lower(x_ND, kernel_FD).compile().as_text()
    assert re.search(r"f32\[24,40\]\S* dot\(", program)
