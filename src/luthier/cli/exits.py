"""Exit codes of the command, and which error gives which."""

from __future__ import annotations

from luthier import errors

__all__ = [
    "CANCELLED",
    "DENIED",
    "ERROR",
    "FAILED",
    "INTERRUPTED",
    "NOT_FOUND",
    "OK",
    "TIMEOUT",
    "UNAVAILABLE",
    "USAGE",
    "code_of",
    "of_state",
]

OK = 0
"""Done."""
ERROR = 1
"""Something is wrong with the request, the job or the server."""
USAGE = 2
"""The command line is wrong."""
NOT_FOUND = 4
"""No such job, artifact or method."""
DENIED = 5
"""No or a wrong token, or no right."""
FAILED = 6
"""The job that was waited for failed."""
CANCELLED = 7
"""The job that was waited for was cancelled."""
UNAVAILABLE = 8
"""No controller answers."""
TIMEOUT = 124
"""The time given is over."""
INTERRUPTED = 130
"""Ctrl-C."""


def code_of(error: errors.LuthierError) -> int:
    """The exit code of an error."""
    families: tuple[tuple[type[errors.LuthierError], int], ...] = (
        (errors.NotFound, NOT_FOUND),
        (errors.Unauthenticated, DENIED),
        (errors.Denied, DENIED),
        (errors.Unavailable, UNAVAILABLE),
        (errors.DeadlineExceeded, TIMEOUT),
    )
    return next((code for family, code in families if isinstance(error, family)), ERROR)


def of_state(state: str) -> int:
    """The exit code of a job that was waited for."""
    return {"FAILED": FAILED, "CANCELLED": CANCELLED}.get(state, OK)
