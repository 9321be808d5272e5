"""Child subreaper: processes whose parent died become children of the agent, so that their exit codes survive."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

__all__ = ["Reaper", "not_a_subreaper", "set_subreaper"]

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


def set_subreaper(on: bool) -> None:
    """Become, or cease to be, the parent of orphaned descendants. Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(int(on)))


@contextlib.contextmanager
def not_a_subreaper() -> Iterator[None]:
    """For starting a process that must leave this process tree."""
    before = ctypes.c_int()
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    set_subreaper(False)
    try:
        yield
    finally:
        set_subreaper(bool(before.value))


class Reaper:
    """Collects wait statuses of children that nobody else waits for."""

    def __init__(self) -> None:
        self._statuses: dict[int, int] = {}

    def collect(self) -> None:
        """Reap every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._statuses[pid] = status

    def take(self, pid: int) -> int | None:
        """The wait status of a child that has ended, once; None when it was not ours or lives."""
        self.collect()
        return self._statuses.pop(pid, None)


def _prctl(option: int, argument: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
