"""Ranks without torch: groups that step together, save, die, hang and leave as protocol.md says, and the job store they write to.

Every checkpoint and journal entry remembers the true way that led to it, which no production code sees: the oracle of the tests.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.trainer_node.ranks import Listener, LocalRank
from luthier.v1 import node_service_pb2 as pb

__all__ = ["WORDS", "Fence", "Group", "JobStore", "Saved", "SimRank"]

Fence = tuple[int, int]
WORDS = ("none", "save", "save_and_leave", "stop")


@dataclass
class Saved:
    """A committed checkpoint (`step` completed steps of `phase`) or a journal entry (step -1: the phase is complete)."""

    fence: Fence
    phase: int
    step: int
    trail: tuple[Saved, ...]
    """What it was made from, oldest first."""
    broken: bool = False
    """Its bytes are wrong, which only reading shows."""

    @property
    def path(self) -> str:
        a, g = self.fence
        return f"journal/{self.phase}.a{a}g{g}" if self.step < 0 else f"checkpoints/a{a}g{g}/p{self.phase}/step-{self.step}"

    @property
    def place(self) -> tuple[int, int]:
        """(phase, completed steps)."""
        return (self.phase + 1, 0) if self.step < 0 else (self.phase, self.step)


@dataclass
class JobStore:
    """What lies in the store of one job."""

    checkpoints: dict[str, Saved] = field(default_factory=dict)
    journal: dict[str, Saved] = field(default_factory=dict)
    full_until: float = -1.0
    """Every save fails until then."""
    finished: list[Fence] = field(default_factory=list)
    """Generations that truly came to the end of the plan."""

    def scan(self) -> tuple[list[pb.CheckpointCandidate], list[pb.JournalHead]]:
        """What node 0 finds: production's `scan_store`."""
        found = [
            pb.CheckpointCandidate(fence=_fence(c.fence), phase_index=c.phase, step=c.step, digest=c.path, path=c.path)
            for c in self.checkpoints.values()
        ]
        heads: dict[Fence, Saved] = {}
        for entry in self.journal.values():
            if entry.fence not in heads or heads[entry.fence].phase < entry.phase:
                heads[entry.fence] = entry
        return found, [pb.JournalHead(fence=_fence(e.fence), index=e.phase, digest=e.path, path=e.path) for e in heads.values()]


def _fence(fence: Fence) -> pb.Fence:
    return pb.Fence(attempt=fence[0], generation=fence[1])


_pids = itertools.count(1 << 23)


class _Process:
    """Production's `RankProcess`, without a process."""

    def __init__(self) -> None:
        self.pid = next(_pids)
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if number == signal.SIGKILL:
            self.end(-9)

    def end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)

    async def wait(self) -> int | None:
        return await self.ended


class SimRank(LocalRank):
    """A rank of the simulated group: the agent's real book-keeping over a process that is a future."""

    def __init__(self, rank: int, local_rank: int, clock: Callable[[], float]) -> None:
        super().__init__(rank, local_rank, Path(), _Process(), heard=clock())  # type: ignore[arg-type]
        self._closed.set()
        self._clock = clock
        self._listener: Listener | None = None
        self.word = 0
        self.grace: float | None = None
        self.stopped = False
        """SIGSTOP: takes part in nothing and says nothing."""

    @property
    def running(self) -> bool:
        return not self._sim.ended.done()

    @property
    def _sim(self) -> _Process:
        process = self.process
        assert isinstance(process, _Process)
        return process

    def tell(self, word: str, grace: float | None) -> None:
        self.word = max(self.word, WORDS.index(word))
        self.grace = grace

    def take(self) -> int:
        """The control word, once; stop stays."""
        word = self.word
        if word != 3:
            self.word = 0
        return word

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    async def stacks(self, seconds: float = 2.0) -> str:
        return "somewhere"

    def say(self, message: Mapping[str, Any]) -> None:
        if self._listener is not None and self.running:
            self.heard = self._clock()
            self._listener(self, message)

    def fact(self, name: str, body: Mapping[str, Any]) -> None:
        self.say({"t": "fact", "fact": name, "body": body})

    def beat(self, section: str, step: int) -> None:
        self.say({"t": "beat", "section": section, "step": step})

    def leave(self, code: int, message: str = "") -> None:
        if self.running:
            self.last_words = (code, message)
            self._sim.end(code)


class Lost(Exception):
    """A peer is gone."""


class Left(Exception):
    """All leave."""


