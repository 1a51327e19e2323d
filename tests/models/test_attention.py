# SPDX-License-Identifier: Apache-2.0
"""Attention's kernels against the plain one, and which of them is taken where."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config.model import ComputeConfig
from albert_jax.distributed.compilation_cache import cached_programs
from albert_jax.models import attention
from albert_jax.models.attention import attend
from albert_jax.models.attention_pallas import is_kept, rows, splash
from albert_jax.models.attention_plain import Heads, padding, probs
from albert_jax.models.dropout import RowDropout, drop, row_seeds
from albert_jax.models.lowering import Lowering
from albert_jax.perf.tpu.topology import compile_only_devices, parse_slice
from albert_jax.utils.errors import UserError
from tests.helpers.draws import RATE, assert_as_if_drawn, neighbours

# Float32, sums in another order: outputs are of order 1, gradients up to about 10.
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def arrays(*, rows=2, length=256, heads=2, head_size=64, dtype=jnp.float32, seed=0):
    """Queries, keys, values, a mask with padding inside and at the end, and a cotangent."""
    rng = np.random.default_rng(seed)
    shape = (rows, length, heads, head_size)
    query, key, value, cotangent = (
        jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(4)
    )
    mask = rng.random((rows, length)) < 0.8
    mask[0, length // 3 :] = False
    return query, key, value, jnp.asarray(mask.astype(np.int32)), cotangent


def with_gradients(kernel, query, key, value, mask, cotangent):
    def weighed(*qkv):
        out = kernel(Heads(*qkv), mask)
        return (out.astype(jnp.float32) * cotangent).sum(), out

    grads, out = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(query, key, value)
    return {"out": out, **dict(zip(("query", "key", "value"), grads, strict=True))}


def assert_equal(found, wanted, **tolerance):
    for name, x in wanted.items():
        np.testing.assert_allclose(
            np.asarray(found[name], np.float32),
            np.asarray(x, np.float32),
            err_msg=name,
            **tolerance,
        )


PALLAS = {"rows": rows, "splash": splash}
xla = partial(attend, compute=ComputeConfig(attention="xla"))
interpreted = {name: partial(kernel, interpret=True) for name, kernel in PALLAS.items()}


@pytest.mark.parametrize("kernel", interpreted)
@pytest.mark.parametrize(
    ("length", "heads", "head_size"), [(128, 2, 64), (384, 4, 32), (256, 2, 128)]
)
def test_pallas_kernels_equal_xla_with_padding(kernel, length, heads, head_size):
    given = arrays(length=length, heads=heads, head_size=head_size)
    found, wanted = (with_gradients(k, *given) for k in (interpreted[kernel], xla))
    assert_equal(found, wanted, **CLOSE)


@pytest.mark.parametrize("dropped", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_the_plain_kernels_gradients_are_its_formulas(packed, dropped):
    *given, mask, cotangent = arrays(length=48)
    key = jax.random.key(5)
    pack_ids = mask * (1 + jnp.arange(48) // 16) if packed else None

    def formula(heads, mask):
        query, key_, value = heads
        probs_BNFT = probs(query, key_, padding(mask, pack_ids))
        if dropped:
            probs_BNFT = drop(probs_BNFT, row_seeds(key, len(mask)), RATE)
        return jnp.einsum("BNFT,BTND->BFND", probs_BNFT, value)

    ours = partial(xla, pack_ids_BT=pack_ids)
    if dropped:
        ours = partial(ours, dropout=RowDropout(RATE, row_seeds(key, len(mask))))
    found, wanted = (with_gradients(k, *given, mask, cotangent) for k in (ours, formula))
    assert_equal(found, wanted, **CLOSE)


def test_the_plain_kernel_keeps_half_the_bytes_in_bfloat16():
    *qkv, mask, cotangent = arrays(dtype=jnp.bfloat16)
    _, vjp = jax.vjp(lambda *qkv: xla(Heads(*qkv), mask), *qkv)
    kept = [x for x in jax.tree.leaves(vjp) if x.ndim == 4 and x.shape[-2:] == (256, 256)]
    assert [x.dtype for x in kept] == [jnp.bfloat16]
    found = with_gradients(xla, *qkv, mask, cotangent)
    wanted = with_gradients(xla, *(x.astype(jnp.float32) for x in qkv), mask, cotangent)
    assert_equal(found, wanted, atol=0.02)


@pytest.mark.parametrize("head_size", [64, 128])
def test_rows_in_bfloat16_is_as_close_to_float32_as_the_plain_kernel(head_size):
    """Though its queries are rounded once more, when they are scaled."""
    *qkv, mask, cotangent = arrays(length=128, head_size=head_size, dtype=jnp.bfloat16)
    exact = with_gradients(xla, *(x.astype(jnp.float32) for x in qkv), mask, cotangent)
    ours, plain = (
        with_gradients(kernel, *qkv, mask, cotangent) for kernel in (interpreted["rows"], xla)
    )
    for name, x in exact.items():
        far = [float(np.abs(np.float32(found[name]) - x).mean()) for found in (ours, plain)]
        assert far[0] < 1.5 * far[1], name
    assert_equal(ours, exact, atol=0.03)


def test_a_row_without_tokens_stays_finite():
    given = arrays(rows=1, length=128)
    nothing = jnp.zeros_like(given[3])
    for kernel in (*interpreted.values(), xla):
        found = with_gradients(kernel, *given[:3], nothing, given[4])
        assert all(np.isfinite(x).all() for x in found.values())


# ------------------------------------------------------------------------------ dropout in a kernel

choices = jax.jit(is_kept, static_argnums=(3, 4))


def kept_of(key, rows, heads, length):
    """What dropout leaves in each head of each row, by the row's two words: bool[B, N, F, T]."""
    seeds = row_seeds(key, rows)
    kept = [[choices(*two, n, (length, length), RATE) for n in range(heads)] for two in seeds]
    return np.swapaxes(np.asarray(kept), -1, -2)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "head_size"),
    [(10, 128, 4, 64), (2, 256, 2, 128)],  # ten rows are two steps of the kernel's grid
)
def test_rows_drops_the_probabilities_that_its_choices_name(batch, length, heads, head_size):
    given = arrays(rows=batch, length=length, heads=heads, head_size=head_size)
    key = jax.random.key(3)
    kept_BNFT = jnp.asarray(kept_of(key, batch, heads, length))

    def plain(heads, mask):
        query, key, value = heads
        probs_BNFT = probs(query, key, padding(mask)) / (1 - RATE)
        return jnp.einsum("BNFT,BTND->BFND", jnp.where(kept_BNFT, probs_BNFT, 0.0), value)

    ours = partial(interpreted["rows"], dropout=RowDropout(RATE, row_seeds(key, batch)))
    assert_equal(with_gradients(ours, *given), with_gradients(plain, *given), **CLOSE)


