"""Writes of the store: one `SqlTransaction` per function, inside the group that the writer thread commits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from luthier.controller.store import schema, states
from luthier.controller.store.reading import SqlReader
from luthier.controller.store.records import (
    TERMINAL,
    ArtifactRecord,
    AttemptRecord,
    CheckpointRecord,
    EventRecord,
    GenerationRecord,
    JobRecord,
    JobState,
    NodeRecord,
    RankEndRecord,
)
from luthier.controller.store.rows import ARTIFACT, ATTEMPT, CHECKPOINT, EVENT, GENERATION, JOB, NODE, RANK_END, Codec, to_micros
from luthier.controller.store.series import add_rows
from luthier.errors import Conflict, JobNotFound, NotFound

__all__ = ["Group", "SqlTransaction"]

# Built once: with values given at execution, the library finds the compiled statement without walking forty columns.
_INSERT_JOB = insert(schema.jobs)
_SET_WAITING = (
    update(schema.jobs)
    .where(schema.jobs.c.uid == bindparam("of"), schema.jobs.c.version == bindparam("seen"), schema.jobs.c.state == "QUEUED")
    .values(
        waiting_reason=bindparam("reason"),
        waiting_message=bindparam("message"),
        update_time=bindparam("at"),
        version=schema.jobs.c.version + 1,
        stamp=schema.jobs.c.stamp + 1,
    )
)
_INSERT_REQUEST = insert(schema.requests)
_INSERT_LABEL = insert(schema.labels)
_INSERT_DEPENDENCY = insert(schema.dependencies)
_INSERT_EVENT = insert(schema.events)
_NAME_TAKEN = select(schema.jobs.c.uid).where(schema.jobs.c.tenant == bindparam("tenant"), schema.jobs.c.name == bindparam("name"))
_NEXT_SEQUENCE = (
    update(schema.jobs)
    .where(schema.jobs.c.uid == bindparam("job_uid"))
    .values(event_sequence=schema.jobs.c.event_sequence + 1)
    .returning(schema.jobs.c.event_sequence)
)


@dataclass
class Group:
    """What a group of functions writes beside its rows; `mark` and `rewind` follow the savepoints."""

    revision: int
    events: list[EventRecord] = field(default_factory=list)
    progressed: dict[str, str] = field(default_factory=dict)
    """uid -> tenant of jobs whose progress or samples changed without an event."""
    active: dict[str, int] = field(default_factory=dict)
    """Unfinished jobs by tenant, counted once per group; an insert that is rolled back stays counted until the next group."""

    def mark(self) -> tuple[int, int, dict[str, str]]:
        return self.revision, len(self.events), dict(self.progressed)

    def rewind(self, mark: tuple[int, int, dict[str, str]]) -> None:
        self.revision, count, self.progressed = mark
        del self.events[count:]


class SqlTransaction(SqlReader):
    """`luthier.controller.store.api.Transaction`. `now` has microsecond resolution, so that wall time adds up exactly."""

    def __init__(self, connection: Connection, group: Group, now: float) -> None:
        super().__init__(connection)
        self._group = group
        self._now = round(now, 6)

    @property
    def now(self) -> float:
        return self._now

    # --- jobs ---

    def count_active(self, tenant: str) -> int:
        if tenant not in self._group.active:
            self._group.active[tenant] = super().count_active(tenant)
        return self._group.active[tenant]

    def insert_job(self, job: JobRecord, *, request_id: str = "", body_hash: str = "") -> JobRecord:
        if request_id:
            self._claim_request(job, request_id, body_hash)
        taken = self.connection.execute(_NAME_TAKEN, {"tenant": job.tenant, "name": job.name}).first()
        if taken is not None:
            raise Conflict(
                f"the name {job.name!r} is taken by another job",
                fix=f"choose another name, leave it out to get one, or delete the old job (`luthier delete {job.name}`)",
                metadata={"job": job.name, "uid": taken[0]},
            )
        created = job.create_time or self.now
        job = replace(
            job,
            create_time=round(created, 6),
            update_time=self.now,
            cause=job.cause or states.DEFAULT_CAUSE[job.state],
            cause_since=round(created, 6),
        )
        if job.tenant in self._group.active:
            self._group.active[job.tenant] += 1
        self.connection.execute(_INSERT_JOB, {**JOB.all_values(job), "event_sequence": 1, "stamp": 1})
        self._write_labels(job)
        self._write_dependencies(job)
        self._record(job, 1, "CREATED", f"job {job.name} created", state=str(job.state))
        return job

    def _claim_request(self, job: JobRecord, request_id: str, body_hash: str) -> None:
        row = {"tenant": job.tenant, "request_id": request_id, "body_hash": body_hash, "job_uid": job.uid, "create_time": self.now}
        try:
            self.connection.execute(_INSERT_REQUEST, row)
        except IntegrityError as error:
            raise Conflict(
                f"request_id {request_id} was used before",
                reason="REQUEST_ID_REUSED",
                fix="use a new UUID4 for every new job; repeat one only with the same body",
                metadata={"request_id": request_id},
            ) from error

    def _write_labels(self, job: JobRecord) -> None:
        if job.labels:
            rows = [{"job_uid": job.uid, "key": key, "value": value} for key, value in job.labels.items()]
            self.connection.execute(_INSERT_LABEL, rows)

    def _write_dependencies(self, job: JobRecord) -> None:
        needed = sorted({d["uid"] for d in job.dependencies if d.get("uid")})
        if needed:
            self.connection.execute(_INSERT_DEPENDENCY, [{"job_uid": job.uid, "needed_uid": uid} for uid in needed])

    def _must(self, uid: str) -> JobRecord:
        job = self.job(uid)
        if job is None:
            raise JobNotFound(f"there is no job with uid {uid}", fix="it may have been deleted", metadata={"uid": uid})
        return job

    def update_job(self, uid: str, **changes: Any) -> JobRecord:
        if "state" in changes:
            raise TypeError("state changes through `transition` only")
        job = self._must(uid)
        return self._save(job, changes, bump=set(changes) != {"progress"})

    def _save(self, job: JobRecord, changes: Mapping[str, Any], *, bump: bool) -> JobRecord:
        """Write some fields of a job; `bump` makes it a new version of the record (etag)."""
        changes = dict(changes)
        if bump:
            changes["version"] = job.version + 1
            changes["update_time"] = self.now
        changed = replace(job, **changes)
        table = schema.jobs
        self.connection.execute(update(table).where(table.c.uid == job.uid).values(**JOB.encode(changes), stamp=table.c.stamp + literal(1)))
        if "labels" in changes:
            self.connection.execute(delete(schema.labels).where(schema.labels.c.job_uid == job.uid))
            self._write_labels(changed)
        if "dependencies" in changes:
            self.connection.execute(delete(schema.dependencies).where(schema.dependencies.c.job_uid == job.uid))
            self._write_dependencies(changed)
        self._group.progressed[job.uid] = job.tenant
        return changed

    def set_waiting(self, waits: Sequence[tuple[JobRecord, str, str]]) -> None:
        rows = [{"of": job.uid, "seen": job.version, "reason": reason, "message": message} for job, reason, message in waits]
        if rows:
            self.connection.execute(_SET_WAITING, [{**row, "at": self.now} for row in rows])
            self._group.progressed.update((job.uid, job.tenant) for job, _, _ in waits)

    def transition(
        self,
        uid: str,
        to: JobState,
        *,
        message: str,
        severity: str = "info",
        event_type: str = "STATE_CHANGED",
        details: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> JobRecord:
        job = self._must(uid)
        states.check(job, to)
        written = {
            **self._charged(job, changes.pop("cause", "") or states.DEFAULT_CAUSE[to]),
            **_consequences(job, to, self.now),
            **changes,
        }
        changed = self._save(job, {**written, "state": to}, bump=True)
        self._append(changed, event_type, message, severity=severity, state=str(to), details=details)
        return changed

    def charge(self, uid: str, cause: str) -> JobRecord:
        job = self._must(uid)
        if job.state in TERMINAL:
            return job  # its clock has stopped
        return self._save(job, self._charged(job, cause), bump=False)

    def _charged(self, job: JobRecord, cause: str) -> dict[str, Any]:
        """Charge the time since `cause_since` and switch. A clock that went backwards charges nothing, so sums stay exact."""
        if cause not in states.CAUSES:
            raise TypeError(f"{cause!r} is no cause; one of {', '.join(states.CAUSES)}")
        until = max(self.now, job.cause_since)
        spent = dict(job.cause_seconds)
        micros = to_micros(spent.get(job.cause, 0.0)) + to_micros(until) - to_micros(job.cause_since)
        if micros:
            spent[job.cause] = micros / 1_000_000
        return {"cause": cause, "cause_since": until, "cause_seconds": spent}

    def delete_job(self, uid: str) -> None:
        job = self._must(uid)
        last = self.connection.execute(select(schema.jobs.c.event_sequence).where(schema.jobs.c.uid == uid)).scalar() or 0
        # Explicitly, although keys cascade: not every database is told to enforce them.
        for table in (
            schema.points,
            schema.series,
            schema.artifacts,
            schema.checkpoints,
            schema.rank_ends,
            schema.nodes,
            schema.generations,
            schema.attempts,
            schema.dependencies,
            schema.labels,
            schema.events,
        ):
            self.connection.execute(delete(table).where(table.c.job_uid == uid))
        self.connection.execute(delete(schema.jobs).where(schema.jobs.c.uid == uid))
        self._group.progressed.pop(uid, None)
        self._record(job, last + 1, "DELETED", f"job {job.name} deleted")

    # --- events ---

    def append_event(
        self,
        uid: str,
        type: str,
        message: str,
        *,
        severity: str = "info",
        attempt: int = 0,
        generation: int = 0,
        node: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> EventRecord:
        job = self._must(uid)
        return self._append(
            job, type, message, severity=severity, attempt=attempt or None, generation=generation or None, node=node, details=details
        )

    def _append(self, job: JobRecord, type: str, message: str, **rest: Any) -> EventRecord:
        sequence = self.connection.execute(_NEXT_SEQUENCE, {"job_uid": job.uid}).scalar_one()
        return self._record(job, sequence, type, message, **rest)

    def _record(
        self,
        job: JobRecord,
        sequence: int,
        type: str,
        message: str,
        *,
        severity: str = "info",
        attempt: int | None = None,
        generation: int | None = None,
        node: int | None = None,
        state: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> EventRecord:
        self._group.revision += 1
        event = EventRecord(
            revision=self._group.revision,
            sequence=sequence,
            job_uid=job.uid,
            tenant=job.tenant,
            job_name=job.name,
            time=self.now,
            type=type,
            message=message,
            severity=severity,
            attempt=job.attempt if attempt is None else attempt,
            generation=job.generation if generation is None else generation,
            node=node,
            state=state,
            details=details or {},
        )
        self.connection.execute(_INSERT_EVENT, EVENT.all_values(event))
        self._group.events.append(event)
        return event

    # --- attempts, generations, nodes ---

    def _insert(self, codec: Codec[Any], record: Any) -> Any:
        self.connection.execute(codec.insert, codec.all_values(record))
        return record

    def _replace(self, codec: Codec[Any], record: Any, *key: str) -> Any:
        table = codec.table
        self.connection.execute(delete(table).where(*(table.c[name] == getattr(record, name) for name in key)))
        return self._insert(codec, record)

    def _change(self, codec: Codec[Any], changes: Mapping[str, Any], **key: Any) -> Any:
        table = codec.table
        where = [table.c[name] == value for name, value in key.items()]
        row = self.connection.execute(select(*codec.columns).where(*where)).first()
        if row is None:
            what = table.name.removesuffix("s").replace("_", " ")
            raise NotFound(f"there is no {what} {key}", metadata={name: str(value) for name, value in key.items()})
        if changes:
            self.connection.execute(update(table).where(*where).values(**codec.encode(changes)))
        return dataclasses.replace(codec.decode(row), **changes)

    def insert_attempt(self, attempt: AttemptRecord) -> AttemptRecord:
        inserted: AttemptRecord = self._insert(ATTEMPT, attempt)
        return inserted

    def update_attempt(self, uid: str, number: int, **changes: Any) -> AttemptRecord:
        changed: AttemptRecord = self._change(ATTEMPT, changes, job_uid=uid, number=number)
        return changed

    def insert_generation(self, generation: GenerationRecord) -> GenerationRecord:
        inserted: GenerationRecord = self._insert(GENERATION, generation)
        return inserted

    def update_generation(self, uid: str, attempt: int, number: int, **changes: Any) -> GenerationRecord:
        changed: GenerationRecord = self._change(GENERATION, changes, job_uid=uid, attempt=attempt, number=number)
        return changed

    def put_node(self, node: NodeRecord) -> NodeRecord:
        put: NodeRecord = self._replace(NODE, node, "job_uid", "attempt", "index")
        return put

    def update_node(self, uid: str, attempt: int, index: int, **changes: Any) -> NodeRecord:
        changed: NodeRecord = self._change(NODE, changes, job_uid=uid, attempt=attempt, index=index)
        return changed

    def insert_rank_end(self, end: RankEndRecord) -> bool:
        table = schema.rank_ends
        known = select(table.c.rank).where(
            table.c.job_uid == end.job_uid,
            table.c.attempt == end.attempt,
            table.c.generation == end.generation,
            table.c.rank == end.rank,
        )
        if self.connection.execute(known).first() is not None:
            return False
        self._insert(RANK_END, end)
        return True

    # --- outputs ---

    def put_checkpoint(self, checkpoint: CheckpointRecord) -> None:
        self._replace(CHECKPOINT, checkpoint, "job_uid", "attempt", "generation", "phase_index", "step")

    def mark_checkpoints_removed(self, uid: str, paths: Sequence[str]) -> None:
        table = schema.checkpoints
        if paths:
            self.connection.execute(update(table).where(table.c.job_uid == uid, table.c.path.in_(list(paths))).values(removed=1))

    def put_artifact(self, artifact: ArtifactRecord) -> None:
        self._replace(ARTIFACT, artifact, "job_uid", "name")

    def add_samples(self, uid: str, rows: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        job = self._must(uid)
        add_rows(self.connection, uid, rows)
        self._group.progressed[uid] = job.tenant


def _consequences(job: JobRecord, to: JobState, now: float) -> dict[str, Any]:
    """Fields that follow from a change of state, unless the writer gives them."""
    changes: dict[str, Any] = {}
    if to == JobState.STARTING and job.start_time is None:
        changes["start_time"] = now
    if to not in (JobState.QUEUED, JobState.STARTING):
        changes.update(waiting_reason="", waiting_message="", retry_at=None)
    if job.state == JobState.PAUSING:
        changes["pause_cause"] = ""
    if job.state == JobState.PAUSED:
        changes["paused_seconds"] = job.paused_seconds + max(0.0, now - job.cause_since)
    if to in TERMINAL:
        changes["end_time"] = max(now, job.cause_since)
    elif job.state in TERMINAL:
        changes.update(end_time=None, failure=None)
    return changes
