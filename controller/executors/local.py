"""Attempts as process trees on this machine: the default executor and the reference.

A node is a folder `<nodes dir>/<launch>/n<i>/` and an agent process in a session of its own. Everything needed to find it again lies
in the folder: `launch.json` (what it was told, 0600), `lock` (held by the agent), `pid.json` (pid and start time), `exit.json` (its
last words), `logs/`. So a controller that died leaves nodes running, and the next one adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from luthier.controller.config import ControllerConfig
from luthier.controller.executors.api import AttemptPlan, Launch, LaunchNode, NodeObservation, Snapshot
from luthier.controller.executors.processes import Identity, is_over, kill_tree, lock_holder, open_process, send, start
from luthier.controller.executors.zygotes import Zygotes
from luthier.errors import ExecutorError

__all__ = ["LocalExecutor", "agent_command", "node_environment"]

_KEPT = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_HOME", "SSL_CERT_FILE"}
)
_KEPT_PREFIXES = ("LC_", "NVIDIA_", "XDG_", "LUTHIER_FAILPOINT")

_TAIL_BYTES = 4096
"""Bytes of an agent's output that explain an end without last words."""


def agent_command(node_dir: Path) -> list[str]:
    """How an agent is started; `-P` keeps the working directory off its module path."""
    return [sys.executable, "-P", "-m", "luthier.trainer_node.agent", str(node_dir)]


