"""Everything around the machines of production: a channel that breaks, an executor that loses machines, a client, and time.

Controller side: the real `Reconciler`, `Sessions`, `Admissions`, verbs and store. Node side: the real `Node`, `Attachment`, `Spool`,
`Report` and `HangWatch`. Between them streams that keep their order, as gRPC's do; breaking them loses what is under way, repeats
what was not acknowledged, and lets the tail of an old stream arrive after the beginning of a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import grpc
import grpc.aio
from tests.unit.protocol.monitor import Monitor
from tests.unit.protocol.training import Fence, Group, JobStore, Saved, SimRank
from tests.unit.protocol.virtual import InlineStore, VirtualLoop, VirtualTime

from luthier.controller import attaching
from luthier.controller.admission import Admissions
from luthier.controller.config import ControllerConfig
from luthier.controller.executors.api import AttemptPlan, Launch, LaunchNode, NodeObservation, Snapshot
from luthier.controller.facts import apply_fact
from luthier.controller.logs import LogStore
from luthier.controller.metrics import ControllerMetrics
from luthier.controller.reconcile import Reconciler
from luthier.controller.service import verbs
from luthier.controller.sessions import Sessions
from luthier.controller.store.api import Transaction
from luthier.controller.store.records import TERMINAL, JobRecord, JobState
from luthier.controller.store.sqlite import LeadershipLost
from luthier.controller.tokens import NodeTokens
from luthier.errors import LuthierError
from luthier.trainer_node import attach, node, report, spool
from luthier.trainer_node.launch import NodeLaunch
from luthier.trainer_node.node import Node, NodeTimers
from luthier.trainer_node.preflight import Preflight
from luthier.v1 import node_service_pb2 as pb

__all__ = ["PLAN", "World"]

PLAN: tuple[tuple[str, int], ...] = (("train", 8), ("generate", 3), ("train", 8))
SPEC: Mapping[str, Any] = {
    "model": {"uri": "hf://a/b"},
    "method": {"name": "sft"},
    "training": {"batch_size": 16},
    "resources": {"nodes": {"min": 1, "max": 2}, "processes_per_node": 1, "accelerator": "cpu"},
    "faults": {"infra_retries": 5, "hang_timeout": 10.0},
}
TENANT = "default"
_KEY = b"k" * 32


class _NoInputs:
    def resolve(self, *_: Any) -> dict[str, str]:
        return {}


class _NoLogs:
    """Production's `LogTail`, of a node that writes nothing."""

    def follow(self, *_: Any) -> None: ...
    def restart(self) -> None: ...
    def pieces(self) -> list[Any]:
        return []

    def pending(self) -> bool:
        return False

    def acknowledge(self, *_: Any) -> None: ...


class _NoExporter:
    def __init__(self, *_: Any) -> None: ...
    async def start(self, _: str) -> int:
        return 9

    async def close(self) -> None: ...


# --- the channel ----------------------------------------------------------------------------------------------------


class Pipe:
    """One direction of a stream: in order, each message after its own delay."""

    def __init__(self, delay: Callable[[], float]) -> None:
        self._delay = delay
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._last = 0.0
        self.broken = False

    def send(self, message: Any) -> None:
        if self.broken:
            return
        loop = asyncio.get_running_loop()
        self._last = max(self._last + 1e-6, loop.time() + self._delay())
        loop.call_at(self._last, self._queue.put_nowait, message)

    async def receive(self) -> Any:
        return await self._queue.get()

    def end(self, message: Any, after: float) -> None:
        """Nothing is taken any more; `message` comes last, `after` seconds from now: what is later under way is lost."""
        if not self.broken:
            self.broken = True
            asyncio.get_running_loop().call_later(after, self._queue.put_nowait, message)


_BREAK = object()
_END = object()


def _unavailable(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "broken by the model")


