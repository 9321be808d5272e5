"""`decide`: every rule of protocol.md's tables, and that whatever it asks for is legal."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.controller.builders import NOW, SPEC, attempt, generation, job, node, rank_end, seen, view

from luthier.controller.actions import (
    Action,
    CloseAttempt,
    EndAttempt,
    EndGeneration,
    FormGeneration,
    LaunchNodes,
    RecordEvent,
    RecordGone,
    RemoveLaunch,
    StopNodes,
    Transition,
    WakeAt,
)
from luthier.controller.decide import decide
from luthier.controller.executors.api import NodeObservation
from luthier.controller.store.records import JobState, NodeRecord
from luthier.controller.store.states import is_legal
from luthier.controller.view import Timers, View

S = JobState
T = TypeVar("T")
EXAMPLES = int(os.environ.get("LUTHIER_DECIDE_EXAMPLES", "200"))


def of(actions: list[Action], kind: type[Any]) -> list[Any]:
    """The actions of one kind."""
    return [a for a in actions if isinstance(a, kind)]


def only(actions: list[Action], kind: type[T]) -> T:
    """The only action, which is of this kind."""
    [action] = actions
    assert isinstance(action, kind)
    return action


def ended(actions: list[Action]) -> str:
    """Cause that the attempt is ended by, "" when it is not."""
    found = of(actions, EndAttempt)
    return found[0].cause if found else ""


def moves(actions: list[Action]) -> list[JobState]:
    """States that the job goes to."""
    return [a.to for a in of(actions, Transition)]


# --- STARTING -------------------------------------------------------------------------------------------------------


def test_an_admitted_attempt_is_launched() -> None:
    """An attempt without launch time is launched, however often one looks."""
    starting = view(job=job(S.STARTING), attempt=attempt(launch_time=None), generations=(), observed={}, attached=frozenset())

    assert decide(starting, NOW) == [LaunchNodes(number=1)]


def test_the_gang_forms_when_every_node_is_ready() -> None:
    """Generation 1 is written with node 0's address when all nodes declared themselves ready, and not before."""
    nodes = (node(0, formed=0, ready={"address": "127.0.0.1:5"}), node(1, formed=0, ready_after=-1))
    waiting = view(job=job(S.STARTING, generation=0), generations=(), nodes=nodes)
    complete = replace(waiting, nodes=(nodes[0], node(1, formed=0)))

    assert decide(waiting, 9_501.0) == [WakeAt(time=9_500.0 + 600.0)]
    formed = only(decide(complete, 9_501.0), FormGeneration)
    assert (formed.number, formed.world_size, formed.address, formed.parent) == (1, 2, "127.0.0.1:5", "")


def test_a_late_gang_releases_its_slots_with_growing_back_off() -> None:
    """Not formed within T: the attempt ends, the job waits for CAPACITY, and each time longer; no budget is spent."""
    late = view(job=job(S.STARTING), generations=(), nodes=(node(0, formed=0), node(1, ready_after=-1)))
    actions = decide(late, 9_500.0 + 600.0)
    [back] = of(actions, Transition)

    assert (ended(actions), back.to, back.changes["waiting_reason"]) == ("GANG_TIMEOUT", S.QUEUED, "CAPACITY")
    assert back.changes["budget_used"] == {"gang": 1}
    again = replace(late, job=job(S.STARTING, budget_used={"gang": 3}))
    [back] = of(decide(again, 10_100.0), Transition)
    assert back.changes["retry_at"] == 10_100.0 + 16.0


def test_a_gang_waits_from_the_start_of_this_controller() -> None:
    """Timers that wait for a message begin anew when the controller was away."""
    waiting = view(job=job(S.STARTING), generations=(), nodes=(node(0, formed=0), node(1, ready_after=-1)), started_at=10_090.0)

    assert decide(waiting, 10_101.0) == [WakeAt(time=10_690.0)]


def test_the_first_phase_makes_the_job_running() -> None:
    """STARTING becomes RUNNING with the first phase, and stays STARTING before."""
    forming = view(job=job(S.STARTING), generations=(generation(phase_started=False),))

    assert moves(decide(forming, NOW)) == []
    assert moves(decide(replace(forming, generations=(generation(),)), NOW)) == [S.RUNNING]


