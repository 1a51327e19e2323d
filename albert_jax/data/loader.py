# SPDX-License-Identifier: Apache-2.0
"""Draw batches of examples ahead, in threads or processes; describe a source.

Batch b is examples b * B … b * B + B - 1 of the source, whoever draws it. The order does not depend
on the number of threads, processes or hosts.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol, TypedDict

import numpy as np

from albert_jax.data.special_pieces import MASK_ID
from albert_jax.utils.errors import TryAgain, UserError
from albert_jax.utils.wording import Naming, current_naming, name_as, setting

Example = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]

# The arrays of a batch; an example that `draw` returns has some more.
KEYS = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "masked_lm_weights",
    "sentence_order_labels",
)


class ExampleSource(Protocol):
    """Give examples by index without end: epoch after epoch, each shuffled as a whole."""

    def __len__(self) -> int:
        """Return the number of examples in epoch 0."""

    def __getitem__(self, index: int) -> Example:
        """Return the arrays of KEYS for one example."""

    def draw(self, index: int) -> Example:
        """Return `self[index]`, and the arrays that only reports and files need."""

    def epoch_of(self, index: int) -> tuple[int, int]:
        """Return an example's epoch, and its index in the epoch."""

    def epoch_size(self, epoch: int) -> int:
        """Return the number of examples in an epoch."""

    def ended_epochs(self, index: int) -> list[Any]:
        """Return the sizes of the epochs that ended before an example, as JSON."""

    def remember_epochs(self, sizes: list[Any]) -> None:
        """Accept the result of `ended_epochs`, so that those epochs need not be planned again."""


def batch_at(
    source: ExampleSource,
    batch_index: int,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Batch:
    """Return this process's rows of a global batch: [B/P, S], [B/P, P] and labels [B/P].

    They are int32, masked_lm_weights float32. Raises UserError if the batch does not divide over
    the processes.
    """
    if batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} does not divide over {process_count} processes; "
            "use a multiple of their number"
        )
    rows = batch_size // process_count
    first = batch_index * batch_size + process_index * rows
    examples = [source[index] for index in range(first, first + rows)]
    return {key: np.stack([example[key] for example in examples]) for key in KEYS}


@dataclass(frozen=True)
class Draw:
    """`batch_at` with all but the index bound, in a form that can be sent to a worker process."""

    source: ExampleSource
    batch_size: int
    process_index: int = 0
    process_count: int = 1

    def __call__(self, batch_index: int) -> Batch:
        process = {"process_index": self.process_index, "process_count": self.process_count}
        return batch_at(self.source, batch_index, self.batch_size, **process)


def make_dataset(
    draw: Draw, *, start: int = 0, stop: int | None = None, threads: int = 2, workers: int = 0
) -> Batches:
    """Iterate over batches start, start + 1, … (to stop), each equal to `batch_at`.

    `threads` threads draw one batch each ahead of time. If `workers` is not 0, that many processes
    do it instead, and plan epochs themselves. With neither, a batch is drawn when it is requested.
    """
    indices = itertools.count(start) if stop is None else range(start, stop)
    return Batches(draw, indices, threads, workers)


class Batches(Iterator[Batch]):
    """Yield batches in order, drawn ahead; an error of drawing is raised when its batch is due.

    Call `close` at the end, or use contextlib.closing, to end the threads or processes.
    """

    def __init__(
        self, draw: Callable[[int], Batch], indices: Iterable[int], threads: int, workers: int
    ):
        self._indices = iter(indices)
        self._pending: deque[Future[Batch]] = deque()
        self._ahead = workers or threads
        self._draw = draw
        self._pool: Executor | None = None
        naming = current_naming()  # of the errors that the pool's threads or processes raise
        if workers:
            # Not fork: a child of a process that runs JAX's threads may deadlock.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, spawn, _start_worker, (draw, naming))
            self._draw = _draw_in_worker
        elif threads:
            self._pool = ThreadPoolExecutor(threads, "draw-batches", name_as, (naming,))

    def __next__(self) -> Batch:
        if self._pool is None:
            return self._draw(next(self._indices))
        self._submit(self._ahead)
        if not self._pending:
            raise StopIteration
        due = self._pending.popleft()
        self._submit(self._ahead)  # while the caller works on this one
        with _killed_workers_told():
            return due.result()

    def _submit(self, ahead: int) -> None:
        assert self._pool is not None
        with _killed_workers_told():
            for index in itertools.islice(self._indices, ahead - len(self._pending)):
                self._pending.append(self._pool.submit(self._draw, index))

    def close(self, *, wait: bool = True) -> None:
        """Drop what was drawn ahead, after waiting for the batches that are being drawn."""
        self._indices = iter(())
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self.close(wait=False)


_worker_draw: Callable[[int], Batch]  # set in a worker process only


@contextlib.contextmanager
def _killed_workers_told() -> Iterator[None]:
    """Raise TryAgain if a process that draws batches was killed, perhaps for want of memory."""
    try:
        yield
    except BrokenProcessPool:
        raise TryAgain(
            f"a process that draws batches ({setting('train.data_workers')}) was killed, perhaps "
            "for want of memory; run the same command again, with fewer of them"
        ) from None


def _start_worker(draw: Callable[[int], Batch], naming: Naming) -> None:
    global _worker_draw
    _worker_draw = draw
    name_as(naming)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # to all of a group; it is the parent's to handle
    # A worker would wait for work for ever after its parent was killed.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _draw_in_worker(batch_index: int) -> Batch:
    return _worker_draw(batch_index)


# --------------------------------------------------------------------------------------- the report


class ExampleStatistics(TypedDict):
    """Hold lengths and fractions of examples as they were drawn.

    `ngrams` is by number of words, `replaced_by` by mask, itself and random.
    """

    examples: int
    tokens_per_example: float
    padding_share: float
    masked_share: float
    predictions_per_example: float
    ngrams: dict[str, float] | None
    replaced_by: dict[str, float]
    label_1_share: float


def describe_examples(
    source: ExampleSource, examples: int = 1000, mask_id: int = MASK_ID
) -> ExampleStatistics:
    """Return lengths and fractions of the first examples of a source.

    `ngrams` has the fractions of masked n-grams by their number of words, None if the source does
    not know them (records). A random piece that happens to be the masked token itself counts as
    kept.
    """
    examples = min(examples, len(source))
    words: Counter[int] = Counter()
    tokens = slots = masked = labels = as_mask = kept = 0
    for index in range(examples):
        example = source.draw(index)
        tokens += int(example["input_mask"].sum())
        slots += len(example["input_mask"])
        labels += int(example["sentence_order_labels"])
        real = example["masked_lm_weights"] > 0
        inputs = example["input_ids"][example["masked_lm_positions"][real]]
        masked += int(real.sum())
        as_mask += int((inputs == mask_id).sum())
        kept += int((inputs == example["masked_lm_ids"][real]).sum())
        words.update(example.get("ngram_words", np.empty(0, int)).tolist())
    return {
        "examples": examples,
        "tokens_per_example": tokens / examples,
        "padding_share": 1 - tokens / slots,
        "masked_share": masked / tokens,
        "predictions_per_example": masked / examples,
        "ngrams": {str(n): words[n] / words.total() for n in sorted(words)} or None,
        "replaced_by": {
            "mask": as_mask / masked,
            "itself": kept / masked,
            "random": 1 - (as_mask + kept) / masked,
        },
        "label_1_share": labels / examples,
    }
