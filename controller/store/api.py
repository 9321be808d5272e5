"""The store's face: short synchronous functions run on the writer thread (`transact`) or on a reader thread (`read`).

`transact` commits before it returns, several callers' functions in one group commit; an exception rolls back its own function
only. Every write carries the leader epoch and fails in the database when a newer controller took over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from luthier.controller.store.records import (
    ArtifactRecord,
    AttemptRecord,
    CheckpointRecord,
    EventRecord,
    GenerationRecord,
    JobRecord,
    JobState,
    NodeRecord,
    RankEndRecord,
    SamplePoint,
)

__all__ = ["Reader", "Store", "Transaction"]

T = TypeVar("T")


class Reader(Protocol):
    """Consistent reads. Lookups return None when there is no such row; the tenant filter lives here."""

    def job(self, uid: str) -> JobRecord | None: ...
    def job_named(self, tenant: str, name: str) -> JobRecord | None: ...
    def jobs(self, uids: Collection[str]) -> dict[str, JobRecord]:
        """Those that exist, by uid."""
        ...

    def list_jobs(
        self, tenant: str, *, filter: str = "", order_by: str = "", page_size: int = 0, page_token: str = ""
    ) -> tuple[list[JobRecord], str]:
        """A page and the next token. Raises `SpecError` for a bad filter, order, size or token."""
        ...

    def unfinished_jobs(self) -> list[JobRecord]:
        """Jobs of all tenants that reconcile must look at: not terminal, or terminal with an attempt that is not closed."""
        ...

    def attempts(self, uid: str) -> list[AttemptRecord]: ...
    def attempt(self, uid: str, number: int) -> AttemptRecord | None: ...
    def generations(self, uid: str, attempt: int) -> list[GenerationRecord]: ...
    def all_generations(self, uid: str) -> list[GenerationRecord]:
        """Of all attempts, oldest first: the recorded chain."""
        ...

    def nodes(self, uid: str, attempt: int) -> list[NodeRecord]: ...
    def rank_ends(self, uid: str, attempt: int, generation: int) -> list[RankEndRecord]: ...
    def events(self, uid: str, *, after_sequence: int = 0, limit: int = 1000) -> list[EventRecord]: ...
    def events_after(self, revision: int, *, tenant: str | None = None, limit: int = 1000) -> list[EventRecord]: ...
    def past_uid(self, tenant: str, name: str, after_revision: int) -> str | None:
        """Uid of the newest job of this name that had an event after a revision, deleted ones included."""
        ...

    def revision(self) -> int:
        """Newest revision."""
        ...

    def oldest_revision(self) -> int:
        """Oldest revision still kept; 0 when none was dropped."""
        ...

    def checkpoints(self, uid: str) -> list[CheckpointRecord]:
        """Newest first."""
        ...

    def artifacts(self, uid: str) -> list[ArtifactRecord]: ...
    def series(self, uid: str, names: Sequence[str] = (), max_points: int = 500) -> dict[str, list[SamplePoint]]: ...
    def find_request(self, tenant: str, request_id: str) -> tuple[str, str] | None:
        """(body hash, job uid) of an earlier CreateJob."""
        ...

    def dependants(self, uid: str) -> list[JobRecord]:
        """Jobs that name this one as a dependency."""
        ...

    def has_open_attempt(self, uid: str) -> bool:
        """Whether the job has an attempt that is not closed."""
        ...

    def count_active(self, tenant: str) -> int:
        """Jobs of a tenant that are not terminal."""
        ...

    def count_jobs(self) -> dict[tuple[str, str, str], int]:
        """Jobs by (tenant, queue, state), for metrics."""
        ...


class Transaction(Reader, Protocol):
    """Writes. `transition` is the only way to change a job's state."""

    @property
    def now(self) -> float:
        """The injected clock, read once per function."""
        ...

    def insert_job(self, job: JobRecord, *, request_id: str = "", body_hash: str = "") -> JobRecord:
        """Insert with its CREATED event. Raises `Conflict` (JOB_ID_TAKEN, REQUEST_ID_REUSED)."""
        ...

    def update_job(self, uid: str, **changes: Any) -> JobRecord:
        """Change anything but `state`; bumps `version` unless only `progress` changes."""
        ...

    def set_waiting(self, waits: Sequence[tuple[JobRecord, str, str]]) -> None:
        """(job as read, reason, message) of many waiting jobs at once; one that is not QUEUED or was written since is left alone."""
        ...

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
        """Change state and write its event in the same transaction.

        Charges the elapsed time to the old cause, sets `end_time`, `start_time` and the new cause. Raises `IllegalState` for an edge
        that is not in the table of `luthier.controller.store.states`.
        """
        ...

    def charge(self, uid: str, cause: str) -> JobRecord:
        """Charge the time since `cause_since` to the present cause and switch to `cause`."""
        ...

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
    ) -> EventRecord: ...
    def delete_job(self, uid: str) -> None:
        """Remove the job and all its rows but a DELETED event for watchers."""
        ...

    def insert_attempt(self, attempt: AttemptRecord) -> AttemptRecord: ...
    def update_attempt(self, uid: str, number: int, **changes: Any) -> AttemptRecord: ...
    def insert_generation(self, generation: GenerationRecord) -> GenerationRecord: ...
    def update_generation(self, uid: str, attempt: int, number: int, **changes: Any) -> GenerationRecord: ...
    def put_node(self, node: NodeRecord) -> NodeRecord:
        """Insert or replace by (job, attempt, index)."""
        ...

    def update_node(self, uid: str, attempt: int, index: int, **changes: Any) -> NodeRecord: ...
    def insert_rank_end(self, end: RankEndRecord) -> bool:
        """False when this rank's end is already recorded."""
        ...

    def put_checkpoint(self, checkpoint: CheckpointRecord) -> None: ...
    def mark_checkpoints_removed(self, uid: str, paths: Sequence[str]) -> None: ...
    def put_artifact(self, artifact: ArtifactRecord) -> None: ...
    def add_samples(self, uid: str, rows: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """(plan step, time, values); kept down-sampled to at most 2,000 stretches per series."""
        ...


class Store(Protocol):
    """One database. All methods may be called from the event loop; none blocks it."""

    async def open(self) -> None:
        """Create or migrate the schema and take the leader epoch."""
        ...

    async def close(self) -> None: ...
    async def transact(self, function: Callable[[Transaction], T]) -> T: ...
    async def read(self, function: Callable[[Reader], T]) -> T: ...
    def on_commit(self, listener: Callable[[Sequence[EventRecord]], None]) -> Callable[[], None]:
        """Call `listener` on the event loop after each commit that wrote events or samples; returns what removes it."""
        ...

    def on_progress(self, listener: Callable[[Collection[tuple[str, str]]], None]) -> Callable[[], None]:
        """Call `listener` on the event loop with (tenant, uid) of jobs that changed in a commit without an event."""
        ...
