"""The agent as a real process against a small controller that speaks the real protocol over real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from luthier.trainer_node.launch import NodeLaunch
from luthier.v1 import node_service_pb2 as pb
from luthier.v1 import node_service_pb2_grpc as pb_grpc

pytestmark = pytest.mark.zygote

SECONDS = 20.0


class Controller(pb_grpc.NodeServiceServicer):
    """The controller's side of Attach for any number of nodes: stores what comes, acknowledges it, sends what the test says."""

    def __init__(self) -> None:
        self.hellos: list[pb.Hello] = []
        self.readies: dict[int, list[pb.Ready]] = {}
        self.facts: dict[int, dict[int, pb.Fact]] = {}
        self.repeats = 0
        self.samples: list[pb.Samples.Row] = []
        self.logs: dict[tuple[int, int | None], bytearray] = {}
        self.beats: dict[int, pb.Heartbeat] = {}
        self.acknowledge = True
        self.refuse: grpc.StatusCode | None = None
        self._calls: dict[int, Any] = {}
        self._writing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._server = grpc.aio.server()
        pb_grpc.add_NodeServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Attach(self, request_iterator: AsyncIterator[pb.AttachRequest], context: Any) -> None:  # type: ignore[override]  # noqa: N802
        """Serve one stream."""
        if self.refuse is not None:
            await context.abort(self.refuse, "refused by the test")
        node = -1
        async for request in request_iterator:
            kind = request.WhichOneof("message")
            if kind == "hello":
                node = request.hello.node
                self.hellos.append(request.hello)
                self._calls[node] = context
                await self._write(context, pb.AttachResponse(waiting=pb.AttachResponse.Waiting(ready=0, total=1)))
            elif kind == "ready":
                self.readies.setdefault(node, []).append(request.ready)
            elif kind == "fact":
                stored = self.facts.setdefault(node, {})
                self.repeats += request.fact.sequence in stored
                stored[request.fact.sequence] = request.fact
                if self.acknowledge:
                    await self._write(context, pb.AttachResponse(ack=pb.Ack(sequence=request.fact.sequence)))
            elif kind == "samples":
                self.samples.extend(request.samples.rows)
            elif kind == "log":
                rank = request.log.rank if request.log.HasField("rank") else None
                stream = self.logs.setdefault((node, rank), bytearray())
                stream[request.log.offset :] = request.log.data
                offset = pb.Ack.LogOffset(offset=len(stream))
                if rank is not None:
                    offset.rank = rank
                await self._write(context, pb.AttachResponse(ack=pb.Ack(logs=[offset])))
            elif kind == "heartbeat":
                self.beats[node] = request.heartbeat
            self._changed.set()

    async def send(self, node: int, **message: Any) -> None:
        """Send one message down."""
        await self._write(self._calls[node], pb.AttachResponse(**message))

    async def _write(self, context: Any, response: pb.AttachResponse) -> None:
        async with self._writing:  # a stream takes one write at a time
            await context.write(response)

    async def cut(self, node: int) -> None:
        """Break the stream of a node."""
        await self._calls[node].abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until the condition holds; its value."""
        deadline = time.monotonic() + SECONDS
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} did not happen; facts: {self.facts}"
            self._changed.clear()
            try:
                async with asyncio.timeout(0.2):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return value

    def of(self, node: int, name: str) -> list[Any]:
        """Facts of one kind, in order."""
        return [getattr(f, name) for _, f in sorted(self.facts.get(node, {}).items()) if f.WhichOneof("fact") == name]


class Nodes:
    """Agents as processes, one folder each."""

    def __init__(self, controller: Controller, root: Path, zygote: Path) -> None:
        self.controller = controller
        self.root = root
        self._zygote = zygote
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(
        self, script: str, *, node: int = 0, num_nodes: int = 1, processes: int = 1, **changes: Any
    ) -> asyncio.subprocess.Process:
        """Start the agent of one node whose ranks run `script`."""
        faults = {"hang_timeout": changes.pop("hang", 60.0)}
        spec: Mapping[str, Any] = {"method": {"name": "sft"}, "env": {"SCRIPT": script}, "faults": faults}
        directory = self.root / f"n{node}"
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        launch = NodeLaunch(
            job_uid="uid",
            job_name="tune",
            tenant="me",
            attempt=1,
            node=node,
            num_nodes=num_nodes,
            processes=processes,
            controller=f"127.0.0.1:{self.controller.port}",
            token="secret",
            store_root=str(self.root / "store"),
            zygote_dir=str(self._zygote),
            **{"spec": spec, **changes},
        )
        launch.write(directory / "launch.json")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "luthier.trainer_node.agent", str(directory), env=environment, start_new_session=True
        )
        self._processes.append(process)
        return process

    async def close(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def formed(self, generation: int = 1, *, num_nodes: int = 1, processes: int = 1, after: int | None = None) -> None:
        """Wait until all nodes are ready and form a group."""
        last = generation - 1 if after is None else after
        readies = self.controller.readies
        await self.controller.until(
            lambda: all(any(r.last_fence.generation == last for r in readies.get(node, [])) for node in range(num_nodes)), "all nodes ready"
        )
        address = self.controller.readies[0][-1].address
        for node in range(num_nodes):
            message = pb.Formed(
                fence=pb.Fence(attempt=1, generation=generation),
                first_rank=node * processes,
                local_size=processes,
                world_size=num_nodes * processes,
                address=address,
                device="cpu",
            )
            await self.controller.send(node, formed=message)

    def exit_file(self, node: int = 0) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.root / f"n{node}" / "exit.json").read_text())
        return value


@pytest_asyncio.fixture
async def nodes(tmp_path: Path, scripted_zygote: Path) -> AsyncIterator[Nodes]:
    """A controller and a place for nodes."""
    controller = Controller()
    await controller.start()
    nodes = Nodes(controller, tmp_path, scripted_zygote)
    yield nodes
    await nodes.close()
    await controller.stop()


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(SECONDS):
        return await process.wait()


@pytest.mark.asyncio
async def test_a_node_says_hello_runs_its_rank_and_exits_0_after_the_acknowledgement(nodes: Nodes) -> None:
    """Hello, preflight, ready, formed, facts, samples and log bytes arrive; the exit waits for the acknowledgement of the report."""
    controller = nodes.controller
    process = await nodes.start("start print:hello steps:5")
    await nodes.formed()
    controller.acknowledge = False
    await controller.until(lambda: controller.of(0, "plan_finished"), "plan finished")
    await controller.until(lambda: controller.of(0, "rank_exited"), "rank exited")

    assert process.returncode is None
    hello = controller.hellos[0]
    assert ("secret", "uid", 1, 0, 0) == (hello.token, hello.job_uid, hello.attempt, hello.node, hello.last_fence.generation)
    assert {"luthier", "torch", "deepspeed", "transformers", "peft", "method"} == set(hello.versions)
    assert [True] == [p.passed for p in controller.of(0, "preflight")]
    assert ["formed"] == [o.what for o in controller.of(0, "obeyed")]
    assert {"kind": "none", "metrics": {"rank": 0.0}} == dict(_plain(controller.of(0, "plan_finished")[0].result))
    assert 0 == controller.of(0, "rank_exited")[0].code
    await controller.until(lambda: len(controller.samples) == 5, "samples")
    assert [1, 2, 3, 4, 5] == [row.step for row in controller.samples]
    await controller.until(lambda: b"hello\n" in controller.logs.get((0, 0), b""), "log bytes")

    await controller.send(0, ack=pb.Ack(sequence=max(controller.facts[0])))

    assert 0 == await ended(process)
    assert 0 == nodes.exit_file()["code"]


@pytest.mark.asyncio
async def test_facts_are_sent_again_on_a_new_stream_until_they_are_acknowledged(nodes: Nodes) -> None:
    """After a broken stream the agent says hello again under the same incarnation and repeats what was not acknowledged."""
    controller = nodes.controller
    process = await nodes.start("start steps:40")
    await nodes.formed()
    controller.acknowledge = False
    await controller.until(lambda: controller.of(0, "phase_started"), "phase started")
    with pytest.raises(grpc.aio.AbortError):
        await controller.cut(0)
    await controller.until(lambda: controller.repeats, "a repeated fact")
    controller.acknowledge = True
    await controller.until(lambda: len(controller.hellos) == 2, "second hello")
    with pytest.raises(grpc.aio.AbortError):
        await controller.cut(0)

    assert 0 == await ended(process)
    assert 1 == len({hello.incarnation for hello in controller.hellos})
    assert [1, 1] == [hello.last_fence.generation for hello in controller.hellos[1:3]]
    assert list(range(1, max(controller.facts[0]) + 1)) == sorted(controller.facts[0])
    assert 1 == len(controller.of(0, "plan_finished"))


@pytest.mark.asyncio
async def test_a_killed_rank_is_reported_and_after_reap_a_new_generation_runs(nodes: Nodes) -> None:
    """kill -9 of one of two ranks: both ends are reported, the agent stays, reap leads to ready with a new address, formed to new ranks."""
    controller = nodes.controller
    process = await nodes.start("start steps:5 kill:9@1 barrier", processes=2)
    await nodes.formed(processes=2)
    ends = await controller.until(lambda: len(e := controller.of(0, "rank_exited")) == 2 and e, "two ends")

    by_rank = {end.rank: end for end in ends}
    assert -9 == by_rank[1].code
    assert "killed by signal SIGKILL" == by_rank[1].message
    assert 72 == by_rank[0].code
    assert ("step", 5) == (by_rank[1].section, by_rank[1].step)
    assert any("gloo" in line or "PeerLost" in line for line in by_rank[0].log_lines)
    assert process.returncode is None

    first = controller.readies[0][-1].address
    await controller.send(0, directive=pb.Directive(kind=pb.Directive.REAP, fence=pb.Fence(attempt=1, generation=1)))
    await controller.until(lambda: controller.readies[0][-1].last_fence.generation == 1, "ready again")

    assert first != controller.readies[0][-1].address
    await nodes.formed(2, processes=2)
    await controller.until(lambda: len(controller.of(0, "rank_exited")) == 4, "two more ends")
    started = [f.fence.generation for f in controller.facts[0].values() if f.WhichOneof("fact") == "phase_started"]
    assert [1, 1, 2, 2] == sorted(started)


@pytest.mark.asyncio
async def test_reap_kills_ranks_that_are_blocked(nodes: Nodes) -> None:
    """A survivor that blocks for ever is killed, reported as reaped, and the node is ready."""
    controller = nodes.controller
    await nodes.start("start sleep:600")
    await nodes.formed()
    await controller.until(lambda: controller.of(0, "phase_started"), "phase started")
    await controller.send(0, directive=pb.Directive(kind=pb.Directive.REAP, fence=pb.Fence(attempt=1, generation=1)))
    await controller.until(lambda: controller.readies[0][-1].last_fence.generation == 1, "ready again")

    (end,) = controller.of(0, "rank_exited")
    assert (-9, True, False) == (end.code, end.reaped, end.hung)
    assert "reap" in [o.what for o in controller.of(0, "obeyed")]


@pytest.mark.asyncio
async def test_a_reap_for_a_generation_that_was_never_formed_here_is_answered_and_its_formed_ignored(nodes: Nodes) -> None:
    """Formed(1) was lost, reap(1) arrives: the node is ready after 1 and does not start ranks for a late Formed(1)."""
    controller = nodes.controller
    process = await nodes.start("start")
    await controller.until(lambda: controller.readies.get(0), "ready")
    await controller.send(0, directive=pb.Directive(kind=pb.Directive.REAP, fence=pb.Fence(attempt=1, generation=1)))
    await controller.until(lambda: controller.readies[0][-1].last_fence.generation == 1, "ready after 1")
    await nodes.formed(1, after=1)
    await nodes.formed(2)

    assert 0 == await ended(process)
    assert {2} == {f.fence.generation for f in controller.facts[0].values() if f.WhichOneof("fact") == "phase_started"}


@pytest.mark.asyncio
async def test_fenced_ends_ranks_and_agent_with_76(nodes: Nodes) -> None:
    """A fenced node kills its ranks and exits 76."""
    controller = nodes.controller
    process = await nodes.start("start sleep:600")
    await nodes.formed()
    await controller.until(lambda: controller.beats.get(0) and controller.beats[0].ranks, "a heartbeat with a rank")
    await controller.send(0, fenced=pb.Fenced(message="attempt 2 runs"))

    assert 76 == await ended(process)
    assert {"code": 76, "message": "fenced: attempt 2 runs"} == nodes.exit_file()


@pytest.mark.asyncio
async def test_sigterm_saves_leaves_and_exits_75_and_the_other_node_stays(nodes: Nodes) -> None:
    """SIGTERM at node 1 makes all ranks save and leave at one step; node 1 exits 75, node 0 waits without ranks until it is told."""
    controller = nodes.controller
    first = await nodes.start("start steps:2000", num_nodes=2)
    second = await nodes.start("start steps:2000", node=1, num_nodes=2)
    await nodes.formed(num_nodes=2)
    await controller.until(lambda: controller.samples, "samples")
    second.send_signal(signal.SIGTERM)
    second.send_signal(signal.SIGTERM)

    assert 75 == await ended(second)
    await controller.until(lambda: controller.of(0, "rank_exited"), "the end of rank 0")
    assert 75 == controller.of(0, "rank_exited")[0].code
    assert 75 == controller.of(1, "rank_exited")[0].code
    assert controller.of(0, "rank_exited")[0].step == controller.of(1, "rank_exited")[0].step
    assert controller.of(0, "checkpoint_committed")
    assert first.returncode is None

    await controller.send(0, directive=pb.Directive(kind=pb.Directive.STOP, fence=pb.Fence(attempt=1, generation=1)))
    assert 75 == await ended(first)


@pytest.mark.asyncio
async def test_save_and_leave_by_directive_exits_75_after_the_report(nodes: Nodes) -> None:
    """A pause: the ranks save and leave, the directive is reported as obeyed, the agent exits 75."""
    controller = nodes.controller
    process = await nodes.start("start steps:2000")
    await nodes.formed()
    await controller.until(lambda: controller.samples, "samples")
    await controller.send(0, directive=pb.Directive(kind=pb.Directive.SAVE_AND_LEAVE, fence=pb.Fence(attempt=1, generation=1)))

    assert 75 == await ended(process)
    assert [75] == [end.code for end in controller.of(0, "rank_exited")]
    assert ["formed", "save_and_leave"] == [o.what for o in controller.of(0, "obeyed")]


@pytest.mark.asyncio
async def test_save_makes_one_checkpoint_and_training_goes_on(nodes: Nodes) -> None:
    """A save directive counts once."""
    controller = nodes.controller
    process = await nodes.start("start steps:60")
    await nodes.formed()
    await controller.until(lambda: controller.samples, "samples")
    await controller.send(0, directive=pb.Directive(kind=pb.Directive.SAVE, fence=pb.Fence(attempt=1, generation=1)))

    assert 0 == await ended(process)
    assert 1 == len(controller.of(0, "checkpoint_committed"))


@pytest.mark.asyncio
async def test_stop_before_any_rank_exits_75_at_once(nodes: Nodes) -> None:
    """An agent without ranks leaves when told."""
    controller = nodes.controller
    process = await nodes.start("start")
    await controller.until(lambda: controller.readies.get(0), "ready")
    await controller.send(0, directive=pb.Directive(kind=pb.Directive.STOP, fence=pb.Fence(attempt=1)))

    assert 75 == await ended(process)


@pytest.mark.asyncio
async def test_a_silent_rank_is_dumped_killed_and_reported_as_hung(nodes: Nodes) -> None:
    """A rank that says nothing for longer than its section allows is killed; its stacks are in its log."""
    controller = nodes.controller
    await nodes.start("start beat:step beat:step beat:step beat:step sleep:600", hang=1.0)
    await nodes.formed()
    (end,) = await controller.until(lambda: controller.of(0, "rank_exited"), "the end of the hung rank")

    assert (-9, True, "step") == (end.code, end.hung, end.section)
    assert any("scripted_zygote.py" in line for line in end.log_lines)


@pytest.mark.asyncio
async def test_a_stopped_rank_is_found_hung_and_said_to_be_stopped(nodes: Nodes) -> None:
    """A collective never notices a stopped peer; the agent does, and says what it saw."""
    controller = nodes.controller
    await nodes.start("start steps:2000", hang=1.0)
    await nodes.formed()
    await controller.until(lambda: len(controller.samples) > 5, "samples")
    (pid,) = _ranks_of(nodes.root / "n0")
    os.kill(pid, signal.SIGSTOP)
    (end,) = await controller.until(lambda: controller.of(0, "rank_exited"), "the end of the stopped rank")

    assert (-9, True) == (end.code, end.hung)
    assert "its process had been stopped by a signal" in end.message


@pytest.mark.asyncio
async def test_stacks_are_reported_on_request(nodes: Nodes) -> None:
    """dump_stacks answers with the stack of every thread of every rank, although the rank sleeps."""
    controller = nodes.controller
    await nodes.start("start sleep:600")
    await nodes.formed()
    await controller.until(lambda: controller.of(0, "phase_started"), "phase started")
    await controller.send(0, directive=pb.Directive(kind=pb.Directive.DUMP_STACKS, fence=pb.Fence(attempt=1, generation=1)))
    obeyed = await controller.until(lambda: [o for o in controller.of(0, "obeyed") if o.what == "dump_stacks"], "stacks")

    assert [0] == list(obeyed[0].stacks)
    assert "scripted_zygote.py" in obeyed[0].stacks[0]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("raise:data", 65, "rows.jsonl:3: not JSON Fix: repair the line"),
        ("raise:storage", 74, "the store refused a file"),
        ("raise:disk", 74, "No space left on device"),
        ("raise:memory", 71, "Out of memory"),
        ("raise:torch_memory", 71, "lower training.micro_batch_size"),
        ("raise:peer", 72, "Connection closed by peer"),
        ("raise:bug", 70, "ZeroDivisionError in scripted_zygote.py"),
        ("exit:3", 3, "ended with exit code 3 without last words"),
    ],
    ids=lambda value: value if isinstance(value, str) and ":" in value else "",
)
async def test_ends_of_ranks_carry_code_and_reason(nodes: Nodes, script: str, code: int, words: str) -> None:
    """Each kind of failure has its exit code and one sentence for people."""
    await nodes.start(script)
    await nodes.formed()
    (end,) = await nodes.controller.until(lambda: nodes.controller.of(0, "rank_exited"), "the end of the rank")

    assert code == end.code
    assert words in end.message


@pytest.mark.asyncio
async def test_a_missing_input_fails_preflight_as_the_users_error(nodes: Nodes) -> None:
    """The fact says 65, the node does not become ready, and it leaves when told."""
    controller = nodes.controller
    spec = {"method": {"name": "sft"}, "model": {"uri": "root:base"}}
    process = await nodes.start("", spec=spec, inputs={"root:base": str(nodes.root / "missing")})
    (result,) = await controller.until(lambda: controller.of(0, "preflight"), "preflight")

    assert (False, True, 65) == (result.passed, result.user_error, result.code)
    assert "spec.model.uri: 'root:base'" in result.message and "does not exist" in result.message
    await controller.send(0, directive=pb.Directive(kind=pb.Directive.STOP, fence=pb.Fence(attempt=1)))
    assert 75 == await ended(process)
    assert {} == controller.readies


@pytest.mark.asyncio
async def test_the_node_serves_its_metrics(nodes: Nodes) -> None:
    """/metrics shows what ranks sent, with the job's label; /healthz answers."""
    controller = nodes.controller
    await nodes.start("start steps:3 sleep:600")
    await nodes.formed()
    await controller.until(lambda: len(controller.samples) == 3, "samples")
    base = f"http://127.0.0.1:{controller.hellos[0].metrics_port}"
    text = (await asyncio.to_thread(_fetch, f"{base}/metrics")).decode()

    assert 'luthier_train_steps_total{node="0",tuning_job="tune"} 3.0' in text
    assert 'luthier_method_score{node="0",tuning_job="tune"} 0.5' in text
    assert 'luthier_node_ranks{node="0",tuning_job="tune"} 1.0' in text
    assert b"ok\n" == await asyncio.to_thread(_fetch, f"{base}/healthz")