@pytest.mark.parametrize(("code", "cause"), [(64, "CONFIGURATION"), (65, "DATA")])
def test_a_user_error_in_preflight_fails_the_job(code: int, cause: str) -> None:
    """What preflight finds wrong with the user's input ends the job at once, with its message."""
    bad = node(0, preflight={"passed": False, "user_error": True, "code": code, "message": "rows.jsonl does not exist"})
    actions = decide(view(job=job(S.STARTING), generations=(), nodes=(bad, node(1))), NOW)
    [failed] = of(actions, Transition)

    assert (ended(actions), failed.to, failed.message) == (cause, S.FAILED, "rows.jsonl does not exist")
    assert failed.changes["failure"]["cause"] == f"END_CAUSE_{cause}"


def test_a_bad_node_costs_an_attempt_and_is_excluded() -> None:
    """A node that failed its own checks ends the attempt; another one follows elsewhere."""
    bad = node(1, host="worker-7", preflight={"passed": False, "user_error": False, "message": "the disk is full"})
    actions = decide(view(job=job(S.STARTING), generations=(), nodes=(node(0), bad)), NOW)
    [back] = of(actions, Transition)

    assert (ended(actions), back.to) == ("PREFLIGHT", S.QUEUED)
    assert (back.changes["excluded_hosts"], back.changes["budget_used"]) == (("worker-7",), {"infra": 1})


def test_nodes_of_unlike_versions_are_refused() -> None:
    """A gang with mixed versions of torch fails with both versions named."""
    nodes = (node(0, formed=0, versions={"torch": "2.13.0"}), node(1, formed=0, versions={"torch": "2.12.0"}))
    [end, failed] = decide(view(job=job(S.STARTING), generations=(), nodes=nodes), NOW)

    assert isinstance(end, EndAttempt)
    assert isinstance(failed, Transition)
    assert (failed.to, "2.12.0, 2.13.0" in failed.message) == (S.FAILED, True)


# --- ends of ranks --------------------------------------------------------------------------------------------------

IN_PLACE = [
    pytest.param(rank_end(-9), "KILLED", id="killed by a signal"),
    pytest.param(rank_end(137), "KILLED", id="killed behind a shell"),
    pytest.param(rank_end(-9, hung=True), "HUNG", id="hung"),
    pytest.param(rank_end(74), "STORAGE", id="storage"),
    pytest.param(rank_end(3), "OTHER", id="any other exit code"),
    pytest.param(rank_end(-1000), "OTHER", id="unknown exit code"),
]


@pytest.mark.parametrize(("end", "cause"), IN_PLACE)
def test_an_infrastructure_end_starts_a_generation_in_place(end: Any, cause: str) -> None:
    """The generation is closed at once, the attempt stays open, and one retry of the infrastructure budget is spent."""
    action = only(decide(view(rank_ends=(end,)), NOW), EndGeneration)

    assert (action.number, action.cause, action.changes["budget_used"]) == (1, cause, {"infra": 1})


@pytest.mark.parametrize("code", [64, 65, 70, 73])
def test_a_user_error_fails_the_job_with_its_first_rank(code: int) -> None:
    """The failure names the first failing rank, its exit code, its step and its last lines."""
    first = rank_end(code, 1, message="boom", log_lines=("a", "b"), time=NOW - 3)
    actions = decide(view(rank_ends=(rank_end(code, 0), first)), NOW)
    [failed] = of(actions, Transition)
    failure = failed.changes["failure"]

    assert (failed.to, failure["rank"], failure["exit_code"], failure["step"]) == (S.FAILED, 1, code, 12)
    assert (failure["log_lines"], failure["attempt"], failure["generation"]) == (["a", "b"], 1, 1)


def test_a_user_error_waits_for_the_other_nodes_but_not_for_ever() -> None:
    """FAILED is final: an earlier end elsewhere may be the true cause, so the other nodes get ten seconds to report."""
    early = view(rank_ends=(rank_end(70, 0, time=NOW),))

    assert decide(early, NOW) == [WakeAt(time=NOW + 10.0)]
    assert moves(decide(early, NOW + 10.0)) == [S.FAILED]
    assert only(decide(replace(early, rank_ends=(rank_end(70, 0, time=NOW), rank_end(-9, 1, time=NOW - 0.1))), NOW), EndGeneration)


