"""Process trees: start one in a session of its own, name it for ever, watch it, end all of it and nothing else. Linux only."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Identity", "descendants", "is_over", "kill_tree", "lock_holder", "open_process", "send", "start"]


@dataclass(frozen=True)
class Identity:
    """A process by pid and start time (clock ticks since boot): unlike a pid alone, never another one."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The running process `pid`; None when there is none (a zombie is none)."""
        stat = _stat(pid)
        return None if stat is None or stat.state in "ZX" else cls(pid, stat.start_time)

    @classmethod
    def read(cls, path: Path) -> Identity | None:
        """From a JSON file with `pid` and `start_time`; None when it is missing or unfinished."""
        try:
            data = json.loads(path.read_text())
            return cls(int(data["pid"]), int(data["start_time"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def lives(self) -> bool:
        """Whether this very process runs."""
        return Identity.of(self.pid) == self


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    session: int
    start_time: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def start(arguments: Sequence[str], directory: Path, environment: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
    """Start a process in a new session: no terminal's Ctrl-C reaches it, and it outlives the caller. Raises OSError."""
    with output.open("ab") as file:
        return subprocess.Popen(
            list(arguments),
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
        )


def open_process(identity: Identity) -> int | None:
    """A pidfd of exactly this process; None when it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:
        return None
    if identity.lives():
        return descriptor
    os.close(descriptor)
    return None


def is_over(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def send(pidfd: int, number: signal.Signals) -> None:
    """Send a signal to the process of a pidfd; nothing when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def descendants(identity: Identity) -> list[Identity]:
    """Living processes that `identity` started: its children and theirs, and whoever is in its session. Without itself."""
    table: dict[int, _Stat] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))) is not None:
            table[int(entry.name)] = stat
    children: dict[int, list[int]] = {}
    for pid, stat in table.items():
        children.setdefault(stat.parent, []).append(pid)
    # An older process of that session number belongs to an earlier owner of the pid.
    found = {p for p, s in table.items() if s.session == identity.pid and s.start_time >= identity.start_time}
    waiting = [identity.pid] if identity.lives() else []
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                waiting.append(child)
            found.add(child)
    found.discard(identity.pid)
    return [Identity(p, table[p].start_time) for p in sorted(found) if table[p].state not in "ZX"]


def kill_tree(identity: Identity) -> int:
    """SIGKILL a process and everything it started; returns how many were hit.

    Children are listed before their parent dies, since they change parents then; the session is searched until it is empty, for a
    fork in between.
    """
    hit = 0
    for _ in range(10):
        targets = [i for i in (identity, *descendants(identity)) if i.lives()]
        if not targets:
            break
        for target in targets:
            descriptor = open_process(target)
            if descriptor is not None:
                send(descriptor, signal.SIGKILL)
                os.close(descriptor)
                hit += 1
    return hit


def lock_holder(path: Path, *, named: Path) -> int | None:
    """Pid of the process that holds a flock on `path` and has the folder `named` in its command line; None when nobody does.

    Read from the kernel's list: to try the lock would disturb a process that is just about to take it.
    """
    try:
        inode = path.stat().st_ino
    except FileNotFoundError:
        return None
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "->" not in fields and len(fields) >= 8 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
            pid = int(fields[4])
            if pid > 0 and str(named) in _command(pid):
                return pid
    return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
