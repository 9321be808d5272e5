"""Which waiting jobs start now: gathers what `queues.admit` needs, carries out what it decides, and remembers why the others wait.

Slots in use are known from the views that reconcile settles, waits only from the last pass: both live in memory and are rebuilt
after a start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.controller.actions import Transition
from luthier.controller.config import ControllerConfig
from luthier.controller.dependencies import broken_dependency, pinned_dependencies, unmet_dependency
from luthier.controller.executors.api import AttemptPlan, Executor, Launch, LaunchNode
from luthier.controller.inputs import Inputs
from luthier.controller.metrics import ControllerMetrics
from luthier.controller.queues import Admission, Decision, Demand, Held, Slots, Wait, admit
from luthier.controller.service.queues import QueueInfo, WaitingInfo
from luthier.controller.store.api import Reader, Store, Transaction
from luthier.controller.store.records import AttemptRecord, JobRecord, JobState, NodeRecord
from luthier.controller.view import View, launch_name
from luthier.errors import LuthierError, SpecError
from luthier.spec.models import JobSpec

__all__ = ["Admissions", "has_deadline", "launch_from_json", "launch_to_json"]

_log = logging.getLogger(__name__)

DEFAULT_QUEUE = "default"


def launch_to_json(launch: Launch) -> dict[str, Any]:
    """A launch as it is stored with its attempt: no token, no address."""
    return asdict(launch)


def launch_from_json(data: Mapping[str, Any], *, controller: str, token: str) -> Launch:
    """The stored launch, completed with what nodes need to attach."""
    nodes = tuple(
        LaunchNode(n["index"], {**n["config"], "controller": controller, "token": token}, n["cpu_slots"], n["accelerators"])
        for n in data["nodes"]
    )
    return Launch(data["name"], data["job_uid"], data["attempt"], nodes)


def has_deadline(job: JobRecord) -> bool:
    """Whether time alone can end the job."""
    return bool((job.spec.get("scheduling") or {}).get("deadline"))


@dataclass(frozen=True)
class _Candidate:
    """A QUEUED job, and what was found out about it in the store."""

    job: JobRecord
    demand: Demand
    broken: str = ""
    deadline: bool = False
    """It may time out while it waits, which is `decide`'s business."""