def test_a_lost_peer_is_no_cause() -> None:
    """72 from some ranks waits; the cause that follows decides."""
    alone = view(rank_ends=(rank_end(72, 0),))

    assert decide(alone, NOW) == []
    action = only(decide(replace(alone, rank_ends=(rank_end(72, 0), rank_end(-9, 1))), NOW), EndGeneration)

    assert action.cause == "KILLED"


def test_lost_peers_on_every_node_mean_the_network() -> None:
    """72 from every node without another cause: the network, in place."""
    action = only(decide(view(rank_ends=(rank_end(72, 0), rank_end(72, 1))), NOW), EndGeneration)

    assert (action.cause, action.changes["budget_used"]) == ("NETWORK", {"infra": 1})


def test_out_of_memory_halves_the_micro_batch_once() -> None:
    """71 costs the memory budget and halves the micro-batch; the second time the job fails and says what to change."""
    action = only(decide(view(rank_ends=(rank_end(71),), job=job(spec={**SPEC, "training": {"micro_batch_size": 8}})), NOW), EndGeneration)

    assert (action.changes["micro_batch_size"], action.changes["budget_used"]) == (4, {"memory": 1})

    spent = decide(view(rank_ends=(rank_end(71),), job=job(micro_batch_size=4, budget_used={"memory": 1})), NOW)
    assert (ended(spent), moves(spent)) == ("MEMORY", [S.FAILED])
    smallest = decide(view(rank_ends=(rank_end(71),), job=job(micro_batch_size=1)), NOW)
    assert moves(smallest) == [S.FAILED]


def test_a_spent_budget_fails_the_job() -> None:
    """After the last infrastructure retry the same end fails the job and names the budget."""
    actions = decide(view(rank_ends=(rank_end(-9),), job=job(budget_used={"infra": 5})), NOW)
    [failed] = of(actions, Transition)

    assert (failed.to, "faults.infra_retries" in failed.message) == (S.FAILED, True)


def test_the_same_end_at_the_same_step_twice_is_no_accident() -> None:
    """The same (phase, step, rank, cause) twice running fails; another step, or an end before steps, does not."""
    mark = {"phase": 0, "step": 12, "rank": 0, "cause": "KILLED"}

    assert moves(decide(view(rank_ends=(rank_end(-9),), job=job(last_end=mark)), NOW)) == [S.FAILED]
    action = only(decide(view(rank_ends=(rank_end(-9, step=13),), job=job(last_end=mark)), NOW), EndGeneration)

    assert action.changes["last_end"] == {**mark, "step": 13}
    action = only(decide(view(rank_ends=(rank_end(-9, section="setup"),), job=job(last_end=mark)), NOW), EndGeneration)


def test_storage_twice_on_the_same_nodes_means_another_attempt() -> None:
    """The second 74 of an attempt ends it."""
    first = generation(1, end_time=9_700.0, end_cause="STORAGE")
    again = view(generations=(first, generation(2)), rank_ends=(rank_end(74),), job=job(budget_used={"infra": 1}, generation=2))
    actions = decide(again, NOW)

    assert (ended(actions), moves(actions)) == ("STORAGE", [S.QUEUED])


def test_a_generation_after_storage_waits_for_its_back_off() -> None:
    """In place with back-off: 74 is not answered at once, a killed rank is."""
    nodes = (node(0, ready_after=1, ready={"address": "h:1"}), node(1, ready_after=1))
    stored = view(generations=(generation(end_time=NOW, end_cause="STORAGE"),), nodes=nodes, job=job(budget_used={"infra": 1}))

    assert decide(stored, NOW + 1) == [WakeAt(time=NOW + 2.0)]
    assert isinstance(decide(stored, NOW + 2)[0], FormGeneration)
    killed = replace(stored, generations=(generation(end_time=NOW, end_cause="KILLED"),))
    assert isinstance(decide(killed, NOW)[0], FormGeneration)


def test_the_next_generation_waits_until_every_node_was_reaped() -> None:
    """Readiness for an earlier generation does not count; the new one continues the numbers and names its parent."""
    over = view(generations=(generation(end_time=NOW, end_cause="KILLED"),), nodes=(node(0, ready_after=1), node(1, ready_after=0)))

    assert decide(over, NOW) == [WakeAt(time=NOW + 600.0)]
    formed = only(decide(replace(over, nodes=(node(0, ready_after=1), node(1, ready_after=1))), NOW), FormGeneration)
    assert (formed.number, formed.parent) == (2, "a1g1")


