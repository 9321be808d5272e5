"""When is a silent rank hung? Pure: times come in, a verdict comes out.

A blocked collective notices a dead peer at once but a stopped one never, so that the agent's watch is the only hang detector. Each
section has a time-out that is learned from the run: several times the longest silence seen in it, at least the job's `hang_timeout`.
Until a section was seen a few times the floor is larger, because the first step compiles and loads. A silence is confirmed twice
before anything is killed: an agent that was itself stopped must first read what its ranks have sent meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from luthier.trainer_node.launch import Section

__all__ = ["HangWatch", "Verdict"]

Verdict = Literal["fine", "suspect", "hung"]

_FLOORS: Mapping[str, float] = {"setup": 5.0, "step": 1.0, "checkpoint": 5.0, "shard": 2.0, "evaluate": 2.0, "waiting": 30.0}
"""Smallest time-out by section, in multiples of the job's `hang_timeout`. "waiting" is long: who is waited for has a watch of its own."""

_LEARNED = 8.0
"""A silence this many times longer than the longest one of a healthy rank is not healthy."""

_OBSERVATIONS = 3
_UNSEEN = 2.0
"""Factor on the floor before a section was seen `_OBSERVATIONS` times."""


@dataclass
class _Rank:
    section: Section = "setup"
    since: float = 0.0
    suspected: float | None = None


@dataclass
class HangWatch:
    """The ranks of one node in one generation. `confirm_seconds` lie between suspicion and verdict."""

    hang_timeout: float
    confirm_seconds: float = 5.0
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _longest: dict[Section, float] = field(default_factory=dict)
    _seen: dict[Section, int] = field(default_factory=dict)

    def start(self, rank: int, now: float) -> None:
        """The rank was forked."""
        self._ranks[rank] = _Rank(since=now)

    def beat(self, rank: int, section: Section, now: float) -> None:
        """A sign of life; `section` is what the rank does from now on."""
        state = self._ranks.get(rank)
        if state is None:  # said before it was known to be gone
            return
        silence = now - state.since
        self._longest[state.section] = max(self._longest.get(state.section, 0.0), silence)
        self._seen[state.section] = self._seen.get(state.section, 0) + 1
        self._ranks[rank] = _Rank(section=section, since=now)

    def end(self, rank: int) -> None:
        """The rank is gone."""
        self._ranks.pop(rank, None)

    def timeout(self, section: Section) -> float:
        """Seconds of silence that are allowed in a section."""
        floor = self.hang_timeout * _FLOORS[section]
        if section != "setup" and self._seen.get(section, 0) < _OBSERVATIONS:
            floor *= _UNSEEN
        return max(floor, _LEARNED * self._longest.get(section, 0.0))

    def silence(self, rank: int, now: float) -> float:
        """Seconds since the last sign of life."""
        state = self._ranks.get(rank)
        return 0.0 if state is None else now - state.since

    def check(self, rank: int, now: float) -> Verdict:
        """Call about once a second, after everything that the rank has sent was read."""
        state = self._ranks.get(rank)
        if state is None or now - state.since <= self.timeout(state.section):
            return "fine"
        if state.suspected is None:
            state.suspected = now
            return "suspect"
        return "hung" if now - state.suspected >= self.confirm_seconds else "suspect"
