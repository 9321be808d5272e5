"""The life of a job as data: which edges exist, who writes them, and what a second of wall time in each state is charged to.

Nothing else in the controller knows which transitions are legal; `Transaction.transition` asks `check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.controller.store.records import TERMINAL, JobRecord, JobState
from luthier.errors import IllegalState

__all__ = ["CAUSES", "DEFAULT_CAUSE", "EDGES", "Edge", "check", "is_legal", "targets"]

Writer = Literal["verb", "reconcile"]


@dataclass(frozen=True)
class Edge:
    """One legal change of state: who writes it, and when."""

    source: JobState
    target: JobState
    by: tuple[Writer, ...]
    when: str


def _edges(sources: str, targets: str, by: tuple[Writer, ...], when: str) -> list[Edge]:
    return [Edge(JobState(s), JobState(t), by, when) for s in sources.split() for t in targets.split()]


EDGES: tuple[Edge, ...] = (
    *_edges("QUEUED", "STARTING", ("reconcile",), "admitted: the attempt row is written, then launched"),
    *_edges("STARTING", "RUNNING", ("reconcile",), "node 0 started its first phase, or finished a plan that replays to its end"),
    *_edges("STARTING RUNNING", "QUEUED", ("reconcile",), "the attempt ended and may be tried again, or the gang did not form in time"),
    *_edges("STARTING RUNNING", "PAUSING", ("verb", "reconcile"), "pause, preemption or suspension: nodes save and leave"),
    *_edges("QUEUED", "PAUSED", ("verb",), "pause of a job that has no nodes"),
    *_edges("PAUSING", "PAUSED QUEUED", ("reconcile",), "all nodes are gone: PAUSED after a user's pause, QUEUED otherwise"),
    *_edges("PAUSING", "RUNNING", ("reconcile",), "the save failed and no node had to leave"),
    *_edges("PAUSED", "QUEUED", ("verb",), "resume"),
    *_edges("QUEUED PAUSED", "CANCELLED", ("verb",), "cancel of a job that has no nodes"),
    *_edges("STARTING RUNNING PAUSING", "CANCELLING", ("verb",), "cancel: nodes are being stopped"),
    *_edges("CANCELLING", "CANCELLED", ("reconcile",), "all nodes are gone"),
    *_edges("RUNNING PAUSING", "SUCCEEDED", ("reconcile",), "the finished plan was accepted and all nodes are gone"),
    *_edges("QUEUED STARTING RUNNING PAUSING", "FAILED", ("reconcile",), "user error, spent budget, dependency or deadline"),
    *_edges("FAILED CANCELLED", "QUEUED", ("verb",), "retry: the only way out of a terminal state"),
)

_LEGAL = frozenset((edge.source, edge.target) for edge in EDGES)

CAUSES: tuple[str, ...] = (
    "QUEUED",
    "STARTING",
    "PRODUCTIVE",
    "EVALUATING",
    "GENERATING",
    "CHECKPOINT_STALL",
    "RECOMPUTED",
    "RESTARTING",
    "HUNG",
    "PAUSED",
)
"""Names of `luthier.v1.CauseTime.Cause`."""

DEFAULT_CAUSE: Mapping[JobState, str] = {
    JobState.QUEUED: "QUEUED",
    JobState.STARTING: "STARTING",
    JobState.RUNNING: "PRODUCTIVE",
    JobState.PAUSING: "CHECKPOINT_STALL",
    JobState.PAUSED: "PAUSED",
    JobState.CANCELLING: "CHECKPOINT_STALL",
    # A finished job runs no clock; a retry charges the time in between to this, so that the sum stays the wall time.
    JobState.SUCCEEDED: "PAUSED",
    JobState.FAILED: "PAUSED",
    JobState.CANCELLED: "PAUSED",
}
"""Cause that wall time is charged to from the entry into a state, unless the writer names another."""


def is_legal(source: JobState, target: JobState) -> bool:
    """Whether the table has this edge. Staying in a state is no edge."""
    return (source, target) in _LEGAL


def targets(source: JobState) -> frozenset[JobState]:
    """States that can follow."""
    return frozenset(t for s, t in _LEGAL if s == source)


def check(job: JobRecord, target: JobState) -> None:
    """Raise `IllegalState` unless `job` may go to `target`."""
    if is_legal(job.state, target):
        return
    if job.state in TERMINAL:
        fix = "a finished job changes no more" if job.state == JobState.SUCCEEDED else "only RetryJob leads out of this state"
    else:
        fix = f"from {job.state} a job can go to {', '.join(sorted(targets(job.state)))}"
    raise IllegalState(
        f"job {job.name!r} is {job.state} and cannot become {target}",
        fix=fix,
        metadata={"job": job.name, "state": str(job.state), "target": str(target)},
    )