def test_a_node_that_does_not_come_back_is_lost() -> None:
    """A gang that had formed and does not form again within T costs an attempt."""
    over = view(generations=(generation(end_time=NOW, end_cause="KILLED"),), nodes=(node(0, ready_after=1), node(1, ready_after=0)))
    actions = decide(over, NOW + 600.0)

    assert (ended(actions), moves(actions)) == ("NODE_LOST", [S.QUEUED])


def test_a_leave_without_directive_ends_the_attempt_without_budget() -> None:
    """75 from a node that had SIGTERM: the attempt ends as EVICTED, another follows, no budget is spent."""
    actions = decide(view(rank_ends=(rank_end(75, 0), rank_end(75, 1))), NOW)
    [back] = of(actions, Transition)

    assert (ended(actions), back.to, "budget_used" in back.changes) == ("EVICTED", S.QUEUED, False)


def test_our_own_kills_are_no_cause() -> None:
    """Ranks that the agent reaped on request decide nothing."""
    assert decide(view(rank_ends=(rank_end(-9, 0, reaped=True), rank_end(-9, 1, reaped=True))), NOW) == []


# --- ends of nodes --------------------------------------------------------------------------------------------------


def test_a_lost_node_costs_an_attempt() -> None:
    """A node that is gone before the plan finished is recorded, and another attempt follows after a back-off."""
    actions = decide(view(observed={0: seen(0), 1: seen(1, "gone", -9, "killed")}), NOW)
    [back] = of(actions, Transition)

    assert actions[0] == RecordGone(index=1, exit_code=-9)
    assert (ended(actions), back.to, back.changes["retry_at"], back.changes["budget_used"]) == (
        "NODE_LOST",
        S.QUEUED,
        NOW + 2.0,
        {"infra": 1},
    )


def test_an_evicted_node_costs_nothing() -> None:
    """A node that left with 75 by itself ends the attempt without budget."""
    actions = decide(view(observed={0: seen(0), 1: seen(1, "gone", 75)}), NOW)

    assert (ended(actions), moves(actions)) == ("EVICTED", [S.QUEUED])


def test_an_agent_that_finds_its_configuration_wrong_fails_the_job() -> None:
    """An agent's own exit with 64 is a user error."""
    actions = decide(view(observed={0: seen(0, "gone", 64, "no such device"), 1: seen(1)}), NOW)

    assert (ended(actions), moves(actions)) == ("CONFIGURATION", [S.FAILED])


def test_loss_of_contact_alone_is_nothing() -> None:
    """A silent node whose peers train is left alone, for ever."""
    assert decide(view(attached=frozenset({0}), heard={0: NOW, 1: 0.0}), NOW + 1e6) == []


def test_silence_while_all_others_lost_their_peer_ends_the_attempt() -> None:
    """After 60 s the group is known to be dead; before, and while the node is attached, nothing happens."""
    quiet = view(rank_ends=(rank_end(72, 0, time=NOW),), attached=frozenset({0}), heard={0: NOW, 1: NOW - 30})

    assert decide(quiet, NOW + 1) == [WakeAt(time=NOW + 60.0)]
    assert ended(decide(quiet, NOW + 60.0)) == "NODE_LOST"
    assert decide(replace(quiet, attached=frozenset({0, 1})), NOW + 60.0) == []


# --- pause ----------------------------------------------------------------------------------------------------------


def pausing(**changes: Any) -> View:
    """A job whose pause was asked for."""
    return view(**{"job": job(S.PAUSING, pause_cause="user"), **changes})


@pytest.mark.parametrize(
    "generations",
    [(), (generation(end_time=1.0),), (generation(phase_started=False),)],
    ids=["no generation", "between generations", "ranks still set up"],
)
def test_a_pause_before_steps_leaves_at_once(generations: tuple[Any, ...]) -> None:
    """Agents without steps to save leave at once, and no generation is formed."""
    actions = decide(pausing(generations=generations), NOW)

    assert (ended(actions), of(actions, FormGeneration)) == ("LEFT", [])


def test_a_pause_waits_for_the_save() -> None:
    """While ranks save nothing happens; when all have left the attempt ends."""
    assert decide(pausing(), NOW) == []
    assert ended(decide(pausing(rank_ends=(rank_end(75, 0), rank_end(75, 1))), NOW)) == "LEFT"


