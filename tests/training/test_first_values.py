# SPDX-License-Identifier: Apache-2.0
"""First values of weights other than the original's."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from albert_jax.data.pretraining import open_data
from albert_jax.models.albert import AlbertForPretraining, init_params
from albert_jax.training.first_values import fan_in_kernels, first_values, unigram_bias
from albert_jax.training.optimizer import path_name
from tests.helpers.models import tiny_albert
from tests.helpers.pretraining_runs import make_store, tiny_config


def test_kernels_of_any_width_have_the_deviation_of_their_inputs():
    config = tiny_albert(hidden_size=64, intermediate_size=256)
    params = init_params(AlbertForPretraining(config), jax.random.key(0))
    scaled = fan_in_kernels(params, config.initializer_range)
    seen = 0
    for path, value in jax.tree_util.tree_leaves_with_path(scaled):
        before = params
        for key in path:
            before = before[key.key]
        if path_name(path).endswith("kernel"):
            seen += 1
            # A normal distribution cut at two deviations has 0.88 of its deviation.
            assert value.std() == pytest.approx(0.88 * value.shape[0] ** -0.5, rel=0.1)
        else:
            np.testing.assert_array_equal(value, before)
    assert seen == 9  # projection, q, k, v, output, two of the feed-forward, pooler, transform


def test_the_bias_is_the_logarithm_of_the_frequencies():
    bias = unigram_bias(np.array([0.5, 0.25, 0.0, 0.25]), rows=5)
    rates = np.array([0.5, 0.25, 0.125, 0.25, 0.125])  # two share the rarest's
    np.testing.assert_allclose(bias, np.log(rates) - np.log(rates).mean(), rtol=1e-6)


def test_a_run_begins_with_them(tmp_path):
    config = tiny_config(make_store(tmp_path), tmp_path / "run")
    data = open_data(config, None)
    params = init_params(AlbertForPretraining(config.model), jax.random.key(0))
    assert first_values(params, config, data) is params  # the original's
    config = replace(config, output_bias="unigram", kernel_init="fan_in")
    first = first_values(params, config, data)
    frequencies = data.frequencies()
    assert frequencies.sum() == pytest.approx(1)
    bias = np.asarray(first["predictions"]["output_bias"])
    assert bias.argmax() == frequencies.argmax()
    # The bias alone scores the entropy of the frequencies.
    shares = np.exp(bias) / np.exp(bias).sum()
    occurring = frequencies > 0
    np.testing.assert_allclose(shares[occurring], frequencies[occurring], rtol=0.1)
