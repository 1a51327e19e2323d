# SPDX-License-Identifier: Apache-2.0
"""The original's TFRecord shards: read, written byte for byte, and damaged in every way."""

import gzip
import json
import pickle
import shutil
import struct

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.examples import PretrainingSource
from albert_jax.data.loader import KEYS, Draw, batch_at, describe_examples, make_dataset
from albert_jax.data.tfrecord import (
    RecordSource,
    decode_example,
    encode_example,
    read_examples,
    write_records,
)
from albert_jax.utils.errors import UserError
from tests.helpers import original_examples as original
from tests.helpers.compressed import read_compressed

GOLDEN = original.FILES / "first50.tfrecord"


def drawn(count: int, **options):
    source = PretrainingSource(
        original.MemoryStore(original.golden_documents()[:10]),
        ExamplesConfig(**({"max_seq_length": 32} | options)),
        seed=5,
        starts_word=original.golden_starts_word(),
    )
    return [source.draw(index) for index in range(count)]


def assert_same(left, right, keys=KEYS):
    for key in keys:
        assert left[key].dtype == right[key].dtype
        np.testing.assert_array_equal(left[key], right[key])


def test_golden_records_hold_the_originals_instances():
    instances = json.loads(read_compressed(original.FILES / "raw_instances.json"))["seq128"]
    examples = list(read_examples(GOLDEN))
    assert len(examples) == len(instances) == 50
    for example, instance in zip(examples, instances, strict=True):
        for key in ("input_ids", "segment_ids", "masked_lm_positions", "masked_lm_ids"):
            values = instance[key] + [0] * (len(example[key]) - len(instance[key]))
            assert example[key].tolist() == values
        boundary = instance["token_boundary"]
        assert example["token_boundary"].tolist() == boundary + [0] * (128 - len(boundary))
        assert example["input_mask"].sum() == len(instance["tokens"])
        assert example["masked_lm_weights"].sum() == len(instance["masked_lm_ids"])
        assert example["sentence_order_labels"] == instance["is_random_next"]


def test_arrays_have_the_shapes_and_types_of_drawn_examples():
    [ours] = drawn(1, max_seq_length=128)
    theirs = next(read_examples(GOLDEN))
    keys = [*KEYS, "token_boundary"]
    assert {key: (ours[key].shape, ours[key].dtype) for key in keys} == {
        key: (theirs[key].shape, theirs[key].dtype) for key in keys
    }


def test_what_was_read_is_written_byte_for_byte(tmp_path):
    written = tmp_path / "copy.tfrecord"
    assert write_records(written, read_examples(GOLDEN)) == 50
    assert written.read_bytes() == GOLDEN.read_bytes()


def test_examples_may_be_written_over_the_file_that_they_come_from(tmp_path):
    file = tmp_path / "a.tfrecord"
    file.write_bytes(GOLDEN.read_bytes())
    assert write_records(file, read_examples(file)) == 50
    assert file.read_bytes() == GOLDEN.read_bytes()

    def failing():
        yield next(iter(read_examples(GOLDEN)))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_records(file, failing())
    assert file.read_bytes() == GOLDEN.read_bytes()
    with pytest.raises(UserError, match="paths is empty; give a file to write"):
        write_records([], [])


def test_drawn_examples_survive_writing_and_go_to_the_files_in_turn(tmp_path):
    examples = drawn(7)
    files = [tmp_path / f"{number}.tfrecord" for number in range(3)]
    assert write_records(files, examples) == 7
    for number, file in enumerate(files):
        found = list(read_examples(file))
        assert len(found) == len(examples[number::3])
        for left, right in zip(found, examples[number::3], strict=True):
            assert_same(left, right, [*KEYS, "token_boundary"])
            assert "ngram_words" not in left


