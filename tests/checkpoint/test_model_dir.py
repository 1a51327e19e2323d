# SPDX-License-Identifier: Apache-2.0
"""The model directory: what was exported is what is loaded, or an error that says what is wrong."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts

from albert_jax.checkpoint.convert.own_exports import check_export_destination
from albert_jax.checkpoint.integrity import named_leaves, nest, not_finite
from albert_jax.checkpoint.model_dir import load_model, load_optimizer
from albert_jax.checkpoint.model_export import check_destination, export_model
from albert_jax.cli.info import describe_path
from albert_jax.config.model import MODELS
from albert_jax.utils.errors import UserError
from tests.helpers.conversions import SMALL, forge, made_up
from tests.helpers.disks import mounted_disk

TOKENIZER = {"mode": "google", "do_lower_case": True}
PROVENANCE = {"source": "albert_base_v2.tar.gz", "steps": 3, "held_out": {"loss": 2.5}}
VOCABULARY = b"not read here, only copied"


WORDS = "embeddings/word_embeddings"
BIAS = "pooler/bias"


def params(seed: int = 0) -> dict[str, Any]:
    arrays: dict[str, Any] = {name: array + seed for name, array in made_up().items()}
    arrays["pooler/kernel"] = jnp.asarray(arrays["pooler/kernel"])
    return nest(arrays | {BIAS: jnp.zeros(8, jnp.bfloat16)})


def export(path: Path, seed: int = 0, **changes: Any) -> Path:
    if "vocab" not in changes:
        changes["vocab"] = path.parent / "vocabulary"
        changes["vocab"].write_bytes(VOCABULARY)
    given = {
        "params": params(seed),
        "config": SMALL,
        "tokenizer": TOKENIZER,
        "provenance": PROVENANCE,
    }
    return export_model(path, **given | changes)


def assert_is(path: Path, seed: int = 0) -> None:
    loaded = load_model(path)
    expected = jax.tree.map(np.asarray, params(seed))
    assert jax.tree.structure(loaded.params) == jax.tree.structure(expected)
    for leaf, wanted in zip(*map(jax.tree.leaves, (loaded.params, expected)), strict=True):
        assert type(leaf) is np.ndarray
        assert leaf.dtype == wanted.dtype
        assert leaf.tobytes() == wanted.tobytes()
    assert loaded.config == SMALL
    assert loaded.tokenizer == {"path": path / "spiece.model", **TOKENIZER}
    assert loaded.manifest["provenance"] == PROVENANCE


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "model")


# --------------------------------------------------------------------------------------- round trip


def test_what_is_exported_is_loaded_bit_for_bit(exported: Path) -> None:
    assert_is(exported)
    assert (exported / "spiece.model").read_bytes() == VOCABULARY


def test_a_copy_elsewhere_is_the_same_model(model: Path) -> None:
    assert_is(model)


def test_no_file_names_the_folder_that_the_model_was_written_in(exported: Path) -> None:
    folder = str(exported.parent).encode()
    assert not [p for p in exported.rglob("*") if p.is_file() and folder in p.read_bytes()]


def test_the_manifest_is_as_documented(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["albert_jax"])
    assert manifest["tokenizer"] == TOKENIZER
    entry = manifest["tensors"][BIAS]
    # CRC-32C of 16 zero bytes, by a bitwise loop over the Castagnoli polynomial.
    crc = 0xFFFFFFFF
    for _ in range(8 * 16):
        crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    assert entry == {"shape": [8], "dtype": "bfloat16", "crc32c": f"{crc ^ 0xFFFFFFFF:08x}"}
    out = subprocess.run(
        ["sha256sum", exported / "spiece.model"], capture_output=True, text=True, check=True
    )
    assert manifest["sha256"]["spiece.model"] == out.stdout.split()[0]


def test_a_model_may_have_no_vocabulary(tmp_path: Path) -> None:
    path = export(tmp_path / "model", vocab=None)
    assert load_model(path).tokenizer["path"] is None
    assert not (path / "spiece.model").exists()


def test_parameters_on_several_devices_are_exported_once(tmp_path: Path) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert_is(export(tmp_path / "model", params=jax.device_put(params(), everywhere)))


# -------------------------------------------------------------------------------------- destination


def test_an_existing_model_is_replaced_and_nothing_is_left_beside_it(model: Path) -> None:
    export(model, seed=1)
    assert_is(model, seed=1)
    assert {p.name for p in model.parent.iterdir()} == {"model", "vocabulary"}


def test_a_fine_tuned_model_is_replaced_by_another_fine_tuned_one_only(tmp_path: Path) -> None:
    model, head = tmp_path / "model", {"kind": "classification", "labels": None}
    arrays = nest(made_up(parts=("pooler",), head="classification"))
    export(model, params=arrays, head=head)
    linked = tmp_path / "best"
    linked.symlink_to("model")
    for path in (model, linked):
        with pytest.raises(UserError, match=f"{path} is a fine-tuned model, which would be lost"):
            export(path)
    assert load_model(model).manifest["head"]["kind"] == "classification"
    export(model, params=arrays, head=head)


@pytest.mark.parametrize("kind", ["file", "full folder", "token store"])
def test_anything_else_in_the_way_stays_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dest"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / ("manifest.json" if kind == "token store" else "notes")).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"is no model directory|is a file, not a directory"):
        check_destination(path)
    with pytest.raises(UserError, match=r"is no model directory|is a file, not a directory"):
        export(path)
    (tmp_path / "vocabulary").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_exported_into_a_model(model: Path) -> None:
    for path in (model / "new", model / "params" / "deep" / "new"):
        with pytest.raises(UserError, match=f"new lies in the model directory {model}; give a"):
            export(path, vocab=model / "spiece.model")
        with pytest.raises(UserError, match="lies in the model directory"):
            check_export_destination(path, "hf")
    assert_is(model)
    check_destination(model)  # which still can be replaced


def test_an_empty_folder_and_a_path_with_missing_parents_will_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_is(export(tmp_path / "empty"))
    assert_is(export(tmp_path / "a" / "b", vocab=tmp_path / "vocabulary"))


@pytest.mark.parametrize(
    "where", ["_write_arrays", "shutil.copyfile", "array_table", "Path.write_text"]
)
def test_an_export_that_fails_leaves_the_model_that_was_there(model: Path, where: str) -> None:
    failing = mock.patch(
        f"albert_jax.checkpoint.model_export.{where}", side_effect=OSError(28, "No space left")
    )
    with failing, pytest.raises(UserError, match=r"NOT written: disk full, .* B free at"):
        export(model, seed=1, config=MODELS["large-v2"])
    assert_is(model)
    assert not list(model.parent.glob(".model.*"))


def test_a_bug_in_an_export_is_no_users_mistake(model: Path) -> None:
    failing = mock.patch(
        "albert_jax.checkpoint.model_export._write_arrays", side_effect=TypeError("a bug")
    )
    with failing, pytest.raises(TypeError, match="a bug"):
        export(model, seed=1)
    assert_is(model)
    assert not list(model.parent.glob(".model.*"))


def test_an_export_that_fails_at_its_last_rename_puts_the_model_back(model: Path) -> None:
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    cannot_exchange = mock.patch("albert_jax.utils.atomic._exchange", return_value=False)
    failing = mock.patch.object(Path, "rename", fail_once)
    with cannot_exchange, failing, pytest.raises(UserError, match="Input/output"):
        export(model, seed=1)
    assert_is(model)
    assert not list(model.parent.glob(".model.*"))


def test_names_with_special_characters_and_relative_paths_will_do(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_is(export(Path("a%20b ?#é")))
    assert_is(Path("a%20b ?#é"))


def test_an_export_killed_between_its_renames_is_made_good_by_the_next(model: Path) -> None:
    model.rename(model.with_name(".model.17-89abcdef.old"))
    model.with_name(".model.17-0123abcd.new").mkdir()
    with pytest.raises(UserError, match="NOT written"):
        export(model, vocab=model / "nowhere")
    assert_is(model)
    export(model, seed=1)
    assert_is(model, seed=1)
    assert not list(model.parent.glob(".model.*"))


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"NOT written: FileNotFoundError: .*/nowhere/spiece.model"):
        export(tmp_path / "model", vocab=tmp_path / "nowhere" / "spiece.model")
    assert not list(tmp_path.glob("*model*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk", "64k") as path:
        yield path


@pytest.mark.parametrize("arrays", [9, 40])
def test_a_full_disk_is_said_in_one_line(small_disk: Path, capfd: Any, arrays: int) -> None:
    """64 kB hold 9 arrays of 4 kB, but not with what orbax adds; 40 do not fit by themselves."""
    big = {str(n): np.random.default_rng(n).random(500) for n in range(arrays)}
    told = rf"NOT written: disk full, [\d,]+ B free at {small_disk} for {4 * arrays},000 B"
    with pytest.raises(UserError, match=told):
        export(small_disk / "model", params=big)
    assert {p.name for p in small_disk.iterdir()} == {"vocabulary"}
    assert capfd.readouterr().err == ""


def test_a_model_directory_with_files_of_the_users_in_it_is_not_replaced(model: Path) -> None:
    (model / "notes.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"with other files in it \(notes.txt\), which would be lost"
    ):
        export(model, seed=1)
    assert_is(model)
    assert (model / "notes.txt").read_text() == "mine"


# --------------------------------------------------------------------------------------- not finite


def with_value(value: float, count: int) -> dict[str, Any]:
    """Parameters of which `count` arrays have one such number, in their last place."""
    arrays = {name: np.array(array) for name, array in named_leaves(params()).items()}
    for name in sorted(arrays)[:count]:
        arrays[name].reshape(-1)[-1] = value
    return nest(arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_neither_written_nor_loaded(
    tmp_path: Path, value: float
) -> None:
    bad, names = with_value(value, 11), sorted(named_leaves(params()))
    named = f"in 11 of {len(names)} arrays ({', '.join(names[:10])}, and 1 more)"
    with pytest.raises(UserError, match=re.escape(f"NaN or infinities {named}")) as caught:
        export(tmp_path / "model", params=bad)
    assert "NOT written" in str(caught.value)
    assert not (tmp_path / "model").exists()
    with mock.patch("albert_jax.checkpoint.model_export.require_finite"):
        export(tmp_path / "model", params=bad)
    with pytest.raises(UserError, match=re.escape(f"hold NaN or infinities {named}")):
        load_model(tmp_path / "model")
    loaded = named_leaves(load_model(tmp_path / "model", check_values=False).params)
    assert sum(not np.isfinite(x.astype(np.float32)).all() for x in loaded.values()) == 11


def test_an_optimizer_that_is_not_finite_is_neither_written_nor_loaded(tmp_path: Path) -> None:
    slots = {"adam_m": with_value(np.nan, 1), "adam_v": params()}
    told = r"in 1 of \d+ arrays \(adam_m/embeddings/LayerNorm/bias\)"
    with pytest.raises(UserError, match=rf"NOT written: .* {told}"):
        export(tmp_path / "model", optimizer=slots)
    with mock.patch("albert_jax.checkpoint.model_export.require_finite"):
        export(tmp_path / "model", optimizer=slots)
    assert_is(tmp_path / "model")
    with pytest.raises(UserError, match=rf"the optimizer's slots of .* {told}"):
        load_optimizer(tmp_path / "model")


def test_every_number_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("albert_jax.checkpoint.integrity._BLOCK", 4)
    arrays = {}
    for size in (0, 1, 4, 5, 9):
        for place in range(size):
            arrays[f"{size}/{place}"] = np.zeros(size, np.float16)
            arrays[f"{size}/{place}"][place] = np.nan
        arrays[f"{size}/sound"] = np.full((1, size), np.finfo(np.float32).max)
    assert not_finite(arrays) == [name for name in arrays if "sound" not in name]


# ------------------------------------------------------------------------------------ forged claims


def test_parameters_of_another_architecture_are_named(model: Path) -> None:
    values = json.loads((model / "albert_config.json").read_text())
    (model / "albert_config.json").write_text(json.dumps(values | {"vocab_size": 51}))
    forge(model, lambda manifest: None)
    told = rf"not those of its albert_config.json: {WORDS} is \[50, 4\], not \[51, 4\]"
    with pytest.raises(UserError, match=told):
        load_model(model)
    assert load_model(model, check_values=False).config.vocab_size == 51


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.pop("tensors"), "missing required field `tensors`"),
        (lambda m: m.pop("sha256"), "missing required field `sha256`"),
        (lambda m: m["sha256"].clear(), "no digest of albert_config.json"),
        (lambda m: m["sha256"].update({"../../etc/passwd": "0"}), "Invalid enum value"),
        (lambda m: m.update(format_version="1"), r"Expected `int`, got `str`"),
        (lambda m: m.update(format_version=0), r">= 1"),
        (lambda m: m.update(format_version=1e308), r"Expected `int`"),
        (lambda m: m.update(tokenizer=None), r"\$.tokenizer"),
        (lambda m: m["tokenizer"].update(mode=5), r"got `int` - at `\$.tokenizer.mode"),
        (lambda m: m["tokenizer"].update(do_lower_case="no"), r"\$.tokenizer.do_lower_case"),
        (lambda m: m.update(provenance=[]), r"\$.provenance"),
        (lambda m: m.update(head=3), r"\$.head"),
        (lambda m: m.update(head={"kind": "x", "labels": None}), r"\$.head.kind"),
        (lambda m: m.update(head={"kind": "span_v1"}), "required field `labels`"),
        (lambda m: m.update(head={"kind": "span_v1", "labels": [1]}), r"\$.head.labels\[0\]"),
        (lambda m: m["tensors"][BIAS].update(shape=[-8]), r"\.shape\[0\]"),
        (lambda m: m["tensors"][BIAS].update(shape=8), r"\.shape"),
        (lambda m: m["tensors"][BIAS].update(shape=[10**400]), f"{BIAS} is .10000000000"),
        (lambda m: m["tensors"][BIAS].update(dtype="<U9"), r"\.dtype"),
        (lambda m: m["tensors"].update({"../x": m["tensors"][BIAS]}), "can be named '../x'"),
        (lambda m: m["tensors"].update({"a\udc80": m["tensors"][BIAS]}), "can be named"),
        (lambda m: m["tensors"].update({"x": None}), r"\$.tensors"),
        (lambda m: m["tensors"].update(pooler=m["tensors"][BIAS]), "pooler is unused"),
        (lambda m: m["tensors"].clear(), f"{WORDS} is missing"),
        (lambda m: m.update(inventory="all"), r"\$.inventory"),
        (lambda m: m.update(optimizer=1), r"\$.optimizer"),
    ],
)
def test_a_manifest_that_was_changed_and_sealed_anew_is_one_sentence(
    model: Path, change: Any, told: str
) -> None:
    forge(model, change)
    with pytest.raises(UserError, match=told) as caught:
        load_model(model)
    assert str(model) in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("history", [5, ["x"], [{"step": 1}]])
def test_a_history_that_is_none_is_one_sentence(model: Path, history: Any) -> None:
    forge(model, lambda m: m["provenance"].update(history=history))
    with pytest.raises(
        UserError, match=r"manifest.json is damaged .*history.*; copy or convert it"
    ):
        describe_path(model)


def test_absurd_sizes_of_a_sealed_configuration_are_one_sentence(model: Path) -> None:
    kept = json.loads((model / "albert_config.json").read_text())
    for values, told in (
        ({"num_hidden_layers": 50_000_000}, "num_hidden_layers 50000000 must be at most 1,000"),
        ({"vocab_size": 2**31 - 1}, "vocab_size 2147483647 must be at most"),
        ({"layer_norm_eps": 1e30}, "layer_norm_eps 1e.30 must be at most 1"),
        ({"hidden_size": "8"}, "Expected `int`, got `str`"),
        ({"hidden_act": None}, "Expected `str`, got `null`"),
    ):
        (model / "albert_config.json").write_text(json.dumps(kept | values))
        forge(model, lambda manifest: None)
        for check_values in (True, False):
            with pytest.raises(UserError, match=told) as caught:
                load_model(model, check_values=check_values)
            assert "albert_config.json" in str(caught.value)


@pytest.mark.parametrize("content", ["5", "[5]", '"crc32c"', "{}", '{"crc32c": {}}', "[" * 10**5])
def test_a_manifest_that_is_another_document_is_damaged(model: Path, content: str) -> None:
    (model / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"damaged or was edited \(manifest.json: "):
        load_model(model)


def test_labels_that_are_not_as_many_as_outputs_are_said(tmp_path: Path) -> None:
    arrays = made_up(parts=("pooler",), head="classification")
    for labels in (["a", "b", "c"], None):
        head = {"kind": "classification", "labels": labels}
        load_model(export(tmp_path / "model", params=nest(arrays), head=head))
    head = {"kind": "classification", "labels": ["a", "b"]}
    with pytest.raises(UserError, match="2 labels for a head of 3 outputs"):
        load_model(export(tmp_path / "model", params=nest(arrays), head=head))
    with pytest.raises(UserError, match="head/output_bias is missing"):
        load_model(export(tmp_path / "model", head=head))


def zarray(model: Path, name: str, **changes: Any) -> None:
    """Changes an array's metadata inside orbax's files."""
    base = {"driver": "file", "path": f"{model}/params/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    key = f"{name.replace('/', '.')}/.zarray"
    values = json.loads(store.read(key).result().value)
    store.write(key, json.dumps(values | changes).encode()).result()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shape": [1 << 40], "chunks": [1 << 40]}, r"float32\[1099511627776\] where float32\[4\]"),
        ({"shape": [1 << 40]}, r"float32\[1099511627776\] where float32\[4\]"),
        ({"chunks": [1 << 40]}, r"float32\[4\] in chunks of \[1099511627776\] where"),
        ({"dtype": "<f8"}, r"float64\[4\] where float32\[4\]"),
        ({"compressor": {"id": "zlib", "level": 1}}, "the codec .*zlib.* where zstd"),
        ({"shape": [2, 2], "chunks": [2, 2]}, r"float32\[2, 2\] where"),
    ],
)
def test_what_an_array_claims_to_be_is_compared_before_it_is_made(
    model: Path, changes: dict[str, Any], told: str
) -> None:
    zarray(model, "embeddings/LayerNorm/bias", **changes)
    with pytest.raises(UserError, match=rf"\(embeddings/LayerNorm/bias: {told}"):
        load_model(model)


def test_arrays_out_of_proportion_to_their_files_are_refused(model: Path) -> None:
    """All claims agree with each other, and most of the numbers are not there."""
    rows = 1 << 24
    values = json.loads((model / "albert_config.json").read_text())
    (model / "albert_config.json").write_text(json.dumps(values | {"vocab_size": rows}))

    def change(manifest: dict[str, Any]) -> None:
        manifest["tensors"][WORDS]["shape"][0] = rows
        manifest["tensors"]["predictions/output_bias"]["shape"][0] = rows

    forge(model, change)
    zarray(model, WORDS, shape=[rows, 4])
    zarray(model, "predictions/output_bias", shape=[rows])
    with pytest.raises(UserError, match=r"[\d,]+ bytes of arrays in [\d,]+ bytes of files"):
        load_model(model)


def test_arrays_in_many_more_chunks_than_the_files_have_room_for_are_refused(
    model: Path,
) -> None:
    zarray(model, WORDS, chunks=[1, 1])
    with (
        mock.patch("albert_jax.checkpoint.integrity._BYTES_A_CHUNK", 1000),
        pytest.raises(UserError, match="chunks of arrays in"),
    ):
        load_model(model)


# ------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("kind", ["missing", "file", "token store"])
def test_what_is_no_model_directory_is_said_to_be_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "path"
    if kind == "file":
        path.write_text("")
    elif kind == "token store":
        path.mkdir()
        (path / "manifest.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"(is no model directory|does not exist).*albert-jax convert"
    ):
        load_model(path)


@pytest.mark.parametrize(("flips", "cuts"), [(6, 1), pytest.param(25, 4, marks=pytest.mark.slow)])
def test_no_damage_passes_in_silence(exported: Path, tmp_path: Path, flips: int, cuts: int) -> None:
    """Each file harmed in turn: the model loads as it was exported, or UserError."""
    rng = np.random.default_rng(0)
    found: dict[str, int] = {}
    for file in sorted(p.relative_to(exported) for p in exported.rglob("*") if p.is_file()):
        path = shutil.copytree(exported, tmp_path / "model", dirs_exist_ok=True)
        content = (path / file).read_bytes()
        harmed: list[bytes | None] = [content[:n] for n in rng.integers(len(content), size=cuts)]
        for bit in rng.integers(8 * len(content), size=flips):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            harmed.append(bytes(flipped))
        found[str(file)] = 0
        for harm in [*harmed, None]:
            (path / file).unlink()
            if harm is not None:
                (path / file).write_bytes(harm)
            with contextlib.suppress(UserError):
                found[str(file)] += 1
                assert_is(path)
                found[str(file)] -= 1
            (path / file).write_bytes(content)
        shutil.rmtree(path)
    print(f"{sum(found.values())} of {len(found) * (flips + cuts + 1)} harms found:", found)
    for name in ("manifest.json", "albert_config.json", "spiece.model"):
        assert found[name] == flips + cuts + 1, name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda m: (m / "spiece.model").write_bytes(b"another"),
            r"spiece.model: SHA-256 \w+ where",
        ),
        (lambda m: (m / "spiece.model").unlink(), "spiece.model: missing"),
        (lambda m: shutil.rmtree(m / "params"), "embeddings/LayerNorm/bias: NOT_FOUND"),
        (
            lambda m: (m / "albert_config.json").write_text(
                (m / "albert_config.json").read_text().replace("12", "13", 1)
            ),
            "albert_config.json: SHA-256",
        ),
    ],
)
def test_what_is_damaged_is_named(model: Path, change: Any, told: str) -> None:
    change(model)
    with pytest.raises(UserError, match=rf"is damaged or was edited \({told}"):
        load_model(model)


def test_weights_of_another_export_are_named_by_tensor(model: Path, tmp_path: Path) -> None:
    other = export(tmp_path / "other", seed=1)
    shutil.rmtree(model / "params")
    shutil.copytree(other / "params", model / "params")
    with pytest.raises(
        UserError, match=rf"{WORDS}: crc32c \w{{8}} where crc32c \w{{8}} was written"
    ):
        load_model(model)


def test_a_newer_format_is_not_taken_for_damage(tmp_path: Path) -> None:
    with mock.patch("albert_jax.checkpoint.model_export.format_version", return_value=99):
        path = export(tmp_path / "model")
    with pytest.raises(UserError, match="has format 99, newer than 2; update albert_jax"):
        load_model(path)
