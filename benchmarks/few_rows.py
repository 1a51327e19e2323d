# SPDX-License-Identifier: Apache-2.0
"""Not a test: how fast XLA multiplies few rows on a CPU, by how the kernel is held.

taskset -c 0 python -m benchmarks.few_rows --rows 16 32 48 64 128 512

Twelve feed-forward layers of base size without their biases. In each round all contenders compute
the same rows in turn; the least CPU time of the rounds is printed. ONNX Runtime is one of them
where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array

from albert_jax.config.model import Dtype
from albert_jax.models.lowering import matmul, product_by_columns
from benchmarks.timing import CPU, seconds_in_turn

LAYERS, HIDDEN, WIDE = 12, 768, 3072
Product = Callable[[Array, Array], Array]

# By the name of a way to multiply: the product, and whether the kernels are held transposed.
WAYS: dict[str, tuple[Product, bool]] = {
    "rows": (lambda x, kernel: matmul("ND,DF->NF", x, kernel, "cpu"), False),
    "rows, transposed kernel": (lambda x, kernel: matmul("ND,FD->NF", x, kernel, "cpu"), True),
    "product_by_columns": (product_by_columns, True),
}


def layers(product: Product, x: Array, widening: Array, narrowing: Array) -> Array:
    """Return x after all layers."""
    for _ in range(LAYERS):
        x = x + product(jax.nn.relu(product(x, widening)), narrowing)
    return x


def onnx_runtime(kernels: list[np.ndarray]) -> Callable[[np.ndarray], Any]:
    """Return the same layers in ONNX Runtime."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    nodes, x = [], "x"
    for i in range(LAYERS):
        nodes += [
            node("MatMul", [x, "widening"], [f"wide{i}"]),
            node("Relu", [f"wide{i}"], [f"active{i}"]),
            node("MatMul", [f"active{i}", "narrowing"], [f"narrow{i}"]),
            node("Add", [x, f"narrow{i}"], [f"x{i}"]),
        ]
        x = f"x{i}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", HIDDEN]) for n in ("x", x)]
    names = ("widening", "narrowing")
    weights = [numpy_helper.from_array(a, n) for a, n in zip(kernels, names, strict=True)]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x_ND: session.run(None, {"x": x_ND})


def main(
    rows: tuple[int, ...] = (16, 24, 32, 40, 48, 64, 96, 128, 256, 512),
    dtype: Dtype = "float32",
    rounds: int = 6,
) -> None:
    """Print a line for each number of rows."""
    rng = np.random.default_rng(0)
    shapes = (HIDDEN, WIDE), (WIDE, HIDDEN)
    kernels = [rng.normal(0, 0.02, shape).astype(np.float32) for shape in shapes]
    contenders: dict[str, Callable[[Any], Any]] = {}
    for name, (product, is_turned) in WAYS.items():
        held = [jnp.asarray(a.T.copy() if is_turned else a, dtype) for a in kernels]
        computed = jax.jit(partial(layers, product))
        contenders[name] = lambda x, f=computed, w=held: f(x, *w).block_until_ready()
    if dtype == "float32" and importlib.util.find_spec("onnxruntime"):
        contenders["ONNX Runtime"] = onnx_runtime(kernels)
    for count in rows:
        x_ND = rng.normal(size=(count, HIDDEN)).astype(np.float32)
        calls = {
            name: partial(call, x_ND if name == "ONNX Runtime" else jnp.asarray(x_ND, dtype))
            for name, call in contenders.items()
        }
        spent = seconds_in_turn(calls, rounds + 1)  # the first compiles
        found = (f"{name} {1e3 * each[1:, CPU].min():.1f}" for name, each in spent.items())
        print(f"{count} rows, ms of CPU: " + "; ".join(found), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