class Call:
    """The agent's end of one Attach stream, and the task that serves it in the controller."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world, self._machine = world, machine
        delay = world.delay
        self.up, self.down = Pipe(delay), Pipe(delay)
        self.controller = world.listening(machine)
        self._over = False
        self.server: asyncio.Task[None] | None = None
        if self.controller is not None:
            self.server = self.controller.spawn(self._serve(self.controller))
            world.calls.append(self)

    async def write(self, request: pb.AttachRequest) -> None:
        if self.controller is None or self._machine.dead or self.up.broken:
            await asyncio.sleep(0.01)
            raise _unavailable()
        copy = pb.AttachRequest()
        copy.CopyFrom(request)
        self.up.send(copy)

    async def read(self) -> Any:
        if self.controller is None:
            await asyncio.sleep(0.01)
            raise _unavailable()
        message = await self.down.receive()
        if message is _BREAK:
            raise _unavailable()
        if message is _END:
            return grpc.aio.EOF
        return message

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async def details(self) -> str:
        return ""

    def cancel(self) -> None:
        self.cut(0.0)

    def cut(self, server_after: float) -> None:
        """Break: the agent notices at once, the controller later; what is under way may be lost."""
        if self in self._world.calls:
            self._world.calls.remove(self)
        self.down.end(_BREAK, 0.0)
        self.up.end(_BREAK, server_after)

    async def _serve(self, controller: SimController) -> None:
        async def requests() -> AsyncIterator[pb.AttachRequest]:
            while (message := await self.up.receive()) is not _BREAK:
                await controller.gate("before a message")
                yield message

        try:
            async for response in controller.sessions.Attach(requests(), None):  # type: ignore[arg-type]
                await controller.gate("before an answer")
                self._world.monitor.sent(self._machine.place, self._machine.incarnation, response)
                copy = pb.AttachResponse()
                copy.CopyFrom(response)
                self.down.send(copy)
            self.down.end(_END, self._world.delay())
        except LuthierError:
            self.down.end(_BREAK, self._world.delay())
        finally:
            self.up.broken = True
            if self in self._world.calls:
                self._world.calls.remove(self)


# --- nodes ----------------------------------------------------------------------------------------------------------


class _Starter:
    """Production's `RankStarter`: ranks join the group of their address."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def warm(self) -> None: ...
    async def start(self, formed: pb.Formed, listener: int | None, began: Callable[[SimRank], None]) -> None:
        machine, world = self._machine, self._machine.world
        await asyncio.sleep(world.rng.uniform(0.05, 1.0))
        world.monitor.joined(machine.place, machine.incarnation, formed)
        group = world.group(machine, formed)
        for index in range(formed.local_size):
            rank = SimRank(formed.first_rank + index, index, world.time.monotonic)
            machine.ranks.append(rank)
            began(rank)
            group.join(rank)

    async def close(self) -> None: ...


class Machine:
    """One incarnation of one node: the real agent on simulated hardware."""

    def __init__(self, world: World, launch: NodeLaunch, name: str, directory: Path, number: int) -> None:
        self.world, self.launch, self.name = world, launch, name
        self.place = (launch.job_uid, launch.attempt, launch.node)
        self.incarnation = f"{name}n{launch.node}i{number}"
        self.ranks: list[SimRank] = []
        self.dead = False
        self.cut_until = -1.0
        self.exit_code: int | None = None
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        with mock.patch.dict(os.environ, {"LUTHIER_INCARNATION": self.incarnation}), world.as_machine(self):
            self.node = Node(launch, directory, self._preflight, NodeTimers())
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.failed(error)

    def _preflight(self) -> Preflight:
        if self.world.bad_nodes.pop((self.launch.job_uid, self.launch.node), None):
            return Preflight(passed=False, message="the disk is slow")
        return Preflight(passed=True, versions={})

    async def _run(self) -> None:
        await asyncio.sleep(self.world.rng.uniform(0.1, 3.0))
        with self.world.as_machine(self):
            self.exit_code, why = await self.node.run()
        self.world.say(f"{self.incarnation} exits {self.exit_code}: {why}")
        self.world.monitor.exited(self, self.exit_code)
        self.die(None)

    def die(self, code: int | None) -> None:
        """The whole process tree is gone at once."""
        if self.dead:
            return
        self.dead = True
        self.exit_code = code if self.exit_code is None else self.exit_code
        for rank in self.ranks:
            if rank.running:
                rank._sim.end(-9)
        for call in [c for c in self.world.calls if c._machine is self]:
            call.cut(self.world.rng.uniform(0.0, 2.0))
        if self.task is not asyncio.current_task():
            self.task.cancel()

    def terminate(self) -> None:
        """SIGTERM."""
        if not self.dead:
            self.node._put(self.node._terminated, None)


