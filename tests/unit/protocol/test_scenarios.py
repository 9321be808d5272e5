"""The scenarios that protocol.md lists, one by one and at their exact moments, in the same world as the generated schedules."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from tests.unit.protocol.test_model import run, settled, strike
from tests.unit.protocol.world import Machine, World

from luthier.controller.store.records import JobState
from luthier.v1 import node_service_pb2 as pb

pytestmark = pytest.mark.chaos


async def submitted(world: World, state: JobState = JobState.RUNNING) -> None:
    """One job of two nodes, in this state."""
    await world.create("tune", "j1")
    await reached(world, state)


async def reached(world: World, *states: JobState, seconds: float = 900.0) -> None:
    await world.until(lambda: world.states().get("tune") in states, seconds, " or ".join(states))


async def saved(world: World, count: int = 1) -> None:
    """So many checkpoints lie in the store."""
    await world.until(lambda: len(world.job_store("j1").checkpoints) >= count, 120, "a checkpoint")


def machine(world: World, index: int) -> Machine:
    """The running node of this index."""
    return next(m for m in world.running() if m.launch.node == index)


def used(world: World) -> int:
    """Infrastructure retries that were charged."""
    return int(world.monitor.jobs()["tune"].budget_used.get("infra", 0))


def has(world: World, text: str) -> bool:
    """Whether the trace has it."""
    return any(text in line for line in world.trace)


POINTS = range(0, 26, 1 if os.environ.get("LUTHIER_FULL_COUNTS") else 3)


@pytest.mark.parametrize("points", POINTS)
def test_the_controller_dies_at_every_commit_and_launch(empty: Path, points: int) -> None:
    """Dead before its n-th commit or launch, it is replaced; nothing is lost and nothing is charged."""

    async def script(world: World) -> None:
        controller = world.controller
        assert controller is not None
        controller.die_after = points

        async def replace() -> None:
            await world.until(lambda: controller.dead, 300, "its death")
            await asyncio.sleep(3.0)
            await world.start_controller()

        replacing = asyncio.ensure_future(replace())
        await world.create("tune", "j1")
        await settled(world, set())
        controller.die_after = None
        replacing.cancel()
        assert world.monitor.formed == 1
        assert used(world) == 0

    run(empty, script)


def test_both_agents_report_the_same_death(empty: Path) -> None:
    """Two ranks that die of one cause close the generation once and cost one retry."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        world.monitor.infra_faults = 1
        for node in (0, 1):
            machine(world, node).ranks[-1].leave(74, "the store went away")
        await settled(world, {"rank"})
        assert world.monitor.formed == 2
        assert used(world) == 1

    run(empty, script)


def test_a_stream_that_breaks_between_a_directive_and_its_fact_gets_it_again(empty: Path) -> None:
    """The directive follows from the stored state after every Hello until it was obeyed."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        await world.verb("pause", "tune")
        for _ in range(6):
            for call in list(world.calls):
                call.cut(1.0)
            await asyncio.sleep(0.3)
        await reached(world, JobState.PAUSED)
        assert used(world) == 0
        await world.verb("resume", "tune")
        await settled(world, {"pause"})
        assert used(world) == 0

    run(empty, script)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_rank_that_dies_while_the_controller_is_away_is_answered_when_it_is_back(empty: Path, blocking: bool) -> None:
    """Training stands until then; one retry is charged, and the job goes on in place from its last commit."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        assert world.controller is not None
        world.controller.die()
        world.monitor.infra_faults = 1
        machine(world, 1).ranks[-1]._sim.end(-9)
        await asyncio.sleep(120.0)
        await world.start_controller()
        await settled(world, {"rank"})
        job = world.job("tune")
        assert job is not None
        assert (job.attempt, used(world)) == (1, 1)

    run(empty, script, blocking=blocking)


def test_nodes_train_on_and_finish_while_the_controller_is_away(empty: Path) -> None:
    """Everything that happened is reported to the next controller, and the job succeeds without a second generation."""

    async def script(world: World) -> None:
        await submitted(world)
        assert world.controller is not None
        world.controller.die()
        await asyncio.sleep(300.0)
        assert world.job_store("j1").finished
        await world.start_controller()
        await settled(world, set())
        assert world.monitor.formed == 1

    run(empty, script)


