"""Log bytes of a node: read from byte offsets of the log files, so that they can be sent again from what the controller has."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LogTail", "Piece", "last_lines"]

CHUNK = 64 * 1024
"""Bytes of one message; the protocol allows 256 KiB."""
WINDOW = 1 << 20
"""Bytes of one stream that may be under way without an acknowledgement."""
RATE = 2 << 20
"""Bytes a second over all streams of a node."""


@dataclass(frozen=True)
class Piece:
    """Bytes of one stream; rank None is the agent's own."""

    rank: int | None
    offset: int
    data: bytes


@dataclass
class _Stream:
    path: Path
    acknowledged: int = 0
    sent: int = 0


class LogTail:
    """What is to be sent of each stream."""

    def __init__(self) -> None:
        self._streams: dict[int | None, _Stream] = {}
        self._allowance = float(RATE)
        self._filled = time.monotonic()

    def follow(self, rank: int | None, path: Path) -> None:
        """Send this file from now on."""
        self._streams.setdefault(rank, _Stream(path))

    def restart(self) -> None:
        """The stream to the controller is new: send again from what it has."""
        for stream in self._streams.values():
            stream.sent = stream.acknowledged

    def acknowledge(self, rank: int | None, offset: int) -> None:
        """The controller has the stream up to `offset`."""
        stream = self._streams.get(rank)
        if stream is not None:
            stream.acknowledged = max(stream.acknowledged, offset)
            stream.sent = max(stream.sent, offset)

    def pieces(self) -> Iterator[Piece]:
        """What may be sent now: within the window of each stream and the rate of the node."""
        now = time.monotonic()
        self._allowance = min(float(RATE), self._allowance + (now - self._filled) * RATE)
        self._filled = now
        for rank, stream in self._streams.items():
            while self._allowance > 0 and stream.sent - stream.acknowledged < WINDOW:
                data = _read(stream.path, stream.sent)
                if not data:
                    break
                piece = Piece(rank, stream.sent, data)
                stream.sent += len(data)  # before the piece goes out: its acknowledgement may come while it is being sent
                self._allowance -= len(data)
                yield piece

    def pending(self) -> bool:
        """True while the controller lacks bytes of some stream."""
        return any(_size(s.path) > s.acknowledged for s in self._streams.values())


def last_lines(path: Path, count: int, *, limit: int = 64 * 1024) -> list[str]:
    """The last lines of a text file, from at most `limit` bytes."""
    start = max(0, _size(path) - limit)
    lines = _read(path, start, limit).decode(errors="replace").splitlines()
    return lines[1:][-count:] if start and len(lines) > count else lines[-count:]


def _read(path: Path, offset: int, size: int = CHUNK) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
