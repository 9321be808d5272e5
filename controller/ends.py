"""Ends of ranks, nodes and gangs, and what follows: protocol.md's table of ends. Pure; used by `decide` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.controller.actions import Action, EndAttempt, EndGeneration, Transition, WakeAt
from luthier.controller.cause import EXIT_LEFT, EXIT_PEER_LOST, classify, first_cause, signal_name
from luthier.controller.store.records import AttemptRecord, JobState, RankEndRecord
from luthier.controller.view import View

__all__ = [
    "describe",
    "failed",
    "gang_late",
    "generation_end",
    "launch_failed",
    "mixed_versions",
    "node_end",
    "not_before",
    "preflight_failure",
    "requeued",
    "silence",
    "user_error",
]

_BEFORE_STEPS = ("", "setup", "waiting")
_GANG = "gang"
"""Key of `budget_used` that counts gangs which did not form in a row; no budget, only the back-off grows with it."""


def describe(end: RankEndRecord) -> str:
    """ "rank 1 on node 0 ended with signal 9 (SIGKILL) in section step at step 12: …"."""
    how = "was silent for too long and was killed" if end.hung else f"ended with {signal_name(end.code)}"
    where = f" in section {end.section} at step {end.step}" if end.section else ""
    why = f": {end.message}" if end.message else ""
    return f"rank {end.rank} on node {end.node} {how}{where}{why}"


# --- what the job becomes -------------------------------------------------------------------------------------------


def failed(
    view: View, cause: str, message: str, *, end: RankEndRecord | None = None, node: int | None = None, code: int | None = None
) -> Transition:
    """FAILED with its reason, the first failing rank and its last lines. Legal from every state without a result."""
    job = view.job
    failure: dict[str, Any] = {"cause": f"END_CAUSE_{cause}", "message": message}
    if view.attempt is not None and view.attempt.close_time is None:
        failure["attempt"] = view.attempt.number
        failure["generation"] = view.generation.number if view.generation else 0
    if end is not None:
        failure |= {"node": end.node, "rank": end.rank, "exit_code": end.code, "log_lines": list(end.log_lines), "step": end.step}
    elif node is not None:
        failure["node"] = node
        if code is not None:
            failure["exit_code"] = code
    if "step" not in failure and view.chain:
        failure["step"] = view.chain[-1].last_step
    changes = {"failure": failure, "waiting_reason": "", "waiting_message": "", "retry_at": None, "pause_cause": ""}
    assert job.state not in (JobState.SUCCEEDED, JobState.CANCELLED)
    return Transition(to=JobState.FAILED, message=message, severity="error", changes=changes)


def requeued(view: View, reason: str, message: str, *, retry_at: float | None, budget: Mapping[str, int] | None = None) -> Transition:
    """Back to the queue."""
    changes: dict[str, Any] = {"waiting_reason": reason, "waiting_message": message, "retry_at": retry_at}
    if budget is not None:
        changes["budget_used"] = dict(budget)
    return Transition(to=JobState.QUEUED, message=message, severity="warning", changes=changes)


def _new_attempt(view: View, attempt: AttemptRecord, now: float, cause: str, message: str, **changes: Any) -> list[Action]:
    """End the attempt by an infrastructure cause: another attempt while the budget lasts, else FAILED."""
    end = EndAttempt(number=attempt.number, cause=cause, message=message)
    used = int(view.job.budget_used.get("infra", 0))
    limit = view.faults.infra_retries
    if used >= limit:
        return [end, failed(view, cause, _spent(message, used, limit))]
    again = requeued(
        view,
        "RETRYING",
        f"{message}; another attempt follows",
        retry_at=now + view.timers.backoff_after(used + 1),
        budget={**view.job.budget_used, "infra": used + 1},
    )
    return [end, Transition(to=again.to, message=again.message, severity=again.severity, changes={**again.changes, **changes})]


def _spent(message: str, used: int, limit: int) -> str:
    return f"{message}; {used} of {limit} infrastructure retries are used up (faults.infra_retries)"


# --- ends of ranks --------------------------------------------------------------------------------------------------


def user_error(view: View, attempt: AttemptRecord, now: float, first: RankEndRecord) -> list[Action]:
    """FAILED when `first` is the user's. Waits a moment for nodes that did not report, because FAILED is final and an earlier
    end elsewhere may be the true cause."""
    ending = classify(first.code, hung=first.hung)
    if ending.answer != "fail":
        return []
    reported = {e.node for e in view.rank_ends}
    due = max(first.time, view.started_at) + view.timers.cause_wait
    if len(reported) < attempt.num_nodes and now < due:
        return [WakeAt(time=due)]
    message = describe(first)
    return [EndAttempt(number=attempt.number, cause=ending.cause, message=message), failed(view, ending.cause, message, end=first)]


def generation_end(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """What the rank ends of the open generation mean; nothing while its cause is not known."""
    generation = view.generation
    assert generation is not None
    first = first_cause(view.rank_ends)
    if first is None:
        return _without_cause(view, attempt, now)
    if user := user_error(view, attempt, now, first):
        return user
    ending = classify(first.code, hung=first.hung)
    message = describe(first)
    budget = {k: v for k, v in view.job.budget_used.items() if k != _GANG}
    changes: dict[str, Any] = {"last_end": None}
    if first.section not in _BEFORE_STEPS:
        mark = {"phase": first.phase_index, "step": first.step, "rank": first.rank, "cause": ending.cause}
        if view.job.last_end == mark:
            twice = f"{message}; the same end at the same step twice running is no accident"
            return [EndAttempt(number=attempt.number, cause=ending.cause, message=twice), failed(view, ending.cause, twice, end=first)]
        changes["last_end"] = mark
    if ending.answer == "memory":
        return _out_of_memory(view, attempt, first, budget, changes)
    similar = sum(g.end_cause in ("STORAGE", "OTHER") for g in view.generations[:-1])
    if ending.answer == "in_place_backoff" and similar:
        return _new_attempt(
            view, attempt, now, ending.cause, f"{message}, for the second time on these nodes", last_end=changes["last_end"]
        )
    used, limit = budget.get("infra", 0), view.faults.infra_retries
    if used >= limit:
        spent = _spent(message, used, limit)
        return [EndAttempt(number=attempt.number, cause=ending.cause, message=spent), failed(view, ending.cause, spent, end=first)]
    changes["budget_used"] = {**budget, "infra": used + 1}
    return [EndGeneration(number=generation.number, cause=ending.cause, message=message, changes=changes)]


def _without_cause(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """Only consequences (72) and requests (75) were reported so far."""
    generation = view.generation
    assert generation is not None
    counted = [e for e in view.rank_ends if not e.reaped]
    reported = {e.node for e in counted}
    left = [e for e in counted if e.code == EXIT_LEFT]
    gone = {i for i in range(attempt.num_nodes) if view.is_gone(i)}
    if left and len(reported | gone) == attempt.num_nodes:
        nodes = sorted({e.node for e in left})
        message = f"node {nodes[0]} had to leave" if len(nodes) == 1 else "the nodes had to leave"
        end = EndAttempt(number=attempt.number, cause="EVICTED", message=message)
        again = requeued(view, "RETRYING", f"{message}; another attempt follows", retry_at=now + view.timers.backoff)
        return [end, again]
    lost = [e for e in counted if e.code == EXIT_PEER_LOST]
    if lost and len(reported) == attempt.num_nodes:
        message = "every rank lost its peers and none had a cause: the network between the nodes"
        used, limit = int(view.job.budget_used.get("infra", 0)), view.faults.infra_retries
        if used >= limit:
            spent = _spent(message, used, limit)
            return [EndAttempt(number=attempt.number, cause="NETWORK", message=spent), failed(view, "NETWORK", spent, end=lost[0])]
        changes = {"budget_used": {**view.job.budget_used, "infra": used + 1}, "last_end": None}
        return [EndGeneration(number=generation.number, cause="NETWORK", message=message, changes=changes)]
    return []


def _out_of_memory(
    view: View, attempt: AttemptRecord, first: RankEndRecord, budget: Mapping[str, int], changes: Mapping[str, Any]
) -> list[Action]:
    """Half the micro-batch, same global batch, while the budget lasts and there is something to halve."""
    generation = view.generation
    assert generation is not None
    training = view.job.spec.get("training") or {}
    planned = training.get("micro_batch_size") or -(-int(training.get("batch_size") or 16) // max(1, generation.world_size))
    present = view.job.micro_batch_size or int(planned)
    used = budget.get("memory", 0)
    message = describe(first)
    if used >= view.faults.memory_retries or present <= 1:
        why = "a micro-batch of one row does not fit" if present <= 1 else f"{used} retries with a smaller micro-batch are used up"
        text = f"{message}; {why}. Use shorter rows (training.max_length), gradient_checkpointing, a higher zero_stage or more nodes"
        return [EndAttempt(number=attempt.number, cause="MEMORY", message=text), failed(view, "MEMORY", text, end=first)]
    smaller = {**changes, "budget_used": {**budget, "memory": used + 1}, "micro_batch_size": max(1, present // 2)}
    return [
        EndGeneration(number=generation.number, cause="MEMORY", message=f"{message}; once more with half the micro-batch", changes=smaller)
    ]


def silence(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """Contact lost while all other nodes report 72: after a while the silent node counts as lost. Loss of contact alone is nothing."""
    lost = {e.node: e.time for e in view.rank_ends if e.code == EXIT_PEER_LOST}
    silent = [i for i in range(attempt.num_nodes) if i not in lost and not any(e.node == i for e in view.rank_ends)]
    if not lost or not silent or len(lost) + len(silent) < attempt.num_nodes:
        return []
    if any(i in view.attached for i in silent):
        return []
    dues = [max(view.heard.get(i, 0.0), lost[min(lost)], view.started_at) + view.timers.contact for i in silent]
    due = max(dues)
    if now < due:
        return [WakeAt(time=due)]
    message = f"node {silent[0]} was not heard of for {view.timers.contact:g} s while all others lost their peer"
    if view.job.state == JobState.PAUSING:
        return [EndAttempt(number=attempt.number, cause="LEFT", message=f"paused; {message}")]
    return _new_attempt(view, attempt, now, "NODE_LOST", message)


def not_before(view: View) -> float:
    """When the next generation may be formed: a back-off follows storage and unknown ends, nothing else."""
    last = view.generation
    if last is None or last.end_time is None or last.end_cause not in ("STORAGE", "OTHER"):
        return 0.0
    return last.end_time + view.timers.backoff_after(int(view.job.budget_used.get("infra", 1)))


# --- ends of nodes and gangs ----------------------------------------------------------------------------------------


def node_end(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """A node of the open attempt is gone before the plan finished. One that had finished itself is missed only where the group must
    form again."""
    going = view.generation is not None and view.generation.end_time is None
    for index in range(attempt.num_nodes):
        record = view.node(index)
        if not view.is_gone(index) or (record is not None and record.finished and going):
            continue
        seen = view.observed.get(index)
        code = seen.exit_code if seen is not None else record.exit_code if record is not None else None
        detail = f": {seen.detail}" if seen is not None and seen.detail else ""
        if code == EXIT_LEFT:
            message = f"node {index} had to leave"
            again = requeued(view, "RETRYING", f"{message}; another attempt follows", retry_at=now + view.timers.backoff)
            return [EndAttempt(number=attempt.number, cause="EVICTED", message=message), again]
        how = "went away" if code is None else f"ended with {signal_name(code)}"
        message = f"node {index} {how}{detail}"
        if code in (64, 65):
            cause = classify(code).cause
            return [EndAttempt(number=attempt.number, cause=cause, message=message), failed(view, cause, message, node=index, code=code)]
        return _new_attempt(view, attempt, now, "NODE_LOST", message)
    return []


def preflight_failure(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """A node failed its checks: the user's input ends the job, a bad node only this attempt."""
    for node in view.nodes:
        if not node.preflight or node.preflight.get("passed"):
            continue
        message = str(node.preflight.get("message") or f"node {node.index} failed its checks")
        if node.preflight.get("user_error"):
            code = int(node.preflight.get("code") or 64)
            cause = classify(code).cause if code in (64, 65) else "CONFIGURATION"
            end = EndAttempt(number=attempt.number, cause=cause, message=message)
            return [end, failed(view, cause, message, node=node.index, code=code)]
        excluded = tuple(dict.fromkeys((*view.job.excluded_hosts, *([node.host] if node.host else []))))
        return _new_attempt(view, attempt, now, "PREFLIGHT", f"node {node.index} failed its checks: {message}", excluded_hosts=excluded)
    return []


