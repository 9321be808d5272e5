"""R3: which checkpoint and journal a generation starts from."""

from __future__ import annotations

from typing import Any

from tests.unit.controller.builders import generation

from luthier.controller.lineage import choose, fence_name, start_place
from luthier.controller.store.records import GenerationRecord


def candidate(attempt: int, number: int, step: int, phase: int = 0) -> dict[str, Any]:
    """A verified checkpoint that node 0 found."""
    fence = {"attempt": attempt, "generation": number}
    path = f"checkpoints/{fence_name(attempt, number)}/step-{step}"
    return {"fence": fence, "phase_index": phase, "step": step, "digest": f"d{step}", "path": path}


def head(attempt: int, number: int, index: int) -> dict[str, Any]:
    """A journal head that node 0 found."""
    return {"fence": {"attempt": attempt, "generation": number}, "index": index, "digest": f"h{index}", "path": "journal"}


def formed(number: int, *, attempt: int = 1, resume: Any = None, journal: Any = None) -> GenerationRecord:
    """A generation that started from there."""
    return generation(number, attempt=attempt, resume_from=resume, journal_head=journal)


def test_the_first_generation_starts_at_the_beginning() -> None:
    """Without a chain nothing that lies in the store counts."""
    assert choose([], [candidate(1, 1, 5)], [head(1, 1, 0)]).resume_from is None


def test_the_newest_checkpoint_of_the_last_generation_counts() -> None:
    """Also one whose `committed` fact was lost with its node; older ones are fallbacks, newest first."""
    choice = choose([formed(1)], [candidate(1, 1, 5), candidate(1, 1, 15), candidate(1, 1, 10)], [])

    assert choice.resume_from == candidate(1, 1, 15)
    assert choice.fallbacks == (candidate(1, 1, 10), candidate(1, 1, 5))


def test_what_a_zombie_wrote_after_the_chain_left_it_is_never_read() -> None:
    """Generation 2 left generation 1 at step 10: step 15 of generation 1 is off the chain however new it is."""
    chain = [formed(1), formed(2, resume=candidate(1, 1, 10))]
    choice = choose(chain, [candidate(1, 1, 15), candidate(1, 1, 10), candidate(1, 1, 5)], [])

    assert choice.resume_from == candidate(1, 1, 10)
    assert choice.fallbacks == (candidate(1, 1, 5),)


def test_a_later_generation_wins_over_an_older_one() -> None:
    """The chain goes on over attempts; the farthest place on it is taken."""
    chain = [formed(1), formed(2, resume=candidate(1, 1, 10)), formed(1, attempt=2, resume=candidate(1, 2, 20))]
    found = [candidate(1, 1, 30), candidate(1, 2, 20), candidate(1, 2, 40), candidate(2, 1, 25)]

    assert choose(chain, found, []).resume_from == candidate(2, 1, 25)


def test_a_generation_that_fell_back_takes_the_chain_with_it() -> None:
    """Generation 3 started from step 5 of generation 1: everything after step 5 of 1 and 2 is off the chain."""
    chain = [formed(1), formed(2, resume=candidate(1, 1, 10)), formed(3, resume=candidate(1, 1, 5))]
    found = [candidate(1, 1, 10), candidate(1, 1, 5), candidate(1, 2, 12)]

    assert choose(chain, found, []).resume_from == candidate(1, 1, 5)


def test_the_journal_decides_the_phase() -> None:
    """A checkpoint of a phase that is complete, or not yet reached by the journal, is no start."""
    found = [candidate(1, 1, 100, phase=1), candidate(1, 1, 7, phase=2), candidate(1, 1, 9, phase=3)]
    choice = choose([formed(1)], found, [head(1, 1, 1), head(1, 1, 0)])

    assert choice.journal_head == head(1, 1, 1)
    assert (choice.resume_from, choice.fallbacks) == (candidate(1, 1, 7, phase=2), ())


def test_a_zombies_journal_is_never_read() -> None:
    """An entry of generation 1 for a phase that generation 2 began anew is off the chain; what generation 2 started from stays."""
    chain = [formed(1), formed(2, journal=head(1, 1, 0))]
    choice = choose(chain, [], [head(1, 1, 2)])

    assert choice.journal_head == head(1, 1, 0)
    assert choose([*chain[:1], formed(2, journal=head(1, 1, 0))], [], [head(1, 2, 1)]).journal_head == head(1, 2, 1)


def test_fences_that_the_chain_does_not_know_are_ignored() -> None:
    """A folder of an attempt that this job never had is nobody's."""
    assert choose([formed(1)], [candidate(9, 9, 99)], [head(9, 9, 3)]) == choose([formed(1)], [], [])


def test_the_start_of_a_generation_is_its_checkpoint_or_its_phase() -> None:
    """(phase, step) of the checkpoint, or the beginning of the first phase that is not in the journal."""
    assert start_place(formed(1)) == (0, 0)
    assert start_place(formed(2, journal=head(1, 1, 1))) == (2, 0)
    assert start_place(formed(2, journal=head(1, 1, 1), resume=candidate(1, 1, 7, phase=2))) == (2, 7)
