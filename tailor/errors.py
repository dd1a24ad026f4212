"""The one exception for what a user can mend.

The command line prints a ``BadInput`` as a single line and exits with status 2; every
other exception is a defect of ours and keeps its traceback (status 1).
"""

from __future__ import annotations


class BadInput(ValueError):
    """One line that names the thing, shows the value and says what to do."""