class Admissions:
    """`luthier.controller.service.queues.QueueView`, and the pass that admits."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        inputs: Inputs,
        config: ControllerConfig,
        metrics: ControllerMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._executor = executor
        self._inputs = inputs
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._capacities = {DEFAULT_QUEUE: Slots(config.cpu_slots, len(config.accelerators))}
        self._held: dict[str, Held] = {}
        self._waits: dict[str, Wait] = {}
        self._waiting_jobs: dict[str, JobRecord] = {}
        self.suspended = False
        """While set, nothing is admitted."""
        self.wake_at: float | None = None
        """When the next back-off ends."""

    # --- what is known ----------------------------------------------------------------------------------------------

    def settled(self, view: View) -> None:
        """Take note of the slots that a job holds."""
        held = _held(view, self._clock())
        if held is None:
            self._held.pop(view.job.uid, None)
        else:
            self._held[view.job.uid] = held

    def forget(self, uid: str) -> None:
        """The job was deleted."""
        self._held.pop(uid, None)
        self._waits.pop(uid, None)
        self._waiting_jobs.pop(uid, None)

    def holds_slots(self, uid: str) -> bool:
        """Whether nodes of the job are, or may be, there."""
        return uid in self._held

    def names(self) -> list[str]:
        """The configured queues. Asked by every submit, so it looks at no job."""
        return list(self._capacities)

    def describe(self, tenant: str | None) -> Sequence[QueueInfo]:
        """All queues, with the waiting jobs of one tenant."""
        infos = []
        for name, capacity in self._capacities.items():
            used = sum((h.slots for h in self._held.values() if h.queue == name), Slots())
            waiting = [self._info(uid, job) for uid, job in self._waiting_jobs.items() if job.queue == name]
            ordered = sorted((w for w in waiting if w is not None), key=lambda w: (w.position == 0, w.position, w.job))
            mine = tuple(w for w in ordered if tenant is None or w.tenant == tenant)
            infos.append(QueueInfo(name, capacity.cpu, capacity.accelerators, used.cpu, used.accelerators, len(ordered), mine))
        return infos

    def waiting(self, uid: str) -> WaitingInfo | None:
        """Why a job waits, as of the last pass."""
        job = self._waiting_jobs.get(uid)
        return None if job is None else self._info(uid, job)

    def _info(self, uid: str, job: JobRecord) -> WaitingInfo | None:
        wait = self._waits.get(uid)
        if wait is None:
            return None
        return WaitingInfo(uid, job.name, job.tenant, wait.reason, wait.message, wait.position, wait.estimated_start, wait.retry_at)

    # --- the pass ---------------------------------------------------------------------------------------------------

    async def run_pass(self) -> list[str]:
        """Admit what fits; returns the jobs that need a look: admitted, failed, or to be failed by `decide`."""
        candidates = await self._store.read(self._candidates)
        now = self._clock()
        look = [c.job.uid for c in candidates if c.broken or c.deadline]
        with self._metrics.schedule.time():
            decision = admit((c.demand for c in candidates if not c.broken), list(self._held.values()), self._capacities, now)
        jobs = {c.job.uid: c.job for c in candidates}
        admitted = () if self.suspended else decision.admitted
        for admission in admitted:
            try:
                if await self._start(jobs[admission.uid], admission):
                    look.append(admission.uid)
            except SpecError as error:
                await self._refuse(jobs[admission.uid], error)
                look.append(admission.uid)
        waits = dict(decision.waiting)
        if self.suspended:
            waits |= {a.uid: Wait("SUSPENDED", "the controller is shutting down") for a in decision.admitted}
        self._waits = waits
        self._waiting_jobs = {uid: job for uid, job in jobs.items() if uid in waits}
        self.wake_at = decision.wake_at
        await self._write_waits(jobs, decision)
        self._gauge(candidates)
        return look

    def _candidates(self, reader: Reader) -> list[_Candidate]:
        found = []
        for job in reader.unfinished_jobs():
            if job.state != JobState.QUEUED:
                continue
            broken = broken_dependency(reader, job) if job.dependencies else ""
            unmet = unmet_dependency(reader, job) if job.dependencies and not broken else ""
            found.append(_Candidate(job, self._demand(job, unmet), broken, has_deadline(job)))
        return found

    def _demand(self, job: JobRecord, unmet: str) -> Demand:
        resources = job.spec.get("resources") or {}
        nodes = resources.get("nodes") or {}
        low, high = int(nodes.get("min") or 1), int(nodes.get("max") or 1)
        if job.wanted_nodes is not None:
            low = high = job.wanted_nodes
        blocked, message = None, job.waiting_message
        if unmet:
            blocked, message = "DEPENDENCY", unmet
        elif self.holds_slots(job.uid):
            # Nodes of the attempt before are still leaving; the reason that it came back with stays.
            blocked = job.waiting_reason if job.waiting_reason in ("PREEMPTED", "SUSPENDED") else "RETRYING"
        return Demand(
            uid=job.uid,
            tenant=job.tenant,
            queue=job.queue,
            priority=job.priority,
            since=job.create_time,
            min_nodes=low,
            max_nodes=max(low, high),
            processes=int(resources.get("processes_per_node") or 1),
            accelerator=resources.get("accelerator") or "auto",
            blocked=blocked,  # type: ignore[arg-type]
            blocked_message=message,
            retry_at=job.retry_at,
            retry_reason="CAPACITY" if job.waiting_reason == "CAPACITY" else "RETRYING",
        )

    async def _start(self, job: JobRecord, admission: Admission) -> bool:
        """Pin, resolve, and write attempt and state in one transaction. Raises `SpecError` when an input is gone."""
        pinned = await self._store.read(lambda reader: pinned_dependencies(reader, job)) if job.dependencies else ()
        spec = JobSpec.model_validate(job.spec)
        paths = await asyncio.to_thread(self._inputs.resolve, spec, job.tenant, pinned)
        number = job.attempt + 1
        plan = AttemptPlan(
            name=launch_name(job.uid, number),
            job_uid=job.uid,
            job_name=job.name,
            tenant=job.tenant,
            attempt=number,
            num_nodes=admission.num_nodes,
            processes=int(spec.resources.processes_per_node),
            device=admission.device,
            spec=job.spec,
            inputs=paths,
        )
        launch = self._executor.prepare(plan)
        written = await self._store.transact(lambda tx: _write_start(tx, job, admission, launch, pinned))
        if written is None:
            return False
        self._held[job.uid] = Held(job.uid, job.tenant, job.queue, admission.slots)
        self._metrics.queue_wait.labels(job.queue).observe(max(0.0, self._clock() - job.cause_since))
        await self._executor.prewarm(admission.device)
        return True

    async def _refuse(self, job: JobRecord, error: LuthierError) -> None:
        """An input cannot be used any more: the user's affair."""
        failure = {"cause": "END_CAUSE_DATA", "message": str(error)}
        change = Transition(to=JobState.FAILED, message=str(error), severity="error", changes={"failure": failure})

        def write(tx: Transaction) -> None:
            present = tx.job(job.uid)
            if present is not None and present.state == JobState.QUEUED:
                tx.transition(job.uid, change.to, message=change.message, severity=change.severity, **change.changes)

        await self._store.transact(write)

    async def _write_waits(self, jobs: Mapping[str, JobRecord], decision: Decision) -> None:
        """Store reasons that changed; positions and estimates stay in memory."""
        changed = [
            (jobs[uid], wait.reason, wait.message)
            for uid, wait in self._waits.items()
            if (jobs[uid].waiting_reason, jobs[uid].waiting_message) != (wait.reason, wait.message)
        ]
        if changed:
            await self._store.transact(lambda tx: tx.set_waiting(changed))

    def _gauge(self, candidates: Iterable[_Candidate]) -> None:
        for name, capacity in self._capacities.items():
            used = sum((h.slots for h in self._held.values() if h.queue == name), Slots())
            for kind, total, busy in (("cpu", capacity.cpu, used.cpu), ("accelerator", capacity.accelerators, used.accelerators)):
                self._metrics.queue_slots.labels(name, kind, "used").set(busy)
                self._metrics.queue_slots.labels(name, kind, "free").set(max(0, total - busy))