@pytest.mark.parametrize("wait", [0.0, 0.3, 1.0, 3.5])
def test_a_pause_while_the_gang_forms_leaves_at_once(empty: Path, wait: float) -> None:
    """No generation is formed any more, the nodes go, and a resume starts another attempt."""

    async def script(world: World) -> None:
        await world.create("tune", "j1")
        await reached(world, JobState.STARTING)
        await asyncio.sleep(wait)
        await world.verb("pause", "tune")
        await reached(world, JobState.PAUSED, seconds=90)
        await world.verb("resume", "tune")
        await settled(world, {"pause"})
        assert used(world) == 0

    run(empty, script)


def test_a_pause_inside_a_generate_phase_keeps_the_journal(empty: Path) -> None:
    """The phase before is not done again."""

    async def script(world: World) -> None:
        await submitted(world)
        await world.until(lambda: has(world, "phase 1 (generate) started"), 120, "the generate phase")
        await world.verb("pause", "tune")
        await reached(world, JobState.PAUSED)
        await world.verb("resume", "tune")
        await settled(world, {"pause"})
        assert sum("phase 0 (train) started" in line for line in world.trace) == 1
        assert used(world) == 0

    run(empty, script)


def test_a_pause_whose_save_fails_is_taken_back_and_a_later_one_resumes_at_another_size(empty: Path) -> None:
    """PAUSE_FAILED, training goes on; once there is room the pause holds, and the job carries on with one node."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        world.job_store("j1").full_until = world.loop.time() + 10_000
        await world.verb("pause", "tune")
        await reached(world, JobState.RUNNING, seconds=60)
        assert has(world, "PAUSE_FAILED")
        world.job_store("j1").full_until = -1.0
        await world.verb("pause", "tune")
        await reached(world, JobState.PAUSED)
        await world.verb("resume", "tune", 1)
        await settled(world, {"pause"})
        job = world.job("tune")
        assert job is not None
        assert (job.num_nodes, used(world)) == (1, 0)

    run(empty, script)


def test_cancel_wins_over_pause(empty: Path) -> None:
    """A cancel in PAUSING ends in CANCELLED; RetryJob carries on from the kept checkpoints."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        await world.verb("pause", "tune")
        await world.verb("cancel", "tune")
        await reached(world, JobState.CANCELLED)
        await world.verb("retry", "tune")
        await settled(world, {"cancel"})
        assert world.states() == {"tune": JobState.SUCCEEDED}
        assert used(world) == 0

    run(empty, script)


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_evicted_twice_running_costs_no_budget_and_no_step(empty: Path, node: int) -> None:
    """The other node has no SIGTERM and saves and leaves with it; the next attempt starts from that save."""

    async def script(world: World) -> None:
        await submitted(world)
        for _ in (1, 2):
            await reached(world, JobState.RUNNING)
            before = len(world.job_store("j1").checkpoints)
            await asyncio.sleep(5.0)
            await strike(world, "eviction", node)
            await world.until(lambda before=before: len(world.job_store("j1").checkpoints) > before, 60, "its save")
            await reached(world, JobState.QUEUED, JobState.STARTING)
        await settled(world, set())
        assert used(world) == 0

    run(empty, script)


def test_a_suspended_controller_carries_on(empty: Path) -> None:
    """Ctrl-C saves and leaves; the next controller goes on from there, also when the first one died in between."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        await strike(world, "suspend", 1)
        await settled(world, set())
        assert used(world) == 0

    run(empty, script)


def test_a_report_whose_acknowledgement_is_lost_with_its_node_is_a_success(empty: Path) -> None:
    """Once accepted, no end of any node is a cause any more."""

    async def script(world: World) -> None:
        await submitted(world)
        await world.until(lambda: has(world, "PLAN_FINISHED"), 300, "the report")
        for found in world.running():
            found.die(-9)
        await settled(world, set())
        assert world.states() == {"tune": JobState.SUCCEEDED}

    run(empty, script)


def test_a_report_that_never_arrived_is_made_again(empty: Path) -> None:
    """Success is a report: a node that dies before it was stored is a lost node, and the journal replays to the end."""

    async def script(world: World) -> None:
        await submitted(world)
        await world.until(lambda: bool(world.job_store("j1").journal.get("journal/1.a1g1")), 300, "the second phase")
        assert world.controller is not None
        world.controller.die()
        await world.until(lambda: bool(world.job_store("j1").finished), 300, "the end of the plan")
        world.monitor.infra_faults = 2
        for found in world.running():
            found.die(-9)
        await world.start_controller()
        await settled(world, {"agent"})
        assert world.states() == {"tune": JobState.SUCCEEDED}
        assert sum("phase 0 (train) started" in line for line in world.trace) == 1

    run(empty, script)


def test_a_lost_machine_whose_pod_never_goes_is_fenced_when_it_speaks_again(empty: Path) -> None:
    """The job goes on elsewhere; the zombie's checkpoints are never read, and it leaves with 76."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        zombie = machine(world, 1)
        await strike(world, "machine lost", 1)
        await settled(world, {"machine"})
        await world.until(lambda: zombie.dead, 1000, "the zombie's end")
        assert zombie.exit_code == 76

    run(empty, script)


