"""The protocol as a whole, under faults at any time: the machines of production in virtual time, looked at after every commit.

`LUTHIER_FULL_COUNTS=1` runs thousands of schedules instead of a few.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.unit.protocol.virtual import VirtualLoop
from tests.unit.protocol.world import World

from luthier.controller.store.records import JobState

pytestmark = pytest.mark.chaos

Script = Callable[[World], Awaitable[None]]
EXAMPLES = 3000 if os.environ.get("LUTHIER_FULL_COUNTS") else 20


def run(empty: Path, script: Script, *, seed: int = 0, nodes: int = 2, processes: int = 1, blocking: bool = False) -> World:
    """Run a script in a world of its own; when it fails, the trace is part of the failure."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    with tempfile.TemporaryDirectory() as directory:
        world = World(loop, Path(directory), empty, seed, nodes=nodes, processes=processes, blocking=blocking)

        async def whole() -> None:
            try:
                await world.start_controller()
                await script(world)
                world.check()
            except BaseException as error:
                raise AssertionError(
                    "\n".join([f"seed {seed}, {nodes} nodes of {processes}, blocking {blocking}: {error}", *world.trace[-400:]])
                ) from error
            finally:
                await world.close()

        try:
            with world.seams():
                loop.run_until_complete(whole())
        finally:
            loop.close()
            asyncio.set_event_loop(None)
    return world


def test_a_job_runs_to_its_end(empty: Path) -> None:
    """Without faults two nodes form one generation and the job succeeds."""

    async def script(world: World) -> None:
        await world.create("tune", "j1")
        await world.until(lambda: world.ended("tune"), 600, "the end")
        await world.until(lambda: not world.launches, 60, "the end of all nodes")

    world = run(empty, script)

    assert {"tune": JobState.SUCCEEDED} == world.states()
    assert 1 == world.monitor.formed


# --- generated schedules ----------------------------------------------------------------------------------------------

FAULTS = (
    "nothing",
    "cut stream",
    "cut off node",
    "slow network",
    "controller dies",
    "controller dies soon",
    "controller hands over",
    "rank killed",
    "rank hangs",
    "rank fails in storage",
    "rank out of memory",
    "rank has a bug",
    "agent killed",
    "node restarts",
    "node restarts, old one lives",
    "eviction",
    "machine lost",
    "disk full",
    "checkpoint broken",
    "bad node",
    "pause",
    "resume",
    "resume with 1",
    "resume with 2",
    "cancel",
    "retry",
    "suspend",
)
INFRA = ("rank", "agent", "node restarts", "machine", "bad node", "cut off", "checkpoint")
"""Beginnings of what may be charged to the infrastructure budget."""
FATAL = ("cancel", "rank has a bug", "rank out of memory", *INFRA)
"""Beginnings of what may end a job without success."""


async def strike(world: World, fault: str, which: int) -> None:
    """One fault, now, on what there is."""
    world.say(f"FAULT {fault} {which}")
    if fault.startswith(INFRA):
        world.monitor.infra_faults += 1
    machines = world.running()
    machine = machines[which % len(machines)] if machines else None
    ranks = [r for m in machines for r in m.ranks if r.running]
    rank = ranks[which % len(ranks)] if ranks else None
    controller = world.controller
    name = "tune"
    match fault:
        case "cut stream" if world.calls:
            world.calls[which % len(world.calls)].cut(world.rng.uniform(0.0, 20.0))
        case "cut off node" if machine:
            machine.cut_until = world.loop.time() + 10.0 * (1 + which)
            for call in [c for c in world.calls if c._machine is machine]:
                call.cut(world.rng.uniform(0.0, 20.0))
        case "slow network":
            world.slow_network_until = world.loop.time() + 20.0
        case "controller dies" if controller:
            controller.die()
            world.loop.call_later(5.0 * (1 + which**2), lambda: asyncio.ensure_future(world.start_controller()))
        case "controller dies soon" if controller and controller.die_after is None:
            controller.die_after = which
            world.background(_follow(world, 3.0 * which))
        case "controller hands over" if controller:
            controller.frozen = asyncio.Event()
            old = controller
            await world.start_controller()
            for call in [c for c in world.calls if c.controller is old]:
                world.loop.call_later(world.rng.uniform(0.0, 40.0), call.cut, 80.0)

            def thaw() -> None:
                assert old.frozen is not None
                event, old.frozen = old.frozen, None
                event.set()

            world.loop.call_later(60.0, thaw)
        case "rank killed" if rank:
            rank._sim.end(-9)
        case "rank hangs" if rank:
            rank.stopped = True
        case "rank fails in storage" if rank:
            rank.leave(74, "no space left")
        case "rank out of memory" if rank:
            rank.leave(71, "out of memory")
        case "rank has a bug" if rank:
            rank.leave(70, "ZeroDivisionError")
        case "agent killed" if machine:
            machine.die(-9)
        case "node restarts" if machine:
            world.restart_node(machine, zombie=False)
        case "node restarts, old one lives" if machine:
            world.restart_node(machine, zombie=machine.node._attachment.connected)
        case "eviction" if machine:
            machine.terminate()
            world.loop.call_later(10.0, machine.die, -9)
        case "machine lost" if machine:
            world.lose(machine)
        case "disk full":
            for store in world.stores.values():
                store.full_until = world.loop.time() + 15.0
        case "checkpoint broken":
            for store in world.stores.values():
                for saved in list(store.checkpoints.values())[-1 - which % 3 :]:
                    saved.broken = True
        case "bad node":
            world.bad_nodes["j1", which % 2] = True
        case "pause" | "cancel" | "retry":
            await world.verb(fault, name)
        case "resume":
            await world.verb("resume", name)
        case "resume with 1":
            await world.verb("resume", name, 1)
        case "resume with 2":
            await world.verb("resume", name, 2)
        case "suspend" if controller and controller.frozen is None:
            await asyncio.wait({asyncio.ensure_future(controller.reconciler.suspend())}, timeout=5.0)
            await asyncio.sleep(float(which * 4))
            controller.die()
            await world.start_controller()
        case _:
            world.say("  nothing to strike")


