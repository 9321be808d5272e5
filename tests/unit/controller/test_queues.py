"""Order and admission: gang, priority, fair share, reserve, reasons and estimates."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.controller.queues import Decision, Demand, Held, Slots, admit, choose_device

EXAMPLES = int(os.environ.get("LUTHIER_QUEUE_EXAMPLES", "200"))
NOW = 1_000.0
EIGHT = {"default": Slots(cpu=8)}


def demand(uid: str, nodes: int = 1, **changes: Any) -> Demand:
    """A job that needs `nodes` nodes of one CPU rank each."""
    values: dict[str, Any] = {"tenant": "a", "since": 0.0, "priority": 0, "min_nodes": nodes, "max_nodes": nodes, **changes}
    return Demand(uid=uid, queue="default", processes=values.pop("processes", 1), **values)


def held(uid: str, cpu: int, *, tenant: str = "z", end: float | None = None) -> Held:
    """Slots of a running job."""
    return Held(uid, tenant, "default", Slots(cpu=cpu), end)


def started(decision: Decision) -> list[str]:
    """Jobs that start now, in order."""
    return [a.uid for a in decision.admitted]


def test_a_gang_starts_whole_or_not_at_all() -> None:
    """Three nodes of two ranks need six slots: five are not enough."""
    gang = demand("gang", 3, processes=2)

    assert started(admit([gang], [held("r", 3)], EIGHT, NOW)) == []
    [admission] = admit([gang], [held("r", 2)], EIGHT, NOW).admitted
    assert (admission.num_nodes, admission.slots, admission.device) == (3, Slots(cpu=6), "cpu")


def test_a_range_takes_the_most_nodes_that_fit() -> None:
    """A job of 2 to 6 nodes starts with the five that are free."""
    [admission] = admit([demand("j", min_nodes=2, max_nodes=6)], [held("r", 3)], EIGHT, NOW).admitted

    assert admission.num_nodes == 5


def test_a_job_that_can_never_fit_says_what_it_needs() -> None:
    """More ranks than slots: it waits, says needs and has, and blocks nobody."""
    decision = admit([demand("huge", 9), demand("small", since=1.0)], [], EIGHT, NOW)

    assert started(decision) == ["small"]
    assert decision.waiting["huge"].reason == "CAPACITY"
    assert decision.waiting["huge"].message.startswith("needs 9 CPU slots, the queue has 8 CPU slots: ask for fewer nodes")
    assert decision.waiting["huge"].position == 0


def test_priority_comes_before_age() -> None:
    """A younger job of higher priority starts first."""
    decision = admit([demand("old", 8, since=0.0), demand("urgent", 8, since=5.0, priority=7)], [], EIGHT, NOW)

    assert started(decision) == ["urgent"]
    assert decision.waiting["old"].position == 1


def test_small_jobs_do_not_starve_a_large_one() -> None:
    """Once the first in order does not fit, what it waits for is reserved; positions tell the order."""
    waiting = [demand("large", 8, since=0.0), demand("small", 1, since=1.0), demand("low", 1, since=0.5, priority=-1)]
    decision = admit(waiting, [held("r", 2)], EIGHT, NOW)

    assert started(decision) == []
    assert [(uid, decision.waiting[uid].position) for uid in ("large", "small", "low")] == [("large", 1), ("small", 2), ("low", 3)]


def test_a_reserve_holds_only_its_own_kind_of_slot() -> None:
    """A job that waits for accelerators does not keep CPU jobs from starting."""
    capacity = {"default": Slots(cpu=8, accelerators=4)}
    waiting = [demand("gpu", 4, accelerator="cuda"), demand("cpu", 8, since=1.0, accelerator="cpu")]
    decision = admit(waiting, [Held("r", "z", "default", Slots(accelerators=1))], capacity, NOW)

    assert started(decision) == ["cpu"]


def test_tenants_share_fairly() -> None:
    """Of equal priority the tenant with the smaller share is next, whoever came first."""
    waiting = [demand(f"a{i}", 2, tenant="a", since=float(i)) for i in range(4)]
    waiting += [demand(f"b{i}", 2, tenant="b", since=100.0 + i) for i in range(2)]

    assert started(admit(waiting, [], EIGHT, NOW)) == ["a0", "b0", "a1", "b1"]
    assert started(admit(waiting, [held("r", 4, tenant="a")], EIGHT, NOW)) == ["b0", "b1"]


def test_back_off_and_dependencies_wait_outside_of_the_order() -> None:
    """A job in back-off or with an unmet dependency holds nobody up; the earliest back-off is the next wake-up."""
    waiting = [
        demand("retry", 8, retry_at=NOW + 30, blocked_message="node 1 went away"),
        demand("dependent", 8, blocked="DEPENDENCY", blocked_message="waits for base"),
        demand("ready", 8, since=9.0),
    ]
    decision = admit(waiting, [], EIGHT, NOW)

    assert started(decision) == ["ready"]
    assert decision.wake_at == NOW + 30
    assert (decision.waiting["retry"].reason, decision.waiting["retry"].retry_at) == ("RETRYING", NOW + 30)
    assert (decision.waiting["dependent"].reason, decision.waiting["dependent"].message) == ("DEPENDENCY", "waits for base")
    assert started(admit([replace(waiting[0], retry_at=NOW)], [], EIGHT, NOW)) == ["retry"]


def test_an_estimate_follows_from_what_runs() -> None:
    """The first starts when enough running jobs end; behind a job of unknown length nothing is known."""
    running = [held("r1", 4, end=NOW + 60), held("r2", 4, end=NOW + 20)]
    decision = admit([demand("first", 4, since=0.0), demand("second", 4, since=1.0), demand("third", 4, since=2.0)], running, EIGHT, NOW)

    assert [decision.waiting[u].estimated_start for u in ("first", "second", "third")] == [NOW + 20, NOW + 60, None]
    unknown = admit([demand("first", 8)], [held("r1", 4, end=NOW + 60), held("r2", 4)], EIGHT, NOW)
    assert unknown.waiting["first"].estimated_start is None


def test_an_unknown_queue_waits_with_the_names() -> None:
    """A job in a queue that no longer exists says which exist."""
    decision = admit([replace(demand("j"), queue="night")], [], EIGHT, NOW)

    assert decision.waiting["j"].message == "there is no queue 'night'; this controller has default"


@pytest.mark.parametrize(
    ("accelerator", "gpus", "device", "says"),
    [
        ("auto", 2, "cuda", ""),
        ("auto", 1, "cpu", "2 ranks and 1 accelerators: training on CPU with gloo"),
        ("auto", 0, "cpu", "no accelerator on this machine: training on CPU with gloo"),
        ("cpu", 2, "cpu", ""),
        ("cuda", 0, "cuda", ""),
    ],
)
def test_the_device_follows_from_what_the_queue_has(accelerator: Any, gpus: int, device: str, says: str) -> None:
    """Auto takes GPUs where there are enough in total, else CPUs, and says so."""
    assert choose_device(demand("j", 2, accelerator=accelerator), 2, Slots(cpu=8, accelerators=gpus)) == (device, says)


# --- whatever waits -------------------------------------------------------------------------------------------------

demands = st.lists(
    st.builds(
        Demand,
        uid=st.uuids().map(str),
        tenant=st.sampled_from("abc"),
        queue=st.just("default"),
        priority=st.integers(-1, 1),
        since=st.floats(0, 100),
        min_nodes=st.integers(1, 3),
        max_nodes=st.integers(3, 6),
        processes=st.integers(1, 3),
        accelerator=st.sampled_from(["auto", "cpu", "cuda"]),
        retry_at=st.sampled_from([None, 0.0, NOW + 1]),
    ),
    max_size=12,
    unique_by=lambda d: d.uid,
)
helds = st.lists(
    st.builds(
        lambda tenant, cpu, gpu: Held("r", tenant, "default", Slots(cpu, gpu)), st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 1)
    ),
    max_size=3,
)


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(demands, helds)
def test_admission_never_exceeds_what_is_free(waiting: list[Demand], running: list[Held]) -> None:
    """Everybody is admitted or told why; gangs are whole and within their range; no slot is given twice."""
    capacity = Slots(cpu=10, accelerators=4)
    decision = admit(waiting, running, {"default": capacity}, NOW)
    used = sum((h.slots for h in running), Slots()) + sum((a.slots for a in decision.admitted), Slots())
    by_uid = {d.uid: d for d in waiting}

    assert set(started(decision)) | set(decision.waiting) == set(by_uid)
    assert not set(started(decision)) & set(decision.waiting)
    assert decision.admitted == () or capacity.holds(used)
    for admission in decision.admitted:
        wanted = by_uid[admission.uid]
        assert wanted.min_nodes <= admission.num_nodes <= wanted.max_nodes
        assert admission.slots.cpu + admission.slots.accelerators == admission.num_nodes * wanted.processes
    positions = sorted(w.position for w in decision.waiting.values() if w.position)
    assert positions == list(range(1, len(positions) + 1))


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(demands, helds)
def test_nobody_overtakes_who_waits_for_the_same_slots(waiting: list[Demand], running: list[Held]) -> None:
    """A job that starts never has a lower priority than one that could run and waits for the same kind of slot."""
    capacity = Slots(cpu=10, accelerators=4)
    decision = admit(waiting, running, {"default": capacity}, NOW)
    by_uid = {d.uid: d for d in waiting}
    for admission in decision.admitted:
        for uid, wait in decision.waiting.items():
            if not wait.position:
                continue
            device = choose_device(by_uid[uid], by_uid[uid].min_nodes, capacity)[0]
            if device == admission.device:
                assert by_uid[admission.uid].priority >= by_uid[uid].priority


@settings(max_examples=EXAMPLES // 4, deadline=None, print_blob=True)
@given(demands)
def test_every_job_that_fits_runs_in_the_end(waiting: list[Demand]) -> None:
    """When whatever started ends again, every job that fits at all gets its turn: nobody starves."""
    capacity = Slots(cpu=10, accelerators=4)
    left = {d.uid: replace(d, retry_at=None) for d in waiting}
    decision = admit(left.values(), [], {"default": capacity}, NOW)
    for _ in waiting:
        for uid in started(decision):
            del left[uid]
        decision = admit(left.values(), [], {"default": capacity}, NOW)

    for uid in left:
        assert decision.waiting[uid].position == 0, "only a job that can never fit is left"