def test_an_older_controller_that_was_paused_changes_nothing(empty: Path) -> None:
    """Two controllers: the older one wakes after a minute, cannot write, and goes."""

    async def script(world: World) -> None:
        await submitted(world)
        old = world.controller
        assert old is not None
        await strike(world, "controller hands over", 0)
        await settled(world, set())
        await world.until(lambda: old.dead, 200, "the end of the older controller")
        assert used(world) == 0
        assert world.monitor.formed == 1

    run(empty, script)


def test_a_new_incarnation_joins_no_generation_that_the_old_one_was_in(empty: Path) -> None:
    """Even when the old ranks' ends were reported before, while the other node has not spoken: Formed is not sent again."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        world.monitor.infra_faults = 3
        other, node = machine(world, 0), machine(world, 1)
        other.cut_until = world.loop.time() + 30.0
        for call in [c for c in world.calls if c._machine is other]:
            call.cut(0.0)
        await asyncio.sleep(0.1)
        node.ranks[-1].leave(72, "lost its peers")
        await world.until(lambda: has(world, "rank 1 ended: lost its peers"), 20, "the report")
        world.restart_node(node, zombie=False)
        await asyncio.sleep(20.0)
        await settled(world, {"node restarts"})

    run(empty, script)


def test_a_node_that_has_finished_and_gone_does_not_delay_a_new_attempt(empty: Path) -> None:
    """Node 0 starts again before its report came: its peer, gone with 0, cannot come back, and nobody waits ten minutes for it."""

    async def script(world: World) -> None:
        await submitted(world)
        await world.until(lambda: bool(world.job_store("j1").journal.get("journal/1.a1g1")), 300, "the second phase")
        first, peer = machine(world, 0), machine(world, 1)
        first.cut_until = world.loop.time() + 60.0
        for call in [c for c in world.calls if c._machine is first]:
            call.cut(0.0)
        await world.until(lambda: peer.dead, 60, "the peer's end")
        assert peer.exit_code == 0
        world.monitor.infra_faults = 2
        world.restart_node(first, zombie=False)
        began = world.loop.time()
        await settled(world, {"node restarts"})
        assert world.states() == {"tune": JobState.SUCCEEDED}
        assert world.loop.time() - began < 120.0

    run(empty, script)


def test_a_broken_checkpoint_is_left_for_the_next_older_one(empty: Path) -> None:
    """All ranks fall back together, and what the new generation writes is on the chain."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world, 2)
        newest: Any = list(world.job_store("j1").checkpoints.values())[-1]
        newest.broken = True
        world.monitor.infra_faults = 1
        machine(world, 1).ranks[-1]._sim.end(-9)
        await settled(world, {"rank"})
        assert has(world, "CHECKPOINT_REJECTED")
        assert world.states() == {"tune": JobState.SUCCEEDED}

    run(empty, script)


def test_the_monitor_sees_a_formed_message_that_must_not_be(empty: Path) -> None:
    """The checks themselves are alive."""

    async def script(world: World) -> None:
        await submitted(world)
        await world.verb("pause", "tune")
        world.monitor.sent(("j1", 1, 0), "x", pb.AttachResponse(formed=pb.Formed()))

    with pytest.raises(AssertionError, match="Formed was sent to x while the job is PAUSING"):
        run(empty, script)


