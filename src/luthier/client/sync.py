"""The synchronous client: the same methods, each delegated in one line to its asynchronous twin.

One background thread per process runs the event loop for all synchronous clients. Signatures and documentation come from the
asynchronous methods; a test checks that none is missing.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from luthier.client.asynchronous import AsyncClient
from luthier.client.catalog import AsyncMethods, AsyncQueues
from luthier.client.channel import DEFAULT_TIMEOUT_SECONDS
from luthier.client.jobs import AsyncJob, AsyncJobs
from luthier.client.record import JobRecord
from luthier.client.transfer import AsyncArtifacts
from luthier.v1 import job_pb2

__all__ = ["Artifacts", "Client", "Job", "Jobs", "Methods", "Queues"]

P = ParamSpec("P")
R = TypeVar("R")


# A signal that arrives just before the thread blocks on a lock does not wake it (Python notes it and waits): look now and then.
_POLL_SECONDS = 0.2


class _Loop:
    """The event loop in its thread, started on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="luthier-client", daemon=True)
                self._thread.start()
                atexit.register(self.stop)
            return self._loop

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine to its end; an interrupt of the caller cancels it."""
        ended = threading.Event()

        async def tracked() -> R:
            try:
                return await coroutine
            finally:
                ended.set()

        loop = self._start()
        future: concurrent.futures.Future[R] | None = None
        try:
            future = asyncio.run_coroutine_threadsafe(tracked(), loop)
            while True:
                done, _ = concurrent.futures.wait([future], _POLL_SECONDS)
                if done:
                    return future.result()
        except BaseException:
            # The caller goes on with what the coroutine still holds (it closes a stream): wait until the coroutine has let go of it.
            if future is not None and future.cancel():
                ended.wait(5)
            raise

    def stop(self) -> None:
        """End the thread; clients that are still open lose their connection."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=5)
            if not thread.is_alive():
                loop.close()


_LOOP = _Loop()


_END: Any = object()


