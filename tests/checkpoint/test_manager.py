# SPDX-License-Identifier: Apache-2.0
"""Bits come back, damage does not pass, and a killed or failed save costs one step at most."""

import contextlib
import errno
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from albert_jax.checkpoint.integrity import Damaged, array_table, verify_arrays
from albert_jax.checkpoint.manager import Checkpointer, SaveError, lock_workdir, same_run
from albert_jax.training.step import TrainState
from albert_jax.utils.errors import UserError
from tests.helpers.disks import FULL, mounted_disk, writes_fail
from tests.helpers.paths import REPOSITORY

EXPECT = {"config": {"hidden_size": 8, "dtype": "float32"}, "vocab_sha256": "ab"}


def state_of(step: int) -> TrainState:
    """A state that the step determines: random bits, so that storage cannot compress them."""
    rng = np.random.default_rng(step)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, dtype=np.float32))

    params = {
        "embeddings": {"word": array(400, 16)},
        "layer": {"kernel": array(8, 4), "bias": array(4)},
    }
    opt_state = optax.chain(optax.adamw(1e-3), optax.ema(0.9)).init(params)
    opt_state = jax.tree.map(lambda x: array(*x.shape) if x.ndim else x + step, opt_state)
    return TrainState(jnp.asarray(step, jnp.int32), params, opt_state, jax.random.key(step))


def bits(tree: Any) -> list[tuple[str, str, bytes]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        (jax.tree_util.keystr(path), str(x.dtype), np.asarray(_data(x)).tobytes())
        for path, x in leaves
    ]


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def meta_of(step: int) -> dict[str, Any]:
    return EXPECT | {"next_batch": step + 100}


def save_all(directory: Path, steps: range, *, keep: int = 5) -> None:
    with Checkpointer(directory, keep=keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, state_of(step), meta_of(step))


def restore(directory: Path, *, target: Any = None) -> tuple[int, dict[str, Any]]:
    """The step restored, which must be as it was saved, bit for bit, and its meta."""
    with Checkpointer(directory) as checkpointer:
        restored = checkpointer.restore(target or state_of(0), same_run(EXPECT))
    assert restored is not None
    state, meta = restored
    step = int(state.step)
    assert bits(state) == bits(state_of(step))
    assert jax.tree.structure(state) == jax.tree.structure(state_of(0))
    assert meta == meta_of(step)
    return step, meta


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def files_of(directory: Path) -> list[Path]:
    return sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with checkpoints 1 and 2; copy it before breaking it."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    save_all(directory, range(1, 3))
    return directory


@pytest.fixture
def work(two_steps: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_steps, tmp_path / "work")


# ------------------------------------------------------------------------ what was saved comes back


def test_nothing_to_restore_is_none(tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "new" / "checkpoints") as checkpointer:
        assert checkpointer.restore(state_of(0), same_run({})) is None
        assert checkpointer.steps() == []


@pytest.mark.parametrize("abstract", [False, True])
def test_newest_state_and_meta_come_back_bit_for_bit(two_steps: Path, abstract: bool) -> None:
    target = jax.eval_shape(lambda: state_of(0)) if abstract else state_of(0)
    assert restore(two_steps, target=target) == (2, meta_of(2))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_key_keeps_its_implementation(tmp_path: Path, impl: str) -> None:
    key = jax.random.key(5, impl=impl)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"key": key}, {}, wait=True)
        state, _ = checkpointer.restore({"key": jax.random.key(0, impl=impl)}, same_run({}))
    np.testing.assert_array_equal(jax.random.bits(state["key"], (9,)), jax.random.bits(key, (9,)))