@pytest.mark.asyncio
async def test_training_goes_on_while_the_controller_is_away_and_is_reported_later(nodes: Nodes) -> None:
    """The controller stops serving streams; the plan ends meanwhile; everything is reported when it is back."""
    controller = nodes.controller
    process = await nodes.start("start steps:10")
    await nodes.formed()
    await controller.until(lambda: controller.of(0, "phase_started"), "phase started")
    controller.refuse = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AbortError):
        await controller.cut(0)
    log = nodes.root / "n0" / "logs" / "agent.log"
    await controller.until(lambda: "rank 0 ended with 0" in log.read_text(), "the end of the rank")
    assert process.returncode is None
    controller.refuse = None

    assert 0 == await ended(process)
    assert 1 == len(controller.of(0, "plan_finished"))


@pytest.mark.asyncio
async def test_ranks_die_with_their_agent(nodes: Nodes) -> None:
    """kill -9 of the agent ends its ranks within a moment."""
    controller = nodes.controller
    process = await nodes.start("start print:alive sleep:600")
    await nodes.formed()
    await controller.until(lambda: controller.of(0, "phase_started"), "phase started")
    pids = _ranks_of(nodes.root / "n0")
    assert 1 == len(pids)
    process.kill()
    await ended(process)

    await controller.until(lambda: not any(Path(f"/proc/{pid}/environ").exists() and _alive(pid) for pid in pids), "the end of the rank")


@pytest.mark.asyncio
async def test_a_second_agent_in_the_folder_gives_way(nodes: Nodes) -> None:
    """The lock admits one agent; the other one leaves the first one's files alone."""
    controller = nodes.controller
    process = await nodes.start("start")
    await controller.until(lambda: controller.readies.get(0), "ready")
    pid = json.loads((nodes.root / "n0" / "pid.json").read_text())["pid"]
    other = await nodes.start("start")

    assert 76 == await ended(other)
    assert process.pid == pid == json.loads((nodes.root / "n0" / "pid.json").read_text())["pid"]
    assert not (nodes.root / "n0" / "exit.json").exists()


def _plain(struct: Any) -> dict[str, Any]:
    return {key: _plain(value) if hasattr(value, "fields") else value for key, value in struct.items()}


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _ranks_of(directory: Path) -> list[int]:
    """Processes whose working directory is the node's folder and that are not the agent."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").readlink() == directory and "luthier-rank" in (entry / "comm").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