# --- the executor ---------------------------------------------------------------------------------------------------


class SimExecutor:
    """What one controller sees of the machines. Every call may be where that controller ends."""

    def __init__(self, world: World, gate: Callable[[str], Any]) -> None:
        self._world, self._gate = world, gate

    async def open(self) -> None: ...
    async def close(self, *, stop_helpers: bool) -> None: ...
    def prepare(self, attempt: AttemptPlan) -> Launch:
        nodes = tuple(LaunchNode(i, {"device": "cpu"}, attempt.processes, 0) for i in range(attempt.num_nodes))
        return Launch(attempt.name, attempt.job_uid, attempt.attempt, nodes)

    async def launch(self, launch: Launch) -> None:
        await self._gate("before a launch")
        self._world.launch(launch)
        await self._gate("after a launch")

    async def observe(self) -> Snapshot:
        await self._gate("before an observation")
        return self._world.snapshot()

    async def wakeups(self) -> AsyncIterator[None]:
        while True:
            await self._world.changed()
            yield

    async def stop(self, name: str, grace: timedelta) -> None:
        await self._gate("before a stop")
        self._world.stop(name, grace.total_seconds())

    async def remove(self, name: str) -> None:
        await self._gate("before a removal")
        self._world.remove(name)

    async def prewarm(self, device: str) -> None: ...
    def log_files(self, name: str, index: int) -> Mapping[int | None, Path]:
        return {}


