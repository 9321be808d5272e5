"""The gRPC server: services, options, health, reflection, and a shutdown that loses nobody's call."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from luthier.controller.contents import ContentStore
from luthier.controller.events import EventBus
from luthier.controller.logs import LogStore
from luthier.controller.service.artifacts import ArtifactService
from luthier.controller.service.auth import Authenticator
from luthier.controller.service.interceptors import CallObserver, Drain, Pipeline, standard_layers
from luthier.controller.service.jobs import JobService
from luthier.controller.service.methods import MethodService
from luthier.controller.service.queues import QueueService, QueueView
from luthier.controller.service.submit import Premises, Submitter
from luthier.controller.store.api import Store
from luthier.controller.store.records import EventRecord
from luthier.errors import SpecError
from luthier.methods.registry import all_specs
from luthier.v1 import (
    artifact_service_pb2_grpc,
    job_service_pb2_grpc,
    method_service_pb2_grpc,
    node_service_pb2_grpc,
    queue_service_pb2_grpc,
)

__all__ = ["ApiServer", "build_server"]

_log = logging.getLogger(__name__)

SERVICES: tuple[str, ...] = (
    "luthier.v1.JobService",
    "luthier.v1.ArtifactService",
    "luthier.v1.MethodService",
    "luthier.v1.QueueService",
)
_NODE_SERVICE = "luthier.v1.NodeService"

PARTIALS_KEPT_SECONDS = 7 * 24 * 3600.0
"""Unfinished uploads may be continued for a week."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients ping every 30 s; the default would answer that with GOAWAY (too_many_pings).
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_age_ms", 30 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 5 * 60 * 1000),
    # A second controller on the same port must fail, not share it.
    ("grpc.so_reuseport", 0),
)


class ApiServer:
    """A gRPC server with its background parts. Listen, start, and drain in the end."""

    def __init__(
        self, server: Any, services: tuple[str, ...], drain: Drain, bus: EventBus, logs: LogStore, store: Store, contents: ContentStore
    ) -> None:
        self._server = server
        self._services = services
        self._drain = drain
        self._bus = bus
        self._logs = logs
        self._store = store
        self._contents = contents
        self._health = health.aio.HealthServicer()
        self._stop_listening: Callable[[], None] = lambda: None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    def listen(self, address: str) -> int:
        """Bind `host:port` (port 0: a free one) and return the port. Raises `SpecError` when it is in use."""
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise SpecError(
                f"cannot listen on {address}: the port is in use, or the address is not of this machine",
                fix="stop the other process, or choose another port with --listen HOST:PORT (port 0: a free one)",
                metadata={"address": address},
            )
        return port

    async def start(self) -> None:
        """Answer from now on."""
        # Loaded here and not in the first call: importing plugins would stop the loop for longer than a call may take.
        await asyncio.to_thread(all_specs)
        await asyncio.to_thread(self._contents.drop_stale_partials, PARTIALS_KEPT_SECONDS)
        await self._bus.start()
        self._stop_listening = self._store.on_commit(self._wake_log_followers)
        await self._server.start()
        for service in ("", *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def _wake_log_followers(self, events: Sequence[EventRecord]) -> None:
        """A follower must see that its job ended."""
        for uid in {event.job_uid for event in events}:
            self._logs.notify(uid)

    async def drain(self, grace_seconds: float = 5.0, *, notice_seconds: float = 0.0) -> None:
        """Health to NOT_SERVING, wait `notice_seconds` for balancers, end streams with UNAVAILABLE, finish unary calls, stop.

        May be called again.
        """
        await self._health.enter_graceful_shutdown()
        if notice_seconds:
            await asyncio.sleep(notice_seconds)
        self._drain.start()
        await self._server.stop(grace_seconds)
        stop_listening, self._stop_listening = self._stop_listening, lambda: None
        stop_listening()
        await self._bus.close()
        _log.info("the API is shut down")


def build_server(
    *,
    store: Store,
    contents: ContentStore,
    logs: LogStore,
    queues: QueueView,
    authenticator: Authenticator,
    store_root: Path,
    nodes: node_service_pb2_grpc.NodeServiceServicer | None = None,
    premises: Premises | None = None,
    bus: EventBus | None = None,
    local_paths: bool = True,
    reflection: bool = True,
    clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
    observer: CallObserver | None = None,
) -> ApiServer:
    """Put the API together; nothing listens yet. Call it on the event loop that will serve.

    `store_root` holds the jobs' folders (`<tenant>/<job uid>`); `nodes` authenticates by its own tokens; `observer` is told every call.
    """
    premises = premises or Premises()
    bus = bus or EventBus(store)
    drain = Drain()
    # Identities need no seed; tests give one.
    rng = rng or random.SystemRandom()
    server = grpc.aio.server(interceptors=[Pipeline(standard_layers(authenticator, drain, observer))], options=OPTIONS)
    submitter = Submitter(store, contents, premises, rng)
    jobs = JobService(store, bus, logs, submitter, premises, queues, store_root, clock)
    job_service_pb2_grpc.add_JobServiceServicer_to_server(jobs, server)
    artifacts = ArtifactService(store, contents, store_root, local_paths=local_paths)
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
    method_service_pb2_grpc.add_MethodServiceServicer_to_server(MethodService(), server)
    queue_service_pb2_grpc.add_QueueServiceServicer_to_server(QueueService(queues), server)
    services: tuple[str, ...] = SERVICES
    if nodes is not None:
        node_service_pb2_grpc.add_NodeServiceServicer_to_server(nodes, server)
        services = (*SERVICES, _NODE_SERVICE)
    if reflection:
        from grpc_reflection.v1alpha import reflection as grpc_reflection

        names = (*services, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME)
        grpc_reflection.enable_server_reflection(names, server)
    return ApiServer(server, services, drain, bus, logs, store, contents)
