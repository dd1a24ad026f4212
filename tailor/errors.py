"""The one exception for what a user can mend.

The command line prints a ``BadInput`` as a single line and exits with status 2; every
other exception is a defect of ours and keeps its traceback (status 1).
"""

from __future__ import annotations


class BadInput(ValueError):
    """One line that names the thing, shows the value and says what to do."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, cut to fit into one line of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
