# SPDX-License-Identifier: Apache-2.0
"""An adapter in place of the encoder: what is trained, what is merged, and what PEFT reads."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import albert_jax
from albert_jax.checkpoint.adapter import merged
from albert_jax.checkpoint.convert.convert import convert
from albert_jax.checkpoint.integrity import named_leaves, seal
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.checkpoint.model_paths import require_model_directory
from albert_jax.cli.info import describe_path
from albert_jax.cli.main import main
from albert_jax.config.run import FinetuneConfig
from albert_jax.config.sections import OptimizerConfig
from albert_jax.models.albert import init_params
from albert_jax.models.heads import AlbertForTask
from albert_jax.training import finetune
from albert_jax.training.lora import with_adapter
from albert_jax.training.losses import task_objective
from albert_jax.training.step import configured_step
from albert_jax.utils.errors import UserError
from tests.helpers.models import random_batch, tiny_albert
from tests.helpers.toy_task import toy_config

pytestmark = pytest.mark.usefixtures("steps_made_once")

QUERY = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query"
VALUE = QUERY.replace("query", "value")


def test_an_adapter_begins_by_changing_nothing_and_learns_by_the_matrices_gradient():
    """One step of plain descent: up's gradient is down^T times the kernel's own, by hand."""
    config = tiny_albert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = AlbertForTask(config, labels=3, dropout=0.0)
    params, batch = init_params(model, jax.random.key(0)), random_batch(config)
    batch = {name: batch[name] for name in ("input_ids", "input_mask", "segment_ids")}
    batch["labels"] = np.arange(4) % 3
    adapted = with_adapter(params, 2, jax.random.key(1))
    for one, other in zip(*map(jax.tree.leaves, (merged(adapted), params)), strict=True):
        np.testing.assert_array_equal(one, other)
    objective = task_objective(model)
    weights = objective.normalizers(batch)

    def gradients(objective, params):
        grads = jax.jit(jax.grad(lambda p: objective.loss(p, batch, weights, None)[0]))
        return named_leaves(grads(params))

    wanted = gradients(objective, params)
    made = configured_step(
        model, objective, FinetuneConfig(lora=2, optimizer=OptimizerConfig(name="optax_adamw"))
    )
    found = gradients(made.objective, adapted)
    block = "encoder/group_0/inner_group_0/attention"
    down = named_leaves(adapted)[f"lora/{block}/query/down"]
    np.testing.assert_allclose(
        found[f"lora/{block}/query/up"], down.T @ wanted[f"{block}/query/kernel"], atol=1e-6
    )
    trained = {name for name, x in found.items() if np.any(x)}
    ends = {f"lora/{block}/{name}/up" for name in ("query", "value")}  # down's follow from up's
    assert trained == ends | {n for n in wanted if n.startswith(("pooler", "head"))}


@pytest.fixture(scope="module")
def adapted(base, data, tmp_path_factory):
    """The work directory of a run with an adapter, and the model that it started from."""
    folder = tmp_path_factory.mktemp("lora")
    config = toy_config(
        base,
        data,
        folder / "run",
        lora=4,
        ema=0.5,
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.02, warmup_steps=5),
    )
    (run,) = finetune.finetune(config).runs
    assert run.best.metrics["accuracy"] > 0.6  # of a random encoder
    return folder / "run", base


def test_the_exported_model_is_the_base_plus_the_adapter(adapted, tmp_path):
    """In transformers' layout, by NumPy: W + B A; all else of the encoder keeps its bits."""
    run, base = adapted
    convert(base, tmp_path / "base", to="hf")
    convert(run / "model", tmp_path / "tuned", to="hf")
    first, tuned = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "tuned"))
    folder = run / "seed-3" / "best-adapter"
    adapter = load_file(folder / "adapter_model.safetensors")
    adapter = {name.removeprefix("base_model.model."): x for name, x in adapter.items()}
    assert len(adapter) == 8
    assert adapter[f"{QUERY}.lora_A.weight"].shape == (4, 32)
    for name in (QUERY, VALUE):
        product = adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
        assert np.abs(product).max() > 1e-3
        wanted = first[f"{name}.weight"] + product
        np.testing.assert_allclose(tuned[f"{name}.weight"], wanted, atol=1e-6)
    for name in tuned:
        if name.startswith("albert.e") and name not in (f"{QUERY}.weight", f"{VALUE}.weight"):
            np.testing.assert_array_equal(tuned[name], first[name], err_msg=name)
        elif name in adapter:
            np.testing.assert_array_equal(tuned[name], adapter[name], err_msg=name)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["lora_alpha"] / settings["r"] == 1
    assert (settings["target_modules"], settings["task_type"]) == (["query", "value"], "SEQ_CLS")
    assert settings["modules_to_save"] == ["classifier", "pooler"]