def test_other_dtypes_come_back(tmp_path: Path) -> None:
    state = {
        "b": jnp.arange(5).astype(jnp.bfloat16),
        "f": np.arange(6, dtype=np.float16).reshape(3, 2).T,  # not in C order
        "u": np.uint8([1, 255]),
        "t": jnp.array([True, False]),
    }
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {}, wait=True)
        restored, _ = checkpointer.restore(state, same_run({}))
    assert bits(restored) == bits(state)


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path: Path) -> None:
    step = jax.jit(lambda x: -x - 1, donate_argnums=0)
    x = jnp.arange(1 << 20, dtype=jnp.float32) + 1
    with Checkpointer(tmp_path) as checkpointer:
        for n in range(3):
            expected = np.array(x, copy=True)
            checkpointer.save(n, {"x": x}, {})
            before = x.unsafe_buffer_pointer()
            x = step(x)
            assert x.unsafe_buffer_pointer() == before, "nothing was donated, so nothing is tested"
            checkpointer.wait()
            state, _ = checkpointer.restore(
                {"x": jax.ShapeDtypeStruct(x.shape, x.dtype)}, same_run({})
            )
            np.testing.assert_array_equal(np.asarray(state["x"]), expected)
            x = step(state["x"])  # what was restored may be donated too
            np.testing.assert_array_equal(np.asarray(x), -expected - 1)


def test_save_and_restore_run_under_a_transfer_guard(tmp_path: Path) -> None:
    state = state_of(1)
    with jax.transfer_guard("disallow"), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, meta_of(1), wait=True)
        assert checkpointer.restore(state, same_run(EXPECT)) is not None


def _on(devices: int, tree: Any, *, sharded: bool) -> Any:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))

    def put(x: Any) -> Any:
        divides = sharded and x.ndim and not x.shape[0] % devices
        return jax.device_put(
            x, NamedSharding(mesh, PartitionSpec("data") if divides else PartitionSpec())
        )

    return jax.tree.map(put, tree)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("there", [1, 2, 4])
def test_restores_onto_another_number_of_devices(tmp_path: Path, there: int, sharded: bool) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, _on(there, state_of(3), sharded=sharded), meta_of(3), wait=True)
        for here in (1, 2, 4):
            target = _on(here, state_of(0), sharded=sharded)
            state, _ = checkpointer.restore(target, same_run(EXPECT))
            assert bits(state) == bits(state_of(3))
            same = jax.tree.map(
                lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), state, target
            )
            assert all(jax.tree.leaves(same))


