"""WatchJobs over real gRPC: order, resuming, progress, slow readers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc.aio
import pytest

from luthier.controller.store.records import JobState
from luthier.v1 import job_pb2, job_service_pb2

pb = job_service_pb2
pytestmark = pytest.mark.asyncio
J = job_pb2.Job


async def note(api: Any, name: str, text: str) -> None:
    def write(tx: Any) -> None:
        tx.append_event(tx.job_named("tenant-a", name).uid, "NOTE", text)

    await api.store.transact(write)


async def take(stream: Any, count: int, *, deadline: float = 20.0) -> list[pb.WatchJobsResponse]:
    """The next messages of a stream."""
    found = []
    async with asyncio.timeout(deadline):
        async for message in stream:
            found.append(message)
            if len(found) == count:
                break
    return found


async def test_snapshot_then_events(api: Any, make_request: Any) -> None:
    """Without a revision: the jobs as they are, the last one with the resume token, then every event with the job after it."""
    jobs = api.jobs()
    for name in ("a", "b"):
        await jobs.CreateJob(make_request(name))
    stream = jobs.WatchJobs(pb.WatchJobsRequest())
    snapshot = await take(stream, 2)
    await jobs.PauseJob(pb.PauseJobRequest(name="jobs/a"))
    event = (await take(stream, 1))[0]
    stream.cancel()

    assert [("jobs/a", 0, False), ("jobs/b", 2, False)] == [(m.job.name, m.revision, m.HasField("event")) for m in snapshot]
    assert (3, 3, "STATE_CHANGED", J.PAUSED, J.PAUSED) == (
        event.revision,
        event.event.revision,
        event.event.type,
        event.event.state,
        event.job.state,
    )


async def test_resuming_has_no_gap_and_no_duplicate(api: Any, make_request: Any) -> None:
    """Streams that break at random while events are written: the union of what they sent is every event once, in order."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("a"))
    total, last = 200, 0
    seen: list[int] = []

    async def write() -> None:
        for n in range(total - 1):
            await note(api, "a", str(n))

    writing = asyncio.create_task(write())
    size = 1
    while len(seen) < total:
        stream = jobs.WatchJobs(pb.WatchJobsRequest(after_revision=last))
        for message in await take(stream, min(size, total - len(seen))):
            if message.HasField("event"):
                seen.append(message.event.revision)
            last = message.revision
        stream.cancel()
        size = size % 13 + 3
    await writing

    assert list(range(1, total + 1)) == seen


async def test_many_watchers_get_everything_in_commit_order(api: Any, make_request: Any) -> None:
    """Twenty watchers of three jobs, written concurrently: each sees all revisions ascending without a gap."""
    jobs = api.jobs()
    for name in "abc":
        await jobs.CreateJob(make_request(name))
    streams = [jobs.WatchJobs(pb.WatchJobsRequest(after_revision=0)) for _ in range(20)]
    readers = [asyncio.create_task(take(stream, 63)) for stream in streams]
    await asyncio.gather(*(note(api, "abc"[n % 3], str(n)) for n in range(60)))
    for reader in readers:
        assert list(range(1, 64)) == [message.revision for message in await reader]
    for stream in streams:
        stream.cancel()


