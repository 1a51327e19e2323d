# SPDX-License-Identifier: Apache-2.0
"""Define the errors that a command reports in one line, with an exit status.

Any other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Report a user's mistake in one sentence: what is wrong, its value, and what would be right.

    A command then ends with exit status 2.
    """

    exit_status = 2


class TryAgain(Exception):
    """Report that a run stopped for a reason outside its settings and may be restarted.

    Reasons are a signal, a lost process and a step that hangs. A command then ends with exit status
    75.
    """

    exit_status = 75