def test_peft_computes_with_the_adapter_what_the_merged_model_does(adapted, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which computes PEFT's side")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    peft = pytest.importorskip("peft", reason="needs PEFT, which reads the adapter")
    run, base = adapted
    convert(base, tmp_path / "base", to="hf")
    convert(run / "model", tmp_path / "tuned", to="hf")
    kind = transformers.AlbertForSequenceClassification
    plain = kind.from_pretrained(tmp_path / "base", num_labels=2).eval()
    theirs = peft.PeftModel.from_pretrained(plain, str(run / "seed-3" / "best-adapter")).eval()
    ours = kind.from_pretrained(tmp_path / "tuned").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found, wanted = (model(input_ids=ids).logits.numpy() for model in (theirs, ours))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.fixture
def moved(adapted, tmp_path, monkeypatch):
    """A copy of the adapter, with a cache that has nothing of it."""
    monkeypatch.setenv("ALBERT_JAX_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(adapted[0] / "seed-3" / "best-adapter", tmp_path / "adapter"))


def test_an_adapter_is_loaded_with_its_base_as_the_very_model_that_was_exported(
    adapted, moved, tmp_path, capsys
):
    run, base = adapted
    whole = load_model(run / "model")
    found = load_model(require_model_directory(moved))
    assert found.config == whole.config
    assert found.head == whole.head
    ours, theirs = (named_leaves(x.params) for x in (found, whole))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    albert = albert_jax.load(moved)
    assert albert.head["labels"] == ["no", "yes"]
    assert "merged with" in capsys.readouterr().err  # once: the cache keeps it
    described = describe_path(moved)
    assert described.head == whole.head
    assert described.provenance["base"] == str(base)
    assert described.provenance["made_by"] == "albert-jax finetune"
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "the value is open"}) + "\n")
    answers = [str(tmp_path / name) for name in ("one.jsonl", "other.jsonl")]
    given = ["--input", str(tmp_path / "in.jsonl"), "--output"]
    for model, output in zip((moved, run / "model"), answers, strict=True):
        assert main(["predict", "--model", str(model), *given, output]) == 0
    one, other = (Path(path).read_text() for path in answers)
    assert one == other
    for given in ("convert", "export-serving"):  # with the base named
        dest = tmp_path / given
        assert main([given, str(moved), str(dest), "--base", str(base)]) == 0
        assert dest.is_dir()


def test_a_base_that_has_moved_is_named_and_must_be_the_same(adapted, moved, tmp_path):
    run, base = adapted
    manifest = json.loads((moved / "adapter_manifest.json").read_text())
    elsewhere = seal(manifest | {"base": str(tmp_path / "gone")})
    (moved / "adapter_manifest.json").write_text(json.dumps(elsewhere))
    for given, says in (
        (None, r"the base of adapter .*gone does not exist.*; name it with base='MODEL' where"),
        (run / "model", r"is not the base of adapter .*: its encoder has SHA-256 \w{12}… and"),
        ("mini", r"mini is not the base of adapter"),
        (tmp_path / "nothing", r"the base of adapter .* cannot be used: .*nothing does not exist"),
    ):
        with pytest.raises(UserError, match=says) as raised:
            albert_jax.load(moved, base=given)
        assert "\n" not in str(raised.value)
    assert albert_jax.load(moved, base=base).head["kind"] == "classification"
    with pytest.raises(UserError, match="is not the base of adapter"):  # though it is kept
        albert_jax.load(moved, base="mini")
    with pytest.raises(UserError, match=r"base mini is for an adapter, and .*model is none"):
        albert_jax.load(run / "model", base="mini")


def test_an_adapter_beside_whole_weights_is_not_taken_for_the_model(adapted, moved, tmp_path):
    convert(adapted[0] / "model", tmp_path / "whole", to="hf")
    for file in moved.iterdir():
        shutil.copy(file, tmp_path / "whole")
    kept = require_model_directory(tmp_path / "whole")
    assert "adapter" not in load_model(kept).manifest["provenance"]


def test_a_damaged_adapter_is_one_sentence(moved):
    file = moved / "adapter_manifest.json"
    text = file.read_text()
    for damaged, says in (
        (text.replace('"yes"', '"aye"'), "is damaged or was edited"),
        (json.dumps(seal(json.loads(text) | {"base": None})), "trained on random weights"),
        (json.dumps(seal(json.loads(text) | {"format_version": 9})), "format 9, newer than 1"),
        (json.dumps(seal(json.loads(text) | {"positions": "odd"})), "is damaged"),
    ):
        file.write_text(damaged)
        with pytest.raises(UserError, match=says):
            require_model_directory(moved)
        if "random weights" in says:  # a base of that shape has the encoder's digest
            base = json.loads(text)["base"]
            with pytest.raises(UserError, match=says):
                require_model_directory(moved, base=base)
    file.write_text(text)
    weights = moved / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"is damaged or missing"):
        require_model_directory(moved)
    file.unlink()
    with pytest.raises(UserError, match=r"is an adapter without adapter_manifest\.json"):
        require_model_directory(moved)


def test_an_adapters_folder_keeps_what_its_user_put_there(adapted, base, data, tmp_path):
    shutil.copytree(adapted[0] / "seed-3", tmp_path / "seed-3")
    readme = tmp_path / "seed-3" / "last-adapter" / "README.md"
    readme.write_text("mine")
    told = r"last-adapter has files that no adapter has \(README.md\), .* give another workdir"
    with pytest.raises(UserError, match=told):
        finetune.finetune(toy_config(base, data, tmp_path, lora=4))
    assert readme.read_text() == "mine"


@pytest.mark.slow
def test_an_adapter_of_a_stretched_model_stretches_its_base(base, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ALBERT_JAX_CACHE", str(tmp_path / "cache"))
    config = toy_config(base, data, tmp_path / "run", lora=2, steps=1, positions="interpolate")
    finetune.finetune(dataclasses.replace(config, max_seq_length=40))
    found, whole = (
        load_model(require_model_directory(tmp_path / "run" / "seed-3" / name)).params
        for name in ("last-adapter", "last")
    )
    table = found["embeddings"]["position_embeddings"]
    assert table.shape[0] == 40
    np.testing.assert_array_equal(table, whole["embeddings"]["position_embeddings"])


def test_a_rank_beyond_the_matrix_is_refused(base, data, tmp_path):
    config = toy_config(base, data, tmp_path / "run", lora=33)
    with pytest.raises(UserError, match="lora 33 exceeds the model's hidden_size 32"):
        finetune.finetune(config)
