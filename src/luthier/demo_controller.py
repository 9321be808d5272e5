"""A controller of one's own: `luthier up` as a child process on a free port, ended with what it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import Unavailable

__all__ = ["Controller"]

_START_SECONDS = 60.0
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Controller:
    """A running controller, and how to reach it."""

    address: str
    token: str
    pid: int
    log: Path

    @classmethod
    @contextlib.contextmanager
    def start(cls, state_dir: Path) -> Iterator[Controller]:
        """Start a controller on `state_dir` and end it on leaving. Raises `LuthierError` with its last words when it does not start."""
        state_dir.mkdir(parents=True, exist_ok=True)
        log = state_dir / "controller.log"
        command = [sys.executable, "-P", "-m", "luthier.cli", "up", "--listen", "127.0.0.1:0", "--state-dir", str(state_dir)]
        # Another controller's address or token in the environment is none of the demo's business.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LUTHIER_")}
        with log.open("ab") as output:
            begin = output.tell()
            # A session of its own: Ctrl-C is for the demo, which ends the jobs first and the controller last.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        try:
            yield _reachable(process, state_dir, log, begin)
        finally:
            _end(process)


def _endpoint(state_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((state_dir / "endpoint.json").read_text())
        return found
    except (OSError, ValueError):
        return {}


def _reachable(process: subprocess.Popen[bytes], state_dir: Path, log: Path, begin: int) -> Controller:
    """Wait for the endpoint file of this very process."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(
                f"the controller ended while starting (exit code {process.returncode}):\n{_last_lines(log, begin)}",
                fix=f"follow the controller's advice, or choose another directory with --state-dir (log: {log})",
            )
        found = _endpoint(state_dir)
        if found.get("pid") == process.pid:
            token = (state_dir / str(found["token_file"])).read_text().strip()
            return Controller(str(found["address"]), token, process.pid, log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise Unavailable(
        f"the controller was not ready after {_START_SECONDS:g} s:\n{_last_lines(log, begin)}",
        fix="run the demo when the machine is less busy",
    )


def _last_lines(log: Path, begin: int, count: int = 12) -> str:
    """The end of what was written since byte `begin`: earlier runs use the same file."""
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()[-count:]
    return "\n".join(f"    {line}" for line in lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C ends a controller with its helpers; once more if it waits for jobs, and SIGKILL for one that hears nothing."""
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
