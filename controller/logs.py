"""Log bytes of trainer nodes: appended by sessions, streamed to users, also long after the nodes are gone.

One file per stream, `<root>/<tenant>/<job uid>/logs/a<attempt>/n<node>.log` for an agent and `n<node>-r<rank>.log` for a rank of the
group. A byte's offset in the file is its offset in the stream, so an append that is sent again changes nothing.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import re
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from luthier.errors import FieldViolation, SpecError

__all__ = ["LogPiece", "LogQuery", "LogStore", "LogStream"]

CHUNK_BYTES = 64 * 1024
_TAIL_BLOCK = 64 * 1024
_NAME = re.compile(r"n(\d{1,6})(?:-r(\d{1,6}))?\.log")
_ATTEMPT = re.compile(r"a(\d{1,9})")
_LOOK_SECONDS = 2.0
"""How often a follower asks whether the job has ended, beside every notification."""


@dataclass(frozen=True, order=True)
class LogStream:
    """One writer. `rank` is -1 for the agent, so that agents sort first."""

    attempt: int
    node: int
    rank: int = -1

    @property
    def file(self) -> str:
        return f"n{self.node}.log" if self.rank < 0 else f"n{self.node}-r{self.rank}.log"


@dataclass(frozen=True)
class LogPiece:
    """Bytes of one stream, and the token that resumes after them."""

    stream: LogStream
    offset: int
    data: bytes
    token: str


@dataclass(frozen=True)
class LogQuery:
    """What to stream: attempts from `attempt` (`later`: also newer ones), one node or rank or all (None), from the last lines or a
    token."""

    attempt: int
    later: bool = False
    node: int | None = None
    rank: int | None = None
    follow: bool = False
    tail_lines: int = 0
    token: str = ""


class LogStore:
    """Files below one root. `append` and the readers' file access block; call `append` from a worker thread."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._locks = [threading.Lock() for _ in range(16)]
        self._followers: dict[str, set[_Follower]] = defaultdict(set)
        self._followers_lock = threading.Lock()

    def folder(self, tenant: str, uid: str) -> Path:
        """Where the logs of a job lie."""
        return self.root / tenant / uid / "logs"

    def append(self, tenant: str, uid: str, attempt: int, node: int, rank: int | None, offset: int, data: bytes) -> int:
        """Append bytes that begin at `offset` of their stream; returns the stream's end.

        Bytes that are there already are skipped. A gap is refused: nothing is written and the present end tells where to go on.
        """
        stream = LogStream(attempt, node, -1 if rank is None else rank)
        path = self.folder(tenant, uid) / f"a{attempt}" / stream.file
        with self._locks[hash(path) % len(self._locks)]:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            except FileNotFoundError:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                end = os.fstat(descriptor).st_size
                if offset > end or offset + len(data) <= end:
                    return end
                fresh = data[end - offset :]
                while fresh:
                    written = file.write(fresh)
                    fresh = fresh[written or 0 :]
        self.notify(uid)
        return offset + len(data)

    def end(self, tenant: str, uid: str, attempt: int, node: int, rank: int | None) -> int:
        """Bytes of a stream that are stored."""
        stream = LogStream(attempt, node, -1 if rank is None else rank)
        try:
            return (self.folder(tenant, uid) / f"a{attempt}" / stream.file).stat().st_size
        except FileNotFoundError:
            return 0

    def notify(self, uid: str) -> None:
        """Make followers of a job look again: bytes came, or its state changed. From any thread."""
        with self._followers_lock:
            for follower in self._followers.get(uid, ()):
                follower.poke()

    async def stream(self, tenant: str, uid: str, query: LogQuery, ended: Callable[[], Awaitable[bool]]) -> AsyncGenerator[LogPiece, None]:
        """Pieces of whole lines (longer lines in parts), stream after stream; with `follow` until `ended()` says that no more comes.

        Raises `SpecError` for a token of another job.
        """
        positions = _Positions(uid, query)
        folder = self.folder(tenant, uid)
        with self._following(uid) as follower:
            while True:
                follower.woken.clear()
                # Asked before reading: what was written before the end is then read below.
                last_round = not query.follow or await ended()
                produced = False
                for stream in await asyncio.to_thread(_streams, folder, positions.attempt, query):
                    path = folder / f"a{stream.attempt}" / stream.file
                    if stream not in positions.at:
                        positions.at[stream] = await asyncio.to_thread(_tail, path, query.tail_lines) if query.tail_lines else 0
                    while True:
                        offset = positions.at[stream]
                        data = await asyncio.to_thread(_read_lines, path, offset, last_round)
                        if not data:
                            break
                        produced = True
                        positions.at[stream] = offset + len(data)
                        yield LogPiece(stream, offset, data, positions.token())
                if last_round:
                    return
                if not produced:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await follower.woken.wait()

    @contextlib.contextmanager
    def _following(self, uid: str) -> Iterator[_Follower]:
        follower = _Follower(asyncio.get_running_loop())
        with self._followers_lock:
            self._followers[uid].add(follower)
        try:
            yield follower
        finally:
            with self._followers_lock:
                self._followers[uid].discard(follower)
                if not self._followers[uid]:
                    del self._followers[uid]


