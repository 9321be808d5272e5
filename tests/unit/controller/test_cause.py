"""Exit codes and what they mean."""

from __future__ import annotations

import pytest
from tests.unit.controller.builders import NOW, rank_end

from luthier.controller.cause import classify, first_cause, signal_name


@pytest.mark.parametrize(
    ("code", "cause", "answer", "budget"),
    [
        (0, "FINISHED", "none", ""),
        (64, "CONFIGURATION", "fail", ""),
        (65, "DATA", "fail", ""),
        (70, "METHOD", "fail", ""),
        (71, "MEMORY", "memory", "memory"),
        (72, "NETWORK", "in_place", "infra"),
        (73, "NON_FINITE", "fail", ""),
        (74, "STORAGE", "in_place_backoff", "infra"),
        (75, "LEFT", "none", ""),
        (76, "OTHER", "none", ""),
        (-9, "KILLED", "in_place", "infra"),
        (137, "KILLED", "in_place", "infra"),
        (1, "OTHER", "in_place_backoff", "infra"),
        (-1000, "OTHER", "in_place_backoff", "infra"),
    ],
)
def test_every_exit_code_has_one_meaning(code: int, cause: str, answer: str, budget: str) -> None:
    """The table of ends in protocol.md."""
    ending = classify(code)

    assert (ending.cause, ending.answer, ending.budget) == (cause, answer, budget)


def test_a_hung_rank_is_hung_whatever_killed_it() -> None:
    """The agent's own SIGKILL does not hide the hang."""
    assert classify(-9, hung=True).cause == "HUNG"


def test_the_first_cause_is_the_earliest_that_is_one() -> None:
    """Consequences, requests, successes and our own kills are none; a tie goes to the lower rank."""
    ends = [
        rank_end(72, 0, time=NOW - 9),
        rank_end(75, 1, time=NOW - 8),
        rank_end(0, 2, time=NOW - 7),
        rank_end(-9, 3, reaped=True, time=NOW - 6),
        rank_end(70, 5, time=NOW - 5),
        rank_end(-9, 4, time=NOW - 5),
        rank_end(65, 6, time=NOW - 1),
    ]

    assert first_cause(ends) == ends[5]
    assert first_cause(ends[:4]) is None


def test_exit_codes_are_told_in_words() -> None:
    """Signals by name, also behind a shell."""
    assert [signal_name(c) for c in (70, -9, 143, -1000)] == [
        "exit code 70",
        "signal 9 (SIGKILL)",
        "signal 15 (SIGTERM)",
        "an unknown exit code",
    ]