def test_token_boundary_in_the_golden_records_is_our_rule():
    starts = original.golden_starts_word()
    for example in read_examples(GOLDEN):
        ids = example["input_ids"].copy()
        real = example["masked_lm_weights"] > 0
        ids[example["masked_lm_positions"][real]] = example["masked_lm_ids"][real]
        expected = np.where(np.isin(ids, (2, 3)), 1, starts[ids]) * example["input_mask"]
        assert example["token_boundary"].tolist() == expected.tolist()


# ------------------------------------------------------------------------------- the encoding


int64 = st.integers(-(2**63), 2**63 - 1)
features = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.lists(int64, min_size=1, max_size=300).map(lambda x: np.array(x, np.int64)),
        st.lists(st.floats(width=32, allow_nan=False), max_size=9).map(
            lambda x: np.array(x, np.float32)
        ),
    ),
    max_size=4,
)


@given(features)
def test_any_example_survives_encoding(values):
    found = decode_example(encode_example(values))
    assert list(found) == list(values)
    for name in values:
        np.testing.assert_array_equal(found[name], values[name])


def test_encoding_is_tensorflows():
    # tf.train.Example with a: [1, 300, -1] and f: [0.5], serialised by TensorFlow 2.21.
    theirs = "0a270a160a016112111a0f0a0d01ac02ffffffffffffffffff010a0d0a0166120812060a040000003f"
    values = {"a": np.array([1, 300, -1]), "f": np.array([0.5], np.float32)}
    assert encode_example(values).hex() == theirs


def test_numbers_that_are_not_packed_are_read_too():
    # A field a number, as older writers have it; and a feature of bytes is passed over.
    entry = bytes.fromhex("0a0161" + "12071a05" + "0801" + "08ac02")
    skipped = bytes.fromhex("0a0162" + "12050a03" + "0a0178")
    message = b"".join(bytes([0x0A, len(part)]) + part for part in (entry, skipped))
    found = decode_example(bytes([0x0A, len(message)]) + message)
    assert {name: values.tolist() for name, values in found.items()} == {"a": [1, 300]}


# --------------------------------------------------------------------------------- the source


@pytest.fixture
def shards(tmp_path):
    """Three files of 32-token examples, 10 in all, and the examples."""
    examples = drawn(10)
    files = [tmp_path / "shards" / f"part-{number}.tfrecord" for number in range(3)]
    files[0].parent.mkdir()
    write_records(files, examples)
    return files, [example for number in range(3) for example in examples[number::3]]


