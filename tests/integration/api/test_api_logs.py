"""StreamLogs over real gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from luthier.controller.store.records import AttemptRecord, JobState
from luthier.v1 import job_service_pb2

pb = job_service_pb2
pytestmark = pytest.mark.asyncio


async def started(api: Any, make_request: Any, attempt: int = 1) -> str:
    """A job with an attempt; returns its uid."""
    job = await api.jobs().CreateJob(make_request("a"))
    await begin(api, job.uid, attempt)
    return str(job.uid)


async def begin(api: Any, uid: str, number: int) -> None:
    def write(tx: Any) -> None:
        tx.insert_attempt(AttemptRecord(job_uid=uid, number=number, num_nodes=2, executor="local", create_time=1.0))
        tx.transition(uid, JobState.STARTING, message="x", attempt=number)

    await api.store.transact(write)


async def end(api: Any, uid: str, number: int, state: str = "FAILED") -> None:
    def write(tx: Any) -> None:
        tx.update_attempt(uid, number, close_time=2.0)
        tx.transition(uid, JobState(state), message="x")

    await api.store.transact(write)


async def append(api: Any, uid: str, text: str, *, node: int = 0, rank: int | None = None, attempt: int = 1) -> None:
    """What a session does with a chunk."""
    offset = await asyncio.to_thread(api.logs.end, "tenant-a", uid, attempt, node, rank)
    await asyncio.to_thread(api.logs.append, "tenant-a", uid, attempt, node, rank, offset, text.encode())


async def read(stream: Any, *, deadline: float = 20.0) -> list[tuple[int, int, int | None, str]]:
    """(attempt, node, rank, text) of all chunks until the stream ends."""
    async with asyncio.timeout(deadline):
        return [(m.attempt, m.node, m.rank if m.HasField("rank") else None, m.data.decode()) async for m in stream]


async def test_streams_of_nodes_and_ranks(api: Any, make_request: Any) -> None:
    """Agents before ranks, node by node; node and rank select."""
    uid = await started(api, make_request)
    for node, rank, text in ((1, 3, "rank 3\n"), (0, None, "agent 0\n"), (1, None, "agent 1\n"), (0, 0, "rank 0\n")):
        await append(api, uid, text, node=node, rank=rank)
    jobs = api.jobs()
    everything = await read(jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/a")))
    second = await read(jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/a", node=1)))
    third = await read(jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/a", rank=3)))

    assert [(1, 0, None, "agent 0\n"), (1, 0, 0, "rank 0\n"), (1, 1, None, "agent 1\n"), (1, 1, 3, "rank 3\n")] == everything
    assert [(1, 1, None, "agent 1\n"), (1, 1, 3, "rank 3\n")] == second
    assert [(1, 1, 3, "rank 3\n")] == third


async def test_following_ends_with_the_job(api: Any, make_request: Any) -> None:
    """Lines come as they are written, whole; the last unfinished one comes at the end, and the stream ends with the job."""
    uid = await started(api, make_request)
    await append(api, uid, "one\ntw")
    stream = api.jobs().StreamLogs(pb.StreamLogsRequest(name="jobs/a", follow=True))
    reading = asyncio.create_task(read(stream))
    await append(api, uid, "o\nthree")
    await end(api, uid, 1)
    found = await reading

    assert "one\ntwo\nthree" == "".join(text for *_, text in found)
    assert all(text.endswith("\n") for *_, text in found[:-1])


async def test_following_sees_later_attempts(api: Any, make_request: Any) -> None:
    """With no attempt named, a follower goes on into the next attempt; a named attempt stays alone."""
    uid = await started(api, make_request)
    await append(api, uid, "first\n")
    jobs = api.jobs()
    following = asyncio.create_task(read(jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/a", follow=True))))
    await asyncio.sleep(0)
    await api.store.transact(lambda tx: tx.update_attempt(uid, 1, close_time=1.0))
    await api.store.transact(lambda tx: tx.transition(uid, JobState.QUEUED, message="retry"))
    await begin(api, uid, 2)
    await append(api, uid, "second\n", attempt=2)
    await end(api, uid, 2)

    assert [(1, "first\n"), (2, "second\n")] == [(attempt, text) for attempt, _, _, text in await following]
    assert [(2, "second\n")] == [(a, t) for a, _, _, t in await read(jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/a")))]
    assert [(1, "first\n")] == [(a, t) for a, _, _, t in await read(jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/a", attempt=1)))]


async def test_resuming_continues_after_the_last_chunk(api: Any, make_request: Any) -> None:
    """A stream that breaks anywhere goes on by token: together they are the files, byte for byte."""
    uid = await started(api, make_request)
    texts = {}
    for rank in (0, 1):
        texts[rank] = "".join(f"rank {rank} line {n} {'x' * (n % 90)}\n" for n in range(5000))
        await append(api, uid, texts[rank], rank=rank)
    seen: dict[int, str] = {0: "", 1: ""}
    token, chunks = "", 0
    while True:
        stream = api.jobs().StreamLogs(pb.StreamLogsRequest(name="jobs/a", resume_token=token))
        message = await stream.read()
        if not message:
            break
        assert len(seen[message.rank].encode()) == message.offset
        seen[message.rank] += message.data.decode()
        token, chunks = message.resume_token, chunks + 1
        stream.cancel()

    assert texts == seen
    assert chunks > 5


async def test_tail_lines_are_the_last_of_each_stream(api: Any, make_request: Any) -> None:
    """The last lines, also when the file does not end with one; more than there are is everything."""
    uid = await started(api, make_request)
    await append(api, uid, "".join(f"{n}\n" for n in range(50_000)))
    await append(api, uid, "a\nb\nc", node=1)
    jobs = api.jobs()

    def tail(lines: int) -> Any:
        return jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/a", tail_lines=lines))

    assert ["49998\n49999\n", "b\nc"] == [text for *_, text in await read(tail(2))]
    assert "a\nb\nc" == (await read(tail(99)))[-1][3]


async def test_wrong_requests(api: Any, make_request: Any, refusal: Any) -> None:
    """Tokens of other jobs, attempts that never were, negative numbers, unknown jobs."""
    uid = await started(api, make_request)
    await append(api, uid, "x\n")
    jobs = api.jobs()
    other = (await jobs.CreateJob(make_request("b"))).uid
    stream = jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/a"))
    token = (await stream.read()).resume_token
    stream.cancel()
    await append(api, other, "y\n")
    for request, code, fields in (
        (pb.StreamLogsRequest(name="jobs/b", resume_token=token), "INVALID_ARGUMENT", ["resume_token"]),
        (pb.StreamLogsRequest(name="jobs/a", resume_token="made-up"), "INVALID_ARGUMENT", ["resume_token"]),
        (pb.StreamLogsRequest(name="jobs/a", attempt=7), "INVALID_ARGUMENT", ["attempt"]),
        (pb.StreamLogsRequest(name="jobs/a", tail_lines=-1), "INVALID_ARGUMENT", ["tail_lines"]),
        (pb.StreamLogsRequest(name="jobs/c"), "NOT_FOUND", []),
    ):
        failure = await refusal(read(jobs.StreamLogs(request)))
        assert (code, fields) == (failure.code, failure.fields)


async def test_a_job_without_logs_has_none(api: Any, make_request: Any) -> None:
    """Before the first attempt the stream ends at once."""
    await api.jobs().CreateJob(make_request("a"))

    assert [] == await read(api.jobs().StreamLogs(pb.StreamLogsRequest(name="jobs/a")))
