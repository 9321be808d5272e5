"""One channel, reused: deadlines, retries, keep-alive, the token on every call, and statuses as exceptions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from luthier._version import __version__
from luthier.client.connection import Connection
from luthier.client.errors import from_status
from luthier.errors import Exhausted, LuthierError, Unavailable

__all__ = ["DEFAULT_TIMEOUT_SECONDS", "Wire"]

Q = TypeVar("Q")
R = TypeVar("R")

DEFAULT_TIMEOUT_SECONDS = 10.0

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            # Create is safe among them: the SDK always sends a request id.
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A page of 1,000 fully resolved jobs is larger than gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.primary_user_agent", f"luthier/{__version__}"),
]


class Wire:
    """Calls of one connection. `timeout` is the deadline of unary calls in seconds; `patience` how long a broken stream is re-opened."""

    def __init__(self, connection: Connection, *, timeout: float = DEFAULT_TIMEOUT_SECONDS, patience: float = 60.0) -> None:
        self.connection, self.timeout, self.patience = connection, timeout, patience
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[Any, Any] = {}

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, opened on first use inside the running loop."""
        if self._channel is None:
            if self.connection.tls:
                roots = Path(self.connection.ca_file).read_bytes() if self.connection.ca_file else None
                self._channel = grpc.aio.secure_channel(self.connection.address, grpc.ssl_channel_credentials(roots), options=_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(self.connection.address, options=_OPTIONS)
        return self._channel

    async def close(self) -> None:
        """Close the channel; open calls end."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None
            self._stubs.clear()

    def stub(self, stub_class: Callable[[grpc.aio.Channel], R]) -> R:
        """The stub of a service on this channel."""
        if stub_class not in self._stubs:
            self._stubs[stub_class] = stub_class(self.channel)
        stub: R = self._stubs[stub_class]
        return stub

    @property
    def _metadata(self) -> grpc.aio.Metadata:
        """What every call carries."""
        token = self.connection.token
        return grpc.aio.Metadata(("authorization", f"Bearer {token}")) if token else grpc.aio.Metadata()

    async def upload(self, method: grpc.aio.StreamUnaryMultiCallable[Q, R], requests: AsyncIterator[Q]) -> R:
        """One client stream, without a deadline."""
        try:
            answer: R = await method(requests, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None
        return answer

    def error(self, error: grpc.aio.AioRpcError) -> LuthierError:
        """The exception for a failed call."""
        metadata: Any = error.trailing_metadata()
        return from_status(error.code(), error.details() or "", metadata, address=self.connection.address)

    async def unary(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """One call with the default deadline."""
        try:
            answer: R = await method(request, timeout=self.timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None
        return answer

    async def stream(self, method: grpc.aio.UnaryStreamMultiCallable[Q, R], request: Q) -> AsyncGenerator[R]:
        """The messages of one server stream."""
        call = method(request, metadata=self._metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None
        finally:
            call.cancel()

    async def resuming(self, open_stream: Callable[[], AsyncGenerator[R]]) -> AsyncGenerator[R]:
        """The messages of a stream that is opened again whenever the server goes away.

        `open_stream` opens it after the last message that was taken. A stream that never gave a message fails at once; later ones
        are tried for `patience` seconds, with growing pauses.
        """
        taken = False
        broken_since: float | None = None
        pause = 0.2
        while True:
            try:
                async with contextlib.aclosing(open_stream()) as messages:
                    async for message in messages:
                        taken, broken_since, pause = True, None, 0.2
                        yield message
                return
            except (Unavailable, Exhausted) as error:
                if isinstance(error, Exhausted) and error.reason != "SLOW_READER":
                    raise
                now = time.monotonic()
                broken_since = now if broken_since is None else broken_since
                if not taken or now - broken_since > self.patience:
                    raise
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, 5.0)
