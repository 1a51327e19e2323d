# SPDX-License-Identifier: Apache-2.0
"""The garbage collector is kept from what stays, in a process of the package's own alone."""

import gc
import subprocess
import sys

from albert_jax.utils.collector import staying

OWN = """
import gc
from albert_jax.utils import collector
collector.own_process()
with collector.staying():
    print(gc.isenabled())
    import decimal
print(gc.isenabled(), any(x is decimal.Decimal for x in gc.get_objects()))
"""


def test_what_an_own_process_imports_is_not_looked_at_again():
    done = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_a_callers_process_is_left_as_it_was():
    before = gc.get_freeze_count()
    with staying():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_a_command_ends_with_nothing_to_look_at():
    """At the interpreter's end the collector goes through all objects but those that are frozen."""
    code = (
        "import atexit, gc, sys; sys.argv = ['albert-jax', '--version']\n"
        "from albert_jax import __main__\n"
        "atexit.register(lambda: print(len(gc.get_objects()) < gc.get_freeze_count() / 10))\n"
        "sys.exit(__main__.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"
