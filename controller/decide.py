"""`decide(view, now) -> [Action]`: what to do about one job, and nothing else. Pure.

The rules are those of protocol.md: R1 (generations), R4 (success is a report), the table of states, the table of ends, and the
timers. R3 is `lineage.choose`. Admission is not here: `queues` decides which QUEUED job gets nodes.

A decision looks only at what is stored and observed now, so that a crash anywhere leads to the same decision again.
"""

from __future__ import annotations

from luthier.controller import ends
from luthier.controller.actions import (
    Action,
    CloseAttempt,
    EndAttempt,
    FormGeneration,
    LaunchNodes,
    RecordEvent,
    RecordGone,
    RemoveLaunch,
    StopNodes,
    Transition,
    WakeAt,
)
from luthier.controller.cause import EXIT_LEFT, first_cause
from luthier.controller.lineage import choose, fence_name
from luthier.controller.store.records import TERMINAL, AttemptRecord, JobState
from luthier.controller.view import View, launch_name

__all__ = ["deadline_of", "decide"]


def decide(view: View, now: float) -> list[Action]:
    """Every action that is due for this job at `now`, in order; an empty list when nothing is."""
    actions = _leftovers(view)
    attempt = view.attempt
    if attempt is None or attempt.close_time is not None:
        return actions + _without_nodes(view, now)
    actions += _newly_gone(view, attempt)
    if attempt.end_time is not None:
        return actions + _stopping(view, attempt, now)
    return actions + _open(view, attempt, now)


def deadline_of(view: View) -> float | None:
    """When the job's deadline passes, time spent PAUSED not counted; None without one."""
    seconds = (view.job.spec.get("scheduling") or {}).get("deadline")
    return None if seconds is None else view.job.create_time + view.job.paused_seconds + float(seconds)


# --- no nodes -------------------------------------------------------------------------------------------------------


def _leftovers(view: View) -> list[Action]:
    """Launches of closed attempts: stop what runs, forget the rest."""
    return [
        StopNodes(launch=n, grace_seconds=view.timers.stop_grace) if runs else RemoveLaunch(launch=n) for n, runs in view.leftovers.items()
    ]


def _without_nodes(view: View, now: float) -> list[Action]:
    """The newest attempt is closed, or there is none."""
    job = view.job
    if job.state == JobState.QUEUED:
        if view.broken_dependency:
            return [ends.failed(view, "DEPENDENCY", view.broken_dependency)]
        if overdue := _deadline(view, now):
            return overdue
        times = [t for t in (deadline_of(view), job.retry_at) if t is not None and t > now]
        return [WakeAt(time=min(times))] if times else []
    if job.state in (JobState.STARTING, JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING):
        return _settled(view)
    return []


def _deadline(view: View, now: float) -> list[Action]:
    due = deadline_of(view)
    if due is None or now < due:
        return []
    seconds = (view.job.spec.get("scheduling") or {}).get("deadline")
    return [ends.failed(view, "DEADLINE", f"the deadline of {float(seconds or 0):g} s has passed; give scheduling.deadline more time")]


# --- an attempt that has ended --------------------------------------------------------------------------------------


def _newly_gone(view: View, attempt: AttemptRecord) -> list[Action]:
    """Record nodes that the executor shows as gone."""
    gone: list[Action] = []
    for index in range(attempt.num_nodes):
        record = view.node(index)
        if record is not None and record.state != "gone" and attempt.launch_time is not None and view.is_gone(index):
            seen = view.observed.get(index)
            gone.append(RecordGone(index=index, exit_code=seen.exit_code if seen else None))
    return gone


