# SPDX-License-Identifier: Apache-2.0
"""Set the first values of a pretraining run's weights, if they differ from the original's.

They are drawn differently, or taken from another model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.checkpoint.model_dir import ModelDirectory
from albert_jax.checkpoint.positions import with_positions
from albert_jax.config.manifests import VOCABULARIES
from albert_jax.config.model import AlbertConfig
from albert_jax.config.run import PretrainConfig
from albert_jax.data.pretraining import PretrainingData, differing_cleaning
from albert_jax.training.optimizer import path_name
from albert_jax.utils.errors import UserError
from albert_jax.utils.wording import setting

_POSITIONS = 3.0  # the position embeddings' size, in that of the words'
_LONGEST = 100.0  # the longest wavelength of a position embedding, in 2 pi positions


def first_values(params: Any, config: PretrainConfig, data: PretrainingData) -> Any:
    """Return random parameters as the run's settings ask for."""
    if config.kernel_init == "fan_in":
        params = fan_in_kernels(params, config.model.initializer_range)
    if config.attention_init == "local":
        params = local_attention(params, config.model)
    if config.output_bias == "unigram":
        bias_V = unigram_bias(data.frequencies(), config.model.vocab_size)
        predictions = {**params["predictions"], "output_bias": jax.device_put(bias_V)}
        params = {**params, "predictions": predictions}
    return params


def fan_in_kernels(params: Any, stddev: float) -> Any:
    """Return parameters whose kernels have the standard deviation 1 / sqrt(rows), not `stddev`.

    Such a kernel neither enlarges nor shrinks its input, at any width. 0.02 does that at 2,500
    rows; at a few hundred it leaves attention and feed-forward nearly without effect.
    """

    def scaled(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        if not path_name(path).endswith("kernel"):
            return value
        return value * jnp.asarray(value.shape[-2] ** -0.5 / stddev, value.dtype)

    return jax.tree_util.tree_map_with_path(scaled, params)


def local_attention(params: Any, config: AlbertConfig) -> Any:
    """Return parameters with which every head looks at a token's neighbourhood at first.

    The position embeddings are `sinusoids`, `_POSITIONS` times as large as the words', and a
    layer's key kernel is its query kernel. So a query is alike to the keys of near positions. From
    random values the layer has to find the neighbours first, and until then its output is the mean
    of all words in the row (docs/lab/learning.md has the trials).
    """
    scale = _POSITIONS * config.initializer_range
    table_PE = sinusoids(config.max_position_embeddings, config.embedding_size, scale)
    params = _with_keys_as_queries(params)
    embeddings = {**params["embeddings"], "position_embeddings": jax.device_put(table_PE)}
    return {**params, "embeddings": embeddings}


def sinusoids(positions: int, width: int, scale: float) -> np.ndarray:
    """Return sines and cosines of the positions, f32[positions, width].

    Their root mean square is `scale`. As in Vaswani et al., 2017, section 3.5, the wavelengths grow
    geometrically from 2 pi, but to `_LONGEST` times that, because rows are short.
    """
    rates = _LONGEST ** -(np.arange(0, width, 2) / width)
    angles = np.arange(positions)[:, None] * rates
    both = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(positions, -1)
    return (both[:, :width] * scale * 2**0.5).astype(np.float32)


def _with_keys_as_queries(params: Any) -> Any:
    if not isinstance(params, Mapping):
        return params
    found = {name: _with_keys_as_queries(value) for name, value in params.items()}
    if {"query", "key"} <= found.keys():
        kernel = jnp.array(found["query"]["kernel"], copy=True)  # a step donates each of them
        found["key"] = {**found["key"], "kernel": kernel}
    return found


def unigram_bias(frequencies_V: np.ndarray, rows: int) -> np.ndarray:
    """Return the logarithm of each piece's frequency, f32[rows], minus their mean.

    Pieces that do not occur, and rows without a piece, share the frequency of the rarest piece that
    occurs.
    """
    padded = np.zeros(rows)
    padded[: len(frequencies_V)] = frequencies_V
    absent = padded == 0
    padded[absent] = padded[~absent].min() / max(1, absent.sum())
    logs = np.log(padded)
    return (logs - logs.mean()).astype(np.float32)


# Fields in which `init_from` and the run may differ: the number of passes, and dropout.
_FREE = {
    "num_hidden_layers",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
}


def params_of(
    source: ModelDirectory, name: str, config: PretrainConfig, data: PretrainingData
) -> Any:
    """Return a model's parameters, with more positions if the run's settings ask for them.

    Raises UserError, with the model's `name`, if they do not fit the run's model or its vocabulary.
    """
    source = with_positions(source, name, config.model.max_position_embeddings, config.positions)
    theirs, ours = dataclasses.asdict(source.config), dataclasses.asdict(config.model)
    differing = [k for k in ours if k not in _FREE and theirs[k] != ours[k]]
    if differing:
        told = "; ".join(f"{k} is {theirs[k]} there and {ours[k]} here" for k in differing)
        flags = " ".join(setting(f"model.{k}", theirs[k]) for k in differing)
        is_longer = theirs["max_position_embeddings"] < ours["max_position_embeddings"]
        ways = f"{setting('positions', 'interpolate')} or {setting('positions', 'repeat')}"
        more = f", or more positions with {ways}" if is_longer else ""
        raise UserError(f"{name} does not fit the model: {told}; give {flags}{more}")
    digests = source.manifest["sha256"]
    recorded = next((digests[name] for name in VOCABULARIES if name in digests), None)
    if recorded is not None and recorded != data.identity["vocabulary"]:
        raise UserError(
            f"{name} was trained with another vocabulary (SHA-256 "
            f"{recorded[:12]}…, the data's is {data.identity['vocabulary'][:12]}…); "
            f"prepare the text with {source.tokenizer['path']}"
        )
    otherwise = differing_cleaning(data.tokenizer, source.text_settings)
    if recorded is not None and otherwise and data.identity.get("records") is None:  # as in shards
        raise UserError(
            f"{name} was trained on text that was cleaned otherwise ({otherwise}), so that many of "
            "the data's words would mean nothing to it; prepare the text with the model as its "
            "vocabulary"
        )
    return source.params
