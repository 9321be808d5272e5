"""Exit codes by error and by state; `tests/acceptance/test_cli.py` sees each of them from outside."""

from __future__ import annotations

import pytest

from luthier import errors
from luthier.cli import exits
from luthier.client.errors import BY_REASON


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.LuthierError("x"), 1),
        (errors.SpecError("x"), 1),
        (errors.Conflict("x"), 1),
        (errors.IllegalState("x"), 1),
        (errors.NotFound("x"), 4),
        (errors.JobNotFound("x"), 4),
        (errors.Unauthenticated("x"), 5),
        (errors.Denied("x"), 5),
        (errors.Unavailable("x"), 8),
        (errors.DeadlineExceeded("x"), 124),
        (BY_REASON["DRAINING"]("x"), 8),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else "",
)
def test_code_of(error: errors.LuthierError, code: int) -> None:
    """Each family of errors has its code."""
    assert code == exits.code_of(error)


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 6), ("CANCELLED", 7), ("RUNNING", 0)])
def test_of_state(state: str, code: int) -> None:
    """A failed and a cancelled job are told apart."""
    assert code == exits.of_state(state)
