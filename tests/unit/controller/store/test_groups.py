"""The writer thread: group commit, isolation of failures, durability, and one leader."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.controller.store.records import EventRecord, JobState
from luthier.controller.store.sqlite import LeadershipLost, SqlStore
from luthier.errors import Conflict, Unavailable

pytestmark = pytest.mark.asyncio

WRITER = """
import asyncio, sys
from pathlib import Path
from luthier.controller.store.records import JobRecord
from luthier.controller.store.sqlite import SqlStore

def job(n):
    return JobRecord(uid=f"u{n}", tenant="t", name=f"n{n}", spec={}, method="sft", queue="default", priority=0)

async def main():
    store = SqlStore(Path(sys.argv[1]))
    await store.open()
    async def worker(first):
        for n in range(first, 10**9, 8):
            await store.transact(lambda tx: tx.insert_job(job(n)))
            print(n, flush=True)
    await asyncio.gather(*(worker(n) for n in range(8)))

asyncio.run(main())
"""


async def test_waiting_functions_share_a_commit(tmp_path: Path, job: Any) -> None:
    """Functions that queue while the writer is busy go into one transaction; all are answered after it."""
    groups: list[int] = []
    store = SqlStore(tmp_path / "db", on_group=lambda seconds, functions: groups.append(functions))
    await store.open()
    started, release = threading.Event(), threading.Event()
    first = asyncio.create_task(store.transact(lambda tx: (started.set(), release.wait(10))))
    await asyncio.to_thread(started.wait, 10)
    rest = [asyncio.create_task(store.transact(lambda tx, n=n: tx.insert_job(job(f"n{n}")))) for n in range(20)]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(first, *rest)
    await store.close()

    assert [1, 20] == groups


async def test_an_exception_rolls_back_its_own_function_only(store: SqlStore, job: Any) -> None:
    """In one group: what failed leaves no trace, not even a gap in revisions; its neighbours are committed."""
    release = threading.Event()
    blocker = asyncio.create_task(store.transact(lambda tx: release.wait(10)))

    def broken(tx: Any) -> None:
        tx.insert_job(job("lost"))
        tx.append_event("u-lost", "X", "x")
        raise ValueError("mine")

    tasks = [
        asyncio.create_task(store.transact(lambda tx: tx.insert_job(job("before")))),
        asyncio.create_task(store.transact(broken)),
        asyncio.create_task(store.transact(lambda tx: tx.insert_job(job("before", uid="clash")))),
        asyncio.create_task(store.transact(lambda tx: tx.insert_job(job("after")))),
    ]
    await asyncio.sleep(0)
    release.set()
    await blocker
    results = await asyncio.gather(*tasks, return_exceptions=True)
    events = await store.read(lambda reader: reader.events_after(0))

    assert ["ValueError('mine')", "Conflict"] == [repr(results[1]), type(results[2]).__name__]
    assert isinstance(results[2], Conflict)
    assert [(1, "before"), (2, "after")] == [(e.revision, e.job_name) for e in events]
    assert None is await store.read(lambda reader: reader.job("u-lost"))


async def test_revisions_are_in_commit_order_and_sequences_without_gaps(store: SqlStore, job: Any) -> None:
    """Concurrent writers of several jobs: one global order, and 1, 2, 3, … per job."""
    names = [f"n{n}" for n in range(5)]
    for name in names:
        await store.transact(lambda tx, name=name: tx.insert_job(job(name)))
    heard: list[EventRecord] = []
    store.on_commit(heard.extend)
    await asyncio.gather(*(store.transact(lambda tx, n=n: tx.append_event(f"u-n{n % 5}", "NOTE", str(n))) for n in range(100)))
    stored = await store.read(lambda reader: reader.events_after(0))

    assert list(range(1, 106)) == [e.revision for e in stored]
    assert stored[5:] == heard
    for name in names:
        assert list(range(1, 22)) == [e.sequence for e in stored if e.job_name == name]
    assert 105 == await store.read(lambda reader: reader.revision())


async def test_listeners_hear_commits_and_quiet_changes(store: SqlStore, job: Any) -> None:
    """Events come to commit listeners; progress and samples alone come to progress listeners, with tenant and uid."""
    events: list[Sequence[EventRecord]] = []
    progress: list[Any] = []
    remove_events, remove_progress = store.on_commit(events.append), store.on_progress(progress.append)
    await store.transact(lambda tx: tx.insert_job(job()))
    await store.transact(lambda tx: tx.add_samples("u-one", [(1, 1.0, {"loss": 2.0})]))
    await store.transact(lambda tx: tx.update_job("u-one", progress={"step": 1}))
    remove_events(), remove_progress()
    await store.transact(lambda tx: tx.append_event("u-one", "X", "x"))

    assert [["CREATED"], [], []] == [[e.type for e in group] for group in events]
    assert [{("t", "u-one")}] * 2 == progress


async def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    """A process is killed with no warning while it writes: every job that it acknowledged is there, whole, and the file is sound."""
    path = tmp_path / "db"
    with subprocess.Popen([sys.executable, "-P", "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(60)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    store = SqlStore(path)
    await store.open()
    events = await store.read(lambda reader: reader.events_after(0, limit=100_000))
    names = {event.job_name for event in events}
    found = await store.read(lambda reader: reader.jobs([f"u{n}" for n in acknowledged]))
    revision = await store.read(lambda reader: reader.revision())
    await store.close()

    assert {f"n{n}" for n in acknowledged} <= names
    assert {f"u{n}" for n in acknowledged} == set(found)
    assert list(range(1, revision + 1)) == [event.revision for event in events]
    connection = sqlite3.connect(path)
    assert ("ok",) == connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()


async def test_a_newer_controller_fences_the_old_one(tmp_path: Path, job: Any) -> None:
    """When another store opens the database, the first one's writes fail with a clear error and write nothing; it may still read."""
    old, new = SqlStore(tmp_path / "db"), SqlStore(tmp_path / "db")
    await old.open()
    await old.transact(lambda tx: tx.insert_job(job("a")))
    await new.open()
    with pytest.raises(LeadershipLost, match="another controller took over") as caught:
        await old.transact(lambda tx: tx.insert_job(job("b")))
    await new.transact(lambda tx: tx.insert_job(job("c")))
    names = [e.job_name for e in await old.read(lambda reader: reader.events_after(0))]
    await old.close()
    await new.close()

    assert ["a", "c"] == names
    assert "UNAVAILABLE" == caught.value.code
    assert (1, 2) == (old.epoch, new.epoch)


