"""A real server on a real SQLite store, and a channel to it, per test."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from luthier.controller.contents import ContentStore
from luthier.controller.events import EventBus
from luthier.controller.logs import LogStore
from luthier.controller.service.auth import Principal, StaticTokens
from luthier.controller.service.queues import QueueInfo, WaitingInfo
from luthier.controller.service.server import ApiServer, build_server
from luthier.controller.service.submit import Premises
from luthier.controller.store.sqlite import SqlStore
from luthier.v1 import (
    artifact_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    method_service_pb2_grpc,
    queue_service_pb2_grpc,
)

TOKENS = {"secret-a": Principal("tenant-a", "anna"), "secret-b": Principal("tenant-b", "ben")}


class Queues:
    """One queue in which nothing runs."""

    def __init__(self) -> None:
        self.waits: dict[str, WaitingInfo] = {}

    def describe(self, tenant: str | None) -> Sequence[QueueInfo]:
        waiting = tuple(w for w in self.waits.values() if tenant is None or w.tenant == tenant)
        return [QueueInfo("default", 8, 0, 2, 0, len(self.waits), waiting), QueueInfo("night", 4, 2, 0, 0, 0)]

    def waiting(self, uid: str) -> WaitingInfo | None:
        return self.waits.get(uid)


@dataclass
class Failure:
    """What a call was refused with."""

    code: str
    message: str
    reason: str
    metadata: dict[str, str]
    fields: list[str]
    details: list[Any]


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """The parts of a status; asserts that no detail comes twice."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    kinds = [detail.type_url for detail in status.details]
    assert len(kinds) == len(set(kinds)), kinds
    info, fields, details = error_details_pb2.ErrorInfo(), [], []
    for detail in status.details:
        for known in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
            error_details_pb2.ResourceInfo,
        ):
            if detail.Is(known.DESCRIPTOR):
                unpacked = known()
                detail.Unpack(unpacked)
                details.append(unpacked)
                if isinstance(unpacked, error_details_pb2.ErrorInfo):
                    info = unpacked
                if isinstance(unpacked, error_details_pb2.BadRequest):
                    fields = [violation.field for violation in unpacked.field_violations]
    assert info.domain == "luthier.dev"
    return Failure(error.code().name, error.details() or "", info.reason, dict(info.metadata), fields, details)


@dataclass
class Api:
    """A running server and stubs of a caller."""

    store: SqlStore
    server: ApiServer
    bus: EventBus
    logs: LogStore
    contents: ContentStore
    queues: Queues
    root: Path
    port: int
    calls: list[tuple[str, str, float, bool]]
    channels: list[Any] = field(default_factory=list)

    def channel(self, token: str = "secret-a", **options: int) -> Any:
        async def add_token(_: Any, continuation: Any, details: Any, request: Any) -> Any:
            if details.metadata is None:
                details = details._replace(metadata=grpc.aio.Metadata())
            if token:
                details.metadata.add("authorization", f"Bearer {token}")
            return await continuation(details, request)

        # One class per kind of call: grpc.aio takes an interceptor of several kinds for the first only.
        kinds: list[Any] = [
            type("Unary", (grpc.aio.UnaryUnaryClientInterceptor,), {"intercept_unary_unary": add_token}),
            type("Stream", (grpc.aio.UnaryStreamClientInterceptor,), {"intercept_unary_stream": add_token}),
            type("Upload", (grpc.aio.StreamUnaryClientInterceptor,), {"intercept_stream_unary": add_token}),
        ]
        made = grpc.aio.insecure_channel(
            f"127.0.0.1:{self.port}",
            interceptors=[kind() for kind in kinds],
            options=[*options.items(), ("grpc.use_local_subchannel_pool", 1)],
        )
        self.channels.append(made)
        return made

    def jobs(self, token: str = "secret-a") -> Any:
        return job_service_pb2_grpc.JobServiceStub(self.channel(token))

    def artifacts(self, token: str = "secret-a") -> Any:
        return artifact_service_pb2_grpc.ArtifactServiceStub(self.channel(token))

    def methods(self) -> Any:
        return method_service_pb2_grpc.MethodServiceStub(self.channel())

    def queue_service(self) -> Any:
        return queue_service_pb2_grpc.QueueServiceStub(self.channel())


async def refused(call: Awaitable[Any]) -> Failure:
    """The failure of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return failure_of(caught.value)


def create_request(job_id: str = "", method: str = "pretrain", **fields: Any) -> job_service_pb2.CreateJobRequest:
    """A valid request: a model from scratch out of rows below a configured root."""
    request = job_service_pb2.CreateJobRequest(job_id=job_id, **fields)
    request.job.spec.method.name = method
    request.job.spec.data.sources.add(uri="data:world.jsonl")
    if method != "pretrain":
        request.job.spec.model.uri = "job://base"
    return request


@pytest.fixture
def make_request() -> Callable[..., job_service_pb2.CreateJobRequest]:
    """Builds valid CreateJob requests."""
    return create_request


@pytest.fixture
def refusal() -> Callable[[Awaitable[Any]], Awaitable[Failure]]:
    """Awaits a call that must fail and returns how it failed."""
    return refused


@pytest_asyncio.fixture
async def start_api(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Api]]]:
    """Starts servers; all are drained at the end."""
    started: list[Api] = []

    async def start(*, store_options: dict[str, Any] | None = None, premises: dict[str, Any] | None = None, **bus_options: Any) -> Api:
        store = SqlStore(tmp_path / "luthier.db", **(store_options or {}))
        await store.open()
        bus = EventBus(store, **{"progress_seconds": 0.02, "heartbeat_seconds": 30.0, **bus_options})
        contents, logs = ContentStore(tmp_path / "uploads"), LogStore(tmp_path / "store")
        queues, calls = Queues(), []
        server = build_server(
            store=store,
            contents=contents,
            logs=logs,
            queues=queues,
            authenticator=StaticTokens(TOKENS),
            store_root=tmp_path / "store",
            premises=Premises(roots=["data"], queues=lambda: ["default", "night"], **(premises or {})),
            bus=bus,
            rng=random.Random(7),
            observer=lambda *call: calls.append(call),
        )
        port = server.listen("127.0.0.1:0")
        await server.start()
        api = Api(store, server, bus, logs, contents, queues, tmp_path, port, calls)
        started.append(api)
        return api

    yield start
    for api in started:
        for channel in api.channels:
            await channel.close()
        await api.server.drain(0.2)
        await api.store.close()


@pytest_asyncio.fixture
async def api(start_api: Callable[..., Awaitable[Api]]) -> Api:
    """A server with usual settings."""
    return await start_api()
