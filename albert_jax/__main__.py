# SPDX-License-Identifier: Apache-2.0
"""Run the command line, as `python -m albert_jax` and as the script `albert-jax`.

Signals are handled from the first moment on, before anything slow is imported.
"""

import gc
import signal
import sys

from albert_jax.utils.collector import own_process
from albert_jax.utils.errors import TryAgain
from albert_jax.utils.interrupts import SIGNALS, watched

# Commands that continue an interrupted run when they are started again.
RESUMABLE = ("pretrain", "finetune", "prepare")


def main() -> int:
    """Run `sys.argv` and return its exit status.

    A signal ends a command that can be started again with status 75, and others with 128 plus the
    signal's number, as shells report it. Either way, half-written files are removed.
    """
    own_process()
    resumable = sys.argv[1:2] != [] and sys.argv[1] in RESUMABLE

    def status(number: int) -> int:
        return TryAgain.exit_status if resumable else 128 + number

    with watched(status):
        from albert_jax.cli import main as cli

        done = cli.main()
    for number in SIGNALS:  # the work is done: a late signal must not change the status
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # the interpreter's last collections would go through all of JAX
    return done


if __name__ == "__main__":
    sys.exit(main())
