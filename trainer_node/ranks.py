"""The ranks of one node: start them, hear them, tell them the control word, learn how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.trainer_node.forking import UNKNOWN_EXIT, RankProcess, ZygoteClient
from luthier.trainer_node.launch import RankLaunch, Section
from luthier.trainer_node.node_files import log_file, stack_file

__all__ = ["LocalRank", "RankEnd", "start_rank"]

_log = logging.getLogger(__name__)

_DRAIN_SECONDS = 1.0
_VMSTAT = Path("/proc/vmstat")

Listener = Callable[["LocalRank", Mapping[str, Any]], None]


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended: exit code (negative for a signal, `UNKNOWN_EXIT` when nobody knows) and a sentence for people."""

    code: int
    message: str


@dataclass
class LocalRank:
    """One rank of the present generation, from fork to end."""

    rank: int
    local_rank: int
    node_dir: Path
    process: RankProcess
    section: Section = "setup"
    step: int = 0
    phase_index: int = 0
    heard: float = field(default_factory=time.monotonic)
    """When it last gave a sign of life."""
    last_words: tuple[int, str] | None = None
    killed_as: str = ""
    """ "reaped" or "hung" when the agent killed it."""
    was_stopped: bool = False
    """The process was stopped by a signal when it was found hung."""
    end: RankEnd | None = None
    _channel: socket.socket | None = None
    _lifeline: int = -1
    _received: bytearray = field(default_factory=bytearray)
    _closed: asyncio.Event = field(default_factory=asyncio.Event)
    _oom_kills: int = 0

    @property
    def alive(self) -> bool:
        return self.end is None

    def tell(self, word: str, grace: float | None) -> None:
        """Give the control word; a rank that does not read it for long is hung, which is another matter."""
        if self._channel is None:
            return
        line = json.dumps({"t": "control", "word": word, "grace": grace}).encode() + b"\n"
        try:
            self._channel.send(line)
        except OSError as error:
            _log.warning("rank %d did not take the control word %s: %s", self.rank, word, error)

    def kill(self, why: str) -> None:
        """SIGKILL; a blocked rank hears nothing else."""
        if self.alive and not self.killed_as:
            self.killed_as = why
        if why == "hung":
            self.was_stopped = _is_stopped(self.process.pid)
        if self.alive:
            self.process.kill(signal.SIGKILL)

    async def stacks(self, seconds: float = 2.0) -> str:
        """The stacks of its threads, written by the signal handler of faulthandler, which needs no Python to run."""
        path = stack_file(self.node_dir, self.rank)
        start = path.stat().st_size if path.exists() else 0
        self.process.kill(signal.SIGUSR1)
        deadline, size = time.monotonic() + seconds, start
        while time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            now = path.stat().st_size if path.exists() else 0
            if now > start and now == size:
                break
            size = now
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(start)
            return file.read(256 * 1024).decode(errors="replace")
        return ""

    def listen(self, listener: Listener) -> None:
        """Hand every message to `listener` from now on."""
        assert self._channel is not None
        asyncio.get_running_loop().add_reader(self._channel, self._read, listener)

    async def finish(self) -> RankEnd:
        """Wait for the end, after everything that the rank has sent was heard."""
        code = await self.process.wait()
        with contextlib.suppress(TimeoutError):  # a process that the rank started may hold the channel open
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._closed.wait()
        self._close()
        words = self.last_words
        if code is None:
            code = words[0] if words else UNKNOWN_EXIT
        message = words[1] if words and words[0] == code else ""
        if not message and code not in (0, 75):
            message = self._explain(code)
        self.end = RankEnd(code, message)
        return self.end

    def _explain(self, code: int) -> str:
        if self.killed_as == "hung":
            stopped = "; its process had been stopped by a signal" if self.was_stopped else ""
            return f"silent for too long in section {self.section} at step {self.step}{stopped}; its stacks are in its log"
        if self.killed_as:
            return "killed on request of the controller"
        if code == UNKNOWN_EXIT:
            return "ended without last words, and its exit code is not known"
        if code >= 0:
            return f"ended with exit code {code} without last words"
        name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else str(-code)
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return "killed by the host's out-of-memory killer. Fix: a smaller training.micro_batch_size, or fewer processes on this machine"
        return f"killed by signal {name}"

    def _read(self, listener: Listener) -> None:
        assert self._channel is not None
        try:
            data = self._channel.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._closed.set()
            return
        self.heard = time.monotonic()
        self._received += data
        while (end := self._received.find(b"\n")) >= 0:
            message = json.loads(self._received[:end])
            del self._received[: end + 1]
            if message["t"] == "exit":
                self.last_words = (int(message["code"]), str(message["message"]))
            listener(self, message)

    def _close(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


async def start_rank(zygote: ZygoteClient, launch: RankLaunch, listener: int | None, node_dir: Path) -> LocalRank:
    """Fork one rank. `listener` is the listening descriptor for rank 0. Raises `ZygoteFailed`."""
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    log = os.open(log_file(node_dir, launch.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    kills = _oom_kills()
    try:
        fork: Awaitable[RankProcess] = zygote.fork(launch, channel=theirs.fileno(), lifeline=read_end, log=log, listener=listener)
        process = await fork
    except BaseException:
        ours.close()
        os.close(write_end)
        raise
    finally:
        theirs.close()
        os.close(read_end)
        os.close(log)
    ours.setblocking(False)
    rank = LocalRank(launch.rank, launch.local_rank, node_dir, process)
    rank._channel, rank._lifeline, rank._oom_kills = ours, write_end, kills
    return rank


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


def _oom_kills() -> int:
    """Processes that the host's out-of-memory killer has ended since boot."""
    with contextlib.suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
