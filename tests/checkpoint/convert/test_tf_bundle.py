# SPDX-License-Identifier: Apache-2.0
"""TensorFlow's checkpoints: read as it reads them, written as it writes them, damage named.

tests/data/tf_bundle was written by TensorFlow (tf_bundle_peer.py). Tests that run TensorFlow itself
need it importable here or the interpreter of an environment with it in ALBERT_JAX_TF_PYTHON.
"""

import hashlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np
import pytest

from albert_jax.checkpoint.convert.sstable import encode_table, encode_varint, mask_crc, parse_table
from albert_jax.checkpoint.convert.tf_bundle import CheckpointReader, write_checkpoint
from albert_jax.utils.errors import UserError
from tests.helpers import tf_bundle_peer
from tests.helpers.golden import CHECKPOINTS, arrays
from tests.helpers.paths import DATA
from tests.helpers.tf_bundle_peer import every_dtype, many
from tests.helpers.tf_checkpoints import read_checkpoint, read_tensors

FILES = DATA / "tf_bundle"
OURS = {  # what TensorFlow is given to read: tensors, shards
    "ours": (every_dtype(), 1),
    "ours_in_shards": (every_dtype(), 3),
    "ours_of_many": (many(), 2),
}


def plain(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    """Tensors as what == compares bit for bit: (dtype, shape, bytes or list of bytes)."""
    return {
        name: (str(t.dtype), t.shape, t.reshape(-1).tolist() if t.dtype == object else t.tobytes())
        for name, t in tensors.items()
    }


def files(prefix: Path) -> dict[str, bytes]:
    """The bytes of a checkpoint's index and shards, by what follows the prefix in their names."""
    found = prefix.parent.glob(f"{prefix.name}.[di]*")
    return {p.name.removeprefix(prefix.name): p.read_bytes() for p in found}


@contextmanager
def traced(limit: float):
    """Fails if what is run inside takes a second of CPU or has more than `limit` bytes at once."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 1


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory, original_checkpoint) -> Path:
    """What TensorFlow wrote, and read.pickle: what it read of ours and of the original's."""
    python = os.environ.get("ALBERT_JAX_TF_PYTHON")
    if not python and importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not here: ALBERT_JAX_TF_PYTHON can name a Python that has it")
    folder = tmp_path_factory.mktemp("tensorflow")
    prefixes = {name: folder / name for name in OURS}
    for name, (tensors, shards) in OURS.items():
        write_checkpoint(prefixes[name], tensors, shards=shards)
    for model in CHECKPOINTS:
        with suppress(pytest.skip.Exception):
            prefixes[model] = original_checkpoint(model) / "model.ckpt-best"
    arguments = [folder, *(f"{name}={prefix}" for name, prefix in prefixes.items())]
    command = [python or sys.executable, tf_bundle_peer.__file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def sound(tmp_path):
    """A checkpoint of two shards that tests may damage."""
    write_checkpoint(tmp_path / "model.ckpt", every_dtype(), shards=2)
    return tmp_path / "model.ckpt"


# Reading


def test_every_dtype_reads_as_tensorflow_wrote_it():
    reader = CheckpointReader.open(FILES / "every_dtype")
    expected = every_dtype()
    assert reader.names() == sorted(expected, key=str.encode)
    assert plain(read_tensors(reader)) == plain(expected)
    assert plain({n: reader.read(n, verify=False) for n in reader.names()}) == plain(expected)
    for name, tensor in expected.items():
        assert reader.shape(name) == tensor.shape
        assert reader.dtype(name) == tensor.dtype
    assert reader.dtype("dtype/bfloat16") == ml_dtypes.bfloat16


def test_values_are_aligned_and_read_only():
    for name, tensor in read_checkpoint(FILES / "every_dtype").items():
        assert tensor.flags.aligned, name
        assert tensor.dtype == object or not tensor.flags.writeable, name


def test_object_graph_of_tensorflow_2_can_be_listed_and_skipped():
    reader = CheckpointReader.open(FILES / "object_graph")
    names = [n for n in reader.names() if reader.dtype(n).kind != "O"]
    assert names == ["kernel/.ATTRIBUTES/VARIABLE_VALUE", "step/.ATTRIBUTES/VARIABLE_VALUE"]
    assert [reader.read(n).tolist() for n in names] == [[[1.0, 2.0]], 7]
    assert b"kernel" in reader.read("_CHECKPOINTABLE_OBJECT_GRAPH").item()


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_original_checkpoint_has_the_original_variables(original_checkpoint, model):
    reader = CheckpointReader.open(original_checkpoint(model))
    tensors = read_tensors(reader)
    assert tensors["global_step"].dtype == np.int64
    assert tensors["global_step"] == 8
    variables = [n for n in tensors if not n.endswith(("/adam_m", "/adam_v", "global_step"))]
    assert len(variables) == {"tiny": 32, "tiny_inner2": 48}[model]
    for name in variables:
        for slot in ("adam_m", "adam_v"):
            assert reader.shape(f"{name}/{slot}") == reader.shape(name), name
            assert reader.dtype(f"{name}/{slot}") == np.float32, name
    # What TensorFlow itself looked up with these values when it ran the model.
    forward = arrays(f"{model}/forward")
    looked_up = tensors["bert/embeddings/word_embeddings"][forward["input_ids"]]
    np.testing.assert_array_equal(looked_up, forward["word_embedding_output"])
    logits = forward["pooled_output"] @ tensors["cls/seq_relationship/output_weights"].T
    logits += tensors["cls/seq_relationship/output_bias"]
    np.testing.assert_allclose(logits, forward["sop_logits"], rtol=0, atol=1e-5)


def test_tiny_checkpoint_has_the_shapes_of_its_configuration():
    reader = CheckpointReader.open(CHECKPOINTS["tiny"] / "model.ckpt-best")
    block = "bert/encoder/transformer/group_0/inner_group_0"
    assert {
        "bert/embeddings/word_embeddings": (1000, 16),
        "bert/embeddings/position_embeddings": (64, 16),
        "bert/embeddings/token_type_embeddings": (2, 16),
        "bert/encoder/embedding_hidden_mapping_in/kernel": (16, 64),
        f"{block}/attention_1/self/query/kernel": (64, 64),
        f"{block}/ffn_1/intermediate/dense/kernel": (64, 256),
        f"{block}/ffn_1/intermediate/output/dense/kernel": (256, 64),
        f"{block}/LayerNorm_1/gamma": (64,),
        "cls/predictions/output_bias": (1000,),
        "cls/seq_relationship/output_weights": (2, 64),
        "global_step": (),
    }.items() <= {name: reader.shape(name) for name in reader.names()}.items()


def test_all_ways_to_name_a_checkpoint_open_the_same_one(sound, tmp_path):
    paths = [sound, str(sound), tmp_path, f"{sound}.index", f"{sound}.data-00001-of-00002"]
    module = tmp_path / "module"
    (module / "variables").mkdir(parents=True)
    for file in tmp_path.glob("model.ckpt.*"):
        shutil.copy(file, module / "variables" / file.name.replace("model.ckpt", "variables"))
    paths += [module, module / "variables", module / "variables" / "variables"]
    for path in paths:
        assert plain(read_checkpoint(path)) == plain(every_dtype()), path


def test_state_file_chooses_among_several_checkpoints(sound, tmp_path):
    write_checkpoint(tmp_path / "model.ckpt-20", {"x": np.arange(3)})
    with pytest.raises(UserError, match=r"has model\.ckpt-20\.index, model\.ckpt\.index; give"):
        CheckpointReader.open(tmp_path)
    state = 'model_checkpoint_path: "/elsewhere/model.ckpt-20"\nall_model_checkpoint_paths: "y"\n'
    (tmp_path / "checkpoint").write_text(state)
    assert CheckpointReader.open(tmp_path).names() == ["x"]
    (tmp_path / "checkpoint").write_text("")
    with pytest.raises(UserError, match="names no latest checkpoint"):
        CheckpointReader.open(tmp_path)


def test_reading_a_large_tensor_copies_nothing(tmp_path):
    large = np.arange(2**22, dtype=np.float32)
    write_checkpoint(tmp_path / "large", {"large": large})
    with traced(limit=2**20):
        value = CheckpointReader.open(tmp_path / "large").read("large")
    np.testing.assert_array_equal(value, large)


# Writing


def test_files_equal_tensorflows_byte_for_byte(tmp_path):
    write_checkpoint(tmp_path / "every_dtype", every_dtype())
    assert files(tmp_path / "every_dtype") == files(FILES / "every_dtype")


def digests(prefix: Path) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in files(prefix).items()}


# SHA-256 of TensorFlow's files, whose 566 kB of index are three blocks.
MANY = {".index": "00c098d6c8f2f0c6", ".data-00000-of-00001": "92d95a1bf25d5724"}


def test_index_of_many_blocks_equals_tensorflows(tmp_path):
    write_checkpoint(tmp_path / "many", many())
    assert digests(tmp_path / "many") == MANY
    assert plain(read_checkpoint(tmp_path / "many")) == plain(many())


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_original_checkpoint_comes_back_byte_for_byte(original_checkpoint, model, tmp_path):
    original = original_checkpoint(model) / "model.ckpt-best"
    write_checkpoint(tmp_path / original.name, read_checkpoint(original))
    assert files(tmp_path / original.name) == files(original)


@pytest.mark.parametrize("shards", [1, 2, 5, 100])
def test_any_number_of_shards_reads_back(tmp_path, shards):
    write_checkpoint(tmp_path / "c", every_dtype(), shards=shards)
    assert len(list(tmp_path.glob(f"c.data-*-of-{shards:05d}"))) == shards
    assert plain(read_checkpoint(tmp_path / "c")) == plain(every_dtype())
    assert len(list(tmp_path.iterdir())) == shards + 1  # nothing temporary is left


def test_odd_memory_layouts_are_written_by_value(tmp_path):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    given = {"big": matrix.astype(">f4"), "cut": matrix[:, ::2], "t": matrix.T, "s": np.array("é")}
    write_checkpoint(tmp_path / "c", given)
    found = read_checkpoint(tmp_path / "c")
    assert found.pop("s").item() == "é".encode()
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, given[name])


