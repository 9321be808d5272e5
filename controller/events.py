"""Fan-out of committed events to watchers.

The store calls the bus after each commit. One task reads the jobs that changed, once for everybody, and hands (event, job) to each
watcher's bounded queue. A watcher subscribes first and then reads its backlog, so that a resumed stream has no gap; it drops what it
has sent already, so that it has no duplicate. Whoever reads too slowly is told so and resumes by revision; nothing grows without
bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field

from luthier.controller.store.api import Reader, Store
from luthier.controller.store.records import TERMINAL, EventRecord, JobRecord
from luthier.errors import Exhausted, JobNotFound, LuthierError, TokenExpired

__all__ = ["EventBus", "Update"]

_BACKLOG_PAGE = 500
_SNAPSHOT_PAGE = 200


@dataclass(frozen=True)
class Update:
    """One message to a watcher: an event with the job after it, a job alone (snapshot, progress), or neither (heartbeat).

    `revision`: everything up to here was sent; 0 while a snapshot is not complete.
    """

    revision: int
    event: EventRecord | None = None
    job: JobRecord | None = None


@dataclass(eq=False)
class _Subscription:
    """What waits for one watcher. `seen`: revision of the newest event that the bus offered, wanted or not."""

    tenant: str
    limit: int
    uids: frozenset[str] | None = None
    queue: deque[tuple[EventRecord, JobRecord | None]] = field(default_factory=deque)
    progress: dict[str, JobRecord] = field(default_factory=dict)
    seen: int = 0
    overflowed: bool = False
    error: LuthierError | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wants(self, tenant: str, uid: str) -> bool:
        return tenant == self.tenant and (self.uids is None or uid in self.uids)

    def offer(self, events: Sequence[EventRecord], progress: Collection[str], jobs: dict[str, JobRecord]) -> None:
        for event in events:
            if self.wants(event.tenant, event.job_uid):
                self.queue.append((event, jobs.get(event.job_uid)))
        for uid in progress:
            job = jobs.get(uid)
            if job is not None and self.wants(job.tenant, uid):
                self.progress[uid] = job
        if events:
            self.seen = events[-1].revision
        if len(self.queue) > self.limit:
            self.queue.clear()
            self.overflowed = True
        if self.queue or self.progress or self.overflowed:
            self.wake.set()

    def fail(self, error: LuthierError) -> None:
        self.error = error
        self.wake.set()


class EventBus:
    """Watches the store and feeds watchers.

    `queue_limit`: events that may wait for one watcher; `progress_seconds`: progress of a job is sent at most that often;
    `heartbeat_seconds`: silence after which a heartbeat is sent; `most_watchers`: of all tenants together.
    """

    def __init__(
        self,
        store: Store,
        *,
        queue_limit: int = 1000,
        progress_seconds: float = 0.5,
        heartbeat_seconds: float = 15.0,
        most_watchers: int = 1000,
    ) -> None:
        self._store = store
        self._queue_limit = queue_limit
        self._progress_seconds = progress_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._most_watchers = most_watchers
        self._subscriptions: set[_Subscription] = set()
        self._events: list[EventRecord] = []
        self._progress: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stop = contextlib.ExitStack()

    async def start(self) -> None:
        """Listen to the store from now on."""
        self._stop.callback(self._store.on_commit(self._on_commit))
        self._stop.callback(self._store.on_progress(self._on_progress))
        self._task = asyncio.create_task(self._run(), name="event-bus")

    async def close(self) -> None:
        """Stop listening. Watchers that are still there hear nothing more; the server ends them."""
        self._stop.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def num_watchers(self) -> int:
        """Open streams, for metrics."""
        return len(self._subscriptions)

    # --- from the store ---

    def _on_commit(self, events: Sequence[EventRecord]) -> None:
        if self._subscriptions and events:
            self._events.extend(events)
            self._wake.set()

    def _on_progress(self, jobs: Collection[tuple[str, str]]) -> None:
        wanted = {uid for tenant, uid in jobs if any(s.wants(tenant, uid) for s in self._subscriptions)}
        if wanted:
            self._progress |= wanted
            self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_progress = 0.0
        while True:
            delay = max(0.0, next_progress - loop.time()) if self._progress else None
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass  # held-back progress is due
            self._wake.clear()
            events, self._events = self._events, []
            progress: set[str] = set()
            if self._progress and loop.time() >= next_progress:
                progress, self._progress = self._progress, set()
                next_progress = loop.time() + self._progress_seconds
            if events or progress:
                await self._publish(events, progress)

    async def _publish(self, events: list[EventRecord], progress: set[str]) -> None:
        wanted = {e.job_uid for e in events if any(s.wants(e.tenant, e.job_uid) for s in self._subscriptions)} | progress
        try:
            jobs = await self._store.read(lambda reader: reader.jobs(wanted)) if wanted else {}
        except LuthierError as error:
            # Their queues would have a gap: they resume from their last revision.
            for subscription in self._subscriptions:
                subscription.fail(error)
            return
        for subscription in tuple(self._subscriptions):
            subscription.offer(events, progress, jobs)

    # --- watchers ---

    async def watch(
        self, tenant: str, names: Sequence[str] = (), *, after_revision: int | None = None, until_terminal: bool = False
    ) -> AsyncGenerator[Update, None]:
        """Updates of some jobs of a tenant, or of all.

        Without `after_revision`: first the jobs as they are. Raises `JobNotFound` for an unknown name, `TokenExpired` for a revision that
        is not kept any more, `Exhausted` (SLOW_READER) when the reader falls behind.
        """
        if len(self._subscriptions) >= self._most_watchers:
            raise Exhausted(
                f"{self._most_watchers} watch streams are open",
                reason="QUOTA_EXCEEDED",
                retry_seconds=5.0,
                fix="close streams that are not needed",
            )
        subscription = _Subscription(tenant, self._queue_limit)
        self._subscriptions.add(subscription)
        try:
            watcher = _Watcher(self._store, subscription, until_terminal, self._heartbeat_seconds)
            async for update in watcher.updates(tuple(dict.fromkeys(names)), after_revision):
                yield update
        finally:
            self._subscriptions.discard(subscription)


class _Watcher:
    """One stream: snapshot or backlog, then what the bus offers."""

    def __init__(self, store: Store, subscription: _Subscription, until_terminal: bool, heartbeat_seconds: float) -> None:
        self._store = store
        self._subscription = subscription
        self._until_terminal = until_terminal
        self._heartbeat_seconds = heartbeat_seconds
        self._last = 0
        self._open: set[str] = set()
        """Uids that are not terminal yet, as far as the reader was told."""

    async def updates(self, names: tuple[str, ...], after_revision: int | None) -> AsyncGenerator[Update, None]:
        tenant = self._subscription.tenant
        uids, self._last = await self._store.read(lambda reader: _start(reader, tenant, names, after_revision))
        self._subscription.uids = uids
        first = self._snapshot(tenant, uids) if after_revision is None else self._backlog(tenant)
        async for update in first:
            yield update
        while not (self._until_terminal and not self._open):
            for update in self._waiting():
                yield update
                if self._until_terminal and not self._open:
                    return
            subscription = self._subscription
            if subscription.error is not None:
                raise subscription.error
            if subscription.overflowed:
                raise Exhausted(
                    f"the reader is more than {subscription.limit} events behind",
                    reason="SLOW_READER",
                    retry_seconds=0.5,
                    fix="watch again with after_revision set to the last revision received",
                    metadata={"revision": str(self._last)},
                )
            try:
                async with asyncio.timeout(self._heartbeat_seconds):
                    await subscription.wake.wait()
            except TimeoutError:
                self._last = max(self._last, subscription.seen)
                yield Update(self._last)
            subscription.wake.clear()

    def _waiting(self) -> Sequence[Update]:
        """What the bus offered since the last look."""
        subscription = self._subscription
        queue, subscription.queue = subscription.queue, deque()
        progress, subscription.progress = subscription.progress, {}
        updates = [update for event, job in queue if (update := self._tell(event, job)) is not None]
        told = {update.job.uid for update in updates if update.job is not None}
        updates += [
            Update(self._last, None, job) for uid, job in progress.items() if uid not in told and subscription.wants(job.tenant, uid)
        ]
        return updates

    def _tell(self, event: EventRecord, job: JobRecord | None) -> Update | None:
        """The message of an event, or None when it was sent or is not asked for."""
        if event.revision <= self._last or not self._subscription.wants(event.tenant, event.job_uid):
            return None
        self._last = event.revision
        if event.type == "DELETED" or event.state in TERMINAL:
            self._open.discard(event.job_uid)
        elif event.state:
            self._open.add(event.job_uid)
        return Update(event.revision, event, None if event.type == "DELETED" else job)

    async def _snapshot(self, tenant: str, uids: frozenset[str] | None) -> AsyncGenerator[Update, None]:
        """The jobs as they are. All but the last message carry revision 0, because a resume from there would miss the others."""
        revision = self._last
        held: JobRecord | None = None
        async for job in _jobs(self._store, tenant, uids):
            if job.state not in TERMINAL:
                self._open.add(job.uid)
            if held is not None:
                yield Update(0, None, held)
            held = job
        yield Update(revision, None, held)

    async def _backlog(self, tenant: str) -> AsyncGenerator[Update, None]:
        """Stored events after the resume token, until none is left that was committed before the last look."""
        subscription = self._subscription
        while True:
            subscription.overflowed = False
            after = self._last
            events, jobs = await self._store.read(lambda reader, after=after: _page(reader, tenant, after, subscription))  # type: ignore[misc]
            for event in events:
                update = self._tell(event, jobs.get(event.job_uid))
                if update is not None:
                    yield update
                self._last = event.revision
            if len(events) < _BACKLOG_PAGE and not subscription.overflowed:
                break
        # What the events said may be history: a job that ended before the token is not waited for.
        self._open = {job.uid async for job in _jobs(self._store, tenant, subscription.uids) if job.state not in TERMINAL}


def _start(reader: Reader, tenant: str, names: tuple[str, ...], after_revision: int | None) -> tuple[frozenset[str] | None, int]:
    """Uids of the names (None: all jobs) and the revision to start after."""
    newest = reader.revision()
    if after_revision is not None:
        oldest = reader.oldest_revision()
        if after_revision < oldest - 1 or after_revision > newest:
            why = f"events before revision {oldest} are not kept" if after_revision < oldest - 1 else f"the newest revision is {newest}"
            raise TokenExpired(
                f"cannot resume after revision {after_revision}: {why}",
                fix="list the jobs again and watch without after_revision",
                metadata={"revision": str(after_revision), "oldest": str(oldest), "newest": str(newest)},
            )
    uids = set()
    for name in names:
        job = reader.job_named(tenant, name)
        uid = job.uid if job is not None else None
        if uid is None and after_revision is not None:
            uid = reader.past_uid(tenant, name, after_revision)
        if uid is None:
            raise JobNotFound(f"there is no job {name!r}", fix="list jobs with `luthier get`", metadata={"job": name})
        uids.add(uid)
    return (frozenset(uids) if names else None), newest if after_revision is None else after_revision


def _page(reader: Reader, tenant: str, after: int, subscription: _Subscription) -> tuple[list[EventRecord], dict[str, JobRecord]]:
    events = reader.events_after(after, tenant=tenant, limit=_BACKLOG_PAGE)
    return events, reader.jobs({event.job_uid for event in events if subscription.wants(tenant, event.job_uid)})


async def _jobs(store: Store, tenant: str, uids: frozenset[str] | None) -> AsyncGenerator[JobRecord, None]:
    """Jobs by uid, or all of a tenant page by page: a large tenant must not sit in memory at once."""
    if uids is not None:
        named = await store.read(lambda reader: reader.jobs(uids))
        for job in sorted(named.values(), key=lambda job: (job.create_time, job.uid)):
            yield job
        return
    token = ""
    while True:
        page, token = await store.read(
            lambda reader, token=token: reader.list_jobs(  # type: ignore[misc]
                tenant, order_by="create_time", page_size=_SNAPSHOT_PAGE, page_token=token
            )
        )
        for job in page:
            yield job
        if not token:
            return
