"""The server around the handlers: who may call, how calls end, and how the server leaves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from luthier.controller.service import interceptors
from luthier.controller.service.server import build_server
from luthier.errors import SpecError
from luthier.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    method_service_pb2,
    node_service_pb2,
    node_service_pb2_grpc,
    queue_service_pb2,
)

pb = job_service_pb2
pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("token", ["", "wrong", "secret-a extra"])
async def test_calls_without_a_known_token_are_refused(api: Any, refusal: Any, token: str) -> None:
    """UNAUTHENTICATED for unary calls and streams, with a fix and without a hint of what would be right."""
    jobs = api.jobs(token)
    unary = await refusal(jobs.ListJobs(pb.ListJobsRequest()))

    async def read() -> None:
        async for _ in jobs.WatchJobs(pb.WatchJobsRequest()):
            pass

    stream = await refusal(read())

    assert [("UNAUTHENTICATED", "UNAUTHENTICATED")] * 2 == [(f.code, f.reason) for f in (unary, stream)]
    assert "secret" not in unary.message + unary.metadata["fix"]


async def test_health_and_reflection_are_open(api: Any) -> None:
    """Probes need no token: SERVING for the server and each service; reflection lists the services."""
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    channel = api.channel("")
    health: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", "luthier.v1.JobService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in (await call.read()).list_services_response.service}
    call.cancel()

    assert {"luthier.v1.JobService", "luthier.v1.ArtifactService", "luthier.v1.MethodService", "luthier.v1.QueueService"} <= names


async def test_a_bug_is_internal_with_a_correlation_id(api: Any, refusal: Any, caplog: Any) -> None:
    """The caller gets an id and no traceback; the server's log has both."""

    def broken(reader: Any) -> None:
        raise RuntimeError("secret detail")

    api.store.read = lambda function: asyncio.get_running_loop().run_in_executor(None, broken, None)
    with caplog.at_level(logging.ERROR):
        failure = await refusal(api.jobs().GetJob(pb.GetJobRequest(name="jobs/x"), metadata=(("x-correlation-id", "my-id-1"),)))

    assert ("INTERNAL", "INTERNAL", "my-id-1") == (failure.code, failure.reason, failure.metadata["correlation_id"])
    assert "secret detail" not in failure.message
    assert "my-id-1" in caplog.text and "secret detail" in caplog.text


async def test_every_answer_carries_the_correlation_id(api: Any) -> None:
    """The caller's id comes back; a malformed one is replaced."""
    jobs = api.jobs()
    for given, same in (("abc-1", True), ("bad id with spaces", False), ("x" * 100, False)):
        call = jobs.ListJobs(pb.ListJobsRequest(), metadata=(("x-correlation-id", given),))
        await call
        trailers = dict(await call.trailing_metadata())
        assert same == (given == trailers["x-correlation-id"])
        assert trailers["x-correlation-id"]