def test_a_checkpoint_can_be_replaced_while_its_values_are_in_use(sound):
    values = read_checkpoint(sound)
    write_checkpoint(sound, {n: v for n, v in values.items() if n != "wide"}, shards=2)
    expected = every_dtype()
    assert plain(values) == plain(expected)
    del expected["wide"]
    assert plain(read_checkpoint(sound)) == plain(expected)


def test_failing_half_way_leaves_no_mixture_of_two_checkpoints(sound, monkeypatch):
    replace = Path.replace

    def failing(self, target):
        if "00001-of" in target.name:
            raise OSError(28, "No space left on device", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UserError, match="No space left on device"):
        write_checkpoint(sound, {"a": np.zeros(3), "b": np.ones(3)}, shards=2)
    assert sorted(files(sound)) == [".data-00000-of-00002", ".data-00001-of-00002"]
    assert not list(sound.parent.glob(".*"))


def test_writer_names_what_tensorflow_cannot_hold(tmp_path, sound):
    before = files(sound)
    for tensors, message in [
        ({"x": np.zeros(2, ml_dtypes.float8_e4m3fn)}, "x has dtype float8_e4m3fn; a checkpoint"),
        ({"x": np.array([1, None])}, "x has dtype object but holds other things"),
        ({"x": np.array("2020", "M8[D]")}, "x has dtype datetime64"),
        ({"": np.zeros(2)}, "cannot be named ''"),
    ]:
        with pytest.raises(UserError, match=message):
            write_checkpoint(sound, {"a": np.zeros(3), **tensors})
    with pytest.raises(UserError, match="shards 0"):
        write_checkpoint(sound, {}, shards=0)
    with pytest.raises(UserError, match=r"cannot be written"):
        write_checkpoint(tmp_path / "model.ckpt.index" / "c", {})
    assert files(sound) == before
    assert not list(tmp_path.glob(".*"))


