"""Records and views for tests of pure parts: a job of two nodes in the middle of its life, with what a test changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.controller.executors.api import NodeObservation
from luthier.controller.store.records import AttemptRecord, GenerationRecord, JobRecord, JobState, NodeRecord, RankEndRecord
from luthier.controller.view import View

UID = "j1"
NOW = 10_000.0
START = 9_000.0
"""When the controller started."""

SPEC: Mapping[str, Any] = {
    "method": {"name": "sft"},
    "training": {"batch_size": 16},
    "resources": {"nodes": {"min": 2, "max": 2}, "processes_per_node": 1},
    "faults": {"infra_retries": 5, "memory_retries": 1},
}


def job(state: JobState = JobState.RUNNING, **changes: Any) -> JobRecord:
    """A job with one attempt of one generation."""
    values: dict[str, Any] = {"attempt": 1, "generation": 1, "num_nodes": 2, "spec": SPEC, "create_time": 8_000.0, **changes}
    return JobRecord(uid=UID, tenant="default", name="tune", method="sft", queue="default", priority=0, state=state, **values)


def attempt(**changes: Any) -> AttemptRecord:
    """The first attempt, launched and open."""
    nodes = [{"index": i, "config": {"device": "cpu"}, "cpu_slots": 1, "accelerators": 0} for i in range(2)]
    values: dict[str, Any] = {"number": 1, "num_nodes": 2, "launch_time": 9_500.0, "generation": 1, "launch": {"nodes": nodes}, **changes}
    return AttemptRecord(job_uid=UID, executor="local", create_time=9_500.0, **values)


def generation(number: int = 1, **changes: Any) -> GenerationRecord:
    """An open generation in which a phase has begun."""
    values: dict[str, Any] = {"attempt": 1, "world_size": 2, "phase_started": True, "address": "127.0.0.1:1", **changes}
    return GenerationRecord(job_uid=UID, number=number, create_time=9_600.0, **values)


def node(index: int, **changes: Any) -> NodeRecord:
    """A node that runs generation 1."""
    values: dict[str, Any] = {"incarnation": f"i{index}", "state": "running", "ready_after": 0, "formed": 1, "host": "127.0.0.1", **changes}
    return NodeRecord(job_uid=UID, attempt=1, index=index, **values)


def rank_end(code: int, rank: int = 0, **changes: Any) -> RankEndRecord:
    """The end of a rank of generation 1 on the node of the same number, in the middle of training."""
    values: dict[str, Any] = {"node": rank, "section": "step", "step": 12, "time": NOW - 1, **changes}
    return RankEndRecord(job_uid=UID, attempt=1, generation=1, rank=rank, code=code, **values)


def seen(index: int, state: str = "running", exit_code: int | None = None, detail: str = "") -> NodeObservation:
    """What the executor shows of a node."""
    return NodeObservation(launch=f"{UID}-a1", index=index, state=state, exit_code=exit_code, detail=detail)  # type: ignore[arg-type]


def view(**changes: Any) -> View:
    """A RUNNING job of two attached nodes in its first generation."""
    generations = changes.pop("generations", (generation(),))
    values: dict[str, Any] = {
        "job": job(),
        "attempt": attempt(),
        "generations": generations,
        "chain": generations,
        "nodes": (node(0), node(1)),
        "observed": {0: seen(0), 1: seen(1)},
        "attached": frozenset({0, 1}),
        "heard": {0: NOW - 1, 1: NOW - 1},
        "started_at": START,
        **changes,
    }
    return View(**values)