@pytest.mark.parametrize("end", [rank_end(-9), rank_end(-9, hung=True), rank_end(71), rank_end(74)])
def test_a_rank_that_dies_in_a_pause_ends_it_at_the_last_commit(end: Any) -> None:
    """No generation, no budget: the attempt ends and the loss of steps is said."""
    actions = decide(pausing(rank_ends=(end,)), NOW)

    assert (ended(actions), moves(actions)) == ("LEFT", [])
    assert [e.type for e in of(actions, RecordEvent)] == ["PAUSE_LOST_STEPS"]


@pytest.mark.parametrize("code", [64, 65, 70, 73])
def test_a_user_error_in_a_pause_fails_the_job(code: int) -> None:
    """PAUSING goes to FAILED for the user's own errors."""
    assert moves(decide(pausing(rank_ends=(rank_end(code, 0), rank_end(72, 1))), NOW)) == [S.FAILED]


def test_a_failed_save_returns_to_running() -> None:
    """All ranks train on: the job is RUNNING again and says why; where a node had to leave, the ranks' ends decide."""
    failed = pausing(generations=(generation(save_failed="disk full"),))
    actions = decide(failed, NOW)

    assert moves(actions) == [S.RUNNING]
    assert [(e.type, e.clear_save_failed) for e in of(actions, RecordEvent)] == [("PAUSE_FAILED", True)]
    left = replace(failed, rank_ends=(rank_end(75, 0), rank_end(75, 1)))
    assert ended(decide(left, NOW)) == "LEFT"


@pytest.mark.parametrize(
    ("cause", "state", "reason"),
    [("user", S.PAUSED, ""), ("suspended", S.QUEUED, "SUSPENDED"), ("preempted", S.QUEUED, "PREEMPTED")],
)
def test_a_pause_ends_where_its_cause_says(cause: str, state: JobState, reason: str) -> None:
    """PAUSED for a user's pause, QUEUED with the reason otherwise; only when all nodes are gone."""
    left = view(job=job(S.PAUSING, pause_cause=cause), attempt=attempt(end_time=NOW, end_cause="LEFT"))
    gone = replace(left, observed={0: seen(0, "gone", 75), 1: seen(1, "gone", 75)})
    actions = decide(gone, NOW)
    [moved] = of(actions, Transition)

    assert moves(decide(left, NOW)) == []
    assert (moved.to, moved.changes["waiting_reason"]) == (state, reason)
    assert of(actions, CloseAttempt) == [CloseAttempt(number=1)]
    assert of(actions, RemoveLaunch) == [RemoveLaunch(launch="j1-a1")]


# --- cancel, success, stop ------------------------------------------------------------------------------------------


def test_a_cancel_stops_the_nodes_and_ends_cancelled() -> None:
    """CANCELLING ends the attempt; CANCELLED follows when all nodes are gone, also over an accepted plan."""
    asked = view(job=job(S.CANCELLING))
    gone = view(
        job=job(S.CANCELLING, plan_finished=True),
        attempt=attempt(end_time=NOW, end_cause="CANCELLED"),
        observed={0: seen(0, "gone", 0), 1: seen(1, "gone", 75)},
    )

    assert ended(decide(asked, NOW)) == "CANCELLED"
    assert moves(decide(gone, NOW)) == [S.CANCELLED]


def test_an_accepted_plan_is_success_once_all_nodes_are_gone() -> None:
    """R4: after PlanFinished no end of any node is a cause."""
    finished = job(plan_finished=True)
    dead = {0: seen(0, "gone", -9), 1: seen(1)}
    first = decide(view(job=finished, observed=dead, rank_ends=(rank_end(70),)), NOW)
    last = view(job=finished, attempt=attempt(end_time=NOW, end_cause="FINISHED"), observed={0: seen(0, "gone", -9), 1: seen(1, "gone", 0)})

    assert (ended(first), moves(first)) == ("FINISHED", [])
    assert moves(decide(last, NOW)) == [S.SUCCEEDED]


def test_a_plan_that_replays_to_its_end_runs_through_running() -> None:
    """PlanFinished in STARTING makes the job RUNNING first."""
    assert moves(decide(view(job=job(S.STARTING, plan_finished=True)), NOW)) == [S.RUNNING]


