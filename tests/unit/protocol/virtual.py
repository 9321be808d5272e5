"""An event loop whose clock jumps to the next timer, and a store that commits at once: hours of protocol in milliseconds.

Threads, sockets and sleeps are left out, nothing else: what runs on the loop is the code of production.
"""

from __future__ import annotations

import asyncio
import selectors
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from luthier.controller.store.api import Reader, Transaction
from luthier.controller.store.engine import reader_engine, writer_engine
from luthier.controller.store.migrations import migrate
from luthier.controller.store.sqlite import SqlStore, _Work

__all__ = ["EPOCH", "InlineStore", "Stalled", "VirtualLoop", "VirtualTime", "template"]

T = TypeVar("T")

EPOCH = 1_700_000_000.0
"""UTC seconds at the start of every run."""


class Stalled(Exception):
    """Nothing will ever happen any more."""


class _Jump(selectors.SelectSelector):
    """Waits by moving the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stalled("nothing is ready and no timer is set")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Single-threaded and deterministic; work for threads is done at once."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Signals are sent by calling the node."""


class VirtualTime(SimpleNamespace):
    """Stands in for the module `time` where production asks for it by name."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(monotonic=lambda: 1_000.0 + loop.time(), time=lambda: EPOCH + loop.time())


def template(path: Path) -> Path:
    """An empty database with the present schema, made once and copied for each run."""
    engine = writer_engine(path)
    migrate(engine)
    engine.dispose()
    return path


class InlineStore(SqlStore):
    """The real transactions, groups, epochs and snapshots of `SqlStore`, without its threads.

    `gate(point)` is awaited before and after each commit: a fault may end or stop the controller there.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float], gate: Callable[[str], Awaitable[None]], committed: Callable[[], None]
    ) -> None:
        super().__init__(path, clock=clock)
        self._gate = gate
        self._committed = committed

    @classmethod
    def copy(cls, source: Path, target: Path) -> None:
        """A fresh database."""
        shutil.copyfile(source, target)

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._engine = writer_engine(self.path)
        self._connection = self._engine.connect()
        driver: Any = self._connection.connection.driver_connection
        driver.execute("PRAGMA synchronous=OFF")
        self.epoch = self._take_over(self._connection)
        self._reader_engine = reader_engine(self.path)
        self._open = True

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for connection in self._reader_connections:
            connection.close()
        self._reader_connections.clear()
        self._readers.shutdown()
        self._connection.close()
        self._engine.dispose()
        self._reader_engine.dispose()

    async def transact(self, function: Callable[[Transaction], T]) -> T:
        await self._gate("before a commit")
        assert self._loop is not None
        work = _Work(function, self._loop.create_future())
        self._run_group(self._connection, [work])
        if not (work.error is not None and work.result is None):
            self._committed()
        await self._gate("after a commit")
        result: T = await work.future
        return result

    async def read(self, function: Callable[[Reader], T]) -> T:
        await self._gate("before a read")
        return self._read(function)
