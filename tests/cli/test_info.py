# SPDX-License-Identifier: Apache-2.0
"""info tells what is there, verified, and no more: parameters counted, the head, damage named."""

import json
import shutil
import time
import tracemalloc
from pathlib import Path

import jax
import msgspec
import numpy as np
import pytest

from albert_jax.checkpoint.model_export import export_model
from albert_jax.cli import main as cli
from albert_jax.cli.descriptions import (
    ConfigurationDescription,
    Description,
    ModelDescription,
    PretrainDescription,
    RecipeDescription,
    StoreDescription,
)
from albert_jax.cli.info import describe_path, description_table
from albert_jax.cli.recipe_plan import with_plan
from albert_jax.config.manifests import HeadManifest
from albert_jax.config.model import AlbertConfig
from albert_jax.inference.verify import verify
from albert_jax.models import flops
from albert_jax.utils.errors import UserError
from tests.helpers.models import noisy_params, worded_albert
from tests.helpers.paths import REPOSITORY

HEAD = {
    "kind": "classification",
    "task": "mrpc",
    "labels": ["not_equivalent", "equivalent"],
    "max_seq_length": 96,
}


def export(path: Path, params, head=None) -> Path:
    return export_model(
        path,
        params=params,
        config=worded_albert(),
        vocab=None,
        tokenizer={"mode": "hf", "do_lower_case": False},
        provenance={"made_by": "hand"},
        head=head,
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return export(
        tmp_path_factory.mktemp("info") / "model",
        noisy_params(worded_albert()),
    )


def test_a_whole_models_parts_are_those_that_its_configuration_counts(pretrained: Path) -> None:
    described = describe_path(pretrained)
    assert described["parameters_of"] == flops.parameter_counts(worded_albert())
    assert described["parameters"] == flops.parameter_count(worded_albert())
    assert described["bytes_float32"] == 4 * flops.parameter_count(worded_albert())
    assert described["head"] is None
    assert described["tokenizer"] == {"mode": "hf", "do_lower_case": False}
    assert "manifest.json and albert_config.json" in described["verified"]


def test_a_fine_tuned_models_head_is_told_and_no_head_that_it_lacks(tmp_path: Path, capsys) -> None:
    params = {
        name: x
        for name, x in noisy_params(worded_albert()).items()
        if name in ("embeddings", "encoder", "pooler")
    }
    params["head"] = {
        "output_weights": np.ones(
            (
                2,
                worded_albert().hidden_size,
            ),
            np.float32,
        ),
        "output_bias": np.zeros(2, np.float32),
    }
    model = export(tmp_path / "model", params, HEAD)
    described = describe_path(model)
    counted = sum(x.size for x in jax.tree.leaves(params))
    assert described["parameters"] == counted == verify(model)["parameters"]
    assert described["parameters_of"]["fine-tuned head"] == 2 * worded_albert().hidden_size + 2
    assert not {"masked-LM head", "sentence-order head"} & described["parameters_of"].keys()
    assert described["head"] == HEAD
    assert cli.main(["info", str(model)]) == 0
    table = capsys.readouterr().out
    for told in ("classification", "mrpc", "not_equivalent, equivalent", "96", f"{counted:,}"):
        assert told in table


def test_a_link_to_nothing_is_said_to_be_one(tmp_path: Path) -> None:
    (copied := tmp_path / "copied").symlink_to("seed-12/best")
    with pytest.raises(
        UserError, match="copied is a link to seed-12/best, which is not there; copy"
    ):
        describe_path(copied)


def test_what_is_damaged_is_no_fact(pretrained: Path, tmp_path: Path, capsys) -> None:
    model = shutil.copytree(pretrained, tmp_path / "model")
    values = json.loads((model / "albert_config.json").read_text())
    (model / "albert_config.json").write_text(json.dumps(values | {"num_hidden_layers": 7}))
    with pytest.raises(UserError, match=r"damaged or was edited .albert_config\.json"):
        describe_path(model)
    shutil.copyfile(pretrained / "albert_config.json", model / "albert_config.json")
    manifest = (pretrained / "manifest.json").read_text()
    (model / "manifest.json").write_text(manifest.replace("hand", "hind"))
    with pytest.raises(UserError, match=r"damaged or was edited .manifest\.json"):
        describe_path(model)
    for content in ("[]", "null", "5", '"model"', "{", '{"a": NaN}'):
        (model / "manifest.json").write_text(content)
        assert cli.main(["info", str(model)]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_a_stores_manifest_of_another_shape_is_refused(tmp_path: Path) -> None:
    splits = {"train": {"shards": 5}, "heldout": {"shards": []}}
    manifest = {"format_version": 1, "vocabulary": {"sha256": ""}, "splits": splits}
    for wrong in (manifest, [], 5, {"splits": []}, manifest | {"splits": {"train": []}}):
        (tmp_path / "manifest.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="manifest"):
            describe_path(tmp_path)


@pytest.mark.parametrize("layers", [10**6, 2**31 - 1])
def test_many_layers_cost_neither_time_nor_memory(layers: int, tmp_path: Path) -> None:
    config = AlbertConfig(num_hidden_layers=layers, num_hidden_groups=3)
    config.to_json(tmp_path / "albert_config.json")
    start = time.process_time()
    tracemalloc.start()
    described = describe_path(tmp_path / "albert_config.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert time.process_time() - start < 1
    few = describe_of(AlbertConfig(num_hidden_layers=3, num_hidden_groups=3), tmp_path)
    assert described["parameters"] == few["parameters"]
    one = flops.forward_flops_per_sequence(AlbertConfig(num_hidden_layers=1), 512, 0)
    two = flops.forward_flops_per_sequence(AlbertConfig(num_hidden_layers=2), 512, 0)
    found = described["forward_flops_at_length_512"]
    assert found == one + (layers - 1) * (two - one)
    assert description_table(described)


def describe_of(config: AlbertConfig, folder: Path):
    config.to_json(folder / "other.json")
    return describe_path(folder / "other.json")


SIZES = {"parameters", "parameters_of", "bytes_float32", "forward_flops_at_length_512", "config"}
RECIPE = {"kind", "path", "settings"}


@pytest.mark.parametrize(
    ("given", "kind", "keys"),
    [
        (
            "tests/data/model_0.1",
            ModelDescription,
            {"kind", "path", "verified", "head", "tokenizer", "provenance"} | SIZES,
        ),
        (
            "tests/data/store_0.1",
            StoreDescription,
            {"kind", "path", "verified", "splits", "format_version", "vocabulary", "reading"}
            | {"holdout", "made_with", "counts"},
        ),
        (
            "albert_jax/packaged/mini/albert_config.json",
            ConfigurationDescription,
            {"kind", "path"} | SIZES,
        ),
        ("configs/glue.py:task=cola", RecipeDescription, RECIPE | {"type"}),
        (
            "configs/pretrain.py:model=base-v1",
            PretrainDescription,
            RECIPE | SIZES | {"flops_per_sequence", "flops_per_step", "flops_in_all", "plan"},
        ),
    ],
)
def test_a_description_has_types_and_comes_back_from_its_json(given, kind, keys) -> None:
    described = with_plan(describe_path(REPOSITORY / given))
    assert isinstance(described, kind)
    lengths = {key for key in described if key.startswith("forward_flops_at_length_")}
    assert described.keys() - lengths == keys - {"forward_flops_at_length_512"}
    assert bool(lengths) == ("forward_flops_at_length_512" in keys)
    document = json.loads(json.dumps(described))
    found = Description.from_json(document | {"of a later version": 1})
    assert type(found) is kind
    assert found == kind.from_json(document) == described == document
    assert vars(found) == vars(described)
    with pytest.raises(msgspec.ValidationError):
        kind.from_json({"kind": described.kind, "path": described.path, "config": 5})
    with pytest.raises(msgspec.ValidationError, match="kind 'picture'"):
        Description.from_json(document | {"kind": "picture"})


def test_a_descriptions_fields_are_typed(tmp_path: Path) -> None:
    model = describe_path(export(tmp_path / "model", noisy_params(worded_albert()), HEAD))
    assert isinstance(model, ModelDescription)
    assert model.config == worded_albert()
    assert isinstance(model.head, HeadManifest)
    length = model.config.max_position_embeddings
    assert model.forward_flops == model[f"forward_flops_at_length_{length}"]
    store = describe_path(REPOSITORY / "tests" / "data" / "store_0.1")
    assert isinstance(store, StoreDescription)
    assert (store.splits["train"].shards, store.vocabulary.size) == (1, 38)


def test_a_base_beside_anything_but_an_adapter_is_refused(tmp_path):
    for path in ("configs/mini.py", "gs://bucket/store", str(tmp_path)):
        with pytest.raises(UserError, match=r"base mini is for an adapter, and .* is none; leave"):
            describe_path(path, base="mini")


def test_a_recipe_that_makes_no_configuration_is_one_sentence(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config():\n    return 3\n")
    with pytest.raises(UserError, match=r"makes a int; its get_config must return a Pretrain"):
        describe_path(str(recipe))