# One of two processes with two devices each: finds 3 damaged, restores 2 onto all four, saves 4.
ONE_OF_TWO = """
import os, sys
import jax
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))
sys.path.insert(0, os.path.dirname(sys.argv[4]))
from test_manager import *
mesh = Mesh(np.array(jax.devices()), ("data",))
assert mesh.size == 4
everywhere = NamedSharding(mesh, PartitionSpec())
target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    jax.eval_shape(lambda: state_of(0)),
)
with Checkpointer(sys.argv[3]) as checkpointer:
    state, meta = checkpointer.restore(target, same_run(EXPECT))
    assert meta == meta_of(2)
    assert bits(jax.tree.map(lambda x: x.addressable_data(0), state)) == bits(state_of(2))
    assert checkpointer.steps() == [1, 2]
    checkpointer.save(4, state, meta_of(2), wait=True)
    assert checkpointer.steps() == [1, 2, 4]
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_restore_what_one_saved_and_the_other_way_round(work: Path) -> None:
    shutil.copytree(work / "2", work / "3")
    (work / "3" / "meta" / "metadata").unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", ONE_OF_TWO]
    processes = [
        subprocess.Popen(
            [*command, str(rank), address, work, __file__],
            env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "checkpoint 3 is damaged (metadata: No such file" in said[0]
    assert "checkpoint 3" not in said[1], "one process speaks for all"
    assert (work / "3.damaged").is_dir()
    with Checkpointer(work) as checkpointer:
        state, _ = checkpointer.restore(state_of(0), same_run(EXPECT))
    assert bits(state) == bits(state_of(2))


def test_orbax_alone_can_read_what_was_saved(two_steps: Path) -> None:
    tree = ocp.StandardCheckpointHandler().restore(epath.Path(two_steps / "2" / "state"))
    word = state_of(2).params["embeddings"]["word"]
    np.testing.assert_array_equal(tree["params"]["embeddings"]["word"], word)


# ---------------------------------------------------------------------------- which steps there are


def test_keeps_the_newest(tmp_path: Path) -> None:
    save_all(tmp_path, range(1, 8), keep=3)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [5, 6, 7]


def test_what_is_no_step_is_left_alone(work: Path) -> None:
    (work / "notes.txt").write_text("mine")
    (work / "7").write_text("a file")
    (work / "old").mkdir()
    save_all(work, range(3, 5), keep=2)
    assert restore(work)[0] == 4
    assert {p.name for p in work.iterdir()} == {"notes.txt", "7", "old", "3", "4"}


def test_saving_a_step_again_replaces_it(work: Path) -> None:
    with Checkpointer(work) as checkpointer:
        checkpointer.save(1, state_of(9), {"next_batch": 5} | EXPECT)
        checkpointer.save(2, state_of(8), {"next_batch": 6} | EXPECT)
        checkpointer.wait()
        state, meta = checkpointer.restore(state_of(0), same_run(EXPECT))
        assert checkpointer.steps() == [1, 2]
    assert meta["next_batch"] == 6
    assert bits(state) == bits(state_of(8))
    assert {p.name for p in work.iterdir()} == {"1", "2"}


def test_saving_the_same_again_writes_nothing(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state_of(1), meta_of(1), wait=True)
        written = (tmp_path / "1").stat().st_mtime_ns
        checkpointer.save(1, state_of(1), meta_of(1), wait=True)
        assert (tmp_path / "1").stat().st_mtime_ns == written
        checkpointer.save(1, state_of(1), meta_of(1) | {"next_batch": 0}, wait=True)
        assert (tmp_path / "1").stat().st_mtime_ns > written


def test_a_step_that_was_removed_is_written_again(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        for _ in range(2):
            checkpointer.save(1, state_of(1), meta_of(1), wait=True)
            shutil.rmtree(tmp_path / "1")
        checkpointer.save(1, state_of(1), meta_of(1), wait=True)
    assert restore(tmp_path)[0] == 1


def test_names_with_special_characters_and_relative_paths_will_do(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    save_all(Path("a%20b ?#é"), range(1, 3))
    assert restore(Path("a%20b ?#é"))[0] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a%20b ?#é"]


def test_a_kill_while_replacing_a_step_loses_neither_copy_nor_order(work: Path) -> None:
    (work / "2").rename(work / "2.replaced")  # the new 2 was not committed
    shutil.copytree(work / "2.replaced", work / "2.orbax-checkpoint-tmp")
    shutil.copytree(work / "1", work / "1.replaced")  # the new 1 was
    assert restore(work)[0] == 2
    assert {p.name for p in work.iterdir()} == {"1", "2"}


def test_keep_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep 1 must be at least 2"):
        Checkpointer(tmp_path, keep=1)


@pytest.mark.parametrize("place", ["gs://bucket/run", "file/checkpoints"])
def test_a_directory_that_cannot_be_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is an address; mount|cannot hold checkpoints"):
        Checkpointer(place if "://" in place else tmp_path / place)


# -------------------------------------------------------------------------------------- another run


def test_other_settings_are_named_each_with_both_values(work: Path) -> None:
    expect = {"config": {"hidden_size": 16, "dtype": "float32", "extra": 1}, "vocab_sha256": "cd"}
    with Checkpointer(work) as checkpointer, pytest.raises(UserError) as raised:
        checkpointer.restore(state_of(0), same_run(expect))
    message = str(raised.value)
    assert "is the work directory of another run" in message
    assert "config.hidden_size is 8 there and 16 here" in message
    assert "config.extra is 'unset' there and 1 here" in message
    assert "vocab_sha256 is 'ab' there and 'cd' here" in message
    assert "config.dtype" not in message
    assert restore(work)[0] == 2, "nothing was moved"


def test_a_checkpoint_older_than_a_setting_is_restored(work: Path) -> None:
    with Checkpointer(work) as checkpointer:
        assert checkpointer.restore(state_of(0), same_run(EXPECT | {"ema": 0.0})) is not None


def test_tuples_in_expect_are_json_lists(work: Path) -> None:
    save_all(work, range(3, 4))
    with Checkpointer(work) as checkpointer:
        checkpointer.save(4, state_of(4), {"text": ("a", "b")}, wait=True)
        assert checkpointer.restore(state_of(0), same_run({"text": ("a", "b")})) is not None


def test_every_difference_of_tree_shape_and_dtype_is_named(work: Path) -> None:
    target = state_of(0)
    params = {
        "embeddings": {"word": target.params["embeddings"]["word"].astype(jnp.bfloat16)},
        "layer": {"kernel": jnp.zeros((8, 5)), "scale": jnp.zeros(4)},
    }
    with Checkpointer(work) as checkpointer, pytest.raises(UserError) as raised:
        checkpointer.restore(target.replace(params=params), same_run(EXPECT))
    message = str(raised.value)
    assert "params/embeddings/word: float32[400, 16] there, bfloat16[400, 16] here" in message
    assert "params/layer/kernel: float32[8, 4] there, float32[8, 5] here" in message
    assert "params/layer/bias: float32[4] there, nothing here" in message
    assert "params/layer/scale: nothing there, float32[4] here" in message
    assert restore(work)[0] == 2, "nothing was moved"


def test_plain_orbax_casts_a_wrong_dtype_without_a_word(work: Path) -> None:
    """Why the dtype is checked here."""
    handler = ocp.StandardCheckpointHandler()
    path = epath.Path(work / "2" / "state")
    target = jax.tree.map(lambda x: x.astype(np.float16), handler.restore(path))
    restored = handler.restore(path, args=ocp.args.StandardRestore(target))
    assert {str(x.dtype) for x in jax.tree.leaves(restored)} == {"float16"}


def test_a_key_of_another_implementation_is_refused(work: Path) -> None:
    target = state_of(0).replace(key=jax.random.key(0, impl="rbg"))
    with Checkpointer(work) as checkpointer, pytest.raises(UserError, match=r"key: key<fry>"):
        checkpointer.restore(target, same_run(EXPECT))


# ------------------------------------------------------------------------------------------- damage


def largest_file(directory: Path) -> Path:
    return max(files_of(directory), key=lambda file: (directory / file).stat().st_size)


def harms_of(
    path: Path, rng: np.random.Generator, *, flips: int, cuts: int
) -> Iterator[bytes | None]:
    """The content of the file with one bit flipped, cut short, and None for not there."""
    content = path.read_bytes()
    for bit in rng.integers(8 * len(content), size=flips):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)
    for length in rng.integers(len(content), size=cuts):
        yield content[:length]
    yield None


@pytest.mark.parametrize(("flips", "cuts"), [(6, 1), pytest.param(25, 4, marks=pytest.mark.slow)])
def test_no_damage_passes_in_silence(
    two_steps: Path, tmp_path: Path, capfd: Any, flips: int, cuts: int
) -> None:
    """Each file of step 2 harmed in turn: what is restored is step 2 or, said aloud, step 1."""
    said_aloud = re.compile(
        r"checkpoint 2 is damaged \(((step|params|opt_state|key)[^ ]*|metadata): .+\); "
        r"falling back to 1\ncheckpoint 2 is now .+/2\.damaged\n"
    )
    rng = np.random.default_rng(0)
    found: dict[Path, int] = {}
    for file in files_of(two_steps / "2"):
        found[file] = 0
        for content in harms_of(two_steps / "2" / file, rng, flips=flips, cuts=cuts):
            work = shutil.copytree(two_steps, tmp_path / "work")
            if content is None:
                (work / "2" / file).unlink()
            else:
                (work / "2" / file).write_bytes(content)
            step, _ = restore(work)  # asserts that the bits are those of its step
            said = capfd.readouterr().err
            assert said == "" if step == 2 else said_aloud.fullmatch(said), (file, said)
            found[file] += step == 1
            shutil.rmtree(work)
    print(f"{sum(found.values())} of {len(found) * (flips + cuts + 1)} harms found:", found)
    # Of some files orbax makes copies that are not read again; the arrays and our meta have none.
    assert found[largest_file(two_steps / "2")] >= flips / 2  # a bit in the padding changes nothing
    assert found[Path("meta/metadata")] == flips + cuts + 1


def test_plain_orbax_restores_flipped_bits_in_silence(two_steps: Path, tmp_path: Path) -> None:
    """Why each leaf has a digest: of flips among the arrays, orbax itself finds almost none."""
    largest = largest_file(two_steps / "2")
    size = (two_steps / "2" / largest).stat().st_size
    handler = ocp.StandardCheckpointHandler()
    good = bits(handler.restore(epath.Path(two_steps / "2" / "state")))
    silent = 0
    for n, bit in enumerate(np.random.default_rng(1).integers(8 * size, size=10)):
        work = shutil.copytree(two_steps / "2", tmp_path / str(n))
        flip(work / largest, int(bit))
        with contextlib.suppress(Exception):
            silent += bits(handler.restore(epath.Path(work / "state"))) != good
    assert silent >= 5


@pytest.mark.parametrize("harm", ["dtype", "shape", "bit"])
def test_another_dtype_shape_or_bit_is_damage(harm: str) -> None:
    right = np.float32([[1, 2]])
    wrong = {"dtype": right.view(np.int32), "shape": right.T.copy(), "bit": np.float32([[1, 3]])}
    table = array_table({"x": right}, {"x": right})
    verify_arrays({"x": right}, table)
    with pytest.raises(Damaged, match=r"x: .* where .* was written"):
        verify_arrays({"x": wrong[harm]}, table)


def test_a_damaged_step_can_be_saved_again(work: Path) -> None:
    with Checkpointer(work) as checkpointer:
        (work / "2" / "meta" / "metadata").unlink()
        _, meta = checkpointer.restore(state_of(0), same_run(EXPECT))
        assert meta == meta_of(1)
        assert checkpointer.steps() == [1]
        checkpointer.save(2, state_of(2), meta_of(2), wait=True)
        assert checkpointer.steps() == [1, 2]
    assert (work / "2.damaged").is_dir()
    assert restore(work)[0] == 2
    (work / "2" / "meta" / "metadata").unlink()  # again: the name 2.damaged is taken
    assert restore(work)[0] == 1


def test_a_step_damaged_after_it_was_saved_is_written_again(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state_of(step), meta_of(step), wait=True)
        (tmp_path / "2" / "meta" / "metadata").unlink()
        checkpointer.restore(state_of(0), same_run(EXPECT))
        checkpointer.save(2, state_of(2), meta_of(2), wait=True)
    assert restore(tmp_path)[0] == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_passed_over(work: Path, value: float, capfd: Any) -> None:
    """As a run without a guard saves them; it is no fault of the learning rate that it resumes."""
    state = state_of(3)
    kernel = state.params["layer"]["kernel"].at[1, 2].set(value)
    params = state.params | {"layer": state.params["layer"] | {"kernel": kernel}}
    with Checkpointer(work) as checkpointer:
        checkpointer.save(3, state.replace(params=params), meta_of(3), wait=True)
    assert restore(work)[0] == 2
    message = "checkpoint 3 is damaged (not finite: params/layer/kernel); falling back to 2"
    assert message in capfd.readouterr().err
    assert (work / "3.damaged").is_dir()


def test_where_all_are_damaged_nothing_is_moved(work: Path) -> None:
    for step in ("1", "2"):
        flip(work / step / "meta" / "metadata", 99)
    names = files_of(work)
    with Checkpointer(work) as checkpointer, pytest.raises(UserError, match="all 2 checkpoints in"):
        checkpointer.restore(state_of(0), same_run(EXPECT))
    assert files_of(work) == names


def test_read_only_changes_nothing(work: Path) -> None:
    """Not even what a run at work is writing, or what is damaged."""
    shutil.copytree(work / "1", work / "3.orbax-checkpoint-tmp")
    flip(work / "2" / "meta" / "metadata", 99)
    names = files_of(work)
    with Checkpointer(work, read_only=True) as checkpointer:
        _, meta = checkpointer.restore(state_of(0), same_run(EXPECT))
    assert meta == meta_of(1)
    assert files_of(work) == names


def test_a_checkpoint_under_another_step_s_name_is_damage(work: Path, capfd: Any) -> None:
    shutil.copytree(work / "1", work / "7")
    assert restore(work)[0] == 2
    assert "checkpoint 7 is damaged (it holds step 1); falling back to 2" in capfd.readouterr().err


def test_a_newer_format_is_not_taken_for_damage(work: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("albert_jax.checkpoint.manager._FIRST_FORMAT", 99)
    save_all(work, range(3, 4))
    monkeypatch.undo()
    with (
        Checkpointer(work) as checkpointer,
        pytest.raises(UserError, match="format 99, newer than"),
    ):
        checkpointer.restore(state_of(0), same_run(EXPECT))


# ------------------------------------------------------------------------------------ failing saves


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    with mounted_disk(tmp_path / "disk", "3m") as path:
        yield path


def megabyte(step: int) -> dict[str, np.ndarray]:
    """40 arrays of random bits, 1 MB."""
    rng = np.random.default_rng(step)
    return {f"x{n}": rng.standard_normal(6_250, dtype=np.float32) for n in range(40)}


@pytest.mark.parametrize("noticed", ["before", "while"])
def test_a_full_disk_costs_one_step_and_says_so(
    small_disk: Path, monkeypatch: Any, capfd: Any, caplog: Any, noticed: str
) -> None:
    directory = small_disk / "checkpoints"
    if noticed == "while":
        monkeypatch.setattr("albert_jax.checkpoint.manager.require_space", lambda *_: None)
    (filler := small_disk / "filler").write_bytes(bytes(800_000))
    with Checkpointer(directory) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, megabyte(step), {}, wait=True)
        with pytest.raises(SaveError) as raised:
            checkpointer.save(3, megabyte(3), {}, wait=True)
        told = rf"disk full, [\d,]+ B free at {directory} for 1,000,000 B; last good step 2"
        assert re.fullmatch(f"checkpoint 3 NOT saved: {told}", str(raised.value))
        state, _ = checkpointer.restore(megabyte(0), same_run({}))
        assert bits(state) == bits(megabyte(2))
        filler.unlink()
        checkpointer.save(4, megabyte(4), {}, wait=True)
        state, _ = checkpointer.restore(megabyte(0), same_run({}))
        assert bits(state) == bits(megabyte(4))
    assert {p.name for p in directory.iterdir()} == {"1", "2", "4"}, "the space is given back"
    assert capfd.readouterr().err == "", "the error says it all; orbax's stacks are not shown"
    assert caplog.text == ""


def test_a_full_disk_does_not_cost_the_step_being_replaced(
    small_disk: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("albert_jax.checkpoint.manager.require_space", lambda *_: None)
    with Checkpointer(small_disk / "checkpoints") as checkpointer:
        checkpointer.save(1, megabyte(1), {}, wait=True)
        (small_disk / "filler").write_bytes(bytes(1_500_000))
        with pytest.raises(SaveError, match="last good step 1"):
            checkpointer.save(1, megabyte(9), {}, wait=True)
        state, _ = checkpointer.restore(megabyte(0), same_run({}))
        assert bits(state) == bits(megabyte(1))


def test_a_save_that_failed_is_raised_by_the_next_which_is_made(work: Path) -> None:
    with Checkpointer(work) as checkpointer:
        with writes_fail(FULL):
            checkpointer.save(3, state_of(3), meta_of(3))
        message = r"checkpoint 3 NOT saved: disk full, .*; last good step 2"
        with pytest.raises(SaveError, match=message):
            checkpointer.save(4, state_of(4), meta_of(4))
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2, 4]
    assert restore(work)[0] == 4


def test_a_bug_in_a_save_is_no_full_disk(work: Path) -> None:
    failing, is_raised = writes_fail(TypeError("a bug")), pytest.raises(TypeError, match="a bug")
    with Checkpointer(work) as checkpointer, failing, is_raised:
        checkpointer.save(3, state_of(3), meta_of(3), wait=True)
    assert restore(work)[0] == 2


def test_a_save_that_waits_is_not_spoilt_by_the_one_before(work: Path, capfd: Any) -> None:
    with Checkpointer(work) as checkpointer:
        with writes_fail(FULL):
            checkpointer.save(3, state_of(3), meta_of(3))
        checkpointer.save(4, state_of(4), meta_of(4), wait=True)
        assert checkpointer.steps() == [1, 2, 4]
    said = capfd.readouterr().err
    assert re.fullmatch(r"checkpoint 3 NOT saved: disk full, .*; step 4 is saved\n", said)


@pytest.mark.parametrize("end", ["wait", "close"])
def test_waiting_and_closing_raise_what_failed(work: Path, end: str) -> None:
    checkpointer = Checkpointer(work)
    with writes_fail(RuntimeError("cosmic\nrays")):
        checkpointer.save(3, state_of(3), meta_of(3))
    with pytest.raises(SaveError, match="3 NOT saved: RuntimeError: cosmic; last good step 2"):
        getattr(checkpointer, end)()
    checkpointer.close()
    assert restore(work)[0] == 2


def test_what_ends_the_run_is_not_hidden_by_a_save_that_failed(work: Path, capfd: Any) -> None:
    def run() -> None:
        with Checkpointer(work) as checkpointer:
            with writes_fail(FULL):
                checkpointer.save(3, state_of(3), meta_of(3))
            raise KeyError("the reason")

    with pytest.raises(KeyError, match="the reason"):
        run()
    assert "checkpoint 3 NOT saved: disk full" in capfd.readouterr().err


def test_an_old_step_that_cannot_be_removed_is_said_and_the_new_one_is_saved(
    work: Path, capfd: Any
) -> None:
    deleter = "orbax.checkpoint._src.path.deleter.StandardCheckpointDeleter.delete_steps"
    with Checkpointer(work, keep=2) as checkpointer:
        with mock.patch(deleter, side_effect=PermissionError(13, "denied", "/1")):
            checkpointer.save(3, state_of(3), meta_of(3), wait=True)
        checkpointer.save(4, state_of(4), meta_of(4), wait=True)
    assert "PermissionError: [Errno 13] denied: '/1'" in capfd.readouterr().err
    assert restore(work)[0] == 4


def test_a_restore_says_that_the_save_before_it_failed(work: Path, capfd: Any) -> None:
    with Checkpointer(work) as checkpointer:
        with writes_fail(FULL):
            checkpointer.save(3, state_of(3), meta_of(3))
        _, meta = checkpointer.restore(state_of(0), same_run(EXPECT))
        assert meta == meta_of(2)
    assert "checkpoint 3 NOT saved: disk full" in capfd.readouterr().err


def test_an_unwritable_directory_is_named(work: Path) -> None:
    denied = mock.patch("pathlib.Path.rename", side_effect=PermissionError(13, "denied", "/2"))
    with Checkpointer(work) as checkpointer:
        with denied, pytest.raises(SaveError, match=r"2 NOT saved: PermissionError: .*/2'; last"):
            checkpointer.save(2, state_of(3), meta_of(3))
        assert checkpointer.restore(state_of(0), same_run(EXPECT))[1] == meta_of(2)


# ------------------------------------------------------------------------------------------ kill -9


def _save_for_ever(directory: Path, tell: Connection) -> None:
    """A run that checks what it restored, then saves a step after the other until it is killed."""
    tell.send(("began", 0))
    with Checkpointer(directory, keep=3) as checkpointer:
        restored = checkpointer.restore(megabyte(0), same_run(EXPECT))
        step = 0 if restored is None else restored[1]["next_batch"] - 100
        assert restored is None or bits(restored[0]) == bits(megabyte(step))
        tell.send(("restored", step))
        while True:
            step += 1
            checkpointer.save(step, megabyte(step), meta_of(step))
            tell.send(("committed", step - 1))  # save waits for the one before


# Its children begin with orbax imported (5 s) and no JAX backend, which would not survive a fork.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["albert_jax.checkpoint.manager", "albert_jax.training.step", "pytest"]
)


def start(target: Any, *arguments: Any) -> tuple[Any, Connection]:
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    assert here.poll(120), "the process did not begin"
    return process, here


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_loses_no_committed_step(tmp_path: Path, kills: int) -> None:
    rng = np.random.default_rng(kills)
    committed = debris = 0
    for n in range(kills):
        process, told = start(_save_for_ever, tmp_path)
        # Every other one while it saves; else at any moment, as while it opens or restores.
        messages = [told.recv() for _ in range(n % 2 and rng.integers(4, 7))]
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with contextlib.suppress(EOFError):
            while True:
                messages.append(told.recv())
        told.close()
        for what, step in messages:
            assert what != "restored" or step >= committed
            committed = max(committed, step)
        debris += any(tmp_path.glob("*.orbax-checkpoint-tmp"))
    print(f"{kills} kills, {debris} amid a write, {committed} steps")
    assert committed >= kills // 2
    assert debris > kills / 10
    with Checkpointer(tmp_path, keep=3) as checkpointer:
        restored = checkpointer.restore(megabyte(0), same_run(EXPECT))
        assert restored is not None
        assert not list(tmp_path.glob("*.orbax-checkpoint-tmp"))
    step = restored[1]["next_batch"] - 100
    assert step >= committed
    assert bits(restored[0]) == bits(megabyte(step))


# ----------------------------------------------------------------------------------------- the lock


def _hold(directory: Path, tell: Connection) -> None:
    with lock_workdir(directory):
        tell.send("held")
        time.sleep(600)


def test_a_work_directory_in_use_names_who_has_it_and_is_free_when_that_is_killed(
    tmp_path: Path,
) -> None:
    process, told = start(_hold, tmp_path / "run")
    owner = f"is in use by pid {process.pid} on {socket.gethostname()} since 20"
    with pytest.raises(UserError, match=re.escape(owner)):
        lock_workdir(tmp_path / "run")
    process.kill()
    process.join()
    told.close()
    with (
        lock_workdir(tmp_path / "run"),
        pytest.raises(UserError, match=f"in use by pid {os.getpid()} "),
    ):
        lock_workdir(tmp_path / "run")
    lock_workdir(tmp_path / "run").release()


def test_a_work_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used: Not a directory"):
        lock_workdir(tmp_path / "file" / "run")


def test_where_there_are_no_locks_the_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    lock_workdir(tmp_path).release()
    assert "cannot be locked (No locks available)" in capfd.readouterr().err
