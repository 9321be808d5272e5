"""The local executor with real processes: one run per name, ends observed, trees stopped, nothing foreign touched, adoption."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from luthier.controller.config import ControllerConfig
from luthier.controller.executors.api import AttemptPlan, Launch, NodeObservation
from luthier.controller.executors.local import LocalExecutor, node_environment
from luthier.controller.executors.processes import Identity, descendants
from luthier.errors import ExecutorError
from luthier.trainer_node.launch import NodeLaunch

AGENT = """
import fcntl, json, os, signal, subprocess, sys, time
folder, how = sys.argv[1:3]
lock = os.open(folder + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(76)
start = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
with open(folder + "/pid.new", "w") as file:
    json.dump({"pid": os.getpid(), "start_time": start}, file)
os.rename(folder + "/pid.new", folder + "/pid.json")
with open(folder + "/starts", "a") as file:
    file.write("x")
def leave(code, message):
    with open(folder + "/exit.json", "w") as file:
        json.dump({"code": code, "message": message}, file)
    os._exit(code)
signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "deaf" else lambda *_: leave(75, "left on request"))
if how == "crash":
    print("Traceback: something broke")
    sys.exit(3)
if how == "data":
    leave(65, "rows.jsonl:3 is not JSON")
if how in ("tree", "deaf"):
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleeper)
    subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=how == "deaf")
while True:
    time.sleep(600)
"""

SECONDS = 15.0


class World:
    """Executors over one state directory, and what they started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.how = "wait"
        script = root / "agent.py"
        script.write_text(AGENT)
        self.config = ControllerConfig(state_dir=root / "state", cpu_slots=8, accelerators=(0, 1, 2))
        self._script = script
        self._executors: list[LocalExecutor] = []

    async def executor(self) -> LocalExecutor:
        """Another one on the same directory, as a restarted controller has it."""
        made = LocalExecutor(self.config, command=lambda folder: [sys.executable, "-S", str(self._script), str(folder), self.how], cores=2)
        await made.open()
        self._executors.append(made)
        return made

    def launch(self, executor: LocalExecutor, *, name: str = "j1-a1", nodes: int = 1, device: str = "cpu", **changes: Any) -> Launch:
        """A launch of small nodes."""
        plan = AttemptPlan(
            name=name,
            job_uid="j1",
            job_name="tune",
            tenant="default",
            attempt=1,
            num_nodes=nodes,
            processes=1,
            device=device,  # type: ignore[arg-type]
            spec=changes.get("spec", {"method": {"name": "sft"}}),
            inputs={"data:rows": "/rows"},
        )
        return executor.prepare(plan)

    def folder(self, index: int = 0, name: str = "j1-a1") -> Path:
        return self.config.nodes_dir / name / f"n{index}"

    async def close(self) -> None:
        """End whatever the tests left, by what the folders say."""
        for executor in self._executors:
            for name in {n for n, _ in (await executor.observe()).nodes}:
                await executor.stop(name, timedelta(0))
            await executor.close(stop_helpers=False)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A state directory of its own."""
    made = World(tmp_path)
    yield made
    await made.close()


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)
    return value


async def observed(executor: LocalExecutor, state: str, name: str = "j1-a1", index: int = 0) -> NodeObservation:
    """Wait until a node is seen in a state."""
    deadline = time.monotonic() + SECONDS
    while True:
        node = (await executor.observe()).nodes.get((name, index))
        if node is not None and node.state == state:
            return node
        assert time.monotonic() < deadline, f"node {index} of {name} is {node}, not {state}"
        await asyncio.sleep(0.01)


async def running(world: World, executor: LocalExecutor, index: int = 0) -> int:
    """Wait until an agent runs in its folder; its pid."""
    starts = world.folder(index) / "starts"
    await until(lambda: starts.exists() and starts.read_text(), "the agent did not start")
    return int((await observed(executor, "running", index=index)).handle)


async def grown(pid: int) -> list[int]:
    """Wait until an agent has started its three descendants; their pids."""
    identity = Identity.of(pid)
    assert identity is not None
    await until(lambda: len(descendants(identity)) >= 3, "the tree did not grow")
    return [i.pid for i in descendants(identity)]


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    return Identity.of(pid) is not None


@pytest.mark.asyncio
async def test_launching_twice_is_one_run(world: World) -> None:
    """A repeated launch, by this executor or by the next one, starts nothing."""
    executor = await world.executor()
    launch = world.launch(executor, nodes=2)
    await executor.launch(launch)
    pids = [await running(world, executor, i) for i in range(2)]
    await executor.launch(launch)
    after = await world.executor()
    await after.launch(launch)

    assert [await running(world, after, i) for i in range(2)] == pids
    assert [(world.folder(i) / "starts").read_text() for i in range(2)] == ["x", "x"]


@pytest.mark.asyncio
async def test_a_second_agent_in_a_folder_gives_way(world: World) -> None:
    """When a controller died between start and note, the relaunch's agent leaves and the first one is adopted."""
    executor = await world.executor()
    launch = world.launch(executor)
    world.folder().mkdir(parents=True)
    first = subprocess.Popen([sys.executable, "-S", str(world.root / "agent.py"), str(world.folder()), "wait"], start_new_session=True)
    starts = world.folder() / "starts"
    await until(lambda: starts.exists() and starts.read_text(), "the first agent did not start")
    await executor.launch(launch)
    node = await observed(executor, "running")
    await until(lambda: is_alive(first.pid), "the first agent lives")

    async def adopted() -> str:
        return (await executor.observe()).nodes["j1-a1", 0].handle

    deadline = time.monotonic() + SECONDS
    while await adopted() != str(first.pid):
        assert time.monotonic() < deadline, f"{node} was not replaced by {first.pid}"
        await asyncio.sleep(0.01)
    await executor.stop("j1-a1", timedelta(seconds=5))
    assert first.wait(timeout=SECONDS) == 75


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("how", "code", "detail"),
    [("crash", 3, "Traceback: something broke"), ("data", 65, "rows.jsonl:3 is not JSON")],
)
async def test_an_end_is_observed_with_its_reason(world: World, how: str, code: int, detail: str) -> None:
    """Exit code and last words, or the last lines of the agent's output, and a hint to look."""
    world.how = how
    executor = await world.executor()
    hints = aiter(executor.wakeups())
    hint = asyncio.ensure_future(anext(hints))
    await executor.launch(world.launch(executor))
    node = await observed(executor, "gone")
    async with asyncio.timeout(SECONDS):
        await hint

    assert (node.exit_code, node.detail) == (code, detail)


