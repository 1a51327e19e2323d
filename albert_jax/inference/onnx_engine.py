# SPDX-License-Identifier: Apache-2.0
"""Answer with ONNX Runtime in place of JAX: `load(..., engine="onnx")`, on this machine's CPU.

Of one text at a time ONNX Runtime multiplies faster than XLA, and takes rows of any length, so that
nothing is padded. The graphs are those of `export_onnx`, made when they are first needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from albert_jax.config.heads import HeadKind
from albert_jax.config.model import ComputeConfig, Engine
from albert_jax.inference.functions import Pool
from albert_jax.inference.id_arrays import INPUTS, POSITIONS
from albert_jax.inference.onnx_graphs import (
    TARGETS,
    TOP_K,
    Weights,
    encode_graph,
    fill_mask_graph,
    head_graph,
    require_libraries,
    sentence_order_graph,
)
from albert_jax.utils.cores import own_cores
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting


def compute_of(engine: Engine, compute: ComputeConfig | None) -> ComputeConfig:
    """Return how a model with that engine computes: with ONNX Runtime in float32, JAX's part too.

    Raises UserError if the engine is not installed, or does not compute in that dtype.
    """
    compute = compute or ComputeConfig()
    if engine == "jax":
        return compute
    require_libraries(setting("engine", "onnx"))
    if compute.dtype == "bfloat16":
        raise UserError(
            f"{setting('engine', 'onnx')} computes in float32, not in bfloat16; leave out the "
            "engine or the dtype"
        )
    return dataclasses.replace(compute, dtype="float32")


def session_of(graph: Any) -> Any:
    """Return ONNX Runtime's session of a graph, on all cores of this process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = own_cores()
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session: Any, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a session's outputs by name; whole numbers are given as i64."""
    names = [output.name for output in session.get_outputs()]
    wanted = {name: np.asarray(x, np.int64) for name, x in given.items()}
    return dict(zip(names, session.run(names, wanted), strict=True))


class OnnxAnswers:
    """Compute what `functions` computes for text, by ONNX Runtime.

    Shapes are as there: B rows, S tokens, P masked positions, K pieces, H `hidden_size`. Arrays are
    of NumPy.
    """

    def __init__(self, model: Weights) -> None:
        self._model = model

    @cached_property
    def _encoder(self) -> Any:
        return session_of(encode_graph(self._model))

    @cached_property
    def _sentence_order(self) -> Any:
        return session_of(sentence_order_graph(self._model))

    @cached_property
    def _fill_mask(self) -> Any:
        return session_of(fill_mask_graph(self._model))

    @cached_property
    def _fill_mask_of_targets(self) -> Any:
        return session_of(fill_mask_graph(self._model, has_targets=True))

    def fill_mask(
        self, *arrays: np.ndarray, targets_T: np.ndarray | None = None, top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities f32[B, P, K] and ids i64[B, P, K], as `functions.fill_mask`."""
        given = dict(zip((*INPUTS, POSITIONS), arrays, strict=True))
        given[TOP_K] = np.array([top_k])
        if targets_T is None:
            found = run(self._fill_mask, given)
        else:
            found = run(self._fill_mask_of_targets, {**given, TARGETS: targets_T})
        return found["scores"], found["tokens"]

    def encode(
        self, *arrays: np.ndarray, pool: Pool | None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the last layer's vectors, as `functions.encode`."""
        found, mask_BS = run(self._encoder, _by_name(arrays)), arrays[1]
        x_BSH = found["sequence"]
        if pool == "cls":
            return None, x_BSH[:, 0]
        if pool == "mean":
            return None, x_BSH.sum(axis=1) / mask_BS.sum(axis=1, keepdims=True, dtype=np.float32)
        return x_BSH, found.get("pooled")

    def sentence_order(self, *arrays: np.ndarray) -> np.ndarray:
        """Return the probability that two segments are in the right order, f32[B]."""
        return run(self._sentence_order, _by_name(arrays))["probability"]


def _by_name(arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(INPUTS, arrays, strict=True))


class OnnxHead:
    """Compute a fine-tuned head's outputs, as `finetuned.head_outputs`, by ONNX Runtime."""

    def __init__(self, model: Weights, kind: HeadKind) -> None:
        self._session = session_of(head_graph(model, kind))

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of a batch by name, for no more tokens than its longest row has."""
        arrays = [np.asarray(batch[name]) for name in INPUTS]
        seen = np.flatnonzero(arrays[1].reshape(-1, arrays[1].shape[-1]).any(axis=0))
        length = int(seen[-1]) + 1
        return run(self._session, _by_name([x[..., :length] for x in arrays]))
