# SPDX-License-Identifier: Apache-2.0
"""Batches across stages, from a source whose examples are their own numbers."""

from dataclasses import replace

import numpy as np

from albert_jax.config import AlbertConfig, ExamplesConfig, PretrainConfig, TrainConfig
from albert_jax.data.loader import KEYS
from albert_jax.data.staged import StagedExamples

EXAMPLES = ExamplesConfig(max_seq_length=128)
CONFIG = PretrainConfig(
    model=AlbertConfig(hidden_size=32, num_attention_heads=2),
    examples=EXAMPLES,
    train=TrainConfig(
        steps=10, batch_size=4, length="64:0.3,128:0.3,64:0.4", batch_ramp="2:0.2,4:0.8"
    ),
)


class Numbers:
    """Examples (length, index), in passes of ten."""

    def __init__(self, examples):
        self.length, self.remembered = examples.max_seq_length, None

    def __getitem__(self, index):
        return dict.fromkeys(KEYS, np.array([self.length, index]))

    def epoch_of(self, index):
        return divmod(index, 10)

    def epoch_size(self, epoch):
        return 10

    def ended_epochs(self, index):
        return [10] * (index // 10)

    def remember_epochs(self, sizes):
        self.remembered = sizes


def staged(config=CONFIG):
    sources = {}

    def source_of(examples):
        return sources.setdefault(examples.max_seq_length, Numbers(examples))

    return StagedExamples(config.stages, source_of), sources


def drawn(examples, start, stop, **loading):
    return [
        (int(batch["input_ids"][0, 0]), batch["input_ids"][:, 1].tolist())
        for batch in examples.batches(start, stop, **loading)
    ]


WHOLE = [
    (64, [0, 1]),
    (64, [2, 3]),
    (64, [4, 5, 6, 7]),
    (128, [0, 1, 2, 3]),
    (128, [4, 5, 6, 7]),
    (128, [8, 9, 10, 11]),
    (64, [8, 9, 10, 11]),  # goes on where the first stage ended
    (64, [12, 13, 14, 15]),
    (64, [16, 17, 18, 19]),
    (64, [20, 21, 22, 23]),
    (64, [24, 25, 26, 27]),  # the last stage has no end
]


def test_stages_of_the_same_settings_share_a_source_and_no_row_is_drawn_twice():
    examples, _ = staged()
    assert drawn(examples, 0, 11) == WHOLE
    assert drawn(examples, 0, 11, threads=0, workers=1) == WHOLE


def test_a_run_goes_on_from_any_batch():
    examples, _ = staged()
    for start in range(11):
        for stop in range(start, 12):
            assert drawn(examples, start, stop, threads=0) == WHOLE[start:stop]
    endless = examples.batches(5, None)
    assert [next(endless)["input_ids"][0, 1] for _ in range(3)] == [8, 8, 12]
    endless.close()


def test_passes_add_up_over_the_sources():
    examples, _ = staged()
    assert [round(examples.passes(n), 3) for n in (0, 1, 3, 4, 6, 7)] == [
        0.0,
        0.2,
        0.8,
        1.2,
        2.0,
        2.4,
    ]


def test_a_checkpoint_keeps_the_epochs_of_the_source_it_stands_in():
    examples, sources = staged()
    assert examples.ended_epochs(6) == []  # eight rows of 64
    assert examples.ended_epochs(8) == [10]
    examples.remember_epochs(8, [10])
    assert (sources[64].remembered, sources[128].remembered) == ([10], None)


def test_without_schedules_batches_are_the_source_s():
    examples, _ = staged(replace(CONFIG, train=TrainConfig(steps=10, batch_size=4)))
    assert drawn(examples, 1, 3) == [(128, [4, 5, 6, 7]), (128, [8, 9, 10, 11])]