@pytest.mark.asyncio
async def test_a_kill_is_observed_and_takes_the_tree_along(world: World) -> None:
    """kill -9 of an agent: a negative exit code, and nothing that it had started lives on."""
    world.how = "tree"
    executor = await world.executor()
    await executor.launch(world.launch(executor))
    pid = await running(world, executor)
    tree = await grown(pid)
    os.kill(pid, signal.SIGKILL)
    node = await observed(executor, "gone")

    assert node.exit_code == -9
    await until(lambda: not any(is_alive(p) for p in tree), "children of a dead agent live on")


@pytest.mark.asyncio
async def test_stop_asks_and_then_kills_the_whole_tree(world: World) -> None:
    """A deaf agent is killed after the grace with all its descendants, also those in sessions of their own; a repeat is harmless."""
    world.how = "deaf"
    executor = await world.executor()
    await executor.launch(world.launch(executor))
    pid = await running(world, executor)
    tree = await grown(pid)
    await executor.stop("j1-a1", timedelta(seconds=60))
    await executor.stop("j1-a1", timedelta(seconds=60))
    assert is_alive(pid)
    await executor.stop("j1-a1", timedelta(0))
    node = await observed(executor, "gone")

    assert node.exit_code == -9
    await until(lambda: not any(is_alive(p) for p in tree), "descendants live on")


@pytest.mark.asyncio
async def test_stop_is_heard(world: World) -> None:
    """An agent that leaves on SIGTERM is not killed."""
    executor = await world.executor()
    await executor.launch(world.launch(executor))
    await running(world, executor)
    await executor.stop("j1-a1", timedelta(seconds=30))
    node = await observed(executor, "gone")

    assert (node.exit_code, node.detail) == (75, "left on request")
    await executor.stop("j1-a1", timedelta(0))


