"""The loop that makes the world what the store says: observe, decide, act. Level-triggered.

It wakes on commits, on the executor's hints, on node messages and on the earliest timer; each wake-up only names jobs to look at, and
a look starts from nothing but the store and the executor's snapshot. Every act may be repeated. So it does not matter what was missed
while the controller was away, nor where it died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from pathlib import Path

from luthier.controller.actions import Action, LaunchNodes, RemoveLaunch, StopNodes, StoreAction, WakeAt
from luthier.controller.admission import Admissions, has_deadline, launch_from_json
from luthier.controller.applying import Surroundings, apply, decide_and_apply, load_view
from luthier.controller.config import ControllerConfig
from luthier.controller.decide import decide
from luthier.controller.ends import launch_failed
from luthier.controller.executors.api import Executor, Snapshot
from luthier.controller.logs import LogStore
from luthier.controller.metrics import ControllerMetrics
from luthier.controller.sessions import Sessions
from luthier.controller.store.api import Store, Transaction
from luthier.controller.store.records import TERMINAL, EventRecord, JobRecord, JobState
from luthier.controller.store.sqlite import LeadershipLost
from luthier.controller.tokens import NodeTokens
from luthier.controller.view import Timers, View
from luthier.errors import ExecutorError

__all__ = ["Reconciler"]

_log = logging.getLogger(__name__)

_RESYNC_SECONDS = 30.0
"""Everything is looked at again at least so often, should a hint have been lost."""
_ERROR_BACKOFF = (0.5, 60.0)
_ROUNDS = 8
"""Decisions about one job in one pass: each writes something, and the longest chain of rules that follow one another is shorter."""
_CONCURRENT = 32
"""Jobs settled at once: their writes share a group commit."""
_ADMISSION_PAUSE = 4.0
"""Pause after an admission pass in multiples of its duration."""
_LOG_BLOCK = 1 << 20


class Reconciler:
    """One per controller."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        sessions: Sessions,
        admissions: Admissions,
        tokens: NodeTokens,
        logs: LogStore,
        config: ControllerConfig,
        metrics: ControllerMetrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._executor = executor
        self._sessions = sessions
        self._admissions = admissions
        self._tokens = tokens
        self._logs = logs
        self._metrics = metrics
        self._clock = clock
        self._timers = Timers.of(config)
        self._started_at = clock()
        self.address = config.listen
        """host:port that nodes attach to; set once the port is known."""
        self._dirty: set[str] = set()
        self._all = True
        self._admit = True
        self._wake = asyncio.Event()
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._snapshot = Snapshot()
        self._resync_at = 0.0
        self._admit_at = 0.0
        self._counting: set[asyncio.Task[None]] = set()

    # --- hints ------------------------------------------------------------------------------------------------------

    def poke(self, uid: str) -> None:
        """Look at this job soon."""
        self._dirty.add(uid)
        self._wake.set()

    def committed(self, events: Sequence[EventRecord]) -> None:
        """Listener of the store."""
        for event in events:
            if event.type != "CREATED":  # a new job is the business of the admission pass
                self._dirty.add(event.job_uid)
            if event.state or event.type in ("CREATED", "DELETED", "UPDATED"):
                self._admit = True
            if event.state in TERMINAL:
                self._count_finished(event)
        if events:
            self._wake.set()

    def _count_finished(self, event: EventRecord) -> None:
        async def count() -> None:
            job = await self._store.read(lambda reader: reader.job(event.job_uid))
            if job is not None:
                reason = str((job.failure or {}).get("cause", "")).removeprefix("END_CAUSE_") if event.state == "FAILED" else ""
                self._metrics.jobs_finished.labels(event.state, reason, job.method).inc()

        task = asyncio.create_task(count())
        self._counting.add(task)
        task.add_done_callback(self._counting.discard)

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; raises `LeadershipLost` when another controller took over."""
        unsubscribe = self._store.on_commit(self.committed)
        hints = asyncio.create_task(self._follow_executor())
        try:
            while True:
                await self.run_once()
                await self._sleep()
        finally:
            unsubscribe()
            hints.cancel()
            await asyncio.gather(hints, *self._counting, return_exceptions=True)

    async def run_once(self) -> None:
        """One pass: settle every job that something hints at, then admit."""
        self._wake.clear()
        now = self._clock()
        try:
            await self._observe()
            if self._all or now >= self._resync_at:
                await self._store.transact(_nothing)  # an idle controller, too, learns here that a newer one took over
                self._dirty |= await self._everything()
                self._all, self._resync_at, self._admit = False, now + _RESYNC_SECONDS, True
            due = {uid for uid, time in self._due.items() if time <= now}
            dirty, self._dirty = self._dirty | due, set()
            for uid in due:
                del self._due[uid]
            await self._settle_all(dirty)
            if self._admissions.wake_at is not None and self._clock() >= self._admissions.wake_at:
                self._admit = True
            if self._admit and self._clock() >= self._admit_at:
                await self._admission_pass()
        except LeadershipLost:
            self._metrics.leader.set(0)
            raise
        except Exception as error:  # noqa: BLE001  the loop must outlive any one failure; it is counted and tried again
            self._metrics.reconcile_errors.labels(type(error).__name__).inc()
            count = self._failures[""] = self._failures.get("", 0) + 1
            pause = min(_ERROR_BACKOFF[1], _ERROR_BACKOFF[0] * 2 ** min(count, 10))
            _log.exception("a pass failed; in %.1f s everything is looked at again", pause)
            await asyncio.sleep(pause)
            self._all = True
            self._wake.set()
        else:
            self._failures.pop("", None)

    async def _admission_pass(self) -> None:
        self._admit = False
        started = self._clock()
        look = await self._admissions.run_pass()
        # With very many waiting jobs a pass takes long: most of the time is left for everything else.
        self._admit_at = self._clock() + min(1.0, _ADMISSION_PAUSE * (self._clock() - started))
        await self._settle_all(look)

    async def _sleep(self) -> None:
        times = [self._resync_at, *self._due.values()]
        if self._admissions.wake_at is not None:
            times.append(self._admissions.wake_at)
        if self._admit:
            times.append(self._admit_at)
        wait = max(0.0, min(times) - self._clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wake.wait()

    async def _follow_executor(self) -> None:
        while True:
            try:
                async for _ in self._executor.wakeups():
                    self._wake.set()
            except Exception:  # noqa: BLE001  hints only: a look follows anyhow
                _log.exception("the executor's wake-ups broke; they are followed again")
                self._metrics.watch_restarts.inc()
                await asyncio.sleep(1.0)

    async def _observe(self) -> None:
        """Take a snapshot; jobs whose nodes changed are looked at."""
        before, self._snapshot = self._snapshot, await self._executor.observe()
        keys = before.nodes.keys() | self._snapshot.nodes.keys()
        for key in keys:
            if before.nodes.get(key) != self._snapshot.nodes.get(key):
                self._dirty.add(key[0].rpartition("-a")[0])

    async def _everything(self) -> set[str]:
        """Jobs that may need a look: all that are not finished, and all that the executor has nodes of. Waiting jobs without
        attempts are the business of the admission pass."""
        jobs = await self._store.read(lambda reader: reader.unfinished_jobs())
        self._gauge(jobs)
        waiting = {j.uid for j in jobs if j.state == JobState.QUEUED and not j.attempt and not has_deadline(j)}
        return ({j.uid for j in jobs} - waiting) | {name.rpartition("-a")[0] for name, _ in self._snapshot.nodes}

    def _gauge(self, jobs: Collection[JobRecord]) -> None:
        counts: dict[tuple[str, str], int] = {}
        for job in jobs:
            counts[str(job.state), job.queue] = counts.get((str(job.state), job.queue), 0) + 1
        self._metrics.jobs.clear()
        for (state, queue), count in counts.items():
            self._metrics.jobs.labels(state, queue).set(count)

    # --- one job ----------------------------------------------------------------------------------------------------

    async def _settle_all(self, uids: Collection[str]) -> None:
        limit = asyncio.Semaphore(_CONCURRENT)

        async def one(uid: str) -> None:
            async with limit:
                with self._metrics.reconcile.time():
                    await self._settle_safely(uid)

        results = await asyncio.gather(*(one(uid) for uid in uids), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _settle_safely(self, uid: str) -> None:
        try:
            await self._settle(uid)
        except LeadershipLost:
            raise
        except Exception as error:  # noqa: BLE001  one job's failure must not stop the others; it is counted and tried again
            count = self._failures[uid] = self._failures.get(uid, 0) + 1
            pause = min(_ERROR_BACKOFF[1], _ERROR_BACKOFF[0] * 2 ** min(count, 10))
            self._due[uid] = self._clock() + pause
            self._metrics.reconcile_errors.labels(type(error).__name__).inc()
            _log.exception("job %s could not be settled; again in %.1f s", uid, pause)
        else:
            self._failures.pop(uid, None)

    def _around(self, uid: str) -> Surroundings:
        """What only this process knows; taken on the event loop, used in the store's threads."""
        return Surroundings(
            snapshot=self._snapshot,
            timers=self._timers,
            started_at=self._started_at,
            attached=self._sessions.attached(uid),
            heard=self._sessions.heard(uid),
        )

    async def _settle(self, uid: str) -> None:
        for _ in range(_ROUNDS):
            around = self._around(uid)
            view = await self._store.read(lambda reader, around=around: load_view(reader, uid, around))  # type: ignore[misc]
            if view is None:
                await self._forget(uid)
                return
            actions = decide(view, self._clock())
            wrote = any(isinstance(a, StoreAction) for a in actions)
            if wrote:
                actions = await self._store.transact(lambda tx, around=around: decide_and_apply(tx, uid, around))  # type: ignore[misc]
            launched = await self._act(view, actions)
            if not wrote and not launched:
                self._admissions.settled(view)
                self._sessions.show(view)
                self._set_timer(view, actions)
                return
            if launched:
                await self._observe()
        self.poke(uid)

    def _set_timer(self, view: View, actions: Sequence[Action]) -> None:
        times = [a.time for a in actions if isinstance(a, WakeAt)]
        if times:
            self._due[view.job.uid] = min(times)
        else:
            self._due.pop(view.job.uid, None)
        if view.attempt is None or view.attempt.close_time is not None:
            self._admit = self._admit or view.job.state == JobState.QUEUED

    async def _act(self, view: View, actions: Sequence[Action]) -> bool:
        """Carry out executor actions; True when nodes were launched or their launch failed, so that another look is due."""
        again = False
        for action in actions:
            if isinstance(action, LaunchNodes):
                await self._launch(view, action)
                again = True
            elif isinstance(action, StopNodes):
                await self._executor.stop(action.launch, timedelta(seconds=action.grace_seconds))
            elif isinstance(action, RemoveLaunch):
                await self._remove(view.job, action.launch)
                again = True
        return again

    async def _launch(self, view: View, action: LaunchNodes) -> None:
        attempt = view.attempt
        if attempt is None or attempt.number != action.number:
            return
        token = self._tokens.issue(view.job.uid, attempt.number)
        launch = launch_from_json(attempt.launch, controller=self.address, token=token)
        try:
            await self._executor.launch(launch)
        except ExecutorError as error:
            message, retry, around = str(error), error.retry, self._around(view.job.uid)

            def give_up(tx: Transaction) -> None:
                now_view = load_view(tx, view.job.uid, around)
                starting = (JobState.STARTING, JobState.RUNNING)
                if (
                    now_view is None
                    or now_view.attempt is None
                    or now_view.attempt.end_time is not None
                    or now_view.job.state not in starting
                ):
                    return
                actions = launch_failed(now_view, now_view.attempt, tx.now, message, retry=retry)
                apply(tx, now_view, [a for a in actions if isinstance(a, StoreAction)])

            await self._store.transact(give_up)
            return

        def launched(tx: Transaction) -> None:
            if tx.attempt(view.job.uid, attempt.number) is not None:
                tx.update_attempt(view.job.uid, attempt.number, launch_time=tx.now)

        await self._store.transact(launched)

    async def _remove(self, job: JobRecord, name: str) -> None:
        """Forget a launch whose nodes are gone, after its last log bytes are saved."""
        attempt = int(name.rpartition("-a")[2])
        for index in sorted(i for n, i in self._snapshot.nodes if n == name):
            for rank, path in self._executor.log_files(name, index).items():
                await asyncio.to_thread(self._save_rest, job, attempt, index, rank, path)
        await self._executor.remove(name)
        self._sessions.forget(job.uid, attempt)
        await self._observe()
        self._admit = True

    def _save_rest(self, job: JobRecord, attempt: int, node: int, rank: int | None, path: Path) -> None:
        """In a worker thread: append what the node could not send any more."""
        offset = self._logs.end(job.tenant, job.uid, attempt, node, rank)
        with path.open("rb") as file:
            file.seek(offset)
            while data := file.read(_LOG_BLOCK):
                offset = self._logs.append(job.tenant, job.uid, attempt, node, rank, offset, data)

    async def _forget(self, uid: str) -> None:
        """The job was deleted: nothing of it may stay."""
        self._admissions.forget(uid)
        self._due.pop(uid, None)
        for name in {n for n, _ in self._snapshot.nodes if n.rpartition("-a")[0] == uid}:
            if any(node.state == "running" for node in self._snapshot.of(name)):
                await self._executor.stop(name, timedelta(seconds=self._timers.stop_grace))
            else:
                await self._executor.remove(name)
                await self._observe()

    # --- shutting down ----------------------------------------------------------------------------------------------

    async def suspend(self) -> int:
        """Ask every running job to save and leave, and admit none; returns how many were asked."""
        self._admissions.suspended = True

        def pause(tx: Transaction) -> list[str]:
            asked = []
            for job in tx.unfinished_jobs():
                if job.state in (JobState.STARTING, JobState.RUNNING) and not job.plan_finished:
                    message = "suspended: the controller is stopping; the next `luthier up` carries on"
                    tx.transition(job.uid, JobState.PAUSING, message=message, pause_cause="suspended")
                    asked.append(job.uid)
            return asked

        asked = await self._store.transact(pause)
        for uid in asked:
            self.poke(uid)
        return len(asked)

    async def open_attempts(self) -> int:
        """Jobs that still hold nodes."""
        jobs = await self._store.read(lambda reader: reader.unfinished_jobs())
        return sum(self._admissions.holds_slots(j.uid) for j in jobs)


def _nothing(_: Transaction) -> None:
    """Writes nothing, which only the leader may do."""