# TensorFlow itself


def test_tensorflow_writes_what_the_repository_holds(tensorflow):
    for name in ("every_dtype", "sliced"):
        assert files(tensorflow / name) == files(FILES / name)


def test_tensorflow_writes_many_blocks_as_the_digests_say(tensorflow):
    assert digests(tensorflow / "many") == MANY


def test_shards_of_tensorflow_are_read(tensorflow):
    assert len(files(tensorflow / "sharded")) == 3
    assert plain(read_checkpoint(tensorflow / "sharded")) == plain(every_dtype())


@pytest.mark.parametrize("name", OURS)
def test_tensorflow_reads_what_is_written_here(tensorflow, name):
    found = pickle.loads((tensorflow / "read.pickle").read_bytes())
    assert found[name] == plain(OURS[name][0])


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_original_checkpoint_reads_as_tensorflow_reads_it(original_checkpoint, tensorflow, model):
    reader = CheckpointReader.open(original_checkpoint(model))
    expected = pickle.loads((tensorflow / "read.pickle").read_bytes())
    assert plain(read_tensors(reader)) == expected[model]


# Damage


def test_flipped_byte_names_its_tensor_and_spares_the_others(sound):
    shard = sound.with_name("model.ckpt.data-00000-of-00002")
    data = bytearray(shard.read_bytes())
    at = data.index(every_dtype()["dtype/int16"].tobytes())
    data[at + 3] ^= 1
    shard.write_bytes(data)
    reader = CheckpointReader.open(sound)
    damaged = {}
    for name in reader.names():
        try:
            reader.read(name)
        except UserError as error:
            damaged[name] = str(error)
    assert list(damaged) == ["dtype/int16"]
    assert f"{shard} is damaged in dtype/int16 (bytes {at} to {at + 12}: " in damaged["dtype/int16"]