def test_the_kernels_choices_are_as_if_drawn():
    taken = 1.0 - kept_of(jax.random.key(0), 12, 4, 512)
    halves = neighbours(-1, 256)  # keys that share a word
    assert_as_if_drawn(taken, [halves, *(neighbours(axis) for axis in (-4, -3, -2, -1))], (-1, -2))


# --------------------------------------------------------------------------------- chosen by device


def lowered_for(
    platform, *, implementation="auto", fused=True, dropout_rate=0.0, packed=False, **changes
):
    """The gradient's program for a device that is not there: "gpu" or "tpu"."""
    *qkv, mask, cotangent = arrays(**({"dtype": jnp.bfloat16} | changes))

    def grads(query, key, value):
        drawn = RowDropout(dropout_rate, row_seeds(jax.random.key(0), len(mask)))
        kernel = partial(
            attend,
            pack_ids_BT=mask if packed else None,
            dropout=drawn if dropout_rate else None,
            compute=ComputeConfig(attention=implementation, fused=fused),
            lowering=Lowering(platform),
        )
        return with_gradients(kernel, query, key, value, mask, cotangent)

    jax_name = {"gpu": "cuda"}.get(platform, platform)
    return jax.jit(grads).trace(*qkv).lower(lowering_platforms=(jax_name,)).as_text()


