# SPDX-License-Identifier: Apache-2.0
"""The errors a command turns into one line on stderr and an exit status; anything else is a bug and
keeps its traceback."""


class UserError(Exception):
    """A mistake the user can mend: one sentence with what is wrong, the value, what would be right.
    Exit status 2."""

    exit_status = 2


class TryAgain(Exception):
    """The run stopped through no fault of its settings (preempted, a step hung) and may be
    restarted. Exit status 75."""

    exit_status = 75
