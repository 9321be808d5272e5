"""Jobs over gRPC: the verbs, the streams that survive a restart of the server, and handles."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from luthier.client.channel import Wire
from luthier.client.record import ENDED, JobRecord, job_name, state_name
from luthier.client.transfer import AsyncArtifacts, Progress
from luthier.errors import DeadlineExceeded, JobNotFound, SpecError, TokenExpired
from luthier.v1 import job_pb2
from luthier.v1 import job_service_pb2 as service_pb
from luthier.v1 import job_service_pb2_grpc as rpc

if TYPE_CHECKING:  # reading jobs needs no pydantic
    from luthier.client.submit import Pipeline, Source

__all__ = ["AsyncJob", "AsyncJobs"]

_T = TypeVar("_T")
_PAGE = 500


async def _next(messages: AsyncGenerator[_T], deadline: float | None) -> _T | None:
    """The next message, None at the end. Raises TimeoutError at the deadline (of the loop's clock)."""
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(messages)
    except StopAsyncIteration:
        return None


class AsyncJobs:
    """The job verbs. Names are given with or without `jobs/`."""

    def __init__(self, wire: Wire, artifacts: AsyncArtifacts) -> None:
        self._wire, self._artifacts = wire, artifacts

    @property
    def _stub(self) -> rpc.JobServiceAsyncStub:
        return self._wire.stub(rpc.JobServiceStub)

    def _handle(self, job: job_pb2.Job) -> AsyncJob:
        return AsyncJob(self, job)

    # --- making ------------------------------------------------------------------------------------------------------

    async def submit(
        self,
        source: Source,
        *,
        base_dir: str = ".",
        overrides: Sequence[str] = (),
        name: str = "",
        suffix: str = "",
        validate_only: bool = False,
        progress: Progress | None = None,
    ) -> builtins.list[AsyncJob]:
        """Submit a pipeline: a YAML path or text, a mapping, a `JobSpec`, or a list of these; local paths are uploaded.

        All documents are checked before anything is sent or created; then contents are uploaded, and the jobs are created in order.
        `overrides` are `[NAME:]key.path=value` texts, `suffix` is appended to every name of the pipeline. Raises `SpecError` with all
        violations.
        """
        from luthier.client.submit import Pipeline

        pipeline = Pipeline.load(source, base_dir=base_dir, overrides=overrides)
        if name:
            pipeline.rename_only(name)
        if suffix:
            pipeline.append_suffix(suffix)
        checked = await self.check(pipeline)
        if validate_only:
            return checked
        return await self.start(pipeline, progress=progress)

    async def check(self, pipeline: Pipeline) -> builtins.list[AsyncJob]:
        """Ask the server to check every document without effect; the defaulted jobs. Raises `SpecError` with all violations.

        Contents that are not uploaded yet, and jobs that an earlier document creates, are no violations.
        """
        await asyncio.to_thread(pipeline.plan_uploads)
        found: builtins.list[Any] = []
        checked = []
        for document in pipeline.documents:
            try:
                job = await self.create(document.job, job_id=document.job_id, validate_only=True)
            except SpecError as error:
                remaining = pipeline.remaining(document, error)
                if remaining is None:
                    raise
                found += document.locate(remaining)
                if not remaining:
                    checked.append(self._handle(pipeline.resolved(document)))
            else:
                checked.append(job)
        if found:
            raise pipeline.error(found)
        return checked

    async def start(self, pipeline: Pipeline, *, progress: Progress | None = None) -> builtins.list[AsyncJob]:
        """Upload what the server lacks and create the jobs in order."""
        await asyncio.to_thread(pipeline.plan_uploads)
        for upload in pipeline.uploads:
            await self._artifacts.send(upload, progress=progress)
        created = []
        for document in pipeline.documents:
            try:
                created.append(await self.create(document.job, job_id=document.job_id))
            except SpecError as error:
                raise pipeline.error(document.locate(error.violations) or [], error) from None
        return created

    async def create(self, job: job_pb2.Job, *, job_id: str = "", request_id: str = "", validate_only: bool = False) -> AsyncJob:
        """Create one job. A request id is always sent, so that a retried call makes one job."""
        request = service_pb.CreateJobRequest(
            job=job, job_id=job_id, request_id=request_id or str(uuid.uuid4()), validate_only=validate_only
        )
        return self._handle(await self._wire.unary(self._stub.CreateJob, request))

    # --- reading -----------------------------------------------------------------------------------------------------

    async def get(self, name: str) -> AsyncJob:
        """One job. Raises `JobNotFound`."""
        return self._handle(await self._wire.unary(self._stub.GetJob, service_pb.GetJobRequest(name=job_name(name))))

    async def list(self, *, filter: str = "", order_by: str = "", limit: int = 0) -> AsyncGenerator[AsyncJob]:
        """Jobs page by page, newest first; at most `limit` (0: all). `filter`: see `luthier.v1.ListJobsRequest`."""
        request = service_pb.ListJobsRequest(filter=filter, order_by=order_by, page_size=min(limit, _PAGE) if limit else _PAGE)
        taken = 0
        async for job in self._pages(self._stub.ListJobs, request, lambda answer: answer.jobs):
            yield self._handle(job)
            taken += 1
            if taken == limit:
                return

    async def events(self, name: str) -> AsyncGenerator[job_pb2.Event]:
        """A job's events, oldest first."""
        request = service_pb.ListEventsRequest(parent=job_name(name), page_size=_PAGE)
        async for event in self._pages(self._stub.ListEvents, request, lambda answer: answer.events):
            yield event

    async def attempts(self, name: str) -> AsyncGenerator[job_pb2.Attempt]:
        """A job's attempts with generations and nodes, oldest first."""
        request = service_pb.ListAttemptsRequest(parent=job_name(name), page_size=_PAGE)
        async for attempt in self._pages(self._stub.ListAttempts, request, lambda answer: answer.attempts):
            yield attempt

    async def checkpoints(self, name: str) -> AsyncGenerator[job_pb2.Checkpoint]:
        """A job's checkpoints, newest first."""
        request = service_pb.ListCheckpointsRequest(parent=job_name(name), page_size=_PAGE)
        async for checkpoint in self._pages(self._stub.ListCheckpoints, request, lambda answer: answer.checkpoints):
            yield checkpoint

    async def _pages(self, method: Any, request: Any, rows: Callable[[Any], Iterable[_T]]) -> AsyncGenerator[_T]:
        while True:
            answer = await self._wire.unary(method, request)
            for row in rows(answer):
                yield row
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def metrics(self, name: str, series: Sequence[str] = (), *, max_points: int = 0) -> dict[str, service_pb.Series]:
        """Down-sampled step series by name; all of them when none is named."""
        request = service_pb.QueryMetricsRequest(name=job_name(name), series=series, max_points=max_points)
        answer = await self._wire.unary(self._stub.QueryMetrics, request)
        return {found.name: found for found in answer.series}

    # --- streams -----------------------------------------------------------------------------------------------------

    async def watch(
        self, *names: str, after_revision: int | None = None, until_terminal: bool = False, timeout_seconds: float | None = None
    ) -> AsyncGenerator[service_pb.WatchJobsResponse]:
        """Events, and the job after each; without `after_revision` first the jobs as they are.

        The stream is opened again after the last revision when the server goes away: no gap, no duplicate. Where that revision is no
        longer kept, it starts again with the jobs as they are. Heartbeats are left out. Raises `DeadlineExceeded` after
        `timeout_seconds`.
        """
        revision = after_revision
        deadline = None if timeout_seconds is None else asyncio.get_running_loop().time() + timeout_seconds

        def reopen() -> AsyncGenerator[service_pb.WatchJobsResponse]:
            request = service_pb.WatchJobsRequest(
                names=[job_name(n) for n in names], after_revision=revision, until_terminal=until_terminal
            )
            return self._wire.stream(self._stub.WatchJobs, request)

        while True:
            async with contextlib.aclosing(self._wire.resuming(reopen)) as messages:
                try:
                    while (message := await _next(messages, deadline)) is not None:
                        # The snapshot at the start comes in several messages: a break inside it must not skip the rest.
                        if message.HasField("event") or not message.HasField("job"):
                            revision = message.revision
                        if message.HasField("event") or message.HasField("job"):
                            yield message
                    return
                except TokenExpired:
                    if revision is None:
                        raise
                    revision = None
                except TimeoutError:
                    raise DeadlineExceeded(f"{timeout_seconds:g} s are over", fix="wait longer, or look with `luthier describe`") from None

    async def logs(
        self, name: str, *, attempt: int = 0, node: int | None = None, rank: int | None = None, follow: bool = False, tail_lines: int = 0
    ) -> AsyncGenerator[service_pb.StreamLogsResponse]:
        """Log chunks of a job's nodes and ranks; with `follow` until the job ends. Resumed by token when the server goes away."""
        token = ""

        def reopen() -> AsyncGenerator[service_pb.StreamLogsResponse]:
            request = service_pb.StreamLogsRequest(
                name=job_name(name), attempt=attempt, node=node, rank=rank, follow=follow, tail_lines=tail_lines, resume_token=token
            )
            return self._wire.stream(self._stub.StreamLogs, request)

        async with contextlib.aclosing(self._wire.resuming(reopen)) as messages:
            async for message in messages:
                token = message.resume_token or token
                if message.data:
                    yield message

    async def wait(self, name: str, *, states: Iterable[str] = (), timeout_seconds: float | None = None) -> AsyncJob:
        """Wait until the job is in one of `states` or ended. Raises `DeadlineExceeded` after `timeout_seconds`, `JobNotFound`."""
        wanted = ENDED | set(states)
        last: job_pb2.Job | None = None
        try:
            async with contextlib.aclosing(self.watch(name, timeout_seconds=timeout_seconds)) as messages:
                async for message in messages:
                    if not message.HasField("job"):
                        raise JobNotFound(f"job {name} was deleted")
                    last = message.job
                    if state_name(last) in wanted:
                        return self._handle(last)
        except DeadlineExceeded:
            state = f"it is {state_name(last)}" if last is not None else "its state is not known"
            raise DeadlineExceeded(
                f"job {name} is not {' or '.join(sorted(wanted))} after {timeout_seconds:g} s; {state}",
                fix=f"wait longer, or look with `luthier describe {name}`",
            ) from None
        return await self.get(name)

    # --- steering ----------------------------------------------------------------------------------------------------

    async def update(self, job: job_pb2.Job, *, update_mask: Sequence[str] = (), validate_only: bool = False) -> AsyncJob:
        """Change labels, display name, scheduling, faults or the node range; with an etag only that version."""
        mask = FieldMask(paths=update_mask) if update_mask else None
        request = service_pb.UpdateJobRequest(job=job, update_mask=mask, validate_only=validate_only)
        return self._handle(await self._wire.unary(self._stub.UpdateJob, request))

    async def delete(self, name: str, *, etag: str = "") -> None:
        """Delete a terminal job and what it stored. Raises `IllegalState` (JOB_ACTIVE) for an active one."""
        await self._wire.unary(self._stub.DeleteJob, service_pb.DeleteJobRequest(name=job_name(name), etag=etag))

    async def cancel(self, name: str, *, etag: str = "") -> AsyncJob:
        """Ask a job to end without its result; an ended job is returned as it is."""
        return self._handle(await self._wire.unary(self._stub.CancelJob, service_pb.CancelJobRequest(name=job_name(name), etag=etag)))

    async def pause(self, name: str) -> AsyncJob:
        """Ask a job to save and leave its nodes."""
        return self._handle(await self._wire.unary(self._stub.PauseJob, service_pb.PauseJobRequest(name=job_name(name))))

    async def resume(self, name: str, *, num_nodes: int | None = None) -> AsyncJob:
        """Queue a paused job again, optionally with another number of nodes."""
        return self._handle(
            await self._wire.unary(self._stub.ResumeJob, service_pb.ResumeJobRequest(name=job_name(name), num_nodes=num_nodes))
        )

    async def retry(self, name: str) -> AsyncJob:
        """Queue a failed or cancelled job again; budgets are reset, checkpoints kept."""
        return self._handle(await self._wire.unary(self._stub.RetryJob, service_pb.RetryJobRequest(name=job_name(name))))


class AsyncJob(JobRecord):
    """One job: its record as last seen, and its verbs."""

    def __init__(self, jobs: AsyncJobs, record: job_pb2.Job) -> None:
        self._jobs, self._pb = jobs, record

    @property
    def pb(self) -> job_pb2.Job:
        return self._pb

    async def refresh(self) -> AsyncJob:
        """Read the record again; returns itself."""
        self._pb = (await self._jobs.get(self.name)).pb
        return self

    async def wait(self, *, states: Iterable[str] = (), timeout_seconds: float | None = None) -> AsyncJob:
        """Wait until it ended or is in one of `states`; returns itself. Raises `DeadlineExceeded`."""
        self._pb = (await self._jobs.wait(self.name, states=states, timeout_seconds=timeout_seconds)).pb
        return self

    def logs(
        self, *, attempt: int = 0, node: int | None = None, rank: int | None = None, follow: bool = False, tail_lines: int = 0
    ) -> AsyncGenerator[service_pb.StreamLogsResponse]:
        """Its log chunks; see `AsyncJobs.logs`."""
        return self._jobs.logs(self.name, attempt=attempt, node=node, rank=rank, follow=follow, tail_lines=tail_lines)

    def events(self) -> AsyncGenerator[job_pb2.Event]:
        """Its events, oldest first."""
        return self._jobs.events(self.name)

    def attempts(self) -> AsyncGenerator[job_pb2.Attempt]:
        """Its attempts, oldest first."""
        return self._jobs.attempts(self.name)

    def checkpoints(self) -> AsyncGenerator[job_pb2.Checkpoint]:
        """Its checkpoints, newest first."""
        return self._jobs.checkpoints(self.name)

    async def metrics(self, *series: str, max_points: int = 0) -> Mapping[str, service_pb.Series]:
        """Its step series by name."""
        return await self._jobs.metrics(self.name, series, max_points=max_points)

    async def cancel(self) -> AsyncJob:
        """Ask it to end; returns itself."""
        self._pb = (await self._jobs.cancel(self.name)).pb
        return self

    async def pause(self) -> AsyncJob:
        """Ask it to save and leave; returns itself."""
        self._pb = (await self._jobs.pause(self.name)).pb
        return self

    async def resume(self, *, num_nodes: int | None = None) -> AsyncJob:
        """Queue it again; returns itself."""
        self._pb = (await self._jobs.resume(self.name, num_nodes=num_nodes)).pb
        return self

    async def retry(self) -> AsyncJob:
        """Queue it again after a failure or a cancel; returns itself."""
        self._pb = (await self._jobs.retry(self.name)).pb
        return self

    async def delete(self) -> None:
        """Delete it and what it stored."""
        await self._jobs.delete(self.name)