@pytest.fixture
def cudnn_here(monkeypatch):
    """JAX asks the library for its version while tracing."""
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 91000)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "attention_rows_backward"),
        ({"dropout_rate": 0.1}, "attention_rows_backward"),
        ({"length": 1024, "rows": 1}, "splash_mha_dkv"),
        ({"heads": 3}, "splash_mha_dkv"),
    ],
)
def test_auto_takes_a_pallas_kernel_on_tpu(changes, name):
    text = lowered_for("tpu", **changes)
    assert "tpu_custom_call" in text
    assert name in text


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed: pip install -r requirements-tpu.lock",
)
@pytest.mark.timeout(1500)  # seconds of one core, which others may have
@pytest.mark.parametrize("kernel", ["rows", "splash"])
def test_a_pallas_kernel_and_its_gradient_compile_for_a_tpu(kernel):
    (chip,) = compile_only_devices(parse_slice("v5e:1x1"))
    here = jax.sharding.SingleDeviceSharding(chip)
    given = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in arrays(dtype=jnp.bfloat16)
    ]
    kernel = partial(attend, compute=ComputeConfig(attention=kernel), lowering=Lowering("tpu"))
    grads = partial(with_gradients, kernel)
    with cached_programs(None):  # what is compiled for no device here cannot be read again
        text = jax.jit(grads).lower(*given).compile().as_text()
    assert text.count("tpu_custom_call") >= 2


def test_auto_takes_cudnn_on_gpu(cudnn_here):
    text = lowered_for("gpu")
    assert "__cudnn$fmha" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text


@pytest.mark.parametrize(
    ("platform", "changes"),
    [
        ("cpu", {}),
        ("tpu", {"length": 100}),
        ("tpu", {"dtype": jnp.float32}),
        ("tpu", {"dropout_rate": 0.1, "length": 1024, "rows": 1}),
        ("gpu", {"dropout_rate": 0.1}),
        ("gpu", {"packed": True}),
        ("tpu", {"packed": True}),
        ("gpu", {"dtype": jnp.float32}),
        ("gpu", {"length": 101}),
        ("gpu", {"head_size": 144}),
        ("gpu", {"fused": False}),
        ("tpu", {"fused": False}),
    ],
)
def test_auto_takes_xla_where_no_kernel_can(platform, changes, cudnn_here):
    text = lowered_for(platform, **changes)
    assert "tpu_custom_call" not in text
    assert "cudnn" not in text


@pytest.mark.parametrize(
    ("platform", "implementation", "changes", "says"),
    [
        ("cpu", "splash", {}, "attention splash needs a TPU, and this is a CPU; use attention"),
        ("cpu", "cudnn", {}, "attention cudnn needs a GPU, and this is a CPU; use attention auto"),
        ("gpu", "splash", {}, "attention splash needs a TPU, and this is a GPU"),
        ("tpu", "splash", {"length": 100}, "takes a multiple of 128 tokens, not 100 tokens and 2"),
        ("tpu", "rows", {"length": 1024}, "takes 128, 256, …, 512 tokens and heads that make up"),
        ("tpu", "rows", {"heads": 3}, "not 256 tokens and 3 heads of 64; use attention auto or xl"),
        ("tpu", "splash", {"dtype": jnp.float32}, "computes in bfloat16, not float32"),
        ("tpu", "rows", {"packed": True}, "does not keep the examples of a packed row apart; use"),
        ("tpu", "rows", {"fused": False}, "has no derivatives of JAX's own .fused False.; use att"),
        ("tpu", "splash", {"dropout_rate": 0.1}, "has no dropout on probabilities"),
        ("gpu", "cudnn", {"head_size": 144}, "not 256 tokens and 2 heads of 144"),
    ],
)
def test_a_named_kernel_that_cannot_says_why(platform, implementation, changes, says):
    with pytest.raises(UserError, match=says):
        lowered_for(platform, implementation=implementation, **changes)


def test_a_gpu_before_ampere_takes_xla_and_a_named_kernel_says_why(cudnn_here, monkeypatch):
    monkeypatch.setattr(attention, "gpus_have_attention", lambda: False)
    assert "cudnn" not in lowered_for("gpu")
    with pytest.raises(UserError, match="attention cudnn needs a GPU of NVIDIA's, Ampere or later"):
        lowered_for("gpu", implementation="cudnn")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_cudnn_equals_xla_with_padding():
    given = arrays(dtype=jnp.bfloat16)
    cudnn = partial(attend, compute=ComputeConfig(attention="cudnn"))
    # bfloat16 has 8 bits: outputs of order 1 agree to about 1e-2, gradients of up to 10 to 1e-1.
    assert_equal(with_gradients(cudnn, *given), with_gradients(xla, *given), atol=0.1, rtol=0.02)