def test_records_come_in_file_order_or_shuffled_each_epoch(shards):
    files, examples = shards
    in_order = RecordSource(files, seed=1, shuffle=False)
    assert len(in_order) == in_order.epoch_size(3) == 10
    for index in range(25):
        assert in_order.epoch_of(index) == (index // 10, index % 10)
        assert_same(in_order[index], examples[index % 10])
    shuffled = RecordSource(files, seed=1)
    epochs = [
        [shuffled[index]["input_ids"].tobytes() for index in range(start, start + 10)]
        for start in (0, 10)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert sorted(epochs[0]) == sorted(example["input_ids"].tobytes() for example in examples)
    assert epochs[0] != epochs[1]
    assert tuple(shuffled[0]) == KEYS
    with pytest.raises(IndexError):
        shuffled[-1]


def test_folder_pattern_and_list_name_the_same_files(shards):
    files, _ = shards
    folder = files[0].parent
    (folder / "_SUCCESS").touch()
    for paths in (folder, str(folder / "part-*.tfrecord"), [str(file) for file in files]):
        source = RecordSource(paths, seed=1)
        assert [file.path for file in source.files] == files
        assert (source.max_seq_length, source.max_predictions_per_seq) == (32, 20)
    with pytest.raises(UserError, match="names no TFRecord file"):
        RecordSource(folder / "none-*", seed=1)


def test_batches_of_records_are_the_same_from_threads_and_processes(shards):
    files, _ = shards
    source = RecordSource(files, seed=2)
    again = pickle.loads(pickle.dumps(source))
    for options in ({"threads": 2}, {"workers": 1}):
        dataset = make_dataset(Draw(source, 4), stop=6, **options)
        for index, batch in zip(range(6), dataset, strict=True):
            assert_same(batch, batch_at(again, index, 4))
        dataset.close()


def test_describe_says_of_records_what_they_tell():
    found = describe_examples(RecordSource(GOLDEN, seed=1))
    assert found["examples"] == 50
    assert found["ngrams"] is None
    assert found["masked_share"] == pytest.approx(0.149, abs=0.002)  # of the run: 0.1487
    assert found["label_1_share"] == 0.6  # 30 of the 50


def broken(tmp_path, change) -> str:
    data = bytearray(GOLDEN.read_bytes())
    file = tmp_path / "broken.tfrecord"
    file.write_bytes(change(data))
    return str(file)


def flip(at: int):
    def change(data: bytearray) -> bytes:
        data[at] ^= 1
        return data

    return change


def framed(record: bytes) -> bytes:
    def checksum(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(record))
    return length + checksum(length) + record + checksum(record)


def head(length: int) -> bytes:
    """The frame before a record that claims so many bytes."""
    packed_length = struct.pack("<Q", length)
    crc = google_crc32c.value(packed_length)
    return packed_length + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def packed(name: str, numbers: bytes) -> bytes:
    """A tf.train.Example of one feature whose numbers are these bytes."""

    def message(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    feature = message(2, message(3, message(1, numbers)))
    return message(1, message(1, message(1, name.encode()) + feature))


FIRST = 0x38B + 16  # bytes of the first record and its frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip(0), "record 0, byte 0: the checksum of its length"),
        (flip(FIRST + 9), f"record 1, byte {FIRST}: the checksum of its length"),
        (flip(100), "record 0, byte 0: its checksum"),
        (flip(FIRST - 1), "record 0, byte 0: its checksum"),
        (lambda data: data[:-1], "record 49, byte 44600: the file ends within it"),
        (lambda data: data[: FIRST + 5], f"record 1, byte {FIRST}: the file ends within it"),
        (lambda data: b"", "is empty"),
        (lambda data: b"input_ids,input_mask\n" * 9, "byte 0: the checksum of its length"),
        (lambda data: gzip.compress(data), "is compressed"),
        (lambda data: framed(b"\x0a\xff"), "byte 0: it is no tf.train.Example"),
        (
            lambda data: framed(b"\x0a" + b"\x80" * 4000),
            "it is no tf.train.Example .no protobuf message",
        ),
        (
            lambda data: framed(packed("x", b"\xff" * 10 + b"\0")),
            "it is no tf.train.Example .no protobuf message",
        ),
        (lambda data: framed(bytes(1 << 23)), "byte 0: it claims 8,388,608 bytes"),
        (lambda data: head(2**63) + bytes(99), "byte 0: it claims 9,223,372,036,854,775,808 bytes"),
        (lambda data: framed(encode_example({"x": np.arange(3)})), "it lacks input_ids, input_mas"),
    ],
)
def test_damaged_file_is_named_with_the_byte(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        list(read_examples(broken(tmp_path, change)))
    assert "broken.tfrecord" in str(error.value)


def odd(key: str, place: int, value: float, dtype: type = np.int64):
    """A change to an example: another number at one place of a feature."""

    def change(example):
        values = example[key].astype(dtype).reshape(-1)
        values[place] = value
        return {key: values}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"masked_lm_ids": np.zeros(19, np.int32)}, "it has features of unlike lengths"),
        (lambda _: {"sentence_order_labels": np.zeros(2, np.int32)}, "it has no single label"),
        (lambda _: {"sentence_order_labels": np.zeros(0, np.int32)}, "it has no single label"),
        (
            lambda _: dict.fromkeys(
                ("input_ids", "input_mask", "segment_ids", "token_boundary"), np.zeros(0, int)
            ),
            "its input_ids are empty",
        ),
        (lambda x: {"input_ids": x["input_ids"].astype(np.float32)}, "its input_ids are floats"),
        (lambda _: {"masked_lm_weights": np.ones(20, int)}, "masked_lm_weights are whole numbers"),
        (odd("input_ids", 3, -1), "it has -1 among its input_ids, which lie from 0 to 2147483647"),
        (odd("input_ids", 3, 2**32 + 5), "it has 4294967301 among its input_ids"),
        (odd("masked_lm_ids", 0, -(2**63)), "it has -9223372036854775808 among its masked_lm_ids"),
        (odd("masked_lm_positions", 1, 32), "it has 32 among its masked_lm_positions, which .* 31"),
        (odd("masked_lm_positions", 1, -1), "it has -1 among its masked_lm_positions"),
        (odd("segment_ids", 5, 2), "it has 2 among its segment_ids, which lie from 0 to 1"),
        (odd("input_mask", 5, 9), "it has 9 among its input_mask"),
        (odd("token_boundary", 5, 9), "it has 9 among its token_boundary"),
        (odd("sentence_order_labels", 0, 7), "it has 7 among its next_sentence_labels"),
        (
            odd("masked_lm_weights", 2, np.nan, np.float32),
            "it has masked_lm_weights that are no num",
        ),
    ],
)
def test_record_of_another_kind_is_refused(tmp_path, change, message):
    good, example = drawn(2)
    write_records(tmp_path / "x", [good, example | change(example)])
    with pytest.raises(UserError, match=f"x, record 1, is no pretraining example: .*{message}"):
        list(read_examples(tmp_path / "x"))


