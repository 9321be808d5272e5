"""Numbers of running jobs on their way into the store: coalesced to a few writes a second per job. Losing some is allowed."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from luthier.controller.progress import Pace, SampleRow, after_samples, reached_before
from luthier.controller.store.api import Store, Transaction
from luthier.controller.store.records import JobState
from luthier.errors import LuthierError
from luthier.v1 import node_service_pb2 as pb

__all__ = ["SampleWriter"]

_log = logging.getLogger(__name__)

_SECONDS = 0.25
"""Between two writes of one job."""
_ROWS = 20_000
"""Rows of one job that may wait; beyond, new ones are dropped."""


class SampleWriter:
    """Buffers rows by job and fence. Only node 0's rows steer the progress; all rows are of the whole group anyway."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._rows: dict[str, list[tuple[tuple[int, int], SampleRow]]] = {}
        self._pace: dict[str, Pace] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def add(self, job_uid: str, node: int, samples: pb.Samples) -> None:
        """Take rows; the first ones of a quiet job are written at once."""
        if node != 0:
            return
        now = self._clock()
        fence = (samples.fence.attempt, samples.fence.generation)
        waiting = self._rows.setdefault(job_uid, [])
        for row in samples.rows[: max(0, _ROWS - len(waiting))]:
            time = now - row.age.ToNanoseconds() / 1e9
            waiting.append((fence, SampleRow(row.phase_index, row.step, row.plan_step, row.total_steps, time, dict(row.values))))
        task = self._tasks.get(job_uid)
        if task is None or task.done():
            self._tasks[job_uid] = asyncio.create_task(self._write_soon(job_uid), name=f"samples-{job_uid}")

    def forget(self, job_uid: str) -> None:
        """The job's attempt is over."""
        self._pace.pop(job_uid, None)

    async def flush(self, job_uid: str | None = None) -> None:
        """Write what waits, of one job or of all."""
        for uid in [job_uid] if job_uid is not None else list(self._rows):
            await self._write(uid)

    async def close(self) -> None:
        """Write what waits and stop."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self.flush()

    async def _write_soon(self, job_uid: str) -> None:
        while self._rows.get(job_uid):
            await self._write(job_uid)
            await asyncio.sleep(_SECONDS)

    async def _write(self, job_uid: str) -> None:
        rows = self._rows.pop(job_uid, [])
        if not rows:
            return
        pace = self._pace.setdefault(job_uid, Pace())
        try:
            await self._store.transact(lambda tx: _store_rows(tx, job_uid, rows, pace))
        except LuthierError as error:
            _log.warning("%d samples of job %s were lost: %s", len(rows), job_uid, error)


def _store_rows(tx: Transaction, job_uid: str, rows: list[tuple[tuple[int, int], SampleRow]], pace: Pace) -> None:
    """Series of every fence that the job knows; progress and last step from the current one only."""
    job = tx.job(job_uid)
    if job is None:
        return
    generations = tx.generations(job_uid, job.attempt)
    newest = generations[-1] if generations else None
    finite = [(r.plan_step, r.time, {k: v for k, v in r.values.items() if math.isfinite(v)}) for f, r in rows if f[0] == job.attempt]
    if finite:
        tx.add_samples(job_uid, [row for row in finite if row[2]])
    if newest is None or newest.end_time is not None:
        return
    current = [r for f, r in rows if f == (job.attempt, newest.number)]
    if not current:
        return
    reached = max((r.phase_index, r.step) for r in current)
    if reached > (newest.phase_index, newest.last_step):
        newest = tx.update_generation(job_uid, job.attempt, newest.number, phase_index=reached[0], last_step=reached[1])
    job = tx.update_job(job_uid, progress=after_samples(job, current, pace))
    if job.state == JobState.RUNNING and job.cause == "RECOMPUTED":
        again = reached_before(tx.all_generations(job_uid))
        if again is None or reached >= again:
            tx.charge(job_uid, "PRODUCTIVE")