@dataclass
class Group:
    """One process group: the ranks that joined one address under one fence."""

    fence: Fence
    formed: pb.Formed
    store: JobStore
    plan: tuple[tuple[str, int], ...]
    """(kind, steps or shards) of each phase."""
    every: int
    """A checkpoint every so many steps."""
    rng: random.Random
    blocking: bool
    """Survivors of a dead peer stay in their collective, as under NCCL, until they are killed."""
    log: Callable[[str], None]
    ranks: dict[int, SimRank] = field(default_factory=dict)
    micro_batch: int = 0

    def join(self, rank: SimRank) -> None:
        """A rank came; the last one starts the work."""
        assert rank.rank not in self.ranks, f"two ranks {rank.rank} joined generation {self.fence}"
        self.ranks[rank.rank] = rank
        rank.beat("setup", 0)
        if len(self.ranks) == self.formed.world_size:
            self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._together(self.rng.uniform(0.2, 2.0))
            await self._work()
        except Lost:
            survivors = [r for r in self.ranks.values() if r.running and not r.stopped]
            if self.blocking:
                return
            for rank in survivors:
                asyncio.get_running_loop().call_later(self.rng.uniform(0.01, 3.0), rank.leave, 72, "lost its peers")
        except Left:
            for rank in self.ranks.values():
                asyncio.get_running_loop().call_later(self.rng.uniform(0.0, 1.0), rank.leave, 75)

    async def _together(self, seconds: float) -> None:
        """A collective: all take part or none comes back."""
        await asyncio.sleep(seconds)
        while any(r.stopped and r.running for r in self.ranks.values()):
            await asyncio.sleep(1.0)
        if any(not r.running for r in self.ranks.values()):
            raise Lost

    async def _work(self) -> None:
        root, store = self.ranks[0], self.store
        head: Saved | None = None
        if self.formed.HasField("journal_head"):
            head = store.journal[self.formed.journal_head.path]
        start, rejected = self._read()
        if start is not None or rejected or self.formed.HasField("resume_from"):
            body: dict[str, Any] = {"rejected": rejected}
            if start is not None:
                fence = {"attempt": start.fence[0], "generation": start.fence[1]}
                body["checkpoint"] = {
                    "fence": fence, "phaseIndex": start.phase, "step": str(start.step), "digest": start.path, "path": start.path
                }  # fmt: skip
            root.fact("resumed_from", body)
        self.trail: tuple[Saved, ...] = ((*head.trail, head) if head else ()) if start is None else (*start.trail, start)
        first = head.phase + 1 if head else 0
        self.log(f"group {self.fence} starts at {start.path if start else f'phase {first}'}")
        for index in range(first, len(self.plan)):
            kind, total = self.plan[index]
            step = start.step if start is not None and start.phase == index else 0
            body = {"index": index, "kind": kind, "totalSteps": str(total), "startStep": str(step)}
            root.fact("phase_started", body)
            await self._phase(index, kind, step, total)
            entry = Saved(self.fence, index, -1, self.trail)
            store.journal[entry.path] = entry
            self.trail = (*self.trail, entry)
            root.fact("phase_done", {"index": index, "kind": kind})
            await self._together(0.1)
        store.finished.append(self.fence)
        root.fact("plan_finished", {"result": {"kind": "adapter"}})
        for rank in self.ranks.values():
            asyncio.get_running_loop().call_later(self.rng.uniform(0.0, 1.0), rank.leave, 0)

    def _read(self) -> tuple[Saved | None, list[str]]:
        """The newest candidate whose bytes are right."""
        rejected: list[str] = []
        if not self.formed.HasField("resume_from"):
            return None, rejected
        for candidate in (self.formed.resume_from, *self.formed.fallbacks):
            saved = self.store.checkpoints[candidate.path]
            if not saved.broken:
                return saved, rejected
            rejected.append(saved.path)
        return None, rejected

    async def _phase(self, index: int, kind: str, step: int, total: int) -> None:
        begun = saved_at = step
        while step < total:
            for rank in self.ranks.values():
                rank.beat("step" if kind == "train" else "shard", step)
            await self._together(self.rng.uniform(0.5, 1.5))
            word = max(r.take() for r in self.ranks.values())
            if word == 3:
                raise Left
            if word == 2:
                await self._save_and_leave(index, kind, step, step in (saved_at, begun))
            elif kind == "train" and step > saved_at and (word == 1 or step % self.every == 0) and await self._save(index, step):
                saved_at = step
            step += 1

    async def _save(self, phase: int, step: int) -> bool:
        for rank in self.ranks.values():
            rank.beat("checkpoint", step)
        await self._together(self.rng.uniform(0.1, 4.0))
        if asyncio.get_running_loop().time() < self.store.full_until:
            return False
        saved = Saved(self.fence, phase, step, self.trail)
        self.store.checkpoints[saved.path] = saved
        self.trail = (*self.trail, saved)
        fence = {"attempt": self.fence[0], "generation": self.fence[1]}
        self.ranks[0].fact(
            "checkpoint_committed",
            {
                "checkpoint": {"fence": fence, "phaseIndex": phase, "step": str(step), "digest": saved.path, "path": saved.path},
                "stallSeconds": 0.5,
                "persistSeconds": 0.5,
            },
        )
        return True

    async def _save_and_leave(self, phase: int, kind: str, step: int, nothing_new: bool) -> None:
        if kind != "train":
            raise Left
        must_leave = any(r.grace is not None for r in self.ranks.values())
        if nothing_new or await self._save(phase, step):
            raise Left
        self.ranks[0].fact("save_failed", {"step": str(step), "message": "no space left", "trainingOn": not must_leave})
        if must_leave:
            raise Left
        for rank in self.ranks.values():
            rank.beat("step", step)
