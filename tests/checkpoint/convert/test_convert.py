# SPDX-License-Identifier: Apache-2.0
"""Conversion: every format gives the same bits back, transformers loads what we write, and what is
wrong is said before anything is written.

tests/helpers/conversions.py makes the small models up; the golden ones are the original's and of
transformers.
"""

import contextlib
import dataclasses
import gzip
import io
import json
import logging
import random
import re
import shutil
import sys
import tarfile
import types
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import google_crc32c
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import albert_jax
from albert_jax.checkpoint.convert.parameters import MAPPING
from albert_jax.checkpoint.convert.safetensors_file import read_safetensors
from albert_jax.checkpoint.convert.tf_bundle import CheckpointReader, write_checkpoint
from albert_jax.checkpoint.convert.torch_zip import read_torch
from albert_jax.checkpoint.model_dir import load_model
from albert_jax.checkpoint.model_export import export_model
from albert_jax.config.model import MODELS, AlbertConfig
from albert_jax.config.packaged import packaged_path
from albert_jax.utils import progress
from albert_jax.utils.errors import UserError
from tests.helpers.conversions import (
    OUTPUTS,
    SMALL,
    made_up,
    write_original,
    write_transformers,
)
from tests.helpers.fuzz_formats import _Call, torch_pickle, write_torch
from tests.helpers.golden import CHECKPOINTS, TRANSFORMERS, arrays
from tests.helpers.paths import VOCABULARY
from tests.helpers.pretraining_runs import random_model
from tests.helpers.tf_checkpoints import read_checkpoint

convert = albert_jax.convert
TF_DATA = "model.ckpt-best.data-00000-of-00001"
WITH_VOCABULARY = dataclasses.replace(SMALL, vocab_size=8000)
HF_MODELS = (
    "masked_lm",
    "multiple_choice",
    "pretraining",
    "pretraining_erf_gelu_inner2",
    "question_answering",
    "sequence_classification",
    "sequence_regression",
    "token_classification",
)


