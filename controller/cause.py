"""What the end of a rank means: protocol.md's table of ends as data.

A cause is the name of a `luthier.v1.EndCause` without its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.controller.store.records import RankEndRecord

__all__ = ["EXIT_FENCED", "EXIT_FINISHED", "EXIT_LEFT", "EXIT_PEER_LOST", "Answer", "Ending", "classify", "first_cause", "signal_name"]

EXIT_FINISHED = 0
EXIT_PEER_LOST = 72
EXIT_LEFT = 75
EXIT_FENCED = 76

Answer = Literal["in_place", "in_place_backoff", "memory", "fail", "none"]
"""What follows: a new generation on the same nodes (at once, or after a back-off), half the micro-batch, FAILED, or nothing."""


@dataclass(frozen=True)
class Ending:
    """A cause, what follows from it, and the budget it is taken from ("": none)."""

    cause: str
    answer: Answer
    budget: Literal["", "infra", "memory"] = ""


_BY_CODE = {
    EXIT_FINISHED: Ending("FINISHED", "none"),
    64: Ending("CONFIGURATION", "fail"),
    65: Ending("DATA", "fail"),
    70: Ending("METHOD", "fail"),
    71: Ending("MEMORY", "memory", "memory"),
    EXIT_PEER_LOST: Ending("NETWORK", "in_place", "infra"),
    73: Ending("NON_FINITE", "fail"),
    74: Ending("STORAGE", "in_place_backoff", "infra"),
    EXIT_LEFT: Ending("LEFT", "none"),
    EXIT_FENCED: Ending("OTHER", "none"),
}
_KILLED = Ending("KILLED", "in_place", "infra")
_HUNG = Ending("HUNG", "in_place", "infra")
_OTHER = Ending("OTHER", "in_place_backoff", "infra")

UNKNOWN_CODE = -1000
"""`RankExited.code` when the exit code could not be learned."""


def classify(code: int, *, hung: bool = False) -> Ending:
    """The meaning of an exit code. Signals come negative, or as 128 + n from a shell between."""
    if hung:
        return _HUNG
    known = _BY_CODE.get(code)
    if known is not None:
        return known
    if code == UNKNOWN_CODE:
        return _OTHER
    if code < 0 or 128 < code <= 192:
        return _KILLED
    return _OTHER


def signal_name(code: int) -> str:
    """ "exit code 70", "signal 9 (SIGKILL)": an exit code for people."""
    import signal

    number = -code if code < 0 else code - 128 if 128 < code <= 192 else 0
    if code == UNKNOWN_CODE:
        return "an unknown exit code"
    if not number:
        return f"exit code {code}"
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def first_cause(ends: Sequence[RankEndRecord]) -> RankEndRecord | None:
    """The end that decides: the earliest that is neither a consequence (72), a request (75), success, nor our own kill."""
    causes = [e for e in ends if not e.reaped and (e.hung or e.code not in (EXIT_FINISHED, EXIT_PEER_LOST, EXIT_LEFT, EXIT_FENCED))]
    return min(causes, key=lambda e: (e.time, e.rank), default=None)