def gang_late(view: View, attempt: AttemptRecord, now: float, ready: int) -> list[Action]:
    """Not all nodes came in time: release the slots. Within an attempt that had formed before, a node is lost."""
    if view.generations:
        message = f"{attempt.num_nodes - ready} of {attempt.num_nodes} nodes did not come back within {view.timers.gang:g} s"
        return _new_attempt(view, attempt, now, "NODE_LOST", message)
    times = int(view.job.budget_used.get(_GANG, 0)) + 1
    message = f"{ready} of {attempt.num_nodes} nodes were ready within {view.timers.gang:g} s"
    again = requeued(
        view,
        "CAPACITY",
        f"{message}; the slots were released",
        retry_at=now + view.timers.backoff_after(times),
        budget={**view.job.budget_used, _GANG: times},
    )
    return [EndAttempt(number=attempt.number, cause="GANG_TIMEOUT", message=message), again]


def mixed_versions(view: View, attempt: AttemptRecord) -> list[Action]:
    """Nodes with unlike versions of luthier, torch or the method must not form a group."""
    for package in ("luthier", "torch", "method"):
        versions = {n.versions.get(package, "") for n in view.nodes if n.index < attempt.num_nodes}
        if len(versions) > 1:
            message = f"the nodes have unlike versions of {package}: {', '.join(sorted(versions))}; install the same one everywhere"
            end = EndAttempt(number=attempt.number, cause="CONFIGURATION", message=message)
            return [end, failed(view, "CONFIGURATION", message)]
    return []


def launch_failed(view: View, attempt: AttemptRecord, now: float, message: str, *, retry: bool) -> list[Action]:
    """The executor could not start nodes."""
    if retry:
        return _new_attempt(view, attempt, now, "LAUNCH", message)
    return [EndAttempt(number=attempt.number, cause="LAUNCH", message=message), failed(view, "LAUNCH", message)]