def _write_start(
    tx: Transaction, seen: JobRecord, admission: Admission, launch: Launch, pinned: Sequence[Mapping[str, str]]
) -> AttemptRecord | None:
    """QUEUED -> STARTING with its attempt; None when the job changed since it was looked at."""
    job = tx.job(seen.uid)
    if job is None or job.state != JobState.QUEUED or job.attempt != seen.attempt:
        return None
    before = tx.attempt(job.uid, job.attempt) if job.attempt else None
    if before is not None and before.close_time is None:
        return None
    number = launch.attempt
    attempt = tx.insert_attempt(
        AttemptRecord(
            job_uid=job.uid,
            number=number,
            num_nodes=admission.num_nodes,
            executor="local",
            create_time=tx.now,
            launch=launch_to_json(launch),
        )
    )
    for index in range(admission.num_nodes):
        tx.put_node(NodeRecord(job_uid=job.uid, attempt=number, index=index))
    changes: dict[str, Any] = {
        "attempt": number,
        "generation": 0,
        "num_nodes": admission.num_nodes,
        "waiting_reason": "FORMING",
        "waiting_message": "nodes are starting",
        "retry_at": None,
    }
    if pinned:
        changes["dependencies"] = tuple(pinned)
    what = f"{admission.num_nodes} node{'s' * (admission.num_nodes != 1)} on {admission.slots}"
    tx.transition(job.uid, JobState.STARTING, message=f"admitted: {what}", **changes)
    if admission.note:
        tx.append_event(job.uid, "DEVICE_CHOSEN", admission.note, attempt=number, details={"device": admission.device})
    return attempt


def _held(view: View, now: float) -> Held | None:
    """Slots of the nodes of the newest attempt that are not gone."""
    attempt, job = view.attempt, view.job
    if attempt is None or attempt.close_time is not None:
        return None
    slots = Slots()
    for node in attempt.launch.get("nodes") or ():
        if not view.is_gone(int(node["index"])):
            slots = slots + Slots(int(node["cpu_slots"]), int(node["accelerators"]))
    eta = str(job.progress.get("eta") or "")
    estimate = now + float(eta.removesuffix("s")) if eta.endswith("s") else None
    return Held(job.uid, job.tenant, job.queue, slots, estimate)
