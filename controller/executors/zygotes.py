"""The shared trainer zygote of this machine: started ahead of the first job, ended with `luthier up`.

It finds its own folder below `home`, takes a lock there and goes away when idle, so starting it is a request that may be repeated at
any time; agents would start it themselves, a moment later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from luthier.controller.executors.processes import Identity, lock_holder, open_process, send

__all__ = ["Zygotes"]

_log = logging.getLogger(__name__)


class Zygotes:
    """Starts zygotes; ends only those in its own `home`, and only when it owns that folder."""

    def __init__(self, home: Path, idle_seconds: float, environment: Mapping[str, str], *, owned: bool) -> None:
        self._home = home
        self._idle_seconds = idle_seconds
        self._environment = dict(environment)
        self._owned = owned
        self._starting: dict[str, asyncio.Task[None]] = {}

    async def start(self, device: str) -> None:
        """Ask for a zygote for `device` unless one runs; returns at once. A failure is logged: the agent reports it where it matters.

        One that runs may be of an older environment; then the agent starts the right one itself.
        """
        task = self._starting.get(device)
        if (task is None or task.done()) and not self.running(device):
            self._starting[device] = asyncio.create_task(self._start(device), name=f"zygote-{device}")

    async def _start(self, device: str) -> None:
        command = [sys.executable, "-P", "-m", "luthier.trainer_node.zygote", str(self._home), "--device", device]
        command += ["--idle-seconds", f"{self._idle_seconds:g}", "--detach"]
        try:
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            process = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            code = await process.wait()
        except OSError as error:
            _log.warning("the zygote could not be started: %s", error)
            return
        if code != 0:
            _log.warning("the zygote's start ended with exit code %s; its log is below %s", code, self._home)

    def running(self, device: str = "") -> list[Identity]:
        """Zygotes that live in the folder, of one device or of all; also those that are still loading."""
        found = []
        for lock in sorted(self._home.glob(f"{device or '*'}-*/zygote.lock")):
            holder = lock_holder(lock, named=self._home)
            identity = Identity.of(holder) if holder is not None else None
            if identity is not None:
                found.append(identity)
        return found

    async def close(self, *, stop: bool) -> None:
        """Wait for starts under way; with `stop` end the zygotes, when the folder is ours."""
        if self._starting:
            await asyncio.gather(*self._starting.values(), return_exceptions=True)
        if not (stop and self._owned):
            return
        for identity in self.running():
            descriptor = open_process(identity)
            if descriptor is not None:
                send(descriptor, signal.SIGTERM)
                os.close(descriptor)
