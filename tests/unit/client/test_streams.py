"""Streams that go on after the server went away, against a scripted server over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from luthier import errors
from luthier.client import AsyncClient
from luthier.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

pytestmark = pytest.mark.asyncio

Break = tuple[grpc.StatusCode, str]
UNAVAILABLE: Break = (grpc.StatusCode.UNAVAILABLE, "DRAINING")
EXPIRED: Break = (grpc.StatusCode.OUT_OF_RANGE, "TOKEN_EXPIRED")
SLOW: Break = (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")
LIMITED: Break = (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")


async def end(context: Any, how: Break) -> None:
    """End a call with a status that carries ErrorInfo."""
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason=how[1], domain="luthier.dev"))
    status = status_pb2.Status(details=[packed])
    await context.abort(how[0], "scripted", trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),))


class Script(job_service_pb2_grpc.JobServiceServicer):
    """Answers each call of a stream with the next part of a script: messages, then a break or the end."""

    def __init__(self, *parts: list[Any]) -> None:
        self.parts = list(parts)
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []

    async def _play(self, request: Any, context: Any) -> AsyncIterator[Any]:
        copy = type(request)()
        copy.CopyFrom(request)
        self.requests.append(copy)
        self.metadata.append(dict(context.invocation_metadata()))
        for item in self.parts.pop(0) if self.parts else []:
            if isinstance(item, tuple):
                await end(context, item)
            yield item

    async def WatchJobs(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 (gRPC's name)
        async for message in self._play(request, context):
            yield message

    async def StreamLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 (gRPC's name)
        async for message in self._play(request, context):
            yield message

    async def GetJob(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name)
        self.requests.append(request)
        if self.parts:
            await end(context, self.parts.pop(0)[0])
        return job_pb2.Job(name=request.name, state=job_pb2.Job.RUNNING)


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """Starts a server with a script; returns it with a client."""
    open_things: list[Any] = []

    async def start(*parts: list[Any]) -> tuple[Script, AsyncClient]:
        server = grpc.aio.server()
        script = Script(*parts)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(script, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = AsyncClient(f"127.0.0.1:{port}", token="secret", patience_seconds=5)
        open_things.extend([client, server])
        return script, client

    yield start
    for thing in open_things:
        await (thing.close() if isinstance(thing, AsyncClient) else thing.stop(0))


def watched(revision: int, state: Any = job_pb2.Job.RUNNING, *, event: bool = True) -> job_service_pb2.WatchJobsResponse:
    """One message of WatchJobs."""
    message = job_service_pb2.WatchJobsResponse(revision=revision, job=job_pb2.Job(name="jobs/a", state=state))
    if event:
        message.event.revision = revision
    return message


async def test_watch_goes_on_after_the_last_revision(serve: Callable[..., Any]) -> None:
    """A break is followed by a request after the last event; heartbeats advance it and are not shown."""
    heartbeat = job_service_pb2.WatchJobsResponse(revision=7)
    script, client = await serve([watched(0, event=False), watched(5), heartbeat, UNAVAILABLE], [watched(8), SLOW], [watched(9)])

    seen = [message.revision async for message in client.jobs.watch("a", until_terminal=True)]

    assert [0, 5, 8, 9] == seen
    assert [None, 7, 8] == [r.after_revision if r.HasField("after_revision") else None for r in script.requests]
    assert ["jobs/a"] == list(script.requests[2].names)


async def test_a_break_inside_the_snapshot_starts_it_again(serve: Callable[..., Any]) -> None:
    """Before the first event nothing may be skipped."""
    script, client = await serve([watched(5, event=False), UNAVAILABLE], [watched(6, event=False), watched(7)])

    assert [5, 6, 7] == [message.revision async for message in client.jobs.watch()]
    assert [False, False] == [r.HasField("after_revision") for r in script.requests]


async def test_an_expired_revision_starts_with_the_jobs_as_they_are(serve: Callable[..., Any]) -> None:
    """OUT_OF_RANGE is answered by a fresh snapshot."""
    script, client = await serve([watched(5), UNAVAILABLE], [EXPIRED], [watched(90, event=False)])

    assert [5, 90] == [message.revision async for message in client.jobs.watch()]
    assert [False, True, False] == [r.HasField("after_revision") for r in script.requests]


async def test_a_server_that_never_answered_fails_at_once(serve: Callable[..., Any]) -> None:
    """The channel's own retries are all there is before the first message."""
    _, client = await serve(*[[UNAVAILABLE]] * 10)

    with pytest.raises(errors.Unavailable):
        [message async for message in client.jobs.watch()]