async def test_readers_cannot_write(store: SqlStore, job: Any) -> None:
    """A read function that tries to write is refused by the database."""
    from sqlalchemy import text

    def write(reader: Any) -> None:
        reader.connection.execute(text("DELETE FROM meta"))

    with pytest.raises(Unavailable, match="readonly|read-only"):
        await store.read(write)


async def test_a_read_is_one_snapshot(store: SqlStore, job: Any) -> None:
    """A commit during a read is not seen by it."""
    await store.transact(lambda tx: tx.insert_job(job("a")))
    started, go_on = threading.Event(), threading.Event()

    def look(reader: Any) -> tuple[int, int]:
        before = reader.revision()
        started.set()
        go_on.wait(10)
        return before, reader.revision()

    reading = asyncio.create_task(store.read(look))
    await asyncio.to_thread(started.wait, 10)
    await store.transact(lambda tx: tx.insert_job(job("b")))
    go_on.set()

    assert (1, 1) == await reading
    assert 2 == await store.read(lambda reader: reader.revision())


async def test_a_caller_that_goes_away_does_not_disturb_the_group(store: SqlStore, job: Any) -> None:
    """Cancelling the caller leaves the others' answers and its own commit."""
    release = threading.Event()
    blocker = asyncio.create_task(store.transact(lambda tx: release.wait(10)))
    gone = asyncio.create_task(store.transact(lambda tx: tx.insert_job(job("gone"))))
    stays = asyncio.create_task(store.transact(lambda tx: tx.insert_job(job("stays"))))
    await asyncio.sleep(0)
    gone.cancel()
    release.set()
    await blocker

    assert "stays" == (await stays).name
    assert None is not await store.read(lambda reader: reader.job("u-gone"))


async def test_durable_settings(store: SqlStore) -> None:
    """The database is in WAL mode with full synchronisation, foreign keys and STRICT tables."""
    names = ("journal_mode", "synchronous", "foreign_keys")

    def look(tx: Any) -> list[Any]:
        return [tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    def strict(reader: Any) -> Any:
        return reader.connection.exec_driver_sql("SELECT name FROM pragma_table_list WHERE strict = 1").scalars().all()

    tables = await store.read(strict)

    assert ["wal", 2, 1] == await store.transact(look)
    assert {"jobs", "events", "attempts", "points"} <= set(tables)


async def test_a_closed_store_says_so(tmp_path: Path, job: Any) -> None:
    """After closing, and for a file that is no database, the error is UNAVAILABLE with a fix."""
    store = SqlStore(tmp_path / "db")
    await store.open()
    await store.transact(lambda tx: tx.insert_job(job()))
    await store.read(lambda reader: reader.job("u-one"))
    await store.close()
    for call in (store.transact(lambda tx: None), store.read(lambda reader: None)):
        with pytest.raises(Unavailable, match="closed"):
            await call
    (tmp_path / "text").write_text("this is not a database, but long enough to look like one" * 100)
    with pytest.raises(Unavailable, match="cannot be opened") as caught:
        await SqlStore(tmp_path / "text").open()

    assert caught.value.fix
    assert [] == list(tmp_path.glob("db-wal"))


async def test_request_ids_are_kept_with_the_job(store: SqlStore, job: Any, clock: Any) -> None:
    """The id is found with its body's hash, refused a second time, kept after deletion, and dropped after its month."""
    await store.transact(lambda tx: tx.insert_job(job(), request_id="r1", body_hash="h"))
    with pytest.raises(Conflict) as caught:
        await store.transact(lambda tx: tx.insert_job(job("two"), request_id="r1", body_hash="h2"))
    await store.transact(lambda tx: tx.transition("u-one", JobState.CANCELLED, message="x"))
    await store.transact(lambda tx: tx.delete_job("u-one"))
    kept = await store.read(lambda reader: reader.find_request("t", "r1"))
    clock.now += 32 * 24 * 3600
    await store.transact(lambda tx: tx.insert_job(job("later")))

    assert "REQUEST_ID_REUSED" == caught.value.reason
    assert ("h", "u-one") == kept
    assert None is await store.read(lambda reader: reader.find_request("t", "r1"))


async def test_an_event_window_drops_the_oldest(tmp_path: Path, job: Any) -> None:
    """With a window only the newest events stay, and the store tells from which revision on."""
    store = SqlStore(tmp_path / "db", event_window=10)
    await store.open()
    await store.transact(lambda tx: tx.insert_job(job()))
    assert 0 == await store.read(lambda reader: reader.oldest_revision())
    for n in range(30):
        await store.transact(lambda tx, n=n: tx.append_event("u-one", "NOTE", str(n)))
    revisions, oldest = await store.read(lambda reader: ([e.revision for e in reader.events_after(0)], reader.oldest_revision()))
    await store.close()

    assert list(range(22, 32)) == revisions
    assert 22 == oldest
