"""From the store to a `View`, and from actions of `decide` back into the store. Every function runs in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.controller.actions import (
    Action,
    CloseAttempt,
    EndAttempt,
    EndGeneration,
    FormGeneration,
    RecordEvent,
    RecordGone,
    StoreAction,
    Transition,
)
from luthier.controller.decide import decide
from luthier.controller.dependencies import broken_dependency
from luthier.controller.executors.api import NodeObservation, Snapshot
from luthier.controller.lineage import start_place
from luthier.controller.store.api import Reader, Transaction
from luthier.controller.store.records import GenerationRecord, JobState
from luthier.controller.view import Timers, View, launch_name

__all__ = ["Surroundings", "apply", "decide_and_apply", "load_view"]

_PHASE_CAUSES = ("PRODUCTIVE", "EVALUATING", "GENERATING", "RECOMPUTED")


@dataclass(frozen=True)
class Surroundings:
    """What a view holds beyond the store."""

    snapshot: Snapshot
    timers: Timers
    started_at: float
    attached: frozenset[tuple[int, int]] = frozenset()
    """(attempt, node) of open streams."""
    heard: Mapping[tuple[int, int], float] = field(default_factory=dict)


def load_view(reader: Reader, uid: str, around: Surroundings) -> View | None:
    """One job as it is now; None when it was deleted."""
    job = reader.job(uid)
    if job is None:
        return None
    attempt = reader.attempt(uid, job.attempt) if job.attempt else None
    observed: dict[int, NodeObservation] = {}
    leftovers: dict[str, bool] = {}
    current = launch_name(uid, attempt.number) if attempt is not None and attempt.close_time is None else ""
    for (name, index), node in around.snapshot.nodes.items():
        if name == current:
            observed[index] = node
        elif name.rpartition("-a")[0] == uid:
            leftovers[name] = leftovers.get(name, False) or node.state == "running"
    broken = broken_dependency(reader, job) if job.state == JobState.QUEUED and job.dependencies else ""
    if attempt is None or attempt.close_time is not None:
        return View(
            job=job,
            attempt=attempt,
            leftovers=leftovers,
            broken_dependency=broken,
            started_at=around.started_at,
            timers=around.timers,
        )
    generations = tuple(reader.generations(uid, attempt.number))
    return View(
        job=job,
        attempt=attempt,
        generations=generations,
        nodes=tuple(reader.nodes(uid, attempt.number)),
        rank_ends=tuple(reader.rank_ends(uid, attempt.number, generations[-1].number)) if generations else (),
        chain=tuple(reader.all_generations(uid)),
        observed=observed,
        leftovers=leftovers,
        attached=frozenset(n for a, n in around.attached if a == attempt.number),
        heard={n: t for (a, n), t in around.heard.items() if a == attempt.number},
        started_at=around.started_at,
        timers=around.timers,
    )


def decide_and_apply(tx: Transaction, uid: str, around: Surroundings) -> list[Action]:
    """Decide about the job as it is inside this transaction and write what follows; returns every action."""
    view = load_view(tx, uid, around)
    if view is None:
        return []
    actions = decide(view, tx.now)
    apply(tx, view, [a for a in actions if isinstance(a, StoreAction)])
    return actions


def apply(tx: Transaction, view: View, actions: Sequence[StoreAction]) -> None:
    """Write store actions in order."""
    for action in actions:
        _APPLY[type(action)](tx, view, action)


def _transition(tx: Transaction, view: View, action: Transition) -> None:
    uid, changes = view.job.uid, dict(action.changes)
    if action.to == JobState.RUNNING and view.job.cause in _PHASE_CAUSES:
        changes["cause"] = view.job.cause  # the phase that started has set it already
    tx.transition(uid, action.to, message=action.message, severity=action.severity, event_type=action.event_type, **changes)


def _form(tx: Transaction, view: View, action: FormGeneration) -> None:
    assert view.attempt is not None
    choice, number = action.choice, view.attempt.number
    record = GenerationRecord(
        job_uid=view.job.uid,
        attempt=number,
        number=action.number,
        create_time=tx.now,
        world_size=action.world_size,
        address=action.address,
        resume_from=choice.resume_from,
        fallbacks=choice.fallbacks,
        journal_head=choice.journal_head,
        parent=action.parent,
    )
    phase, step = start_place(record)
    tx.insert_generation(replace(record, start_step=step, last_step=step, phase_index=phase))
    tx.update_attempt(view.job.uid, number, generation=action.number)
    budget = {k: v for k, v in view.job.budget_used.items() if k != "gang"}
    tx.update_job(view.job.uid, generation=action.number, budget_used=budget)
    start = f"from step {step} of phase {phase}" if (phase, step) != (0, 0) else "from the beginning"
    details = {"world_size": action.world_size, "phase_index": phase, "step": step}
    tx.append_event(
        view.job.uid, "GENERATION_FORMED", f"{action.world_size} ranks start {start}", generation=action.number, details=details
    )


def _end_generation(tx: Transaction, view: View, action: EndGeneration) -> None:
    assert view.attempt is not None
    uid, number = view.job.uid, view.attempt.number
    tx.update_generation(uid, number, action.number, end_time=tx.now, end_cause=action.cause, message=action.message)
    if action.changes:
        tx.update_job(uid, **action.changes)
    tx.charge(uid, "RESTARTING")
    tx.append_event(
        uid,
        "GENERATION_ENDED",
        f"{action.message}; the same nodes start again from the newest checkpoint",
        severity="warning",
        attempt=number,
        generation=action.number,
        details={"cause": action.cause},
    )


def _end_attempt(tx: Transaction, view: View, action: EndAttempt) -> None:
    uid = view.job.uid
    generation = view.generation
    if generation is not None and generation.end_time is None:
        # `PlanFinished` has ended it already; its own cause stays.
        stored = tx.generations(uid, action.number)[-1]
        if stored.end_time is None:
            tx.update_generation(uid, action.number, generation.number, end_time=tx.now, end_cause=action.cause, message=action.message)
    tx.update_attempt(uid, action.number, end_time=tx.now, end_cause=action.cause, message=action.message)
    quiet = action.cause in ("FINISHED", "LEFT", "CANCELLED")
    tx.append_event(
        uid,
        "ATTEMPT_ENDED",
        action.message,
        severity="info" if quiet else "warning",
        attempt=action.number,
        details={"cause": action.cause},
    )


def _close_attempt(tx: Transaction, view: View, action: CloseAttempt) -> None:
    tx.update_attempt(view.job.uid, action.number, close_time=tx.now)


def _gone(tx: Transaction, view: View, action: RecordGone) -> None:
    assert view.attempt is not None
    changes: dict[str, Any] = {"state": "gone"}
    if action.exit_code is not None:
        changes["exit_code"] = action.exit_code
    tx.update_node(view.job.uid, view.attempt.number, action.index, **changes)


def _event(tx: Transaction, view: View, action: RecordEvent) -> None:
    tx.append_event(view.job.uid, action.type, action.message, severity=action.severity, generation=action.generation, node=action.node)
    if action.clear_save_failed and view.attempt is not None:
        tx.update_generation(view.job.uid, view.attempt.number, action.generation, save_failed="")


_APPLY: Mapping[type, Any] = {
    Transition: _transition,
    FormGeneration: _form,
    EndGeneration: _end_generation,
    EndAttempt: _end_attempt,
    CloseAttempt: _close_attempt,
    RecordGone: _gone,
    RecordEvent: _event,
}