def _stopping(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """Between ended and closed: nodes leave by directive; who does not is stopped; when all are gone the attempt closes."""
    name = launch_name(view.job.uid, attempt.number)
    if view.all_gone():
        return [CloseAttempt(number=attempt.number), *_settled(view), RemoveLaunch(launch=name)]
    ended = attempt.end_time if attempt.end_time is not None else now
    left = [i for i in range(attempt.num_nodes) if not view.is_gone(i)]
    patience = view.timers.stop_grace
    if attempt.end_cause == "FINISHED":
        patience *= 2  # peers still report their own PlanFinished
    elif not any(i in view.attached for i in left):
        patience = 0.0  # nobody would hear a directive
    due = max(ended, view.started_at if patience else ended) + patience
    if now >= due:
        return [StopNodes(launch=name, grace_seconds=view.timers.stop_grace)]
    return [WakeAt(time=due)]


def _settled(view: View) -> list[Action]:
    """The job's next state once all nodes are gone."""
    job = view.job
    if job.state == JobState.CANCELLING:
        return [Transition(to=JobState.CANCELLED, message="cancelled; all nodes are gone")]
    if job.plan_finished and job.state == JobState.STARTING:
        running = Transition(to=JobState.RUNNING, message="the plan replayed to its end")
        return [running, Transition(to=JobState.SUCCEEDED, message="finished", changes={"waiting_reason": "", "waiting_message": ""})]
    if job.plan_finished and job.state in (JobState.RUNNING, JobState.PAUSING):
        return [
            Transition(to=JobState.SUCCEEDED, message="finished", changes={"waiting_reason": "", "waiting_message": "", "pause_cause": ""})
        ]
    if job.state == JobState.PAUSING:
        return [_paused(view)]
    if job.state in (JobState.STARTING, JobState.RUNNING):
        return [ends.requeued(view, "RETRYING", "the attempt is over; it is tried again", retry_at=None)]
    return []


def _paused(view: View) -> Transition:
    cause = view.job.pause_cause or "user"
    if cause == "user":
        return Transition(to=JobState.PAUSED, message="paused; `resume` carries on", changes={"pause_cause": "", "waiting_reason": ""})
    reason = "PREEMPTED" if cause == "preempted" else "SUSPENDED"
    message = "gave way to a higher priority" if cause == "preempted" else "suspended; carries on when the controller is back"
    changes = {"pause_cause": "", "waiting_reason": reason, "waiting_message": message, "retry_at": None}
    return Transition(to=JobState.QUEUED, message=message, changes=changes)


# --- an attempt that is open ----------------------------------------------------------------------------------------


def _open(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    job = view.job
    if job.plan_finished and job.state != JobState.CANCELLING:
        done = EndAttempt(number=attempt.number, cause="FINISHED", message="the plan finished")
        if job.state == JobState.STARTING:
            return [Transition(to=JobState.RUNNING, message="the plan replayed to its end"), done]
        return [done]
    if job.state == JobState.CANCELLING:
        return [EndAttempt(number=attempt.number, cause="CANCELLED", message="cancelled by a user")]
    if job.state in TERMINAL or job.state in (JobState.PAUSED, JobState.QUEUED):
        # No writer leaves an attempt open here; whatever did, its nodes must not stay.
        return [EndAttempt(number=attempt.number, cause="OTHER", message=f"the job is {job.state}")]
    if job.state == JobState.PAUSING:
        return _pausing(view, attempt, now)
    if overdue := _deadline(view, now):
        return [EndAttempt(number=attempt.number, cause="DEADLINE", message="the deadline has passed"), *overdue]
    actions = _advance(view, attempt, now)
    due = deadline_of(view)
    if due is not None and not any(isinstance(a, EndAttempt) for a in actions):
        actions.append(WakeAt(time=due))
    return actions


def _advance(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """STARTING and RUNNING: launch, form, watch."""
    if attempt.launch_time is None:
        return [LaunchNodes(number=attempt.number)]
    if bad := ends.preflight_failure(view, attempt, now):
        return bad
    generation = view.generation
    running = generation is not None and generation.end_time is None
    if running and (over := ends.generation_end(view, attempt, now)):
        return over
    if lost := ends.node_end(view, attempt, now):
        return lost
    if generation is not None and running:
        actions: list[Action] = []
        if generation.phase_started and view.job.state == JobState.STARTING:
            actions.append(
                Transition(to=JobState.RUNNING, message="the first phase started", changes={"waiting_reason": "", "waiting_message": ""})
            )
        return actions + ends.silence(view, attempt, now)
    return _form(view, attempt, now)


def _form(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """No generation runs: write the next one when every node is ready; give up when the gang is late."""
    last = view.generation
    ready_after = last.number if last else 0
    nodes = [view.node(i) for i in range(attempt.num_nodes)]
    ready = [n for n in nodes if n is not None and n.state != "gone" and n.ready_after >= ready_after]
    since = attempt.launch_time if last is None else last.end_time
    late = max(since or now, view.started_at) + view.timers.gang
    if len(ready) < attempt.num_nodes:
        if now < late:
            return [WakeAt(time=late)]
        return ends.gang_late(view, attempt, now, len(ready))
    if mixed := ends.mixed_versions(view, attempt):
        return mixed
    if last is not None and (due := ends.not_before(view)) > now:
        return [WakeAt(time=due)]
    first = nodes[0]
    assert first is not None
    processes = int((view.job.spec.get("resources") or {}).get("processes_per_node") or 1)
    choice = choose(view.chain, first.ready.get("candidates") or (), first.ready.get("journal_heads") or ())
    parent = fence_name(view.chain[-1].attempt, view.chain[-1].number) if view.chain else ""
    return [
        FormGeneration(
            number=ready_after + 1,
            world_size=attempt.num_nodes * processes,
            address=str(first.ready.get("address", "")),
            choice=choice,
            parent=parent,
        )
    ]


def _pausing(view: View, attempt: AttemptRecord, now: float) -> list[Action]:
    """PAUSING with an open attempt: ranks save and leave; whatever else ends them ends the attempt at the last commit."""
    generation = view.generation
    number = attempt.number
    if generation is None or generation.end_time is not None or not generation.phase_started:
        return [EndAttempt(number=number, cause="LEFT", message="paused before a phase had begun")]
    lost = RecordEvent(
        type="PAUSE_LOST_STEPS",
        message="ranks ended before they could save; the job carries on from its last checkpoint",
        severity="warning",
        generation=generation.number,
    )
    first = first_cause(view.rank_ends)
    if first is not None:
        if user := ends.user_error(view, attempt, now, first):
            return user
        return [EndAttempt(number=number, cause="LEFT", message=f"paused while {ends.describe(first)}"), lost]
    left = {e.node for e in view.rank_ends if e.code == EXIT_LEFT} | {n.index for n in view.nodes if n.left}
    reported = {e.node for e in view.rank_ends}
    everyone = set(range(attempt.num_nodes))
    if left >= everyone:
        return [EndAttempt(number=number, cause="LEFT", message="paused; every rank left")]
    if generation.save_failed and not left:
        failed = RecordEvent(
            type="PAUSE_FAILED",
            message=f"the save failed and training goes on: {generation.save_failed}",
            severity="error",
            generation=generation.number,
            clear_save_failed=True,
        )
        message = f"the pause failed: {generation.save_failed}"
        return [failed, Transition(to=JobState.RUNNING, message=message, severity="warning", changes={"pause_cause": ""})]
    gone = {i for i in everyone if view.is_gone(i)}
    if gone - left or (reported | left) >= everyone:
        return [EndAttempt(number=number, cause="LEFT", message="paused; a node went away before it had saved"), lost]
    return ends.silence(view, attempt, now)
