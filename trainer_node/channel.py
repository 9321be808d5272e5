"""The rank's end of the line to its agent: JSON lines over a socket pair, never blocking for the trainer.

Facts and the exit message are kept until they are written; beats, samples and gauges are dropped while more than `BACKLOG` bytes
wait (an agent that is stopped must not slow training down). The control word is read when the trainer asks for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.trainer_node.context import NONE, SAVE, SAVE_AND_LEAVE, STOP, ControlWord
from luthier.trainer_node.launch import Section

__all__ = ["BACKLOG", "JsonChannel", "watch_lifeline"]

BACKLOG = 1 << 20
"""Bytes that may wait before lossy messages are dropped."""

_WORDS: dict[str, ControlWord] = {"none": NONE, "save": SAVE, "save_and_leave": SAVE_AND_LEAVE, "stop": STOP}


class JsonChannel:
    """`luthier.trainer_node.context.RankChannel` over a connected socket.

    A word counts once: `control` hands out what the agent asked for and is back to none, so that a save is made at one step, and ranks
    that agreed to train on after a failed save-and-leave are not asked again by the same request. STOP stays.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BACKLOG)
        self._sock = sock
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._received = bytearray()
        self._word: ControlWord = NONE
        self._leave_by: float | None = None

    def beat(self, section: Section, step: int) -> None:
        self._send({"t": "beat", "section": section, "step": step}, lossy=True)

    def fact(self, name: str, body: Mapping[str, Any]) -> None:
        self._send({"t": "fact", "fact": name, "body": dict(body)}, lossy=False)

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._send({"t": "samples", "rows": [dict(row) for row in rows]}, lossy=True)

    def gauges(self, values: Mapping[str, float]) -> None:
        self._send({"t": "gauges", "values": dict(values)}, lossy=True)

    def control(self) -> ControlWord:
        self._receive()
        word = self._word
        if word != STOP:
            self._word = NONE
        return word

    def grace(self) -> float | None:
        self._receive()
        return None if self._leave_by is None else max(0.0, self._leave_by - time.monotonic())

    def exit(self, code: int, message: str, *, seconds: float = 5.0) -> None:
        """The last line. Waits up to `seconds` until everything is written."""
        self._send({"t": "exit", "code": code, "message": message}, lossy=False)
        deadline = time.monotonic() + seconds
        while self.flush() and (left := deadline - time.monotonic()) > 0:
            select.select([], [self._sock], [], left)

    def flush(self) -> int:
        """Write what fits and return the number of bytes that still wait; 0 also when the agent is gone."""
        with self._lock:
            while self._unsent:
                try:
                    sent = self._sock.send(self._unsent)
                except BlockingIOError:
                    break
                except OSError:  # the agent is gone: the lifeline ends this process
                    self._unsent.clear()
                    break
                del self._unsent[:sent]
            return len(self._unsent)

    @property
    def descriptor(self) -> int:
        return self._sock.fileno()

    def _send(self, message: Mapping[str, Any], *, lossy: bool) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if lossy and len(self._unsent) > BACKLOG:
                return
            self._unsent += line
        self.flush()

    def _receive(self) -> None:
        while True:
            try:
                data = self._sock.recv(65536)
            except OSError:  # nothing there; or the agent is gone, which the lifeline tells
                return
            if not data:
                return
            self._received += data
            while (end := self._received.find(b"\n")) >= 0:
                message = json.loads(self._received[:end])
                del self._received[: end + 1]
                if message.get("t") == "control":
                    asked = _WORDS[message["word"]]
                    self._word = asked if asked == NONE else max(self._word, asked)
                    grace = message.get("grace")
                    self._leave_by = None if grace is None else time.monotonic() + float(grace)


def watch_lifeline(lifeline: int, channel: JsonChannel, code: int) -> threading.Thread:
    """Start the thread that ends this process with `code` when the agent's end of `lifeline` closes.

    It also writes the channel's backlog, so that a fact is not held back by a long computation.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(lifeline, select.POLLIN | select.POLLHUP | select.POLLERR)
        while True:
            waiting = channel.flush()
            if poll.poll(100 if waiting else 1000) and os.read(lifeline, 1) == b"":
                os._exit(code)

    thread = threading.Thread(target=watch, name="lifeline", daemon=True)
    thread.start()
    return thread
