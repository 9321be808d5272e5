"""The zygote: imports the training stack once, initialises nothing, and forks ranks on request.

Run as `python -P -m luthier.trainer_node.zygote DIR [--device cpu|cuda] [--idle-seconds N] [--detach]`. It lives in
`DIR/<environment>/` (see `luthier.trainer_node.environment`): a lock that only one zygote holds, a socket, `zygote.json`, a log. A second
start exits 0 at once. It runs no tensor operation, opens no CUDA context and starts no thread, so that a fork is safe; it holds no
job data. It outlives controllers and agents, kills the ranks of an agent whose connection closes, and goes away when idle or when other
code is installed.

Protocol, in JSON lines over a unix stream socket, same user only: `{"op": "fork", "id": n, "launch": RankLaunch}` with four
descriptors (channel, lifeline, log, listener or /dev/null); answers `{"id": n, "pid": p}` with a pidfd, and later
`{"id": n, "pid": p, "status": s}` with the status of waitpid.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from luthier.trainer_node.environment import environment_home, process_start_time, socket_address, zygote_environment
from luthier.trainer_node.launch import RankDescriptors, RankLaunch
from luthier.trainer_node.preimport import import_everything

__all__ = ["Zygote", "main", "take_lock"]

_LOOK_SECONDS = 30.0
"""An idle zygote looks so often whether its code is still what is installed; if not, nobody will ask it again."""

_MAX_REQUEST = 64 << 20
"""Bytes of one request; a specification is a few kilobytes."""


@dataclass
class _Connection:
    sock: socket.socket
    data: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Child:
    pid: int
    pidfd: int
    request: int
    connection: _Connection


def main(arguments: list[str] | None = None) -> None:
    """Entry point; returns when the zygote is idle or another one lives."""
    parser = argparse.ArgumentParser(prog="luthier.trainer_node.zygote")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--idle-seconds", type=float, default=600.0)
    parser.add_argument("--detach", action="store_true", help="leave the caller's process tree")
    options = parser.parse_args(arguments)
    home = environment_home(options.dir, options.device)
    _make_private(options.dir)
    _make_private(home)
    if options.detach and os.fork() > 0:
        os._exit(0)
    if options.detach:
        os.setsid()
    if not take_lock(home):
        return
    environment = zygote_environment(os.environ, home, options.device)
    if dict(os.environ) != environment:  # libraries read it when they load: start again with it (the lock closes and is taken again)
        command = [sys.executable, "-P", "-m", "luthier.trainer_node.zygote", str(options.dir), "--device", options.device]
        os.execve(sys.executable, [*command, "--idle-seconds", str(options.idle_seconds)], environment)  # noqa: S606
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _redirect(home)
    started = time.monotonic()
    import_everything()
    from luthier.trainer_node.ops import refuse_builds
    from luthier.trainer_node.rank import run_rank

    refuse_builds()
    gc.collect()
    gc.freeze()
    print(f"imported {len(sys.modules)} modules in {time.monotonic() - started:.1f} s", flush=True)
    Zygote(home, options.idle_seconds, run_rank).serve()


class Zygote:
    """The poll loop: accepts connections, forks, reaps, reports. `run_rank` never returns; it is called in the child."""

    def __init__(self, home: Path, idle_seconds: float, run_rank: Callable[[RankLaunch, RankDescriptors], NoReturn]) -> None:
        self._home = home
        self._device = home.name.partition("-")[0]
        self._idle_seconds = idle_seconds
        self._run_rank = run_rank
        self._connections: dict[int, _Connection] = {}
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._listener = self._listen()

    def serve(self) -> None:
        """Serve until idle for long enough."""
        facts = {"pid": os.getpid(), "start_time": process_start_time(os.getpid()), "threads": len(os.listdir("/proc/self/task"))}
        _write(self._home / "zygote.json", json.dumps(facts))
        idle_since = time.monotonic()
        while True:
            if self._connections or self._children:
                idle_since = time.monotonic()
                wait = None
            else:
                left = self._idle_seconds - (time.monotonic() - idle_since)
                if left <= 0 or environment_home(self._home.parent, self._device) != self._home:
                    break
                wait = min(left, _LOOK_SECONDS) * 1000
            for descriptor, events in self._poll.poll(wait):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._children:
                    self._reap(self._children[descriptor])
                elif descriptor in self._connections:
                    self._read(self._connections[descriptor], events)
        (self._home / "zygote.sock").unlink(missing_ok=True)
        (self._home / "zygote.json").unlink(missing_ok=True)
        print("idle: leaving", flush=True)

    def _listen(self) -> socket.socket:
        path = self._home / "zygote.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(path) as address:
            listener.bind(address)
        os.chmod(path, 0o600)
        listener.listen(128)
        listener.setblocking(False)
        self._poll.register(listener, select.POLLIN)
        return listener

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the client is gone again
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid != os.getuid():
            print(f"refused a connection of uid {uid}", flush=True)
            sock.close()
            return
        sock.setblocking(False)
        self._connections[sock.fileno()] = _Connection(sock)
        self._poll.register(sock, select.POLLIN)

    def _read(self, connection: _Connection, events: int) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(connection.sock, 1 << 20, 16)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        connection.descriptors += descriptors
        connection.data += data
        if not data or len(connection.data) > _MAX_REQUEST:
            self._drop(connection)
            return
        while (end := connection.data.find(b"\n")) >= 0:
            line = bytes(connection.data[:end])
            del connection.data[: end + 1]
            try:
                request = json.loads(line)
                descriptors, connection.descriptors = connection.descriptors[:4], connection.descriptors[4:]
                if request["op"] != "fork" or len(descriptors) != 4:
                    raise ValueError(f"not a fork request with four descriptors: {request.get('op')!r}, {len(descriptors)}")
                launch = RankLaunch.from_json(request["launch"])
            except (ValueError, KeyError, TypeError) as error:
                print(f"refused a request: {error}", flush=True)
                self._drop(connection)
                return
            self._fork(connection, int(request["id"]), launch, descriptors)

    def _fork(self, connection: _Connection, request: int, launch: RankLaunch, descriptors: list[int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become_rank(launch, descriptors)
        pidfd = os.pidfd_open(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        child = _Child(pid, pidfd, request, connection)
        self._children[pidfd] = child
        self._poll.register(pidfd, select.POLLIN)
        if not self._answer(connection, {"id": request, "pid": pid}, [pidfd]):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _become_rank(self, launch: RankLaunch, descriptors: list[int]) -> NoReturn:
        """In the child: drop everything of the zygote and of other ranks, then run."""
        try:
            for sock in (self._listener, *(c.sock for c in self._connections.values())):
                sock.detach()  # closed below by number; a later close by the object would hit somebody else's descriptor
            lowest = 3 + len(descriptors)
            moved = [fcntl.fcntl(d, fcntl.F_DUPFD_CLOEXEC, max(descriptors) + 1 + lowest) for d in descriptors]
            for index, descriptor in enumerate(moved):
                os.dup2(descriptor, 3 + index, inheritable=False)
            os.closerange(lowest, 1 << 20)
            has_listener = launch.rank == 0 and launch.world_size > 1
            if not has_listener:
                os.close(6)
            self._run_rank(launch, RankDescriptors(channel=3, lifeline=4, log=5, listener=6 if has_listener else None))
        except BaseException:  # noqa: BLE001  this process must end here
            traceback.print_exc()
        finally:
            os._exit(70)

    def _reap(self, child: _Child) -> None:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid == 0:
            return
        self._poll.unregister(child.pidfd)
        del self._children[child.pidfd]
        os.close(child.pidfd)
        if child.connection.sock.fileno() >= 0:
            self._answer(child.connection, {"id": child.request, "pid": child.pid, "status": status}, [])

    def _answer(self, connection: _Connection, message: dict[str, int], descriptors: list[int]) -> bool:
        line = json.dumps(message).encode() + b"\n"
        try:
            socket.send_fds(connection.sock, [line], descriptors)
        except OSError:  # closed; or its buffer is full: nobody reads any more
            self._drop(connection)
            return False
        return True

    def _drop(self, connection: _Connection) -> None:
        """Forget a connection and kill its ranks: their agent is gone."""
        number = connection.sock.fileno()
        if number < 0:
            return
        self._poll.unregister(connection.sock)
        del self._connections[number]
        connection.sock.close()
        for descriptor in connection.descriptors:
            os.close(descriptor)
        for child in self._children.values():
            if child.connection is connection:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)


def take_lock(home: Path) -> bool:
    """Take the lock for the life of this process; False when another zygote has it.

    A client may hold it for a moment to see whether a zygote lives, so a few attempts are made.
    """
    lock = os.open(home / "zygote.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
    os.close(lock)
    return False


def _make_private(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_uid != os.getuid():
        raise SystemExit(f"{directory} belongs to another user; choose another folder")
    directory.chmod(0o700)


def _redirect(home: Path) -> None:
    """Standard streams to the zygote's log."""
    log = os.open(home / "zygote.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


if __name__ == "__main__":
    main()
