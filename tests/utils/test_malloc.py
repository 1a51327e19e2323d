# SPDX-License-Identifier: Apache-2.0
"""The C library keeps freed memory once told to: a process of its own counts page faults."""

import functools
import platform
import subprocess
import sys

import pytest

# A thread fills and frees a buffer, as a step's come and go. (NumPy would ask for huge pages, which
# hides the difference.)
_PROGRAM = """
import resource, threading, sys
from albert_jax.utils.malloc import give_back_large_buffers, keep_freed_memory

size, times = int(sys.argv[2]) << 20, int(sys.argv[3])
if sys.argv[1] != "default":
    assert keep_freed_memory()
if sys.argv[1] == "give back":
    assert give_back_large_buffers()

def fill():
    for _ in range(times):
        b"x" * size

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@functools.cache  # two tests ask for the same
def _page_faults(how: str, mebibytes: int, times: int) -> int:
    command = [sys.executable, "-c", _PROGRAM, how, str(mebibytes), str(times)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout)


_ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")


@_ON_GLIBC
@pytest.mark.parametrize(("mebibytes", "times"), [(64, 20), (1088, 6)])  # base's is above 1 GiB
def test_a_freed_buffer_is_not_faulted_in_again(mebibytes: int, times: int) -> None:
    kept = _page_faults("keep", mebibytes, times)
    assert kept < _page_faults("default", mebibytes, times) / 5


@_ON_GLIBC
def test_where_large_buffers_are_to_go_the_small_ones_stay() -> None:
    assert _page_faults("give back", 64, 20) < _page_faults("default", 64, 20) / 5
    assert _page_faults("give back", 1088, 6) > _page_faults("keep", 1088, 6) * 5


def test_a_process_that_keeps_nothing_is_left_as_it_is() -> None:
    program = "from albert_jax.utils.malloc import give_back_large_buffers as give\nprint(give())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
