"""What must hold at every commit, at every message and at every exit, whatever happens: the rules of protocol.md as questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.unit.protocol.training import Saved

from luthier.controller.executors.api import Launch
from luthier.controller.store.api import Transaction
from luthier.controller.store.reading import SqlReader
from luthier.controller.store.records import TERMINAL, AttemptRecord, GenerationRecord, JobRecord, JobState, NodeRecord
from luthier.controller.store.rows import to_micros
from luthier.controller.store.states import is_legal
from luthier.v1 import node_service_pb2 as pb

if TYPE_CHECKING:
    from tests.unit.protocol.virtual import InlineStore
    from tests.unit.protocol.world import Machine, World

__all__ = ["Monitor"]

_FORMING = (JobState.STARTING, JobState.RUNNING)


class Monitor:
    """Looks at the database after every commit and at every message on its way down. What is wrong ends the run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._jobs: dict[str, JobRecord] = {}
        self._generations: dict[tuple[str, int, int], GenerationRecord] = {}
        self._acknowledged: set[str] = set()
        self._joined: dict[tuple[Any, int], str] = {}
        self._revision = 0
        self._store: InlineStore | None = None
        self.infra_faults = 0
        """Faults of a kind that may be charged to the infrastructure budget."""
        self.formed = 0

    def close(self) -> None:
        """Look no more."""
        self._store = None

    def jobs(self) -> dict[str, JobRecord]:
        """By name, as of the last commit."""
        return {job.name: job for job in self._jobs.values()}

    def generations(self, uid: str) -> list[GenerationRecord]:
        """The chain, oldest first."""
        return [g for (of, _, _), g in sorted(self._generations.items()) if of == uid]

    def _wrong(self, text: str) -> None:
        error = AssertionError(text)
        if not self._world.errors:
            self._world.failed(error)

    # --- commits -------------------------------------------------------------------------------------------------------

    def committed(self, store: InlineStore) -> None:
        """After every commit of any controller."""
        reader = SqlReader(store._connection, store._cache)
        with store._connection.begin():
            self._events(reader)
            jobs = {job.uid: job for uid in self._known(reader) if (job := reader.job(uid)) is not None}
            for uid in self._acknowledged - jobs.keys():
                if uid in self._jobs and self._jobs[uid].state not in TERMINAL:
                    self._wrong(f"job {uid} was acknowledged and is lost")
            before, self._jobs = self._jobs, jobs
            for uid, job in jobs.items():
                if job != before.get(uid):
                    self._job(before.get(uid), job)
                for generation in reader.all_generations(uid):
                    self._generation(job, generation)

    def _known(self, reader: SqlReader) -> list[str]:
        return list(dict.fromkeys([*self._jobs, *self._acknowledged, *(e.job_uid for e in self._new)]))

    def _events(self, reader: SqlReader) -> None:
        self._new = reader.events_after(self._revision)
        for event in self._new:
            if event.revision != self._revision + 1:
                self._wrong(f"revision {event.revision} follows {self._revision}")
            self._revision = event.revision
            self._world.say(f"  {event.job_name} a{event.attempt}g{event.generation} {event.type} {event.state} {event.message}"[:200])

    def _job(self, before: JobRecord | None, job: JobRecord) -> None:
        if before is not None and before.state != job.state and not is_legal(before.state, job.state):
            self._wrong(f"{before.state} -> {job.state} is illegal")
        spent = sum(to_micros(seconds) for seconds in job.cause_seconds.values())
        wall = to_micros(job.cause_since) - to_micros(job.create_time)
        if spent != wall:
            self._wrong(f"{spent} µs are charged of {wall} µs of wall time: {dict(job.cause_seconds)}")
        used = int(job.budget_used.get("infra", 0))
        if used > self.infra_faults:
            self._wrong(f"{used} infrastructure retries are charged for {self.infra_faults} faults of the infrastructure")
        if job.state == JobState.SUCCEEDED and not job.plan_finished:
            self._wrong("SUCCEEDED without an accepted report")
        if job.plan_finished and (before is None or not before.plan_finished):
            last = self.generations(job.uid)[-1]
            if (last.attempt, last.number) not in self._world.job_store(job.uid).finished or last.end_time is not None:
                self._wrong(f"a report was accepted for generation a{last.attempt}g{last.number}, which did not finish or had ended")

    def _generation(self, job: JobRecord, generation: GenerationRecord) -> None:
        key = (generation.job_uid, generation.attempt, generation.number)
        before = self._generations.get(key)
        if before == generation:
            return
        if before is None:
            self._formation(job, generation)
        elif before.end_time is not None and (before.end_time, before.end_cause) != (generation.end_time, generation.end_cause):
            self._wrong(f"generation a{generation.attempt}g{generation.number} was closed twice")
        self._generations[key] = generation

    def _formation(self, job: JobRecord, generation: GenerationRecord) -> None:
        """A generation was written: in the right state, after its predecessor was closed, from the newest place on the chain."""
        self.formed += 1
        if job.state not in _FORMING:
            self._wrong(f"generation {generation.number} was formed while the job is {job.state}")
        chain = self.generations(job.uid)
        if chain and chain[-1].end_time is None:
            self._wrong(f"generation {generation.number} was formed before its predecessor was closed")
        store = self._world.job_store(job.uid)
        start = store.checkpoints.get(str((generation.resume_from or {}).get("path")))
        head = store.journal.get(str((generation.journal_head or {}).get("path")))
        newest = _newest(chain, self._world.scanned[generation.address])  # what is committed later is a zombie's
        for chosen in (start, head):
            if chosen is not None and not _on_chain(chain, chosen):
                self._wrong(f"generation {generation.number} starts from {chosen.path}, which lies off the chain")
        place = max((s.place for s in (start, head) if s is not None), default=(0, 0))
        if newest is not None and place < newest.place:
            self._wrong(f"generation {generation.number} starts at {place} although {newest.path} was committed")

    # --- messages and processes ------------------------------------------------------------------------------------------

    def acknowledged(self, uid: str) -> None:
        """A CreateJob was answered."""
        self._acknowledged.add(uid)
        if uid not in self._jobs:
            self._wrong(f"job {uid} was acknowledged and does not exist")

    def sent(self, place: tuple[str, int, int], incarnation: str, response: pb.AttachResponse) -> None:
        """A message left the controller."""
        kind = response.WhichOneof("message")
        if kind == "formed":
            job = self._jobs.get(place[0])
            if job is None or job.state not in _FORMING:
                self._wrong(f"Formed was sent to {incarnation} while the job is {job.state if job else 'deleted'}")
        if kind not in ("ack", "waiting"):
            what = pb.Directive.Kind.Name(response.directive.kind) if kind == "directive" else ""
            self._world.say(f"  -> {incarnation}: {kind} {what}")

    def joined(self, place: tuple[str, int, int], incarnation: str, formed: pb.Formed) -> None:
        """A node starts ranks."""
        key = (place, formed.fence.generation)
        other = self._joined.setdefault(key, incarnation)
        if other != incarnation:
            self._wrong(f"{incarnation} joined generation {formed.fence.generation}, which {other} had joined")

    def exited(self, machine: Machine, code: int) -> None:
        """An agent ended by itself. Node 0's report is the one that counts; the others' only tell that they are done."""
        job = self._jobs.get(machine.launch.job_uid)
        if (
            code == 0
            and machine.launch.node == 0
            and job is not None
            and not job.plan_finished
            and job.attempt == machine.launch.attempt
            and job.state in _FORMING
        ):
            self._wrong(f"{machine.incarnation} exited with 0 although no report was accepted")

    def launching(self, launch: Launch) -> None:
        """The executor is about to start nodes."""
        for name, launched in self._world.launches.items():
            if name.rpartition("-a")[0] == launch.job_uid:
                alive = [m for i, m in launched.machines.items() if not m.dead and i not in launched.lost]
                if alive:
                    self._wrong(f"{launch.name} is launched while nodes of {name} run")

    def applying(self, apply: Callable[..., None]) -> Callable[..., None]:
        """Around production's `apply_fact`: what a fact must not change."""

        def checked(tx: Transaction, job: JobRecord, attempt: AttemptRecord, node: NodeRecord, fact: pb.Fact) -> None:
            generations = tx.generations(job.uid, attempt.number)
            old = not generations or fact.fence.generation < generations[-1].number
            before = self._fate(tx, job.uid, attempt.number)
            apply(tx, job, attempt, node, fact)
            after = self._fate(tx, job.uid, attempt.number)
            if before[0] != after[0]:
                self._wrong(f"a fact changed the state from {before[0]} to {after[0]}")
            if old and fact.fence.generation and before != after:
                self._wrong(f"a {fact.WhichOneof('fact')} of generation {fact.fence.generation} changed {before} to {after}")

        return checked

    @staticmethod
    def _fate(tx: Transaction, uid: str, attempt: int) -> tuple[Any, ...]:
        """What decides what happens next."""
        job = tx.job(uid)
        assert job is not None
        generations = tx.generations(uid, attempt)
        nodes = [(n.index, n.incarnation, n.ready_after, n.left, n.finished) for n in tx.nodes(uid, attempt)]
        return job.state, job.plan_finished, job.budget_used, job.progress, job.cause, generations[-1:], nodes


def _start(generation: GenerationRecord) -> tuple[int, int]:
    head, resume = generation.journal_head, generation.resume_from
    begin = (int(head["index"]) + 1, 0) if head else (0, 0)
    return max(begin, (int(resume["phase_index"]), int(resume["step"]))) if resume else begin


def _on_chain(chain: list[GenerationRecord], saved: Saved) -> bool:
    """Whether the chain passes through what was saved: no later generation started before it."""
    fences = [(g.attempt, g.number) for g in chain]
    if saved.fence not in fences:
        return False
    return all(_start(g) >= saved.place for g in chain[fences.index(saved.fence) + 1 :])


def _newest(chain: list[GenerationRecord], saved: list[Saved]) -> Saved | None:
    """The farthest place that the last generation, or what it started from, has committed."""
    return max((s for s in saved if _on_chain(chain, s)), key=lambda s: s.place, default=None)
