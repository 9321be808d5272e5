"""What the server can run, and where jobs wait."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from luthier.client.channel import Wire
from luthier.v1 import method_service_pb2, method_service_pb2_grpc, queue_service_pb2, queue_service_pb2_grpc

__all__ = ["AsyncMethods", "AsyncQueues"]


class AsyncMethods:
    """Installed methods, objectives, adapters and recipes."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def _stub(self) -> method_service_pb2_grpc.MethodServiceAsyncStub:
        return self._wire.stub(method_service_pb2_grpc.MethodServiceStub)

    async def list(self, *, slot: str = "") -> AsyncGenerator[method_service_pb2.MethodInfo]:
        """Plugins by slot and name; `slot` is "method", "objective", "adapter" or "recipe", empty for all."""
        request = method_service_pb2.ListMethodsRequest(page_size=500, slot=slot)
        while True:
            answer = await self._wire.unary(self._stub.ListMethods, request)
            for method in answer.methods:
                yield method
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def get(self, name: str) -> method_service_pb2.MethodInfo:
        """One plugin with its parameter schema."""
        name = name if name.startswith("methods/") else f"methods/{name}"
        return await self._wire.unary(self._stub.GetMethod, method_service_pb2.GetMethodRequest(name=name))


class AsyncQueues:
    """Queues with capacity, use and waiting jobs."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def _stub(self) -> queue_service_pb2_grpc.QueueServiceAsyncStub:
        return self._wire.stub(queue_service_pb2_grpc.QueueServiceStub)

    async def list(self) -> AsyncGenerator[queue_service_pb2.Queue]:
        """All queues."""
        request = queue_service_pb2.ListQueuesRequest(page_size=500)
        while True:
            answer = await self._wire.unary(self._stub.ListQueues, request)
            for queue in answer.queues:
                yield queue
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def get(self, name: str) -> queue_service_pb2.Queue:
        """One queue with the caller's waiting jobs."""
        name = name if name.startswith("queues/") else f"queues/{name}"
        return await self._wire.unary(self._stub.GetQueue, queue_service_pb2.GetQueueRequest(name=name))
