"""The controller's side of Attach over real gRPC and a real store, against a double of the agent that speaks the real protocol.

The double says what a test wants, when it wants: duplicates, old incarnations, late facts. Real agents are in `test_jobs.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf import struct_pb2

from luthier.controller.applying import Surroundings, load_view
from luthier.controller.contents import ContentStore
from luthier.controller.executors.api import Snapshot
from luthier.controller.logs import LogStore
from luthier.controller.metrics import ControllerMetrics
from luthier.controller.service.auth import StaticTokens
from luthier.controller.service.queues import QueueInfo, WaitingInfo
from luthier.controller.service.server import build_server
from luthier.controller.sessions import Sessions
from luthier.controller.store.records import AttemptRecord, GenerationRecord, JobRecord, JobState, NodeRecord
from luthier.controller.store.sqlite import SqlStore
from luthier.controller.tokens import NodeTokens
from luthier.controller.view import Timers, View
from luthier.v1 import node_service_pb2 as pb
from luthier.v1 import node_service_pb2_grpc as pb_grpc

UID = "j1"
SECONDS = 10.0


class NoQueues:
    """No queue: this test has no scheduler."""

    def describe(self, tenant: str | None) -> Sequence[QueueInfo]:
        return []

    def waiting(self, uid: str) -> WaitingInfo | None:
        return None


class Agent:
    """One stream of one incarnation."""

    def __init__(self, call: Any, incarnation: str) -> None:
        self._call = call
        self.incarnation = incarnation
        self.sequence = 0

    async def say(self, **message: Any) -> None:
        """Send one message up."""
        await self._call.write(pb.AttachRequest(**message))

    async def fact(self, *, sequence: int | None = None, generation: int = 1, **fact: Any) -> int:
        """Send a fact; its sequence number."""
        self.sequence = self.sequence + 1 if sequence is None else sequence
        message = pb.Fact(sequence=self.sequence, fence=pb.Fence(attempt=1, generation=generation), **fact)
        await self.say(fact=message)
        return self.sequence

    async def hear(self, kind: str) -> Any:
        """The next message of a kind; others are skipped."""
        async with asyncio.timeout(SECONDS):
            while True:
                response = await self._call.read()
                assert response is not grpc.aio.EOF, f"the stream ended before {kind}"
                if response.WhichOneof("message") == kind:
                    return getattr(response, kind)

    async def acked(self, sequence: int) -> None:
        """Wait until facts up to `sequence` are acknowledged."""
        while (await self.hear("ack")).sequence < sequence:
            pass

    async def end(self) -> tuple[str, str]:
        """Wait until the stream ends; status and details."""
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self._call.read() is not grpc.aio.EOF:
                    pass
            return (await self._call.code()).name, await self._call.details()

    def cut(self) -> None:
        """Break the stream."""
        self._call.cancel()


class Scene:
    """A RUNNING job of two nodes in generation 1, a server, and agents."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = SqlStore(root / "db")
        self.tokens = NodeTokens.from_state_dir(root)
        self.logs = LogStore(root / "store")
        self.changed: list[str] = []
        self.metrics = ControllerMetrics()
        self.sessions = Sessions(self.store, self.tokens, self.logs, self.metrics, self.changed.append)

    async def open(self) -> None:
        await self.store.open()
        await self.store.transact(_seed)
        self.server = build_server(
            store=self.store,
            contents=ContentStore(self.root / "uploads"),
            logs=self.logs,
            queues=NoQueues(),
            authenticator=StaticTokens({}),
            store_root=self.root / "store",
            nodes=self.sessions,
        )
        port = self.server.listen("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = pb_grpc.NodeServiceStub(self.channel)

    async def close(self) -> None:
        await self.sessions.close()
        await self.channel.close()
        await self.server.drain(1.0)
        await self.store.close()

    async def attach(self, incarnation: str = "one", *, node: int = 0, welcome: bool = True, **hello: Any) -> Agent:
        """Open a stream and say Hello; the first acknowledgement is read."""
        call: Any = self.stub.Attach()
        agent = Agent(call, incarnation)
        values = {"token": self.tokens.issue(UID, 1), "job_uid": UID, "attempt": 1, "host": "127.0.0.1", "metrics_port": 9, **hello}
        await agent.say(hello=pb.Hello(node=node, incarnation=incarnation, versions={"luthier": "0"}, **values))
        if welcome:
            agent.sequence = (await agent.hear("ack")).sequence
        return agent

    async def view(self) -> View:
        """The job as reconcile sees it."""
        view = await self.store.read(lambda r: load_view(r, UID, Surroundings(Snapshot(), Timers(), 0.0)))
        assert view is not None
        return view

    async def events(self) -> list[str]:
        """Types of the job's events, in order."""
        return [e.type for e in await self.store.read(lambda r: r.events(UID))]


def _seed(tx: Any) -> None:
    spec = {"method": {"name": "sft"}}
    tx.insert_job(JobRecord(uid=UID, tenant="me", name="tune", spec=spec, method="sft", queue="default", priority=0))
    tx.insert_attempt(AttemptRecord(job_uid=UID, number=1, num_nodes=2, executor="local", create_time=tx.now, launch_time=tx.now))
    for index in range(2):
        tx.put_node(NodeRecord(job_uid=UID, attempt=1, index=index))
    tx.transition(UID, JobState.STARTING, message="admitted", attempt=1, num_nodes=2)
    tx.insert_generation(GenerationRecord(job_uid=UID, attempt=1, number=1, create_time=tx.now, world_size=2, address="h:1"))
    tx.transition(UID, JobState.RUNNING, message="running", generation=1)


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene of its own."""
    made = Scene(tmp_path)
    await made.open()
    yield made
    await made.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("wrong", [{"token": "ln1.wrong"}, {"attempt": 2}, {"job_uid": "j2"}, {"token": ""}], ids=str)
async def test_only_the_attempts_own_token_opens_a_stream(scene: Scene, wrong: dict[str, Any]) -> None:
    """Any other token, job or attempt is UNAUTHENTICATED and leaves no trace."""
    agent = await scene.attach(welcome=False, **wrong)

    assert (await agent.end())[0] == "UNAUTHENTICATED"
    assert "NODE_ATTACHED" not in await scene.events()


@pytest.mark.asyncio
async def test_a_stream_begins_with_hello(scene: Scene) -> None:
    """Anything else first is INVALID_ARGUMENT."""
    agent = Agent(scene.stub.Attach(), "one")
    await agent.fact(note=pb.Note(type="X"))

    assert (await agent.end())[0] == "INVALID_ARGUMENT"


@pytest.mark.asyncio
async def test_a_fact_is_stored_once(scene: Scene) -> None:
    """A repeated fact, in the same stream or in the next, is acknowledged again and changes nothing."""
    agent = await scene.attach()
    await agent.fact(note=pb.Note(type="HELLO", message="hi"))
    await agent.fact(sequence=1, note=pb.Note(type="HELLO", message="hi"))
    await agent.acked(1)
    agent.cut()
    again = await scene.attach()
    assert again.sequence == 1
    await again.fact(sequence=1, note=pb.Note(type="HELLO", message="hi"))
    await again.fact(sequence=2, note=pb.Note(type="BYE", message="bye"))
    await again.acked(2)

    assert [e for e in await scene.events() if e in ("HELLO", "BYE")] == ["HELLO", "BYE"]
    assert (await scene.events()).count("NODE_ATTACHED") == 1


@pytest.mark.asyncio
async def test_the_newest_incarnation_wins_for_ever(scene: Scene) -> None:
    """A new process tree of a node fences the old one, loses its ranks and joins no generation of it; an old one that comes back
    stays out."""
    old = await scene.attach("one")
    await old.fact(note=pb.Note(type="FIRST"))
    await old.acked(1)
    new = await scene.attach("two")

    assert (await old.hear("fenced")).message == "a newer incarnation of this node attached"
    assert new.sequence == 0
    back = await scene.attach("one", welcome=False)
    assert (await back.hear("fenced")).message == "a newer incarnation of this node attached"
    view = await scene.view()
    assert [(e.rank, e.code, e.message) for e in view.rank_ends] == [(0, -1000, "its node started again")]
    assert (view.nodes[0].incarnation, view.nodes[0].superseded, view.nodes[0].formed) == ("two", ("one",), 1)


@pytest.mark.asyncio
async def test_an_old_attempt_is_fenced(scene: Scene) -> None:
    """A node of an attempt that is closed, or no longer the newest, or whose job is gone, must leave."""
    agent = await scene.attach()
    await scene.store.transact(lambda tx: tx.update_attempt(UID, 1, end_time=tx.now, close_time=tx.now, end_cause="LEFT"))
    await agent.fact(note=pb.Note(type="LATE"))

    assert "closed" in (await agent.hear("fenced")).message
    late = await scene.attach("two", node=1, welcome=False)
    assert "closed" in (await late.hear("fenced")).message
    assert "LATE" not in await scene.events()


@pytest.mark.asyncio
async def test_ready_tells_after_which_generation(scene: Scene) -> None:
    """Node 0's address, candidates and journal heads are stored as they came."""
    agent = await scene.attach()
    candidate = pb.CheckpointCandidate(fence=pb.Fence(attempt=1, generation=1), phase_index=1, step=7, digest="d", path="p")
    ready = pb.Ready(last_fence=pb.Fence(attempt=1, generation=1), address="h:2", candidates=[candidate])
    await agent.say(ready=ready)
    await agent.fact(note=pb.Note(type="AFTER"))
    await agent.acked(1)
    node = (await scene.view()).nodes[0]

    assert (node.state, node.ready_after, node.ready["address"]) == ("ready", 1, "h:2")
    assert node.ready["candidates"] == [{"fence": {"attempt": 1, "generation": 1}, "phase_index": 1, "step": 7, "digest": "d", "path": "p"}]


@pytest.mark.asyncio
async def test_the_plans_end_is_accepted_once(scene: Scene) -> None:
    """R4: node 0's report makes the result, another node's and a repeated one do not; the job's state is not touched here."""
    one, two = await scene.attach(node=0), await scene.attach("b", node=1)
    result = struct_pb2.Struct()
    result.update({"uri": "output/a1g1/model", "digest": "abc", "kind": "adapter", "metrics": {"eval_loss_after": 0.5}})
    await two.fact(plan_finished=pb.PlanFinished())
    await two.acked(1)
    assert not (await scene.view()).job.plan_finished
    await one.fact(plan_finished=pb.PlanFinished(result=result))
    await one.acked(1)
    await one.fact(plan_finished=pb.PlanFinished(result=result))
    await one.acked(2)
    view = await scene.view()

    assert (view.job.plan_finished, view.job.state, view.job.result["digest"] if view.job.result else "") == (True, JobState.RUNNING, "abc")
    assert (view.generation.end_cause if view.generation else "", [n.finished for n in view.nodes]) == ("FINISHED", [True, True])
    assert (await scene.events()).count("PLAN_FINISHED") == 1
    [artifact] = await scene.store.read(lambda r: r.artifacts(UID))
    assert (artifact.name, artifact.kind, artifact.digest, artifact.path) == ("result", "adapter", "abc", "output/a1g1/model")


@pytest.mark.asyncio
@pytest.mark.parametrize("why", ["generation over", "cancelling", "attempt over"])
async def test_a_report_that_comes_too_late_is_only_acknowledged(scene: Scene, why: str) -> None:
    """PlanFinished counts only while its fence is current and the job was not cancelled."""

    def end(tx: Any) -> None:
        if why == "cancelling":
            tx.transition(UID, JobState.CANCELLING, message="cancel")
        elif why == "attempt over":
            tx.update_attempt(UID, 1, end_time=tx.now, end_cause="NODE_LOST")
        else:
            tx.update_generation(UID, 1, 1, end_time=tx.now, end_cause="KILLED")

    agent = await scene.attach()
    await scene.store.transact(end)
    await agent.fact(plan_finished=pb.PlanFinished())
    await agent.acked(1)

    assert not (await scene.view()).job.plan_finished


@pytest.mark.asyncio
async def test_facts_of_an_older_generation_are_records(scene: Scene) -> None:
    """They are stored and acknowledged, and change neither progress nor what a phase is charged to."""

    def next_generation(tx: Any) -> None:
        tx.update_generation(UID, 1, 1, end_time=tx.now, end_cause="KILLED")
        tx.insert_generation(GenerationRecord(job_uid=UID, attempt=1, number=2, create_time=tx.now, world_size=2))

    agent = await scene.attach()
    await scene.store.transact(next_generation)
    await agent.fact(generation=1, phase_started=pb.PhaseStarted(index=3, kind="evaluate", title="late"))
    await agent.fact(generation=1, rank_exited=pb.RankExited(rank=0, code=70, message="late"))
    await agent.acked(2)
    view = await scene.view()
    late = await scene.store.read(lambda r: r.rank_ends(UID, 1, 1))

    assert "PHASE_STARTED" in await scene.events()
    assert ([e.message for e in late], view.rank_ends) == (["late"], ())
    assert (view.job.progress, view.job.cause, [g.phase_started for g in view.generations]) == ({}, "PRODUCTIVE", [False, False])


@pytest.mark.asyncio
async def test_phases_steer_what_time_is_charged_to(scene: Scene) -> None:
    """Evaluate is EVALUATING, Train PRODUCTIVE, and a checkpoint's stall is moved without changing the sum."""
    agent = await scene.attach()
    await agent.fact(phase_started=pb.PhaseStarted(index=0, kind="evaluate", title="evaluate before", device="cpu/gloo"))
    await agent.acked(1)
    view = await scene.view()
    assert (view.job.cause, view.job.progress["phase"], view.job.progress["device"]) == ("EVALUATING", "evaluate before", "cpu/gloo")
    await agent.fact(phase_started=pb.PhaseStarted(index=1, kind="train", total_steps=10))
    await agent.acked(2)
    await asyncio.sleep(0.05)
    candidate = pb.CheckpointCandidate(fence=pb.Fence(attempt=1, generation=1), phase_index=1, step=3, digest="d", path="p")
    await agent.fact(checkpoint_committed=pb.CheckpointCommitted(checkpoint=candidate, size_bytes=5, stall_seconds=0.02))
    await agent.acked(3)
    job = (await scene.view()).job

    assert (job.cause, job.cause_seconds["CHECKPOINT_STALL"]) == ("PRODUCTIVE", 0.02)
    assert sum(job.cause_seconds.values()) == pytest.approx(job.cause_since - job.create_time, abs=1e-5)
    assert (job.progress["checkpoint"], job.progress["checkpoint_step"]) == ("jobs/tune/checkpoints/a1g1-p1-step-3", 3)
    [stored] = await scene.store.read(lambda r: r.checkpoints(UID))
    assert (stored.step, stored.digest, stored.size_bytes) == (3, "d", 5)


@pytest.mark.asyncio
async def test_samples_become_series_and_progress(scene: Scene) -> None:
    """Rows of the current generation move step, loss and ETA; numbers that are not finite are left out of the series."""
    agent = await scene.attach()
    rows = [
        pb.Samples.Row(step=s, phase_index=1, plan_step=s, total_steps=10, values={"loss": 1.0 / s, "bad": float("nan")}) for s in (1, 2)
    ]
    for row, age in zip(rows, (2, 0), strict=True):
        row.age.FromSeconds(age)
    await agent.say(samples=pb.Samples(fence=pb.Fence(attempt=1, generation=1), rows=rows))
    await agent.say(samples=pb.Samples(fence=pb.Fence(attempt=1, generation=9), rows=[pb.Samples.Row(step=99, plan_step=3)]))
    await agent.fact(phase_done=pb.PhaseDone(index=1, kind="train"))
    await agent.acked(1)
    view = await scene.view()
    series = await scene.store.read(lambda r: r.series(UID))

    assert (view.job.progress["loss"], view.generation.last_step if view.generation else 0) == (0.5, 2)
    assert {name: [p.value for p in points] for name, points in series.items()} == {"loss": [1.0, 0.5]}


@pytest.mark.asyncio
async def test_log_bytes_are_acknowledged_by_offset(scene: Scene) -> None:
    """Each stream has its own offsets; a repeated chunk changes nothing, and a gap tells where to go on."""
    agent = await scene.attach()
    for offset, data, rank in [(0, b"hello ", 0), (0, b"hello ", 0), (6, b"world\n", 0), (0, b"agent\n", None), (99, b"gap", 0)]:
        chunk = pb.LogChunk(attempt=1, offset=offset, data=data)
        if rank is not None:
            chunk.rank = rank
        await agent.say(log=chunk)
    ends: dict[int | None, int] = {}
    while ends != {0: 12, None: 6}:
        for stream in (await agent.hear("ack")).logs:
            ends[stream.rank if stream.HasField("rank") else None] = stream.offset
    folder = scene.logs.folder("me", UID) / "a1"

    assert ((folder / "n0-r0.log").read_bytes(), (folder / "n0.log").read_bytes()) == (b"hello world\n", b"agent\n")


@pytest.mark.asyncio
async def test_a_directive_is_sent_again_after_every_hello(scene: Scene) -> None:
    """A stream may break between a message and its fact: the next Hello gets it again, a stream that has it does not."""
    agent = await scene.attach()
    scene.sessions.show(await scene.view())
    scene.sessions.show(await scene.view())
    assert (await agent.hear("formed")).fence.generation == 1
    agent.cut()
    again = await scene.attach()
    scene.sessions.show(await scene.view())
    assert (await again.hear("formed")).fence.generation == 1
    await again.fact(obeyed=pb.Obeyed(what="formed"))
    await again.acked(1)
    await scene.store.transact(lambda tx: tx.transition(UID, JobState.PAUSING, message="pause", pause_cause="user"))
    scene.sessions.show(await scene.view())

    assert (await again.hear("directive")).kind == pb.Directive.SAVE_AND_LEAVE


@pytest.mark.asyncio
async def test_live_nodes_are_known(scene: Scene) -> None:
    """Attached nodes are listed for discovery until their stream ends, and every change is a hint for reconcile."""
    agent = await scene.attach()
    [live] = scene.sessions.live_nodes()
    assert (live.job_name, live.node, live.host, live.metrics_port) == ("tune", 0, "127.0.0.1", 9)
    assert scene.sessions.attached(UID) == {(1, 0)}
    assert set(scene.changed) == {UID}
    agent.cut()
    async with asyncio.timeout(SECONDS):
        while scene.sessions.live_nodes():
            await asyncio.sleep(0.01)

    assert list(scene.sessions.heard(UID)) == [(1, 0)]