def plain(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    """Tensors as what == compares bit for bit."""
    return {n: (str(t.dtype), t.shape, np.asarray(t).tobytes()) for n, t in tensors.items()}


def tf_tensors(path: Path) -> dict[str, tuple]:
    return plain(read_checkpoint(path))


def hf_tensors(folder: Path) -> dict[str, tuple]:
    return plain(safetensors.numpy.load_file(folder / "model.safetensors"))


def params_of(folder: Path) -> dict[str, tuple]:
    """A model directory's parameters by path."""

    def walk(tree: dict[str, Any], at: str) -> Iterator[tuple[str, np.ndarray]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{at}{name}/")
            else:
                yield at + name, value

    return plain(dict(walk(load_model(folder).params, "")))


def refused(*arguments: Any, **flags: Any) -> str:
    """The one sentence of a conversion that must write nothing."""
    dest = Path(arguments[1])
    before = sorted(dest.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(*arguments, **flags)
    assert sorted(dest.parent.rglob("*")) == before
    return str(caught.value)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A small pretraining checkpoint of the original's, with slots."""
    write_original(tmp_path / "original", made_up(), slots=True)
    return tmp_path / "original"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """The same weights as transformers has them."""
    return write_transformers(tmp_path / "hf", made_up())


# ---------------------------------------------------------------------------------- bit for bit


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_the_originals_checkpoint_comes_back_bit_for_bit_with_its_optimizer(
    original_checkpoint: Callable[[str], Path], tmp_path: Path, model: str
) -> None:
    source = original_checkpoint(model)
    convert(source, tmp_path / "ours", with_optimizer=True)
    convert(tmp_path / "ours", tmp_path / "back", "tf", with_optimizer=True)
    assert tf_tensors(tmp_path / "back") == tf_tensors(source)
    config = AlbertConfig.from_json(tmp_path / "back" / "albert_config.json")
    assert config == AlbertConfig.from_json(source / "albert_config.json")


@pytest.mark.parametrize("model", HF_MODELS)
def test_transformers_model_comes_back_bit_for_bit(tmp_path: Path, model: str) -> None:
    source = TRANSFORMERS / model
    convert(source, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert hf_tensors(tmp_path / "back") == hf_tensors(source)
    there, back = (json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "back"))
    for key in ("dtype", "transformers_version"):
        there.pop(key)
    assert {key: back[key] for key in there} == there


@pytest.mark.parametrize("head", OUTPUTS)
def test_every_head_goes_round_through_every_format(tmp_path: Path, head: str) -> None:
    """TF -> ours -> transformers -> ours -> TF, without a pooler, which some of them lack."""
    params = made_up(parts=(), head=head)
    source = write_original(tmp_path / "tf", params, head=head)
    asked = None if head.startswith("span") else head
    labels = head in ("classification", "multi_label", "token_classification")
    convert(source, tmp_path / "ours", head=asked)
    assert load_model(tmp_path / "ours").manifest["head"] == {"kind": head, "labels": None}
    assert params_of(tmp_path / "ours") == plain(params)
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "again")
    found = load_model(tmp_path / "again").manifest["head"]
    named = [f"LABEL_{i}" for i in range(OUTPUTS[head])] if labels else None
    assert found == {"kind": head, "labels": named}
    convert(tmp_path / "again", tmp_path / "back", "tf")
    expected = tf_tensors(source)
    del expected["global_step"]  # transformers has no place for it
    assert tf_tensors(tmp_path / "back") == expected


def test_heads_that_the_original_trained_are_read(tmp_path: Path) -> None:
    golden = arrays("tiny/finetune_heads")
    for name, kind in (
        ("classifier", "classification"),
        ("regression", "regression"),
        ("squadv1", "span_v1"),
        ("squadv2_predict", "span_v2"),
        ("squadv2", "span_v2"),
    ):
        prefix = f"var/{name}/"
        head = {k.removeprefix(prefix): x for k, x in golden.items() if k.startswith(prefix)}
        if not head:
            continue
        reader = CheckpointReader.open(CHECKPOINTS["tiny"])
        wanted = [n for n in reader.names() if n.startswith("bert/") and "adam" not in n]
        write_checkpoint(tmp_path / name, {n: reader.read(n) for n in wanted} | head)
        report = convert(
            tmp_path / name,
            tmp_path / f"{name}_out",
            config=CHECKPOINTS["tiny"] / "albert_config.json",
            head="regression" if kind == "regression" else None,
        )
        assert report["head"]["kind"] == kind
        named = {row["source"] for row in report["tensors"] if row["path"].startswith("head/")}
        assert named == set(head)


def test_weights_are_those_of_the_golden_forward_passes(tmp_path: Path) -> None:
    """float32 limits (tests/data/README.md): 5e-5 in hidden states and logits."""
    for model in ("pretraining", "pretraining_erf_gelu_inner2"):
        convert(TRANSFORMERS / model, tmp_path / model)
        golden = arrays(f"transformers/{model}/outputs")
        inputs = [golden[n] for n in ("input_ids", "attention_mask", "token_type_ids")]
        output = albert_jax.load(tmp_path / model).forward(*inputs)
        inner = len(output.layers) // 4
        for layer in range(4):  # one hidden state a layer, whatever its blocks
            found = output.layers[inner * (layer + 1) - 1]
            expected = golden[f"hidden_states_{layer + 1:02d}"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)
        for found, name in (
            (output.pooled, "pooled"),
            (output.masked_lm_logits, "prediction_logits"),
            (output.sentence_order_logits, "sop_logits"),
        ):
            np.testing.assert_allclose(found, golden[name], rtol=0, atol=5e-5)
    for model, checkpoint in CHECKPOINTS.items():
        convert(checkpoint, tmp_path / model)
        golden = arrays(f"{model}/forward")
        inputs = [golden[n] for n in ("input_ids", "input_mask", "segment_ids")]
        output = albert_jax.load(tmp_path / model).forward(*inputs, golden["masked_lm_positions"])
        logits = output.masked_lm_logits.reshape(golden["mlm_logits"].shape)
        np.testing.assert_allclose(logits, golden["mlm_logits"], rtol=0, atol=5e-5)
        np.testing.assert_allclose(output.sequence, golden["sequence_output"], rtol=0, atol=5e-5)
        np.testing.assert_allclose(output.pooled, golden["pooled_output"], rtol=0, atol=5e-5)


def test_half_precision_widens_exactly_and_narrows_back(hf: Path, tmp_path: Path) -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        tensors = safetensors.numpy.load_file(hf / "model.safetensors")
        narrow = {name: array.astype(dtype) for name, array in tensors.items()}
        folder = tmp_path / np.dtype(dtype).name
        folder.mkdir()
        shutil.copyfile(hf / "config.json", folder / "config.json")
        safetensors.numpy.save_file(narrow, folder / "model.safetensors")
        convert(folder, tmp_path / "ours")
        assert {kind for kind, _, _ in params_of(tmp_path / "ours").values()} == {"float32"}
        convert(tmp_path / "ours", tmp_path / "back", "hf")
        back = read_safetensors(tmp_path / "back" / "model.safetensors")
        assert plain({n: t.read() for n, t in back.items()}) == plain(narrow)


# ---------------------------------------------------------------------------------- every source


def test_all_sources_of_the_same_weights_give_the_same_model(original: Path, hf: Path) -> None:
    root = original.parent
    expected = plain(made_up())
    hub = root / "hub"  # a TF-Hub module: its names have a prefix, and no configuration is there
    (hub / "variables").mkdir(parents=True)
    variables = read_checkpoint(original)
    kept = {f"module/{n}": x for n, x in variables.items() if "adam" not in n}
    write_checkpoint(hub / "variables" / "variables", kept)
    (hub / "assets").mkdir()
    shutil.copyfile(original / "albert_config.json", hub / "assets" / "albert_config.json")
    archive = root / "albert_small.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(original, "albert_small")
    convert(original, root / "ours")
    torch_folder, flax_folder, parts = root / "torch", root / "flax", root / "parts"
    for folder in (torch_folder, flax_folder, parts):
        folder.mkdir()
        shutil.copyfile(hf / "config.json", folder / "config.json")
    tensors = safetensors.numpy.load_file(hf / "model.safetensors")
    write_torch(torch_folder / "pytorch_model.bin", tensors)
    write_flax_model(flax_folder / "flax_model.msgpack", tensors)
    names = sorted(tensors)
    for part in (0, 1):
        some = {name: tensors[name] for name in names[part::2]}
        safetensors.numpy.save_file(some, parts / f"model-{part}.safetensors")
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for number, source in enumerate(
        [
            original,
            original / "model.ckpt-best",
            original / "model.ckpt-best.index",
            original / "model.ckpt-best.data-00000-of-00001",
            archive,
            hub,
            hub / "variables",
            hub / "variables" / "variables",
            root / "ours",
            hf,
            hf / "model.safetensors",
            torch_folder,
            flax_folder,
            parts,
            parts / "model.safetensors.index.json",
        ]
    ):
        convert(source, root / f"model{number}")
        assert params_of(root / f"model{number}") == expected, source


def write_flax_model(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """PyTorch's names and orientation to Flax's, by Flax itself."""
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if last == "weight" and parents[-1] in ("LayerNorm", "full_layer_layer_norm"):
            last = "scale"
        elif last == "weight" and parents[-1].endswith("embeddings"):
            last = "embedding"
        elif last == "weight":
            last, array = "kernel", np.ascontiguousarray(array.T)
        node[last] = array
    path.write_bytes(flax.serialization.msgpack_serialize(tree))


@pytest.mark.peers
def test_what_pytorch_itself_saves_is_read(hf: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = safetensors.numpy.load_file(hf / "model.safetensors")
    state = {name: torch.tensor(array) for name, array in tensors.items()}
    square = torch.arange(6.0).reshape(2, 3)
    others = {
        "transposed": square.T,
        "part": square[1:, 1:],
        "parameter": torch.nn.Parameter(square),
        "half": square.half(),
        "bfloat16": square.bfloat16(),
        "ids": torch.arange(7).expand((1, -1)),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
    }
    module = torch.nn.Linear(2, 2)  # whose state dict has _metadata
    for number, content in enumerate((state | others, module.state_dict())):
        path = tmp_path / f"{number}.bin"
        torch.save(content, path)
        expected = {
            n: x.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if x.dtype == torch.bfloat16
            else x.detach().numpy()
            for n, x in content.items()
        }
        assert plain({n: t.read() for n, t in read_torch(path).items()}) == plain(expected)
    torch.save({"state_dict": state, "epoch": 3}, hf / "pytorch_model.bin")
    (hf / "model.safetensors").unlink()
    convert(hf, tmp_path / "ours")
    assert params_of(tmp_path / "ours") == plain(made_up())
    torch.save(state, hf / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "from before 1.6" in refused(hf, tmp_path / "no")


def test_a_hub_module_without_configuration_is_known_by_its_shapes(tmp_path: Path) -> None:
    """/1 has no sentence-order head: a part that is missing as a whole is said, and no error."""
    config = MODELS["base-v2"]
    params = made_up(config, ("pooler", "predictions"))
    write_original(tmp_path, params, config)
    (tmp_path / "albert_config.json").unlink()
    report = convert(tmp_path, tmp_path / "out", "tf")
    assert report["config"] == dataclasses.asdict(config)
    assert report["parts"] == ["embeddings", "encoder", "pooler", "predictions"]
    assert "base-v2" in report["notes"][0]
    write_original(tmp_path / "odd", made_up())
    (tmp_path / "odd" / "albert_config.json").unlink()
    assert "config='FILE'" in refused(tmp_path / "odd", tmp_path / "no")


# -------------------------------------------------------------------------------------- aliases


def test_names_of_other_codes_are_understood(original: Path, hf: Path) -> None:
    root, expected = original.parent, plain(made_up())
    variables = read_checkpoint(original)
    keras = {}  # counts on through the graph, as issue 241 of google-research/albert shows
    scopes = {"embeddings": ("", ""), "inner_group_0": ("_1", "_2"), "transform": ("_3", "")}
    for name, array in variables.items():
        scope = next((s for s in scopes if f"{s}/LayerNorm" in name), None)
        if scope:
            first, second = scopes[scope]
            name = name.replace("LayerNorm_1", f"layer_normalization{second}")
            name = name.replace("LayerNorm", f"layer_normalization{first}")
        keras[name] = array
    assert len(keras.keys() - variables.keys()) == 3 * 8
    write_checkpoint(root / "keras" / "model.ckpt", keras)
    shutil.copyfile(original / "albert_config.json", root / "keras" / "albert_config.json")
    report = convert(root / "keras", root / "from_keras", with_optimizer=True)
    assert params_of(root / "from_keras") == expected
    assert report["optimizer_tensors"] == 64
    tensors = safetensors.numpy.load_file(hf / "model.safetensors")
    old = {}
    for name, array in tensors.items():
        if "orm." in name:
            name = name.replace(".weight", ".gamma").replace("orm.bias", "orm.beta")
        old[f"module.{name}"] = array
    old["module.albert.embeddings.position_ids"] = np.arange(16)[None]
    old["module.predictions.decoder.weight"] = tensors["albert.embeddings.word_embeddings.weight"]
    old["module.predictions.decoder.bias"] = tensors["predictions.bias"].copy()
    safetensors.numpy.save_file(old, hf / "model.safetensors")
    report = convert(hf, root / "from_old")
    assert params_of(root / "from_old") == expected
    assert report["ignored"] == {"constants of transformers": 1, "tied copies": 2}
    del old["module.predictions.bias"]  # of tied tensors a file may have either
    safetensors.numpy.save_file(old, hf / "model.safetensors")
    convert(hf, root / "from_old2")
    assert params_of(root / "from_old2") == expected
    old["module.predictions.decoder.weight"] = old["module.predictions.decoder.weight"] + 1
    safetensors.numpy.save_file(old, hf / "model.safetensors")
    assert "decoder.weight differs from" in refused(hf, root / "no")


def test_layer_norms_of_each_layer_its_own_are_refused(original: Path) -> None:
    variables = read_checkpoint(original)
    scope = "bert/encoder/transformer/group_0_2/layer_2/inner_group_0/layer_normalization_5/beta"
    variables[scope] = np.zeros(8, np.float32)
    write_checkpoint(original / "model.ckpt-best", variables)
    assert "LayerNorms of their own for 1 layers" in refused(original, original.parent / "no")


def test_a_file_of_the_base_model_has_no_prefix(tmp_path: Path) -> None:
    params = made_up(parts=("pooler",))
    source = write_transformers(tmp_path / "base", params)
    assert "embeddings.word_embeddings.weight" in hf_tensors(source)
    convert(source, tmp_path / "ours")
    assert params_of(tmp_path / "ours") == plain(params)
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert hf_tensors(tmp_path / "back") == hf_tensors(source)


def test_optimizer_is_counted_kept_when_asked_and_never_half(original: Path) -> None:
    root = original.parent
    report = convert(original, root / "without")
    assert report["ignored"] == {"optimizer's tensors": 64}
    assert not (root / "without" / "optimizer").exists()
    assert "has no optimizer" in refused(root / "without", root / "no", with_optimizer=True)
    convert(root / "without", root / "tf", "tf")
    kept = {n: t for n, t in tf_tensors(original).items() if "adam" not in n}
    assert tf_tensors(root / "tf") == kept  # global_step is among them
    assert "no adam_m or adam_v" in refused(root / "tf", root / "no", with_optimizer=True)
    assert "no place" in refused(original, root / "no", "hf", with_optimizer=True)
    convert(original, root / "with", with_optimizer=True)
    convert(root / "with", root / "again", with_optimizer=True)
    convert(root / "again", root / "back", "tf", with_optimizer=True)
    assert tf_tensors(root / "back") == tf_tensors(original)
    variables = read_checkpoint(original)
    del variables["bert/pooler/dense/bias/adam_v"]
    write_checkpoint(original / "model.ckpt-best", variables)
    told = refused(original, root / "no", with_optimizer=True)
    assert "lacks slots of the optimizer: bert/pooler/dense/bias/adam_v [8]" in told
    damaged = next(p for p in (root / "with" / "optimizer" / "d").iterdir() if p.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert "damaged" in refused(root / "with", root / "no", "tf", with_optimizer=True)


# ------------------------------------------------------------------------------------- E equals H


@pytest.mark.peers
def test_mapping_of_equal_sizes_is_kept_or_made_as_the_format_needs(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, embedding_size=8)
    params = made_up(config)
    source = write_original(tmp_path / "tf", params, config)
    convert(source, tmp_path / "hf", "hf")
    identity = hf_tensors(tmp_path / "hf")["albert.encoder.embedding_hidden_mapping_in.weight"]
    assert identity == ("float32", (8, 8), np.eye(8, dtype=np.float32).tobytes())
    convert(tmp_path / "hf", tmp_path / "back", "tf")
    assert tf_tensors(tmp_path / "back").keys() == tf_tensors(source).keys() - {"global_step"}
    rng = np.random.default_rng(5)
    params[f"{MAPPING}/kernel"] = rng.standard_normal((8, 8), dtype=np.float32)
    params[f"{MAPPING}/bias"] = rng.standard_normal(8, dtype=np.float32)
    own = write_transformers(tmp_path / "own", params, config)
    assert "cannot hold this model" in refused(own, tmp_path / "no", "tf")
    convert(own, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "own_back", "hf")
    assert hf_tensors(tmp_path / "own_back") == hf_tensors(own)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AlbertForPreTraining.from_pretrained(own).eval()
    ids = np.random.default_rng(1).integers(5, 50, (2, 9))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).prediction_logits.numpy()
    found = albert_jax.load(tmp_path / "ours").forward(ids).masked_lm_logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


# -------------------------------------------------------------------- what transformers makes of it


@pytest.fixture
def transformers_says() -> Iterator[list[str]]:
    """All that transformers logs from WARNING on."""
    pytest.importorskip("transformers")
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


@pytest.mark.peers
@pytest.mark.parametrize("model", HF_MODELS)
def test_transformers_loads_what_we_write_and_computes_the_same(
    tmp_path: Path, transformers_says: list[str], model: str
) -> None:
    import torch
    import transformers

    convert(TRANSFORMERS / model, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    name = json.loads((tmp_path / "back" / "config.json").read_text())["architectures"][0]
    loaded = getattr(transformers, name).from_pretrained(tmp_path / "back").eval()
    assert transformers_says == []
    golden = arrays(f"transformers/{model}/outputs")
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        output = loaded(**{name: torch.tensor(golden[name]) for name in names})
    for key in ("prediction_logits", "sop_logits", "logits", "start_logits", "end_logits"):
        if key in golden:
            np.testing.assert_allclose(output[key].numpy(), golden[key], rtol=0, atol=5e-5)


@pytest.mark.peers
def test_transformers_computes_what_the_original_did(
    tmp_path: Path, transformers_says: list[str]
) -> None:
    import torch
    import transformers

    for model, checkpoint in CHECKPOINTS.items():
        convert(checkpoint, tmp_path / model, "hf")
        loaded = transformers.AlbertForPreTraining.from_pretrained(tmp_path / model).eval()
        golden = arrays(f"{model}/forward")
        names = ("input_ids", "input_mask", "segment_ids")
        ids, mask, types_ = (torch.tensor(golden[n].astype(np.int64)) for n in names)
        with torch.no_grad():
            output = loaded(ids, attention_mask=mask, token_type_ids=types_)
        rows = np.arange(len(ids))[:, None]
        logits = output.prediction_logits.numpy()[rows, golden["masked_lm_positions"]]
        expected = golden["mlm_logits"].reshape(logits.shape)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-5)
        np.testing.assert_allclose(output.sop_logits, golden["sop_logits"], rtol=0, atol=5e-5)
    assert transformers_says == []


@pytest.mark.peers
@pytest.mark.parametrize("head", ["span_v1", "token_classification", None])
def test_what_the_original_has_and_transformers_has_not_makes_no_warning(
    tmp_path: Path, transformers_says: list[str], head: str | None
) -> None:
    """The original's graph has a pooler always; TF-Hub's /1 has no sentence-order head."""
    import transformers

    parts = ("pooler",) if head else ("pooler", "predictions")
    source = write_original(tmp_path / "tf", made_up(parts=parts, head=head), head=head)
    notes = convert(source, tmp_path / "hf", "hf", head=head)["notes"]
    name = json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"][0]
    name = name if head else "AlbertForMaskedLM"
    getattr(transformers, name).from_pretrained(tmp_path / "hf")
    assert transformers_says == []
    assert any("pooler left out" in note for note in notes) == bool(head)


@pytest.mark.peers
@pytest.mark.parametrize("lower", [True, False])
def test_the_vocabulary_is_carried_and_transformers_reads_it_alike(
    tmp_path: Path, transformers_says: list[str], lower: bool
) -> None:
    import transformers

    params = made_up(WITH_VOCABULARY)
    source = write_original(tmp_path / "tf", params, WITH_VOCABULARY).parent
    shutil.copyfile(VOCABULARY, source / "30k-clean.model")
    convert(source, tmp_path / "ours", do_lower_case=lower)
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SWIG's, from inside sentencepiece
        fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
        assert transformers_says == []
        slow = transformers.AlbertTokenizer.from_pretrained(tmp_path / "hf")
    assert slow.model_max_length == fast.model_max_length == 16
    convert(tmp_path / "hf", tmp_path / "again")
    ours = albert_jax.load(tmp_path / "again").tokenizer
    assert (ours.mode, ours.do_lower_case) == ("google", lower)
    for text in ("Return the Length of a list.", "naïve [MASK], 3,000 words"):
        expected = slow.encode(text, add_special_tokens=False)
        assert ours.encode(text, parse_special=True).ids == expected
    assert fast.encode("a [MASK] b") == slow.encode("a [MASK] b")
    convert(tmp_path / "again", tmp_path / "back", "tf")
    assert (tmp_path / "back" / "30k-clean.model").read_bytes() == VOCABULARY.read_bytes()


# --------------------------------------------------------------------------------- what is said


def test_the_inventory_says_where_every_tensor_came_from(original: Path, capsys: Any) -> None:
    report = convert(original, original.parent / "ours")
    rows = report["tensors"]
    assert len(rows) == 32
    assert load_model(original.parent / "ours").manifest["inventory"] == rows
    reader = CheckpointReader.open(original)
    printed = capsys.readouterr().err
    for row in rows:
        array = reader.read(row["source"])
        assert row["shape"] == list(array.shape)
        assert row["crc32c"] == f"{google_crc32c.value(array.tobytes()):08x}"
        assert f"{row['source']} " in printed
        assert row["path"] in printed
        assert row["crc32c"] in printed
    assert "activation 'gelu', the tanh form; LayerNorm epsilon 1e-12; dropout 0.0" in printed
    assert "32 tensors, " in printed
    assert "64 optimizer's tensors ignored" in printed


def test_the_activation_is_read_by_the_kind_of_weights(hf: Path, capsys: Any) -> None:
    """The first releases' config.json has no mark of transformers, and its gelu is erf all the
    same."""
    values = json.loads((hf / "config.json").read_text())
    for name in ("model_type", "architectures"):
        del values[name]
    (hf / "config.json").write_text(json.dumps(values | {"hidden_act": "gelu"}))
    assert convert(hf, hf.parent / "ours")["config"]["hidden_act"] == "gelu_erf"
    assert "activation 'gelu', the erf form" in capsys.readouterr().err
    notes = convert(hf.parent / "ours", hf.parent / "tf", "tf")["notes"]
    assert any("gelu_erf" in note for note in notes)


def test_labels_are_kept(tmp_path: Path, capsys: Any) -> None:
    head = {"kind": "classification", "labels": ["no", "yes", "maybe"]}
    params = made_up(parts=("pooler",), head="classification")
    source = write_transformers(tmp_path / "hf", params, head=head)
    convert(source, tmp_path / "ours")
    assert "head: classification, labels no, yes, maybe" in capsys.readouterr().err
    assert load_model(tmp_path / "ours").manifest["head"] == head
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    values = json.loads((tmp_path / "back" / "config.json").read_text())
    assert values["id2label"] == {"0": "no", "1": "yes", "2": "maybe"}
    assert values["label2id"] == {"no": 0, "yes": 1, "maybe": 2}


def test_the_command_prints_json_to_stdout_and_one_line_for_a_mistake(
    original: Path, run_warm: Callable[..., Any]
) -> None:
    done = run_warm("convert", original, original.parent / "hf", "--to", "hf", "--json")
    assert done.rc == 0
    report = json.loads(done.stdout)
    assert (report["to"], len(report["tensors"])) == ("hf", 32)
    done = run_warm("convert", original / "nothing", original.parent / "no")
    assert (done.rc, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "does not exist" in done.stderr


# ------------------------------------------------------------------------------------ bad input


def test_all_that_does_not_fit_is_listed_in_one_error(original: Path, hf: Path) -> None:
    root = original.parent
    values = json.loads((original / "albert_config.json").read_text())
    other = values | {"intermediate_size": 24, "vocab_size": 60}
    (original / "albert_config.json").write_text(json.dumps(other))
    told = refused(original, root / "no")
    assert "4 of another shape than the configuration says" not in told
    assert told.count(" is [") == 5  # word embeddings, output_bias, ffn kernel and bias, ffn_output
    assert "bert/embeddings/word_embeddings is [50, 4], not [60, 4]" in told
    (original / "albert_config.json").write_text(json.dumps(values))
    variables = read_checkpoint(original)
    for name in ("bert/pooler/dense/bias", "cls/predictions/output_bias"):
        del variables[name]
    variables |= {"bert/extra": np.zeros(3, np.float32), "another": np.zeros((), np.int32)}
    variables["bert/pooler/dense/kernel"] = variables["bert/pooler/dense/kernel"].astype(np.float64)
    write_checkpoint(original / "model.ckpt-best", variables)
    told = refused(original, root / "no")
    assert "2 missing: bert/pooler/dense/bias [8], cls/predictions/output_bias [50]" in told
    assert "2 not known: another [], bert/extra [3]" in told
    assert "bert/pooler/dense/kernel is float64" in told
    tensors = safetensors.numpy.load_file(hf / "model.safetensors")
    del tensors["sop_classifier.classifier.weight"], tensors["sop_classifier.classifier.bias"]
    tensors["albert.encoder.distance_embedding.weight"] = np.zeros((3, 2), np.float32)
    safetensors.numpy.save_file(tensors, hf / "model.safetensors")
    assert "1 not known: albert.encoder.distance_embedding" in refused(hf, root / "no")
    values = json.loads((hf / "config.json").read_text())
    relative = values | {"position_embedding_type": "relative_key"}
    (hf / "config.json").write_text(json.dumps(relative))
    assert "'relative_key' is not supported" in refused(hf, root / "no")
    groups = values | {"num_hidden_layers": 18, "num_hidden_groups": 14}
    (hf / "config.json").write_text(json.dumps(groups))
    assert "rounds layer 9 into" in refused(hf, root / "no")


@pytest.mark.parametrize(("layers", "groups"), [(18, 14), (22, 22), (23, 23)])
def test_groups_that_transformers_would_assign_otherwise_are_not_written(
    tmp_path: Path, layers: int, groups: int
) -> None:
    config = dataclasses.replace(
        SMALL, vocab_size=8000, num_hidden_layers=layers, num_hidden_groups=groups
    )
    model = random_model(tmp_path / "model", config)
    with pytest.raises(UserError, match=rf"the model: of {layers} layers in {groups} groups"):
        convert(model, tmp_path / "hf", to="hf", no_vocab=True)
    assert not (tmp_path / "hf").exists()
    convert(model, tmp_path / "tf", to="tf", no_vocab=True)


def test_how_text_is_cleaned_is_said_to_be_lost_where_it_is(tmp_path: Path) -> None:
    for settings, told in (
        ({"mode": "google", "do_lower_case": True}, []),
        (
            {"mode": "hf", "do_lower_case": False},
            ["text is cleaned is lost; convert back with mode='hf' and do_lower_case=False"],
        ),
        ({"mode": "google", "do_lower_case": True, "keep_accents": True}, ["keeps its accents"]),
    ):
        model = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        given = load_model(packaged_path("mini"))
        export_model(
            model,
            params=given.params,
            config=given.config,
            vocab=given.tokenizer["path"],
            tokenizer=settings,
            provenance={},
        )
        notes = convert(model, f"{model}-tf", to="tf").notes
        for words in told:
            assert any(words in note for note in notes)
        assert told or not any("cleaned" in note or "accents" in note for note in notes)


def test_a_head_of_one_output_must_be_named(tmp_path: Path) -> None:
    params = made_up(parts=("pooler",), head="regression")
    source = write_original(tmp_path / "tf", params, head="regression")
    told = refused(source, tmp_path / "no")
    assert "head='regression' or head='multiple_choice'" in told
    assert "does not fit" in refused(source, tmp_path / "no", head="span_v2")
    for head in ("regression", "multiple_choice"):
        assert convert(source, tmp_path / head, head=head)["head"]["kind"] == head
    assert "no tensors of a head" in refused(
        write_original(tmp_path / "none", made_up()), tmp_path / "no", head="regression"
    )


def test_parts_and_their_index_must_agree(hf: Path) -> None:
    tensors = safetensors.numpy.load_file(hf / "model.safetensors")
    (hf / "model.safetensors").unlink()
    safetensors.numpy.save_file(tensors, hf / "part.safetensors")
    places = dict.fromkeys([*tensors, "another"], "part.safetensors")
    del places["albert.pooler.bias"]
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    told = refused(hf, hf.parent / "no")
    assert "another in part.safetensors (not there)" in told
    assert "albert.pooler.bias in part.safetensors (not in the index)" in told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", random.Random(0).randbytes(10_000_000)),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 7 + b"\x00" + b"{}"),
        ("pytorch_model.bin", random.Random(1).randbytes(1_000_000)),
        ("pytorch_model.bin", b""),
        ("flax_model.msgpack", random.Random(2).randbytes(1_000_000)),
        ("flax_model.msgpack", b"\xdd\xff\xff\xff\xff" * 1000),
        ("flax_model.msgpack", b"\x81\xa1a" * 400 + b"\x01"),
        ("model.safetensors.index.json", b"[]"),
        ("model.safetensors.index.json", b"[" * 100_000),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b"}}'),
        ("tf_model.h5", b"\x89HDF"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_files_that_are_something_else_are_said_to_be(hf: Path, name: str, content: bytes) -> None:
    (hf / "model.safetensors").unlink()
    (hf / name).write_bytes(content)
    told = refused(hf, hf.parent / "no")
    assert name in told
    assert len(told) < 500


def _code(name: str, *arguments: object) -> bytes:
    return torch_pickle({}, extra=_Call(name, *arguments))


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (
            _code("posix system", "touch /tmp/albert_jax_was_here"),
            r"contains code \(posix.system\)",
        ),
        (_code("builtins eval", "1"), r"contains code \(builtins.eval\)"),
        (_code("torch._utils _rebuild_tensor_v2"), "cannot be read"),
        (_code("collections OrderedDict", [1]), "contains code"),
        (_code("torch.FloatStorage x", 1), "contains code"),
        (b"\x80\x02cos\nsystem\n(S'ls'\ntR.", r"contains code \(os.system\)"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"contains code \(os.system\)"),
        (b"(ios\nsystem\n.", "contains code"),
        (b"S'\\d'\n.", "contains code"),  # an escape that newer Pythons warn of
        (b"\x80\x02}(K\x01K\x02K\x03u.", "cannot be read"),
        (b"\x80\x02}.", "does not fit"),
        (b".", "cannot be read"),
        (b"\x80\x02" + b"(" * 100_000, "cannot be read"),
        (b"\x80\x02)" + b"2\x86" * 60 + b"}q\x00", "contains code"),
        (b"\x80\x02}" + b")" + b"q\x01h\x01\x86" * 60 + b"Ns.", "cannot be read"),
    ],
)
def test_a_pickle_with_code_is_refused_and_never_run(hf: Path, program: bytes, told: str) -> None:
    write_torch(hf / "pytorch_model.bin", {}, program)
    (hf / "model.safetensors").unlink()
    with pytest.raises(UserError, match=told):
        convert(hf, hf.parent / "no")
    assert not Path("/tmp/albert_jax_was_here").exists()


def _tar(path: Path, *members: tuple[str, bytes], **changes: Any) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in changes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("../evil.index", {}, "leads outside"),
        ("a/../../evil.index", {}, "leads outside"),
        ("/tmp/evil.index", {}, "leads outside"),
        ("x.index", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "a link to"),
        ("x.index", {"type": tarfile.LNKTYPE, "linkname": "x", "size": 0}, "a link to"),
        ("x.index", {"type": tarfile.CHRTYPE, "size": 0}, "neither a plain file"),
        ("x.index", {"type": tarfile.FIFOTYPE, "size": 0}, "neither a plain file"),
        ("notes.txt", {}, "holds 0"),
    ],
)
def test_an_archive_that_reaches_outside_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], told: str
) -> None:
    archive = _tar(tmp_path / "model.tar.gz", (name, b"content"), **changes)
    assert told in refused(archive, tmp_path / "no")


def test_archives_that_are_damaged_or_bombs_are_refused(original: Path) -> None:
    root = original.parent
    bomb = _tar(root / "bomb.tar.gz", ("a/model.ckpt.index", bytes(80_000_000)))
    assert bomb.stat().st_size < 100_000
    assert "unpacks to more than" in refused(bomb, root / "no")
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 50_000_000
    (root / "header.tar.gz").write_bytes(gzip.compress(header.tobuf() + bytes(50_000_512)))
    assert "a header of 50000000 bytes" in refused(root / "header.tar.gz", root / "no")
    record = b"18446744073709551615 path=x\n"
    header.size = len(record)
    (root / "long.tar").write_bytes(header.tobuf() + record.ljust(512, b"\0") + bytes(1024))
    assert "no sound tar archive" in refused(root / "long.tar", root / "no")
    with tarfile.open(root / "sound.tar.gz", "w:gz") as archive:
        archive.add(original, "albert")
    content = (root / "sound.tar.gz").read_bytes()
    (root / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    assert "no sound tar archive" in refused(root / "cut.tar.gz", root / "no")
    plain = gzip.decompress(content)
    for at in range(20, len(content) - 8, len(content) // 40):  # in headers, files and checksum
        damaged = bytearray(content)
        damaged[at] ^= 0x41
        (root / "flipped.tar.gz").write_bytes(damaged)
        with contextlib.suppress(OSError, EOFError, zlib.error):
            if gzip.decompress(damaged) == plain:  # zeros copied from another place are zeros
                continue
        assert "no sound tar archive" in refused(root / "flipped.tar.gz", root / "no"), at
    for at in (plain.index(b"ustar") - 100, plain.rindex(b"ustar") - 100):
        (root / "header.tar").write_bytes(plain[:at] + b"\xff" + plain[at + 1 :])
        assert "bad checksum" in refused(root / "header.tar", root / "no")
    (root / "short.tar").write_bytes(plain[: plain.rindex(b"ustar")])
    assert "truncated header" in refused(root / "short.tar", root / "no")
    _tar(root / "two.tar.gz", ("a/x.index", b""), ("b/x.index", b""))
    assert "holds 2" in refused(root / "two.tar.gz", root / "no")


def test_a_flipped_byte_is_named_by_its_tensor(original: Path, hf: Path) -> None:
    data = original / "model.ckpt-best.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[5] ^= 1  # of the first in the order of names
    data.write_bytes(content)
    assert "damaged in bert/embeddings/LayerNorm/beta" in refused(original, original.parent / "no")
    tensors = safetensors.numpy.load_file(hf / "model.safetensors")
    write_torch(hf / "pytorch_model.bin", tensors)
    (hf / "model.safetensors").unlink()
    content = bytearray((hf / "pytorch_model.bin").read_bytes())
    at = bytes(content).index(tensors["albert.pooler.weight"].tobytes())
    content[at + 5] ^= 64
    (hf / "pytorch_model.bin").write_bytes(content)
    assert "damaged in albert.pooler.weight" in refused(hf, hf.parent / "no")


def test_a_vocabulary_that_is_missing_or_anothers_is_said(hf: Path) -> None:
    root = hf.parent
    (hf / "tokenizer.json").write_text("{}")
    told = refused(hf, root / "no")
    assert "tokenizer.json has no model; ALBERT's is Unigram" in told
    assert "vocab='FILE'" in told
    assert "no_vocab=True" in told
    assert convert(hf, root / "without", no_vocab=True)["vocabulary"] is None
    told = refused(hf, root / "no", vocab=VOCABULARY)
    assert "has 8000 pieces and the model 50" in told
    fits = write_transformers(root / "fits", made_up(WITH_VOCABULARY), WITH_VOCABULARY)
    (fits / "tokenizer.json").write_text("{}")
    assert convert(fits, root / "with", vocab=VOCABULARY)["vocabulary"] == "en8k.model"
    assert albert_jax.load(root / "with").tokenizer.vocab_size == 8000


# ---------------------------------------------------------------------------------- destination


@pytest.mark.parametrize("to", ["albert-jax", "hf", "tf"])
def test_the_destination_is_replaced_only_by_its_like(original: Path, to: Any) -> None:
    dest = original.parent / "dest"
    dest.mkdir()
    for _ in range(2):  # an empty folder, then an export
        convert(original, dest, to)
    assert {p.name for p in dest.parent.iterdir()} == {"original", "dest"}
    (dest / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(original, dest, to)
    (original.parent / "file").write_text("mine")
    assert "is a file" in refused(original, original.parent / "file", to)
    (dest / "notes.txt").unlink()
    other = {"albert-jax": "hf", "hf": "tf", "tf": "albert-jax"}[to]
    assert "exists and" in refused(original, dest, other)
    (original.parent / "link").symlink_to(original.parent / "later")  # which is not there yet
    convert(original, original.parent / "link", to)
    assert (original.parent / "link").is_symlink()
    assert (original.parent / "later").is_dir()


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_an_export_that_was_changed_stays(original: Path, name: str) -> None:
    dest = original.parent / "dest"
    convert(original, dest, "hf")
    written = (dest / name).read_bytes()
    edits = [b"mine", written + b"mine", b"mine" + written, written[:-9]]
    unknown, edited = "convert may not have written", "a model card that was edited"
    card = [unknown, edited, edited, unknown]
    told = card if name == "README.md" else ["files that were changed"] * 4
    for content, words in zip(edits, told, strict=True):
        (dest / name).write_bytes(content)
        assert words in refused(original, dest, "hf")
        assert (dest / name).read_bytes() == content
    (dest / name).unlink()
    assert "which would be lost" in refused(original, dest, "hf")
    (dest / name).write_bytes(written)
    convert(original, dest, "hf")


@pytest.mark.parametrize(
    ("to", "names"),
    [
        ("hf", ["spiece.model"]),
        ("hf", ["README.md"]),
        ("hf", ["config.json", "model.safetensors", "README.md"]),
        ("tf", ["30k-clean.model"]),
        ("tf", ["albert_config.json"]),
        ("tf", ["albert_config.json", "model.ckpt-best.index", TF_DATA]),
    ],
)
def test_files_with_an_exports_names_stay(original: Path, to: Any, names: list[str]) -> None:
    dest = original.parent / "dest"
    dest.mkdir()
    for name in names:  # as of a download
        text = json.dumps({"vocab_size": 8}) if name.endswith(".json") else "mine"
        (dest / name).write_text(text)
    assert "has files that convert may not have written" in refused(original, dest, to)
    assert {path.name for path in dest.iterdir()} == {*names}


def test_a_model_that_another_command_made_is_not_replaced(original: Path) -> None:
    dest, link = original.parent / "dest", original.parent / "link"
    convert(original, dest)
    made = load_model(dest)
    export_model(
        dest,
        params=made.params,
        config=made.config,
        vocab=None,
        tokenizer=made.manifest["tokenizer"],
        provenance={"made_by": "albert-jax pretrain"},
    )
    before = (dest / "manifest.json").read_bytes()
    link.symlink_to("dest")
    for place in (dest, link):
        told = refused(original, place)
        assert f"{place} is a model that albert-jax pretrain made, which would be lost" in told
    assert (dest / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("to", ["albert-jax", "hf", "tf"])
def test_a_place_that_cannot_be_written_is_found_before_the_source_is_read(
    original: Path, monkeypatch: Any, to: Any
) -> None:
    # Root may write all.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != original.parent)
    told = refused(original / "nowhere", original.parent / "new", to)
    assert f"{original.parent} cannot be written to; name another place" in told


@pytest.mark.parametrize("to", ["albert-jax", "hf", "tf"])
def test_the_root_folder_is_no_destination(to: Any) -> None:
    with pytest.raises(UserError, match=r"^/ exists and "):
        convert("mini", "/", to)


@pytest.mark.parametrize(("to", "name"), [("hf", "write_safetensors"), ("tf", "write_checkpoint")])
def test_an_export_that_fails_leaves_what_was_there(
    original: Path, monkeypatch: Any, to: Any, name: str
) -> None:
    dest = original.parent / "dest"
    convert(original, dest, to)
    before = {p.name: p.read_bytes() for p in dest.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"albert_jax.checkpoint.convert.writers.{name}", full)
    told = refused(original, dest, to)
    assert re.search(r"NOT written: disk full, [\d,]+ B free at .* for 4,144 B", told)
    assert {p.name: p.read_bytes() for p in dest.iterdir()} == before
    dest.rename(dest.with_name(".dest.17-89abcdef.old"))  # killed between its renames
    with pytest.raises(UserError, match="NOT written"):
        convert(original, dest, to)
    assert {p.name: p.read_bytes() for p in dest.iterdir()} == before
    assert {p.name for p in dest.parent.iterdir()} == {"original", "dest"}


# -------------------------------------------------------------------------------------- network


def test_an_archive_is_downloaded_over_https(
    original: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = original.parent
    with tarfile.open(root / "small.tar.gz", "w:gz") as archive:
        archive.add(original, "albert_small")
    asked = []

    def urlopen(address: str, timeout: float) -> Any:
        asked.append(address)
        return (root / "small.tar.gz").open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    address = "https://example.org/albert/small.tar.gz?download=1"
    convert(address, root / "ours")
    assert asked == [address]
    assert re.search(r"^download: \S+B, \S+B/s$", capsys.readouterr().err, re.MULTILINE)
    assert params_of(root / "ours") == plain(made_up())
    assert "neither gs:// nor https://" in refused("ftp://example.org/x", root / "no")
    monkeypatch.undo()

    def failing(address: str, timeout: float) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", failing)
    assert "no network" in refused(address, root / "no")


class Bucket:
    """What is used of gcsfs.GCSFileSystem, over a folder."""

    def __init__(self, root: Path):
        self.root = root

    def isdir(self, name: str) -> bool:
        return (self.root / name).is_dir()

    def isfile(self, name: str) -> bool:
        return (self.root / name).is_file()

    def find(self, name: str, maxdepth: int | None = None) -> list[str]:
        among = (self.root / name).rglob("*") if maxdepth is None else (self.root / name).glob("*")
        files = (p for p in among if p.is_file())
        return sorted(str(p.relative_to(self.root)) for p in files)

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def get_file(self, name: str, target: str) -> None:
        shutil.copyfile(self.root / name, target)


def test_a_bucket_gives_archives_folders_and_prefixes(original: Path, monkeypatch: Any) -> None:
    root = original.parent
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "albert-jax[gcs]" in refused("gs://bucket/model", root / "no")
    fake = types.ModuleType("gcsfs")
    fake.GCSFileSystem = lambda: Bucket(root / "cloud")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gcsfs", fake)
    shutil.copytree(original, root / "cloud" / "bucket" / "run")
    other = root / "cloud" / "bucket" / "run" / "other.ckpt.index"
    other.write_bytes(b"another")
    with tarfile.open(root / "cloud" / "bucket" / "small.tar.gz", "w:gz") as archive:
        archive.add(original, "albert_small")
    for name in ("run/model.ckpt-best", "run/model.ckpt-best.index", "small.tar.gz", "run"):
        convert(f"gs://bucket/{name}", root / "ours")
        assert params_of(root / "ours") == plain(made_up())
        if name == "small.tar.gz":
            other.unlink()
    assert "neither a file" in refused("gs://bucket/run/nothing", root / "no")
    outside = lambda self, name: [f"{name}/model.ckpt-best.index", f"{name}/../../evil"]  # noqa: E731
    monkeypatch.setattr(Bucket, "find", outside)
    monkeypatch.setattr(Bucket, "size", lambda self, name: 1)
    assert "../../evil, a path that leads outside" in refused("gs://bucket/run", root / "no")
