# SPDX-License-Identifier: Apache-2.0
"""The C library keeps freed memory once told to: a process of its own counts page faults."""

import platform
import subprocess
import sys

import pytest

# A thread fills and frees a buffer, as a step's come and go. (NumPy would ask for huge pages, which
# hides the difference.)
_PROGRAM = """
import resource, threading, sys
from albert_jax.host_memory import keep_freed_memory

size, times = int(sys.argv[2]) << 20, int(sys.argv[3])
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def fill():
    for _ in range(times):
        b"x" * size

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(how: str, mebibytes: int, times: int) -> int:
    command = [sys.executable, "-c", _PROGRAM, how, str(mebibytes), str(times)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize(("mebibytes", "times"), [(64, 20), (1280, 6)])  # base's is above 1 GiB
def test_a_freed_buffer_is_not_faulted_in_again(mebibytes: int, times: int) -> None:
    kept = _page_faults("keep", mebibytes, times)
    assert kept < _page_faults("default", mebibytes, times) / 5