def test_a_finished_plan_wins_over_a_pause() -> None:
    """PAUSING with an accepted plan succeeds."""
    last = view(
        job=job(S.PAUSING, plan_finished=True, pause_cause="user"),
        attempt=attempt(end_time=NOW, end_cause="FINISHED"),
        observed={0: seen(0, "gone", 0), 1: seen(1, "gone", 0)},
    )

    assert moves(decide(last, NOW)) == [S.SUCCEEDED]


def test_a_node_that_does_not_obey_is_stopped() -> None:
    """Attached nodes get the grace for their directive; nodes that nobody can reach are stopped at once."""
    over = view(job=job(S.FAILED), attempt=attempt(end_time=NOW, end_cause="METHOD"))
    stop = StopNodes(launch="j1-a1", grace_seconds=15.0)

    assert decide(over, NOW + 1) == [WakeAt(time=NOW + 15.0)]
    assert decide(over, NOW + 15.0) == [stop]
    assert decide(replace(over, attached=frozenset()), NOW + 1) == [stop]


def test_nodes_of_a_closed_attempt_are_removed() -> None:
    """What the executor still has of older attempts is stopped, and forgotten when gone."""
    closed = view(job=job(S.PAUSED), attempt=attempt(end_time=1.0, close_time=2.0), leftovers={"j1-a1": True, "j1-a0": False})

    assert decide(closed, NOW) == [StopNodes(launch="j1-a1", grace_seconds=15.0), RemoveLaunch(launch="j1-a0")]


def test_an_attempt_that_was_never_launched_closes_without_nodes() -> None:
    """A pause that comes before the launch leaves nothing behind."""
    never = view(
        job=job(S.PAUSING, pause_cause="user"), attempt=attempt(launch_time=None, end_time=NOW), observed={}, generations=(), nodes=()
    )

    assert moves(decide(never, NOW)) == [S.PAUSED]


# --- the queue's own ends -------------------------------------------------------------------------------------------


def test_a_broken_dependency_fails_a_waiting_job() -> None:
    """A needed job that failed, was cancelled or deleted fails this one with cause DEPENDENCY."""
    failed = only(decide(View(job=job(S.QUEUED, attempt=0), broken_dependency="the job base failed"), NOW), Transition)

    assert (failed.to, failed.changes["failure"]) == (S.FAILED, {"cause": "END_CAUSE_DEPENDENCY", "message": "the job base failed"})


def test_the_deadline_ends_a_job_but_not_in_a_pause() -> None:
    """Wall time since creation without time spent PAUSED; QUEUED, STARTING and RUNNING fail, PAUSING and PAUSED do not."""
    spec = {**SPEC, "scheduling": {"deadline": 100.0}}
    waiting = View(job=job(S.QUEUED, attempt=0, spec=spec, create_time=NOW - 150, paused_seconds=60.0))

    assert decide(waiting, NOW) == [WakeAt(time=NOW + 10.0)]
    assert moves(decide(waiting, NOW + 10.0)) == [S.FAILED]
    late = view(job=job(spec=spec, create_time=NOW - 200))
    assert (ended(decide(late, NOW)), moves(decide(late, NOW))) == ("DEADLINE", [S.FAILED])
    assert decide(replace(late, job=job(S.PAUSING, spec=spec, create_time=0.0)), NOW) == []
    assert decide(View(job=job(S.PAUSED, attempt=0, spec=spec, create_time=0.0)), NOW) == []


def test_a_waiting_job_wakes_for_its_retry() -> None:
    """The back-off of a requeued job is a timer."""
    assert decide(View(job=job(S.QUEUED, attempt=0, retry_at=NOW + 7)), NOW) == [WakeAt(time=NOW + 7)]


# --- whatever happens -----------------------------------------------------------------------------------------------

CODES = [0, 3, 64, 65, 70, 71, 72, 73, 74, 75, 76, -9, -15, 137, -1000]


