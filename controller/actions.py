"""What `decide` may ask for: small frozen values that `reconcile` carries out.

Store actions of one decision are applied in one transaction, in order. Executor actions follow after its commit; each is
idempotent by launch name, so a crash in between only repeats them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.controller.lineage import Choice
from luthier.controller.store.records import JobState

__all__ = [
    "Action",
    "CloseAttempt",
    "EndAttempt",
    "EndGeneration",
    "FormGeneration",
    "LaunchNodes",
    "RecordEvent",
    "RecordGone",
    "RemoveLaunch",
    "StopNodes",
    "StoreAction",
    "Transition",
    "WakeAt",
]


@dataclass(frozen=True, kw_only=True)
class Transition:
    """Change the job's state; `changes` are other columns of the job, written with it."""

    to: JobState
    message: str
    severity: str = "info"
    event_type: str = "STATE_CHANGED"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FormGeneration:
    """Write generation `number`: every node is ready, and all are told `Formed` from it."""

    number: int
    world_size: int
    address: str
    choice: Choice
    parent: str


@dataclass(frozen=True, kw_only=True)
class EndGeneration:
    """End the open generation of the open attempt; its nodes reap their ranks and declare themselves ready again."""

    number: int
    cause: str
    message: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the job: budgets, last end."""


@dataclass(frozen=True, kw_only=True)
class EndAttempt:
    """End the attempt by its cause, its open generation with it; its nodes are stopped."""

    number: int
    cause: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CloseAttempt:
    """All nodes of an ended attempt are gone: its token is dead and its slots are free."""

    number: int


@dataclass(frozen=True, kw_only=True)
class RecordGone:
    """A node was observed gone."""

    index: int
    exit_code: int | None


@dataclass(frozen=True, kw_only=True)
class RecordEvent:
    """Tell what happened."""

    type: str
    message: str
    severity: str = "info"
    generation: int = 0
    node: int | None = None
    clear_save_failed: bool = False
    """Forget the failed save of the newest generation: it was answered."""


@dataclass(frozen=True, kw_only=True)
class LaunchNodes:
    """Have the executor start what is not running of the attempt."""

    number: int


@dataclass(frozen=True, kw_only=True)
class StopNodes:
    """Have the executor stop a launch: SIGTERM, after `grace_seconds` SIGKILL."""

    launch: str
    grace_seconds: float


@dataclass(frozen=True, kw_only=True)
class RemoveLaunch:
    """Have the executor forget a launch whose nodes are gone."""

    launch: str


@dataclass(frozen=True, kw_only=True)
class WakeAt:
    """Look at this job again at `time` (UTC seconds)."""

    time: float


StoreAction = Transition | FormGeneration | EndGeneration | EndAttempt | CloseAttempt | RecordGone | RecordEvent
Action = StoreAction | LaunchNodes | StopNodes | RemoveLaunch | WakeAt