def node_environment(present: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that nodes inherit; everything else, tokens first, stays here."""
    kept = {k: v for k, v in present.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
    return {"PATH": os.defpath, **kept, "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}


@dataclass
class _Node:
    launch: str
    index: int
    directory: Path
    devices: tuple[int, ...] = ()
    identity: Identity | None = None
    pidfd: int = -1
    process: subprocess.Popen[bytes] | None = None
    """Set when this controller started it: only a parent learns the exit code from the system."""
    gone: bool = False
    exit_code: int | None = None
    detail: str = ""
    kill_at: float | None = None
    """Loop time of the SIGKILL of a stop under way."""
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class LocalExecutor:
    """Nodes as processes. All methods run on the event loop's thread; slow ones use a worker thread."""

    def __init__(
        self,
        config: ControllerConfig,
        *,
        command: Callable[[Path], list[str]] = agent_command,
        environment: Mapping[str, str] | None = None,
        cores: int | None = None,
    ) -> None:
        self._config = config
        self._command = command
        self._environment = node_environment(os.environ if environment is None else environment)
        # What a node may count on between SIGTERM and SIGKILL; it saves only where that is long enough.
        self._environment["LUTHIER_TERM_GRACE_SECONDS"] = f"{config.stop_grace_seconds:g}"
        self._cores = cores or len(os.sched_getaffinity(0))
        self._nodes: dict[tuple[str, int], _Node] = {}
        self._wake = asyncio.Event()
        self._launching = asyncio.Lock()
        self._zygotes = Zygotes(config.zygote_home, config.zygote_idle_seconds, self._environment, owned=config.zygote_dir is None)

    # --- life of the executor ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Adopt what runs in the nodes folder; remember what ended there."""
        self._config.nodes_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in sorted(self._config.nodes_dir.glob("*/n*")):
            if folder.name[1:].isdecimal() and (folder / "launch.json").exists():
                self._adopt(folder.parent.name, int(folder.name[1:]), folder)

    async def close(self, *, stop_helpers: bool) -> None:
        """Stop watching. Nodes run on; with `stop_helpers` the idle zygotes of this state directory end."""
        for node in self._nodes.values():
            self._unwatch(node)
            if node.process is not None and node.process.returncode is None:
                node.process.returncode = 0  # it runs on by design: no ResourceWarning, no zombie hunt
        self._nodes.clear()
        await self._zygotes.close(stop=stop_helpers)

    async def prewarm(self, device: str) -> None:
        """Start the shared zygote unless it runs."""
        await self._zygotes.start(device)

    # --- the protocol -----------------------------------------------------------------------------------------------

    def prepare(self, attempt: AttemptPlan) -> Launch:
        """What each node is told. Cores are shared between all ranks of the attempt: they all live on this machine."""
        ranks = attempt.num_nodes * attempt.processes
        wanted = (attempt.spec.get("training") or {}).get("threads_per_rank")
        threads = int(wanted) if wanted else max(1, self._cores // ranks)
        cuda = attempt.device == "cuda"
        nodes = []
        for index in range(attempt.num_nodes):
            config = {
                "job_uid": attempt.job_uid,
                "job_name": attempt.job_name,
                "tenant": attempt.tenant,
                "attempt": attempt.attempt,
                "node": index,
                "num_nodes": attempt.num_nodes,
                "processes": attempt.processes,
                "controller": "",
                "token": "",
                "store_root": str(self._config.store_root),
                "spec": attempt.spec,
                "inputs": dict(attempt.inputs),
                "host": "127.0.0.1",
                "device": attempt.device,
                "devices": [],
                "threads_per_rank": threads,
                "zygote_dir": str(self._config.zygote_home),
                "zygote_idle_seconds": self._config.zygote_idle_seconds,
                "cache_dir": str(self._config.cache_dir),
                "local": True,
            }
            nodes.append(LaunchNode(index, config, 0 if cuda else attempt.processes, attempt.processes if cuda else 0))
        return Launch(attempt.name, attempt.job_uid, attempt.attempt, tuple(nodes))

    async def launch(self, launch: Launch) -> None:
        """Start the nodes that neither run nor ran. Raises `ExecutorError`."""
        async with self._launching:
            for node in launch.nodes:
                if (launch.name, node.index) in self._nodes:
                    continue
                folder = self._config.nodes_dir / launch.name / f"n{node.index}"
                if (folder / "launch.json").exists() and self._adopt(launch.name, node.index, folder):
                    continue
                devices = self._free_devices(node.accelerators)
                try:
                    await asyncio.to_thread(self._write_folder, folder, {**node.config, "devices": devices})
                    process = await asyncio.to_thread(
                        start, self._command(folder), folder, self._environment, folder / "logs" / "agent.out"
                    )
                except OSError as error:
                    raise ExecutorError(
                        f"node {node.index} of {launch.name} could not be started: {error}",
                        retry=error.errno not in (13, 30),  # EACCES, EROFS
                        fix=f"look at free disk space, memory and the rights on {self._config.nodes_dir}",
                    ) from error
                self._started(launch.name, node.index, folder, process, devices)

    async def observe(self) -> Snapshot:
        """What is known now; ends that were not yet noticed are noticed."""
        for node in list(self._nodes.values()):
            if not node.gone and node.pidfd < 0:
                self._find(node)
            elif not node.gone and is_over(node.pidfd):
                self._ended(node)
        return Snapshot({key: _observation(node) for key, node in self._nodes.items()})

    async def wakeups(self) -> AsyncIterator[None]:
        """After a node ended."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            yield

    async def stop(self, name: str, grace: timedelta) -> None:
        """SIGTERM to the agents, SIGKILL to their trees after `grace`. A repeat can only make it sooner."""
        loop = asyncio.get_running_loop()
        for node in self._of(name):
            if node.gone or node.pidfd < 0 or node.identity is None:
                continue
            due = loop.time() + max(0.0, grace.total_seconds())
            if node.kill_at is None:
                send(node.pidfd, signal.SIGTERM)
            elif node.kill_at <= due:
                continue
            node.kill_at = due
            if node.timer is not None:
                node.timer.cancel()
            node.timer = loop.call_at(due, self._kill, node)

    async def remove(self, name: str) -> None:
        """Forget a launch and its folders; refused while a node runs."""
        if any(not n.gone for n in self._of(name)):
            raise ExecutorError(f"nodes of {name} still run", retry=True)
        for node in self._of(name):
            del self._nodes[name, node.index]
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(shutil.rmtree, self._config.nodes_dir / name)

    def log_files(self, name: str, index: int) -> Mapping[int | None, Path]:
        """`logs/agent.out` is for this executor only; the others carry the names that the agent reports them by."""
        folder = self._config.nodes_dir / name / f"n{index}" / "logs"
        found: dict[int | None, Path] = {}
        for path in folder.glob("rank-*.log"):
            if path.stem[5:].isdecimal():
                found[int(path.stem[5:])] = path
        if (folder / "agent.log").exists():
            found[None] = folder / "agent.log"
        return found

    # --- one node ---------------------------------------------------------------------------------------------------

    def _of(self, name: str) -> list[_Node]:
        return [n for (launch, _), n in sorted(self._nodes.items()) if launch == name]

    def _free_devices(self, wanted: int) -> tuple[int, ...]:
        if not wanted:
            return ()
        taken = {d for n in self._nodes.values() if not n.gone for d in n.devices}
        free = tuple(d for d in self._config.accelerators if d not in taken)
        if len(free) < wanted:
            raise ExecutorError(f"{wanted} accelerators are needed and {len(free)} are free", retry=True, fix="wait for the running jobs")
        return free[:wanted]

    def _write_folder(self, folder: Path, config: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "logs").mkdir(exist_ok=True)
        self._config.store_root.mkdir(parents=True, exist_ok=True)
        self._config.cache_dir.mkdir(parents=True, exist_ok=True)
        write_private(folder / "launch.json", config)

    def _started(self, launch: str, index: int, folder: Path, process: subprocess.Popen[bytes], devices: tuple[int, ...]) -> None:
        node = _Node(launch, index, folder, devices, process=process)
        self._nodes[launch, index] = node
        node.identity = Identity.of(process.pid)
        if node.identity is not None:
            # Exclusive: where an agent lives in this folder already, its own file stays, and the one just started gives way.
            with contextlib.suppress(FileExistsError), (folder / "pid.json").open("x") as file:
                json.dump(asdict(node.identity), file)
            node.pidfd = os.pidfd_open(process.pid)
            self._watch(node)
        else:
            self._ended(node)

    def _adopt(self, launch: str, index: int, folder: Path) -> bool:
        """Take over a folder of an earlier controller. False when nothing ever ran in it."""
        node = _Node(launch, index, folder, _devices(folder))
        if (
            not (folder / "pid.json").exists()
            and not (folder / "exit.json").exists()
            and lock_holder(folder / "lock", named=folder) is None
        ):
            return False
        self._nodes[launch, index] = node
        self._find(node)
        return True

    def _find(self, node: _Node) -> None:
        """Look up the process of a folder."""
        identity = Identity.read(node.directory / "pid.json")
        if identity is None and (holder := lock_holder(node.directory / "lock", named=node.directory)) is not None:
            identity = Identity.of(holder)
        node.identity = identity
        pidfd = open_process(identity) if identity is not None else None
        if pidfd is None:
            self._ended(node)
            return
        node.pidfd = pidfd
        self._watch(node)

    def _watch(self, node: _Node) -> None:
        asyncio.get_running_loop().add_reader(node.pidfd, self._ended, node)

    def _unwatch(self, node: _Node) -> None:
        if node.timer is not None:
            node.timer.cancel()
            node.timer = None
        if node.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(node.pidfd)
            os.close(node.pidfd)
            node.pidfd = -1

    def _ended(self, node: _Node) -> None:
        """The agent's process is over: learn why, end what it left behind, say so."""
        self._unwatch(node)
        code = node.process.wait() if node.process is not None else None
        holder = lock_holder(node.directory / "lock", named=node.directory)
        if holder is not None and node.identity is not None and holder != node.identity.pid:
            # The process that ended gave way to an agent that an earlier controller had started in this folder.
            node.process, node.identity = None, Identity.of(holder)
            if node.identity is not None and (pidfd := open_process(node.identity)) is not None:
                node.pidfd = pidfd
                self._watch(node)
                return
        if node.identity is not None:
            kill_tree(node.identity)
        words = _last_words(node.directory)
        node.gone = True
        node.exit_code = code if code is not None else words.get("code")
        node.detail = str(words.get("message") or "") or (_tail(node.directory / "logs" / "agent.out") if node.exit_code else "")
        self._wake.set()

    def _kill(self, node: _Node) -> None:
        node.timer = None
        if node.identity is not None and not node.gone:
            kill_tree(node.identity)


def write_private(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with mode 0600, all or nothing."""
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    fresh.rename(path)


def _observation(node: _Node) -> NodeObservation:
    return NodeObservation(
        launch=node.launch,
        index=node.index,
        state="gone" if node.gone else "running",
        exit_code=node.exit_code,
        handle=str(node.identity.pid) if node.identity else "",
        detail=node.detail,
        accelerator_ids=node.devices,
    )


def _devices(folder: Path) -> tuple[int, ...]:
    try:
        return tuple(int(d) for d in json.loads((folder / "launch.json").read_text()).get("devices") or ())
    except (OSError, ValueError):
        return ()


def _last_words(folder: Path) -> dict[str, Any]:
    try:
        words = json.loads((folder / "exit.json").read_text())
    except (OSError, ValueError):
        return {}
    return words if isinstance(words, dict) else {}


def _tail(path: Path) -> str:
    """The last lines of a file, for people."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
