"""Reads of the store: everything a handler, reconcile or a session may ask."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, func, or_, select, tuple_

from luthier.controller.store import schema
from luthier.controller.store.filters import filter_clause
from luthier.controller.store.pages import page_limit, scope_of, token_for, token_key
from luthier.controller.store.records import (
    ACTIVE,
    ArtifactRecord,
    AttemptRecord,
    CheckpointRecord,
    EventRecord,
    GenerationRecord,
    JobRecord,
    NodeRecord,
    RankEndRecord,
    SamplePoint,
)
from luthier.controller.store.rows import ARTIFACT, ATTEMPT, CHECKPOINT, EVENT, GENERATION, JOB, NODE, RANK_END, Codec
from luthier.controller.store.series import read_series
from luthier.errors import FieldViolation, SpecError

__all__ = ["RecordCache", "SqlReader", "jobs_token"]

# Built once, like the statements of `writing`.
_JOB_BY_UID = select(*JOB.columns).where(schema.jobs.c.uid == bindparam("uid"))
_JOB_BY_NAME = select(*JOB.columns).where(schema.jobs.c.tenant == bindparam("tenant"), schema.jobs.c.name == bindparam("name"))
_REQUEST = select(schema.requests.c.body_hash, schema.requests.c.job_uid).where(
    schema.requests.c.tenant == bindparam("tenant"), schema.requests.c.request_id == bindparam("request_id")
)

_IN_CHUNK = 500  # bound parameters in one IN list; SQLite of old took 999
_ACTIVE = sorted(str(state) for state in ACTIVE)
_ORDERS: dict[str, tuple[Any, bool, type]] = {
    "create_time desc": (schema.jobs.c.create_time, True, float),
    "create_time": (schema.jobs.c.create_time, False, float),
    "name": (schema.jobs.c.name, False, str),
    "name desc": (schema.jobs.c.name, True, str),
}


def jobs_token(last: JobRecord, tenant: str, *, filter: str, order_by: str) -> str:
    """Token of the page of `list_jobs` after `last`; `order_by` must be a known one."""
    order = " ".join(order_by.split()) or "create_time desc"
    return token_for(scope_of("jobs", tenant, filter, order), [getattr(last, _ORDERS[order][0].name), last.uid])


class RecordCache:
    """Decoded jobs by uid and stamp, so that a reconcile pass over thousands of waiting jobs decodes only what changed.

    Filled by readers only: a writer sees rows that may be rolled back, and a later commit could reuse their stamp.
    """

    def __init__(self) -> None:
        self._records: dict[str, tuple[int, JobRecord]] = {}

    def get(self, uid: str, stamp: int) -> JobRecord | None:
        held = self._records.get(uid)
        return held[1] if held is not None and held[0] == stamp else None

    def replace(self, records: dict[str, tuple[int, JobRecord]]) -> None:
        """Keep exactly these."""
        self._records = records


class SqlReader:
    """`luthier.controller.store.api.Reader` on one connection; one instance per function."""

    def __init__(self, connection: Connection, cache: RecordCache | None = None) -> None:
        self.connection = connection
        self._cache = cache

    def _one(self, codec: Codec[Any], *where: Any) -> Any:
        row = self.connection.execute(select(*codec.columns).where(*where)).first()
        return None if row is None else codec.decode(row)

    def _all(self, codec: Codec[Any], query: Select[Any]) -> list[Any]:
        return [codec.decode(row) for row in self.connection.execute(query)]

    # --- jobs ---

    def job(self, uid: str) -> JobRecord | None:
        row = self.connection.execute(_JOB_BY_UID, {"uid": uid}).first()
        return None if row is None else JOB.decode(row)

    def job_named(self, tenant: str, name: str) -> JobRecord | None:
        row = self.connection.execute(_JOB_BY_NAME, {"tenant": tenant, "name": name}).first()
        return None if row is None else JOB.decode(row)

    def jobs(self, uids: Collection[str]) -> dict[str, JobRecord]:
        """Those that exist, by uid."""
        wanted, found = list(uids), {}
        for start in range(0, len(wanted), _IN_CHUNK):
            chunk = wanted[start : start + _IN_CHUNK]
            for record in self._all(JOB, select(*JOB.columns).where(schema.jobs.c.uid.in_(chunk))):
                found[record.uid] = record
        return found

    def list_jobs(
        self, tenant: str, *, filter: str = "", order_by: str = "", page_size: int = 0, page_token: str = ""
    ) -> tuple[list[JobRecord], str]:
        table = schema.jobs
        limit = page_limit(page_size)
        order = " ".join(order_by.split()) or "create_time desc"
        if order not in _ORDERS:
            fix = f"use one of {', '.join(_ORDERS)}"
            raise SpecError(
                f"order_by {order_by!r} is not known", violations=[FieldViolation("order_by", f"{order_by!r} is not known", fix)], fix=fix
            )
        column, descending, kind = _ORDERS[order]
        where = [table.c.tenant == tenant]
        if filter:
            where.append(filter_clause(filter))
        scope = scope_of("jobs", tenant, filter, order)
        if page_token:
            key = tuple(token_key(page_token, scope, (kind, str)))
            place = tuple_(column, table.c.uid)
            where.append(place < key if descending else place > key)
        direction = (column.desc(), table.c.uid.desc()) if descending else (column.asc(), table.c.uid.asc())
        found: list[JobRecord] = self._all(JOB, select(*JOB.columns).where(*where).order_by(*direction).limit(limit + 1))
        page = found[:limit]
        if len(found) <= limit:
            return page, ""
        return page, jobs_token(page[-1], tenant, filter=filter, order_by=order)

    def unfinished_jobs(self) -> list[JobRecord]:
        table = schema.jobs
        open_attempts = select(schema.attempts.c.job_uid).where(schema.attempts.c.close_time.is_(None))
        query = select(table.c.uid, table.c.stamp).where(or_(table.c.state.in_(_ACTIVE), table.c.uid.in_(open_attempts)))
        # Not `dict(result)`: a result has `keys`, so that it would be taken for a mapping.
        stamps: dict[str, int] = {uid: stamp for uid, stamp in self.connection.execute(query.order_by(table.c.create_time, table.c.uid))}  # noqa: C416
        cache = self._cache
        known = {uid: record for uid, stamp in stamps.items() if cache is not None and (record := cache.get(uid, stamp)) is not None}
        known.update(self.jobs([uid for uid in stamps if uid not in known]))
        if cache is not None:
            cache.replace({uid: (stamps[uid], record) for uid, record in known.items()})
        return [known[uid] for uid in stamps]

    def dependants(self, uid: str) -> list[JobRecord]:
        table, needed = schema.jobs, schema.dependencies
        query = select(*JOB.columns).join(needed, needed.c.job_uid == table.c.uid).where(needed.c.needed_uid == uid)
        found: list[JobRecord] = self._all(JOB, query.order_by(table.c.create_time, table.c.uid))
        return found

    def find_request(self, tenant: str, request_id: str) -> tuple[str, str] | None:
        row = self.connection.execute(_REQUEST, {"tenant": tenant, "request_id": request_id}).first()
        return None if row is None else (row[0], row[1])

    # --- attempts ---

    def attempts(self, uid: str) -> list[AttemptRecord]:
        table = schema.attempts
        return self._all(ATTEMPT, select(*ATTEMPT.columns).where(table.c.job_uid == uid).order_by(table.c.number))

    def attempt(self, uid: str, number: int) -> AttemptRecord | None:
        found: AttemptRecord | None = self._one(ATTEMPT, schema.attempts.c.job_uid == uid, schema.attempts.c.number == number)
        return found

    def generations(self, uid: str, attempt: int) -> list[GenerationRecord]:
        table = schema.generations
        query = select(*GENERATION.columns).where(table.c.job_uid == uid, table.c.attempt == attempt)
        return self._all(GENERATION, query.order_by(table.c.number))

    def all_generations(self, uid: str) -> list[GenerationRecord]:
        table = schema.generations
        return self._all(GENERATION, select(*GENERATION.columns).where(table.c.job_uid == uid).order_by(table.c.attempt, table.c.number))

    def nodes(self, uid: str, attempt: int) -> list[NodeRecord]:
        table = schema.nodes
        query = select(*NODE.columns).where(table.c.job_uid == uid, table.c.attempt == attempt)
        return self._all(NODE, query.order_by(table.c.index))

    def rank_ends(self, uid: str, attempt: int, generation: int) -> list[RankEndRecord]:
        table = schema.rank_ends
        query = select(*RANK_END.columns).where(table.c.job_uid == uid, table.c.attempt == attempt, table.c.generation == generation)
        return self._all(RANK_END, query.order_by(table.c.time, table.c.rank))

    # --- events ---

    def events(self, uid: str, *, after_sequence: int = 0, limit: int = 1000) -> list[EventRecord]:
        table = schema.events
        query = select(*EVENT.columns).where(table.c.job_uid == uid, table.c.sequence > after_sequence)
        return self._all(EVENT, query.order_by(table.c.sequence).limit(limit))

    def events_after(self, revision: int, *, tenant: str | None = None, limit: int = 1000) -> list[EventRecord]:
        table = schema.events
        query = select(*EVENT.columns).where(table.c.revision > revision)
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        return self._all(EVENT, query.order_by(table.c.revision).limit(limit))

    def past_uid(self, tenant: str, name: str, after_revision: int) -> str | None:
        """Uid of the newest job of this name that had an event after a revision: a watcher resumes over its deletion."""
        table = schema.events
        query = select(table.c.job_uid).where(table.c.tenant == tenant, table.c.revision > after_revision, table.c.job_name == name)
        return self.connection.execute(query.order_by(table.c.revision.desc()).limit(1)).scalar()

    def revision(self) -> int:
        return self._counter("revision")

    def oldest_revision(self) -> int:
        dropped = self._counter("dropped")
        return dropped + 1 if dropped else 0

    def _counter(self, key: str) -> int:
        return self.connection.execute(select(schema.meta.c.value).where(schema.meta.c.key == key)).scalar() or 0

    # --- outputs ---

    def checkpoints(self, uid: str) -> list[CheckpointRecord]:
        table = schema.checkpoints
        newest = (table.c.attempt.desc(), table.c.generation.desc(), table.c.phase_index.desc(), table.c.step.desc())
        return self._all(CHECKPOINT, select(*CHECKPOINT.columns).where(table.c.job_uid == uid).order_by(*newest))

    def artifacts(self, uid: str) -> list[ArtifactRecord]:
        table = schema.artifacts
        return self._all(ARTIFACT, select(*ARTIFACT.columns).where(table.c.job_uid == uid).order_by(table.c.name))

    def series(self, uid: str, names: Sequence[str] = (), max_points: int = 500) -> dict[str, list[SamplePoint]]:
        return read_series(self.connection, uid, names, max_points)

    def count_jobs(self) -> dict[tuple[str, str, str], int]:
        """Jobs by (tenant, queue, state)."""
        table = schema.jobs
        columns = (table.c.tenant, table.c.queue, table.c.state)
        query: Select[Any] = select(*columns, func.count()).group_by(*columns)
        return {(row[0], row[1], row[2]): row[3] for row in self.connection.execute(query)}

    def count_active(self, tenant: str) -> int:
        """Jobs of a tenant that are not terminal."""
        table = schema.jobs
        query = select(func.count()).select_from(table).where(table.c.tenant == tenant, table.c.state.in_(_ACTIVE))
        return self.connection.execute(query).scalar_one()

    def has_open_attempt(self, uid: str) -> bool:
        """Whether nodes of the job may still be there."""
        table = schema.attempts
        query = select(table.c.number).where(and_(table.c.job_uid == uid, table.c.close_time.is_(None))).limit(1)
        return self.connection.execute(query).first() is not None