@dataclass(eq=False)
class _Follower:
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def poke(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.woken.set)


class _Positions:
    """Next byte of every stream; the resume token is these numbers."""

    def __init__(self, uid: str, query: LogQuery) -> None:
        self.uid = uid
        self.attempt = query.attempt
        self.at: dict[LogStream, int] = {}
        if query.token:
            self._read(query.token)

    def token(self) -> str:
        places = [[s.attempt, s.node, s.rank, at] for s, at in self.at.items()]
        text = json.dumps([self.uid, self.attempt, places], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def _read(self, token: str) -> None:
        try:
            uid, attempt, places = json.loads(base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4)))
            numbers = [attempt, *(n for place in places for n in place)]
            if uid != self.uid or not all(isinstance(n, int) and -1 <= n < 2**62 for n in numbers):
                raise ValueError("not a token of this job")
            self.attempt = attempt
            self.at = {LogStream(a, n, r): max(0, at) for a, n, r, at in places}
        except (ValueError, TypeError, binascii.Error, RecursionError) as error:
            fix = "start again without a token"
            why = "it is not a resume token of this job's logs"
            raise SpecError(
                f"resume_token cannot be used: {why}",
                reason="INVALID_PAGE_TOKEN",
                violations=[FieldViolation("resume_token", why, fix)],
                fix=fix,
            ) from error


def _streams(folder: Path, first_attempt: int, query: LogQuery) -> list[LogStream]:
    """The streams there are, agents before ranks, older attempts before newer ones."""
    found = []
    try:
        attempts = list(folder.iterdir())
    except FileNotFoundError:
        return []
    for place in attempts:
        match = _ATTEMPT.fullmatch(place.name)
        if match is None or not (int(match[1]) == first_attempt or (query.later and int(match[1]) > first_attempt)):
            continue
        for path in place.iterdir():
            name = _NAME.fullmatch(path.name)
            if name is None or (query.node is not None and int(name[1]) != query.node):
                continue
            if query.rank is not None and (name[2] is None or int(name[2]) != query.rank):
                continue
            found.append(LogStream(int(match[1]), int(name[1]), -1 if name[2] is None else int(name[2])))
    return sorted(found)


def _read_lines(path: Path, offset: int, flush: bool) -> bytes:
    """Whole lines from `offset`, at most one chunk; `flush`: also an unfinished last line. Empty when there is nothing to send."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""
    end = data.rfind(b"\n") + 1
    if flush and len(data) < CHUNK_BYTES:
        return data
    if end:
        return data[:end]
    if len(data) == CHUNK_BYTES:
        return data[: _character_boundary(data)]
    return b""


def _character_boundary(data: bytes) -> int:
    """Where the last whole UTF-8 character ends."""
    for back in range(1, 4):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if length > back else len(data)
    return len(data)


def _tail(path: Path, lines: int) -> int:
    """Offset of the last `lines` lines."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            at, missing = end, lines
            while at > 0:
                start = max(0, at - _TAIL_BLOCK)
                file.seek(start)
                block = file.read(at - start)
                if at == end and block.endswith(b"\n"):
                    block = block[:-1]  # the end of the last line begins no other
                while (newline := block.rfind(b"\n")) >= 0:
                    missing -= 1
                    if missing == 0:
                        return start + newline + 1
                    block = block[:newline]
                at = start
    except FileNotFoundError:
        pass
    return 0
