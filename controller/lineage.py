"""R3: which checkpoint and which journal a new generation starts from. Pure.

All generations of a job, over all attempts, are its chain, oldest first: each was formed from the one before. Places in a plan
are (phase index, completed steps of that phase). The chain *left* generation x at the earliest place that any later generation
started from; whatever x wrote after that place is off the chain and is never read, however new it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.controller.store.records import GenerationRecord

__all__ = ["Choice", "Place", "choose", "fence_name", "start_place"]

Place = tuple[int, int]
"""(phase index, completed steps of the phase)."""

Fence = tuple[int, int]
"""(attempt, generation)."""


def fence_name(attempt: int, generation: int) -> str:
    """`a<attempt>g<generation>`."""
    return f"a{attempt}g{generation}"


def _fence(entry: Mapping[str, Any]) -> Fence:
    fence = entry.get("fence") or {}
    return int(fence.get("attempt", 0)), int(fence.get("generation", 0))


def start_place(generation: GenerationRecord) -> Place:
    """Where a generation started: its checkpoint, or the beginning of the first phase that is not in its journal."""
    head = generation.journal_head
    begin: Place = (int(head.get("index", 0)) + 1, 0) if head else (0, 0)
    resume = generation.resume_from
    if not resume:
        return begin
    return max(begin, (int(resume.get("phase_index", 0)), int(resume.get("step", 0))))


@dataclass(frozen=True)
class Choice:
    """What a new generation is told to start from. `fallbacks` are older checkpoints of the same phase, newest first."""

    resume_from: Mapping[str, Any] | None = None
    fallbacks: tuple[Mapping[str, Any], ...] = ()
    journal_head: Mapping[str, Any] | None = None


def _left(chain: Sequence[GenerationRecord]) -> dict[Fence, Place | None]:
    """Where the chain left each generation; None for the last one."""
    left: dict[Fence, Place | None] = {}
    earliest: Place | None = None
    for generation in reversed(chain):
        left[generation.attempt, generation.number] = earliest
        start = start_place(generation)
        earliest = start if earliest is None else min(earliest, start)
    return left


def choose(
    chain: Sequence[GenerationRecord], candidates: Sequence[Mapping[str, Any]], journal_heads: Sequence[Mapping[str, Any]]
) -> Choice:
    """Pick the newest journal head and checkpoint on the chain.

    `candidates` and `journal_heads` are what node 0 listed in `Ready`; those of fences that the chain does not know are ignored.
    The journal head that the last generation started from is always among the heads.
    """
    left = _left(chain)

    def on_chain(fence: Fence, place: Place) -> bool:
        if fence not in left:
            return False
        leave = left[fence]
        return leave is None or place <= leave

    heads = [h for h in journal_heads if on_chain(_fence(h), (int(h.get("index", 0)) + 1, 0))]
    if chain and chain[-1].journal_head:
        heads.append(chain[-1].journal_head)
    head = max(heads, key=lambda h: (int(h.get("index", 0)), _fence(h)), default=None)
    phase = int(head.get("index", 0)) + 1 if head else 0
    usable = [c for c in candidates if int(c.get("phase_index", 0)) == phase and on_chain(_fence(c), (phase, int(c.get("step", 0))))]
    usable.sort(key=lambda c: (int(c.get("step", 0)), _fence(c)), reverse=True)
    return Choice(usable[0] if usable else None, tuple(usable[1:]), head)
