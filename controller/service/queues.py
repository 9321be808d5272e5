"""QueueService, and what it needs to know of queues."""

# ruff: noqa: N802  methods are named like the RPCs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.controller.service.convert import to_timestamp
from luthier.controller.service.interceptors import current_tenant
from luthier.controller.service.names import last_segment
from luthier.controller.store.pages import page_limit, scope_of, token_for, token_key
from luthier.errors import NotFound
from luthier.v1 import job_pb2, queue_service_pb2, queue_service_pb2_grpc

__all__ = ["QueueInfo", "QueueService", "QueueView", "WaitingInfo"]


@dataclass(frozen=True)
class WaitingInfo:
    """Why one job waits. `reason` is a name of `luthier.v1.Waiting.Reason`; times are UTC seconds, None when not known."""

    uid: str
    job: str
    """Last segment of the job's name."""
    tenant: str
    reason: str
    message: str
    position: int = 0
    """Place in the queue, from 1; 0 when the job does not wait for slots."""
    estimated_start: float | None = None
    retry_at: float | None = None


@dataclass(frozen=True)
class QueueInfo:
    """One queue: slots that it may use, slots in use, and who waits (in order; of the tenant asked for, or of all)."""

    name: str
    cpu_slots: int
    accelerators: int
    cpu_slots_used: int
    accelerators_used: int
    waiting_count: int
    """Waiting jobs of all tenants."""
    waiting: tuple[WaitingInfo, ...] = ()


class QueueView(Protocol):
    """What the scheduler knows, from memory: both calls are cheap and come from the event loop."""

    def describe(self, tenant: str | None) -> Sequence[QueueInfo]:
        """All queues, with the waiting jobs of one tenant (None: of all)."""
        ...

    def waiting(self, uid: str) -> WaitingInfo | None:
        """Why a job waits, as of the last pass; None when it does not, or is not known yet."""
        ...


class QueueService(queue_service_pb2_grpc.QueueServiceServicer):
    """Describes queues."""

    def __init__(self, view: QueueView) -> None:
        self._view = view

    async def ListQueues(self, request: queue_service_pb2.ListQueuesRequest, context: Any) -> queue_service_pb2.ListQueuesResponse:
        tenant = current_tenant()
        limit = page_limit(request.page_size)
        scope = scope_of("queues", tenant)
        after = token_key(request.page_token, scope, (str,))[0] if request.page_token else ""
        found = sorted((q for q in self._view.describe(tenant) if q.name > after), key=lambda q: q.name)
        page = found[:limit]
        token = token_for(scope, [page[-1].name]) if len(found) > limit else ""
        return queue_service_pb2.ListQueuesResponse(queues=[_queue(q, waiting=False) for q in page], next_page_token=token)

    async def GetQueue(self, request: queue_service_pb2.GetQueueRequest, context: Any) -> queue_service_pb2.Queue:
        name = last_segment(request.name, "queues", "name")
        queues = self._view.describe(current_tenant())
        for queue in queues:
            if queue.name == name:
                return _queue(queue, waiting=True)
        known = ", ".join(sorted(q.name for q in queues))
        raise NotFound(f"there is no queue {name!r}", fix=f"queues here: {known}", metadata={"queue": name})


def waiting_to_proto(info: WaitingInfo) -> job_pb2.Waiting:
    """The proto of a wait."""
    waiting = job_pb2.Waiting(
        reason=info.reason or None,
        message=info.message,
        position=info.position,
    )
    if info.estimated_start is not None:
        waiting.estimated_start_time.CopyFrom(to_timestamp(info.estimated_start))
    if info.retry_at is not None:
        waiting.retry_time.CopyFrom(to_timestamp(info.retry_at))
    return waiting


def _queue(info: QueueInfo, *, waiting: bool) -> queue_service_pb2.Queue:
    capacity = queue_service_pb2.Queue.Capacity
    return queue_service_pb2.Queue(
        name=f"queues/{info.name}",
        capacity=capacity(cpu_slots=info.cpu_slots, accelerators=info.accelerators),
        used=capacity(cpu_slots=info.cpu_slots_used, accelerators=info.accelerators_used),
        waiting_count=info.waiting_count,
        waiting=[
            queue_service_pb2.Queue.WaitingJob(job=f"jobs/{entry.job}", waiting=waiting_to_proto(entry))
            for entry in (info.waiting if waiting else ())
        ],
    )