async def test_other_exhaustion_is_not_hammered(serve: Callable[..., Any]) -> None:
    """Only a slow reader is resumed; a rate limit is told."""
    _, client = await serve([watched(1), LIMITED])

    with pytest.raises(errors.Exhausted):
        [message async for message in client.jobs.watch()]


async def test_patience_ends(serve: Callable[..., Any]) -> None:
    """A stream that stays broken for longer than the client's patience is given up."""
    _, client = await serve([watched(1), UNAVAILABLE], *[[UNAVAILABLE]] * 50)
    client._wire.patience = 0.1

    with pytest.raises(errors.Unavailable):
        [message async for message in client.jobs.watch()]


async def test_logs_resume_by_token(serve: Callable[..., Any]) -> None:
    """The last token is sent after a break."""
    chunk = job_service_pb2.StreamLogsResponse
    script, client = await serve([chunk(data=b"a\n", resume_token="t1"), UNAVAILABLE], [chunk(data=b"b\n", resume_token="t2")])

    assert [b"a\n", b"b\n"] == [c.data async for c in client.jobs.logs("a", follow=True, rank=1)]
    assert ["", "t1"] == [r.resume_token for r in script.requests]
    assert [1, 1] == [r.rank for r in script.requests]


async def test_wait_returns_in_a_wanted_or_terminal_state(serve: Callable[..., Any]) -> None:
    """`wait` ends with the first message that shows such a state."""
    _, client = await serve([watched(1, job_pb2.Job.QUEUED), watched(2, job_pb2.Job.RUNNING), watched(3, job_pb2.Job.SUCCEEDED)])

    assert "RUNNING" == (await client.jobs.wait("a", states=["RUNNING"])).state


async def test_wait_gives_up_in_time(serve: Callable[..., Any]) -> None:
    """The error names the state that the job is in."""

    class Silent(Script):
        async def WatchJobs(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 (gRPC's name)
            yield watched(1, job_pb2.Job.QUEUED)
            await asyncio.Event().wait()

    server = grpc.aio.server()
    job_service_pb2_grpc.add_JobServiceServicer_to_server(Silent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}", token="t") as client:
        with pytest.raises(errors.DeadlineExceeded, match="it is QUEUED"):
            await client.jobs.wait("a", timeout_seconds=0.3)
    await server.stop(0)


async def test_unary_calls_retry_only_unavailable(serve: Callable[..., Any]) -> None:
    """UNAVAILABLE is retried by the channel, ABORTED is told at once."""
    script, client = await serve([UNAVAILABLE], [UNAVAILABLE])
    assert "RUNNING" == (await client.jobs.get("a")).state
    assert 3 == len(script.requests)

    script, client = await serve([(grpc.StatusCode.ABORTED, "ETAG_MISMATCH")])
    with pytest.raises(errors.StaleEtag):
        await client.jobs.get("a")
    assert 1 == len(script.requests)


async def test_every_call_carries_the_token(serve: Callable[..., Any]) -> None:
    """Streams and unary calls are authorised."""
    script, client = await serve([watched(1)])
    [message async for message in client.jobs.watch()]

    assert "Bearer secret" == script.metadata[0]["authorization"]
