# SPDX-License-Identifier: Apache-2.0
"""Small models: configurations, random parameters, directories and batches."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np

from albert_jax.checkpoint.model_export import export_model
from albert_jax.config import AlbertConfig
from albert_jax.models.albert import AlbertForPretraining, init_params
from tests.helpers.paths import VOCABULARY


def tiny_albert(**changes) -> AlbertConfig:
    """Returns the smallest configuration in which each part shows, with `changes`."""
    values = {
        "vocab_size": 90,
        "embedding_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 24,
    }
    return AlbertConfig(**(values | changes))


def worded_albert(**changes) -> AlbertConfig:
    """Returns `tiny_albert` for the tests' vocabulary and texts of up to 128 tokens."""
    values = {"vocab_size": 8000, "num_hidden_layers": 3, "max_position_embeddings": 128}
    return tiny_albert(**(values | changes))


def random_batch(config, *, rows=4, length=12, predictions=3, seed=0):
    rng = np.random.default_rng(seed)
    mask = (np.arange(length) < rng.integers(length // 2, length + 1, (rows, 1))).astype(np.int32)
    return {
        "input_ids": rng.integers(5, config.vocab_size, (rows, length)).astype(np.int32) * mask,
        "input_mask": mask,
        "segment_ids": (np.arange(length) > length // 2).astype(np.int32)[None] * mask,
        "masked_lm_positions": rng.integers(1, length // 2, (rows, predictions)).astype(np.int32),
        "masked_lm_ids": rng.integers(5, config.vocab_size, (rows, predictions)).astype(np.int32),
        "masked_lm_weights": (rng.random((rows, predictions)) < 0.8).astype(np.float32),
        "sentence_order_labels": rng.integers(0, 2, rows).astype(np.int32),
    }


def noisy_params(config, seed=0):
    """Random parameters with biases and gains that are not 0 and 1, so that a dropped one shows."""
    shapes = jax.eval_shape(partial(init_params, AlbertForPretraining(config)), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (0.1 * rng.standard_normal(x.shape) + (path[-1].key == "scale")).astype(
            np.float32
        ),
        shapes,
    )


def noisy_model(
    folder: Path,
    config: AlbertConfig | None = None,
    *,
    vocab: Path | None = VOCABULARY,
    tokenizer: Mapping[str, object] = {"mode": "google", "do_lower_case": True},
) -> Path:
    """Write a model directory of `noisy_params`, of `worded_albert` where no configuration is
    given, and return it."""
    config = config or worded_albert()
    return export_model(
        folder,
        params=noisy_params(config),
        config=config,
        vocab=vocab,
        tokenizer=tokenizer,
        provenance={},
    )


def assert_trees_close(a, b, **tolerance):
    jax.tree_util.tree_map_with_path(
        lambda path, x, y: np.testing.assert_allclose(x, y, err_msg=str(path), **tolerance), a, b
    )
