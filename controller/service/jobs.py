"""JobService: each handler authenticates by the pipeline, checks names, runs one store function, and answers."""

# ruff: noqa: N802  methods are named like the RPCs

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty

from luthier.controller.events import EventBus
from luthier.controller.logs import LogQuery, LogStore
from luthier.controller.service import verbs
from luthier.controller.service.convert import (
    attempt_to_proto,
    checkpoint_to_proto,
    event_to_proto,
    job_to_proto,
    series_to_proto,
)
from luthier.controller.service.interceptors import current_tenant
from luthier.controller.service.names import job_of, wrong_field
from luthier.controller.service.queues import QueueView, waiting_to_proto
from luthier.controller.service.submit import Premises, Submitter
from luthier.controller.service.update import changed_fields, update
from luthier.controller.store.api import Reader, Store, Transaction
from luthier.controller.store.pages import page_limit, scope_of, token_for, token_key
from luthier.controller.store.reading import jobs_token
from luthier.controller.store.records import TERMINAL, JobRecord
from luthier.errors import JobNotFound, NotImplementedYet, SpecError
from luthier.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

__all__ = ["JobService"]

pb = job_service_pb2
T = TypeVar("T")

_PAGE_BYTES = 3 * 1024 * 1024
"""A page stays below what clients accept in one message (4 MiB)."""
_MOST_NAMES = 1000
_DEFAULT_POINTS, _MOST_POINTS = 500, 5000
_LATE_LOG_SECONDS = 10.0
"""After a job ended, nodes that are being stopped may still send their last log lines."""