def test_a_fact_that_arrives_after_its_generation_was_closed_changes_nothing(empty: Path) -> None:
    """A node that was cut off reports checkpoints, ends and readiness of the old generation when the next one is already due."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        world.monitor.infra_faults = 1
        first = machine(world, 0)
        first.cut_until = world.loop.time() + 45.0
        for call in [c for c in world.calls if c._machine is first]:
            call.cut(10.0)
        machine(world, 1).ranks[-1]._sim.end(-9)
        await settled(world, {"rank"})
        assert (world.monitor.formed, used(world)) == (2, 1)

    run(empty, script)


def test_a_gang_that_does_not_come_together_gives_its_slots_back(empty: Path) -> None:
    """After the gang's time the job waits for capacity again, no budget is charged, and it is tried again."""

    async def script(world: World) -> None:
        await world.create("tune", "j1")
        await world.until(lambda: len(world.running()) == 2, 10, "the launch")
        second = machine(world, 1)
        second.cut_until = world.loop.time() + 650.0
        await settled(world, set())
        assert has(world, "the slots were released")
        assert used(world) == 0

    run(empty, script)


def test_a_node_that_fails_its_checks_ends_only_its_attempt(empty: Path) -> None:
    """One retry is charged and another attempt succeeds."""

    async def script(world: World) -> None:
        world.monitor.infra_faults = 1
        world.bad_nodes["j1", 1] = True
        await world.create("tune", "j1")
        await settled(world, {"bad node"})
        assert world.states() == {"tune": JobState.SUCCEEDED}
        assert used(world) == 1

    run(empty, script)


def test_the_same_death_at_the_same_step_twice_running_ends_the_job(empty: Path) -> None:
    """It is no accident; a retry by the user starts with fresh budgets."""

    async def script(world: World) -> None:
        await submitted(world)
        world.monitor.infra_faults = 2
        for generation in (1, 2):
            await world.until(lambda generation=generation: world.monitor.formed == generation, 120, "the generation")
            await world.until(lambda: any(r.step == 2 and r.running for r in machine(world, 1).ranks), 60, "step 2")
            machine(world, 1).ranks[-1]._sim.end(-9)
        await reached(world, JobState.FAILED)
        assert has(world, "the same end at the same step twice running")
        await world.verb("retry", "tune")
        await settled(world, {"rank"})
        assert world.states() == {"tune": JobState.SUCCEEDED}
        assert used(world) == 0

    run(empty, script)


def test_a_lost_peer_alone_is_never_a_cause(empty: Path) -> None:
    """72 from one node waits for the true cause of the other, which is the one that is told."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        world.monitor.infra_faults = 1
        first = machine(world, 0)
        first.cut_until = world.loop.time() + 8.0
        for call in [c for c in world.calls if c._machine is first]:
            call.cut(0.0)
        first.ranks[-1]._sim.end(-9)
        await settled(world, {"rank"})
        ends = [g.end_cause for g in world.monitor.generations("j1")]
        assert ends == ["KILLED", "FINISHED"]

    run(empty, script)


def test_a_job_whose_dependency_is_deleted_while_it_waits_fails_at_once(empty: Path) -> None:
    """DEPENDENCY with its reason; no node is ever started for it."""

    async def script(world: World) -> None:
        await submitted(world)
        await world.create("after", "j2", ({"job": "jobs/tune", "uid": "j1", "artifact": "result"},))
        await asyncio.sleep(5.0)
        assert world.states()["after"] == JobState.QUEUED
        await world.verb("cancel", "tune")
        await world.until(lambda: world.ended("tune") and not world.launches, 120, "the end")
        await world.verb("delete", "tune")
        await world.until(lambda: world.ended("after"), 60, "its end")
        assert world.states() == {"after": JobState.FAILED}
        assert not any(m.launch.job_uid == "j2" for m in world.machines)

    run(empty, script)


def test_what_an_old_incarnation_saved_after_the_chain_left_it_is_never_read(empty: Path) -> None:
    """It trains on alone and saves farther than the new generation has come when that one dies: the next starts from the chain."""

    async def script(world: World) -> None:
        await submitted(world)
        await saved(world)
        world.monitor.infra_faults = 2
        world.restart_node(machine(world, 0), zombie=True)
        await world.until(lambda: world.monitor.formed == 2, 60, "the second generation")
        await world.until(lambda: "journal/0.a1g1" in world.job_store("j1").journal, 60, "what the old one saves")
        for rank in machine(world, 0).ranks:
            rank._sim.end(-9)
        await world.until(lambda: world.monitor.formed == 3, 120, "the third generation")
        assert (world.monitor.generations("j1")[-1].journal_head or {}).get("path") != "journal/0.a1g1"
        await settled(world, {"node restarts", "rank"})

    run(empty, script, nodes=1)
