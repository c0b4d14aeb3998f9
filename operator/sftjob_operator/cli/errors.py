"""What a command says when it cannot go on: one sentence for a person, and an exit code."""

from __future__ import annotations

OK, FAILED, USAGE, UNKNOWN, INTERRUPTED = 0, 1, 2, 3, 130
"""Done or Complete; the job failed, or a check did; wrong input; nobody can tell or goes on with it; Ctrl-C."""


class CliError(Exception):
    """Shown as `error: ...`; never a traceback."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        """`code` is the exit code of the process."""
        super().__init__(message)
        self.code = code