class SimController:
    """One life of the controller: the real parts over the shared database."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.dead = False
        self.frozen: asyncio.Event | None = None
        self.die_after: int | None = None
        """Points of no return that it still passes."""
        self._tasks: set[asyncio.Task[Any]] = set()
        config = ControllerConfig(state_dir=world.root, cpu_slots=world.slots, accelerators=(), listen="127.0.0.1:1")
        self.metrics = ControllerMetrics()
        self.store = InlineStore(world.database, world.time.time, self.gate, self._committed)
        executor = SimExecutor(world, self.gate)
        clock = world.time.time
        tokens, logs = NodeTokens(_KEY), LogStore(world.root / "store")
        self.admissions = Admissions(self.store, executor, _NoInputs(), config, self.metrics, clock)  # type: ignore[arg-type]
        self.sessions = Sessions(self.store, tokens, logs, self.metrics, self._poke, clock=clock)
        self.reconciler = Reconciler(
            self.store, executor, self.sessions, self.admissions, tokens, logs, config, self.metrics, clock=clock
        )  # fmt: skip

    def _poke(self, uid: str) -> None:
        self.reconciler.poke(uid)

    def _committed(self) -> None:
        self.world.monitor.committed(self.store)

    async def start(self) -> None:
        await self.store.open()
        self._loop = self.spawn(self._reconcile())

    async def _reconcile(self) -> None:
        try:
            await self.reconciler.run()
        except LeadershipLost:
            self.world.say(f"controller {self.number} lost its leadership")
            self.die()

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.dead:
            self.world.failed(error)

    async def gate(self, point: str) -> None:
        """Pass, wait while frozen, or never come back."""
        if self.frozen is not None:
            await self.frozen.wait()
        if self.dead:
            await asyncio.Event().wait()
        if self.die_after is not None and point.partition(" ")[2] in ("a commit", "a launch", "a stop", "a removal"):
            self.die_after -= 1
            if self.die_after < 0:
                self.world.say(f"controller {self.number} dies {point}")
                self.die()
                await asyncio.Event().wait()

    def die(self) -> None:
        """kill -9."""
        if self.dead:
            return
        self.dead = True
        self.world.loop.call_soon(self._bury)

    def _bury(self) -> None:
        for call in [c for c in self.world.calls if c.controller is self]:
            call.cut(0.0)
        mine = list(self._tasks)
        for task in mine:
            task.cancel()
        self.world.graves.append((self, mine))
        self.world.say(f"controller {self.number} is dead")


# --- the world ------------------------------------------------------------------------------------------------------


@dataclass
class _Launched:
    machines: dict[int, Machine]
    lost: set[int] = field(default_factory=set)
    """Nodes whose machine is gone for the executor, whatever still runs there."""


class World:
    """One run. `seed` decides every delay; faults come from outside. There is room for `nodes` nodes of `processes` ranks;
    `blocking`: survivors of a dead peer stay in their collective, as under NCCL."""

    def __init__(
        self, loop: VirtualLoop, root: Path, template: Path, seed: int, *, nodes: int = 2, processes: int = 1, blocking: bool = False
    ) -> None:
        self.loop, self.root, self.slots, self.blocking = loop, root, nodes * processes, blocking
        self.spec = {**SPEC, "resources": {**SPEC["resources"], "processes_per_node": processes}}
        self.rng = random.Random(seed)
        self.time = VirtualTime(loop)
        self.database = root / "luthier.db"
        InlineStore.copy(template, self.database)
        self.trace: list[str] = []
        self.errors: list[BaseException] = []
        self.calls: list[Call] = []
        self.stores: dict[str, JobStore] = {}
        self.groups: dict[tuple[str, Fence, str], Group] = {}
        self.launches: dict[str, _Launched] = {}
        self.machines: list[Machine] = []
        self.scanned: dict[str, list[Saved]] = {}
        """What node 0 found when it opened an address."""
        self.bad_nodes: dict[tuple[str, int], bool] = {}
        self.slow_network_until = -1.0
        self.graves: list[tuple[SimController, list[asyncio.Task[Any]]]] = []
        self.controllers: list[SimController] = []
        self._beside: set[asyncio.Task[None]] = set()
        self._incarnations = 0
        self._ports = 1000
        self._change = asyncio.Event()
        self._machine: Machine | None = None
        self.monitor = Monitor(self)

    # --- looking -----------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.loop.time():9.2f}  {text}")

    def failed(self, error: BaseException) -> None:
        """A part of production raised what it must not."""
        self.errors.append(error)
        self.say(f"ERROR {type(error).__name__}: {error}")

    @property
    def controller(self) -> SimController | None:
        """The newest one that lives."""
        return next((c for c in reversed(self.controllers) if not c.dead), None)

    def listening(self, machine: Machine) -> SimController | None:
        """Who answers this machine now."""
        if machine.dead or self.loop.time() < machine.cut_until:
            return None
        return self.controller

    def delay(self) -> float:
        """Of one message."""
        slow = self.loop.time() < self.slow_network_until
        return self.rng.uniform(0.0, 5.0) if slow else self.rng.uniform(0.0005, 0.02)

    def job(self, name: str) -> JobRecord | None:
        """As it is stored."""
        return self.monitor.jobs().get(name)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Beside the script."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    # --- machines ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def as_machine(self, machine: Machine) -> Any:
        """What is constructed now belongs to this machine."""
        before, self._machine = self._machine, machine
        try:
            yield
        finally:
            self._machine = before

    def launch(self, launch: Launch) -> None:
        """Start what does not run."""
        if launch.name in self.launches:
            return
        self.monitor.launching(launch)
        machines = {}
        for item in launch.nodes:
            told = NodeLaunch(
                job_uid=launch.job_uid,
                job_name="tune",
                tenant=TENANT,
                attempt=launch.attempt,
                node=item.index,
                num_nodes=len(launch.nodes),
                processes=item.cpu_slots,
                controller=str(item.config["controller"]),
                token=str(item.config["token"]),
                store_root=str(self.root / "store"),
                spec=self.spec,
            )
            machines[item.index] = self._start(told, launch.name)
        self.launches[launch.name] = _Launched(machines)
        self.say(f"{launch.name} is launched with {len(machines)} nodes")

    def _start(self, told: NodeLaunch, name: str) -> Machine:
        self._incarnations += 1
        directory = self.root / "nodes" / name / f"n{told.node}"
        machine = Machine(self, told, name, directory, self._incarnations)
        self.machines.append(machine)
        return machine

    def snapshot(self) -> Snapshot:
        """What runs and what is remembered."""
        nodes = {}
        for name, launched in self.launches.items():
            for index, machine in launched.machines.items():
                gone = machine.dead or index in launched.lost
                code = machine.exit_code if machine.dead and index not in launched.lost else None
                nodes[name, index] = NodeObservation(name, index, "gone" if gone else "running", code)
        return Snapshot(nodes)

    async def changed(self) -> None:
        """Until something may look different."""
        await asyncio.sleep(1.0)

    def stop(self, name: str, grace: float) -> None:
        """SIGTERM, then SIGKILL."""
        launched = self.launches.get(name)
        for machine in list(launched.machines.values()) if launched else []:
            machine.terminate()
            self.loop.call_later(grace, machine.die, -9)

    def remove(self, name: str) -> None:
        """Forget."""
        self.launches.pop(name, None)

    def running(self) -> list[Machine]:
        """Machines that the executor shows as running, in order."""
        return [m for launched in self.launches.values() for i, m in launched.machines.items() if not m.dead and i not in launched.lost]

    def restart_node(self, machine: Machine, *, zombie: bool) -> None:
        """The pod starts again under a new incarnation; with `zombie` the old one lives on, cut off for a while."""
        launched = self.launches[machine.name]
        if zombie:
            machine.cut_until = self.loop.time() + 40.0
            for call in [c for c in self.calls if c._machine is machine]:
                call.cut(self.rng.uniform(0.0, 5.0))
            self.loop.call_later(300.0, machine.die, -9)
        else:
            machine.die(-9)
        launched.machines[machine.launch.node] = self._start(machine.launch, machine.name)

    def lose(self, machine: Machine) -> None:
        """The machine is gone for the executor; its processes run on, cut off, and are heard again much later."""
        self.launches[machine.name].lost.add(machine.launch.node)
        machine.cut_until = self.loop.time() + 120.0
        for call in [c for c in self.calls if c._machine is machine]:
            call.cut(self.rng.uniform(0.0, 20.0))
        self.loop.call_later(900.0, machine.die, -9)

    async def heal(self) -> None:
        """No more faults: whatever was cut off is heard, full disks are emptied, somebody starts the controller."""
        self.say("HEAL")
        self.slow_network_until = -1.0
        for machine in self.machines:
            machine.cut_until = min(machine.cut_until, self.loop.time())
        for store in self.stores.values():
            store.full_until = -1.0
        self.bad_nodes.clear()
        await asyncio.sleep(1.0)

    def group(self, machine: Machine, formed: pb.Formed) -> Group:
        """The group that meets at an address."""
        uid = machine.launch.job_uid
        fence = (formed.fence.attempt, formed.fence.generation)
        key = (uid, fence, formed.address)
        if key not in self.groups:
            store = self.job_store(uid)
            self.groups[key] = Group(fence, formed, store, PLAN, 3, self.rng, self.blocking, self.say)
        return self.groups[key]

    def job_store(self, uid: str) -> JobStore:
        """Of one job."""
        return self.stores.setdefault(uid, JobStore())

    # --- the controller and its client ---------------------------------------------------------------------------------

    async def start_controller(self) -> SimController:
        """A new life over the same database."""
        made = SimController(self, len(self.controllers) + 1)
        await made.start()
        self.controllers.append(made)
        self.say(f"controller {made.number} starts")
        return made

    async def write(self, what: str, function: Callable[[Transaction], Any]) -> Any:
        """A client's call, repeated until a controller has answered; a refusal is an answer."""
        for _ in range(10_000):
            controller = self.controller
            if controller is not None and controller.frozen is None:
                task = asyncio.create_task(controller.store.transact(function))
                while not task.done() and not controller.dead:
                    await asyncio.wait({task}, timeout=0.2)
                if task.done():
                    try:
                        answer = task.result()
                    except LeadershipLost:
                        pass
                    except LuthierError as error:
                        self.say(f"client: {what} is refused: {error.reason}")
                        return None
                    else:
                        self.say(f"client: {what} is acknowledged")
                        return answer
                task.cancel()
            await asyncio.sleep(0.5)
        raise AssertionError(f"no controller ever answered {what}")

    async def create(self, name: str, uid: str, dependencies: tuple[Mapping[str, str], ...] = ()) -> None:
        """CreateJob with a request id, as the service stores it."""

        def insert(tx: Transaction) -> JobRecord:
            earlier = tx.find_request(TENANT, uid)
            if earlier is not None:
                found = tx.job(earlier[1])
                assert found is not None
                return found
            record = JobRecord(
                uid=uid,
                tenant=TENANT,
                name=name,
                spec=self.spec,
                method="sft",
                queue="default",
                priority=0,
                create_time=tx.now,
                dependencies=dependencies,
            )
            return tx.insert_job(record, request_id=uid, body_hash="h")

        await self.write(f"create {name}", insert)
        self.monitor.acknowledged(uid)

    async def verb(self, verb: str, name: str, *arguments: Any) -> Any:
        """pause, resume, cancel, retry, delete."""
        function: Any = getattr(verbs, verb)
        return await self.write(f"{verb} {name}{arguments or ''}", lambda tx: function(tx, TENANT, name, *arguments))

    async def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait in virtual time."""
        deadline = self.loop.time() + seconds
        while not condition():
            self.check()
            assert self.loop.time() < deadline, f"{what} did not happen within {seconds:g} s"
            await asyncio.sleep(0.25)

    def check(self) -> None:
        """Raise what was found wrong."""
        if self.errors:
            raise self.errors[0]

    def ended(self, name: str) -> bool:
        """Whether the job is terminal."""
        job = self.job(name)
        return job is None or job.state in TERMINAL

    async def close(self) -> None:
        """End everything that still runs."""
        for controller in self.controllers:
            controller.dead = True
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for controller in self.controllers:
            await controller.store.close()
        for machine in self.machines:
            machine.node._spool.close()
        self.monitor.close()

    # --- seams ---------------------------------------------------------------------------------------------------------

    def seams(self) -> contextlib.ExitStack:
        """Replace what production takes from the machine: time, sockets, processes, files of ranks."""
        stack = contextlib.ExitStack()
        world = self

        def stub(_: Any) -> Any:
            machine = world.machine_of_task()
            return SimpleNamespace(Attach=lambda: Call(world, machine))

        @contextlib.asynccontextmanager
        async def channel(*_: Any, **__: Any) -> AsyncIterator[None]:
            yield None

        aio = SimpleNamespace(insecure_channel=channel, AioRpcError=grpc.aio.AioRpcError, EOF=grpc.aio.EOF)

        node_host = NodeLaunch.host

        def listen(*_: Any, **__: Any) -> Any:
            world._ports += 1
            port = world._ports
            return SimpleNamespace(close=lambda: None, fileno=lambda: -1, getsockname=lambda: ("h", port))

        def scan(prefix: Path) -> Any:
            store = world.job_store(prefix.name)
            world.scanned[f"{node_host}:{world._ports}"] = [*store.checkpoints.values(), *store.journal.values()]
            return store.scan()

        for module in (node, spool, attach, report):
            stack.enter_context(mock.patch.object(module, "time", self.time))
        replaced = [
            (attach, "grpc", SimpleNamespace(aio=aio, StatusCode=grpc.StatusCode)),
            (attach, "pb_grpc", SimpleNamespace(NodeServiceStub=stub)),
            (attach, "random", SimpleNamespace(Random=lambda: random.Random(world.rng.random()))),
            (attach, "LOG_SECONDS", 5.0),
            (node, "socket", SimpleNamespace(create_server=listen)),
            (node, "LogTail", _NoLogs),
            (node, "Exporter", _NoExporter),
            (node, "RankStarter", lambda *_: _Starter(world._built())),
            (node, "scan_store", scan),
            (node, "check_shared", lambda *_: ""),
            (node, "forget_marks", lambda *_: None),
            (node, "last_lines", lambda *_: []),
            (node, "installed_versions", lambda: {"torch": "2"}),
            (attaching, "apply_fact", self.monitor.applying(apply_fact)),
        ]
        for module, name, value in replaced:
            stack.enter_context(mock.patch.object(module, name, value))
        return stack

    def _built(self) -> Machine:
        assert self._machine is not None
        return self._machine

    def machine_of_task(self) -> Machine:
        """The machine whose agent runs the current task."""
        current = asyncio.current_task()
        for machine in self.machines:
            if current in machine.node._tasks:
                return machine
        raise AssertionError("a stream without a machine")

    def states(self) -> dict[str, JobState]:
        """For messages."""
        return {name: job.state for name, job in self.monitor.jobs().items()}