async def test_only_named_jobs_are_sent(api: Any, make_request: Any, refusal: Any) -> None:
    """Names filter events; an unknown name is NOT_FOUND; other tenants' events never come."""
    jobs = api.jobs()
    for name in "ab":
        await jobs.CreateJob(make_request(name))
    await api.jobs("secret-b").CreateJob(make_request("c"))
    stream = jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/b"], after_revision=0))
    everything = jobs.WatchJobs(pb.WatchJobsRequest(after_revision=0))
    await note(api, "a", "not for b")
    await note(api, "b", "for b")
    found, all_found = await take(stream, 2), await take(everything, 4)
    stream.cancel(), everything.cancel()
    missing = await refusal(take(jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/nobody"])), 1))

    assert ["CREATED", "NOTE"] == [m.event.type for m in found]
    assert {"jobs/b"} == {m.event.job for m in found}
    assert ["jobs/a", "jobs/b", "jobs/a", "jobs/b"] == [m.event.job for m in all_found]
    assert ("NOT_FOUND", "JOB_NOT_FOUND") == (missing.code, missing.reason)


async def test_until_terminal_ends_the_stream(api: Any, make_request: Any) -> None:
    """The stream ends by itself after the last named job's terminal event, or at once when all have ended."""
    jobs = api.jobs()
    for name in "ab":
        await jobs.CreateJob(make_request(name))
    stream = jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/a", "jobs/b"], until_terminal=True))
    await take(stream, 2)
    for name in "ab":
        await jobs.CancelJob(pb.CancelJobRequest(name=f"jobs/{name}"))
    rest = await take(stream, 99)
    again = await take(jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/a"], until_terminal=True)), 99)
    resumed = await take(jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/a"], after_revision=1, until_terminal=True)), 99)

    assert [("jobs/a", J.CANCELLED), ("jobs/b", J.CANCELLED)] == [(m.event.job, m.event.state) for m in rest]
    assert [J.CANCELLED] == [m.job.state for m in again]
    assert [J.CANCELLED] == [m.event.state for m in resumed]


async def test_a_deletion_is_an_event_without_a_job(api: Any, make_request: Any) -> None:
    """Watchers hear of a deletion, also those that resume over it by name."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("a"))
    live = jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/a"], until_terminal=False, after_revision=1))
    await jobs.CancelJob(pb.CancelJobRequest(name="jobs/a"))
    await jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/a"))
    heard = await take(live, 2)
    live.cancel()
    resumed = await take(jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/a"], after_revision=2, until_terminal=True)), 99)

    assert [("STATE_CHANGED", 2), ("DELETED", 3)] == [(m.event.type, m.revision) for m in heard]
    assert not heard[1].HasField("job")
    assert ["DELETED"] == [m.event.type for m in resumed]


async def test_progress_comes_without_events_and_coalesced(api: Any, make_request: Any) -> None:
    """Progress updates carry the job alone; many writes are few messages, and the newest wins."""
    jobs = api.jobs()
    uid = (await jobs.CreateJob(make_request("a"))).uid
    stream = jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/a"]))
    await take(stream, 1)
    for step in range(1, 101):
        await api.store.transact(lambda tx, step=step: tx.update_job(uid, progress={"step": step}))
    steps: list[int] = []
    while not steps or steps[-1] < 100:
        message = (await take(stream, 1))[0]
        assert not message.HasField("event")
        steps.append(message.job.progress.step)
    stream.cancel()

    assert sorted(steps) == steps
    assert len(steps) < 80


async def test_heartbeats_when_nothing_happens(start_api: Any, make_request: Any) -> None:
    """Silence is broken by messages with a token alone, which moves over events of others."""
    api = await start_api(heartbeat_seconds=0.1)
    jobs = api.jobs()
    for name in "ab":
        await jobs.CreateJob(make_request(name))
    stream = jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/a"]))
    await take(stream, 1)
    await note(api, "b", "of another job")
    beats = await take(stream, 4)
    stream.cancel()

    assert not any(beat.HasField("job") or beat.HasField("event") for beat in beats)
    assert 3 == beats[-1].revision


async def test_a_token_outside_of_the_window_is_refused(start_api: Any, make_request: Any, refusal: Any) -> None:
    """OUT_OF_RANGE for revisions that were dropped or that never were; the oldest possible one still resumes."""
    api = await start_api(store_options={"event_window": 5})
    jobs = api.jobs()
    await jobs.CreateJob(make_request("a"))
    for n in range(20):
        await note(api, "a", str(n))
    old = await refusal(take(jobs.WatchJobs(pb.WatchJobsRequest(after_revision=15)), 1))
    future = await refusal(take(jobs.WatchJobs(pb.WatchJobsRequest(after_revision=1000)), 1))
    stream = jobs.WatchJobs(pb.WatchJobsRequest(after_revision=16))
    kept = await take(stream, 5)
    stream.cancel()

    assert [("OUT_OF_RANGE", "TOKEN_EXPIRED")] * 2 == [(f.code, f.reason) for f in (old, future)]
    assert ("17", "21") == (old.metadata["oldest"], old.metadata["newest"])
    assert [17, 18, 19, 20, 21] == [m.revision for m in kept]


async def test_a_slow_reader_is_told_and_can_resume(start_api: Any, make_request: Any) -> None:
    """Whoever does not read gets RESOURCE_EXHAUSTED instead of endless buffers; resuming by revision loses nothing."""
    api = await start_api(queue_limit=20)
    jobs = api.jobs()
    uid = (await jobs.CreateJob(make_request("a"))).uid
    text = "x" * 20_000

    def write(tx: Any) -> None:
        for _ in range(50):
            tx.append_event(uid, "NOTE", text)

    stream = jobs.WatchJobs(pb.WatchJobsRequest(after_revision=0))
    await take(stream, 1)
    for _ in range(20):
        await api.store.transact(write)
    last, failure = 1, None
    try:
        async for message in stream:
            assert last + 1 == message.revision
            last = message.revision
    except grpc.aio.AioRpcError as error:
        failure = error
    resumed = await take(jobs.WatchJobs(pb.WatchJobsRequest(after_revision=last)), 1001 - last)

    assert failure is not None and grpc.StatusCode.RESOURCE_EXHAUSTED == failure.code()
    assert 1 <= last < 1001
    assert list(range(last + 1, 1002)) == [message.revision for message in resumed]


async def test_watchers_are_bounded(start_api: Any, make_request: Any, refusal: Any) -> None:
    """Beyond the limit a stream is refused; closing one makes room."""
    api = await start_api(most_watchers=2)
    jobs = api.jobs()
    await jobs.CreateJob(make_request("a"))
    streams = [jobs.WatchJobs(pb.WatchJobsRequest()) for _ in range(2)]
    for stream in streams:
        await take(stream, 1)
    refused = await refusal(take(jobs.WatchJobs(pb.WatchJobsRequest()), 1))
    streams[0].cancel()
    async with asyncio.timeout(10):
        while api.bus.num_watchers == 2:
            await asyncio.sleep(0.01)
    third = jobs.WatchJobs(pb.WatchJobsRequest())
    assert 1 == len(await take(third, 1))
    for stream in (streams[1], third):
        stream.cancel()

    assert ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED") == (refused.code, refused.reason)


async def test_cancelled_streams_leave_nothing(api: Any, make_request: Any) -> None:
    """Clients that go away free their subscriptions."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("a"))
    for _ in range(10):
        stream = jobs.WatchJobs(pb.WatchJobsRequest())
        await take(stream, 1)
        stream.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while api.bus.num_watchers:
                await asyncio.sleep(0.01)

    assert 0 == api.bus.num_watchers
    assert JobState.QUEUED == (await api.store.read(lambda reader: reader.job_named("tenant-a", "a"))).state