@pytest.mark.asyncio
async def test_nothing_foreign_is_ended(world: World) -> None:
    """A folder that names a stranger's process, with another start time, is a node that is gone; the stranger lives."""
    stranger = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        identity = Identity.of(stranger.pid)
        assert identity is not None
        world.folder().mkdir(parents=True)
        (world.folder() / "launch.json").write_text("{}")
        (world.folder() / "pid.json").write_text(json.dumps({"pid": stranger.pid, "start_time": identity.start_time - 1}))
        executor = await world.executor()
        node = await observed(executor, "gone")
        await executor.stop("j1-a1", timedelta(0))
        await executor.remove("j1-a1")

        assert node.exit_code is None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.asyncio
async def test_nodes_outlive_their_controller_and_are_adopted(world: World) -> None:
    """After a restart running nodes are found and watched; one that ended meanwhile is gone with the code of its last words."""
    first = await world.executor()
    await first.launch(world.launch(first, nodes=2))
    pids = [await running(world, first, i) for i in range(2)]
    await first.close(stop_helpers=False)
    os.kill(pids[1], signal.SIGTERM)
    await until((world.folder(1) / "exit.json").exists, "node 1 did not leave")
    second = await world.executor()

    assert (await observed(second, "running")).handle == str(pids[0])
    assert (await observed(second, "gone", index=1)).exit_code == 75
    os.kill(pids[0], signal.SIGTERM)
    assert (await observed(second, "gone")).exit_code == 75


@pytest.mark.asyncio
async def test_a_launch_is_forgotten_only_when_its_nodes_are_gone(world: World) -> None:
    """Remove is refused while a node runs, and then takes the folder along; removing the unknown is fine."""
    executor = await world.executor()
    await executor.launch(world.launch(executor))
    await running(world, executor)
    with pytest.raises(ExecutorError, match="still run"):
        await executor.remove("j1-a1")
    await executor.stop("j1-a1", timedelta(seconds=5))
    await observed(executor, "gone")
    await executor.remove("j1-a1")
    await executor.remove("j1-a1")

    assert (await executor.observe()).nodes == {}
    assert not (world.config.nodes_dir / "j1-a1").exists()


@pytest.mark.asyncio
async def test_accelerators_are_given_once(world: World) -> None:
    """Each node gets devices of its own; when none are left the launch may be tried again later, and ended nodes give theirs back."""
    executor = await world.executor()
    await executor.launch(world.launch(executor, nodes=2, device="cuda"))
    devices = [json.loads((world.folder(i) / "launch.json").read_text())["devices"] for i in range(2)]
    with pytest.raises(ExecutorError) as refused:
        await executor.launch(world.launch(executor, name="j2-a1", nodes=2, device="cuda"))

    assert (devices, refused.value.retry) == ([[0], [1]], True)
    await executor.stop("j1-a1", timedelta(seconds=5))
    for i in range(2):
        await observed(executor, "gone", index=i)
    await executor.launch(world.launch(executor, name="j2-a1", nodes=2, device="cuda"))
    assert json.loads((world.folder(1, "j2-a1") / "launch.json").read_text())["devices"] == [0]


@pytest.mark.asyncio
async def test_a_node_is_told_everything_in_its_own_folder(world: World) -> None:
    """`launch.json` is what `NodeLaunch` reads, mode 0600; cores are shared by all ranks, unless the job says otherwise."""
    executor = await world.executor()
    launch = world.launch(executor, nodes=2)
    assert launch == world.launch(executor, nodes=2)
    await executor.launch(launch)
    path = world.folder(1) / "launch.json"
    told = NodeLaunch.read(path)

    assert (told.node, told.num_nodes, told.processes, told.device, told.local) == (1, 2, 1, "cpu", True)
    assert (told.inputs, told.threads_per_rank, told.store_root) == ({"data:rows": "/rows"}, 1, str(world.config.store_root))
    assert path.stat().st_mode & 0o777 == 0o600
    asked = world.launch(executor, spec={"training": {"threads_per_rank": 3}})
    assert asked.nodes[0].config["threads_per_rank"] == 3


def test_nodes_inherit_an_allow_list() -> None:
    """No token and nothing unknown of the controller's environment reaches a node."""
    given = {
        "PATH": "/bin",
        "LANG": "C",
        "LC_ALL": "C",
        "LUTHIER_TOKEN": "t",
        "AWS_SECRET_ACCESS_KEY": "s",
        "PYTHONPATH": "/x",
        "LD_PRELOAD": "y",
    }
    kept = node_environment(given)

    assert {k: kept.get(k) for k in given} == {**dict.fromkeys(given), "PATH": "/bin", "LANG": "C", "LC_ALL": "C"}
