"""The agent's end of `NodeService.Attach`: one stream, opened again for as long as the node lives.

Facts are sent until they are acknowledged, log bytes from what the controller has, samples and heartbeats once. What must follow a
`Hello` (the present `Ready`) is asked for again on every new stream, because streams may break at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from luthier.trainer_node.logtail import LogTail
from luthier.trainer_node.spool import Spool
from luthier.v1 import node_service_pb2 as pb
from luthier.v1 import node_service_pb2_grpc as pb_grpc

__all__ = ["Attachment", "SampleBuffer"]

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.0
LOG_SECONDS = 0.2
"""Log files are looked at so often."""
SAMPLE_SECONDS = 0.1
"""Samples are sent at most so often."""
_BACKOFF = (0.1, 5.0)
"""First and longest pause between streams, in seconds; each is drawn evenly from half to the whole."""
_REFUSED_BACKOFF = 30.0
"""Longest pause where the controller answers but refuses."""
_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
]


class SampleBuffer:
    """Rows waiting to be sent; the oldest are dropped when the controller is away for long."""

    def __init__(self, rows: int = 5_000) -> None:
        self._rows: deque[tuple[float, tuple[int, int], pb.Samples.Row]] = deque(maxlen=rows)

    def add(self, fence: tuple[int, int], row: pb.Samples.Row) -> None:
        """Keep a row taken now."""
        self._rows.append((time.monotonic(), fence, row))

    def take(self, limit: int = 500) -> pb.Samples | None:
        """The oldest rows of one fence, with their ages; None when there are none."""
        if not self._rows:
            return None
        fence, now = self._rows[0][1], time.monotonic()
        message = pb.Samples(fence=pb.Fence(attempt=fence[0], generation=fence[1]))
        while self._rows and self._rows[0][1] == fence and len(message.rows) < limit:
            taken, _, row = self._rows.popleft()
            row.age.FromNanoseconds(max(0, int((now - taken) * 1e9)))
            message.rows.append(row)
        return message

    def __bool__(self) -> bool:
        return bool(self._rows)


class Attachment:
    """Keeps a stream to the controller. `hello`, `ready` and `heartbeat` make the present message; `receive` gets what comes down."""

    def __init__(
        self,
        controller: str,
        *,
        attempt: int,
        spool: Spool,
        logs: LogTail,
        samples: SampleBuffer,
        hello: Callable[[], pb.Hello],
        ready: Callable[[], pb.Ready | None],
        heartbeat: Callable[[], pb.Heartbeat],
        receive: Callable[[pb.AttachResponse], None],
        rng: random.Random | None = None,
    ) -> None:
        self._controller = controller
        self._attempt = attempt
        self._spool = spool
        self._logs = logs
        self._samples = samples
        self._hello = hello
        self._ready = ready
        self._heartbeat = heartbeat
        self._receive = receive
        self._rng = rng or random.Random()
        self._wake = asyncio.Event()
        self.connected = False
        self.last_contact = time.monotonic()

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        pause, complained = _BACKOFF[0], ""
        async with grpc.aio.insecure_channel(self._controller, options=_OPTIONS) as channel:
            stub = pb_grpc.NodeServiceStub(channel)
            while True:
                opened = time.monotonic()
                limit = _BACKOFF[1]
                try:
                    await self._stream(stub)
                    problem = "the controller ended the stream"
                except grpc.aio.AioRpcError as error:
                    problem = f"{error.code().name}: {error.details()}"
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        limit = _REFUSED_BACKOFF
                finally:
                    self.connected = False
                if problem != complained:
                    _log.info("not attached to %s: %s", self._controller, problem)
                    complained = problem
                if time.monotonic() - opened > limit:
                    pause = _BACKOFF[0]
                await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
                pause = min(limit, pause * 2)

    async def _stream(self, stub: pb_grpc.NodeServiceStub) -> None:
        call: Any = stub.Attach()  # type: ignore[call-arg]  # messages are written one by one
        writer: asyncio.Task[None] | None = None
        try:
            await call.write(pb.AttachRequest(hello=self._hello()))
            self._logs.restart()
            writer = asyncio.create_task(self._write(call))
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    code, details = await call.code(), await call.details()
                    if code != grpc.StatusCode.OK:
                        raise grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), details)
                    return
                if not self.connected:
                    _log.info("attached to %s", self._controller)
                self.connected = True
                self.last_contact = time.monotonic()
                if response.WhichOneof("message") == "ack":
                    self._acknowledged(response.ack)
                self._receive(response)
        finally:
            if writer is not None:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await writer
            call.cancel()

    async def _write(self, call: Any) -> None:
        """Send whatever there is; returns only by cancellation or when the stream breaks."""
        sent = self._spool.acknowledged
        announced: pb.Ready | None = None
        beat_at = sample_at = 0.0
        while True:
            self._wake.clear()
            ready = self._ready()  # facts that came before it are sent before it
            for fact in self._spool.after(sent):
                await call.write(pb.AttachRequest(fact=fact))
                sent = fact.sequence
            if ready is not None and ready is not announced:
                await call.write(pb.AttachRequest(ready=ready))
            announced = ready
            now = time.monotonic()
            if self._samples and now >= sample_at:
                sample_at = now + SAMPLE_SECONDS
                while (rows := self._samples.take()) is not None:
                    await call.write(pb.AttachRequest(samples=rows))
            for piece in self._logs.pieces():
                chunk = pb.LogChunk(attempt=self._attempt, offset=piece.offset, data=piece.data)
                if piece.rank is not None:
                    chunk.rank = piece.rank
                await call.write(pb.AttachRequest(log=chunk))
            if now >= beat_at:
                beat_at = now + HEARTBEAT_SECONDS
                await call.write(pb.AttachRequest(heartbeat=self._heartbeat()))
            wait = SAMPLE_SECONDS if self._samples else LOG_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _acknowledged(self, ack: pb.Ack) -> None:
        if ack.sequence:
            self._spool.acknowledge(ack.sequence)
        for stream in ack.logs:
            self._logs.acknowledge(stream.rank if stream.HasField("rank") else None, stream.offset)