class _Steps(Generic[R]):
    """An asynchronous generator, one step at a time."""

    def __init__(self, messages: AsyncGenerator[R]) -> None:
        self._messages = messages
        self._task: asyncio.Task[Any] | None = None

    async def next(self) -> R:
        """The next message, or `_END`."""
        self._task = asyncio.current_task()
        return await anext(self._messages, _END)

    async def close(self) -> None:
        """Close the generator; a step that an interrupt left running ends first."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._messages.aclose()


def _iterate(messages: AsyncGenerator[R]) -> Generator[R]:
    """An asynchronous generator as a plain one; closing it closes the stream."""
    steps = _Steps(messages)
    try:
        while (message := _LOOP.run(steps.next())) is not _END:
            yield message
    finally:
        _LOOP.run(steps.close())


class _Face:
    """A synchronous face over an asynchronous object."""

    _inner: Any


def unary(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """A coroutine method as a plain one."""

    @functools.wraps(method)
    def call(face: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return _LOOP.run(method(face._inner, *args, **kwargs))

    return call


def stream(method: Callable[Concatenate[Any, P], AsyncGenerator[R]]) -> Callable[Concatenate[Any, P], Generator[R]]:
    """An asynchronous generator method as one that returns an iterator."""

    @functools.wraps(method)
    def call(face: Any, /, *args: P.args, **kwargs: P.kwargs) -> Generator[R]:
        return _iterate(method(face._inner, *args, **kwargs))

    return call


def handle(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, AsyncJob]]) -> Callable[Concatenate[Any, P], Job]:
    """A method that returns a job."""

    @functools.wraps(method)
    def call(face: Any, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        return Job(_LOOP.run(method(face._inner, *args, **kwargs)))

    return call


def handles(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, list[AsyncJob]]]) -> Callable[Concatenate[Any, P], list[Job]]:
    """A method that returns jobs."""

    @functools.wraps(method)
    def call(face: Any, /, *args: P.args, **kwargs: P.kwargs) -> list[Job]:
        return [Job(job) for job in _LOOP.run(method(face._inner, *args, **kwargs))]

    return call


def handle_stream(method: Callable[Concatenate[Any, P], AsyncGenerator[AsyncJob]]) -> Callable[Concatenate[Any, P], Iterator[Job]]:
    """A method that iterates over jobs."""

    @functools.wraps(method)
    def call(face: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Job]:
        return (Job(job) for job in _iterate(method(face._inner, *args, **kwargs)))

    return call


class Job(JobRecord, _Face):
    """One job: its record as last seen, and its verbs. See `AsyncJob`."""

    def __init__(self, inner: AsyncJob) -> None:
        self._inner: AsyncJob = inner

    @property
    def pb(self) -> job_pb2.Job:
        return self._inner.pb

    refresh = handle(AsyncJob.refresh)
    wait = handle(AsyncJob.wait)
    logs = stream(AsyncJob.logs)
    events = stream(AsyncJob.events)
    attempts = stream(AsyncJob.attempts)
    checkpoints = stream(AsyncJob.checkpoints)
    metrics = unary(AsyncJob.metrics)
    cancel = handle(AsyncJob.cancel)
    pause = handle(AsyncJob.pause)
    resume = handle(AsyncJob.resume)
    retry = handle(AsyncJob.retry)
    delete = unary(AsyncJob.delete)


class Jobs(_Face):
    """The job verbs. See `AsyncJobs`."""

    def __init__(self, inner: AsyncJobs) -> None:
        self._inner: AsyncJobs = inner

    submit = handles(AsyncJobs.submit)
    check = handles(AsyncJobs.check)
    start = handles(AsyncJobs.start)
    create = handle(AsyncJobs.create)
    get = handle(AsyncJobs.get)
    list = handle_stream(AsyncJobs.list)
    events = stream(AsyncJobs.events)
    attempts = stream(AsyncJobs.attempts)
    checkpoints = stream(AsyncJobs.checkpoints)
    metrics = unary(AsyncJobs.metrics)
    watch = stream(AsyncJobs.watch)
    logs = stream(AsyncJobs.logs)
    wait = handle(AsyncJobs.wait)
    update = handle(AsyncJobs.update)
    delete = unary(AsyncJobs.delete)
    cancel = handle(AsyncJobs.cancel)
    pause = handle(AsyncJobs.pause)
    resume = handle(AsyncJobs.resume)
    retry = handle(AsyncJobs.retry)


class Artifacts(_Face):
    """Uploads and downloads. See `AsyncArtifacts`."""

    def __init__(self, inner: AsyncArtifacts) -> None:
        self._inner: AsyncArtifacts = inner

    upload = unary(AsyncArtifacts.upload)
    send = unary(AsyncArtifacts.send)
    list = stream(AsyncArtifacts.list)
    download = stream(AsyncArtifacts.download)
    pull = unary(AsyncArtifacts.pull)


class Methods(_Face):
    """Installed plugins. See `AsyncMethods`."""

    def __init__(self, inner: AsyncMethods) -> None:
        self._inner: AsyncMethods = inner

    list = stream(AsyncMethods.list)
    get = unary(AsyncMethods.get)


class Queues(_Face):
    """Queues. See `AsyncQueues`."""

    def __init__(self, inner: AsyncQueues) -> None:
        self._inner: AsyncQueues = inner

    list = stream(AsyncQueues.list)
    get = unary(AsyncQueues.get)


class Client(_Face):
    """One connection to a controller: `jobs`, `artifacts`, `methods`, `queues`. See `AsyncClient`."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        state_dir: str | Path | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        patience_seconds: float = 60.0,
    ) -> None:
        inner = AsyncClient(address, token=token, state_dir=state_dir, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)
        self._inner: AsyncClient = inner
        self.connection = inner.connection
        self.artifacts = Artifacts(inner.artifacts)
        self.jobs = Jobs(inner.jobs)
        self.methods = Methods(inner.methods)
        self.queues = Queues(inner.queues)

    close = unary(AsyncClient.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
