"""Rows of the store as frozen values. Times are UTC seconds since the epoch; JSON columns are plain dicts and lists."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ACTIVE",
    "TERMINAL",
    "ArtifactRecord",
    "AttemptRecord",
    "CheckpointRecord",
    "EventRecord",
    "GenerationRecord",
    "JobRecord",
    "JobState",
    "NodeRecord",
    "RankEndRecord",
    "SamplePoint",
]


class JobState(enum.StrEnum):
    """Where a job stands; names equal `luthier.v1.Job.State`."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ACTIVE = frozenset(JobState) - TERMINAL


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job. `version` is the etag; `spec` the resolved `JobSpec` as plain JSON."""

    uid: str
    tenant: str
    name: str
    """Last segment of the resource name."""
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any]
    spec_wire: bytes = b""
    """The same as serialised `luthier.v1.JobSpec`, so that reads need no conversion; b"": not known, convert `spec`."""
    method: str
    queue: str
    priority: int
    state: JobState = JobState.QUEUED
    waiting_reason: str = ""
    """Name of `luthier.v1.Waiting.Reason`, "" for none."""
    waiting_message: str = ""
    retry_at: float | None = None
    """Back-off: not admitted before."""
    pause_cause: str = ""
    """Why PAUSING: "user", "preempted" or "suspended"."""
    failure: Mapping[str, Any] | None = None
    """`luthier.v1.Failure` as plain JSON."""
    result: Mapping[str, Any] | None = None
    """`luthier.v1.Result` as plain JSON; set when PlanFinished is accepted."""
    plan_finished: bool = False
    """A PlanFinished of node 0 was accepted while its fence was current."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """`luthier.v1.Progress` as plain JSON."""
    attempt: int = 0
    generation: int = 0
    num_nodes: int = 0
    """Nodes of the newest attempt."""
    wanted_nodes: int | None = None
    """Node count asked for by ResumeJob."""
    micro_batch_size: int = 0
    """Override after a memory error; 0: as planned."""
    budget_used: Mapping[str, int] = field(default_factory=dict)
    last_end: Mapping[str, Any] | None = None
    """{"step", "rank", "cause"} of the last rank end after a step had begun: the same twice running is not infrastructure."""
    excluded_hosts: tuple[str, ...] = ()
    dependencies: tuple[Mapping[str, str], ...] = ()
    """[{"job", "uid", "artifact", "digest", "path"}]."""
    cause: str = "QUEUED"
    """Cause that wall time is charged to since `cause_since`."""
    cause_since: float = 0.0
    cause_seconds: Mapping[str, float] = field(default_factory=dict)
    version: int = 1
    create_time: float = 0.0
    update_time: float = 0.0
    start_time: float | None = None
    end_time: float | None = None
    paused_seconds: float = 0.0
    """Time spent PAUSED, not counted against the deadline."""


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One placement of a job on nodes. *Ended* by its cause, *closed* when all its nodes are gone."""

    job_uid: str
    number: int
    num_nodes: int
    executor: str
    create_time: float
    launch: Mapping[str, Any] = field(default_factory=dict)
    """What the executor was told, without tokens."""
    launch_time: float | None = None
    generation: int = 0
    end_cause: str = ""
    """Name of `luthier.v1.EndCause` without its prefix, "" while open."""
    message: str = ""
    end_time: float | None = None
    close_time: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """One formation of the process group."""

    job_uid: str
    attempt: int
    number: int
    create_time: float
    world_size: int = 0
    address: str = ""
    resume_from: Mapping[str, Any] | None = None
    """`CheckpointCandidate` as plain JSON."""
    fallbacks: tuple[Mapping[str, Any], ...] = ()
    journal_head: Mapping[str, Any] | None = None
    parent: str = ""
    """Fence it was formed from, "" for the first: the lineage."""
    start_step: int = 0
    last_step: int = 0
    phase_index: int = 0
    """Phase that `last_step` belongs to."""
    phase_started: bool = False
    """Node 0 reported a started phase under this fence."""
    save_failed: str = ""
    """Why the save of a pause failed while all ranks train on; "" otherwise."""
    end_time: float | None = None
    end_cause: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """One node of an attempt, as it last announced itself."""

    job_uid: str
    attempt: int
    index: int
    incarnation: str = ""
    superseded: tuple[str, ...] = ()
    """Older incarnations: fenced when they speak again."""
    host: str = ""
    metrics_port: int = 0
    handle: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    state: str = "pending"
    """"pending", "attached", "ready", "running" or "gone"."""
    ready_after: int = -1
    """Generation after which it declared itself ready (0: preflight passed); -1: not ready."""
    ready: Mapping[str, Any] = field(default_factory=dict)
    """Its newest `Ready` as plain JSON."""
    preflight: Mapping[str, Any] = field(default_factory=dict)
    """Its `PreflightResult` as plain JSON; {} before."""
    formed: int = 0
    """Newest generation that it reported to run, or that an older incarnation was in: it is told of none up to here."""
    left: bool = False
    """Its ranks left on request (75)."""
    acked: int = 0
    """Facts of this incarnation stored up to this sequence number."""
    exit_code: int | None = None
    finished: bool = False
    """Its PlanFinished was accepted."""


@dataclass(frozen=True, kw_only=True)
class RankEndRecord:
    """The end of one rank of one generation; see `luthier.v1.RankExited`."""

    job_uid: str
    attempt: int
    generation: int
    node: int
    rank: int
    code: int
    message: str = ""
    section: str = ""
    step: int = 0
    phase_index: int = 0
    log_lines: tuple[str, ...] = ()
    hung: bool = False
    reaped: bool = False
    time: float = 0.0
    """When it ended (receipt minus age)."""


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """Something that happened to a job."""

    revision: int
    sequence: int
    job_uid: str
    tenant: str
    job_name: str
    time: float
    type: str
    message: str
    severity: str = "info"
    attempt: int = 0
    generation: int = 0
    node: int | None = None
    state: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """A committed checkpoint; see `luthier.v1.Checkpoint`."""

    job_uid: str
    attempt: int
    generation: int
    phase_index: int
    step: int
    digest: str
    path: str
    size_bytes: int = 0
    time: float = 0.0
    eval_loss: float | None = None
    removed: bool = False


@dataclass(frozen=True, kw_only=True)
class ArtifactRecord:
    """A durable output of a phase, the result included (name "result")."""

    job_uid: str
    name: str
    kind: str
    digest: str
    path: str
    size_bytes: int = 0
    time: float = 0.0
    attempt: int = 0
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class SamplePoint:
    """One value of one series at one plan step."""

    step: int
    value: float
    min: float
    max: float
    time: float