async def test_calls_are_observed(api: Any, make_request: Any, refusal: Any) -> None:
    """Metrics hear method, code and duration of every call, streams included."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("a"))
    await refusal(jobs.GetJob(pb.GetJobRequest(name="jobs/b")))
    stream = jobs.WatchJobs(pb.WatchJobsRequest())
    await stream.read()
    stream.cancel()
    async with asyncio.timeout(10):
        while len(api.calls) < 3:
            await asyncio.sleep(0.01)

    assert [
        ("/luthier.v1.JobService/CreateJob", "OK", False),
        ("/luthier.v1.JobService/GetJob", "NOT_FOUND", False),
        ("/luthier.v1.JobService/WatchJobs", "CANCELLED", True),
    ] == [(method, code, streaming) for method, code, _, streaming in api.calls]
    assert all(seconds >= 0 for _, _, seconds, _ in api.calls)


async def test_unary_calls_end_in_time(start_api: Any, refusal: Any, monkeypatch: Any) -> None:
    """A handler that hangs is ended by the server with DEADLINE_EXCEEDED and its details."""
    monkeypatch.setattr(interceptors, "UNARY_SECONDS", 0.1)
    api = await start_api()
    api.store.read = lambda function: asyncio.sleep(60)
    failure = await refusal(api.jobs().GetJob(pb.GetJobRequest(name="jobs/x")))

    assert ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED") == (failure.code, failure.reason)


async def test_large_errors_fit_into_trailers(api: Any, make_request: Any, refusal: Any) -> None:
    """Hundreds of violations arrive as far as they fit, with the number of those left out, instead of a broken call."""
    request = make_request()
    for n in range(200):
        request.job.spec.data.sources.add(uri=f"nowhere:{'x' * 200}{n}")
    failure = await refusal(api.jobs().CreateJob(request))

    assert "FORBIDDEN_URI" == failure.reason
    assert 5 < len(failure.fields) < 200
    assert 200 == len(failure.fields) + int(failure.metadata["omitted_violations"])


async def test_drain_ends_streams_and_finishes_unary_calls(api: Any, make_request: Any) -> None:
    """NOT_SERVING first; a stream ends with UNAVAILABLE (DRAINING) and a time to retry; a call under way gets its answer."""
    jobs = api.jobs()
    await jobs.CreateJob(make_request("a"))
    stream = jobs.WatchJobs(pb.WatchJobsRequest())
    await stream.read()
    health: Any = health_pb2_grpc.HealthStub(api.channel(""))
    watching = health.Watch(health_pb2.HealthCheckRequest())
    await watching.read()
    entered, release, read = asyncio.Event(), asyncio.Event(), api.store.read

    async def slow(function: Any) -> Any:
        entered.set()
        await release.wait()
        return await read(function)

    api.store.read = slow
    unary = asyncio.ensure_future(jobs.GetJob(pb.GetJobRequest(name="jobs/a")))
    await entered.wait()
    draining = asyncio.create_task(api.server.drain(10.0))
    status = await watching.read()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    release.set()
    job = await unary
    watching.cancel()
    await draining

    assert health_pb2.HealthCheckResponse.NOT_SERVING == status.status
    assert grpc.StatusCode.UNAVAILABLE == ended.value.code()
    assert job_pb2.Job.QUEUED == job.state


async def test_the_event_loop_is_never_blocked(start_api: Any, make_request: Any, caplog: Any) -> None:
    """In debug mode no callback takes longer than 100 ms, over submits, lists, watches, logs and uploads.

    A blocking call is slow every time; a machine that is busy with something else is not, so one clean round of three counts.
    """
    loop = asyncio.get_running_loop()
    api = await start_api()
    jobs = api.jobs()
    await jobs.CreateJob(make_request("warm"))

    async def round_of_calls(number: int) -> None:
        stream = jobs.WatchJobs(pb.WatchJobsRequest())
        await asyncio.gather(*(jobs.CreateJob(make_request(f"j{number}-{n}")) for n in range(40)))
        await jobs.ListJobs(pb.ListJobsRequest(page_size=1000))
        await asyncio.to_thread(api.logs.append, "tenant-a", f"u{number}", 1, 0, None, 0, b"x\n" * 500_000)
        await api.methods().ListMethods(method_service_pb2.ListMethodsRequest())
        await stream.read()
        stream.cancel()

    loop.set_debug(True)
    loop.slow_callback_duration = 0.1
    slow: list[list[str]] = []
    try:
        for number in range(3):
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="asyncio"):
                await round_of_calls(number)
            slow.append([record.getMessage() for record in caplog.records if "took" in record.getMessage()])
            if not slow[-1]:
                break
    finally:
        loop.set_debug(False)

    assert [] == slow[-1], slow


async def test_the_node_service_has_its_own_tokens(tmp_path: Any, api: Any) -> None:
    """Attach is not stopped for want of a user's token, and its stream ends when the server drains."""

    class Nodes(node_service_pb2_grpc.NodeServiceServicer):
        """Says one thing and stays."""

        async def Attach(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802  named like the RPC
            async for _ in request_iterator:
                yield node_service_pb2.AttachResponse(waiting=node_service_pb2.AttachResponse.Waiting(ready=1, total=2))

    from luthier.controller.service.auth import StaticTokens

    server = build_server(
        store=api.store,
        contents=api.contents,
        logs=api.logs,
        queues=api.queues,
        authenticator=StaticTokens({}),
        store_root=tmp_path,
        nodes=Nodes(),
        reflection=False,
    )
    port = server.listen("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = node_service_pb2_grpc.NodeServiceStub(channel).Attach()
        await stream.write(node_service_pb2.AttachRequest(heartbeat=node_service_pb2.Heartbeat()))
        answer: Any = await stream.read()
        draining = asyncio.create_task(server.drain(5.0))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream.read()
        await draining

    assert 2 == answer.waiting.total
    assert grpc.StatusCode.UNAVAILABLE == ended.value.code()


async def test_a_port_in_use_is_refused_with_the_fix(tmp_path: Any, api: Any) -> None:
    """Two servers never share a port."""
    from luthier.controller.service.auth import StaticTokens

    other = build_server(
        store=api.store,
        contents=api.contents,
        logs=api.logs,
        queues=api.queues,
        authenticator=StaticTokens({}),
        store_root=tmp_path,
    )
    with pytest.raises(SpecError, match="port is in use") as caught:
        other.listen(f"127.0.0.1:{api.port}")

    assert "--listen" in caught.value.fix


async def test_methods_are_described(api: Any, refusal: Any) -> None:
    """Every installed plugin with its schema, page by page, by slot; an unknown name is guessed."""
    stub = api.methods()
    found, token = [], ""
    while True:
        page = await stub.ListMethods(method_service_pb2.ListMethodsRequest(page_size=2, page_token=token))
        found += page.methods
        token = page.next_page_token
        if not token:
            break
    adapters = await stub.ListMethods(method_service_pb2.ListMethodsRequest(slot="adapter"))
    sft = await stub.GetMethod(method_service_pb2.GetMethodRequest(name="methods/sft"))
    unknown = await refusal(stub.GetMethod(method_service_pb2.GetMethodRequest(name="methods/sfft")))
    slot = await refusal(stub.ListMethods(method_service_pb2.ListMethodsRequest(slot="engine")))

    assert {"methods/pretrain", "methods/sft", "methods/nll", "methods/full", "methods/lora"} <= {m.name for m in found}
    assert len(found) == len({(m.slot, m.name) for m in found})
    assert {"adapter"} == {m.slot for m in adapters.methods}
    assert ("method", "object") == (sft.slot, sft.parameters["type"])
    assert "did you mean 'sft'?" == unknown.metadata["fix"]
    assert ["slot"] == slot.fields


async def test_queues_are_described(api: Any, make_request: Any, refusal: Any) -> None:
    """Capacity, use, and the caller's waiting jobs in GetQueue only."""
    from luthier.controller.service.queues import WaitingInfo
    from luthier.v1 import queue_service_pb2_grpc

    api.queues.waits["u1"] = WaitingInfo("u1", "mine", "tenant-a", "CAPACITY", "why", 1)
    api.queues.waits["u2"] = WaitingInfo("u2", "theirs", "tenant-b", "CAPACITY", "why", 2)
    stub = queue_service_pb2_grpc.QueueServiceStub(api.channel())
    first = await stub.ListQueues(queue_service_pb2.ListQueuesRequest(page_size=1))
    rest = await stub.ListQueues(queue_service_pb2.ListQueuesRequest(page_size=1, page_token=first.next_page_token))
    queue = await stub.GetQueue(queue_service_pb2.GetQueueRequest(name="queues/default"))
    unknown = await refusal(stub.GetQueue(queue_service_pb2.GetQueueRequest(name="queues/day")))

    assert ["queues/default", "queues/night", ""] == [first.queues[0].name, rest.queues[0].name, rest.next_page_token]
    assert [] == list(first.queues[0].waiting)
    assert (8, 2, 2) == (queue.capacity.cpu_slots, queue.used.cpu_slots, queue.waiting_count)
    assert [("jobs/mine", job_pb2.Waiting.CAPACITY)] == [(w.job, w.waiting.reason) for w in queue.waiting]
    assert ("NOT_FOUND", "queues here: default, night") == (unknown.code, unknown.metadata["fix"])
    assert ["day"] == [d.resource_name for d in unknown.details if isinstance(d, error_details_pb2.ResourceInfo)]


async def test_many_channels_of_one_client(api: Any, make_request: Any) -> None:
    """Calls of several clients at once are answered apart."""
    await api.jobs().CreateJob(make_request("a"))
    stubs = [job_service_pb2_grpc.JobServiceStub(api.channel()) for _ in range(5)]
    jobs = await asyncio.gather(*(stub.GetJob(pb.GetJobRequest(name="jobs/a")) for stub in stubs for _ in range(4)))

    assert {"jobs/a"} == {job.name for job in jobs}