class JobService(job_service_pb2_grpc.JobServiceServicer):
    """Submits, follows and steers jobs."""

    def __init__(
        self,
        store: Store,
        bus: EventBus,
        logs: LogStore,
        submitter: Submitter,
        premises: Premises,
        queues: QueueView,
        store_root: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._bus = bus
        self._logs = logs
        self._submitter = submitter
        self._premises = premises
        self._queues = queues
        self._store_root = store_root
        self._clock = clock

    def _show(self, job: JobRecord) -> job_pb2.Job:
        info = self._queues.waiting(job.uid) if job.state == "QUEUED" else None
        return job_to_proto(job, now=self._clock(), waiting=waiting_to_proto(info) if info is not None else None)

    async def _read_job(self, name: str, function: Callable[[Reader, JobRecord], T]) -> T:
        """Run a read on a job of the caller's tenant."""
        tenant, job_id = current_tenant(), name

        def run(reader: Reader) -> T:
            job = reader.job_named(tenant, job_id)
            if job is None:
                raise JobNotFound(f"there is no job {job_id!r}", fix="list jobs with `luthier get`", metadata={"job": job_id})
            return function(reader, job)

        return await self._store.read(run)

    async def _write(self, function: Callable[[Transaction], JobRecord]) -> job_pb2.Job:
        return self._show(await self._store.transact(function))

    # --- standard methods ---

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> job_pb2.Job:
        return self._show(await self._submitter.create(current_tenant(), request))

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> job_pb2.Job:
        return self._show(await self._read_job(job_of(request.name), lambda _, job: job))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        tenant = current_tenant()
        options = {"filter": request.filter, "order_by": request.order_by}
        page_size, page_token = request.page_size, request.page_token
        jobs, token = await self._store.read(lambda reader: reader.list_jobs(tenant, **options, page_size=page_size, page_token=page_token))
        response, size = pb.ListJobsResponse(), 0
        for number, job in enumerate(jobs):
            shown = self._show(job)
            size += shown.ByteSize()
            if number and size > _PAGE_BYTES:
                token = jobs_token(jobs[number - 1], tenant, **options)
                break
            response.jobs.append(shown)
        response.next_page_token = token
        return response

    async def UpdateJob(self, request: pb.UpdateJobRequest, context: Any) -> job_pb2.Job:
        tenant = current_tenant()
        if not request.validate_only:
            return await self._write(lambda tx: update(tx, tenant, request, self._premises))
        job = await self._read_job(job_of(request.job.name, "job.name"), lambda _, job: job)
        changes, _ = changed_fields(job, request, self._premises, self._clock())
        return self._show(verbs.preview(job, changes))

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> Empty:
        tenant, name = current_tenant(), job_of(request.name)
        job = await self._store.transact(lambda tx: verbs.delete(tx, tenant, name, request.etag))
        # After the commit: a crash in between leaves a folder without a job, never a job without its folder.
        await asyncio.to_thread(shutil.rmtree, self._store_root / job.tenant / job.uid, ignore_errors=True)
        return Empty()

    # --- verbs ---

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> job_pb2.Job:
        tenant, name = current_tenant(), job_of(request.name)
        return await self._write(lambda tx: verbs.cancel(tx, tenant, name, request.etag))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> job_pb2.Job:
        tenant, name = current_tenant(), job_of(request.name)
        return await self._write(lambda tx: verbs.pause(tx, tenant, name))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> job_pb2.Job:
        tenant, name = current_tenant(), job_of(request.name)
        num_nodes = request.num_nodes if request.HasField("num_nodes") else None
        return await self._write(lambda tx: verbs.resume(tx, tenant, name, num_nodes))

    async def RetryJob(self, request: pb.RetryJobRequest, context: Any) -> job_pb2.Job:
        tenant, name = current_tenant(), job_of(request.name)
        return await self._write(lambda tx: verbs.retry(tx, tenant, name))

    async def EstimateJob(self, request: pb.EstimateJobRequest, context: Any) -> pb.EstimateJobResponse:
        raise NotImplementedYet(
            "EstimateJob is not available yet: estimates of memory and time will come with the planner's cost model",
            fix="use CreateJob with validate_only to check a specification",
        )

    # --- streams ---

    async def WatchJobs(self, request: pb.WatchJobsRequest, context: Any) -> AsyncIterator[pb.WatchJobsResponse]:
        if len(request.names) > _MOST_NAMES:
            raise wrong_field("names", f"there are {len(request.names)} names", f"give at most {_MOST_NAMES}, or none for all jobs")
        names = [job_of(name, f"names[{number}]") for number, name in enumerate(request.names)]
        after = request.after_revision if request.HasField("after_revision") else None
        updates = self._bus.watch(current_tenant(), names, after_revision=after, until_terminal=request.until_terminal)
        try:
            async for found in updates:
                response = pb.WatchJobsResponse(revision=found.revision)
                if found.event is not None:
                    response.event.CopyFrom(event_to_proto(found.event))
                if found.job is not None:
                    response.job.CopyFrom(self._show(found.job))
                yield response
        finally:
            await updates.aclose()

    async def StreamLogs(self, request: pb.StreamLogsRequest, context: Any) -> AsyncIterator[pb.StreamLogsResponse]:
        if request.tail_lines < 0:
            raise wrong_field("tail_lines", f"{request.tail_lines} is negative", "give 0 for everything, or a number of lines")
        if request.attempt < 0:
            raise wrong_field("attempt", f"{request.attempt} is negative", "give 0 for the newest attempt")
        job = await self._read_job(job_of(request.name), lambda _, job: job)
        if request.attempt > job.attempt:
            what = f"job {job.name!r} has {job.attempt} attempts, not {request.attempt}"
            raise wrong_field("attempt", what, "give 0 for the newest, or look at `luthier describe`")
        query = LogQuery(
            attempt=request.attempt or max(1, job.attempt),
            later=request.follow and request.attempt == 0,
            node=request.node if request.HasField("node") else None,
            rank=request.rank if request.HasField("rank") else None,
            follow=request.follow,
            tail_lines=request.tail_lines,
            token=request.resume_token,
        )
        pieces = self._logs.stream(job.tenant, job.uid, query, _Ending(self._store, job.uid, self._clock))
        try:
            async for piece in pieces:
                stream = piece.stream
                response = pb.StreamLogsResponse(
                    attempt=stream.attempt, node=stream.node, offset=piece.offset, data=piece.data, resume_token=piece.token
                )
                if stream.rank >= 0:
                    response.rank = stream.rank
                yield response
        finally:
            await pieces.aclose()

    # --- what happened ---

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsResponse:
        limit = page_limit(request.page_size)

        def page(reader: Reader, job: JobRecord) -> pb.ListEventsResponse:
            scope = scope_of("events", job.uid)
            after = token_key(request.page_token, scope, (int,))[0] if request.page_token else 0
            events = reader.events(job.uid, after_sequence=after, limit=limit + 1)
            token = token_for(scope, [events[limit - 1].sequence]) if len(events) > limit else ""
            return pb.ListEventsResponse(events=[event_to_proto(e) for e in events[:limit]], next_page_token=token)

        return await self._read_job(job_of(request.parent, "parent"), page)

    async def ListAttempts(self, request: pb.ListAttemptsRequest, context: Any) -> pb.ListAttemptsResponse:
        limit = page_limit(request.page_size)

        def page(reader: Reader, job: JobRecord) -> pb.ListAttemptsResponse:
            scope = scope_of("attempts", job.uid)
            after = token_key(request.page_token, scope, (int,))[0] if request.page_token else 0
            found = [attempt for attempt in reader.attempts(job.uid) if attempt.number > after]
            token = token_for(scope, [found[limit - 1].number]) if len(found) > limit else ""
            shown = [
                attempt_to_proto(job, a, reader.generations(job.uid, a.number), reader.nodes(job.uid, a.number)) for a in found[:limit]
            ]
            return pb.ListAttemptsResponse(attempts=shown, next_page_token=token)

        return await self._read_job(job_of(request.parent, "parent"), page)

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> pb.ListCheckpointsResponse:
        limit = page_limit(request.page_size)

        def page(reader: Reader, job: JobRecord) -> pb.ListCheckpointsResponse:
            scope = scope_of("checkpoints", job.uid)
            found = [((c.attempt, c.generation, c.phase_index, c.step), c) for c in reader.checkpoints(job.uid)]
            if request.page_token:
                before = tuple(token_key(request.page_token, scope, (int, int, int, int)))
                found = [(key, checkpoint) for key, checkpoint in found if key < before]
            token = token_for(scope, list(found[limit - 1][0])) if len(found) > limit else ""
            shown = [checkpoint_to_proto(job, checkpoint) for _, checkpoint in found[:limit]]
            return pb.ListCheckpointsResponse(checkpoints=shown, next_page_token=token)

        return await self._read_job(job_of(request.parent, "parent"), page)

    async def QueryMetrics(self, request: pb.QueryMetricsRequest, context: Any) -> pb.QueryMetricsResponse:
        if request.max_points < 0:
            raise wrong_field("max_points", f"{request.max_points} is negative", f"give 0 for {_DEFAULT_POINTS}, at most {_MOST_POINTS}")
        points, names = min(request.max_points or _DEFAULT_POINTS, _MOST_POINTS), _distinct(request.series)
        found = await self._read_job(job_of(request.name), lambda reader, job: reader.series(job.uid, names, points))
        return pb.QueryMetricsResponse(series=[series_to_proto(name, values) for name, values in found.items()])


class _Ending:
    """Says when no more log bytes come: the job ended and its nodes are gone, or had a while to send their last lines."""

    def __init__(self, store: Store, uid: str, clock: Callable[[], float]) -> None:
        self._store, self._uid, self._clock = store, uid, clock

    async def __call__(self) -> bool:
        job, still = await self._store.read(lambda reader: (reader.job(self._uid), reader.has_open_attempt(self._uid)))
        if job is None:
            return True
        if job.state not in TERMINAL:
            return False
        return not still or self._clock() >= (job.end_time or 0.0) + _LATE_LOG_SECONDS


def _distinct(names: Sequence[str]) -> list[str]:
    if len(names) > _MOST_NAMES:
        raise SpecError(f"series: there are {len(names)} names", fix=f"give at most {_MOST_NAMES}, or none for all")
    return list(dict.fromkeys(names))
