"""The controller's side of `NodeService.Attach`: one session per open stream.

Up: facts are stored once per incarnation and sequence, with their effects, in one transaction, and acknowledged after its commit;
samples are coalesced; log bytes are appended and acknowledged by offset; heartbeats stay in memory. Down: whatever
`directives.downlink` derives from the stored state; reconcile shows every session the newest view of its job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from luthier.controller.attaching import Welcome, say_hello, store_messages
from luthier.controller.directives import downlink
from luthier.controller.logs import LogStore
from luthier.controller.metrics import ControllerMetrics
from luthier.controller.samples import SampleWriter
from luthier.controller.store.api import Store
from luthier.controller.tokens import NodeTokens
from luthier.controller.view import View
from luthier.errors import LuthierError, SpecError, Unauthenticated
from luthier.v1 import node_service_pb2 as pb
from luthier.v1 import node_service_pb2_grpc as pb_grpc

__all__ = ["LiveNode", "Sessions"]

_log = logging.getLogger(__name__)

_HELLO_SECONDS = 10.0
"""A stream that does not say Hello in this time is no node."""
_PENDING = 1_000
"""Messages of one stream that may wait for the database; then the stream waits."""
_LOG_BYTES = 256 * 1024
_SECTIONS = ("setup", "step", "checkpoint", "shard", "evaluate", "waiting")
"""What a node may report times of: a bounded set, since it becomes a label."""


@dataclass(frozen=True)
class LiveNode:
    """A node with an open stream, for `/sd` and metrics."""

    job_uid: str
    job_name: str
    node: int
    host: str
    metrics_port: int


@dataclass(eq=False)
class _Session:
    hello: pb.Hello
    tenant: str
    job_name: str
    outgoing: asyncio.Queue[pb.AttachResponse | None] = field(default_factory=asyncio.Queue)
    incoming: asyncio.Queue[pb.AttachRequest] = field(default_factory=lambda: asyncio.Queue(_PENDING))
    told: tuple[Any, ...] | None = None
    """Key of the last message derived from the stored state."""

    @property
    def place(self) -> tuple[str, int, int]:
        return self.hello.job_uid, self.hello.attempt, self.hello.node

    def say(self, message: pb.AttachResponse) -> None:
        self.outgoing.put_nowait(message)

    def end(self, farewell: pb.AttachResponse | None = None) -> None:
        if farewell is not None:
            self.outgoing.put_nowait(farewell)
        self.outgoing.put_nowait(None)


class Sessions(pb_grpc.NodeServiceServicer):
    """All attached nodes. `on_change(job uid)` is called after every commit that may ask for a decision."""

    def __init__(
        self,
        store: Store,
        tokens: NodeTokens,
        logs: LogStore,
        metrics: ControllerMetrics,
        on_change: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._logs = logs
        self._metrics = metrics
        self._on_change = on_change
        self._clock = clock
        self._samples = SampleWriter(store, clock)
        self._sessions: dict[tuple[str, int, int], _Session] = {}
        self._heard: dict[tuple[str, int, int], float] = {}
        metrics.on_heartbeat_age(self._oldest_silence)
        metrics.nodes_attached.set_function(lambda: float(len(self._sessions)))

    # --- for reconcile and the http face ----------------------------------------------------------------------------

    def attached(self, job_uid: str) -> frozenset[tuple[int, int]]:
        """(attempt, node) of a job's open streams."""
        return frozenset((a, n) for uid, a, n in self._sessions if uid == job_uid)

    def heard(self, job_uid: str) -> dict[tuple[int, int], float]:
        """When each (attempt, node) of a job was last heard of, UTC seconds."""
        return {(a, n): t for (uid, a, n), t in self._heard.items() if uid == job_uid}

    def forget(self, job_uid: str, attempt: int) -> None:
        """The attempt is closed."""
        for key in [k for k in self._heard if k[0] == job_uid and k[1] <= attempt]:
            del self._heard[key]
        self._samples.forget(job_uid)

    def live_nodes(self) -> list[LiveNode]:
        """Snapshot; callable from any thread."""
        sessions = tuple(self._sessions.values())
        return [LiveNode(s.hello.job_uid, s.job_name, s.hello.node, s.hello.host, s.hello.metrics_port) for s in sessions]

    def show(self, view: View) -> None:
        """Tell the nodes of a job what follows from its newest view, where they were not told already."""
        if view.attempt is None:
            return
        for index in range(view.attempt.num_nodes):
            session = self._sessions.get((view.job.uid, view.attempt.number, index))
            if session is None:
                continue
            down = downlink(view, index)
            key = down.key if down is not None else None
            if down is not None and key != session.told:
                session.say(down.message)
                if down.message.WhichOneof("message") == "fenced":
                    session.end()
            session.told = key

    async def flush(self) -> None:
        """Write the samples that wait."""
        await self._samples.flush()

    async def close(self) -> None:
        """End all streams; nodes come back to the next controller."""
        for session in tuple(self._sessions.values()):
            session.end()
        await self._samples.close()

    # --- one stream -------------------------------------------------------------------------------------------------

    async def Attach(  # noqa: N802 (name of the RPC)
        self, request_iterator: AsyncIterable[pb.AttachRequest], context: grpc.aio.ServicerContext[pb.AttachRequest, pb.AttachResponse]
    ) -> AsyncIterator[pb.AttachResponse]:
        """Serve one node until its stream breaks or it is fenced. Errors become statuses in the service's interceptor."""
        requests = aiter(request_iterator)
        hello = await self._first(requests)
        welcome = await self._store.transact(lambda tx: say_hello(tx, hello))
        if welcome.fenced:
            yield pb.AttachResponse(fenced=pb.Fenced(message=welcome.fenced))
            return
        session = _Session(hello, welcome.tenant, welcome.job_name)
        self._enter(session, welcome)
        tasks = [asyncio.create_task(self._receive(session, requests)), asyncio.create_task(self._work(session))]
        try:
            while (message := await session.outgoing.get()) is not None:
                yield message
        finally:
            if self._sessions.get(session.place) is session:
                del self._sessions[session.place]
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            self._on_change(hello.job_uid)

    async def _first(self, requests: AsyncIterator[pb.AttachRequest]) -> pb.Hello:
        """The stream's Hello with a valid token. Raises `SpecError` or `Unauthenticated`."""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            raise SpecError("a node's first message must be Hello", fix="only trainer nodes call this method") from None
        hello = first.hello
        if first.WhichOneof("message") != "hello" or not hello.job_uid or not hello.incarnation:
            raise SpecError("a node's first message must be Hello", fix="only trainer nodes call this method")
        try:
            self._tokens.check(hello.token, hello.job_uid, hello.attempt)
        except Unauthenticated:
            _log.warning("a node gave a wrong token for attempt %s of job %s", hello.attempt, hello.job_uid)
            raise
        return hello

    def _enter(self, session: _Session, welcome: Welcome) -> None:
        before = self._sessions.pop(session.place, None)
        if before is not None:
            same = before.hello.incarnation == session.hello.incarnation
            fenced = pb.AttachResponse(fenced=pb.Fenced(message="a newer incarnation of this node attached"))
            before.end(None if same else fenced)
        self._sessions[session.place] = session
        self._heard[session.place] = self._clock()
        session.say(pb.AttachResponse(ack=pb.Ack(sequence=welcome.acked)))
        self._on_change(session.hello.job_uid)

    async def _receive(self, session: _Session, requests: AsyncIterator[pb.AttachRequest]) -> None:
        """Sort what comes: numbers into memory, everything else into the queue that is stored in order."""
        try:
            async for request in requests:
                self._heard[session.place] = self._clock()
                kind = request.WhichOneof("message")
                if kind in ("fact", "ready", "log"):
                    await session.incoming.put(request)
                elif kind == "samples":
                    self._samples.add(session.hello.job_uid, session.hello.node, request.samples)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError):
            pass  # the stream broke: it comes back
        finally:
            session.end()

    async def _work(self, session: _Session) -> None:
        """Store what waits, as much at once as there is, and acknowledge it."""
        try:
            while True:
                batch = [await session.incoming.get()]
                while not session.incoming.empty():
                    batch.append(session.incoming.get_nowait())
                await self._store_batch(session, batch)
        except LuthierError as error:
            _log.warning("the stream of node %s of job %s is ended: %s", session.hello.node, session.hello.job_uid, error)
            session.end()
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001  a bug must end this stream, not leave it silent
            _log.exception("the stream of node %s of job %s is ended by a bug", session.hello.node, session.hello.job_uid)
            session.end()

    async def _store_batch(self, session: _Session, batch: list[pb.AttachRequest]) -> None:
        chunks = [r.log for r in batch if r.WhichOneof("message") == "log"]
        records = [r for r in batch if r.WhichOneof("message") != "log"]
        if any(r.fact.WhichOneof("fact") in ("phase_done", "plan_finished") for r in records):
            await self._samples.flush(session.hello.job_uid)  # numbers before the end that they led to
        if records:
            stored = await self._store.transact(lambda tx: store_messages(tx, session.hello, records))
            if stored.fenced:
                session.end(pb.AttachResponse(fenced=pb.Fenced(message=stored.fenced)))
                return
            if stored.acked:
                session.say(pb.AttachResponse(ack=pb.Ack(sequence=stored.acked)))
            self._count(stored.facts)
            self._on_change(session.hello.job_uid)
        if chunks:
            ends = await asyncio.to_thread(self._append, session, chunks)
            session.say(pb.AttachResponse(ack=pb.Ack(logs=ends)))

    def _count(self, facts: Iterable[pb.Fact]) -> None:
        for fact in facts:
            self._metrics.facts.labels(fact.WhichOneof("fact") or "unknown").inc()
            for section, seconds in fact.section_times.seconds.items():
                if section in _SECTIONS and seconds > 0:
                    self._metrics.sections.labels(section).inc(seconds)

    def _append(self, session: _Session, chunks: list[pb.LogChunk]) -> list[pb.Ack.LogOffset]:
        """In a worker thread: append and tell how far each stream is stored."""
        ends: dict[int | None, int] = {}
        for chunk in chunks:
            rank = chunk.rank if chunk.HasField("rank") else None
            if len(chunk.data) > _LOG_BYTES:
                raise SpecError(f"a log chunk has {len(chunk.data)} bytes", fix=f"send at most {_LOG_BYTES}")
            place = (session.tenant, session.hello.job_uid, session.hello.attempt, session.hello.node, rank)
            ends[rank] = self._logs.append(*place, chunk.offset, chunk.data)
        return [pb.Ack.LogOffset(rank=rank, offset=end) for rank, end in ends.items()]

    def _oldest_silence(self) -> float:
        now = self._clock()
        return max((now - self._heard.get(p, now) for p in tuple(self._sessions)), default=0.0)
