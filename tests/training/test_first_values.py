# SPDX-License-Identifier: Apache-2.0
"""First values of weights other than the original's."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from albert_jax.checkpoint.model_dir import load_model
from albert_jax.checkpoint.positions import with_positions
from albert_jax.config.run import FinetuneConfig
from albert_jax.data.pretraining import open_data
from albert_jax.inference import functions
from albert_jax.models.albert import AlbertForPretraining, init_params
from albert_jax.training.finetune_setup import set_up
from albert_jax.training.first_values import (
    fan_in_kernels,
    first_values,
    local_attention,
    params_of,
    unigram_bias,
)
from albert_jax.training.optimizer import path_name
from albert_jax.utils.errors import UserError
from tests.helpers.models import tiny_albert
from tests.helpers.pretraining_runs import make_store, random_model, tiny_config


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


def test_local_attention_begins_with_the_neighbours():
    config = tiny_albert(hidden_size=128, embedding_size=64, max_position_embeddings=64)
    config = replace(config, num_attention_heads=4, intermediate_size=128)
    model = AlbertForPretraining(config)
    random = fan_in_kernels(init_params(model, jax.random.key(0)), config.initializer_range)
    local = local_attention(random, config)
    ids_BS = np.random.default_rng(0).integers(5, config.vocab_size, (4, 64))
    inputs = ids_BS, np.ones_like(ids_BS), np.zeros_like(ids_BS)
    near = abs(np.arange(64)[:, None] - np.arange(64)) <= 8

    def share_of_near(params):
        probs_LBNSS = functions.attention(model, params, inputs)
        return (probs_LBNSS[0] * near).sum(-1).mean(axis=(0, 2))  # of each head

    assert share_of_near(random).max() < 1.3 * near.mean()
    assert share_of_near(local).min() > 2 * near.mean()
    # Nothing else changes, and no array is in the tree twice, since a step donates each.
    changed = {
        path_name(path)
        for path, value in jax.tree_util.tree_leaves_with_path(local)
        if not any(value is old for old in jax.tree.leaves(random))
    }
    assert {"/".join(name.split("/")[-3:]) for name in changed} == {
        "embeddings/position_embeddings",
        "attention/key/kernel",
    }


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


# ---------------------------------------------------------------------------------- more positions


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model directory of 24 positions."""
    return random_model(tmp_path_factory.mktemp("short") / "model", tiny_albert(vocab_size=8000))


def test_positions_are_repeated_or_stretched_and_it_is_said(short, capsys):
    source = load_model(short)
    table = source.params["embeddings"]["position_embeddings"]
    repeated = with_positions(source, "base", 60, "repeat")
    found = repeated.params["embeddings"]["position_embeddings"]
    np.testing.assert_array_equal(found, np.concatenate([table, table, table[:12]]))
    assert repeated.config.max_position_embeddings == 60
    said = capsys.readouterr().err
    assert "base has 24 positions; 60 are made of them: repeated from the first on" in said

    stretched = with_positions(source, "base", 47, "interpolate")
    found = stretched.params["embeddings"]["position_embeddings"]
    # 47 positions over 23 steps: every second is one of the old, the others lie halfway.
    np.testing.assert_array_equal(found[::2], table)
    np.testing.assert_allclose(found[1::2], (table[1:] + table[:-1]) / 2, rtol=1e-6)
    assert found.dtype == table.dtype
    # The words are the same, and a model that has enough is the very same.
    assert stretched.params["encoder"] is source.params["encoder"]
    assert with_positions(source, "base", 24, "repeat") is source
    assert with_positions(source, "base", 60, "same") is source
    with pytest.raises(UserError, match=r"base: max_position_embeddings 4000000 must be at most"):
        with_positions(source, "base", 4_000_000, "repeat")


def test_a_pretraining_run_takes_more_positions_only_where_it_is_asked(short, tmp_path):
    config = tiny_config(make_store(tmp_path), tmp_path / "run")
    longer = replace(load_model(short).config, max_position_embeddings=40)
    examples = replace(config.examples, max_seq_length=24)
    config = replace(config, model=longer, examples=examples, init_from=str(short))
    data = open_data(config, None)
    source = load_model(short)
    with pytest.raises(
        UserError, match=r"24 there and 40 here.*positions='interpolate' or positions='repeat'"
    ):
        params_of(source, "short", config, data)
    found = params_of(source, "short", replace(config, positions="repeat"), data)
    assert found["embeddings"]["position_embeddings"].shape[0] == 40
    with pytest.raises(UserError, match="none is given"):
        replace(config, positions="repeat", init_from=None)


def test_fine_tuning_takes_rows_longer_than_the_model_only_where_it_is_asked(short, tmp_path):
    for split in ("train", "dev"):
        rows = [f"text,label\n{'the list is open ' * 9},no\nthe file,yes\n"]
        (tmp_path / f"{split}.csv").write_text("".join(rows))
    config = FinetuneConfig(task="single", model=str(short), data=str(tmp_path), max_seq_length=64)
    refusal = r"8 to 24, the model's positions; .*or positions='interpolate' or positions='repeat'"
    with pytest.raises(UserError, match=refusal):
        set_up(config)
    prepared = set_up(replace(config, positions="interpolate"))
    assert prepared.source.config.max_position_embeddings == prepared.max_seq_length == 64
    assert max(row.length for row in prepared.train.rows) > 24
    assert prepared.model.config.max_position_embeddings == 64
