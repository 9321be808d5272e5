"""The store on SQLite: one writer thread with group commit, reader threads with snapshots of their own.

Functions wait in a queue; the writer takes all that wait, runs each under its own savepoint, commits once, and only then answers. A
function that raises loses its own writes and nothing else. The first statement of every group asks the database whether this
controller still leads: a newer one has raised the epoch, and then nothing of the group is written.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.exc import DBAPIError

from luthier.controller.store import schema
from luthier.controller.store.api import Reader, Transaction
from luthier.controller.store.engine import reader_engine, writer_engine
from luthier.controller.store.migrations import migrate
from luthier.controller.store.reading import RecordCache, SqlReader
from luthier.controller.store.records import EventRecord
from luthier.controller.store.writing import Group, SqlTransaction
from luthier.errors import LuthierError, Unavailable

__all__ = ["LeadershipLost", "SqlStore"]

T = TypeVar("T")

LARGEST_GROUP = 256
"""Functions in one commit: enough to make the sync cheap, few enough to keep the write lock short."""
REQUESTS_KEPT_SECONDS = 31 * 24 * 3600.0
"""The API promises 30 days of request ids."""
_HOUSEKEEPING_SECONDS = 3600.0

EventListener = Callable[[Sequence[EventRecord]], None]
ProgressListener = Callable[[Collection[tuple[str, str]]], None]


class LeadershipLost(Unavailable):
    """A newer controller opened this database; this one may not write any more."""

    def __init__(self) -> None:
        super().__init__(
            "another controller took over this database; nothing was written",
            fix="connect to the newer controller; this one should be stopped",
            retry_seconds=5.0,
        )


@dataclass
class _Work:
    function: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class SqlStore:
    """`luthier.controller.store.api.Store` over one SQLite file.

    `event_window`: number of newest events kept, None keeps all. `on_group(seconds, functions)` is called in the writer thread after
    each commit, for the metric of commit durations.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        event_window: int | None = None,
        readers: int = 2,
        on_group: Callable[[float, int], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.epoch = 0
        self._clock = clock
        self._event_window = event_window
        self._on_group = on_group
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="store-read")
        self._local = threading.local()
        self._reader_connections: list[Connection] = []
        self._writer: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = False
        self._event_listeners: list[EventListener] = []
        self._progress_listeners: list[ProgressListener] = []
        self._cache = RecordCache()
        self._next_housekeeping = 0.0

    # --- life ---

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.path.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        opened: asyncio.Future[None] = self._loop.create_future()
        self._writer = threading.Thread(target=self._write_loop, args=(opened,), name="store-write", daemon=True)
        self._writer.start()
        await opened
        self._reader_engine = reader_engine(self.path)
        self._open = True

    async def close(self) -> None:
        """Finish what waits, then fold the log into the database file."""
        self._open = False
        # Readers first: only a connection that may write removes the log's files when it is the last.
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._reader_connections:
            connection.close()
        self._reader_connections.clear()
        writer, self._writer = self._writer, None
        if writer is not None:
            self._queue.put(None)
            await asyncio.to_thread(writer.join)

    # --- use ---

    async def transact(self, function: Callable[[Transaction], T]) -> T:
        if not self._open or self._loop is None:
            raise Unavailable("the store is closed", fix="try again when the controller is back")
        work = _Work(function, self._loop.create_future())
        self._queue.put(work)
        result: T = await work.future
        return result

    async def read(self, function: Callable[[Reader], T]) -> T:
        if not self._open:
            raise Unavailable("the store is closed", fix="try again when the controller is back")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, function)

    def on_commit(self, listener: EventListener) -> Callable[[], None]:
        self._event_listeners.append(listener)
        return lambda: self._event_listeners.remove(listener)

    def on_progress(self, listener: ProgressListener) -> Callable[[], None]:
        """Call `listener` on the event loop with (tenant, uid) of jobs that changed in a commit without an event."""
        self._progress_listeners.append(listener)
        return lambda: self._progress_listeners.remove(listener)

    # --- readers ---

    def _read(self, function: Callable[[Reader], T]) -> T:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._reader_engine.connect()
            self._reader_connections.append(connection)
        try:
            with connection.begin():
                return function(SqlReader(connection, self._cache))
        except DBAPIError as error:
            raise _database_error(error) from error

    # --- the writer ---

    def _write_loop(self, opened: asyncio.Future[None]) -> None:
        assert self._loop is not None
        try:
            engine = writer_engine(self.path)
            migrate(engine)
            connection = engine.connect()
            self.epoch = self._take_over(connection)
        except Exception as error:  # noqa: BLE001  whatever it is, `open` raises it
            self._loop.call_soon_threadsafe(_answer, opened, None, _open_error(self.path, error))
            return
        self._loop.call_soon_threadsafe(_answer, opened, None, None)
        try:
            while (group := self._next_group()) is not None:
                self._run_group(connection, group)
            # On the driver's connection: a checkpoint cannot run inside the transaction that the library would begin.
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
            engine.dispose()

    def _next_group(self) -> list[_Work] | None:
        first = self._queue.get()
        if first is None:
            return None
        group = [first]
        while len(group) < LARGEST_GROUP:
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                break
            if work is None:
                self._queue.put(None)  # after this group
                break
            group.append(work)
        return group

    @staticmethod
    def _take_over(connection: Connection) -> int:
        table = schema.meta
        with connection.begin():
            raised = update(table).where(table.c.key == "epoch").values(value=table.c.value + 1).returning(table.c.value)
            return int(connection.execute(raised).scalar_one())

    def _run_group(self, connection: Connection, group: list[_Work]) -> None:
        started = time.monotonic()
        written: Group | None = None
        try:
            with connection.begin():
                written = self._lead(connection)
                for work in group:
                    self._run_one(connection, written, work)
                self._finish(connection, written)
        except Exception as error:  # noqa: BLE001  every caller must get an answer
            lost = error if isinstance(error, LuthierError) else _database_error(error)
            for work in group:
                work.result, work.error = None, lost
            written = None
        if self._on_group is not None:
            self._on_group(time.monotonic() - started, len(group))
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, group, written)

    def _lead(self, connection: Connection) -> Group:
        """Write under our epoch or not at all: the row is locked until the commit."""
        table = schema.meta
        mine = update(table).where(table.c.key == "epoch", table.c.value == self.epoch).values(value=self.epoch)
        if connection.execute(mine).rowcount != 1:
            raise LeadershipLost
        revision = connection.execute(select(table.c.value).where(table.c.key == "revision")).scalar_one()
        return Group(revision)

    def _run_one(self, connection: Connection, written: Group, work: _Work) -> None:
        mark = written.mark()
        # As plain text: the library's savepoints have a new name each, which it compiles each time.
        connection.exec_driver_sql("SAVEPOINT function")
        try:
            work.result = work.function(SqlTransaction(connection, written, self._clock()))
            connection.exec_driver_sql("RELEASE SAVEPOINT function")
        except Exception as error:  # noqa: BLE001  it belongs to the caller
            # Where the database gave up the whole transaction this fails, too, and with it the group.
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT function")
            connection.exec_driver_sql("RELEASE SAVEPOINT function")
            written.rewind(mark)
            work.error = _database_error(error) if isinstance(error, DBAPIError) else error

    def _finish(self, connection: Connection, written: Group) -> None:
        table = schema.meta
        if written.events:
            connection.execute(update(table).where(table.c.key == "revision").values(value=written.revision))
            self._drop_events(connection, written.revision)
        now = self._clock()
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + _HOUSEKEEPING_SECONDS
            connection.execute(delete(schema.requests).where(schema.requests.c.create_time < now - REQUESTS_KEPT_SECONDS))

    def _drop_events(self, connection: Connection, revision: int) -> None:
        if self._event_window is None or revision <= self._event_window:
            return
        last = revision - self._event_window
        connection.execute(delete(schema.events).where(schema.events.c.revision <= last))
        connection.execute(update(schema.meta).where(schema.meta.c.key == "dropped").values(value=last))

    def _deliver(self, group: list[_Work], written: Group | None) -> None:
        for work in group:
            _answer(work.future, work.result, work.error)
        if written is None:
            return
        if written.events or written.progressed:
            for listener in tuple(self._event_listeners):
                listener(written.events)
        quiet = {(tenant, uid) for uid, tenant in written.progressed.items()} - {(e.tenant, e.job_uid) for e in written.events}
        if quiet:
            for progress_listener in tuple(self._progress_listeners):
                progress_listener(quiet)


def _answer(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return  # the caller went away; what it asked for is committed all the same
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _database_error(error: Exception) -> LuthierError | Exception:
    """A database that cannot answer now is UNAVAILABLE; anything else is a bug and stays what it is."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, sqlite3.OperationalError):
        fix = "try again; if it stays, look for another process on the database file and for free disk space"
        return Unavailable(f"the database is not available: {cause}", reason="STORE_BUSY", fix=fix)
    return error


def _open_error(path: Path, error: Exception) -> Exception:
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, sqlite3.DatabaseError):
        fix = "check that the state directory is writable and that the file is a Luthier database"
        return Unavailable(f"the database {path} cannot be opened: {cause}", reason="STORE_BUSY", fix=fix, metadata={"path": str(path)})
    return error
