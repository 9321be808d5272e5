"""The agent's side of the zygote: find or start it, ask it for ranks, learn how they ended. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.trainer_node.environment import environment_home, socket_address
from luthier.trainer_node.launch import RankLaunch
from luthier.trainer_node.orphans import Reaper, not_a_subreaper

__all__ = ["UNKNOWN_EXIT", "RankProcess", "ZygoteClient", "ZygoteFailed", "ensure_zygote"]

UNKNOWN_EXIT = -1000
"""Exit code of a rank of which nothing is known but that it is gone."""

_STATUS_SECONDS = 2.0
"""How long a zygote may take to report the status of a process that is gone."""

_VANISHED_SECONDS = 3.0
"""A zygote that neither holds its lock nor answers for so long has failed (between its two starts it holds no lock for a moment)."""

_OWNED_IDLE_SECONDS = 5.0


class ZygoteFailed(LuthierError):
    """The training stack cannot be imported (`retry` False), or the zygote died or was too slow (`retry` True)."""

    reason = "ZYGOTE_FAILED"

    def __init__(self, message: str, *, retry: bool, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.retry = retry


@dataclass
class _Request:
    forked: asyncio.Future[tuple[int, int]]
    """(pid, pidfd)."""
    ended: asyncio.Future[int | None]
    """Status of waitpid; None when the zygote died first."""


class RankProcess:
    """A forked rank. `pidfd` names the process safely for as long as it is open."""

    def __init__(self, pid: int, pidfd: int, ended: asyncio.Future[int | None], reaper: Reaper | None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._ended = ended
        self._reaper = reaper

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when the process is gone."""
        with contextlib.suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self.pidfd, number)

    async def wait(self) -> int | None:
        """Exit code (negative for a signal) once the process is gone; None when nobody knows it. Call once."""
        loop = asyncio.get_running_loop()
        gone = loop.create_future()

        def ended() -> None:
            if not gone.done():
                gone.set_result(None)

        loop.add_reader(self.pidfd, ended)
        try:
            await gone
        finally:
            loop.remove_reader(self.pidfd)
        status: int | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_SECONDS):
                status = await asyncio.shield(self._ended)
        if status is None and self._reaper is not None:
            status = self._reaper.take(self.pid)
        os.close(self.pidfd)
        self.pidfd = -1
        return None if status is None else os.waitstatus_to_exitcode(status)


class ZygoteClient:
    """One connection to a zygote. When it closes, the zygote kills the ranks that were forked over it."""

    def __init__(self, sock: socket.socket, reaper: Reaper | None = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reaper = reaper
        self._requests: dict[int, _Request] = {}
        self._next = 1
        self._data = bytearray()
        self._descriptors: list[int] = []
        self._sending = asyncio.Lock()
        self.closed = False
        asyncio.get_running_loop().add_reader(sock, self._read)

    async def fork(self, launch: RankLaunch, *, channel: int, lifeline: int, log: int, listener: int | None) -> RankProcess:
        """Fork a rank with these descriptors (the caller keeps and closes its own copies). Raises `ZygoteFailed`."""
        if self.closed:
            raise ZygoteFailed("the zygote is gone", retry=True)
        loop = asyncio.get_running_loop()
        number, self._next = self._next, self._next + 1
        request = _Request(loop.create_future(), loop.create_future())
        self._requests[number] = request
        line = json.dumps({"op": "fork", "id": number, "launch": launch.to_json()}).encode() + b"\n"
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if listener is None else None
        try:
            async with self._sending:
                await self._send(line, [channel, lifeline, log, null if listener is None else listener])  # type: ignore[list-item]
            pid, pidfd = await request.forked
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}", retry=True) from error
        finally:
            if null is not None:
                os.close(null)
        return RankProcess(pid, pidfd, request.ended, self._reaper)

    def close(self) -> None:
        """Close the connection; ranks that still live are killed by the zygote."""
        if self.closed:
            return
        self.closed = True
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        for request in self._requests.values():
            if not request.forked.done():
                request.forked.set_exception(ZygoteFailed("the zygote ended before it answered", retry=True))
            if not request.ended.done():
                request.ended.set_result(None)
        self._requests.clear()

    async def _send(self, line: bytes, descriptors: list[int]) -> None:
        sent = 0
        while not sent:
            try:
                sent = socket.send_fds(self._sock, [line[:65536]], descriptors)
            except BlockingIOError:
                await asyncio.sleep(0.01)
        await asyncio.get_running_loop().sock_sendall(self._sock, line[sent:])

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, 65536, 16)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._descriptors += descriptors
        if not data:
            self.close()
            return
        self._data += data
        while (end := self._data.find(b"\n")) >= 0:
            message: dict[str, Any] = json.loads(self._data[:end])
            del self._data[: end + 1]
            request = self._requests[message["id"]]
            if "status" in message:
                del self._requests[message["id"]]
                if not request.ended.done():
                    request.ended.set_result(message["status"])
            elif not request.forked.done():
                request.forked.set_result((message["pid"], self._descriptors.pop(0)))


async def ensure_zygote(
    base: Path,
    *,
    device: str = "cpu",
    idle_seconds: float = 600.0,
    owned: bool = False,
    deadline_seconds: float = 300.0,
    reaper: Reaper | None = None,
) -> ZygoteClient:
    """Connect to the zygote of this environment below `base`; start one when there is none.

    `owned`: it is a child of this process and ends with it; otherwise it leaves the process tree and outlives its starter.
    Raises `ZygoteFailed` with the last lines of its log when it cannot import the stack or is not ready in time.
    """
    home = environment_home(base, device)
    deadline = time.monotonic() + deadline_seconds
    started = False
    vanished: float | None = None
    while True:
        sock = _connect(home)
        if sock is not None:
            return ZygoteClient(sock, reaper)
        now = time.monotonic()
        if _is_locked(home):
            vanished = None
        elif not started:
            started = True
            await asyncio.to_thread(_start, base, device, _OWNED_IDLE_SECONDS if owned else idle_seconds, owned)
        elif vanished is None:
            vanished = now
        elif now - vanished > _VANISHED_SECONDS:
            raise ZygoteFailed(
                f"the training stack could not be imported: {_log_tail(home)}",
                retry=False,
                fix=f"check the installation of torch, deepspeed, transformers and peft; the log is {home / 'zygote.log'}",
            )
        if now > deadline:
            problem = f"the zygote was not ready within {deadline_seconds:.0f} s"
            raise ZygoteFailed(problem, retry=True, fix=f"see {home / 'zygote.log'}")
        await asyncio.sleep(0.02 if now - deadline + deadline_seconds < 1 else 0.1)


def _connect(home: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(home / "zygote.sock") as address:
            sock.connect(address)
    except OSError:
        sock.close()
        return None
    return sock


def _is_locked(home: Path) -> bool:
    try:
        lock = os.open(home / "zygote.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def _start(base: Path, device: str, idle_seconds: float, owned: bool) -> None:
    command = [sys.executable, "-P", "-m", "luthier.trainer_node.zygote", str(base), "--device", device]
    command += ["--idle-seconds", str(idle_seconds)]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    if owned:  # its connection keeps it; without one it goes away soon
        subprocess.Popen(command, start_new_session=True, **streams)
        return
    with not_a_subreaper():
        subprocess.Popen([*command, "--detach"], start_new_session=True, **streams).wait()


def _log_tail(home: Path, lines: int = 12) -> str:
    try:
        return " | ".join((home / "zygote.log").read_text(errors="replace").strip().splitlines()[-lines:])
    except OSError:
        return "there is no log"
