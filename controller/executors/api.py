"""How attempts become nodes: the seam between reconcile and whatever runs processes.

Adding an executor is one module with this protocol, one line in `controller.executors.EXECUTORS`, and the conformance suite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

__all__ = ["AttemptPlan", "Executor", "Launch", "LaunchNode", "NodeObservation", "Snapshot"]


@dataclass(frozen=True, kw_only=True)
class AttemptPlan:
    """One admitted attempt, before an executor has turned it into nodes."""

    name: str
    """`<job uid>-a<attempt>`."""
    job_uid: str
    job_name: str
    tenant: str
    attempt: int
    num_nodes: int
    processes: int
    """Ranks on each node."""
    device: Literal["cpu", "cuda"]
    spec: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Every address of the spec -> local path."""


@dataclass(frozen=True)
class LaunchNode:
    """One node of a launch: what its agent is told (`luthier.trainer_node.launch.NodeLaunch` as JSON), and the slots it takes."""

    index: int
    config: Mapping[str, Any]
    cpu_slots: int
    accelerators: int


@dataclass(frozen=True)
class Launch:
    """Everything needed to start one attempt: plain data, shown by `--dry-run`, equal for equal attempts.

    `name` is deterministic: `<job uid>-a<attempt>`.
    """

    name: str
    job_uid: str
    attempt: int
    nodes: tuple[LaunchNode, ...]


@dataclass(frozen=True)
class NodeObservation:
    """What an executor sees of one node. `exit_code` is negative for a signal and None while running or when it cannot be known."""

    launch: str
    index: int
    state: Literal["running", "gone"]
    exit_code: int | None = None
    handle: str = ""
    detail: str = ""
    """For people: why it ended, where known."""
    accelerator_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """Everything an executor runs or remembers, by (launch name, node index)."""

    nodes: Mapping[tuple[str, int], NodeObservation] = field(default_factory=dict)

    def of(self, launch: str) -> tuple[NodeObservation, ...]:
        return tuple(n for (name, _), n in sorted(self.nodes.items()) if name == launch)


class Executor(Protocol):
    """Starts, observes and stops nodes. Every call is idempotent by launch name."""

    async def open(self) -> None:
        """Find what an earlier controller left running, and adopt it."""
        ...

    async def close(self, *, stop_helpers: bool) -> None:
        """Let go of everything; nodes go on. `stop_helpers` also ends helper processes that hold no job."""
        ...

    def prepare(self, attempt: AttemptPlan) -> Launch:
        """Pure: no input or output. Token and controller address are filled in by reconcile when it launches."""
        ...

    async def launch(self, launch: Launch) -> None:
        """Start what is not running yet. Raises `ExecutorError`."""
        ...

    async def observe(self) -> Snapshot:
        """Everything it runs or remembers: level-triggered."""
        ...

    def wakeups(self) -> AsyncIterator[None]:
        """A hint to look, nothing more."""
        ...

    async def stop(self, name: str, grace: timedelta) -> None:
        """SIGTERM to every agent of the launch, SIGKILL to its whole process tree after `grace`; returns at once."""
        ...

    async def remove(self, name: str) -> None:
        """Forget a launch whose nodes are gone, and free its slots."""
        ...

    async def prewarm(self, device: str) -> None:
        """Start what makes the next launch on `device` quick; never fails."""
        ...

    def log_files(self, name: str, index: int) -> Mapping[int | None, Path]:
        """Log files that a node left behind, by rank (None: the agent), for bytes that it could not report any more."""
        ...
