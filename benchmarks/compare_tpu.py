# SPDX-License-Identifier: Apache-2.0
"""Not a test: transformers' Flax ALBERT, by the compiler and the sums that `estimate` uses.

    python -m benchmarks.compare_tpu --topology v5e:2x2 --batch-size 16

A training step in bfloat16 with masked-LM and sentence-order loss and optax's LAMB, the batch
divided over the slice; the model computes logits at every position and unrolls its layers, as it
does for its users. Needs libtpu, torch and transformers below 5.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from albert_jax.config.model import MODELS
from albert_jax.distributed.placement import AXIS, make_mesh
from albert_jax.models.flops import train_flops_per_sequence
from albert_jax.perf.tpu import hlo
from albert_jax.perf.tpu.cost_model import step_cost
from albert_jax.perf.tpu.topology import compile_only_devices, parse_slice
from albert_jax.training.memory import GIB, program_bytes
from tests.helpers.peers import flax_step, peer_config


def main(
    model: str = "base-v2",
    topology: str = "v5e:2x2",
    batch_size: int = 16,
    sequence: int = 512,
    predictions: int = 77,
) -> None:
    """Prints the estimate.

    Args:
        model: released model.
        topology: slice.
        batch_size: rows a chip.
        sequence: tokens in a row.
        predictions: for the count of model FLOPs alone.
    """
    warnings.simplefilter("ignore")
    where = parse_slice(topology)
    mesh = make_mesh(compile_only_devices(where))
    replicated, split = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS))
    )
    peer = transformers.FlaxAlbertForPreTraining(
        peer_config(model), dtype=jnp.bfloat16, _do_init=False
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(1e-3, weight_decay=0.01))
    step, _ = flax_step(peer.module, tx)

    def placed(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    rows = batch_size * where.chips
    tokens = jax.ShapeDtypeStruct((rows, sequence), np.int32)
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    batch = dict.fromkeys(names, tokens)
    batch |= {"sentence_order_label": jax.ShapeDtypeStruct((rows,), np.int32)}
    params = jax.eval_shape(lambda: peer.init_weights(jax.random.key(0), (1, sequence)))
    arguments = (
        placed(params, replicated),
        placed(jax.eval_shape(tx.init, params), replicated),
        placed(batch, split),
    )
    since = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    took = time.perf_counter() - since
    text = compiled.as_text()
    assert text is not None
    cost = step_cost(hlo.parse_program(text), where)
    flops = batch_size * train_flops_per_sequence(MODELS[model], sequence, predictions)
    print(
        f"transformers {transformers.__version__}, {model}, {topology}, "
        f"{batch_size} x {sequence} a chip: {1e3 * cost.seconds:.2f} ms, "
        f"{1e3 * cost.seconds / batch_size:.3f} a sequence, "
        f"MFU {flops / cost.seconds / where.chip.peak_flops:.1%}, "
        f"{(program_bytes(compiled) or 0) / GIB:.2f} GiB; compiled in {took:.0f} s"
    )


if __name__ == "__main__":
    tyro.cli(main)
