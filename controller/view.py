"""What `decide` looks at: one job as the store and the executor show it at one moment. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from luthier.controller.config import ControllerConfig
from luthier.controller.executors.api import NodeObservation
from luthier.controller.store.records import AttemptRecord, GenerationRecord, JobRecord, NodeRecord, RankEndRecord
from luthier.spec.models import FaultSpec

__all__ = ["Timers", "View", "launch_name"]


def launch_name(job_uid: str, attempt: int) -> str:
    """`<job uid>-a<attempt>`: the deterministic name of an attempt's nodes."""
    return f"{job_uid}-a{attempt}"


@dataclass(frozen=True, kw_only=True)
class Timers:
    """Durations that decisions use, in seconds; see `ControllerConfig` for the reasons."""

    gang: float = 600.0
    stop_grace: float = 15.0
    backoff: float = 2.0
    backoff_cap: float = 300.0
    contact: float = 60.0
    cause_wait: float = 10.0

    @classmethod
    def of(cls, config: ControllerConfig) -> Timers:
        return cls(
            gang=config.gang_timeout_seconds,
            stop_grace=config.stop_grace_seconds,
            backoff=config.backoff_seconds,
            backoff_cap=config.backoff_cap_seconds,
            contact=config.contact_seconds,
            cause_wait=config.cause_wait_seconds,
        )

    def backoff_after(self, failures: int) -> float:
        """Back-off after the given number of failures: doubling, capped."""
        return float(min(self.backoff_cap, self.backoff * 2 ** max(0, min(failures, 30) - 1)))


@dataclass(frozen=True, kw_only=True)
class View:
    """One job, its newest attempt and what is seen of its nodes."""

    job: JobRecord
    attempt: AttemptRecord | None = None
    generations: tuple[GenerationRecord, ...] = ()
    """Of the newest attempt, oldest first."""
    nodes: tuple[NodeRecord, ...] = ()
    rank_ends: tuple[RankEndRecord, ...] = ()
    """Of the newest generation."""
    chain: tuple[GenerationRecord, ...] = ()
    """All generations of the job, oldest first."""
    observed: Mapping[int, NodeObservation] = field(default_factory=dict)
    """Nodes of the newest attempt's launch, by index."""
    leftovers: Mapping[str, bool] = field(default_factory=dict)
    """Other launches of this job that the executor still has: name -> whether any node runs."""
    attached: frozenset[int] = frozenset()
    """Nodes with an open stream."""
    heard: Mapping[int, float] = field(default_factory=dict)
    """When each node was last heard of by this controller."""
    broken_dependency: str = ""
    """Why a dependency can never be met; empty while it can."""
    started_at: float = 0.0
    """When this controller started: timers that wait for a message count from here at the earliest."""
    timers: Timers = Timers()

    @property
    def generation(self) -> GenerationRecord | None:
        """The newest generation of the attempt."""
        return self.generations[-1] if self.generations else None

    @property
    def faults(self) -> FaultSpec:
        """The job's fault policy."""
        return FaultSpec.model_validate(self.job.spec.get("faults") or {})

    def node(self, index: int) -> NodeRecord | None:
        """The record of a node; None before it was written."""
        return next((n for n in self.nodes if n.index == index), None)

    def is_gone(self, index: int) -> bool:
        """Whether a node is known to be gone: seen so, recorded so, or launched and unknown to the executor."""
        record = self.node(index)
        if record is not None and record.state == "gone":
            return True
        seen = self.observed.get(index)
        if seen is not None:
            return seen.state == "gone"
        return self.attempt is not None and self.attempt.launch_time is not None

    def all_gone(self) -> bool:
        """Whether no node of the newest attempt is left. Nodes that were never launched are none."""
        if self.attempt is None:
            return True
        if self.attempt.launch_time is None:
            return all(o.state == "gone" for o in self.observed.values())
        return all(self.is_gone(i) for i in range(self.attempt.num_nodes))