@st.composite
def views(draw: st.DrawFn) -> View:
    """Any job with any attempt, generations, rank ends and observations, consistent or not."""
    number = 1
    state = draw(st.sampled_from(list(S)))
    plan_finished = draw(st.booleans())
    has_attempt = draw(st.booleans()) or state in (S.STARTING, S.RUNNING, S.PAUSING, S.CANCELLING)
    times = st.sampled_from([None, 9_400.0, NOW - 1])
    record = job(
        state,
        attempt=number if has_attempt else 0,
        plan_finished=plan_finished,
        pause_cause=draw(st.sampled_from(["", "user", "suspended", "preempted"])),
        budget_used={"infra": draw(st.integers(0, 6)), "memory": draw(st.integers(0, 2))},
        retry_at=draw(times),
        micro_batch_size=draw(st.integers(0, 3)),
        last_end=draw(st.sampled_from([None, {"phase": 0, "step": 12, "rank": 0, "cause": "KILLED"}])),
        spec={**SPEC, "scheduling": {"deadline": draw(st.sampled_from([None, 1.0, 1e6]))}},
    )
    if not has_attempt:
        return View(job=record, broken_dependency=draw(st.sampled_from(["", "gone"])), leftovers={"j1-a0": draw(st.booleans())})
    end_time, close_time = draw(times), None
    if end_time is not None:
        close_time = draw(times)
    count = draw(st.integers(0, 3))
    generations = tuple(
        generation(
            n + 1,
            end_time=draw(times) if n == count - 1 else 9_600.0,
            end_cause=draw(st.sampled_from(["KILLED", "STORAGE"])),
            phase_started=draw(st.booleans()),
            save_failed=draw(st.sampled_from(["", "disk full"])),
        )
        for n in range(count)
    )
    preflight: list[dict[str, Any]] = [{}, {"passed": True}, {"passed": False, "user_error": True, "code": 65}, {"passed": False}]
    nodes: tuple[NodeRecord, ...] = tuple(
        node(
            i,
            state=draw(st.sampled_from(["pending", "attached", "ready", "running", "gone"])),
            ready_after=draw(st.integers(-1, count)),
            formed=draw(st.integers(0, count)),
            left=draw(st.booleans()),
            finished=draw(st.booleans()),
            preflight=draw(st.sampled_from(preflight)),
        )
        for i in range(2)
    )
    ends = tuple(
        rank_end(draw(st.sampled_from(CODES)), r, hung=draw(st.booleans()), reaped=draw(st.booleans()), time=NOW - draw(st.integers(0, 99)))
        for r in range(draw(st.integers(0, 2)))
    )
    observed: dict[int, NodeObservation] = {}
    for i in range(2):
        if draw(st.booleans()):
            observed[i] = seen(i, draw(st.sampled_from(["running", "gone"])), draw(st.sampled_from([None, *CODES])))
    return view(
        job=record,
        attempt=attempt(end_time=end_time, close_time=close_time, launch_time=draw(times), end_cause="FINISHED" if plan_finished else ""),
        generations=generations,
        nodes=nodes,
        rank_ends=ends if generations else (),
        observed=observed,
        attached=frozenset(draw(st.sets(st.integers(0, 1)))),
        heard={},
        started_at=draw(st.sampled_from([0.0, NOW])),
        timers=Timers(),
    )


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(views())
def test_every_decision_is_legal_and_consistent(seen_view: View) -> None:
    """Transitions follow the table one after the other, an attempt ends once, and nothing forms where nothing may."""
    actions = decide(seen_view, NOW)
    state = seen_view.job.state
    for move in moves(actions):
        assert is_legal(state, move), f"{state} -> {move}: {actions}"
        state = move
    attempt_record = seen_view.attempt
    assert len(of(actions, EndAttempt)) <= 1
    if attempt_record is None or attempt_record.end_time is not None:
        assert of(actions, EndAttempt) + of(actions, EndGeneration) + of(actions, FormGeneration) + of(actions, LaunchNodes) == []
    if seen_view.job.state not in (S.STARTING, S.RUNNING) or seen_view.job.plan_finished:
        assert of(actions, FormGeneration) + of(actions, EndGeneration) + of(actions, LaunchNodes) == []
    if S.FAILED in moves(actions):
        assert not of(actions, FormGeneration)
    for close in of(actions, CloseAttempt):
        assert close.number == 1
        assert seen_view.all_gone()
    for wake in of(actions, WakeAt):
        assert wake.time > NOW


@settings(max_examples=EXAMPLES // 4, deadline=None, print_blob=True)
@given(views())
def test_a_decision_depends_on_nothing_but_its_arguments(seen_view: View) -> None:
    """The same view at the same time gives the same actions."""
    assert decide(seen_view, NOW) == decide(seen_view, NOW)