async def _follow(world: World, pause: float) -> None:
    """Another controller after this one has died, which it does within a while."""
    until = world.loop.time() + 30.0
    dead = world.controllers[-1]
    while not dead.dead and world.loop.time() < until:
        await asyncio.sleep(0.5)
    if not dead.dead:
        dead.die()
    await asyncio.sleep(pause)
    await world.start_controller()


AFTER = (
    "",
    "CREATED",
    "STARTING",
    "is launched",
    "NODE_ATTACHED",
    "GENERATION_FORMED",
    "PHASE_STARTED",
    "CHECKPOINT_COMMITTED",
    "PHASE_DONE",
    "RANK_ENDED",
    "GENERATION_ENDED",
    "REAP",
    "PAUSING",
    "SAVE_AND_LEAVE",
    "exits",
    "ATTEMPT_ENDED",
    "PLAN_FINISHED",
    "starts",
)
"""What a fault may wait for: a line of the trace."""

Moment = tuple[int, str, str, int]
"""(quarters of a second, then after what, fault, which)."""


async def seen(world: World, text: str) -> None:
    """The next line with this text; not for long, since it may never come."""
    start, until = len(world.trace), world.loop.time() + 20.0
    while text and not any(text in line for line in world.trace[start:]) and world.loop.time() < until:
        await asyncio.sleep(0.02)


def schedule(faults: list[Moment]) -> Script:
    """Submit, strike at the given moments, heal, and ask for what the rules promise."""

    async def script(world: World) -> None:
        await world.create("tune", "j1")
        for wait, after, fault, which in faults:
            await asyncio.sleep(wait / 4)
            await seen(world, after)
            await strike(world, fault, which)
            world.check()
        await world.heal()
        await settled(world, {fault for _, _, fault, _ in faults})

    return script


async def settled(world: World, faults: set[str]) -> None:
    """Liveness: within bounded time after the last fault the job is where the rules want it, and nothing is left running."""
    patience = 3_600.0

    def at_rest() -> bool:
        job = world.job("tune")
        return job is not None and (world.ended("tune") or job.state == JobState.PAUSED)

    await world.until(at_rest, patience, "rest")
    job = world.job("tune")
    assert job is not None
    if job.state == JobState.PAUSED:
        assert faults & {"pause"}, "nobody asked for a pause"
        await world.verb("resume", "tune")
        await world.until(lambda: world.ended("tune"), patience, "the end after a resume")
    await world.until(lambda: not world.launches, patience, "the end of all nodes")
    job = world.job("tune")
    assert job is not None
    if job.state == JobState.CANCELLED:
        assert "cancel" in faults
    elif job.state == JobState.FAILED:
        assert any(fault.startswith(FATAL) for fault in faults), f"failed for no reason: {job.failure}"
    else:
        assert job.state == JobState.SUCCEEDED


moments = st.tuples(st.integers(0, 60), st.sampled_from(AFTER), st.sampled_from(FAULTS), st.integers(0, 6))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(
    faults=st.lists(moments, max_size=8),
    seed=st.integers(0, 2**16),
    blocking=st.booleans(),
    nodes=st.integers(1, 2),
    processes=st.integers(1, 2),
)
@pytest.mark.timeout(7200)
def test_the_rules_hold_under_any_schedule(
    empty: Path, faults: list[Moment], seed: int, blocking: bool, nodes: int, processes: int
) -> None:
    """Whatever fails, whenever: no rule is ever broken, and once the faults stop every job comes to its end."""
    run(empty, schedule(faults), seed=seed, blocking=blocking, nodes=nodes, processes=processes)