def test_a_record_that_is_damaged_later_on_ends_a_run_with_its_place(tmp_path):
    data = bytearray(GOLDEN.read_bytes())
    data[20_000] ^= 1
    (tmp_path / "broken.tfrecord").write_bytes(data)
    source = RecordSource(tmp_path / "broken.tfrecord", seed=1)
    with pytest.raises(UserError, match=r"broken\.tfrecord is damaged at record 2\d, byte \d"):
        batch_at(source, 0, 50)


@given(st.data())
def test_any_harm_to_a_file_is_one_line_or_none(tmp_path_factory, data):
    whole = GOLDEN.read_bytes()[: 3 * FIRST]
    at = data.draw(st.integers(0, len(whole) - 1))
    harmed = bytearray(whole)
    harmed[at] ^= data.draw(st.integers(1, 255))
    harmed = harmed[: data.draw(st.integers(at + 1, len(whole)))]
    file = tmp_path_factory.mktemp("records") / "x"
    file.write_bytes(harmed)
    with pytest.raises(UserError) as raised:
        list(read_examples(file))
    assert "\n" not in str(raised.value)


def test_files_of_unlike_lengths_are_refused(tmp_path, shards):
    files, _ = shards
    write_records(tmp_path / "long", drawn(1, max_seq_length=64))
    write_records(tmp_path / "many", drawn(1, max_predictions_per_seq=5))
    for other, sizes in (("long", "64 tokens and 20"), ("many", "32 tokens and 5")):
        with pytest.raises(UserError, match=f"{other}, record 0, has {sizes} predictions"):
            RecordSource([*files, tmp_path / other], seed=1)
    # Within a file it shows when the record is read.
    mixed = tmp_path / "mixed"
    shutil.copy(files[0], mixed)
    with open(mixed, "ab") as stream:
        stream.write((tmp_path / "long").read_bytes())
    source = RecordSource(mixed, seed=1, shuffle=False)
    with pytest.raises(UserError, match=f"mixed, record {len(source) - 1}, has 64 tokens"):
        source[len(source) - 1]


def test_ids_beyond_the_vocabulary_are_refused():
    assert len(RecordSource(GOLDEN, seed=1, vocab_size=8000)) == 50
    with pytest.raises(UserError, match="but the vocabulary has 4000 pieces"):
        batch_at(RecordSource(GOLDEN, seed=1, vocab_size=4000), 0, 50)


def test_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="names no TFRecord file"):
        RecordSource(tmp_path / "absent.tfrecord", seed=1)