def test_cut_missing_and_foreign_files_are_told_apart(sound, tmp_path):
    shard = sound.with_name("model.ckpt.data-00001-of-00002")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"{shard} has {len(data) - 1} bytes, but wide ends at"):
        CheckpointReader.open(sound)
    shard.write_bytes(b"")
    with pytest.raises(UserError, match=f"{shard} has 0 bytes"):
        CheckpointReader.open(sound)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard} cannot be read: No such file"):
        CheckpointReader.open(sound)
    with pytest.raises(UserError, match=r"absent\.index'$"):
        CheckpointReader.open(tmp_path / "absent")
    with pytest.raises(UserError, match="has none; give the checkpoint's prefix"):
        CheckpointReader.open(tmp_path / "..")
    Path(f"{sound}.index").write_bytes(Path(__file__).read_bytes())
    with pytest.raises(UserError, match=r"model\.ckpt\.index cannot be used: its \d+ bytes do not"):
        CheckpointReader.open(sound)


def test_index_of_another_checkpoint_is_refused(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write_checkpoint(one, {"kernel": np.arange(8), "step": np.array(1)})
    write_checkpoint(other, {"kernel": np.arange(8), "step": np.array(2)})
    shutil.copy(f"{other}.index", f"{one}.index")
    reader = CheckpointReader.open(one)
    reader.read("kernel")
    with pytest.raises(UserError, match=r"damaged in step .* or of another checkpoint"):
        read_tensors(reader)


def test_absent_and_partitioned_tensors_are_refused_by_name():
    reader = CheckpointReader.open(FILES / "sliced")
    assert reader.names() == ["partitioned"]
    assert reader.shape("partitioned") == (4, 3)
    with pytest.raises(UserError, match="partitioned is a partitioned variable"):
        reader.read("partitioned")
    with pytest.raises(UserError, match="has no tensor x; it has 1 others"):
        reader.shape("x")


def entry(dtype=1, dims=(2,), shard=0, offset=0, size=8) -> bytes:
    """A BundleEntryProto, negative and huge numbers included."""

    def fields(*numbers: tuple[int, int]) -> bytes:
        return b"".join(encode_varint(t) + encode_varint(n % 2**64) for t, n in numbers)

    dim = [fields((0x08, d)) for d in dims]
    shape = b"".join(b"\x12" + encode_varint(len(d)) + d for d in dim)
    first = fields((0x08, dtype), (0x12, len(shape)))
    return first + shape + fields((0x18, shard), (0x20, offset), (0x28, size))


HEADER = b"\x08\x01\x1a\x02\x08\x01"
FORGERIES = {
    "endianness": ([(b"", HEADER + b"\x10\x01")], "not supported: it was written on a big-endian"),
    "version": ([(b"", b"\x08\x01\x1a\x02\x10\x02")], "needs a reader of version 2"),
    "no header": ([(b"a", entry())], "has no header"),
    "empty table": ([], "has no header"),
    "shape and size": ([(b"", HEADER), (b"a", entry(dims=(3,)))], "8 bytes for the shape"),
    "negative": ([(b"", HEADER), (b"a", entry(dims=(-2,), size=-8))], "ends at byte|for the shape"),
    "huge": ([(b"", HEADER), (b"a", entry(dims=(2**40,), size=2**42))], "ends at byte"),
    "hidden by 0": ([(b"", HEADER), (b"a", entry(dims=(0, 2**62), size=0))], "the shape"),
    "rank": ([(b"", HEADER), (b"a", entry(dims=(1,) * 40, size=4))], "40 dimensions"),
    "unknown rank": ([(b"", HEADER), (b"a", b"\x08\x01\x12\x02\x18\x01")], "unknown rank"),
    "shard": ([(b"", HEADER), (b"a", entry(shard=1))], "shard 1 of 1"),
    "strings": ([(b"", HEADER), (b"a", entry(dtype=7, dims=(2**50,)))], "8 bytes for the shape"),
    "overlap": ([(b"", HEADER), (b"a", entry()), (b"b", entry(offset=4))], "lays b over a"),
    "not UTF-8": ([(b"", HEADER), (b"\xff", entry())], "is not UTF-8"),
    "wire type": ([(b"", HEADER), (b"a", entry() + b"\x0f")], "no such protobuf message"),
    "endless number": ([(b"", HEADER), (b"a", b"\x08" + b"\xff" * 11)], "no such protobuf message"),
    "cut field": ([(b"", HEADER), (b"a", b"\x12\x05ab")], "no such protobuf message"),
    "order": ([(b"", HEADER), (b"b", entry()), (b"b", entry())], "not in order"),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_index_with_right_checksums_and_wrong_contents_is_refused(kind, tmp_path):
    items, message = FORGERIES[kind]
    (tmp_path / "c.data-00000-of-00001").write_bytes(bytes(range(16)))
    (tmp_path / "c.index").write_bytes(encode_table(items))
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "c")


def seal(index: bytes, size: int) -> bytes:
    """An index with the right CRC for its first block, of `size` bytes."""
    crc = mask_crc(google_crc32c.value(index[: size + 1]))
    return index[: size + 1] + crc.to_bytes(4, "little") + index[size + 5 :]


def test_compressed_index_is_refused_as_such(sound):
    index = bytearray(Path(f"{sound}.index").read_bytes())
    size = first_block(index)
    index[size] = 1
    Path(f"{sound}.index").write_bytes(seal(bytes(index), size))
    with pytest.raises(UserError, match=r"not supported: the block at byte 0 is compressed"):
        CheckpointReader.open(sound)


def test_names_cannot_unfold_beyond_the_files_size(tmp_path):
    # A name of 20 kB and 10,000 that only add two bytes: 200 MB of names in a file of 200 kB.
    value = entry(dims=(0,), size=0)
    block = b"\0\0" + encode_varint(len(HEADER)) + HEADER
    block += b"\0" + encode_varint(20_000) + encode_varint(len(value)) + b"n" * 20_000 + value
    for i in range(10_000):
        block += encode_varint(20_000) + b"\x02" + encode_varint(len(value))
        block += b"%c%c" % divmod(i, 100) + value
    no_entries = bytes(4) + b"\1\0\0\0"  # one restart point, at 0
    block += no_entries
    handle = encode_varint(0) + encode_varint(len(block))
    root = b"\0\1" + encode_varint(len(handle)) + b"z" + handle + no_entries
    index, handles = b"", []
    for content in (block, no_entries, root):
        handles += [len(index), len(content)]
        index += seal(content + bytes(5), len(content))
    footer = b"".join(map(encode_varint, handles[2:])).ljust(40, b"\0")
    (tmp_path / "c.index").write_bytes(index + footer + encode_table([])[-8:])
    with traced(limit=40 * len(index)), pytest.raises(UserError, match="names too long"):
        CheckpointReader.open(tmp_path / "c")


# Fuzzing

# What reading needs on a small file is 20 kB, but pytest's own threads are counted too (2 MB seen).
SLACK = 2**23


def first_block(index: bytes) -> int:
    """The size of the first data block of an index."""
    return next(i for i in range(len(index)) if i > 8 and seal(bytes(index), i) == bytes(index))


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flips a bit, cuts, puts random bytes or a blown-up number, drops or doubles bytes."""
    changed, at = bytearray(data), int(rng.integers(len(data)))
    length = int(rng.integers(1, 9))
    match int(rng.integers(8)):
        case 0 | 1 | 2:
            changed[at] ^= 1 << int(rng.integers(8))
        case 3:
            del changed[at:]
        case 4:
            changed[at : at + length] = rng.bytes(length)
        case 5:
            changed[at : at + length + 1] = b"\xff" * length + b"\x01"
        case 6:
            del changed[at : at + length]
        case 7:
            changed[at:at] = changed[at : at + length]
    return bytes(changed)


def fuzz(prefix: Path, mutations: int, seed: int) -> Counter[str]:
    """Damages one file of a checkpoint at a time; counts what reading then says.

    Fails for a value changed unseen, an exception that is not UserError, more than a second of CPU,
    and more memory than 4 times the checkpoint's size and SLACK.
    """
    rng = np.random.default_rng(seed)
    originals = files(prefix)
    expected = plain(read_checkpoint(prefix))
    limit = 4 * sum(map(len, originals.values())) + SLACK
    counts: Counter[str] = Counter()
    for i in range(mutations):
        suffix = ".index" if i % 2 else sorted(originals)[int(rng.integers(len(originals) - 1))]
        changed = mutate(originals[suffix], rng)
        Path(f"{prefix}{suffix}").write_bytes(changed)
        with traced(limit):
            try:
                found = plain(read_checkpoint(prefix))
                outcome = "harmless" if found == expected else "silent"
            except UserError as error:
                outcome = "refused" if prefix.name in str(error) else "refused without a file"
        counts[outcome] += 1
        Path(f"{prefix}{suffix}").write_bytes(originals[suffix])
    print(f"{prefix.name}, seed {seed}: {counts}")
    assert set(counts) <= {"refused", "harmless"}
    return counts


def test_no_mutation_changes_a_value_unseen(sound):
    assert fuzz(sound, 300, seed=1)["refused"] > 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_mutation_of_ten_thousand_changes_a_value_unseen(sound):
    fuzz(sound, 10_000, seed=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_mutation_of_an_original_checkpoint_goes_unseen(tmp_path):
    for file in CHECKPOINTS["tiny"].glob("model.ckpt-best.[di]*"):
        shutil.copyfile(file, tmp_path / file.name)
    fuzz(tmp_path / "model.ckpt-best", 10_000, seed=3)


def fuzz_forged(prefix: Path, mutations: int, seed: int) -> None:
    """Mutates what the index's CRCs protect and makes them right again: nothing must break."""
    rng = np.random.default_rng(seed)
    index = Path(f"{prefix}.index").read_bytes()
    size, items = first_block(index), list(parse_table(index))
    limit = 4 * sum(map(len, files(prefix).values())) + SLACK
    for i in range(mutations):
        if i % 2:  # a block of the same size
            block = (mutate(index[:size], rng) + bytes(size))[:size]
            changed = seal(block + index[size:], size)
        else:  # the message about one tensor
            chosen = int(rng.integers(len(items)))
            altered = (items[chosen][0], mutate(items[chosen][1], rng))
            changed = encode_table([*items[:chosen], altered, *items[chosen + 1 :]])
        Path(f"{prefix}.index").write_bytes(changed)
        with traced(limit), suppress(UserError):
            read_checkpoint(prefix)


def test_forged_indexes_break_nothing(sound):
    fuzz_forged(sound, 300, seed=4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_forged_indexes_break_nothing(sound):
    fuzz_forged(sound, 10_000, seed=5)
