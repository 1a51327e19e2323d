# SPDX-License-Identifier: Apache-2.0
"""Batches: the same whoever draws them, and nothing left running."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from albert_jax.config.sections import ExamplesConfig
from albert_jax.data.examples import PretrainingSource
from albert_jax.data.loader import KEYS, Draw, batch_at, describe_examples, make_dataset
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.wording import flag_names, renamed, setting
from tests.helpers import original_examples as original


def source(**options) -> PretrainingSource:
    return PretrainingSource(
        original.MemoryStore(original.golden_documents()[:20]),
        ExamplesConfig(max_seq_length=32, **options),
        seed=5,
        starts_word=original.golden_starts_word(),
    )


class Failing:
    """A source whose example 9 cannot be drawn."""

    def __init__(self, inner):
        self.inner = inner

    def __getitem__(self, index):
        if index == 9:
            raise UserError("record 9 is damaged")
        return self.inner[index]


class Misconfigured:
    """A source that cannot draw for a setting of the user's."""

    def __getitem__(self, index):
        raise UserError(f"{setting('text', 'a')} and {setting('store', 'b')} are unlike")


def assert_same(left, right):
    assert left.keys() == right.keys() == set(KEYS)
    for key in KEYS:
        assert left[key].dtype == right[key].dtype
        np.testing.assert_array_equal(left[key], right[key])


def test_batch_is_the_examples_in_order():
    drawn = source()
    batch = batch_at(drawn, 3, 4)
    for row in range(4):
        for key, values in drawn[3 * 4 + row].items():
            np.testing.assert_array_equal(batch[key][row], values)
    shapes = {key: (batch[key].shape, batch[key].dtype.name) for key in KEYS}
    assert shapes == {
        "input_ids": ((4, 32), "int32"),
        "input_mask": ((4, 32), "int32"),
        "segment_ids": ((4, 32), "int32"),
        "masked_lm_positions": ((4, 20), "int32"),
        "masked_lm_ids": ((4, 20), "int32"),
        "masked_lm_weights": ((4, 20), "float32"),
        "sentence_order_labels": ((4,), "int32"),
    }


def test_processes_share_out_the_global_batch_in_order():
    whole = batch_at(source(), 7, 6)
    parts = [batch_at(source(), 7, 6, process_index=p, process_count=3) for p in range(3)]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in KEYS}
    assert_same(whole, joined)
    with pytest.raises(UserError, match="batch size 6 does not divide over 4 processes"):
        batch_at(source(), 0, 6, process_count=4)


@pytest.mark.parametrize("drawn_by", [{"threads": 0}, {"threads": 1}, {"threads": 3}])
def test_batches_do_not_depend_on_the_number_of_threads(drawn_by):
    expected = [
        batch_at(source(), index, 8, process_index=1, process_count=2) for index in range(40, 60)
    ]
    dataset = make_dataset(
        Draw(source(), 8, process_index=1, process_count=2), start=40, stop=60, **drawn_by
    )
    with contextlib.closing(dataset):
        for left, right in zip(expected, dataset, strict=True):
            assert_same(left, right)


def test_batches_do_not_depend_on_worker_processes_and_these_end_with_close():
    with contextlib.closing(make_dataset(Draw(source(), 8), start=4, workers=2)) as dataset:
        for index in range(4, 12):
            assert_same(next(dataset), batch_at(source(), index, 8))
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_a_worker_process_that_is_killed_ends_the_run_for_now():
    with contextlib.closing(make_dataset(Draw(source(), 8), workers=1)) as dataset:
        next(dataset)
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(TryAgain, match=r"\(train\.data_workers\) was killed, perhaps for"):
            list(itertools.islice(dataset, 9))


def test_resuming_at_a_step_continues_the_run():
    whole = list(make_dataset(Draw(source(), 8), stop=120))  # several epochs
    assert source().epoch_of(120 * 8)[0] >= 2
    for left, right in zip(whole[77:], make_dataset(Draw(source(), 8), start=77), strict=False):
        assert_same(left, right)


@pytest.mark.parametrize("drawn_by", [{"threads": 0}, {"threads": 2}, {"workers": 1}])
def test_an_error_while_drawing_is_raised_where_its_batch_is_due(drawn_by):
    with contextlib.closing(make_dataset(Draw(Failing(source()), 4), **drawn_by)) as dataset:
        next(dataset)
        next(dataset)
        with pytest.raises(UserError, match="record 9 is damaged"):
            next(dataset)


@pytest.mark.parametrize("drawn_by", [{}, {"threads": 2}, {"workers": 1}])
def test_an_error_while_drawing_names_settings_as_the_run_does(drawn_by):
    with flag_names(), renamed({"text": "input"}):
        batches = make_dataset(Draw(Misconfigured(), 4), **{"threads": 0} | drawn_by)
        with contextlib.closing(batches), pytest.raises(UserError) as error:
            next(batches)
    assert str(error.value) == "--input a and --store b are unlike"


def test_close_ends_the_threads_and_the_iteration():
    before = threading.active_count()
    dataset = make_dataset(Draw(source(), 4), threads=2)
    next(dataset)
    dataset.close()
    assert threading.active_count() == before
    assert list(dataset) == []
    dataset.close()


def test_no_more_batches_are_drawn_than_threads_can_hold():
    drawn = []

    class Counting(Failing):
        def __getitem__(self, index):
            drawn.append(index)
            return self.inner[index % 8]

    with contextlib.closing(make_dataset(Draw(Counting(source()), 1), threads=2)) as dataset:
        next(dataset)
        time.sleep(0.2)
        assert sorted(drawn) == [0, 1, 2]  # one in the caller's hands, two ahead


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # until somebody reaps it
    except psutil.NoSuchProcess:
        return True


def test_worker_processes_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from albert_jax.data.loader import Draw, make_dataset\n"
        "from tests.data.test_loader import source\n"
        "if __name__ == '__main__':\n"
        "    dataset = make_dataset(Draw(source(), 4), workers=1)\n"
        "    next(dataset)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = str(original.FILES.parents[2])
    with subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root}, stdout=subprocess.PIPE
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for _ in range(100):
            if has_ended(worker):
                break
            time.sleep(0.1)
        else:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("the worker still ran 10 s after its parent was killed")


def test_drawing_needs_no_jax():
    command = (
        "import sys; import albert_jax.data.examples, albert_jax.data.tfrecord; "
        "assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    root = str(original.FILES.parents[2])
    subprocess.run(
        [sys.executable, "-c", command], check=True, env=os.environ | {"PYTHONPATH": root}
    )


def test_describe_measures_what_the_batches_hold():
    found = describe_examples(source(), examples=64)
    batch = batch_at(source(), 0, 64)
    real = batch["masked_lm_weights"] > 0
    tokens = batch["input_mask"].sum()
    inputs = np.take_along_axis(batch["input_ids"], batch["masked_lm_positions"], 1)
    assert found["examples"] == 64
    assert found["tokens_per_example"] == pytest.approx(tokens / 64)
    assert found["padding_share"] == pytest.approx(1 - tokens / (64 * 32))
    assert found["masked_share"] == pytest.approx(real.sum() / tokens)
    assert found["predictions_per_example"] == pytest.approx(real.sum() / 64)
    assert found["label_1_share"] == batch["sentence_order_labels"].mean()
    assert found["replaced_by"]["mask"] == pytest.approx((inputs[real] == 4).mean())
    assert sum(found["replaced_by"].values()) == pytest.approx(1)
    assert sum(found["ngrams"].values()) == pytest.approx(1)
    assert set(describe_examples(source(ngram=1))["ngrams"]) == {"1"}
    small = source()
    assert describe_examples(small, examples=10**6)["examples"] == len(small)
